"""Arguments of the public functions: names and paths, settings, choices and numbers.

A message calls an argument by its name in Python; what a function hands on to the packages above is
checked there, and named as on the command line.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from evilspectra.config.yaml_files import assignments, merge, nested
from evilspectra.errors import BadInput, listing, near
from evilspectra.text import short_repr

#: A file or folder, or the name of something that is looked up: a run's id, owner/model on the hub.
PathLike: TypeAlias = str | os.PathLike[str]
#: Settings as a mapping, nested or with dotted keys, or as assignments such as "train.steps=30".
Settings: TypeAlias = Mapping[str, Any] | Iterable[str]
_Choice = TypeVar("_Choice", bound=str)


def names(targets: PathLike | Sequence[PathLike], argument: str) -> list[str]:
    """Targets as text: a single one, or a sequence; `argument`: what messages call them.

    Raises:
        BadInput: none, or something that is neither text nor a path.

    >>> names("runs", "targets"), names(["a", Path("b")], "targets")
    (['runs'], ['a', 'b'])
    """
    if isinstance(targets, str | os.PathLike):
        return [name(targets, argument)]
    if not isinstance(targets, Iterable) or isinstance(targets, bytes):
        raise BadInput(
            f"{argument} is {short_repr(targets)}: give text or a path, or a list of them"
        )
    texts = [name(target, argument) for target in targets]
    if not texts:
        raise BadInput(f"{argument} is empty: name at least one")
    return texts


def name(target: PathLike, argument: str) -> str:
    """A single target as text; raises as `names` does."""
    text = os.fspath(target) if isinstance(target, str | os.PathLike) else None
    if not isinstance(text, str):
        raise BadInput(f"{argument} is {short_repr(target)}: give text or a path")
    return text


def optional_name(target: PathLike | None, argument: str) -> str | None:
    """A single target as text, or None; raises as `names` does."""
    return None if target is None else name(target, argument)


def file(path: PathLike, argument: str) -> Path:
    """A file or folder of the user's, ~ expanded; raises as `names` does."""
    return Path(name(path, argument)).expanduser()


def settings_mapping(settings: Settings, argument: str = "settings") -> dict[str, Any]:
    """Settings as one nested mapping, a later one over an earlier one; paths as text.

    Raises:
        BadInput: neither a mapping nor assignments.

    >>> settings_mapping({"train.steps": 30, "output": {"folder": Path("runs")}})
    {'train': {'steps': 30}, 'output': {'folder': 'runs'}}
    >>> settings_mapping(["train.steps=30"])
    {'train': {'steps': 30}}
    """
    if isinstance(settings, Mapping):
        parts = (nested(str(key).split("."), _plain(value)) for key, value in settings.items())
        return functools.reduce(merge, parts, {})
    texts = [settings] if isinstance(settings, str) else settings
    if not isinstance(texts, Iterable):
        texts = [texts]
    texts = list(texts)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BadInput(
            f"{argument} holds {short_repr(wrong[0])}: give a mapping, or texts such as "
            "'train.steps=30'"
        )
    return assignments(texts)


def _plain(value: Any) -> Any:
    """A value of a setting with paths as text."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def choice(value: str, allowed: Sequence[_Choice], argument: str) -> _Choice:
    """The value, if it is among those allowed.

    Raises:
        BadInput: it is not.

    >>> choice("bfloat16", ["float32", "bfloat16"], "dtype")
    'bfloat16'
    """
    for option in allowed:
        if option == value:
            return option
    raise BadInput(
        f"{argument} is {short_repr(value)}; allowed: {listing(allowed)}.{near(value, allowed)}"
    )


def whole_number(value: int, least: int, argument: str) -> int:
    """The value, if it is a whole number of at least `least`.

    Raises:
        BadInput: it is not.

    >>> whole_number(3, 1, "rank")
    3
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise BadInput(f"{argument} is {short_repr(value)}: give a whole number, at least {least}")


def real_number(value: float, argument: str) -> float:
    """The value, if it is a number at all: its bounds are checked where it is used.

    Raises:
        BadInput: it is not.

    >>> real_number(0.5, "amount")
    0.5
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise BadInput(f"{argument} is {short_repr(value)}: give a number")


def share(value: float, argument: str) -> float:
    """The value, if it is a number from 0 to 1.

    Raises:
        BadInput: it is not.

    >>> share(0.5, "threshold")
    0.5
    """
    if 0 <= real_number(value, argument) <= 1:
        return value
    raise BadInput(f"{argument} is {short_repr(value)}: give a number from 0 to 1")


def silent(text: str) -> None:
    """Takes a line of progress and does nothing with it."""
