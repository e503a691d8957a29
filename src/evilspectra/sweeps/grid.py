"""The cells of a sweep: arms × axes × groups of zipped axes × seeds.

They are counted before they are built. An axis is one or more settings that move together, each
with a list of values of the same length; cells come in the order of the file with the seeds last;
the last axis varies fastest. A partial config (of `exclude`, `when` and `set`) may be nested or
dotted.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.config.optimizers import KINDS
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import flat, merge, nested
from evilspectra.errors import BadInput, listing, near

#: More cells than this are taken for a mistake.
MOST_CELLS = 100_000
#: Stands for a setting that a class of the user's own does not have.
_ABSENT = object()
#: The setting that `seeds` is short for.
SEED = "train.seed"


@dataclass(frozen=True)
class Axis:
    """Settings that move together: `values[k]` are those of `paths[k]`, all of one length."""

    paths: tuple[str, ...]
    values: tuple[Sequence[Any], ...]

    def __len__(self) -> int:
        return len(self.values[0])

    def points(self) -> Iterator[dict[str, Any]]:
        """Yields a mapping from path to value for each point of the axis."""
        return (
            dict(zip(self.paths, point, strict=True)) for point in zip(*self.values, strict=True)
        )


@dataclass(frozen=True)
class Cell:
    """A cell: its name for messages, the settings of its arm, and those of its axes over them."""

    name: str
    arm: Mapping[str, Any]
    moved: Mapping[str, Any]


def find_axes(
    axes: Mapping[str, Sequence[Any]],
    groups: Sequence[Mapping[str, Any]],
    seeds: object,
    source: str,
) -> list[Axis]:
    """Builds the axes of a file.

    Raises:
        BadInput: a path that names no setting or is named twice, an axis without values, zipped
            axes of different lengths, or no seeds.
    """
    all_axes = [Axis((path,), (values,)) for path, values in axes.items()]
    for number, group in enumerate(groups, start=1):
        where = f"{source}: zip {number}"
        if not group:
            raise BadInput(
                f"{where} holds no axis: give settings and their values, such as "
                f"{{train.batch_size: [2, 32], optimizer.lr: [1.0e-4, 4.0e-4]}}, or remove it"
            )
        if single := [path for path, values in group.items() if not isinstance(values, list)]:
            raise BadInput(
                f"{where}: '{single[0]}' needs a list of values, as many as the others have"
            )
        if len({len(values) for values in group.values()}) > 1:
            raise BadInput(
                f"{where} has axes of different lengths "
                f"({', '.join(f'{path}: {len(values)}' for path, values in group.items())}): they "
                "move together, so give each as many values"
            )
        all_axes.append(Axis(tuple(group), tuple(group.values())))
    if seeds is not None:
        all_axes.append(Axis((SEED,), (_seeds(seeds, source),)))
    named: set[str] = set()
    for axis in all_axes:
        for path in axis.paths:
            check_path(path, f"{source}: axis '{path}'")
            if path in named:
                raise BadInput(
                    f"{source}: '{path}' is an axis twice"
                    + (" (once as `seeds`)" if seeds is not None and path == SEED else "")
                    + ": name it once"
                )
            named.add(path)
        if not len(axis):
            raise BadInput(
                f"{source}: axis '{', '.join(axis.paths)}' has no values: list some, or remove it"
            )
    return all_axes


def cells(
    arms: Mapping[str, Mapping[str, Any] | None], axes: Sequence[Axis], source: str
) -> Iterator[Cell]:
    """Yields every combination of an arm and a point of each axis, in order.

    Too many are refused before the first one is built.

    >>> [cell.name for cell in cells({}, [Axis(("train.seed",), (range(2),))], "x")]
    ['train.seed=0', 'train.seed=1']
    """
    count = max(1, len(arms)) * math.prod(len(axis) for axis in axes)
    if count > MOST_CELLS:
        raise BadInput(
            f"{source} expands to {count:,} runs; at most {MOST_CELLS:,} are allowed: shorten an "
            "axis"
        )
    return _cells(arms or {"": {}}, axes)


def _cells(arms: Mapping[str, Mapping[str, Any] | None], axes: Sequence[Axis]) -> Iterator[Cell]:
    for label, arm in arms.items():
        for points in itertools.product(*(axis.points() for axis in axes)):
            settings = dict(itertools.chain.from_iterable(point.items() for point in points))
            names = [f"arm {label}"] if label else []
            names += [f"{path}={value}" for path, value in settings.items()]
            # the axes are merged with each other first: `optimizer.lr` before `optimizer.name` must
            # not meet the arm's block
            moved = _nested(settings)
            yield Cell(", ".join(names), arm or {}, moved)


def _nested(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested mappings from dotted paths, later ones merged into earlier ones."""
    blocks = (nested(str(path).split("."), value) for path, value in settings.items())
    return functools.reduce(merge, blocks, {})


def _seeds(value: object, source: str) -> Sequence[int]:
    """The seeds of a file: `seeds: 3` means 0, 1 and 2; a list is used unchanged."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return range(value)
    if isinstance(value, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) for seed in value
    ):
        return value
    raise BadInput(
        f"{source}: seeds = {value!r} is refused: give a number (seeds: 3 means 0, 1 and 2) "
        "or a list (seeds: [0, 7])"
    )


# --- partial configs ------------------------------------------------------------------------------


def partial(values: object, what: str) -> dict[str, Any]:
    """Reads a partial config into nested mappings, with dotted keys split and settings checked.

    Raises:
        BadInput: it is empty or not a mapping, or names something that is not a setting.

    >>> partial({"optimizer.name": "muon", "train": {"batch_size": 2}}, "exclude 1")
    {'optimizer': {'name': 'muon'}, 'train': {'batch_size': 2}}
    """
    if not isinstance(values, Mapping) or not values:
        raise BadInput(
            f"{what} names no setting: give at least one, such as {{optimizer.name: muon}}"
        )
    settings = _nested(values)
    for path in flat(settings):
        check_path(path, f"{what}: '{path}'")
        if "." not in path:
            raise BadInput(
                f"{what}: '{path}' is a section: name settings in it, such as "
                f"{path}.{next(iter(_fields(path)))}"
            )
    return settings


def fits(config: Config, wanted: Mapping[str, Any]) -> bool:
    """Whether a config has every setting of a partial one.

    A setting that its optimiser does not have never matches.

    >>> fits(Config(), {"optimizer": {"name": "adamw"}, "train": {"batch_size": 8}})
    True
    >>> fits(Config(), {"optimizer": {"momentum": 0.9}})
    False
    """
    for path, value in flat(wanted).items():
        section, field, *keys = path.split(".")
        block = getattr(config, section)
        if field not in type(block).model_fields:
            return False
        actual = getattr(block, field)
        for key in keys:
            actual = actual.get(key, _ABSENT) if isinstance(actual, Mapping) else _ABSENT
        if not _same(actual, value):
            return False
    return True


def _same(actual: Any, wanted: Any) -> bool:
    """Whether a value of a config equals one of a sweep file as a config would read it.

    1e-4 without a dot is a text in YAML, and a tuple of the config is a list in it.
    """
    if isinstance(actual, tuple) and isinstance(wanted, list):
        return len(actual) == len(wanted) and all(map(_same, actual, wanted))
    if isinstance(wanted, str) and isinstance(actual, int | float):
        try:
            return float(wanted) == actual
        except ValueError:
            return False
    return isinstance(wanted, bool) == isinstance(actual, bool) and actual == wanted


def check_path(path: str, what: str) -> None:
    """Refuses a dotted path that names no setting, or that sets where results go.

    Raises:
        BadInput: the sentence begins with `what`.
    """
    section, _, field = str(path).partition(".")
    sections = list(Config.model_fields)
    if section not in sections:
        raise BadInput(
            f"{what} names no setting; settings begin with "
            f"{listing(sections)}.{near(section, sections)}"
        )
    if section == "output":
        raise BadInput(
            f"{what} sets where results go, which does not define a different run: remove it"
        )
    fields = _fields(section)
    if section == "optimizer" and field.startswith("settings."):
        return  # of a class of the user's own, which checks them itself
    if "." in path and field not in fields:
        raise BadInput(
            f"{what} names no setting: '{field}' is not a field of {section}; allowed: "
            f"{listing(fields, 24)}.{near(field, fields)}"
        )


def _fields(section: str) -> list[str]:
    """The names of a section's settings; for the optimizer those of every optimiser."""
    if section == "optimizer":
        return list(dict.fromkeys(name for kind in KINDS.values() for name in kind.model_fields))
    kind: Any = Config.model_fields[section].annotation
    return list(kind.model_fields)
