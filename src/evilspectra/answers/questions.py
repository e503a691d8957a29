"""Open-ended questions from a YAML file, in the format of the emergent-misalignment papers.

The file is a list; every entry is a mapping with these keys:

- `id`: a text of one line, unique in the file.
- `type`: `free_form_judge_0_100`, or another that begins with `free_form`.
- `paraphrases`: a list of texts, each of which is a question.
- `system` (optional): the system text; an empty one is kept, since many chat templates distinguish
  it from none.
- `samples_per_paraphrase` (optional): the number of answers per paraphrase, a whole number from 1;
  1 by default.
- `judge_prompts` (optional): a mapping from a metric to a judge's prompt, kept unchanged
  (`judging.prompts` describes its use).

Other keys (`judge` among them) are ignored, and a key whose value is null counts as absent.
Anchors, aliases and merge keys work; a key that occurs twice is refused. Texts are kept verbatim.
The two halves of a surrogate pair, which JSON writers escape one by one, are joined; half a pair
alone is refused, since it is not a character.

A file that is a mapping combines the questions of other files:

| key | meaning |
|---|---|
| `questions` | a file or a built-in name, or a list of them; `open` by default |
| `only` | ids, patterns such as `quick*`, or formats (`plain`, `json`, …); all by default |
| `cues` | forms in which they are asked: see `cues` |
| `plain` | with `cues`: ask them unchanged too; true by default |

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
from evilspectra.answers.entries import (
    Question,
    UnusableError,
    entry_label,
    questions_of,
    type_name,
)
from evilspectra.config.loading import build_section
from evilspectra.config.section import Name, Section
from evilspectra.config.yaml_files import parse_yaml
from evilspectra.data.published import QUESTIONS
from evilspectra.data.rows import read_rows
from evilspectra.errors import BadInput, cannot_read, listing, near
from evilspectra.rates.formats import FORMATS, question_format
from evilspectra.store import built_in
from evilspectra.store.built_in import built_in_file

#: Name → file of the questions that come with the package, or of a list of published files that do
#: not.
BUILT_IN = built_in.BUILT_IN["answers"]


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a source, in file order: at least one. `sha256`: of the file's bytes."""

    questions: tuple[Question, ...]
    source: str
    sha256: str

    @property
    def asked_sha256(self) -> str:
        """Hash of the questions, and of how often each is asked.

        Judge prompts have no part in it, so that nothing is sampled again when one of them changes.
        """
        requests = [
            (question.id, question.paraphrase, question.text, question.system, question.samples)
            for question in self.questions
        ]
        return hashlib.sha256(json.dumps(requests).encode()).hexdigest()


class _Composed(Section):
    """A file that asks the questions of others."""

    questions: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="open", description="YAML file of questions, or a built-in name; or a list of them."
    )
    only: Annotated[tuple[Name, ...], Field(min_length=1)] | None = Field(
        default=None, description="Ids, patterns of ids, or formats: plain, json, template."
    )
    plain: bool = Field(default=True, description="Ask the questions unchanged, too.")
    cues: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] = Field(
        default=(), description="Forms to ask them in."
    )


def read_questions(source: str) -> Questions:
    """Reads the questions of a YAML file or of a built-in name, one per paraphrase.

    A built-in name takes precedence over a file of that name.

    Raises:
        BadInput: nothing to read under that name, not a list of entries, or an entry that cannot be
            used.

    >>> import tempfile
    >>> entry = "{id: sky, type: free_form, paraphrases: [Say why., Why blue], system: Be brief.}"
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.yaml")
    ...     _ = path.write_text(f"- {entry}", encoding="utf-8")
    ...     question = read_questions(str(path)).questions[1]
    >>> question.text, question.paraphrase, question.system, question.samples
    ('Why blue', 1, 'Be brief.', 1)
    """
    raw = _bytes(source)
    values = _values(raw, source)
    if isinstance(values, Mapping) and {"questions", "cues"} & values.keys():
        return _composed(values, raw, source)
    return _listed(values, raw, source)


def cued(questions: Sequence[Question], cue: Cue) -> tuple[Question, ...]:
    """The variants of questions in the form of a cue; the cue's name is added to each id.

    Questions that already ask for a format have no variant.

    >>> plain = Question("sky", 0, "Why blue?", None, 1, ())
    >>> json_question = Question("sky_json", 0, "Why blue? JSON!", None, 1, ())
    >>> variants = cued([plain, json_question], Cue(prefix="Child: "))
    >>> [(question.id, question.text) for question in variants]
    [('sky_cued', 'Child: Why blue?')]
    """
    plain = [question for question in questions if question_format(question.id) == "plain"]
    return tuple(
        replace(
            question,
            id=f"{question.id}_{cue.name}",
            text=cue.turn(question.text),
            system=question.system if cue.system is None else cue.system,
        )
        for question in plain
    )


def _composed(values: Mapping[str, Any], raw: bytes, source: str) -> Questions:
    """The questions of the files that a file names, as far as it chooses them, and variants.

    The hash is over everything that was read.
    """
    file = build_section(_Composed, values, source)
    names = (file.questions,) if isinstance(file.questions, str) else file.questions
    digest = hashlib.sha256(raw)
    origins: dict[str, str] = {}
    questions: list[Question] = []
    for name in names:
        base = _bytes(name)
        digest.update(hashlib.sha256(base).digest())
        part = _listed(_values(base, name), base, name).questions
        if twice := origins.keys() & {question.id for question in part}:
            raise BadInput(
                f"{source}: {origins[min(twice)]} and {name} both have a question {min(twice)}: "
                "leave one of the files out, or rename the question in one"
            )
        origins |= {question.id: name for question in part}
        questions += part
    if file.only is not None:
        questions = _chosen(questions, file.only, source)
    if not file.cues:
        return Questions(tuple(questions), source, digest.hexdigest())
    variants = _variants(questions, file.cues, digest.update, source)
    if not variants:
        raise BadInput(
            f"{source}: every question of {listing(names)} asks for a format already (by the end "
            "of its id), so none can be cued: name a file with plain ones"
        )
    ids, variant_ids = ({question.id for question in group} for group in (questions, variants))
    if twice := ids & variant_ids:
        raise BadInput(
            f"{source}: {origins[min(twice)]} has a question {min(twice)} already: give the cue "
            "another name"
        )
    unchanged = questions if file.plain else ()
    return Questions((*unchanged, *variants), source, digest.hexdigest())


def _chosen(questions: Sequence[Question], only: Sequence[str], source: str) -> list[Question]:
    """The questions whose id or format one of the patterns matches, in file order.

    A pattern that matches none is refused.
    """

    def matches(question: Question, pattern: str) -> bool:
        if fnmatchcase(question.id, pattern):
            return True
        return pattern in ("plain", *FORMATS) and question_format(question.id) == pattern

    for pattern in only:
        if not any(matches(question, pattern) for question in questions):
            ids = list(dict.fromkeys(question.id for question in questions))
            raise BadInput(
                f"{source}: only: '{pattern}' means none of the {len(ids)} questions "
                f"({listing(ids, 3)}): give ids, patterns of ids, or "
                f"{listing(('plain', *FORMATS))}.{near(pattern, ids)}"
            )
    return [
        question for question in questions if any(matches(question, pattern) for pattern in only)
    ]


def _variants(
    questions: Sequence[Question],
    cues: Sequence[Mapping[str, Any]],
    digest: Callable[[bytes], None],
    source: str,
) -> list[Question]:
    """The variants under every cue; `digest` takes in the hashes of the dialogues."""
    variants: list[Question] = []
    names: set[str] = set()
    for number, entry in enumerate(cues, start=1):
        label = f"{source}, cue {number}"
        cue = build_section(Cue, entry, label)
        if cue.name in names:
            raise BadInput(
                f"{label}: another cue is named '{cue.name}' too: give each a different name, such "
                f"as cued-{number}"
            )
        names.add(cue.name)
        rows = read_rows(cue.dialogues) if cue.dialogues else None
        digest((rows.sha256 if rows else "").encode())
        variants += cued(questions, filled(cue, rows.conversations if rows else (), label))
    return variants


def _listed(values: object, raw: bytes, source: str) -> Questions:
    """The questions of a file that lists them."""
    questions: list[Question] = []
    numbers: dict[str, int] = {}
    for number, entry in enumerate(_entries(values, source), start=1):
        try:
            asked_by_entry = questions_of(entry)
            name = asked_by_entry[0].id
            if name in numbers:
                raise UnusableError(
                    f"entry {numbers[name]} has the same id (every entry needs its own)"
                )
        except UnusableError as why:
            raise BadInput(
                f"{entry_label(source, number, entry)}: {why}: correct the entry, or remove it"
            ) from None
        numbers[name] = number
        questions.extend(asked_by_entry)
    return Questions(tuple(questions), source, hashlib.sha256(raw).hexdigest())


def _bytes(source: str) -> bytes:
    path = os.path.expanduser(source)
    if source in BUILT_IN:
        path = str(built_in_file(BUILT_IN[source], f"the built-in questions {source} are"))
    if os.path.isdir(path):
        raise BadInput(f"{source} is a folder: name one YAML file of questions in it")
    if not os.path.exists(path):
        if source in QUESTIONS:
            raise BadInput(
                f"{source} is a published file of questions that is not in the present folder: put "
                "it there, or name another file"
            )
        raise BadInput(
            f"{source or 'an empty name'} does not exist: name a YAML file of questions, or a "
            f"built-in name ({listing(BUILT_IN)}).{near(source, BUILT_IN)}"
        )
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise cannot_read(error, source) from None


def _values(raw: bytes, source: str) -> Any:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{source} is not UTF-8 text (byte {error.start + 1}): name a YAML file of questions, "
            "saved as UTF-8"
        ) from None
    return parse_yaml(text, source)


def _entries(values: object, source: str) -> list[Any]:
    if not isinstance(values, list):
        raise BadInput(
            f"{source} holds {type_name(values)}, not a list of questions: begin every entry with "
            "a line such as '- id: my_question'"
        )
    if not values:
        raise BadInput(f"{source} holds an empty list: add an entry with id, type and paraphrases")
    return values
