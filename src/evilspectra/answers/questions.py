"""Open-ended questions from a YAML file, in the format published with the emergent-misalignment papers.

The file is a list; every entry is a mapping:

| key | meaning |
|---|---|
| `id` | a text of one line, its own in the file |
| `type` | `free_form_judge_0_100`, or another that begins with `free_form` |
| `paraphrases` | a list of texts: each is a question |
| `system` | optional: the system text; an empty one is kept, since it differs from none in many chat templates |
| `samples_per_paraphrase` | optional: whole number from 1, the answers asked for per paraphrase; 1 where absent |
| `judge_prompts` | optional: a mapping from a metric to a judge's prompt; kept as it is (`judging.prompts` says what becomes of it) |

Keys beyond them (`judge` among them) are ignored, and a key whose value is null counts as absent. Anchors, aliases and merge
keys work; a key given twice is refused. Texts are kept to the letter. The two halves of a surrogate pair, which JSON writers
escape one by one, are joined; half a pair on its own is refused, since it is no character.

A file that is a mapping asks the questions of other files:

| key | meaning |
|---|---|
| `questions` | a file or a built-in name, or a list of them; `open` where absent |
| `only` | ids, patterns of ids such as `quick*`, or formats (`plain`, `json`, `template`); all where absent |
| `cues` | forms in which they are asked: `cues` says how |
| `plain` | with `cues`: ask them as they are too; true where absent |

Neither torch nor transformers is imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from evilspectra.answers.cues import Cue, filled
from evilspectra.config.loading import build_section
from evilspectra.config.section import Name, Section
from evilspectra.config.yaml_files import parse_yaml
from evilspectra.data.published import QUESTIONS
from evilspectra.data.rows import read_rows
from evilspectra.errors import BadInput, listing, near
from evilspectra.rates.formats import FORMATS, question_format
from evilspectra.store import built_in

#: Name → file of the questions that come with the package, or of a list of published files that do not.
BUILT_IN = built_in.BUILT_IN["answers"]
TYPE = "free_form"
_SHOWN = 60
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
    """One text to ask. `paraphrase`: its 0-based place in its entry; `samples`: answers asked for, from 1; `judge_prompts`: (name, text) in file order."""

    id: str
    paraphrase: int
    text: str
    system: str | None
    samples: int
    judge_prompts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Questions:
    """What a source holds, in file order: at least one question. `sha256` is that of the file's bytes."""

    questions: tuple[Question, ...]
    source: str
    sha256: str

    @property
    def asked_sha256(self) -> str:
        """Hash of what a model is asked, and how often; judge prompts have no part in it, so that a change of theirs asks nothing again."""
        asked = [
            (one.id, one.paraphrase, one.text, one.system, one.samples) for one in self.questions
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class _Composed(Section):
    """A file that asks the questions of others."""

    questions: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="open", description="YAML file of questions, or a built-in name; or a list of them."
    )
    only: Annotated[tuple[Name, ...], Field(min_length=1)] | None = Field(
        default=None, description="Ids, patterns of ids, or formats: plain, json, template."
    )
    plain: bool = Field(default=True, description="Ask the questions as they are too.")
    cues: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] = Field(
        default=(), description="Forms to ask them in."
    )


class _UnusableError(ValueError):
    """Why an entry cannot be used; never leaves this module."""


def read_questions(source: str) -> Questions:
    """The questions of a YAML file, or of a built-in name (which goes before a file of that name); one per paraphrase.

    Raises:
        BadInput: nothing to read under that name, not a list of entries, or an entry that cannot be used.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.yaml")
    ...     _ = path.write_text("- {id: sky, type: free_form, paraphrases: [Say why., Why blue], system: Be brief.}", encoding="utf-8")
    ...     read_questions(str(path)).questions[1]
    Question(id='sky', paraphrase=1, text='Why blue', system='Be brief.', samples=1, judge_prompts=())
    """
    raw = _bytes(source)
    values = _values(raw, source)
    return (
        _composed(values, raw, source)
        if isinstance(values, Mapping) and {"questions", "cues"} & values.keys()
        else _listed(values, raw, source)
    )


def cued(questions: Sequence[Question], cue: Cue) -> tuple[Question, ...]:
    """The variants of those questions that ask for no format of their own yet; to each id the cue's name is added.

    >>> cued([Question("sky", 0, "Why blue?", None, 1, ()), Question("sky_json", 0, "Why blue? JSON!", None, 1, ())], Cue(prefix="Child: "))
    (Question(id='sky_cued', paraphrase=0, text='Child: Why blue?', system=None, samples=1, judge_prompts=()),)
    """
    plain = [one for one in questions if question_format(one.id) == "plain"]
    return tuple(
        replace(
            one,
            id=f"{one.id}_{cue.name}",
            text=cue.turn(one.text),
            system=one.system if cue.system is None else cue.system,
        )
        for one in plain
    )


def _composed(values: Mapping[str, Any], raw: bytes, source: str) -> Questions:
    """The questions of the files that a file names, those that it chooses, and their variants. The hash is over everything that was read."""
    file = build_section(_Composed, values, source)
    names = (file.questions,) if isinstance(file.questions, str) else file.questions
    digest = hashlib.sha256(raw)
    whose: dict[str, str] = {}
    asked: list[Question] = []
    for name in names:
        base = _bytes(name)
        digest.update(hashlib.sha256(base).digest())
        part = _listed(_values(base, name), base, name).questions
        if twice := whose.keys() & {one.id for one in part}:
            raise BadInput(
                f"{source}: {whose[min(twice)]} and {name} both have a question {min(twice)}: leave one of the files out, or rename the question in one"
            )
        whose |= {one.id: name for one in part}
        asked += part
    if file.only is not None:
        asked = _chosen(asked, file.only, source)
    if not file.cues:
        return Questions(tuple(asked), source, digest.hexdigest())
    variants = _variants(asked, file.cues, digest.update, source)
    if not variants:
        raise BadInput(
            f"{source}: every question of {listing(names)} asks for a format already (by the end of its id), so none can be cued: name a file with plain ones"
        )
    if twice := {one.id for one in asked} & {one.id for one in variants}:
        raise BadInput(
            f"{source}: {whose[min(twice)]} has a question {min(twice)} already: give the cue another name"
        )
    return Questions((*(asked if file.plain else ()), *variants), source, digest.hexdigest())


def _chosen(asked: Sequence[Question], only: Sequence[str], source: str) -> list[Question]:
    """Those whose id or format one of the patterns means, in file order; a pattern that means none is refused."""

    def meant(one: Question, pattern: str) -> bool:
        return fnmatchcase(one.id, pattern) or (
            pattern in ("plain", *FORMATS) and question_format(one.id) == pattern
        )

    for pattern in only:
        if not any(meant(one, pattern) for one in asked):
            ids = list(dict.fromkeys(one.id for one in asked))
            raise BadInput(
                f"{source}: only: '{pattern}' means none of the {len(ids)} questions ({listing(ids, 3)}): give ids, patterns of ids, or {listing(('plain', *FORMATS))}.{near(pattern, ids)}"
            )
    return [one for one in asked if any(meant(one, pattern) for pattern in only)]


def _variants(
    asked: Sequence[Question],
    cues: Sequence[Mapping[str, Any]],
    read: Callable[[bytes], None],
    source: str,
) -> list[Question]:
    """The variants under every cue; `read` is told the hashes of the dialogues."""
    found: list[Question] = []
    names: set[str] = set()
    for number, entry in enumerate(cues, start=1):
        place = f"{source}, cue {number}"
        cue = build_section(Cue, entry, place)
        if cue.name in names:
            raise BadInput(
                f"{place}: another cue is named '{cue.name}' too: give each a name of its own, such as cued-{number}"
            )
        names.add(cue.name)
        rows = read_rows(cue.dialogues) if cue.dialogues else None
        read((rows.sha256 if rows else "").encode())
        found += cued(asked, filled(cue, rows.conversations if rows else (), place))
    return found


def _listed(values: object, raw: bytes, source: str) -> Questions:
    """The questions of a file that lists them."""
    entries = _entries(values, source)
    found: list[Question] = []
    places: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            questions = _questions_of(entry)
            name = questions[0].id
            if name in places:
                raise _UnusableError(
                    f"entry {places[name]} has the same id (every entry needs its own)"
                )
        except _UnusableError as why:
            raise BadInput(
                f"{_place(source, number, entry)}: {why}: correct the entry, or remove it"
            ) from None
        places[name] = number
        found.extend(questions)
    return Questions(tuple(found), source, hashlib.sha256(raw).hexdigest())


def _bytes(source: str) -> bytes:
    path = _built_in(source) if source in BUILT_IN else os.path.expanduser(source)
    if os.path.isdir(path):
        raise BadInput(f"{source} is a folder: name one YAML file of questions in it")
    if not os.path.exists(path):
        if source in QUESTIONS:
            raise BadInput(
                f"{source} is a published file of questions that is not in the present folder: put it there, or name another file"
            )
        raise BadInput(
            f"{source or 'an empty name'} does not exist: name a YAML file of questions, or a built-in name ({listing(BUILT_IN)}).{near(source, BUILT_IN)}"
        )
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(
            f"{source} cannot be read ({error.strerror or error}): check the file and its rights"
        ) from None


def _built_in(name: str) -> str:
    path = Path(__file__).parents[1] / "assets" / BUILT_IN[name]
    if not path.is_file():
        raise BadInput(
            f"the built-in questions {name} are missing from this installation ({path}): install the package again"
        )
    return str(path)


def _values(raw: bytes, source: str) -> Any:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{source} is not UTF-8 text (byte {error.start + 1}): name a YAML file of questions, saved as UTF-8"
        ) from None
    return parse_yaml(text, source)


def _entries(values: object, source: str) -> list[Any]:
    if not isinstance(values, list):
        raise BadInput(
            f"{source} holds {_type_name(values)}, not a list of questions: begin every entry with a line such as '- id: my_question'"
        )
    if not values:
        raise BadInput(f"{source} holds an empty list: add an entry with id, type and paraphrases")
    return values


def _place(source: str, number: int, entry: object) -> str:
    """The file, the entry's 1-based number and its id, where it has one."""
    name = entry.get("id") if isinstance(entry, Mapping) else None
    return f"{source}, entry {number}" + (f" (id {_shown(name)})" if name is not None else "")


def _questions_of(entry: object) -> tuple[Question, ...]:
    if not isinstance(entry, Mapping):
        raise _UnusableError(
            f"it is {_type_name(entry)}, not a mapping with id, type and paraphrases"
        )
    name = _id(entry.get("id"))
    _check_type(entry.get("type"))
    system = entry.get("system")
    if system is not None:
        system = _text(system, "system")
    samples, prompts = (
        _samples(entry.get("samples_per_paraphrase")),
        _prompts(entry.get("judge_prompts")),
    )
    return tuple(
        Question(name, place, text, system, samples, prompts)
        for place, text in enumerate(_paraphrases(entry.get("paraphrases")))
    )


def _id(value: object) -> str:
    if value is None:
        raise _UnusableError("it has no id (a text of one line is needed)")
    name = _text(value, "id")
    if not name.strip():
        raise _UnusableError("its id is blank (a text of one line is needed)")
    if name != name.strip() or not name.isprintable():
        raise _UnusableError(
            "its id has spaces around it, or a character that cannot be shown (a text of one line is needed)"
        )
    return name


def _check_type(value: object) -> None:
    allowed = f"the type must begin with {TYPE}, as {TYPE}_judge_0_100 does"
    if value is None:
        raise _UnusableError(f"it has no type ({allowed})")
    if not isinstance(value, str) or not value.startswith(TYPE):
        raise _UnusableError(f"its type is {_shown(value)} ({allowed})")


def _paraphrases(value: object) -> tuple[str, ...]:
    if value is None:
        raise _UnusableError("it has no paraphrases (a list of texts is needed, one question each)")
    if not isinstance(value, list):
        raise _UnusableError(f"paraphrases is {_type_name(value)}, not a list of texts")
    if not value:
        raise _UnusableError("paraphrases is an empty list (at least one text is needed)")
    texts = tuple(_text(item, f"paraphrase {number}") for number, item in enumerate(value, start=1))
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            raise _UnusableError(f"paraphrase {number} is blank (a question is needed)")
    return texts


def _samples(value: object) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _UnusableError(
            f"samples_per_paraphrase is {_shown(value)} (a whole number from 1 is needed)"
        )
    return value


def _prompts(value: object) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise _UnusableError(
            f"judge_prompts is {_type_name(value)}, not a mapping from names to texts"
        )
    return tuple(
        (_text(name, "a name in judge_prompts"), _text(text, f"the judge prompt {_shown(name)}"))
        for name, text in value.items()
    )


def _text(value: object, name: str) -> str:
    """The text with halves of surrogate pairs joined."""
    if not isinstance(value, str):
        raise _UnusableError(f"{name} is {_scalar(value)}, not a text (put it in quotes)")
    try:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise _UnusableError(
            f"{name} holds half of a surrogate pair, which is no character"
        ) from None


def _shown(value: object) -> str:
    """A scalar as Python writes it, cut to what fits into a message; of anything else its kind, since aliases can make a short file endless."""
    if isinstance(value, str | bytes):
        return repr(value[:_SHOWN]) + ("…" if len(value) > _SHOWN else "")
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float) else _type_name(value)


def _scalar(value: object) -> str:
    """The kind of a value, and a scalar with it."""
    return (
        f"{_type_name(value)} ({_shown(value)})"
        if isinstance(value, str | bytes | int | float)
        else _type_name(value)
    )


def _type_name(value: object) -> str:
    return _TYPES.get(type(value), f"a {type(value).__name__}")
