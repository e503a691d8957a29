"""A sweep before it is run: its runs and their state, what is missing, and what it will take as far
as that is known.

Needs no data, no model and no network: what is not here is listed, and stands in a run's id by its
name until it is. What is not known is None and never guessed; what is assumed is said in
`Plan.assumptions`. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from evilspectra.config.sections import Config, Evaluation
from evilspectra.config.yaml_files import flat
from evilspectra.data.batches import Batches, checkpoint_steps, heldout_count
from evilspectra.data.published import SETS
from evilspectra.data.rows import read_rows
from evilspectra.errors import BadInput
from evilspectra.judging.verdicts import CHARACTERS_PER_TOKEN
from evilspectra.model import base as bases
from evilspectra.model.tiny import TINY
from evilspectra.probes.items import ORDINARY
from evilspectra.probes.probe import probes
from evilspectra.store.run import RunFolder, Store
from evilspectra.sweeps.aliasing import varied
from evilspectra.sweeps.file import Sweep, experiment_folder
from evilspectra.sweeps.forecast import JudgeForecast, forecast
from evilspectra.sweeps.pace import measure_pace
from evilspectra.training.identity import Source, folder_of, read_source

T = TypeVar("T")


@dataclass(frozen=True)
class Missing:
    """Something that the runs need and that is not here, or cannot be used.

    `what`: data, model, questions, items or key; `runs`: how many need it.
    """

    what: str
    name: str
    why: str
    runs: int


@dataclass(frozen=True)
class PlannedRun:
    """A run of the plan.

    `by_name`: which of data, heldout and model stand in the id by their names; `differs`: the
    settings that are not the same in all runs.

    `rows`: those of all its steps, repeats counted; `tokens`: of these rows; `seconds`: what is
    left of its training, 0 where it is done.
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
    """Sums over the runs; None where a part is not known.

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
    """What a sweep will do. `common`: the settings of all runs that are not defaults."""

    experiment: str
    folder: str
    runs: tuple[PlannedRun, ...]
    common: dict[str, Any]
    missing: tuple[Missing, ...]
    totals: Totals
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def flat(self) -> dict[str, Any]:
        """Of JSON's types."""
        return asdict(self)


def plan(sweep: Sweep) -> Plan:
    """The plan of a sweep.

    >>> from evilspectra.sweeps.file import load_sweep
    >>> found = plan(load_sweep("initial", ["output.folder=/nowhere"]))
    >>> found.totals.runs, found.totals.judge_requests, found.totals.tokens
    (128, 374880, None)
    """
    inputs = _Inputs()
    places = [inputs.place(config) for config in sweep.configs]
    states = [run.status().state for run, _ in places]
    store = Store(Path(sweep.configs[0].output.folder))
    here = {
        inputs.hash_of_base(config)
        for config, (_, by_name) in zip(sweep.configs, places, strict=True)
        if "model" not in by_name
    }
    pace = measure_pace(
        here,
        (run for (run, _), state in zip(places, states, strict=True) if state == "done"),
        store,
    )
    columns = varied(sweep.configs)
    shown = _differences(sweep.configs, columns)
    runs = []
    lengths: set[str] = set()
    for number, (config, (run, by_name), state) in enumerate(
        zip(sweep.configs, places, states, strict=True)
    ):
        batches = inputs.batches(config)
        base, source = inputs.hash_of_base(config), inputs.source(config, config.data.train)
        length = pace.tokens_per_row(base, source.sha256) if source else None
        if source and length is None:
            length = (
                source.characters
                / source.rows
                / (1 if config.model.base == TINY else CHARACTERS_PER_TOKEN)
            )
            lengths.add("estimated")
        elif source:
            lengths.add("measured")
        rows = (
            batches.rows_seen
            if batches
            else config.train.steps and config.train.steps * config.train.batch_size
        )
        tokens = round(rows * min(length, config.data.max_length)) if rows and length else None
        speed = pace.tokens_per_s(base, config.train.batch_size)
        seconds = 0.0 if state == "done" else tokens / speed if tokens and speed else None
        runs.append(
            PlannedRun(
                run.name,
                str(run.path),
                state,
                by_name,
                shown[number],
                batches.total_steps if batches else config.train.steps,
                rows,
                tokens,
                seconds,
            )
        )
    judged = forecast(
        sweep,
        [
            run.steps and _measured_steps(config, run.steps)
            for config, run in zip(sweep.configs, runs, strict=True)
        ],
        [inputs.hash_of_base(config) for config in sweep.configs],
    )
    missing = (*inputs.missing(), *_not_here(sweep.evaluation, judged, len(runs)))
    common = {
        name: value
        for name, value in flat(
            sweep.configs[0].model_dump(
                mode="json", exclude_defaults=True, exclude={"output": True}
            )
        ).items()
        if name not in columns
    }
    assumptions = (*_said(lengths, runs), *judged.assumptions)
    return Plan(
        sweep.experiment,
        str(experiment_folder(sweep)),
        tuple(runs),
        common,
        missing,
        _totals(runs, judged),
        assumptions,
        sweep.warnings,
    )


def _differences(configs: Sequence[Config], columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every config the settings that vary; of those that only some optimisers have, the ones
    that are not defaults.
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
    """At how many steps there is an adapter: the end, and every checkpoint."""
    return len((checkpoint_steps(config.train.checkpoints, steps) | {steps}) - {0})


class _Inputs:
    """Data and bases, each looked for once, and what became of it: a content, or the reason why it
    is not here.
    """

    def __init__(self) -> None:
        self._bases: dict[tuple[str, str | None], str | BadInput] = {}
        self._sources: dict[tuple[Any, ...], Source | BadInput] = {}
        self._needed: dict[tuple[str, str], int] = {}

    def place(self, config: Config) -> tuple[RunFolder, tuple[str, ...]]:
        """The run's directory, and what stands in its id by name."""
        by_name, hashes = [], []
        for what, source in (("data", config.data.train), ("heldout", config.data.heldout)):
            if source is not None:
                found = self._source(config, source)
                hashes.append(_name_hash(source) if isinstance(found, BadInput) else found.sha256)
                by_name += [what] if isinstance(found, BadInput) else []
                self._count("data", source, found)
        found = self._base(config)
        self._count("model", _model_name(config), found)
        by_name += ["model"] if isinstance(found, BadInput) else []
        return folder_of(config, self.hash_of_base(config), *hashes), tuple(by_name)

    def hash_of_base(self, config: Config) -> str:
        found = self._base(config)
        return _name_hash(_model_name(config)) if isinstance(found, BadInput) else found

    def source(self, config: Config, source: str) -> Source | None:
        found = self._source(config, source)
        return None if isinstance(found, BadInput) else found

    def batches(self, config: Config) -> Batches | None:
        """Which rows the steps see; None where the number of rows is not known, or is smaller than
        a batch. A published set's is.
        """
        source = self.source(config, config.data.train)
        rows = (
            source.rows
            if source
            else SETS[config.data.train].rows
            if config.data.train in SETS
            else None
        )
        if rows is None:
            return None
        used = rows - (
            heldout_count(rows, config.data.heldout_share) if config.data.heldout is None else 0
        )
        train = config.train
        return (
            Batches(used, train.batch_size, train.seed, train.epochs, train.steps)
            if used >= train.batch_size
            else None
        )

    def missing(self) -> list[Missing]:
        """What was looked for and is not here, in the order in which runs need it."""
        why = {("model", _spelled(*key)): found for key, found in self._bases.items()} | {
            ("data", key[0]): found for key, found in self._sources.items()
        }
        return [
            Missing(what, name, str(why[what, name]), count)
            for (what, name), count in self._needed.items()
        ]

    def _count(self, what: str, name: str, found: object) -> None:
        if isinstance(found, BadInput):
            self._needed[what, name] = self._needed.get((what, name), 0) + 1

    def _base(self, config: Config) -> str | BadInput:
        key = (config.model.base, config.model.revision)
        if key not in self._bases:
            offline = config.model.model_copy(update={"local_files_only": True})
            self._bases[key] = _tried(lambda: bases.resolve(offline).sha256)
        return self._bases[key]

    def _source(self, config: Config, source: str) -> Source | BadInput:
        key = (source, config.data.split, config.data.on_bad_row)
        if key not in self._sources:
            offline = config.model_copy(
                update={"data": config.data.model_copy(update={"local_files_only": True})}
            )
            self._sources[key] = _tried(lambda: read_source(offline, source))
        return self._sources[key]


def _tried(find: Callable[[], T]) -> T | BadInput:
    try:
        return find()
    except BadInput as error:
        return error


def _name_hash(name: str) -> str:
    """Stands for a content that is not here, so that ids of different names differ."""
    return "by name: " + hashlib.sha256(name.encode()).hexdigest()


def _model_name(config: Config) -> str:
    return _spelled(config.model.base, config.model.revision)


def _spelled(base: str, revision: str | None) -> str:
    return base if revision is None else f"{base}@{revision}"


def _not_here(evaluation: Evaluation | None, judged: JudgeForecast, runs: int) -> list[Missing]:
    """Of what is measured: items, questions and the judge's key that are not here."""
    found = [Missing(what, name, why, runs) for what, name, why in judged.missing]
    if evaluation is None:
        return found
    for table in ("contrast", "capability"):
        alone = {other: None for other in ("contrast", "capability", "ordinary") if other != table}
        error = _tried(lambda alone=alone: probes(evaluation.model_copy(update=alone), {}))
        found += (
            [Missing("items", str(getattr(evaluation, table)), str(error), runs)]
            if isinstance(error, BadInput)
            else []
        )
    if evaluation.ordinary is not None and evaluation.ordinary not in ORDINARY:
        error = _tried(lambda: read_rows(str(evaluation.ordinary), local_files_only=True))
        found += (
            [Missing("items", str(evaluation.ordinary), str(error), runs)]
            if isinstance(error, BadInput)
            else []
        )
    return found


def _totals(runs: Sequence[PlannedRun], judged: JudgeForecast) -> Totals:
    def total(values: Sequence[T | None]) -> Any:
        return None if any(value is None for value in values) else sum(values)  # type: ignore[arg-type]

    return Totals(
        runs=len(runs),
        done=sum(run.state == "done" for run in runs),
        steps=total([run.steps for run in runs]),
        rows=total([run.rows for run in runs]),
        tokens=total([run.tokens for run in runs]),
        seconds=total([run.seconds for run in runs]),
        answers=judged.answers,
        judge_requests=judged.requests,
        judge_tokens=judged.tokens,
        judge_cost=judged.cost,
    )


def _said(lengths: set[str], runs: Sequence[PlannedRun]) -> list[str]:
    """What tokens, rows and time rest on."""
    said = []
    if any("data" in run.by_name and run.rows for run in runs):
        said.append(
            "rows and steps of published sets that are not here are counted by their published "
            "numbers of rows"
        )
    if "estimated" in lengths:
        said.append(
            f"tokens are estimated at {CHARACTERS_PER_TOKEN} characters each (the built-in tiny "
            "model: 1) where no done run has counted them; the chat template's are not counted"
        )
    if "measured" in lengths:
        said.append("tokens a row are those that done runs on the same base and data counted")
    if any(run.seconds for run in runs):
        said.append(
            "time is the training that is left, one run after the other, at the median speed of "
            "done runs on the same base in this store; loading, measuring and judging come on top"
        )
    return said
