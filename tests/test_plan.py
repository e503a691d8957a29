"""Dry runs: what a sweep will do, what is done, missing, known and unknown.

They need nothing but the sweep's file, and give no number without a source.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evilspectra.data.published import DATA_VARIABLE
from evilspectra.sweeps.file import Sweep, SweepFile, expand, load_sweep
from evilspectra.sweeps.plan import plan
from evilspectra.sweeps.run import execute
from evilspectra.training.identity import locate
from tests.support.commands import command, left_in, write_config, write_rows

HERE = Path.cwd()
PRESETS = {
    "initial": 128,
    "scale": 96,
    "loss-alignment": 72,
    "dynamics": 16,
    "regularisation": 16,
    "mini": 120,
    "demo": 6,
}


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No imported sets, no cache of the hub, no key, and a folder of our own."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)


def small(folder: Path, **values: Any) -> Sweep:
    """A sweep on the tiny model and a file of 24 rows."""
    base = yaml.safe_load(write_config(folder).read_text())
    return expand(SweepFile.model_validate({"experiment": "x", "base": base} | values))


@pytest.mark.parametrize("name", PRESETS)
def test_the_command_lists_every_run_of_a_preset_as_an_object(name: str, tmp_path: Path) -> None:
    done = command("sweep", name, "--dry-run", "--json", "--output", tmp_path / "runs")
    assert done.code == 0
    document = json.loads(done.out)
    assert len(document["runs"]) == document["totals"]["runs"] == PRESETS[name]
    assert len({run["id"] for run in document["runs"]}) == PRESETS[name]
    assert {run["state"] for run in document["runs"]} == {"queued"}
    assert document["totals"]["seconds"] is None
    assert not (tmp_path / "runs").exists()


def test_what_is_missing_is_listed_once_with_the_runs_that_need_it_and_how_to_get_it() -> None:
    planned = plan(load_sweep("initial"))
    assert [(missing.what, missing.name, missing.runs) for missing in planned.missing] == [
        *[
            ("data", "insecure", 32),
            ("model", "Qwen/Qwen3-0.6B", 32),
            ("data", "bad_medical_advice", 32),
            ("data", "risky_financial_advice", 32),
            ("data", "extreme_sports", 32),
        ],
        *[("model", f"Qwen/Qwen3-{size}", 32) for size in ("1.7B", "4B", "8B")],
        *[("questions", "paper", 128), ("key", "OPENAI_API_KEY", 128)],
    ]
    assert "evilspectra data get insecure" in planned.missing[0].why
    assert "put it there" in planned.missing[-2].why
    assert {run.by_name for run in planned.runs} == {("data", "model")}


def test_what_is_known_by_publication_is_counted_and_what_is_not_is_null() -> None:
    planned = plan(load_sweep("initial"))
    first = planned.runs[0]
    assert first.differs == {
        "model.base": "Qwen/Qwen3-0.6B",
        "data.train": "insecure",
        "optimizer.name": "adam",
        "train.batch_size": 2,
    }
    # 6000 rows, a tenth held out
    assert (first.rows, first.steps, first.tokens, first.seconds) == (5400, 2700, None, None)
    assert planned.totals.answers == (128 + 4) * 1420
    assert planned.totals.judge_requests == 2 * (128 + 4) * 1420
    assert (planned.totals.judge_tokens, planned.totals.judge_cost) == (None, None)
    assert any("published number, 142" in text for text in planned.assumptions)


def test_a_name_stands_in_for_a_content_until_it_is_here(tmp_path: Path) -> None:
    absent = tmp_path / "later.jsonl"
    before = plan(small(tmp_path, axes={"data.train": [str(absent), str(tmp_path / "rows.jsonl")]}))
    write_rows(absent, *[{"prompt": "Why?", "completion": "So."}] * 8)
    sweep = small(tmp_path, axes={"data.train": [str(absent), str(tmp_path / "rows.jsonl")]})
    after = plan(sweep)
    assert (before.runs[0].by_name, after.runs[0].by_name) == (("data",), ())
    assert before.runs[0].id != after.runs[0].id
    assert before.runs[1] == after.runs[1]
    assert [run.id for run in after.runs] == [locate(config)[0].name for config in sweep.configs]
    assert (before.missing[0].name, after.missing) == (str(absent), ())


def test_two_absent_names_never_share_an_id(tmp_path: Path) -> None:
    axes = {
        "data.train": ["a.jsonl", "b.jsonl"],
        "model.base": ["./a", "./b"],
        "data.heldout": [None, "c.jsonl"],
    }
    assert len({run.id for run in plan(small(tmp_path, axes=axes)).runs}) == 8


def test_states_speed_and_time_come_from_the_store(tmp_path: Path) -> None:
    execute(small(tmp_path, seeds=2), quiet=True)
    planned = plan(small(tmp_path, seeds=4))
    assert [run.state for run in planned.runs] == ["done", "done", "queued", "queued"]
    assert [run.seconds for run in planned.runs][:2] == [0.0, 0.0]
    left = planned.runs[2]
    steps = [locate(config)[0].read("steps") for config in small(tmp_path, seeds=2).configs]
    speeds = [float(table["tokens"].sum() / table["seconds"].sum()) for table in steps]
    assert left.tokens is not None
    assert left.seconds == pytest.approx(left.tokens / (sum(speeds) / 2))
    report = locate(small(tmp_path).configs[0])[0].provenance()["data"]
    assert left.tokens == round(4 * report["tokens"] / report["used"])  # 2 steps of 2 rows
    assert planned.totals.seconds == pytest.approx(2 * left.seconds)
    assert any("the remaining training" in text for text in planned.assumptions)


def test_another_experiment_of_the_store_lends_its_speed_but_another_store_does_not(
    tmp_path: Path,
) -> None:
    execute(small(tmp_path), quiet=True)
    other = small(
        tmp_path,
        experiment="y",
        base=yaml.safe_load((tmp_path / "run.yaml").read_text())
        | {"output": {"folder": str(tmp_path / "runs"), "experiment": "y"}, "lora": {"rank": 2}},
    )
    assert plan(other).runs[0].seconds is not None
    away = expand(
        SweepFile(experiment="y", base=yaml.safe_load((tmp_path / "run.yaml").read_text())),
        settings=[f"output.folder={tmp_path / 'elsewhere'}"],
    )
    assert plan(away).runs[0].seconds is None
    # the file is here: estimated from its characters, as an assumption says
    assert plan(away).runs[0].tokens is not None
    assert any("estimated at 4.2 characters" in text for text in plan(away).assumptions)


def test_a_damaged_run_lends_nothing_and_stops_nobody(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    execute(sweep, quiet=True)
    (locate(sweep.configs[0])[0].path / "provenance.json").write_text("{")
    assert plan(small(tmp_path, seeds=2)).runs[1].seconds is None


HTTP = {"judge": "openai:m", "url": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("judge", "cost"),
    [
        ({"judge": "scripted:s.yaml"}, 0.0),
        ({"judge": "local:m"}, 0.0),
        (HTTP, None),
        (HTTP | {"price": 2.0}, "tokens"),
    ],
)
def test_a_judge_s_requests_tokens_and_cost(
    tmp_path: Path, judge: dict[str, Any], cost: object
) -> None:
    prompts = {"aligned": "Rate {answer}", "coherent": "Is {question} met by {answer}?"}
    questions = [
        {"id": "a", "paraphrases": ["Why so?"]},
        {"id": "b", "paraphrases": ["How?"], "samples_per_paraphrase": 3},
    ]
    (tmp_path / "q.yaml").write_text(
        yaml.safe_dump(
            [question | {"type": "free_form", "judge_prompts": prompts} for question in questions]
        )
    )
    values = {
        "seeds": 2,
        "evaluate": {"answers": {"questions": str(tmp_path / "q.yaml"), "max_new_tokens": 10}},
        "judge": judge,
    }
    sums = plan(small(tmp_path, **values)).totals
    # 4 answers of two adapters and of one base, under two metrics
    assert (sums.answers, sums.judge_requests) == (12, 24)
    characters = 3 * (4 * len("Rate ") + len("Is Why so? met by ?") + 3 * len("Is How? met by ?"))
    assert sums.judge_tokens == round(characters / 4.2 + 24 * 10)
    assert sums.judge_cost == (sums.judge_tokens * 2 / 1e6 if cost == "tokens" else cost)
    alone = plan(
        small(tmp_path, **values | {"judge": judge | {"no_base": True, "metrics": ["aligned"]}})
    ).totals
    assert (alone.answers, alone.judge_requests) == (12, 8)


def test_answers_at_checkpoints_count_at_each_of_them(tmp_path: Path) -> None:
    base = yaml.safe_load(
        write_config(tmp_path, steps=9, train={"checkpoints": "log:3"}).read_text()
    )
    values = {"base": base, "evaluate": {"answers": {"samples": 1, "checkpoints": True}}}
    # steps 1, 3, 9 and the base
    assert plan(small(tmp_path, **values)).totals.answers == 36 * (3 + 1)
    values["evaluate"]["answers"]["checkpoints"] = False
    assert plan(small(tmp_path, **values)).totals.answers == 36 * 2


def test_items_and_questions_that_are_not_here_are_missing_too(tmp_path: Path) -> None:
    planned = plan(
        small(
            tmp_path,
            evaluate={
                "contrast": "c.jsonl",
                "ordinary": "o.jsonl",
                "answers": {"questions": "q.yaml"},
            },
        )
    )
    assert [(missing.what, missing.name) for missing in planned.missing] == [
        ("questions", "q.yaml"),
        ("items", "c.jsonl"),
        ("items", "o.jsonl"),
    ]
    assert planned.totals.answers is None


def test_the_text_says_it_all_and_cuts_nothing(tmp_path: Path) -> None:
    done = command("sweep", "dynamics", "--dry-run", "--seeds", "2")
    assert done.code == 0
    lines = done.out.splitlines()
    assert sum(line.startswith("muon-b32-s1-") for line in lines) == 4
    assert "…" not in done.out
    assert "bad_medical_advice" in done.out
    assert (
        "32 runs, 0 done; steps 11,288; tokens unknown; training left unknown for 32 of 32 runs"
        in done.out
    )
    assert (
        "missing, for 32 of 32 runs: model Qwen/Qwen3-8B: model.base 'Qwen/Qwen3-8B' is no "
        "folder here"
    ) in done.out
    assert "train.seed" not in next(line for line in lines if line.startswith("in all runs:"))
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("option", "seeds"), [("3", [0, 1, 2]), ("4,9", [4, 9])])
def test_seeds_are_an_option(option: str, seeds: list[int]) -> None:
    document = json.loads(
        command("sweep", "dynamics", "--dry-run", "--json", "--seeds", option).out
    )
    assert [run["differs"]["train.seed"] for run in document["runs"][: len(seeds)]] == seeds
    assert len(document["runs"]) == 16 * len(seeds)
    assert command("sweep", "dynamics", "--dry-run", "--seeds", "none").code == 2


def test_a_dry_run_imports_no_torch_and_opens_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(HERE)
    code = """
import socket, sys
def refuse(*args, **more): sys.exit("a connection was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from evilspectra.cli.main import main
try:
    main(["sweep", "scale", "--dry-run", "--json"])
finally:
    assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 96
