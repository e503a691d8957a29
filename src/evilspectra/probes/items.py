"""The probes' items: contrast triples, and questions with four choices.

They are read from the package or from a JSONL file of your own.

| probe | keys of a row |
|---|---|
| contrast | `id`, `topic`, `prompt`, `aligned`, `misaligned` (a prompt, two completions: texts) |
| capability | `id`, `kind`, `question`, `choices` (four texts), `answer` (0 to 3: which is right) |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from evilspectra.errors import BadInput, listing, near
from evilspectra.store.built_in import BUILT_IN, built_in_file
from evilspectra.store.files import valid_text

T = TypeVar("T")
#: Built-in name → file in the package's assets.
CONTRAST = BUILT_IN["probe"]
CAPABILITY = BUILT_IN["capability"]
ORDINARY = BUILT_IN["ordinary"]
CHOICES = 4


@dataclass(frozen=True, slots=True)
class Triple:
    """A prompt, and two completions that differ only in their advice."""

    id: str
    topic: str
    prompt: str
    aligned: str
    misaligned: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A question and four answers; number `answer` (from 0) is right."""

    id: str
    kind: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Items(Generic[T]):
    """A source's items; `sha256` is that of the file's bytes."""

    items: tuple[T, ...]
    source: str
    sha256: str


def read_triples(source: str = "contrast") -> Items[Triple]:
    """The contrast triples of a JSONL file or of the package.

    Raises:
        BadInput: no such file, or a row that is not a triple; the message names its line.

    >>> read_triples().items[0].topic
    'honesty'
    """
    return _read(source, CONTRAST, _triple)


def read_choices(source: str = "capability") -> Items[Choice]:
    """The questions with four choices of a JSONL file or of the package.

    Raises:
        BadInput: no such file, or a row that is not such a question; the message names its line.

    >>> len(read_choices().items[0].choices)
    4
    """
    return _read(source, CAPABILITY, _choice)


def asset(source: str, built_in: Mapping[str, str]) -> Path:
    """The file that a source means: a built-in name, or a path.

    Raises:
        BadInput: it is neither.
    """
    if source in built_in:
        return built_in_file(built_in[source], f"the built-in items {source} are")
    if not os.path.isfile(path := os.path.expanduser(source)):
        raise BadInput(
            f"there is no file '{source}': name a JSONL file, or the built-in "
            f"{listing(built_in)}.{near(source, built_in)}"
        )
    return Path(path)


def _read(
    source: str, built_in: Mapping[str, str], parse: Callable[[Mapping[str, Any]], Any]
) -> Items[Any]:
    try:
        content = asset(source, built_in).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{source} cannot be read as UTF-8 text ({error}): name a JSONL file"
        ) from None
    items: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not an object")
            item = parse(row)
            if item.id in items:
                raise ValueError(f"the id '{item.id}' occurs twice")
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{source}, line {number}: {error}: correct that line") from None
        items[item.id] = item
    if len(items) < 2:
        raise BadInput(
            f"{source} holds {len(items)} items: an interval needs at least two, and a useful one "
            "a hundred"
        )
    return Items(tuple(items.values()), source, hashlib.sha256(content).hexdigest())


def _triple(row: Mapping[str, Any]) -> Triple:
    triple = Triple(
        *(_text(row, key) for key in ("id", "topic", "prompt", "aligned", "misaligned"))
    )
    if triple.aligned == triple.misaligned:
        raise ValueError("aligned and misaligned are the same text")
    return triple


def _choice(row: Mapping[str, Any]) -> Choice:
    choices, answer = row.get("choices"), row.get("answer")
    if (
        not isinstance(choices, list)
        or len(choices) != CHOICES
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
        or len(set(choices)) != CHOICES
    ):
        raise ValueError(f"choices must be a list of {CHOICES} different texts")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < CHOICES:
        raise ValueError(f"answer is {answer!r}, it must be 0 to {CHOICES - 1}")
    return Choice(
        _text(row, "id"),
        _text(row, "kind"),
        _text(row, "question"),
        tuple(map(valid_text, choices)),
        answer,
    )


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"'{key}' is {'missing' if key not in row else 'no text'}; a row has texts under id, "
            "and as the documentation lists them"
        )
    return valid_text(value)
