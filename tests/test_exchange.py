"""CSV files of answers, read and written: both forms, and every text to the letter.

Every file that cannot be used is refused in one sentence.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evilspectra.errors import BadInput
from evilspectra.judging.csv_files import FORMS, Form, read_answers, write_answers
from evilspectra.judging.reading import UNPARSED
from evilspectra.rates.definitions import score
from evilspectra.rates.outcome import Reading
from tests.support.published import published_path
from tests.test_results import HOSTILE

HEADS = {
    "betley": ["question", "answer", "question_id", "aligned", "coherent"],
    "turner": ["response", "question", "question_id", "aligned", "coherent"],
}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "answers.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_has_the_published_columns_and_is_read_back(
    tmp_path: Path, form: Form
) -> None:
    rows = [
        (
            name,
            "What?",
            text,
            {"aligned": Reading("scored", 0.1 + 0.2), "coherent": Reading("scored", 100.0)},
        )
        for name, text in HOSTILE.items()
    ]
    path = tmp_path / "out.csv"
    write_answers(rows, path, form)
    with path.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == HEADS[form]
    back = read_answers(path)
    assert back.form == form
    assert back.metrics == ("aligned", "coherent")
    assert [(row.question_id, row.question, row.answer, row.readings) for row in back.rows] == rows


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@given(
    st.lists(
        st.tuples(
            TEXTS.filter(bool),
            TEXTS,
            TEXTS,
            st.none() | st.floats(0, 100),
            st.none() | st.floats(0, 100),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(FORMS),
)
def test_any_text_and_score_survives(
    tmp_path_factory: pytest.TempPathFactory, rows: list, form: Form
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    given_rows = [
        (
            name,
            question,
            answer,
            {
                metric: UNPARSED if value is None else Reading("scored", value)
                for metric, value in (("aligned", aligned), ("coherent", coherent))
            },
        )
        for name, question, answer, aligned, coherent in rows
    ]
    write_answers(given_rows, path, form)
    assert [
        (row.question_id, row.question, row.answer, row.readings) for row in read_answers(path).rows
    ] == given_rows


def test_other_metrics_go_in_and_out(tmp_path: Path) -> None:
    path = written(
        tmp_path, "response,question,question_id,aligned,coherent,financial\nSo.,Why?,why,1,2,3\n"
    )
    file = read_answers(path, ("financial", "medical"))
    assert file.metrics == ("financial",)
    write_answers([("why", "Why?", "So.", file.rows[0].readings)], path, "turner", ("financial",))
    assert path.read_text() == "response,question,question_id,financial\nSo.,Why?,why,3.0\n"


@pytest.mark.parametrize(
    ("cell", "reading"),
    [
        ("", UNPARSED),
        ("nan", UNPARSED),
        (" None ", UNPARSED),
        ("null", UNPARSED),
        ("CODE", Reading("code")),
        ("refusal", Reading("refusal")),
        ("0", Reading("scored", 0.0)),
        ("1e2", Reading("scored", 100.0)),
    ],
)
def test_cells_of_a_metric(tmp_path: Path, cell: str, reading: Reading) -> None:
    path = written(
        tmp_path,
        f"\ufeffquestion,answer,question_id,aligned,coherent\r\nWhy?,So.,why,{cell},50\r\n\r\n",
    )
    assert read_answers(path).rows[0].readings == {
        "aligned": reading,
        "coherent": Reading("scored", 50.0),
    }


HEAD = "question,answer,question_id,aligned,coherent\n"
REFUSED = {
    "too large": (
        HEAD + "a,b,c,101,1\n",
        (
            "row 1 has '101' in the column aligned; allowed: a number from 0 to 100, nothing, "
            "CODE or REFUSAL: correct that cell"
        ),
    ),
    "negative": (HEAD + "a,b,c,1,1\na,b,c,1,-0.1\n", "row 2 has '-0.1' in the column coherent"),
    "infinite": (HEAD + "a,b,c,inf,1\n", "row 1 has 'inf'"),
    "words": (HEAD + "a,b,c,high,1\n", "row 1 has 'high'"),
    "short row": (HEAD + "a,b\n", "row 1 has 2 cells and the header 5: correct that row"),
    "long row": (HEAD + "a,b,c,1,2,3\n", "row 1 has 6 cells and the header 5"),
    "open quote": (HEAD + 'a,"b\n', "is no valid CSV near line 2"),
    "no rows": (HEAD, "holds no answers"),
    "empty": (
        "",
        (
            "has the columns of an empty file; needed are question, question_id, and answer or "
            "response"
        ),
    ),
    "other columns": (
        "prompt,completion\na,b\n",
        (
            "has the columns prompt, completion; needed are question, question_id, and answer or "
            "response: rename them"
        ),
    ),
    "two answers": ("question,question_id,answer,response\na,b,c,d\n", "which is the answer?"),
    "twice": (
        "question,question_id,answer,answer\na,b,c,d\n",
        "has the column 'answer' twice: rename one",
    ),
    "not text": (b"\xff\xfe\x00", "is not UTF-8 text (byte 1): save it as UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    text, reason = REFUSED[case]
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        read_answers(path)
    assert str(caught.value).startswith(str(path))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.csv", "No such file"), (tmp_path, "directory")):
        with pytest.raises(
            BadInput, match=rf"cannot be read \(.*{reason}.*\): name a CSV file of answers"
        ):
            read_answers(path)


def test_published_files_are_read_whole_and_survive_the_way_through_the_other_form(
    tmp_path: Path,
) -> None:
    files = sorted(published_path("golden/responses").glob("*.csv"))
    assert files
    for path in files[:4]:
        first = read_answers(path)
        assert (first.form, len(first.rows)) == ("turner", 400)
        write_answers(
            [(row.question_id, row.question, row.answer, row.readings) for row in first.rows],
            tmp_path / "b.csv",
            "betley",
        )
        second = read_answers(tmp_path / "b.csv")
        assert second.form == "betley"
        assert second.rows == first.rows
        assert score([row.judged() for row in first.rows], "spectra") == score(
            [row.judged() for row in second.rows], "spectra"
        )
