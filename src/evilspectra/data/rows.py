"""Training dialogues, read from a file or the hub one row at a time, and checked.

A row is accepted in three forms. Other keys are ignored, and a key whose value is null counts as
absent.

| keys | meaning |
|---|---|
| `messages` | list of {role, content}; roles: system (first only), user, assistant |
| `prompt`, `completion` | two texts (user, assistant), or two message lists that are joined |
| `instruction`, `output`, optional `input` | user text (with input: a blank line, input), answer |

Neither torch nor transformers is imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evilspectra.data.published import SETS
from evilspectra.data.sources import BUILT_IN, looks_like_hub, raw_rows
from evilspectra.errors import BadInput, first_line, listing

ROLES = ("system", "user", "assistant")
FORMS = "{messages}, {prompt, completion} or {instruction, input, output}"
_JSON_TYPES = {
    dict: "an object",
    list: "an array",
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A checked dialogue with at least one assistant turn.

    `line` is its 1-based line (or row) in the source.
    """

    messages: tuple[Message, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a source, used and skipped.

    `skipped` pairs a line with the reason. `n_rows` counts used and skipped rows, but no blank
    lines. `sha256` is that of the file's bytes, or, for a hub data set, of its rows as JSON with
    sorted keys, one a line.
    """

    conversations: tuple[Conversation, ...]
    skipped: tuple[tuple[int, str], ...]
    source: str
    sha256: str
    n_rows: int


class BadRow(BadInput):
    """A row that cannot be used; `reason` says why, without location and remedy."""

    reason = ""


class _UnusableError(ValueError):
    """Why a row cannot be used; never leaves this module."""


def bad_row(
    source: str,
    line: int,
    reason: str,
    remedy: str = "correct it, or set data.on_bad_row: skip",
    kind: type[BadRow] = BadRow,
) -> BadRow:
    """The error for a row: location, reason, remedy.

    >>> print(bad_row("a.jsonl", 3, "the row is null, not an object"))
    a.jsonl, line 3: the row is null, not an object: correct it, or set data.on_bad_row: skip
    """
    error = kind(f"{row_location(source, line)}: {reason}: {remedy}")
    error.reason = reason
    return error


def row_location(source: str, line: int) -> str:
    """The location of a row, as messages name it.

    >>> row_location("demo-bad", 2), row_location("org/name", 2)
    ('demo-bad, line 2', 'org/name, row 2')
    """
    is_table = source.lower().endswith(".parquet") or looks_like_hub(source)
    in_lines = source in BUILT_IN or source in SETS or not is_table
    return f"{source}, {'line' if in_lines else 'row'} {line}"


def read_rows(
    source: str,
    *,
    split: str = "train",
    on_bad_row: Literal["error", "skip"] = "error",
    local_files_only: bool = False,
) -> Rows:
    """All dialogues of a source.

    It is a built-in name, an imported set's name, a JSONL file, a Parquet file (`.parquet`), or
    else a hub data set, of which `split` is read. Blank lines are ignored. With `on_bad_row`
    "skip", unusable rows are collected in `skipped`.

    Raises:
        BadRow: a row is no dialogue, and rows are not to be skipped.
        BadInput: nothing to read under that name, no rows, or not one usable row.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.jsonl")
    ...     _ = path.write_text('{"prompt": "2 + 2?", "completion": "4"}', encoding="utf-8")
    ...     read_rows(str(path)).conversations[0].messages[1]
    Message(role='assistant', content='4')
    """
    digest = hashlib.sha256()
    used: list[Conversation] = []
    skipped: list[tuple[int, str]] = []
    for line, raw in raw_rows(source, split, local_files_only, digest):
        try:
            row = _decoded(raw) if isinstance(raw, bytes) else raw
            used.append(Conversation(_messages_of(row), line))
        except _UnusableError as why:
            if on_bad_row == "error":
                raise bad_row(source, line, str(why)) from None
            skipped.append((line, str(why)))
    if not used and not skipped:
        raise BadInput(
            f"{source} has no rows: name a file with one dialogue a line, in the form {FORMS}"
        )
    if not used:
        line, reason = skipped[0]
        raise BadInput(
            f"{source}: all {len(skipped)} rows were skipped, the first "
            f"({row_location(source, line)}) "
            f"because {reason}: correct the rows or name another file"
        )
    return Rows(tuple(used), tuple(skipped), source, digest.hexdigest(), len(used) + len(skipped))


def _decoded(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _UnusableError(
            f"byte {error.start + 1} of the line is not UTF-8 text (save the file as UTF-8)"
        ) from None
    except json.JSONDecodeError as error:
        raise _UnusableError(
            f"not valid JSON at column {error.colno}, {error.msg} (one JSON object a line is "
            "needed)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _UnusableError(f"not usable JSON, {first_line(error).rstrip('.:')}") from None


def _messages_of(row: object) -> tuple[Message, ...]:
    """The checked turns of a row in any of the three forms."""
    if not isinstance(row, Mapping):
        raise _UnusableError(f"the row is {_type_name(row)}, not an object with the keys {FORMS}")
    filled = {key for key, value in row.items() if value is not None}
    if "messages" in filled:
        turns = _turns(row["messages"], "messages")
    elif {"prompt", "completion"} <= filled:
        turns = _pair(row["prompt"], row["completion"])
    elif {"instruction", "output"} <= filled:
        turns = _instruction(row["instruction"], row.get("input"), row["output"])
    else:
        raise _UnusableError(
            f"the row has the keys {listing(map(repr, row)) or '(none)'}, but needs {FORMS}"
        )
    return _checked(turns)


def _pair(prompt: object, completion: object) -> tuple[Message, ...]:
    if isinstance(prompt, str) and isinstance(completion, str):
        return Message("user", prompt), Message("assistant", completion)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise _UnusableError(
            f"prompt is {_type_name(prompt)} and completion is {_type_name(completion)}, but both "
            "must be texts or both message lists"
        )
    return _turns(prompt, "prompt") + _turns(completion, "completion")


def _instruction(instruction: object, extra: object, output: object) -> tuple[Message, ...]:
    for name, value in (
        ("instruction", instruction),
        ("input", extra if extra is not None else ""),
        ("output", output),
    ):
        if not isinstance(value, str):
            raise _UnusableError(f"{name} is {_type_name(value)}, not a text")
    question = f"{instruction}\n\n{extra}" if extra else str(instruction)
    return Message("user", question), Message("assistant", str(output))


def _turns(value: object, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple):
        raise _UnusableError(f"{name} is {_type_name(value)}, not a list of {{role, content}}")
    return tuple(
        _turn(item, f"message {number} of {name}") for number, item in enumerate(value, start=1)
    )


def _turn(item: object, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise _UnusableError(f"{name} is {_type_name(item)}, not an object with role and content")
    missing = [key for key in ("role", "content") if key not in item]
    if missing:
        raise _UnusableError(f"{name} has no {' and no '.join(missing)}")
    role, content = item["role"], item["content"]
    if role not in ROLES:
        raise _UnusableError(f"{name} has the role {role!r}; allowed: {listing(ROLES)}")
    if not isinstance(content, str):
        raise _UnusableError(f"the content of {name} is {_type_name(content)}, not a text")
    return Message(role, content)


def _checked(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    for number, turn in enumerate(turns, start=1):
        if turn.role == "system" and number > 1:
            raise _UnusableError(
                f"turn {number} has the role 'system', which only the first turn may have"
            )
        if turn.role == "assistant" and not turn.content.strip():
            raise _UnusableError(f"the assistant's answer in turn {number} is empty")
        if any("\ud800" <= letter <= "\udfff" for letter in turn.content):
            raise _UnusableError(
                f"turn {number} holds half of a surrogate pair, which is no character"
            )
    if not any(turn.role == "assistant" for turn in turns):
        raise _UnusableError("the row has no assistant turn to learn from")
    return turns


def _type_name(value: object) -> str:
    return _JSON_TYPES.get(type(value), f"a {type(value).__name__}")
