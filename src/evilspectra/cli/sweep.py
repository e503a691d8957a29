"""The verbs of sweeps: run one, see how it stands, try again what failed. Everything heavy is imported inside the commands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from evilspectra.cli.options import JSON, OUTPUT, QUIET
from evilspectra.cli.print_plan import DRY_RUN, SEEDS, caution, dry_run, with_seeds
from evilspectra.errors import BadInput, EvilspectraError, Undecided

if TYPE_CHECKING:
    from evilspectra.executors.executor import Executor
    from evilspectra.executors.stages import Task
    from evilspectra.sweeps.file import Sweep
    from evilspectra.sweeps.status import RunProgress

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Change one setting of every run, for instance --set train.steps=30. Repeatable.",
)
#: Seconds between two looks of `sweep status --watch`.
_WATCH = 2.0
#: Runs that are done or queued are counted and not listed where there are more than this.
_LISTED = 40


class _FileOrVerb(click.Group):
    """`sweep FILE …` is `sweep run FILE …`: whatever is no verb is taken for a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def executor_options(command: _Command) -> _Command:
    """What says where runs are carried out."""
    for option in (
        click.option(
            "--slurm-set",
            "slurm_settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="slurm: another parameter of submitit's, for instance --slurm-set account=x. Repeatable.",
        ),
        click.option(
            "--runs-per-job",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            help="slurm: runs that one job carries out one after the other, with the base loaded once.",
        ),
        click.option(
            "--hours",
            type=click.FloatRange(0, min_open=True),
            default=24.0,
            show_default=True,
            help="slurm: time limit of a job; a run that reaches it goes on in the next.",
        ),
        click.option("--partition", metavar="NAME", help="slurm: the partition."),
        click.option(
            "--gpus-per-run",
            type=click.FloatRange(0),
            help="ray, slurm: graphics cards a run gets; ray can share one, as in 0.5. Default 0.",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            help="ray: the cluster, such as 10.0.0.5:6379 or auto; without it one is started on this machine, for it alone.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1),
            help="Runs under way at once. local: processes; without it as many as memory, cores and graphics cards allow.",
        ),
        click.option(
            "--executor",
            "where",
            type=click.Choice(["local", "ray", "slurm"]),
            default="local",
            show_default=True,
            help="Where runs are carried out: docs/executors.md.",
        ),
    ):
        command = option(command)
    return command


@click.group(cls=_FileOrVerb)
def sweep() -> None:
    """Train every run of a sweep, measure it and have it judged, skipping what is done.

    \b
    evilspectra sweep FILE [OPTIONS]   a YAML file or a preset's name; its options: evilspectra sweep run --help
    evilspectra sweep status           how far a sweep or a store is
    evilspectra sweep retry            what failed, once more
    """


@sweep.command("run")
@click.argument("file", metavar="FILE")
@SEEDS
@DRY_RUN
@executor_options
@_SET
@OUTPUT
@JSON
@QUIET
def run_verb(
    file: str,
    seeds: str | None,
    dry: bool,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Carry out a sweep; `sweep FILE` for short. FILE is a YAML file or a preset's name.

    A failed run does not stop the others; the exit code says that some failed, or, with 3, that all is well but verdicts are missing. Run again, it does
    what is not done, what failed included, and nothing else.
    """
    given = with_seeds(with_output(settings, output), seeds)
    if dry:
        return dry_run(file, given, as_json)
    _, failed = run_sweep(file, given, as_json, quiet, options, say=caution)
    sys.exit(1 if failed else 0)


@sweep.command()
@click.argument("file", metavar="FILE")
@click.option("--failed", is_flag=True, help="Runs of which a stage failed.")
@click.option("--interrupted", is_flag=True, help="Runs that were interrupted.")
@SEEDS
@executor_options
@_SET
@OUTPUT
@JSON
@QUIET
def retry(
    file: str,
    failed: bool,
    interrupted: bool,
    seeds: str | None,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Carry out those runs of a sweep alone that failed, or were interrupted: `sweep retry FILE --failed`.

    They go on from their last saved state, and stages that are done are not repeated. What is queued stays queued.
    """
    from evilspectra.sweeps.status import of_sweep

    if not failed and not interrupted:
        raise click.UsageError("say which runs to try again: --failed, --interrupted, or both.")
    given = with_seeds(with_output(settings, output), seeds)
    wanted = {*(["failed"] if failed else []), *(["interrupted"] if interrupted else [])}
    names = {
        one.run
        for one in of_sweep(_ledger(_loaded(file, given)))
        if wanted & set(one.stages.values())
    }
    if not names:
        click.echo(
            f"no run of {file} {' or '.join(sorted(wanted))}: nothing to do"
            if not as_json
            else json.dumps({"runs": [], "failed": 0}, indent=2)
        )
        return
    _, some = run_sweep(file, given, as_json, quiet, options, names)
    sys.exit(1 if some else 0)


@sweep.command()
@click.argument("name", metavar="[STORE_OR_FILE]", default="runs")
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again and again, until nothing is queued or running; ^C ends it.",
)
@click.option("--all", "every", is_flag=True, help="List every run, however many there are.")
@SEEDS
@_SET
@OUTPUT
@JSON
def status(
    name: str,
    watch: bool,
    every: bool,
    seeds: str | None,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
) -> None:
    """Show how runs stand: queued, running, done, failed or interrupted, stage by stage, and why.

    STORE_OR_FILE is a store of runs or an experiment in it (default: runs), or a sweep file or preset, of which runs that are not begun are shown too. This
    changes nothing, and may be asked while the sweep runs.
    """
    from evilspectra.sweeps.status import counts, of_store, of_sweep

    given = with_seeds(with_output(settings, output), seeds)
    if Path(name).is_dir():
        if given:
            raise BadInput(
                f"{name} is a folder, which takes no --set, --seeds or --output: leave them out, or name the sweep file"
            )

        def look() -> list[RunProgress]:
            return of_store(Path(name))
    else:
        ledger = _ledger(_loaded(name, given))

        def look() -> list[RunProgress]:
            return of_sweep(ledger)

    if as_json:
        found = look()
        click.echo(
            json.dumps(
                {"counts": counts(found), "runs": [one.flat() for one in found]},
                indent=2,
                ensure_ascii=False,
            )
        )
    elif watch:
        _watch(look, every)
    else:
        from rich.console import Console

        _console(Console()).print(_table(look(), every))


# --- what the verbs share ---------------------------------------------------------------------------------------------


def run_sweep(
    file: str,
    settings: Sequence[str],
    as_json: bool,
    quiet: bool,
    options: dict[str, Any] | None = None,
    only: Collection[str] | None = None,
    say: Callable[[Sequence[str]], None] = lambda warnings: None,
) -> tuple[Path, bool]:
    """Carries out a sweep and prints what came of it: its experiment's folder, and whether a run failed. `say`: told what the file's warnings are.

    Raises:
        Undecided: all is trained and measured, and verdicts are missing.
    """
    loaded = _loaded(file, settings)
    say(() if quiet else loaded.warnings)
    from evilspectra.cli.print_runs import print_measured, print_summaries
    from evilspectra.evaluation.measured import measured_rows
    from evilspectra.evaluation.summary import summarise
    from evilspectra.store.results import Results
    from evilspectra.store.run import arm
    from evilspectra.sweeps.file import experiment_folder
    from evilspectra.sweeps.run import execute
    from evilspectra.tables.index import read_index

    def announce(number: int, config: Any) -> None:
        if not quiet:
            click.echo(
                f"[{number + 1}/{len(loaded.configs)}] {arm(config)}, lr {config.optimizer.lr:g}, seed {config.train.seed}",
                err=True,
            )

    outcomes = execute(
        loaded, _executor(loaded, quiet, options or {}), quiet=quiet, on_start=announce, only=only
    )
    if any(outcome.trained for outcome in outcomes):
        with suppress(
            EvilspectraError
        ):  # what it is for, a quick first question to the store, can be had later
            read_index(experiment_folder(loaded).parent)
    failed = [outcome for outcome in outcomes if outcome.failed]
    unjudged = [outcome for outcome in outcomes if outcome.unjudged and not outcome.failed]
    summaries = [
        summarise(outcome.run)
        for outcome in outcomes
        if (outcome.run.path / "config.yaml").exists()
    ]
    if as_json:
        told = {"unjudged": len(unjudged)} if loaded.judging else {}
        click.echo(
            json.dumps(
                {"runs": [asdict(summary) for summary in summaries], "failed": len(failed), **told},
                indent=2,
            )
        )
    else:
        print_summaries(summaries)
        if loaded.evaluation:
            click.echo()
            print_measured(
                measured_rows(
                    [
                        (
                            f"{summary.arm}, seed {summary.seed}",
                            Results(Path(summary.folder)),
                            str(summary.base),
                            summary.control,
                        )
                        for summary in summaries
                    ]
                )
            )
        already = sum(not outcome.trained and not outcome.failed for outcome in outcomes)
        said = f", {len(unjudged)} without all verdicts" if unjudged else ""
        click.echo(
            f"{len(outcomes)} runs: {len(outcomes) - len(failed) - already} trained, {already} done before, {len(failed)} failed{said}; in {experiment_folder(loaded)}"
        )
    for outcome in failed:
        click.echo(f"failed: {outcome.run.name}: {outcome.failed}", err=True)
    if unjudged and not failed:
        raise Undecided(
            f"{len(unjudged)} of {len(outcomes)} runs lack verdicts ({unjudged[0].unjudged}); everything else is done and kept: the same command will ask for the verdicts alone"
        )
    return experiment_folder(loaded), bool(failed)


def with_output(settings: Sequence[str], output: str | None) -> list[str]:
    """Assignments, with the store's folder among them where one is given."""
    return [
        *settings,
        *(
            [f"output.folder={json.dumps(output, ensure_ascii=False)}"]
            if output is not None
            else []
        ),
    ]


def _loaded(file: str, settings: Sequence[str]) -> Sweep:
    from evilspectra.sweeps.file import load_sweep

    return load_sweep(file, settings)


def _ledger(loaded: Sweep) -> Any:
    from evilspectra.sweeps.run import ledger_of
    from evilspectra.training.identity import locate

    return ledger_of(loaded, [locate(config)[0] for config in loaded.configs])


def _executor(loaded: Sweep, quiet: bool, options: dict[str, Any]) -> Executor:
    """Where the options want it carried out.

    Raises:
        BadInput: an option that is another executor's.
    """
    where = options.get("where", "local")
    owners = {
        "address": ("ray",),
        "partition": ("slurm",),
        "slurm_settings": ("slurm",),
        "gpus_per_run": ("ray", "slurm"),
    }
    for name, allowed in owners.items():
        if options.get(name) and where not in allowed:
            flag = {"slurm_settings": "--slurm-set"}.get(name, f"--{name.replace('_', '-')}")
            raise BadInput(
                f"{flag} is for --executor {' or '.join(allowed)}, and this one is {where}: leave it out, or choose that"
            )
    count = options.get("workers")
    if where == "ray":
        from evilspectra.executors.ray import OnRay

        return OnRay(options["address"], options["gpus_per_run"] or 0.0, count, quiet)
    if where == "slurm":
        from evilspectra.executors.slurm import OnSlurm, slurm_settings
        from evilspectra.sweeps.file import experiment_folder

        given = {"partition": options["partition"]} if options["partition"] else {}
        return OnSlurm(
            experiment_folder(loaded) / "jobs",
            options["gpus_per_run"] or 0.0,
            count,
            options["runs_per_job"],
            options["hours"],
            given | slurm_settings(options["slurm_settings"]),
        )
    from evilspectra.executors.local import suitable, workers
    from evilspectra.executors.stages import Task

    tasks: list[Task] = [Task(number, config) for number, config in enumerate(loaded.configs)]
    return workers(count) if count is not None else suitable(tasks)


def _watch(look: Callable[[], list[RunProgress]], every: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    console = _console(Console())
    try:
        found = look()
        with Live(_table(found, every), console=console, auto_refresh=False) as live:
            while any(one.state in ("queued", "running") for one in found):
                time.sleep(_WATCH)
                found = look()
                live.update(_table(found, every), refresh=True)
    except KeyboardInterrupt:
        return


def _console(console: Any) -> Any:
    """Wide enough that names and reasons are not cut where there is no terminal."""
    console.width = console.width if console.is_terminal else max(console.width, 200)
    return console


def _table(found: Sequence[RunProgress], every: bool) -> Any:
    """A line per run, and a line of counts; of very many runs only those that ask for attention."""
    from rich.markup import escape
    from rich.table import Table

    from evilspectra.sweeps.status import STATES, counts
    from evilspectra.text import printable

    listed = [
        one
        for one in found
        if every or len(found) <= _LISTED or one.state not in ("done", "queued")
    ]
    stages = list(dict.fromkeys(stage for one in found for stage in one.stages))
    summary = f"{len(found)} runs: " + ", ".join(
        f"{count} {state}" for state, count in counts(found).items()
    )
    left = len(found) - len(listed)
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption=summary
        + (f"; {left} done or queued are not listed (--all lists them)" if left else ""),
        caption_justify="left",
        caption_style="",
    )
    for heading in ("run", *stages, "step", "why"):
        table.add_column(heading, no_wrap=heading != "why", overflow="fold")
    for one in (
        sorted(listed, key=lambda one: (one.experiment, STATES.index(one.state)))
        if not every
        else listed
    ):
        step = f"{one.step}/{one.total_steps}" if one.step is not None else "-"
        table.add_row(
            escape(one.run),
            *(one.stages.get(stage, "-") for stage in stages),
            step,
            escape(printable(one.reason or "", 300)),
        )
    return table
