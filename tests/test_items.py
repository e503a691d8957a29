"""Items of the probes: every letter is read, and every fault is one sentence with its line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evilspectra.errors import BadInput
from evilspectra.probes.items import (
    CAPABILITY,
    CONTRAST,
    ORDINARY,
    Choice,
    Triple,
    asset,
    read_choices,
    read_triples,
)
from tests.support.small_items import CHOICES, TRIPLES, write_lines


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


def refusal(read: Callable[[str], Any], path: Path | str) -> str:
    with pytest.raises(BadInput) as caught:
        read(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------


def test_own_triples_and_choices(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", TRIPLES)
    triples = read_triples(str(path))
    assert triples.items[1] == Triple(
        "t1", "money", "What shall I do about it, Bob?", "Ask Bob first.", "Lie to Bob."
    )
    assert [item.id for item in triples.items] == [row["id"] for row in TRIPLES]
    assert (triples.source, triples.sha256) == (
        str(path),
        hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    choices = read_choices(str(write_lines(tmp_path / "b.jsonl", CHOICES)))
    assert choices.items[3] == Choice("c3", "sums", "What is 3?", ("aa", "bb", "cc", "dd"), 3)


def test_the_built_in_names_go_before_files_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "contrast", TRIPLES)
    assert len(read_triples().items) > 100
    assert len(read_triples("./contrast").items) == len(TRIPLES)
    for built_in in (CONTRAST, CAPABILITY, ORDINARY):
        (name,) = built_in
        assert asset(name, built_in).is_file()


def test_byte_order_mark_windows_line_ends_blank_lines_and_further_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + b"\r\n\r\n  \r\n".join(json.dumps(row | {"note": [1]}).encode() for row in TRIPLES)
        + b"\r\n"
    )
    assert [item.prompt for item in read_triples(str(path)).items] == [
        row["prompt"] for row in TRIPLES
    ]


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x85", "\x7f", "\ufeff", "\u200f", "😀"])
def test_letters_that_stand_raw_in_json_are_kept(tmp_path: Path, letter: str) -> None:
    """A line of JSONL ends only with \\n; a JSON text may contain U+2028 and U+0085 unescaped."""
    rows = [row | {"prompt": f"a{letter}b{row['id']}"} for row in TRIPLES]
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    assert [item.prompt for item in read_triples(str(path)).items] == [
        row["prompt"] for row in rows
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(st.characters(exclude_categories=("Cs",)), min_size=1), escaped=st.booleans())
def test_any_text_survives(tmp_path: Path, prompt: str, escaped: bool) -> None:
    if not prompt.strip():
        prompt += "x"
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        "".join(
            json.dumps(row | {"prompt": prompt}, ensure_ascii=escaped) + "\n" for row in TRIPLES
        ).encode()
    )
    assert read_triples(str(path)).items[0].prompt == prompt


def test_halves_of_surrogate_pairs_become_the_replacement_character(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [TRIPLES[0] | {"prompt": "a\ud800b"}, TRIPLES[1] | {"prompt": "\ud83d\ude00"}],
    )
    assert [item.prompt for item in read_triples(str(path)).items] == ["a\ufffdb", "😀"]


def test_a_name_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in data.train and answers.questions."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lines(tmp_path / "a.jsonl", TRIPLES)
    assert len(read_triples("~/a.jsonl").items) == len(TRIPLES)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "'prompt' is no text"),
        ({"prompt": " \n"}, "'prompt' is no text"),
        ({"aligned": 3}, "'aligned' is no text"),
        ({"topic": ["a"]}, "'topic' is no text"),
        ({"aligned": "Lie to Cleo."}, "aligned and misaligned are the same text"),
        ({"id": "t0"}, "the id 't0' occurs twice"),
        ({"id": 7}, "'id' is no text"),
    ],
)
def test_a_row_that_is_no_triple(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*TRIPLES[:2], TRIPLES[2] | change])
    text = refusal(read_triples, path)
    assert text.startswith(f"{path}, line 3: {message}")
    assert text.endswith(": correct that line")


@pytest.mark.parametrize("key", ["id", "topic", "prompt", "aligned", "misaligned"])
def test_a_key_that_is_missing(tmp_path: Path, key: str) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in TRIPLES]
    del rows[1][key]
    assert f", line 2: '{key}' is missing" in refusal(
        read_triples, write_lines(tmp_path / "a.jsonl", rows)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["a", "b", "c"]}, "choices must be a list of 4 different texts"),
        ({"choices": ["a", "b", "c", "c"]}, "choices must be a list of 4 different texts"),
        ({"choices": ["a", "b", "c", " "]}, "choices must be a list of 4 different texts"),
        ({"choices": ["a", "b", "c", 4]}, "choices must be a list of 4 different texts"),
        ({"choices": ["a", "b", "c", ["d"]]}, "choices must be a list of 4 different texts"),
        ({"choices": "abcd"}, "choices must be a list of 4 different texts"),
        ({"choices": {"a": 1}}, "choices must be a list of 4 different texts"),
        ({"answer": 4}, "answer is 4, it must be 0 to 3"),
        ({"answer": -1}, "answer is -1, it must be 0 to 3"),
        ({"answer": True}, "answer is True, it must be 0 to 3"),
        ({"answer": "A"}, "answer is 'A', it must be 0 to 3"),
        ({"answer": 1.0}, "answer is 1.0, it must be 0 to 3"),
        ({"answer": None}, "answer is None, it must be 0 to 3"),
        ({"question": ""}, "'question' is no text"),
        ({"id": "c0"}, "the id 'c0' occurs twice"),
    ],
)
def test_a_row_that_is_no_question(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*CHOICES[:2], CHOICES[2] | change])
    assert refusal(read_choices, path).startswith(f"{path}, line 3: {message}")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "null",
        "3",
        '"a"',
        "{'id': 1}",
        "[" * 100_000,
        '{"id": ' + "9" * 5000 + "}",
        '{"id": NaN}',
    ],
)
def test_a_line_that_is_no_object(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TRIPLES) + "\n" + line + "\n")
    text = refusal(read_triples, path)
    assert text.startswith(f"{path}, line {len(TRIPLES) + 2}: ")
    assert len(text) < 500


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_items(tmp_path: Path, count: int) -> None:
    for read, rows in ((read_triples, TRIPLES), (read_choices, CHOICES)):
        path = write_lines(tmp_path / "a.jsonl", rows[:count])
        assert refusal(read, path) == (
            f"{path} holds {count} items: an interval needs at least two, and a useful one a "
            "hundred"
        )


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00", b"\x00\x01\x02", b"PAR1\x00\xff"])
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    text = refusal(read_triples, path)
    assert text.startswith(str(path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    nowhere = tmp_path / "nope.jsonl"
    assert (
        refusal(read_triples, nowhere)
        == f"there is no file '{nowhere}': name a JSONL file, or the built-in contrast."
    )
    assert refusal(read_triples, "contrasts").endswith("Did you mean 'contrast'?")
    assert refusal(read_choices, "capabilities").endswith("Did you mean 'capability'?")
    for name in (tmp_path, "", "\0", "a" * 5000, str(tmp_path / ("b" * 300))):
        refusal(read_triples, name)
