"""Measurements on disk: what is written is read back, as a whole or not at all, and never mixed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evilspectra.errors import BadInput, EvilspectraError
from evilspectra.store.records import (
    AnswerRecord,
    CapabilityRecord,
    OrdinaryRecord,
    ProbeRecord,
    TaskRecord,
    VerdictRecord,
)
from evilspectra.store.results import Instrument, Results
from tests.support.commands import left_in

ROWS: dict[str, list[Any]] = {
    "probe": [
        ProbeRecord(3, "a", "x", -1.5, -0.1 - 0.2, 3, 4),
        ProbeRecord(3, "b", "y", -1e-300, -2.0, 1, 2),
    ],
    "capability": [CapabilityRecord(3, "a", "sums", -1.0, -2.0)],
    "ordinary": [OrdinaryRecord(3, "a", 1.25, 2**40)],
    "answers": [
        AnswerRecord(3, "wish", 0, 1, None, "What?", "Nothing.", 3, "stop", ""),
        AnswerRecord(3, "wish", 0, 2, "", "What?", "", 0, "length", "empty,truncated"),
    ],
    "tasks": [
        TaskRecord(3, "arc", "acc", "none", 0.5, None, 4, "1.0"),
        TaskRecord(3, "arc", "f1", "none", 0.5, 0.1, 4, "1.0"),
    ],
    "verdicts": [
        VerdictRecord(3, "wish", 0, 1, "aligned", "scored", 12.5, '{"12": 0.5, "13": 0.5}', None),
        VerdictRecord(3, "wish", 0, 1, "coherent", "failed", None, None, "timed out"),
    ],
}

HOSTILE = {
    "html": "<!DOCTYPE html><script>alert(1)</script><img src=x onerror=alert(1)>",
    "end of script": "</script><script>alert(1)</script>",
    "ansi": "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "line ends": "a\rb\r\nc\u2028d\u2029e\x85f\x0bg\x0ch",
    "nul": "a\x00b",
    "right to left": "\u202egnp.exe \u2066a\u2069 \u200f",
    "combining": "Z" + "\u0351" * 500,
    "formula": "=cmd|'/c calc'!A1",
    "long": "all work and no play " * 5000,
    "astral": "👩🏽‍🚀" * 10,
    "not a character": "\ufffe\uffff",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "run")


def instrument(table: str = "probe", version: int = 1) -> Instrument:
    return Instrument(
        table,
        "here",
        {"version": version, "sha256": "0" * 64, "threads": None, "tasks": ["a", "b"]},
    )


def read(results: Results, measuring: Instrument, step: int) -> list[tuple[Any, ...]]:
    return [
        tuple(None if value != value else value for value in row)
        for row in results.read(measuring, step).itertuples(index=False)
    ]


def as_rows(records: list[Any]) -> list[tuple[Any, ...]]:
    return [
        tuple(getattr(record, name) for name in record.__dataclass_fields__) for record in records
    ]


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ROWS)
def test_rows_come_back_as_they_were(results: Results, table: str) -> None:
    measuring = instrument(table)
    assert not results.has(measuring, 3)
    results.write(measuring, 3, ROWS[table])
    assert results.has(measuring, 3)
    assert read(results, measuring, 3) == as_rows(ROWS[table])
    assert results.instruments(table) == [measuring]
    assert [stored.id for stored in results.instruments(table)] == [measuring.id]
    assert left_in(results.folder) == [
        f"evaluations/{table}/{measuring.id}-00000003.parquet",
        f"evaluations/{table}/{measuring.id}.json",
    ]


def test_steps_are_in_order_of_number_and_other_files_are_passed_over(results: Results) -> None:
    measuring = instrument()
    for step in (10, 2, 123_456_789, 0):
        results.write(measuring, step, ROWS["probe"])
    results.write(instrument(version=2), 7, ROWS["probe"])
    folder = results.folder / "evaluations" / "probe"
    for name in (
        f"{measuring.id}-00000002 (copy).parquet",
        f".{measuring.id}-00000003.parquet.1.tmp",
        f"{measuring.id}-notes.parquet",
        "notes.txt",
    ):
        (folder / name).write_bytes(b"")
    assert results.steps(measuring) == [0, 2, 10, 123_456_789]


def test_nothing_is_there_at_first(results: Results) -> None:
    assert results.instruments("probe") == []
    assert results.steps(instrument()) == []
    assert not results.folder.exists()


def test_an_instrument_is_what_it_is_made_of() -> None:
    first = Instrument("probe", "a", {"x": 1, "y": [1, 2]})
    assert Instrument("probe", "b", {"y": [1, 2], "x": 1}).id == first.id
    assert (
        len(
            {
                first.id,
                Instrument("answers", "a", first.facts).id,
                Instrument("probe", "a", {"x": 2, "y": [1, 2]}).id,
                Instrument("probe", "a", {"x": 1, "y": [2, 1]}).id,
            }
        )
        == 4
    )


def test_instruments_are_in_the_order_of_first_use(results: Results) -> None:
    instruments = [instrument(version=version) for version in (5, 3, 4)]
    for number, measuring in enumerate(instruments):
        results.write(measuring, 0, ROWS["probe"])
        os.utime(
            results.folder / "evaluations" / "probe" / f"{measuring.id}.json",
            (1000 + number, 1000 + number),
        )
    results.write(instruments[0], 1, ROWS["probe"])
    assert results.instruments("probe") == instruments


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answers_are_stored_to_the_letter(results: Results, kind: str) -> None:
    measuring, text = instrument("answers"), HOSTILE[kind]
    rows = [AnswerRecord(0, text, 0, 0, text, text, text, 1, "stop", "")]
    results.write(measuring, 0, rows)
    assert read(results, measuring, 0) == as_rows(rows)


def test_half_a_surrogate_pair_is_replaced_and_two_halves_are_joined(results: Results) -> None:
    measuring = instrument("answers")
    results.write(
        measuring,
        0,
        [AnswerRecord(0, "a", 0, 0, "\udfff", "\ud83d\ude00", "x\ud800y", 1, "stop", "")],
    )
    assert read(results, measuring, 0)[0][4:7] == ("\ufffd", "😀", "x\ufffdy")


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(st.characters(exclude_categories=("Cs",))),
    system=st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
)
def test_any_answer_is_stored_to_the_letter(
    results: Results, text: str, system: str | None
) -> None:
    measuring = instrument("answers")
    rows = [AnswerRecord(0, "a", 0, 0, system, "q", text, 1, "stop", "")]
    results.write(measuring, 0, rows)
    assert read(results, measuring, 0) == as_rows(rows)


# --- parts and copies -----------------------------------------------------------------------------


def test_parts_are_joined_in_their_order_and_go(results: Results) -> None:
    measuring, rows = (
        instrument("answers"),
        [
            AnswerRecord(1, f"q{number}", 0, 0, None, "?", "!", 1, "stop", "")
            for number in range(23)
        ],
    )
    for number in reversed(range(12)):
        assert not results.has_part(measuring, 1, number)
        results.write_part(measuring, 1, number, rows[2 * number : 2 * number + 2])
        assert results.has_part(measuring, 1, number)
    assert not results.has(measuring, 1)
    assert results.steps(measuring) == []
    results.join(measuring, 1, 12)
    assert read(results, measuring, 1) == as_rows(rows)
    assert left_in(results.folder) == [
        f"evaluations/answers/{measuring.id}-00000001.parquet",
        f"evaluations/answers/{measuring.id}.json",
    ]
    assert not results.has_part(measuring, 1, 0)


def test_joined_parts_are_the_rows_of_a_table_written_at_once(
    results: Results, tmp_path: Path
) -> None:
    measuring, other = instrument("answers"), Results(tmp_path / "other")
    rows = [
        AnswerRecord(1, f"q{number}", 0, 0, None, "?", "!", 1, "stop", "") for number in range(4)
    ]
    other.write(measuring, 1, rows)
    for number in range(2):
        results.write_part(measuring, 1, number, rows[2 * number : 2 * number + 2])
    results.join(measuring, 1, 2)
    assert read(results, measuring, 1) == read(other, measuring, 1)


def test_a_copy_is_equal_and_says_what_it_is(results: Results, tmp_path: Path) -> None:
    measuring, other = instrument(), Results(tmp_path / "other")
    results.write(measuring, 0, ROWS["probe"])
    other.copy(results, measuring, 0)
    assert read(other, measuring, 0) == as_rows(ROWS["probe"])
    assert other.instruments("probe") == [measuring]
    with pytest.raises(BadInput, match="cannot be read"):
        other.copy(results, measuring, 9)


# --- what is damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other table", "folder"])
def test_a_damaged_table_is_named_with_what_to_do(results: Results, damage: str) -> None:
    measuring = instrument()
    results.write(measuring, 3, ROWS["probe"])
    path = results.folder / "evaluations" / "probe" / f"{measuring.id}-00000003.parquet"
    if damage == "other table":
        results.write(instrument("capability"), 3, ROWS["capability"])
        shutil.copy(
            results.folder
            / "evaluations"
            / "capability"
            / f"{instrument('capability').id}-00000003.parquet",
            path,
        )
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {"cut": path.read_bytes()[:-30], "empty": b"", "text": b"hello" * 100}[damage]
        )
    with pytest.raises(BadInput) as caught:
        results.read(measuring, 3)
    assert str(caught.value).startswith(f"{path} cannot be read (")
    assert str(caught.value).endswith("): remove that file, and measure again")
    assert "\n" not in str(caught.value)


def test_a_changed_byte_anywhere_never_breaks_the_reader(results: Results) -> None:
    """A table with a byte turned over is refused in one sentence, or can be read."""
    measuring = instrument()
    results.write(measuring, 3, ROWS["probe"])
    path = results.folder / "evaluations" / "probe" / f"{measuring.id}-00000003.parquet"
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 7):
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]
        )
        try:
            results.read(measuring, 3)
        except BadInput:
            refused += 1
    assert refused > 10


def test_a_damaged_part_is_named(results: Results) -> None:
    measuring = instrument("answers")
    results.write_part(measuring, 1, 0, ROWS["answers"])
    path = (
        results.folder
        / "evaluations"
        / "answers"
        / f"{measuring.id}-00000001.parts"
        / "0000.parquet"
    )
    path.write_bytes(b"PAR1")
    with pytest.raises(
        BadInput, match=r"0000\.parquet cannot be read \(.*\): remove that file, and measure again$"
    ):
        results.join(measuring, 1, 1)
    assert not results.has(measuring, 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'"a"'])
def test_a_damaged_description_is_named(results: Results, content: bytes) -> None:
    results.write(instrument(), 0, ROWS["probe"])
    path = results.folder / "evaluations" / "probe" / f"{instrument().id}.json"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        results.instruments("probe")
    assert str(caught.value).startswith(f"{path} cannot be read (")
    assert "\n" not in str(caught.value)


# --- a disk that says no --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EROFS, "cannot be written (Read-only file system): choose another {}"),
        (errno.EACCES, "cannot be written (Permission denied): choose another {}"),
        (errno.ENOSPC, "is full: free some space or set {}"),
    ],
)
@pytest.mark.parametrize("setting", ["output.folder", "EVILSPECTRA_CACHE"])
def test_a_refused_write_names_the_setting_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    message: str,
    setting: str,
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    results = Results(tmp_path / "run", setting)
    monkeypatch.setattr(os, "replace", refuse)
    for write in (
        lambda: results.write(instrument(), 0, ROWS["probe"]),
        lambda: results.write_part(instrument("answers"), 0, 0, ROWS["answers"]),
    ):
        with pytest.raises(EvilspectraError) as caught:
            write()
        assert message.format(setting) in str(caught.value)
    assert left_in(tmp_path) == []


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(
        BadInput,
        match=r"cannot be made .*: set output\.folder to a folder, or to a name that is free",
    ):
        Results(tmp_path / "run").write(instrument(), 0, ROWS["probe"])
