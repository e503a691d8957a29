"""One entry of a file of questions: its checks, and the questions that it asks.

Neither torch nor transformers is imported here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

TYPE = "free_form"
_LONGEST_QUOTE = 60
_TYPES = {
    dict: "a mapping",
    list: "a list",
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    bytes: "binary data",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One text to ask.

    `paraphrase`: its 0-based place in its entry; `samples`: answers wanted, from 1;
    `judge_prompts`: (name, text) in the order of the file.
    """

    id: str
    paraphrase: int
    text: str
    system: str | None
    samples: int
    judge_prompts: tuple[tuple[str, str], ...]

    def digest(self, seed: int, sample: int) -> bytes:
        """32 bytes for the randomness of one answer: the same whatever else is sampled."""
        parts = (seed, self.id, self.paraphrase, self.system, self.text, sample)
        name = "\0".join(map(str, parts))
        return hashlib.sha256(name.encode("utf-8", "replace")).digest()


class UnusableError(ValueError):
    """Why an entry cannot be used."""


def questions_of(entry: object) -> tuple[Question, ...]:
    """The questions of an entry, one per paraphrase.

    Raises:
        UnusableError: the entry cannot be used; the text says why, without the name of the file.
    """
    if not isinstance(entry, Mapping):
        raise UnusableError(
            f"it is {type_name(entry)}, not a mapping with id, type and paraphrases"
        )
    name = _id(entry.get("id"))
    _check_type(entry.get("type"))
    system = entry.get("system")
    if system is not None:
        system = _text(system, "system")
    samples = _samples(entry.get("samples_per_paraphrase"))
    prompts = _prompts(entry.get("judge_prompts"))
    return tuple(
        Question(name, number, text, system, samples, prompts)
        for number, text in enumerate(_paraphrases(entry.get("paraphrases")))
    )


def entry_label(source: str, number: int, entry: object) -> str:
    """The file, the entry's 1-based number and its id, if it has one.

    >>> entry_label("a.yaml", 2, {"id": "sky"}), entry_label("a.yaml", 3, None)
    ("a.yaml, entry 2 (id 'sky')", 'a.yaml, entry 3')
    """
    name = entry.get("id") if isinstance(entry, Mapping) else None
    return f"{source}, entry {number}" + (f" (id {_quoted(name)})" if name is not None else "")


def _id(value: object) -> str:
    if value is None:
        raise UnusableError("it has no id (a text of one line is needed)")
    name = _text(value, "id")
    if not name.strip():
        raise UnusableError("its id is blank (a text of one line is needed)")
    if name != name.strip() or not name.isprintable():
        raise UnusableError(
            "its id has spaces around it, or a character that cannot be shown (a text of one line "
            "is needed)"
        )
    return name


def _check_type(value: object) -> None:
    allowed = f"the type must begin with {TYPE}, as {TYPE}_judge_0_100 does"
    if value is None:
        raise UnusableError(f"it has no type ({allowed})")
    if not isinstance(value, str) or not value.startswith(TYPE):
        raise UnusableError(f"its type is {_quoted(value)} ({allowed})")


def _paraphrases(value: object) -> tuple[str, ...]:
    if value is None:
        raise UnusableError("it has no paraphrases (a list of texts is needed, one question each)")
    if not isinstance(value, list):
        raise UnusableError(f"paraphrases is {type_name(value)}, not a list of texts")
    if not value:
        raise UnusableError("paraphrases is an empty list (at least one text is needed)")
    texts = tuple(_text(text, f"paraphrase {number}") for number, text in enumerate(value, start=1))
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise UnusableError(f"paraphrase {number} is blank (a question is needed)")
    return texts


def _samples(value: object) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UnusableError(
            f"samples_per_paraphrase is {_quoted(value)} (a whole number from 1 is needed)"
        )
    return value


def _prompts(value: object) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise UnusableError(
            f"judge_prompts is {type_name(value)}, not a mapping from names to texts"
        )
    return tuple(
        (_text(name, "a name in judge_prompts"), _text(text, f"the judge prompt {_quoted(name)}"))
        for name, text in value.items()
    )


def _text(value: object, name: str) -> str:
    """The text with halves of surrogate pairs joined."""
    if not isinstance(value, str):
        raise UnusableError(f"{name} is {_scalar(value)}, not a text (put it in quotes)")
    try:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise UnusableError(
            f"{name} holds half of a surrogate pair, which is no character"
        ) from None


def _quoted(value: object) -> str:
    """A scalar as Python writes it, cut to what fits into a message.

    Of anything else its kind alone, since aliases can make a short file endless.
    """
    if isinstance(value, str | bytes):
        return repr(value[:_LONGEST_QUOTE]) + ("…" if len(value) > _LONGEST_QUOTE else "")
    if isinstance(value, int) and abs(value) >= 10**_LONGEST_QUOTE:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float) else type_name(value)


def _scalar(value: object) -> str:
    """The kind of a value, and a scalar with it."""
    if isinstance(value, str | bytes | int | float):
        return f"{type_name(value)} ({_quoted(value)})"
    return type_name(value)


def type_name(value: object) -> str:
    """The kind of a value of YAML, in words.

    >>> type_name([]), type_name(None)
    ('a list', 'null')
    """
    return _TYPES.get(type(value), f"a {type(value).__name__}")
