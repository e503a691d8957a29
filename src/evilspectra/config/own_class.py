"""Settings that name a class of the user's own, by import path. Nothing is imported here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.functional_validators import AfterValidator

from evilspectra.text import short_repr

_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_PATH = re.compile(rf"{_WORD}(\.{_WORD})*:{_WORD}(\.{_WORD})*")
_LONGEST = 200
#: What YAML reads as a text and JSON as a number: 1e-8.
_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


def check_path(path: str) -> str:
    """An import path, `package.module:Class`.

    Raises:
        ValueError: it is none.

    >>> check_path("torch.optim:NAdam")
    'torch.optim:NAdam'
    """
    if len(path) > _LONGEST or not _PATH.fullmatch(path):
        raise ValueError(
            f"{short_repr(path)} is no import path of a class: write package.module:Class, such as "
            "torch.optim:NAdam, in ASCII and at most 200 characters"
        )
    if path.startswith("__main__:"):
        raise ValueError(
            f"'{path}' is of the program that runs, which no other process can import: put the "
            "class into a module of its own"
        )
    return path


ClassPath = Annotated[str, AfterValidator(check_path)]
Version = Annotated[str, Field(min_length=1, max_length=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def short_name(path: str) -> str:
    """The class's name in an import path.

    >>> short_name("torch.optim:NAdam")
    'NAdam'
    """
    return path.rpartition(":")[2]


def plain_json(value: Any, where: str) -> Any:
    """The value if it is of JSON's types, and finite; texts such as 1e-8 as numbers.

    Raises:
        ValueError: something in it is not.

    >>> plain_json({"eps": "1e-8", "betas": (0.9, 0.99)}, "settings")
    {'eps': 1e-08, 'betas': [0.9, 0.99]}
    """
    match value:
        case None | bool() | int():
            return value
        case str():
            return float(value) if _EXPONENT.fullmatch(value) else value
        case float() if math.isfinite(value):
            return value
        case list() | tuple():
            return [plain_json(item, where) for item in value]
        case Mapping() if all(isinstance(key, str) for key in value):
            return {key: plain_json(item, f"{where}.{key}") for key, item in value.items()}
    raise ValueError(
        f"{where} = {short_repr(value)} is refused: settings of a class are finite numbers, texts, "
        "true, false, null, lists, and mappings with texts as keys; correct that value"
    )
