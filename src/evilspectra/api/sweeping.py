"""Sweeps: many runs of one file, trained, measured and judged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilspectra.api.arguments import PathLike, Settings, choice, name, optional_name
from evilspectra.api.layers import Layers, assigned, layers
from evilspectra.api.result import Result
from evilspectra.errors import BadInput, EvilspectraError, packages_explained

if TYPE_CHECKING:
    from altair import VConcatChart

    from evilspectra.config.sections import Config
    from evilspectra.executors.executor import Executor
    from evilspectra.store.records import RunSummary
    from evilspectra.sweeps.file import Sweep
    from evilspectra.sweeps.run import Outcome

#: The beginning of a line of progress that is a warning on the whole sweep.
WARNING = "note: "
#: Names of executors.
EXECUTORS = ("local", "ray", "slurm")


@dataclass(frozen=True)
class SweptRun:
    """The outcome of one run of a sweep.

    Attributes:
        run: its id.
        folder: its folder in the store.
        trained: whether this call trained it; else it was done before, or failed.
        failed: why it is not trained to its end, or not measured; None where all is well.
        unjudged: why answers of it lack verdicts, where they were to be judged.
        summary: the run in one row; None where it was not even begun.
    """

    run: str
    folder: Path
    trained: bool
    failed: str | None
    unjudged: str | None
    summary: RunSummary | None

    def row(self) -> dict[str, Any]:
        """The row of `SweepOutcome.to_frame()`."""
        own: dict[str, Any] = asdict(self) | {"folder": str(self.folder)}
        summary: dict[str, Any] = own.pop("summary") or {}
        return own | {field: value for field, value in summary.items() if field not in own}


@dataclass(frozen=True, repr=False)
class SweepOutcome(Result):
    """The outcome of a sweep; its rows are its runs.

    It may be given wherever a path to a store is expected, as in `analyze(outcome)`.

    Attributes:
        folder: the experiment's folder in the store.
        runs: the outcome of each run, in the file's order.
        warnings: what a reader of its results should know, one sentence each.
        judged: whether the answers of the runs were to be judged.
        measured: whether the runs were to be measured.
    """

    folder: Path
    runs: tuple[SweptRun, ...]
    warnings: tuple[str, ...] = ()
    measured: bool = False
    judged: bool = False

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def failed(self) -> tuple[SweptRun, ...]:
        """The runs that are not trained to their end, or not measured."""
        return tuple(run for run in self.runs if run.failed)

    @property
    def unjudged(self) -> tuple[SweptRun, ...]:
        """The runs that are trained and measured, and lack verdicts."""
        return tuple(run for run in self.runs if run.unjudged and not run.failed)

    @property
    def headline(self) -> str:
        failed = len(self.failed)
        already = sum(not run.trained and not run.failed for run in self.runs)
        trained = len(self.runs) - failed - already
        verdicts = f", {len(self.unjudged)} without all verdicts" if self.unjudged else ""
        counts = f"{trained} trained, {already} done before, {failed} failed"
        return f"{len(self.runs)} runs: {counts}{verdicts}; in {self.folder}"

    @property
    def details(self) -> tuple[str, ...]:
        """The reasons of runs that failed or lack verdicts, then the sweep's warnings."""
        reasons = [(run.run, run.failed or run.unjudged) for run in self.runs]
        return (*(f"{run}: {reason}" for run, reason in reasons if reason), *self.warnings)

    def rows(self) -> list[dict[str, Any]]:
        """A row per run: its outcome, then the columns of `runs` for it."""
        return [run.row() for run in self.runs]

    def figure(self) -> VConcatChart:
        """Draws losses and measures of flatness over the steps, a line per run."""
        from evilspectra.api.figures import figure_of_runs

        return figure_of_runs(self.folder)


@packages_explained("train")
def sweep(
    file: PathLike | Mapping[str, Any],
    *,
    settings: Settings = (),
    seeds: int | Sequence[int] | None = None,
    output: PathLike | None = None,
    executor: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus_per_run: float | None = None,
    partition: str | None = None,
    hours: float = 24.0,
    runs_per_job: int = 1,
    slurm_settings: Sequence[str] = (),
    only: Collection[str] | None = None,
    note: Callable[[str], object] | None = None,
    progress: bool = False,
) -> SweepOutcome:
    """Trains every run of a sweep, measures it and has it judged, skipping what is done.

    A failed run does not stop the others, and raises nothing: `failed` of the outcome lists them.
    Called again, it carries out the runs that are not done, and nothing else. Runs may go to worker
    processes, which a script starts safely only below `if __name__ == "__main__":`; with
    `workers=1` they stay in this process.

    Args:
        file: a sweep file, a preset's name, or the mapping that such a file would hold.
        settings: laid over every run; those of axes, seeds, evaluate and judge over the file.
        seeds: how many seeds every cell is run with (5 means 0 to 4), or which; instead of the
            file's own.
        output: the store, a folder of runs; without it the setting `output.folder`, which is
            `runs` unless the file says otherwise.
        executor: local, ray or slurm; docs/executors.md explains them.
        workers: runs under way at once; without it as many local processes as memory, cores and
            graphics cards allow.
        address: of a Ray cluster; without it one is started for this sweep alone.
        gpus_per_run: graphics cards of each run on Ray or Slurm; Ray can share one, as in 0.5.
        partition: of Slurm.
        hours: time limit of a Slurm job; a run that reaches it resumes in the next.
        runs_per_job: runs that one Slurm job carries out, with the base loaded once.
        slurm_settings: other parameters of submitit's, as "name=value".
        only: ids of the runs to carry out; without it all.
        note: called with a line of text: the sweep's warnings, then what happens.
        progress: draw on standard error what the command `sweep` draws there.

    Raises:
        BadInput: the file cannot be used, an option belongs to another executor, or the data, base,
            items or judge of some run are missing; nothing was trained.
        Interrupted: ^C or SIGTERM; completed work is kept, and the same call resumes.
    """
    from evilspectra.sweeps.file import load_sweep

    above = assigned({"output.folder": optional_name(output, "output")})
    changes: Layers = [*layers(settings), *above]
    if seeds is not None:
        changes.append({"seeds": seeds if isinstance(seeds, int) else list(seeds)})
    source = file if isinstance(file, Mapping) else name(file, "file")
    loaded = load_sweep(source, changes)
    if note:
        for warning in loaded.warnings:
            note(f"{WARNING}{warning}")
    from evilspectra.store.labels import arm
    from evilspectra.sweeps.file import experiment_folder
    from evilspectra.sweeps.run import execute
    from evilspectra.tables.index import read_index

    def announce(number: int, config: Config) -> None:
        if note:
            run = f"{arm(config)}, lr {config.optimizer.lr:g}, seed {config.train.seed}"
            note(f"[{number + 1}/{len(loaded.configs)}] {run}")

    options = {
        "address": address,
        "gpus_per_run": gpus_per_run,
        "partition": partition,
        "slurm_settings": slurm_settings,
    }
    _check_owners(choice(executor, EXECUTORS, "executor"), options)
    outcomes = execute(
        loaded,
        _executor_of(loaded, executor, not progress, workers, hours, runs_per_job, options),
        quiet=not progress,
        on_start=announce,
        only=only,
        note=note,
    )
    folder = experiment_folder(loaded)
    if any(outcome.trained for outcome in outcomes):
        # The index makes the first question to the store quick; without it the store is read then.
        with suppress(EvilspectraError):
            read_index(folder.parent)
    return SweepOutcome(
        folder,
        tuple(_swept(outcome) for outcome in outcomes),
        loaded.warnings,
        measured=bool(loaded.evaluation),
        judged=bool(loaded.judging),
    )


def _swept(outcome: Outcome) -> SweptRun:
    from evilspectra.evaluation.summary import summarise

    run = outcome.run
    begun = (run.path / "config.yaml").exists()
    return SweptRun(
        run.name,
        run.path,
        outcome.trained,
        outcome.failed,
        outcome.unjudged,
        summarise(run) if begun else None,
    )


#: Options of some executors only.
_OWNERS = {
    "address": ("ray",),
    "partition": ("slurm",),
    "slurm_settings": ("slurm",),
    "gpus_per_run": ("ray", "slurm"),
}


def _check_owners(executor: str, options: Mapping[str, Any]) -> None:
    """Refuses an option of another executor."""
    for option, allowed in _OWNERS.items():
        if options[option] and executor not in allowed:
            flag = {"slurm_settings": "--slurm-set"}.get(option, f"--{option.replace('_', '-')}")
            raise BadInput(
                f"{flag} is for --executor {' or '.join(allowed)}, and this one is {executor}: "
                "leave it out, or choose that"
            )


def _executor_of(
    loaded: Sweep,
    executor: str,
    quiet: bool,
    workers: int | None,
    hours: float,
    runs_per_job: int,
    options: Mapping[str, Any],
) -> Executor:
    """The executor of that name, with the options that are its own."""
    gpus = options["gpus_per_run"] or 0.0
    if executor == "ray":
        from evilspectra.executors.ray import OnRay

        return OnRay(options["address"], gpus, workers, quiet)
    if executor == "slurm":
        from evilspectra.executors.slurm import OnSlurm, slurm_settings
        from evilspectra.sweeps.file import experiment_folder

        partition = {"partition": options["partition"]} if options["partition"] else {}
        own = partition | slurm_settings(options["slurm_settings"])
        jobs = experiment_folder(loaded) / "jobs"
        return OnSlurm(jobs, gpus, workers, runs_per_job, hours, own)
    from evilspectra.executors.local import suitable
    from evilspectra.executors.local import workers as local_workers
    from evilspectra.executors.stages import Task

    if workers is not None:
        return local_workers(workers)
    return suitable([Task(number, config) for number, config in enumerate(loaded.configs)])
