"""Running sweeps: a failed run stops no other, and what is done is not run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evilspectra.config import sections
from evilspectra.errors import Interrupted
from evilspectra.store.run import Store
from evilspectra.sweeps.file import load_sweep
from evilspectra.sweeps.run import execute
from tests.support.commands import Result, command, left_in, write_config, write_rows
from tests.support.sweep_files import ONE_EACH

#: On the tiny model: the first explodes at its third step, the second cannot move the adapter in
#: single precision.
EXPLODES = {
    "optimizer": {"name": "sgd", "lr": 1.0e4},
    "flatness": {"weight": 1.0e6, "soft_start": 0},
    "train": {"clip_norm": None},
    "schedule": {"name": "constant", "warmup_steps": 0},
    "lora": {"alpha": 65536},
}
FROZEN = {"optimizer": {"name": "adamw", "lr": 1.0e-300}}


def write_sweep(
    folder: Path,
    arms: dict[str, Any],
    steps: int = 2,
    **values: Any,
) -> Path:
    base = yaml.safe_load(write_config(folder, steps).read_text())
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({"experiment": "x", "base": base, "arms": arms} | values, sort_keys=False),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Result]:
    """A sweep of five arms of which two fail, run twice."""
    folder = tmp_path_factory.mktemp("mixed")
    path = write_sweep(
        folder,
        {
            "frozen": FROZEN,
            "sgd": {"optimizer": {"name": "sgd"}},
            "explodes": EXPLODES,
            "lion": {"optimizer": {"name": "lion"}},
            "flat": {"flatness": {"weight": 1}},
        },
        steps=4,
    )
    first = command("sweep", path, "--quiet", "--json")
    return folder, first, command("sweep", path)


def test_a_failed_run_does_not_stop_the_others_and_the_exit_code_says_so(
    mixed: tuple[Path, Result, Result],
) -> None:
    _, first, _ = mixed
    assert first.code == 1
    document = json.loads(first.out)
    assert document["failed"] == 2
    assert [(run["arm"], run["status"]) for run in document["runs"]] == [
        ("adamw", "failed"),
        ("sgd", "done"),
        ("sgd + flatness 1e+06", "failed"),
        ("lion", "done"),
        ("adamw + flatness 1", "done"),
    ]
    lines = first.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("failed: adamw-b2-s0-")
    assert "after 2 steps no B has moved from zero" in lines[0]
    assert lines[1].startswith("failed: sgd-flat-b2-s0-")
    assert "are not finite; lower optimizer.lr (10000), or set train.clip_norm" in lines[1]


def test_run_again_it_skips_what_is_done_and_tries_what_failed(
    mixed: tuple[Path, Result, Result],
) -> None:
    folder, _, second = mixed
    assert second.code == 1
    assert f"5 runs: 0 trained, 3 done before, 2 failed; in {folder}/runs/x\n" in second.out
    assert "[1/5] adamw, lr 1e-300, seed 0\n" in second.err
    assert second.out.count("(failed)") == 2


def test_the_store_holds_every_run_and_no_adapter_of_a_failed_one(
    mixed: tuple[Path, Result, Result],
) -> None:
    folder, _, _ = mixed
    runs = Store(folder / "runs").runs()
    assert {
        run.name.rsplit("-", 1)[0]: run.status().state
        for run in runs
        if run.status().state == "failed"
    } == {"adamw-b2-s0": "failed", "sgd-flat-b2-s0": "failed"}
    assert sum(run.adapter.exists() for run in runs) == 3
    assert not [name for name in left_in(folder / "runs") if name.endswith(".tmp")]


def test_done_runs_cost_nothing_and_exit_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(tmp_path, {"a": {}}, axes={"train.seed": [0, 1]})
    first = command("sweep", path, "--quiet")
    assert first.code == 0
    assert "2 runs: 2 trained, 0 done before, 0 failed" in first.out
    stamps = {
        name: (tmp_path / "runs" / name).stat().st_mtime_ns
        for name in left_in(tmp_path / "runs")
        if not name.endswith(".lock")
    }
    monkeypatch.setattr("evilspectra.training.train._train", None)  # not to be called
    second = command("sweep", path, "--quiet")
    assert second.code == 0
    assert "2 runs: 0 trained, 2 done before, 0 failed" in second.out
    assert {name: (tmp_path / "runs" / name).stat().st_mtime_ns for name in stamps} == stamps


def test_missing_data_of_any_run_is_noticed_before_the_first_starts(tmp_path: Path) -> None:
    path = write_sweep(
        tmp_path,
        {},
        axes={"data.train": [str(tmp_path / "rows.jsonl"), str(tmp_path / "nope.jsonl")]},
    )
    done = command("sweep", path, "--quiet")
    assert done.code == 2
    assert f"{tmp_path}/nope.jsonl does not exist" in done.sentence
    assert not (tmp_path / "runs").exists()


def test_bad_input_that_only_one_run_meets_is_that_run_s_failure(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"wide": {"lora": {"rank": 65}}, "good": {}})
    done = command("sweep", path, "--quiet")
    assert done.code == 1
    assert "2 runs: 1 trained, 0 done before, 1 failed" in done.out
    assert "lora.rank 65 is larger than" in done.err
    assert len(Store(tmp_path / "runs").runs()) == 1


def test_an_interruption_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(config: sections.Config, quiet: bool, loaded: object) -> None:
        seen.append(config.train.seed)
        raise Interrupted("stopped here")

    monkeypatch.setattr("evilspectra.training.train.train", stop)
    loaded = load_sweep(str(write_sweep(tmp_path, {}, axes={"train.seed": [4, 5]})))
    with pytest.raises(Interrupted, match="stopped here"):
        execute(loaded)
    assert seen == [4]


def test_two_names_of_the_same_data_are_one_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "copy.jsonl")
    path = write_sweep(
        tmp_path,
        {},
        axes={"data.train": [str(tmp_path / "rows.jsonl"), str(tmp_path / "copy.jsonl")]},
    )
    done = command("sweep", path, "--quiet")
    assert done.code == 0
    assert "2 runs: 1 trained, 1 done before, 0 failed" in done.out
    assert len(Store(tmp_path / "runs").runs()) == 1


@pytest.mark.parametrize("file", ["tiny", "nope", "."])
def test_what_is_no_sweep_is_refused_by_the_command(file: str, tmp_path: Path) -> None:
    done = command("sweep", file, "--output", tmp_path / "runs")
    assert done.code == 2
    assert (
        "is not a sweep file"
        if file == "tiny"
        else "is neither a file nor a preset; presets: demo, dynamics, initial"
    ) in done.sentence


def test_warnings_are_told_before_the_runs_unless_all_is_to_be_quiet(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"a": {}})
    assert command("sweep", path).err.splitlines()[0] == f"note: {ONE_EACH}"
    assert command("sweep", path, "--quiet").err == ""
