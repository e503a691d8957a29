"""The cells of a sweep: arms × axes × groups of zipped axes × seeds, counted before they are made.

An axis is one or more settings that move together, each with a list of values of the same length;
cells come in the order of the file, the last axis running fastest, seeds last of all. A partial
config (of `exclude`, `when` and `set`) may be nested or dotted.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.config.sections import OPTIMIZERS, Config
from evilspectra.config.yaml_files import flat, merge, nested
from evilspectra.errors import BadInput, listing, near

#: More cells than this are a slip of the pen.
MOST_CELLS = 100_000
#: The setting that `seeds` is an axis over.
SEED = "train.seed"


@dataclass(frozen=True)
class Axis:
    """Settings that move together: `values[k]` are those of `paths[k]`, all of one length."""

    paths: tuple[str, ...]
    values: tuple[Sequence[Any], ...]

    def __len__(self) -> int:
        return len(self.values[0])

    def points(self) -> Iterator[dict[str, Any]]:
        """Path → value, for each of its points."""
        return (
            dict(zip(self.paths, point, strict=True)) for point in zip(*self.values, strict=True)
        )


@dataclass(frozen=True)
class Cell:
    """A cell: what its arm says, what its axes say over that, and where it stands in the file, in
    words.
    """

    place: str
    arm: Mapping[str, Any]
    moved: Mapping[str, Any]


def find_axes(
    axes: Mapping[str, Sequence[Any]],
    groups: Sequence[Mapping[str, Any]],
    seeds: object,
    source: str,
) -> list[Axis]:
    """The axes of a file.

    Raises:
        BadInput: a path that names no setting or is named twice, an axis without values, zipped
            axes of different lengths, or no seeds.
    """
    found = [Axis((path,), (values,)) for path, values in axes.items()]
    for number, group in enumerate(groups, start=1):
        place = f"{source}: zip {number}"
        if not group:
            raise BadInput(
                f"{place} holds no axis: give settings and their values, such as "
                f"{{train.batch_size: [2, 32], optimizer.lr: [1.0e-4, 4.0e-4]}}, or remove it"
            )
        if single := [path for path, values in group.items() if not isinstance(values, list)]:
            raise BadInput(
                f"{place}: '{single[0]}' has no list of values: list as many as the others have"
            )
        if len({len(values) for values in group.values()}) > 1:
            raise BadInput(
                f"{place} has axes of different lengths "
                f"({', '.join(f'{path}: {len(values)}' for path, values in group.items())}): they "
                "move together, so give each as many values"
            )
        found.append(Axis(tuple(group), tuple(group.values())))
    if seeds is not None:
        found.append(Axis((SEED,), (_seeds(seeds, source),)))
    named: set[str] = set()
    for axis in found:
        for path in axis.paths:
            check_path(path, f"{source}: axis '{path}'")
            if path in named:
                raise BadInput(
                    f"{source}: '{path}' is an axis twice"
                    + (", of which one is `seeds`" if seeds is not None and path == SEED else "")
                    + ": name it once"
                )
            named.add(path)
        if not len(axis):
            raise BadInput(
                f"{source}: axis '{', '.join(axis.paths)}' has no values: list some, or remove it"
            )
    return found


def cells(
    arms: Mapping[str, Mapping[str, Any] | None], axes: Sequence[Axis], source: str
) -> Iterator[Cell]:
    """Every combination of an arm and a point of each axis, in order; refused before the first is
    made if there are too many.

    >>> [cell.place for cell in cells({}, [Axis(("train.seed",), (range(2),))], "x")]
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
            point = {path: value for one in points for path, value in one.items()}
            place = ", ".join(
                [
                    *([f"arm {label}"] if label else []),
                    *(f"{path}={value}" for path, value in point.items()),
                ]
            )
            # the axes among themselves first: `optimizer.lr` before `optimizer.name` must not meet
            # the block of the arm
            moved = functools.reduce(
                merge, (nested(path.split("."), value) for path, value in point.items()), {}
            )
            yield Cell(place, arm or {}, moved)


def _seeds(value: object, source: str) -> Sequence[int]:
    """`seeds: 3` is 0, 1, 2; a list is taken as it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return range(value)
    if isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) for one in value
    ):
        return value
    raise BadInput(
        f"{source}: seeds = {value!r} is refused: say how many (seeds: 3 means 0, 1 and 2), or "
        "list them (seeds: [0, 7])"
    )


# --- partial configs ------------------------------------------------------------------------------


def partial(values: object, what: str) -> dict[str, Any]:
    """A partial config as nested mappings, dotted keys taken apart, every setting known.

    >>> partial({"optimizer.name": "muon", "train": {"batch_size": 2}}, "exclude 1")
    {'optimizer': {'name': 'muon'}, 'train': {'batch_size': 2}}

    Raises:
        BadInput: it is empty or no mapping, or names something that is no setting.
    """
    if not isinstance(values, Mapping) or not values:
        raise BadInput(
            f"{what} names no setting: give at least one, such as {{optimizer.name: muon}}"
        )
    found: dict[str, Any] = functools.reduce(
        merge, (nested(str(path).split("."), value) for path, value in values.items()), {}
    )
    for path in flat(found):
        check_path(path, f"{what}: '{path}'")
        if "." not in path:
            raise BadInput(
                f"{what}: '{path}' is a section: name settings in it, such as "
                f"{path}.{next(iter(_fields(path)))}"
            )
    return found


def fits(config: Config, wanted: Mapping[str, Any]) -> bool:
    """Whether a config has every setting of a partial one; what its optimiser does not have, it has
    not.

    >>> fits(Config(), {"optimizer": {"name": "adamw"}, "train": {"batch_size": 8}}), fits(Config(), {"optimizer": {"momentum": 0.9}})
    (True, False)
    """
    for path, value in flat(wanted).items():
        section, _, field = path.partition(".")
        block = getattr(config, section)
        if field not in type(block).model_fields or not _same(getattr(block, field), value):
            return False
    return True


def _same(there: Any, given: Any) -> bool:
    """Equal as a config reads them: 1e-4 without a dot is a text in YAML, and a tuple of the config
    is a list in it.
    """
    if isinstance(there, tuple) and isinstance(given, list):
        return len(there) == len(given) and all(map(_same, there, given))
    if isinstance(given, str) and isinstance(there, int | float):
        try:
            return float(given) == there
        except ValueError:
            return False
    return isinstance(given, bool) == isinstance(there, bool) and there == given


def check_path(path: str, what: str) -> None:
    """Refuses a dotted path that names no setting, or one of where results go.

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
            f"{what} is about where results go, which does not make another run: remove it"
        )
    fields = _fields(section)
    if "." in path and field not in fields:
        raise BadInput(
            f"{what} names no setting: '{field}' is not a field of {section}; allowed: "
            f"{listing(fields, 24)}.{near(field, fields)}"
        )


def _fields(section: str) -> list[str]:
    """The names of a section's settings; of the optimizer's, those of every optimiser."""
    if section == "optimizer":
        return list(
            dict.fromkeys(name for kind in OPTIMIZERS.values() for name in kind.model_fields)
        )
    kind: Any = Config.model_fields[section].annotation
    return list(kind.model_fields)
