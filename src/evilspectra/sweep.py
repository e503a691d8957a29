"""Sweeps: a base config, arms and axes, expanded to runs.

A sweep file:

    experiment: my-sweep
    base: {model: {base: smollm2-135m-instruct}, train: {steps: 30}}
    arms:                                   # optional: label → partial config laid over the base
      adamw: {optimizer: {name: adamw, lr: 1e-3}}
      lion: {optimizer: {name: lion, lr: 1e-4}}
    axes:                                   # optional: path of a setting → its values; all combinations are run
      train.seed: [0, 1, 2]
    evaluate: {checkpoints: true}           # optional: what is measured on every run when all are trained
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from evilspectra.config import NOT_IDENTITY, Config, Evaluation, Section, build, build_evaluation, named
from evilspectra.errors import BadInput, listing, near
from evilspectra.judging.settings import Judging
from evilspectra.settings import assignments, find, merge, nested, read_mapping

#: More cells than this are a slip of the pen.
MOST_CELLS = 100_000


class SweepFile(Section):
    """What a sweep file may hold."""

    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    base: dict[str, Any] = {}
    arms: dict[str, dict[str, Any] | None] = {}
    axes: dict[str, list[Any]] = {}
    evaluate: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep file, expanded: its name, the config of every run, in order, what is measured on them, and who judges their answers.

    `warnings`: what a reader of its results should know beforehand, one sentence each.
    """

    experiment: str
    configs: tuple[Config, ...]
    evaluation: Evaluation | None = None
    judging: Judging | None = None
    warnings: tuple[str, ...] = ()


def load_sweep(name: str, settings: Iterable[str] = ()) -> Sweep:
    """A sweep from a file or preset; `--set` assignments are laid over every run.

    Raises:
        BadInput: not a sweep file, an axis that names no setting, an empty axis, the same run twice, or far too many runs.
    """
    values = read_mapping(find(name))
    try:
        file = SweepFile.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"{name} is no sweep file: {_explain(error)}") from None
    return expand(file, name, settings)


def expand(file: SweepFile, source: str = "the sweep", settings: Iterable[str] = ()) -> Sweep:
    """Every combination of arm and axis values as a config.

    >>> sweep = expand(SweepFile(experiment="x", axes={"train.seed": [0, 1], "optimizer.lr": [1e-3, 1e-4]}))
    >>> [(config.train.seed, config.optimizer.lr) for config in sweep.configs]
    [(0, 0.001), (0, 0.0001), (1, 0.001), (1, 0.0001)]
    """
    for label, arm in file.arms.items():
        if "output" in (arm or {}):
            raise BadInput(f"{source}: arm '{label}' sets where results go, which does not make another run: move its 'output' to 'base', or remove it")
    for path, choices in file.axes.items():
        if not choices:
            raise BadInput(f"{source}: axis '{path}' has no values: list some, or remove it")
        if path.split(".")[0] == "output":
            raise BadInput(f"{source}: axis '{path}' is about where results go, which does not make another run: remove it")
    cells = max(1, len(file.arms)) * math.prod(len(choices) for choices in file.axes.values())
    if cells > MOST_CELLS:
        raise BadInput(f"{source} expands to {cells:,} runs; at most {MOST_CELLS:,} are allowed: shorten an axis")
    over = assignments(settings)
    evaluation = _evaluation(file.evaluate, over.pop("evaluate", {}), source)
    configs: dict[str, str] = {}
    found: list[Config] = []
    for label, arm in (file.arms or {"": {}}).items():
        for combination in itertools.product(*file.axes.values()):
            place = ", ".join([*([f"arm {label}"] if label else []), *(f"{path}={value}" for path, value in zip(file.axes, combination, strict=True))])
            cell: dict[str, Any] = {}
            for path, value in zip(file.axes, combination, strict=True):
                cell = merge(cell, _set(path, value, source))
            values = functools.reduce(merge, [named(file.base), arm or {}, cell, over], {"output": {"experiment": file.experiment}})
            config = build(values, f"{source} ({place})" if place else source)
            names = (config.model.base, config.data.train, config.data.heldout)  # their content is not known here
            text = f"{names} {config.model_dump_json(exclude=NOT_IDENTITY)}"
            if text in configs:
                raise BadInput(f"{source}: {place or 'a run'} is the same run as {configs[text] or 'another'}: remove one, or the --set that makes them equal")
            configs[text] = place
            found.append(config)
    return Sweep(file.experiment, tuple(found), evaluation)


def _evaluation(values: Mapping[str, Any] | None, over: Any, source: str) -> Evaluation | None:
    """What is to be measured, with `--set evaluate.…` on top; `--set evaluate=null` measures nothing."""
    if over is None or (values is None and over == {}):
        return None
    if isinstance(over, Mapping):
        return build_evaluation(merge(values or {}, over), f"{source}, evaluate")
    raise BadInput(f"{source}: evaluate = {over!r} is refused: it is a section, for instance --set evaluate.checkpoints=true")


def _set(path: str, value: Any, source: str) -> Mapping[str, Any]:
    keys = path.split(".")
    sections = list(Config.model_fields)
    if keys[0] not in sections:
        raise BadInput(f"{source}: axis '{path}' names no setting; settings begin with {listing(sections)}.{near(keys[0], sections)}")
    return nested(keys, value)


def experiment_folder(sweep: Sweep) -> Path:
    """The folder that holds the runs of a sweep."""
    return Path(sweep.configs[0].output.folder).expanduser() / sweep.configs[0].output.experiment


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    allowed = list(SweepFile.model_fields)
    if first["type"] == "extra_forbidden":
        return f"'{name}' is not a field of it; allowed: {listing(allowed)}.{near(name, allowed)}"
    if first["type"] == "missing":
        return f"it has no '{name}'; a sweep file has {listing(allowed)}"
    return f"{name}: {first['msg'][0].lower() + first['msg'][1:]}"
