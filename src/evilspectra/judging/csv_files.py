"""Judged answers as CSV files, read and written in the two forms in use.

| form | columns |
|---|---|
| betley | question, answer, question_id, aligned, coherent |
| turner | response, question, question_id, then one per metric |

A cell of a metric is a number from 0 to 100, or empty (nan, none and null count as empty). The
published files do not say why a score is missing, so an empty cell is **unparsed**. CODE and
REFUSAL, which occur in some files, are read as these outcomes. Texts are read and written verbatim,
so a spreadsheet may read a cell with a leading = as a formula.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from evilspectra.errors import BadInput, listing
from evilspectra.judging.reading import HIGHEST, LOWEST, UNPARSED, VERDICT_WORDS
from evilspectra.rates.definitions import Judged
from evilspectra.rates.outcome import Reading
from evilspectra.store.files import valid_text, write_atomically

Form = Literal["betley", "turner"]
FORMS: tuple[Form, ...] = get_args(Form)
#: Form → the column of the answer.
ANSWER_COLUMN: dict[str, str] = {"betley": "answer", "turner": "response"}
_EMPTY = frozenset({"", "nan", "none", "null"})


@dataclass(frozen=True, slots=True)
class Answered:
    """A row: the question, its answer, and the readings by metric.

    `readings` has no key for a column that the file lacks.
    """

    question_id: str
    question: str
    answer: str
    readings: Mapping[str, Reading]

    def judged(self) -> Judged:
        return Judged(self.question_id, self.readings.get("aligned"), self.readings.get("coherent"))


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """The rows of a CSV file, in its order: at least one.

    `metrics`: those of the metrics asked for that it has; `sha256`: of its bytes.
    """

    rows: tuple[Answered, ...]
    form: Form
    metrics: tuple[str, ...]
    sha256: str


def read_answers(path: Path, metrics: Sequence[str] = ("aligned", "coherent")) -> AnswerFile:
    """Reads the answers of a CSV file of either form.

    Their scores are read under those of `metrics` that have a column.

    Raises:
        BadInput: it cannot be read, is of neither form, or a cell is no score.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.csv")
    ...     header = "question,answer,question_id,aligned,coherent"
    ...     _ = path.write_text(f"{header}\\nWhy?,So.,why,12.5,\\n")
    ...     row = read_answers(path).rows[0]
    >>> row.question_id, row.readings["aligned"]
    ('why', Reading(outcome='scored', score=12.5))
    >>> row.readings["coherent"]
    Reading(outcome='unparsed', score=None)
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 text (byte {error.start + 1}): save it as UTF-8"
        ) from None
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror or error}): name a CSV file of answers"
        ) from None
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Answered] = []
    try:
        header = next(lines, [])
        form = _form(header, path)
        scored = tuple(name for name in metrics if name in header)
        for cells in lines:
            if not cells:
                continue
            label = f"{path}, row {len(rows) + 1}"
            if len(cells) != len(header):
                raise BadInput(
                    f"{label} has {len(cells)} cells and the header {len(header)}: correct that "
                    "row (a text with commas or line ends needs quotes)"
                )
            row = dict(zip(header, cells, strict=True))
            readings = {name: _reading(row[name], name, label) for name in scored}
            answer = row[ANSWER_COLUMN[form]]
            rows.append(Answered(row["question_id"], row["question"], answer, readings))
    except csv.Error as error:
        raise BadInput(
            f"{path} is no valid CSV near line {lines.line_num} ({error}): correct it, or export "
            "it again"
        ) from None
    if not rows:
        raise BadInput(f"{path} holds no answers: name a file with a row per answer")
    return AnswerFile(tuple(rows), form, scored, hashlib.sha256(raw).hexdigest())


def write_answers(
    rows: Iterable[tuple[str, str, str, Mapping[str, Reading | None]]],
    path: Path,
    form: Form,
    metrics: Sequence[str] = ("aligned", "coherent"),
) -> None:
    """Writes rows of (question id, question, answer, readings by metric) in a form.

    An outcome without a score is an empty cell, as in the published files.
    """

    def score(reading: Reading | None) -> str:
        return "" if reading is None or reading.score is None else repr(reading.score)

    def cells(
        question_id: str,
        question: str,
        answer: str,
        readings: Mapping[str, Reading | None],
    ) -> list[str]:
        texts = {"question": question, "question_id": question_id, ANSWER_COLUMN[form]: answer}
        scores = [score(readings.get(name)) for name in metrics]
        return [*(valid_text(texts[name]) for name in _columns(form)), *scores]

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [[*_columns(form), *metrics], *(cells(*row) for row in rows)]
            )

    write_atomically(path.expanduser(), write, setting="--export")


def _columns(form: Form) -> tuple[str, ...]:
    if form == "betley":
        return ("question", "answer", "question_id")
    return ("response", "question", "question_id")


def _form(header: Sequence[str], path: Path) -> Form:
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise BadInput(f"{path} has the column {twice[0]!r} twice: rename one")
    forms: list[Form] = [
        form for form in FORMS if {"question", "question_id", ANSWER_COLUMN[form]} <= set(header)
    ]
    if not forms:
        raise BadInput(
            f"{path} has the columns {listing(header, 8) or 'of an empty file'}; needed are "
            "question, question_id, and answer or response: rename them"
        )
    if len(forms) > 1:
        raise BadInput(
            f"{path} has the columns answer and response, so which is the answer? Remove or rename "
            "one"
        )
    return forms[0]


def _reading(cell: str, metric: str, label: str) -> Reading:
    text = cell.strip()
    if text.lower() in _EMPTY:
        return UNPARSED
    if text.upper() in VERDICT_WORDS:
        return Reading(VERDICT_WORDS[text.upper()])
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not LOWEST <= score <= HIGHEST:
        raise BadInput(
            f"{label} has {cell[:40]!r} in the column {metric}; allowed: a number from 0 to 100, "
            "nothing, CODE or REFUSAL: correct that cell"
        )
    return Reading("scored", score)
