"""Sweep files: a base config, arms, axes, seeds and exceptions, expanded to runs.

    experiment: my-sweep
    base: {model: {base: smollm2-135m-instruct}, train: {steps: 30}}
    arms:                               # optional: label → partial config laid over the base
      adamw: {optimizer: {name: adamw, lr: 1e-3}}
      lion: {optimizer: {name: lion, lr: 1e-4}}
    axes:                               # optional: setting → its values; all combinations are run
      data.train: [demo-bad, demo-good]
    zip:                                # optional: settings that move together, each group an axis
      - {train.batch_size: [2, 16], train.steps: [32, 4]}
    exclude:                            # optional: cells that are left out
      - {optimizer.name: lion, train.batch_size: 2}
    overrides:                          # optional: settings that some cells have instead
      - {when: {optimizer.name: lion}, set: {schedule.warmup_steps: 10}}
    seeds: 3                            # optional: short for the axis train.seed: [0, 1, 2]
    evaluate: {checkpoints: true}       # optional: what is measured on every run
    judge: {judge: "openai:some-model"} # optional: who judges the sampled answers

`from: NAME` first takes all of this from another file or preset. docs/sweeps.md has the details.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from evilspectra.config.evaluation import Evaluation
from evilspectra.config.judge import Judging, judging_settings
from evilspectra.config.loading import NOT_IDENTITY, build, build_evaluation, named
from evilspectra.config.section import Section
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import assignments, find, flat, merge, read_mapping
from evilspectra.errors import BadInput, listing, near
from evilspectra.sweeps.aliasing import cautions
from evilspectra.sweeps.grid import cells, find_axes, fits, partial


class SweepFile(Section):
    """The keys that a sweep file may have."""

    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    base: dict[str, Any] = {}
    arms: dict[str, dict[str, Any] | None] = {}
    axes: dict[str, list[Any]] = {}
    zip: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    overrides: list[dict[str, Any]] = []
    seeds: Any = None
    evaluate: dict[str, Any] | None = None
    judge: dict[str, Any] | None = None


#: The key that names another file to begin from.
FROM = "from"
#: All keys of a sweep file, in their order.
FIELDS = (FROM, *SweepFile.model_fields)


@dataclass(frozen=True)
class Sweep:
    """An expanded sweep file: its name, every run's config in order, evaluation and judging.

    `warnings`: what a reader of its results should know beforehand, one sentence each.
    """

    experiment: str
    configs: tuple[Config, ...]
    evaluation: Evaluation | None = None
    judging: Judging | None = None
    warnings: tuple[str, ...] = ()


def load_sweep(
    name: str | Mapping[str, Any], settings: Iterable[str | Mapping[str, Any]] = ()
) -> Sweep:
    """Reads a sweep from a file or preset, or takes the mapping that such a file would hold.

    Assignments of `--set`, or nested mappings, are laid over every run, those of `axes`, `seeds`,
    `evaluate` and `judge` over the file.

    Raises:
        BadInput: not a sweep file, an axis that names no setting, an empty axis, the same run
            twice, or too many runs.
    """
    source, values = (name, _read(name)) if isinstance(name, str) else ("the sweep", _begun(name))
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{source} is not a sweep file: {_explain(error)}") from None
    return expand(file, source, settings)


def _begun(values: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's mapping, laid over the file that it begins from, if any."""
    return _laid_over(dict(values), "the sweep", Path(), ())


def _read(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a sweep file, laid over those of the files that it begins from."""
    path = find(name)
    if path.resolve() in above:
        raise BadInput(
            f"{name} begins from itself ({FROM}: …, via {listing(file.name for file in above)}): "
            "name another file, or remove that line"
        )
    return _laid_over(read_mapping(path), name, path.parent, (*above, path.resolve()))


def _laid_over(
    values: dict[str, Any],
    name: str,
    folder: Path,
    above: tuple[Path, ...],
) -> dict[str, Any]:
    """The values of a sweep, laid over those of the file that they begin from.

    `folder`: where that file is looked for first.
    """
    if FROM not in values:
        return values
    first = values.pop(FROM)
    if not isinstance(first, str) or not first:
        raise BadInput(
            f"{name} is not a sweep file: {FROM} = {first!r} is refused: name a sweep file or a "
            "preset"
        )
    neighbour = folder / first
    below = _read(str(neighbour) if os.path.isfile(neighbour) else first, above)
    joined = {
        key: [*below[key], *values[key]]
        for key in ("zip", "exclude", "overrides")
        if isinstance(below.get(key), list) and isinstance(values.get(key), list)
    }
    return merge(below, values) | joined


def expand(
    file: SweepFile,
    source: str = "the sweep",
    settings: Iterable[str | Mapping[str, Any]] = (),
) -> Sweep:
    """Expands every combination of arm, axis values and seed that is not excluded to a config.

    Raises:
        BadInput: as `load_sweep`.

    >>> axes = {"train.seed": [0, 1], "optimizer.lr": [1e-3, 1e-4]}
    >>> sweep = expand(SweepFile(experiment="x", axes=axes))
    >>> [(config.train.seed, config.optimizer.lr) for config in sweep.configs]
    [(0, 0.001), (0, 0.0001), (1, 0.001), (1, 0.0001)]
    """
    for label, arm in file.arms.items():
        if "output" in (arm or {}):
            raise BadInput(
                f"{source}: arm '{label}' sets where results go, which does not define a different "
                "run: move its 'output' to 'base', or remove it"
            )
    over = assignments(settings)
    values_by_path = _axes(file.axes, over.pop("axes", {}), source)
    axes = find_axes(values_by_path, file.zip, over.pop("seeds", file.seeds), source)
    evaluation = _evaluation(file.evaluate, over.pop("evaluate", {}), source)
    judging = _judging(file.judge, over.pop("judge", {}), evaluation, source)
    exceptions = _Exceptions(file, source)
    names_by_content: dict[str, str] = {}
    configs: list[Config] = []
    for cell in cells(file.arms, axes, source):
        where = f"{source} ({cell.name})" if cell.name else source
        layers = [
            {"output": {"experiment": file.experiment}},
            named(file.base),
            cell.arm,
            cell.moved,
        ]
        if exceptions:
            changes = exceptions.of(build(functools.reduce(merge, layers), where))
            if changes is None:
                continue
            layers += changes
        config = build(functools.reduce(merge, [*layers, over]), where)
        # by their names, for the content of base and data is not known here
        sources = (config.model.base, config.data.train, config.data.heldout)
        content = f"{sources} {config.model_dump_json(exclude=NOT_IDENTITY)}"
        if content in names_by_content:
            raise BadInput(
                f"{source}: {cell.name or 'a run'} is the same run as "
                f"{names_by_content[content] or 'another'}: remove one, or the --set that makes "
                "them equal"
            )
        names_by_content[content] = cell.name
        configs.append(config)
    exceptions.check(len(configs))
    return Sweep(file.experiment, tuple(configs), evaluation, judging, cautions(configs))


class _Exceptions:
    """The excludes and overrides of a file.

    They match a cell as base, arms, axes and seeds make it, before any override and any `--set`.
    """

    def __init__(self, file: SweepFile, source: str) -> None:
        self.source = source
        self.excluded = [
            partial(values, f"{source}: exclude {number}")
            for number, values in enumerate(file.exclude, start=1)
        ]
        self.overrides: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for number, entry in enumerate(file.overrides, start=1):
            where = f"{source}: overrides {number}"
            if set(entry) != {"when", "set"}:
                raise BadInput(
                    f"{where} has {listing(entry) or 'nothing'}: give `when` (which cells) and "
                    f"`set` (their settings), such as {{when: {{optimizer.name: muon}}, "
                    "set: {optimizer.lr: 1.0e-3}}"
                )
            self.overrides.append(
                (partial(entry["when"], f"{where}, when"), partial(entry["set"], f"{where}, set"))
            )
        self.met = {f"exclude {number}": False for number in range(1, len(self.excluded) + 1)} | {
            f"overrides {number}": False for number in range(1, len(self.overrides) + 1)
        }

    def __bool__(self) -> bool:
        return bool(self.excluded or self.overrides)

    def of(self, config: Config) -> list[dict[str, Any]] | None:
        """The partial configs to lay over a cell; None if the cell is excluded."""
        out = [
            number for number, wanted in enumerate(self.excluded, start=1) if fits(config, wanted)
        ]
        self.met |= {f"exclude {number}": True for number in out}
        if out:
            return None
        changes = []
        for number, (when, change) in enumerate(self.overrides, start=1):
            if fits(config, when):
                self.met[f"overrides {number}"] = True
                changes.append(change)
        return changes

    def check(self, remaining: int) -> None:
        """Refuses an exception that matched no cell, and a sweep without any cell left."""
        if idle := [name for name, met in self.met.items() if not met]:
            raise BadInput(
                f"{self.source}: {idle[0]} matches no cell: correct its values, or remove it"
            )
        if not remaining:
            raise BadInput(f"{self.source}: every cell is excluded: remove an exclude")


def _axes(axes: Mapping[str, list[Any]], over: Any, source: str) -> dict[str, list[Any]]:
    """The file's axes with `--set axes.…` on top: a list for an axis, null to remove it."""
    merged = dict(axes)
    for path, values in flat(over if isinstance(over, Mapping) else {"": over}).items():
        if values is None and path in merged:
            del merged[path]
        elif isinstance(values, list):
            merged[path] = values
        else:
            raise BadInput(
                f"{source}: axes.{path} = {values!r} is refused: it is a list of values, for "
                "instance --set 'axes.train.seed=[0, 1]'"
            )
    return merged


def _evaluation(values: Mapping[str, Any] | None, over: Any, source: str) -> Evaluation | None:
    """The evaluation with `--set evaluate.…` on top; none with `--set evaluate=null`."""
    if over is None or (values is None and over == {}):
        return None
    if isinstance(over, Mapping):
        return build_evaluation(merge(values or {}, over), f"{source}, evaluate")
    raise BadInput(
        f"{source}: evaluate = {over!r} is refused: it is a section, for instance --set "
        "evaluate.checkpoints=true"
    )


def _judging(
    values: Mapping[str, Any] | None,
    over: Any,
    evaluation: Evaluation | None,
    source: str,
) -> Judging | None:
    """The judging with `--set judge.…` on top; none with `--set judge=null`."""
    if over is None or (values is None and over == {}):
        return None
    if not isinstance(over, Mapping):
        raise BadInput(
            f"{source}: judge = {over!r} is refused: it is a section, for instance --set "
            "judge.judge=openai:some-model"
        )
    judging = judging_settings(merge(values or {}, over), f"{source}, judge")
    if evaluation is None or evaluation.answers is None:
        raise BadInput(
            f"{source}: there is nothing to judge, because no answers are sampled: set "
            "evaluate.answers, or remove `judge` (--set judge=null)"
        )
    return judging


def experiment_folder(sweep: Sweep) -> Path:
    """The folder that holds the runs of a sweep."""
    return Path(sweep.configs[0].output.folder).expanduser() / sweep.configs[0].output.experiment


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    allowed = FIELDS
    if first["type"] == "extra_forbidden":
        return f"'{name}' is not a field of it; allowed: {listing(allowed)}.{near(name, allowed)}"
    if first["type"] == "missing":
        return f"it has no '{name}'; a sweep file has {listing(allowed)}"
    if first["type"] == "value_error":
        return str(first.get("ctx", {}).get("error"))
    return f"{name}: {first['msg'][0].lower() + first['msg'][1:]}"
