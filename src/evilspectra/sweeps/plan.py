"""The plan of a sweep: its runs and their states, missing inputs, and the expected effort.

It needs no data, no model and no network: missing inputs are listed, and until they are available
their names replace their content in a run's id. Unknown values are None and never guessed;
assumptions are listed in `Plan.assumptions`. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import flat
from evilspectra.data.batches import checkpoint_steps
from evilspectra.judging.verdicts import CHARACTERS_PER_TOKEN
from evilspectra.model.tiny import TINY
from evilspectra.store.run import RunFolder, Store
from evilspectra.sweeps.aliasing import varied
from evilspectra.sweeps.file import Sweep, experiment_folder
from evilspectra.sweeps.forecast import JudgeForecast, forecast
from evilspectra.sweeps.inputs import Inputs, Missing, missing_items
from evilspectra.sweeps.pace import Pace, measure_pace
from evilspectra.training.identity import Source

T = TypeVar("T")
#: The setting that identifies the source of a class, which a plan shows by name.
_SOURCE = "optimizer.sha256"


@dataclass(frozen=True)
class PlannedRun:
    """A run of the plan.

    `by_name`: which of data, heldout and model are in the id by their names; `differs`: the
    settings that are not the same in all runs; `rows`: those of all its steps, repeats counted;
    `tokens`: of these rows; `seconds`: of the training that is left, 0 where it is done.
    """

    id: str
    folder: str
    state: str
    by_name: tuple[str, ...]
    differs: dict[str, Any]
    steps: int | None
    rows: int | None
    tokens: int | None
    seconds: float | None


@dataclass(frozen=True)
class Totals:
    """Sums over the runs; None if a part is not known.

    `seconds`: of the training that is left, one run after the other.
    """

    runs: int
    done: int
    steps: int | None
    rows: int | None
    tokens: int | None
    seconds: float | None
    answers: int | None
    judge_requests: int | None
    judge_tokens: int | None
    judge_cost: float | None


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep. `common`: the settings of all runs that are not defaults."""

    experiment: str
    folder: str
    runs: tuple[PlannedRun, ...]
    common: dict[str, Any]
    missing: tuple[Missing, ...]
    totals: Totals
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def flat(self) -> dict[str, Any]:
        """A mapping of JSON's types."""
        return asdict(self)


def plan(sweep: Sweep) -> Plan:
    """The plan of a sweep.

    >>> from evilspectra.sweeps.file import load_sweep
    >>> initial = plan(load_sweep("initial", ["output.folder=/nowhere"]))
    >>> initial.totals.runs, initial.totals.judge_requests, initial.totals.tokens
    (128, 374880, None)
    """
    inputs = Inputs()
    folders = [inputs.run_folder(config) for config in sweep.configs]
    states = [run.status().state for run, _ in folders]
    pace = _pace(sweep, inputs, folders, states)
    columns = varied(sweep.configs)
    columns.pop(_SOURCE, None)  # the class's name is shown instead
    runs = []
    lengths: set[str] = set()
    for config, (run, by_name), state, differs in zip(
        sweep.configs, folders, states, _differences(sweep.configs, columns), strict=True
    ):
        batches = inputs.batches(config)
        steps = batches.total_steps if batches else config.train.steps
        rows = batches.rows_seen if batches else steps and steps * config.train.batch_size
        base = inputs.hash_of_base(config)
        length, basis = _row_length(config, base, inputs.source(config, config.data.train), pace)
        lengths.add(basis)
        tokens = round(rows * min(length, config.data.max_length)) if rows and length else None
        speed = pace.tokens_per_s(base, config.train.batch_size)
        runs.append(
            PlannedRun(
                run.name,
                str(run.path),
                state,
                by_name,
                differs,
                steps,
                rows,
                tokens,
                _seconds_left(state, tokens, speed),
            )
        )
    judging = forecast(
        sweep,
        [
            run.steps and _measured_steps(config, run.steps)
            for config, run in zip(sweep.configs, runs, strict=True)
        ],
        [inputs.hash_of_base(config) for config in sweep.configs],
    )
    chosen = sweep.configs[0].model_dump(
        mode="json", exclude_defaults=True, exclude={"output": True}
    )
    return Plan(
        experiment=sweep.experiment,
        folder=str(experiment_folder(sweep)),
        runs=tuple(runs),
        common={
            name: value
            for name, value in flat(chosen).items()
            if name not in columns and name != _SOURCE
        },
        missing=(*inputs.missing(), *missing_items(sweep.evaluation, judging, len(runs))),
        totals=_totals(runs, judging),
        assumptions=(*_assumptions(lengths, runs), *judging.assumptions),
        warnings=sweep.warnings,
    )


def _pace(
    sweep: Sweep,
    inputs: Inputs,
    folders: Sequence[tuple[RunFolder, tuple[str, ...]]],
    states: Sequence[str],
) -> Pace:
    """The pace of done runs on the bases that are here, the plan's own runs first."""
    here = {
        inputs.hash_of_base(config)
        for config, (_, by_name) in zip(sweep.configs, folders, strict=True)
        if "model" not in by_name
    }
    done = (run for (run, _), state in zip(folders, states, strict=True) if state == "done")
    return measure_pace(here, done, Store(Path(sweep.configs[0].output.folder)))


def _row_length(
    config: Config,
    base: str,
    source: Source | None,
    pace: Pace,
) -> tuple[float | None, str]:
    """Tokens per row, and whether that is measured, estimated or unknown."""
    if source is None:
        return None, "unknown"
    measured = pace.tokens_per_row(base, source.sha256)
    if measured is not None:
        return measured, "measured"
    characters = source.characters / source.rows
    return characters / (1 if config.model.base == TINY else CHARACTERS_PER_TOKEN), "estimated"


def _seconds_left(state: str, tokens: int | None, speed: float | None) -> float | None:
    """Seconds of training that are left; None if tokens or speed are not known."""
    if state == "done":
        return 0.0
    return tokens / speed if tokens and speed else None


def _differences(configs: Sequence[Config], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of every config that vary across configs.

    Of those that only some optimisers have, the ones that are not defaults.
    """
    rows = [flat(config.model_dump(mode="json")) for config in configs]
    everywhere = set.intersection(*map(set, rows))
    chosen = [
        set(flat(config.model_dump(mode="json", exclude_defaults=True))) for config in configs
    ]
    return [
        {name: row[name] for name in columns if name in everywhere or (name in row and name in own)}
        for row, own in zip(rows, chosen, strict=True)
    ]


def _measured_steps(config: Config, steps: int) -> int:
    """The number of steps with an adapter: the end, and every checkpoint."""
    return len((checkpoint_steps(config.train.checkpoints, steps) | {steps}) - {0})


def _total(values: Sequence[T | None]) -> Any:
    return None if any(value is None for value in values) else sum(values)  # type: ignore[arg-type]


def _totals(runs: Sequence[PlannedRun], judging: JudgeForecast) -> Totals:
    return Totals(
        runs=len(runs),
        done=sum(run.state == "done" for run in runs),
        steps=_total([run.steps for run in runs]),
        rows=_total([run.rows for run in runs]),
        tokens=_total([run.tokens for run in runs]),
        seconds=_total([run.seconds for run in runs]),
        answers=judging.answers,
        judge_requests=judging.requests,
        judge_tokens=judging.tokens,
        judge_cost=judging.cost,
    )


def _assumptions(lengths: set[str], runs: Sequence[PlannedRun]) -> list[str]:
    """The sentences on what tokens, rows and time are based on."""
    sentences = []
    if any("data" in run.by_name and run.rows for run in runs):
        sentences.append(
            "rows and steps of published data sets that are not here follow from their published "
            "numbers of rows"
        )
    if "estimated" in lengths:
        sentences.append(
            f"tokens are estimated at {CHARACTERS_PER_TOKEN} characters each (the built-in tiny "
            "model: 1) where no done run has counted them; those of the chat template are not "
            "counted"
        )
    if "measured" in lengths:
        sentences.append("tokens per row are those counted by done runs on the same base and data")
    if any(run.seconds for run in runs):
        sentences.append(
            "time is that of the remaining training, one run after the other, at the median speed "
            "of done runs on the same base in this store; loading, measuring and judging are not "
            "included"
        )
    return sentences
