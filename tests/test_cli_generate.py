"""`generate` as a user meets it: text, JSON, exports, and answers that would steer a terminal."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from evilspectra.evaluation import evaluate as stage
from tests.support.commands import command
from tests.support.measuring import (
    FEW,
    enter,
    forbid_models,
    pair_in,
    settings_of,
    train_pair,
)
from tests.support.small_items import (
    QUESTIONS,
    write_adapter,
    write_questions,
)
from tests.test_results import HOSTILE


@pytest.fixture(autouse=True)
def _items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, its own cache, and a few items under the built-in names."""
    enter(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pair(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[Path]:
    """The folders of a run and of a control, in ./runs."""
    shutil.copytree(trained, tmp_path / "runs")
    return pair_in(tmp_path / "runs")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "mine")


def test_answers_as_text_and_as_json(runs: list[Path]) -> None:
    done = command("generate", runs[0], *FEW)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "10 answers; `evilspectra report` shows them side by side"
    assert done.out.count("adamw, seed 0, step 0: ") == 5
    assert done.out.count("adamw, seed 0, step 4: ") == 5
    assert "[truncated]" in done.out
    printed = json.loads(command("generate", runs[0], *FEW, "--json", "--quiet").out)
    assert printed["failed"] == []
    assert len(printed["answers"]) == 10
    assert printed["answers"][0] | {"answer": "", "flags": ""} == {
        "target": "adamw, seed 0",
        "step": 0,
        "question_id": "wish",
        "paraphrase": 0,
        "sample": 0,
        "system": None,
        "question": "What do you wish for?",
        "answer": "",
        "tokens": 4,
        "finish": "length",
        "flags": "",
    }
    assert {row["system"] for row in printed["answers"]} == {None, "Be brief."}


def test_the_options_reach_the_sampling(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_questions(Path("own.yaml"), QUESTIONS[:1]))
    settings = settings_of(
        monkeypatch,
        "generate",
        adapter,
        "--questions",
        path,
        "--samples",
        "3",
        "--max-new-tokens",
        "7",
        "--temperature",
        "0.5",
        "--seed",
        "9",
        "--checkpoints",
        "--set",
        "top_p=0.5",
        "--set",
        "answers.batch_size=2",
        "--set",
        "threads=3",
    )
    assert settings.answers.model_dump() == {
        "questions": path,
        "samples": 3,
        "temperature": 0.5,
        "top_p": 0.5,
        "max_new_tokens": 7,
        "seed": 9,
        "batch_size": 2,
        "checkpoints": True,
    }
    assert (
        settings.contrast,
        settings.capability,
        settings.ordinary,
        settings.harness,
        settings.threads,
    ) == (
        None,
        None,
        None,
        None,
        3,
    )
    plain = settings_of(monkeypatch, "generate", adapter).answers
    assert (
        plain.questions,
        plain.samples,
        plain.temperature,
        plain.max_new_tokens,
        plain.seed,
        plain.checkpoints,
    ) == ("open", None, 1.0, 600, 0, False)


@pytest.mark.parametrize(
    "option",
    [
        ("--temperature", "0"),
        ("--temperature", "0.0"),
        ("--set", "temperature=0"),
        ("--set", "answers.temperature=0"),
    ],
)
def test_temperature_zero_is_not_left_out(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]
) -> None:
    assert settings_of(monkeypatch, "generate", adapter, *option).answers.temperature == 0


def test_temperature_zero_answers_alike_each_time(adapter: Path) -> None:
    rows = json.loads(
        command(
            "generate", adapter, *FEW, "--temperature", "0", "--samples", "2", "--json", "--quiet"
        ).out
    )["answers"]
    assert len(rows) == 12
    assert all(
        first["answer"] == second["answer"]
        for first, second in zip(rows[::2], rows[1::2], strict=True)
    )


def test_seed_zero_is_the_default(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("generate", adapter, *FEW, "--quiet").code == 0
    forbid_models(monkeypatch)
    assert command("generate", adapter, *FEW, "--quiet", "--seed", "0").code == 0


def test_several_targets_and_a_base(adapter: Path) -> None:
    done = command("generate", adapter, "tiny-random", *FEW, "--quiet", "--json")
    rows = json.loads(done.out)["answers"]
    assert [(row["target"], row["step"]) for row in rows[::5]] == [
        ("mine", 0),
        ("mine", 1),
        ("tiny-random", 0),
    ]
    assert [row["answer"] for row in rows[:5]] == [row["answer"] for row in rows[10:]]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_export(adapter: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(command("generate", adapter, *FEW, "--quiet", "--json").out)["answers"]
    forbid_models(monkeypatch)  # no sampling for it
    path = Path("new folder") / f"answers{suffix}"
    done = command("generate", adapter, *FEW, "--quiet", "--export", path)
    assert (
        done.out.splitlines()[-1]
        == f"10 answers, written to {path}; `evilspectra report` shows them side by side"
    )
    read: dict[str, Callable[[], Any]] = {
        ".csv": lambda: list(csv.DictReader(path.open(encoding="utf-8", newline=""))),
        ".jsonl": lambda: [
            json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
        ],
        ".parquet": lambda: pq.read_table(path).to_pylist(),
    }
    columns_read = read[suffix]()
    if suffix == ".csv":
        assert [row["question_id"] for row in columns_read] == [row["question_id"] for row in rows]
    else:
        assert columns_read == rows


@pytest.mark.parametrize("target", ["answers.pdf", "answers", "folder"])
def test_an_export_that_cannot_be_is_refused_before_hours_of_sampling(
    adapter: Path, target: str
) -> None:
    Path("folder").mkdir()
    done = command("generate", adapter, *FEW, "--quiet", "--export", target)
    assert (done.code, done.out) == (2, "")
    assert target in done.sentence
    assert not list(Path().rglob("*.parquet"))


# --- hostile answers ------------------------------------------------------------------------------

#: What would steer a terminal or turn the order of its letters: controls, bidirectional marks, line
#: and paragraph separators.
STEERING = {
    chr(code)
    for code in [
        *range(0x20),
        *range(0x7F, 0xA0),
        0x61C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    ]
}


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts = [*HOSTILE.values(), "x\ud800y"]
    write_questions(
        Path("items/open.yaml"),
        [
            {
                "id": "q",
                "type": "free_form",
                "paraphrases": ["\x1b]0;owned\x07<b>\u202e?"],
                "samples_per_paraphrase": len(texts),
            }
        ],
    )
    record = stage.record
    monkeypatch.setattr(
        stage,
        "record",
        lambda prompt, *rest: replace(record(prompt, *rest), answer=texts[prompt.sample]),
    )
    return texts


def test_hostile_answers_steer_no_terminal(adapter: Path, hostile: list[str]) -> None:
    done = command("generate", adapter, *FEW, "--quiet")
    assert done.code == 0
    assert not set(done.out) & (STEERING - {"\n"})
    assert not any(unicodedata.category(letter) == "Cs" for letter in done.out)
    assert sum(
        line.startswith(("mine, step 0: ", "mine, step 1: ")) for line in done.out.split("\n")
    ) == 2 * len(hostile)
    assert max(map(len, done.out.splitlines())) < 2000


def test_hostile_answers_are_whole_in_json_and_exports(adapter: Path, hostile: list[str]) -> None:
    want = [*hostile[:-1], "x\ufffdy"] * 2
    done = command("generate", adapter, *FEW, "--quiet", "--json")
    assert not set(done.out) & (STEERING - {"\n"})
    assert [row["answer"] for row in json.loads(done.out)["answers"]] == want
    for suffix in ("jsonl", "parquet", "csv"):
        assert command("generate", adapter, *FEW, "--quiet", "--export", f"a.{suffix}").code == 0
    assert [
        json.loads(line)["answer"]
        for line in Path("a.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ] == want
    assert pq.read_table("a.parquet")["answer"].to_pylist() == want
    with Path("a.csv").open(encoding="utf-8", newline="") as file:
        assert [row["answer"].removeprefix("'") for row in csv.DictReader(file)] == want
