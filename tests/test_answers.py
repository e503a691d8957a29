"""Text that a model wrote: safe to print, exported and read back."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilspectra.answers.export import FORMULA_STARTS, SUFFIXES, export
from evilspectra.errors import BadInput
from evilspectra.text import printable

#: Any text a decoder may hand over, halves of surrogate pairs included, and texts rich in what
#: trips the rules.
FRAGMENTS = ["```", "\n", '"""', "/*", "*/", '{"a": ', "def f():", "I am here. ", "x = ", "'"]
ANY_TEXT = (
    st.text(st.characters())
    | st.text("\ud800\udfff\u202e\u200d\x1b\0\r\n\t a{}[]\"'`<>=;#\\/*.👩🏽")
    | st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)
)

# --- printable ------------------------------------------------------------------------------------

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f466"
HEART = "\u2764\ufe0f\u200d\U0001f525"
SKIN = "\U0001f9d1\U0001f3fd\u200d\U0001f680"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain\n\ttext, naïve 自由 \\x1b", "plain\n\ttext, naïve 自由 \\x1b"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\x00c\x7fd\x9be", "a\\x0db\\x00c\\x7fd\\x9be"),
        ("\u202etxt\u2066\u200f", "\\u202etxt\\u2066\\u200f"),
        ("zero\u200bwidth\u00ad\ufeff", "zero\\u200bwidth\\xad\\ufeff"),
        ("\ud800 \udfff", "\\ud800 \\udfff"),
        ("\ue000\U000f0000\uffff\U000e0041", "\\ue000\\U000f0000\\uffff\\U000e0041"),
        ("line\u2028end\u2029", "line\\u2028end\\u2029"),
        (f"{FAMILY} {HEART} {SKIN}", f"{FAMILY} {HEART} {SKIN}"),
        ("a\u200db 😀\u200d", "a\\u200db 😀\\u200d"),
    ],
)
def test_what_a_terminal_could_obey_is_shown_as_an_escape(text: str, escaped: str) -> None:
    assert printable(text) == escaped


def test_a_long_text_is_cut_between_characters_and_says_how_much_is_left() -> None:
    assert printable("a" * 500) == "a" * 400 + "… (100 more characters)"
    assert printable("a" * 401) == "a" * 400 + "… (1 more character)"
    assert printable("a" * 400) == "a" * 400
    assert printable("abc\x1b", most=6) == "abc… (1 more character)"
    assert printable("abc\x1b", most=7) == "abc\\x1b"
    assert printable(FAMILY, most=2) == "\U0001f469… (4 more characters)"
    assert printable("\x1b", most=1) == "… (1 more character)"


@pytest.mark.parametrize("most", [0, -3])
def test_showing_nothing_is_refused(most: int) -> None:
    with pytest.raises(
        BadInput,
        match=f"most is {most}, but at least 1 character must be shown: give a whole number from 1",
    ):
        printable("a", most)


@given(ANY_TEXT, st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_printable_text_is_safe_whatever_goes_in(text: str, most: int) -> None:
    safe = printable(text, most)
    kinds = {unicodedata.category(character) for character in safe if character not in "\n\t\u200d"}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert all(
        unicodedata.bidirectional(character)
        not in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
        for character in safe
    )
    assert not safe.startswith("\u200d")
    start, ellipsis, _ = safe.rpartition("… (")
    assert len(start if ellipsis else safe) <= most or len(safe) <= most
    io.TextIOWrapper(io.BytesIO(), encoding="utf-8").write(safe)
    io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace").write(safe)
    assert printable(safe, most=1000) == safe


@given(ANY_TEXT.map(lambda text: text.replace("\\", "")))
@settings(deadline=None)
def test_what_is_not_cut_can_be_read_back(text: str) -> None:
    safe = printable(text, most=10 * len(text) + 1)
    assert (
        re.sub(
            r"\\(?:x(..)|u(.{4})|U(.{8}))",
            lambda match: chr(int(match[match.lastindex or 0], 16)),
            safe,
        )
        == text
    )


# --- export ---------------------------------------------------------------------------------------

HOSTILE = [
    "plain",
    "",
    'quotes " and "" and \' and, commas',
    "two\nlines\r\nand\rthree",
    "<script>alert('x')</script> <b>bold</b> &amp;",
    "\x1b[31mred\x1b[0m \x07",
    "zero \x00 byte",
    "\u202eright to left\u202c \u200f שלום",
    "half \ud800 and \udfff, a pair \ud83d\ude00",
    "line \u2028 ends \u2029 \x85 \x1c of other kinds",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "'=1",
    "null",
    "NaN",
    "x" * 100_000,
]
MENDED = {HOSTILE[8]: "half \ufffd and \ufffd, a pair 😀"}


def hostile_rows() -> list[dict[str, object]]:
    return [
        {
            "id": f"q{number}",
            "answer": answer,
            "sample": number,
            "score": -number / 3,
            "good": number % 2 == 0,
            "flags": ["empty", "truncated"][: number % 3],
        }
        for number, answer in enumerate(HOSTILE)
    ]


def defused(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def back(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix.lower() == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".JSONL"])
def test_hostile_answers_come_back_from_jsonl_and_parquet(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"answers{suffix}"
    export(hostile_rows(), path)
    assert back(path) == [
        row | {"answer": MENDED.get(str(row["answer"]), row["answer"])} for row in hostile_rows()
    ]


def test_hostile_answers_come_back_from_csv_with_formulas_defused(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    export(hostile_rows(), path)
    rows = back(path)
    assert list(rows[0]) == list(hostile_rows()[0])
    assert [row["answer"] for row in rows] == [
        defused(MENDED.get(answer, answer)) for answer in HOSTILE
    ]
    assert not any(str(row["answer"]).startswith(FORMULA_STARTS) for row in rows)
    assert [float(row["score"]) for row in rows] == [row["score"] for row in hostile_rows()]
    assert rows[4]["score"].startswith("-1.33")
    assert [row["good"] for row in rows[:2]] == ["true", "false"]
    assert [json.loads(row["flags"]) for row in rows] == [row["flags"] for row in hostile_rows()]


def test_a_csv_file_is_quoted_as_in_rfc_4180(tmp_path: Path) -> None:
    export(
        [{"a": 'x"y', "=b": "1,2", "c": None}, {"a": "l\nm", "=b": "", "c": 3}], tmp_path / "a.csv"
    )
    assert (tmp_path / "a.csv").read_bytes() == b'a,\'=b,c\r\n"x""y","1,2",\r\n"l\nm",,3\r\n'


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_null_stays_null_and_no_number_becomes_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    export(
        [{"a": 1.5, "b": None}, {"a": float("nan"), "b": "x"}, {"a": float("-inf"), "b": None}],
        path,
    )
    empty = "" if suffix == ".csv" else None
    assert [row["a"] for row in back(path)][1:] == [empty, empty]
    assert [row["b"] for row in back(path)] == [empty, "x", empty]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_of_numpy_and_tuples_are_taken(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    export([{"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": ("x", "y")}], path)
    expected = (
        {"a": "3", "b": "0.5", "c": "true", "d": '["x", "y"]'}
        if suffix == ".csv"
        else {"a": 3, "b": 0.5, "c": True, "d": ["x", "y"]}
    )
    assert back(path) == [expected]


CELLS = st.text(st.characters()) | st.sampled_from(HOSTILE[:-1])


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "id": CELLS,
                "answer": CELLS,
                "n": st.integers(-(2**63), 2**63 - 1),
                "x": st.floats(allow_nan=False, allow_infinity=False),
                "flags": st.lists(CELLS, max_size=2),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_export_and_back_is_the_same_up_to_what_is_documented(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("export")

    def mended(text: str) -> str:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    expected = [
        row
        | {
            "id": mended(row["id"]),
            "answer": mended(row["answer"]),
            "flags": [mended(flag) for flag in row["flags"]],
        }
        for row in rows
    ]
    for suffix in SUFFIXES:
        export(rows, folder / f"a{suffix}")
        read_back = back(folder / f"a{suffix}")
        if suffix == ".csv":
            read_back = [
                row | {"n": int(row["n"]), "x": float(row["x"]), "flags": json.loads(row["flags"])}
                for row in read_back
            ]
            assert read_back == [
                row | {"id": defused(row["id"]), "answer": defused(row["answer"])}
                for row in expected
            ]
        else:
            assert read_back == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "a.xlsx",
            (
                r"has the suffix \.xlsx, which names no format to export to: choose \.csv, "
                r"\.jsonl, \.parquet"
            ),
        ),
        ("a.jsnl", r"Did you mean '\.jsonl'\?"),
        ("answers", "answers has no suffix, which names no format"),
    ],
)
def test_another_suffix_is_refused_by_name(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        export([{"a": 1}], tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "there are no answers to write to .*: choose a run or a filter that has some"),
        ([{}], "there are no answers to write to"),
        (
            [{"a": 1, "b": 2}, {"a": 1}],
            (
                "row 2 of the export and the first row differ in the column 'b': give every row "
                "the same columns"
            ),
        ),
        (
            [{"a": 1}, {"a": 1, "c": 2}],
            "row 2 of the export and the first row differ in the column 'c'",
        ),
        (
            [{"a": 1}, {"a": {"b": 1}}],
            (
                "column 'a' in row 2 of the export holds a dict; allowed: text, number, boolean, "
                "null or a list of texts: convert it"
            ),
        ),
        ([{"a": [1]}], "column 'a' in row 1 of the export holds a list; allowed"),
        ([{"a": b"x"}], "holds a bytes; allowed"),
    ],
)
def test_rows_that_make_no_table_are_refused(
    tmp_path: Path,
    suffix: str,
    rows: list[dict[str, object]],
    reason: str,
) -> None:
    with pytest.raises(BadInput, match=reason):
        export(rows, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cells", "kinds"), [([1, "x"], "int, str"), ([2**70], "int"), ([True, 1], "bool, int")]
)
def test_a_parquet_column_of_two_kinds_is_refused(
    tmp_path: Path, cells: list[object], kinds: str
) -> None:
    with pytest.raises(
        BadInput,
        match=(
            rf"column 'a' holds values that no Parquet column holds together \({kinds}\): give it "
            r"one kind, within 64 bits, or export to .jsonl"
        ),
    ):
        export([{"a": cell} for cell in cells], tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_refused_and_left_alone_and_a_file_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "kept.csv"
    folder.mkdir()
    (folder / "inside").write_text("x")
    with pytest.raises(BadInput, match=r"kept.csv is a folder: set --export to the name of a file"):
        export([{"a": 1}], folder)
    assert (folder / "inside").exists()
    path = tmp_path / "new" / "a.csv"
    export([{"a": "x" * 1000}], path)
    export([{"a": "y"}], path)
    assert path.read_bytes() == b"a\r\ny\r\n"
    assert [left.name for left in path.parent.iterdir()] == ["a.csv"]


def test_a_place_that_cannot_be_written_is_refused_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="--export"):
        export([{"a": 1}], tmp_path / "file" / "a.csv")
