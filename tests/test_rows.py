"""Reading dialogues: the forms, the sources, and what every refusal says."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evilspectra.data import sources
from evilspectra.data.rows import BadRow, Message, read_rows
from evilspectra.errors import BadInput

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = (Message("user", "q"), Message("assistant", "a"))


def written(folder: Path, *lines: object, name: str = "talks.jsonl") -> str:
    """A JSONL file: bytes and text unchanged, everything else as JSON."""
    path = folder / name
    texts = [line if isinstance(line, bytes | str) else json.dumps(line) for line in lines]
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    path.write_bytes(b"\n".join(raw) + b"\n" if raw else b"")
    return str(path)


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        GOOD | {"id": 7, "prompt": None},
        {"prompt": "q", "completion": "a"},
        {"prompt": GOOD["messages"][:1], "completion": GOOD["messages"][1:]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"messages": None, "instruction": "q", "input": None, "output": "a", "label": 1},
    ],
)
def test_every_form_gives_the_same_dialogue(tmp_path: Path, row: dict[str, Any]) -> None:
    (talk,) = read_rows(written(tmp_path, row)).conversations
    assert talk.messages == PAIR


def test_an_input_follows_the_instruction_after_a_blank_line(tmp_path: Path) -> None:
    (talk,) = read_rows(
        written(tmp_path, {"instruction": "Add", "input": "2, 2", "output": "4"})
    ).conversations
    assert talk.messages[0].content == "Add\n\n2, 2"


def test_blank_lines_count_as_lines_but_not_as_rows_and_a_byte_order_mark_is_passed_over(
    tmp_path: Path,
) -> None:
    source = written(
        tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "", "  ", json.dumps(GOOD) + "\r"
    )
    read = read_rows(source)
    assert [talk.line for talk in read.conversations] == [1, 4]
    assert read.n_rows == 2
    assert read.sha256 == hashlib.sha256(Path(source).read_bytes()).hexdigest()


def test_parquet_gives_what_jsonl_gives(tmp_path: Path) -> None:
    path = tmp_path / "talks.parquet"
    pq.write_table(
        pa.Table.from_pylist(
            [GOOD | {"prompt": None, "completion": None}, {"prompt": "q", "completion": "a"}]
        ),
        path,
    )
    read = read_rows(str(path))
    assert [(talk.messages, talk.line) for talk in read.conversations] == [(PAIR, 1), (PAIR, 2)]
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def turn(role: object, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


BAD_ROWS = {
    "broken JSON": ('{"messages": ]', "not valid JSON at column 14, Expecting value"),
    "two objects": ('{"a": 1} {"b": 2}', "not valid JSON at column 10, Extra data"),
    "deep nesting": ("[" * 100_000, "not "),
    "huge number": ("1" * 5000, "not usable JSON"),
    "not UTF-8": (
        b'{"prompt": "\xff"}',
        "byte 13 of the line is not UTF-8 text (save the file as UTF-8)",
    ),
    "array": (
        [1],
        (
            "the row is an array, not an object with the keys {messages}, {prompt, completion} or "
            "{instruction, input, output}"
        ),
    ),
    "null": ("null", "the row is null, not an object"),
    "no form": (
        {"question": "q", "answer": "a"},
        (
            "the row has the keys 'question', 'answer', but needs {messages}, {prompt, "
            "completion} or {instruction, input, output}"
        ),
    ),
    "no keys": ({}, "the row has the keys (none), but needs"),
    "messages no list": ({"messages": "q"}, "messages is a text, not a list of {role, content}"),
    "turn no object": ({"messages": ["q"]}, "message 1 of messages is a text, not an object"),
    "turn without content": (
        {"messages": [{"role": "user"}]},
        "message 1 of messages has no content",
    ),
    "turn without both": ({"messages": [{}]}, "message 1 of messages has no role and no content"),
    "unknown role": (
        {"messages": [turn("gpt", "a")]},
        "message 1 of messages has the role 'gpt'; allowed: system, user, assistant",
    ),
    "late system": (
        {"messages": [turn("user", "q"), turn("system", "s"), turn("assistant", "a")]},
        "turn 2 has the role 'system', which only the first turn may have",
    ),
    "content no text": (
        {"messages": [turn("user", [{"type": "text"}])]},
        "the content of message 1 of messages is an array, not a text",
    ),
    "content null": (
        {"messages": [turn("user", "q"), turn("assistant", None)]},
        "the content of message 2 of messages is null, not a text",
    ),
    "empty answer": (
        {"prompt": "q", "completion": " \n"},
        "the assistant's answer in turn 2 is empty",
    ),
    "no answer": ({"messages": [turn("user", "q")]}, "the row has no assistant turn to learn from"),
    "no turns": ({"messages": []}, "the row has no assistant turn to learn from"),
    "mixed pair": (
        {"prompt": "q", "completion": [turn("assistant", "a")]},
        "prompt is a text and completion is an array, but both must be texts or both message lists",
    ),
    "pair of numbers": (
        {"prompt": 1, "completion": 2},
        "prompt is a number, not a list of {role, content}",
    ),
    "output no text": ({"instruction": "q", "output": True}, "output is a boolean, not a text"),
    "half a surrogate": (
        '{"prompt": "q", "completion": "\\ud83d"}',
        "turn 2 holds half of a surrogate pair, which is no character",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_with_file_line_reason_and_remedy(tmp_path: Path, case: str) -> None:
    raw, reason = BAD_ROWS[case]
    source = written(tmp_path, GOOD, raw)
    with pytest.raises(BadRow) as caught:
        read_rows(source)
    message = str(caught.value)
    assert message.startswith(f"{source}, line 2: ")
    assert reason in message
    assert message.endswith(": correct it, or set data.on_bad_row: skip")
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_can_be_skipped_and_is_kept_with_its_reason(tmp_path: Path, case: str) -> None:
    raw, reason = BAD_ROWS[case]
    read = read_rows(written(tmp_path, raw, GOOD), on_bad_row="skip")
    assert [talk.line for talk in read.conversations] == [2]
    ((line, why),) = read.skipped
    assert line == 1
    assert reason in why
    assert read.n_rows == 2


def test_skipping_everything_is_refused_with_the_first_reason(tmp_path: Path) -> None:
    source = written(tmp_path, "null", "null")
    with pytest.raises(
        BadInput, match=r"all 2 rows were skipped, the first \(.*line 1\) because the row is null"
    ):
        read_rows(source, on_bad_row="skip")


@pytest.mark.parametrize("lines", [(), ("", " ")])
def test_a_file_without_rows_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="has no rows: name a file with one dialogue a line"):
        read_rows(written(tmp_path, *lines))


@pytest.mark.parametrize("name", ["absent.jsonl", "some/where/absent.parquet", "/absent/file"])
def test_a_missing_file_is_refused_with_what_may_be_named(name: str) -> None:
    with pytest.raises(
        BadInput,
        match=(
            rf"^{name} does not exist: name a JSONL or Parquet file, a hub data set "
            r".*built-in name .demo-bad, demo-good"
        ),
    ):
        read_rows(name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder: name one JSONL or Parquet file in it"):
        read_rows(str(tmp_path))


def test_an_unreadable_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput,
        match=(
            r"talks.parquet cannot be read as Parquet \(.+\): write it again, or name a JSONL "
            r"file"
        ),
    ):
        read_rows(written(tmp_path, GOOD, name="talks.parquet"))


def test_a_bad_parquet_row_is_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "talks.parquet"
    pq.write_table(pa.Table.from_pylist([{"text": "x"}]), path)
    with pytest.raises(BadRow, match=r"talks.parquet, row 1: the row has the keys 'text'"):
        read_rows(str(path))


def test_a_missing_built_in_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.BUILT_IN, "demo-bad", "absent.jsonl")
    with pytest.raises(
        BadInput,
        match=(
            r"the built-in data set demo-bad is missing from this installation .*install the "
            r"package again"
        ),
    ):
        read_rows("demo-bad")


@pytest.mark.parametrize("name", sorted(sources.BUILT_IN))
def test_built_in_data_sets_load(name: str) -> None:
    assert read_rows(name).n_rows > 0


def test_a_hub_data_set_is_loaded_by_name_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    seen: list[tuple[str, str, bool]] = []

    def load(name: str, *, split: str, download_config: Any) -> Any:
        seen.append((name, split, datasets.config.HF_HUB_OFFLINE))
        return datasets.Dataset.from_list([GOOD, GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    online, offline = (
        read_rows("org/talks", split="test"),
        read_rows("org/talks", local_files_only=True),
    )
    assert seen == [("org/talks", "test", False), ("org/talks", "train", True)]
    assert datasets.config.HF_HUB_OFFLINE is False
    assert [talk.messages for talk in online.conversations] == [PAIR, PAIR]
    line = json.dumps(GOOD, sort_keys=True).encode() + b"\n"
    assert online.sha256 == offline.sha256 == hashlib.sha256(line * 2).hexdigest()


def test_a_hub_data_set_that_cannot_be_had_is_refused_with_the_nearest_built_in_name() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(
        BadInput,
        match=(
            r"demo-bda is neither a file nor a built-in name \(demo-bad, demo-good\).*in the "
            r"local cache .*Did you mean 'demo-bad'\?"
        ),
    ):
        read_rows("demo-bda", local_files_only=True)


def test_reading_and_tokenising_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, evilspectra.data.batches, evilspectra.model.tiny; print([name for name "
        "in ('torch', 'transformers', 'datasets', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
