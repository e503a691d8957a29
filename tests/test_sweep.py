"""Sweeps: every combination once, in order; what is wrong refused before anything runs; what is done not run again."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Result, command, left_in, write_config, write_rows
from hypothesis import given
from hypothesis import strategies as st

from evilspectra import config as configs
from evilspectra.errors import BadInput, Interrupted
from evilspectra.settings import presets, read_mapping
from evilspectra.store import Store
from evilspectra.sweep import Sweep, SweepFile, execute, expand, experiment_folder, load_sweep

ARMS: dict[str, Any] = {"a": {"optimizer": {"name": "adamw", "lr": 0.1}}, "b": {"optimizer": {"name": "lion"}}, "c": None}


def sweep(**values: Any) -> Sweep:
    return expand(SweepFile.model_validate({"experiment": "x"} | values))


def refusal(values: Any, tmp_path: Path, *settings: str) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump({"experiment": "x"} | values), encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        load_sweep(str(path), settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


# --- expansion --------------------------------------------------------------------------------------------------------

AXES = {"train.seed": st.integers(0, 99), "optimizer.lr": st.floats(1e-6, 1), "lora.rank": st.integers(1, 64), "flatness.weight": st.floats(0, 9), "train.checkpoints": st.sampled_from([[1], [2, 3], "log:3"])}


@given(st.fixed_dictionaries({}, optional={path: st.lists(values, min_size=1, max_size=3, unique_by=repr) for path, values in AXES.items()}), st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True))
def test_a_sweep_is_the_product_of_its_arms_and_axes_in_order(axes: dict[str, list[Any]], arms: list[str]) -> None:
    found = sweep(axes=axes, arms={label: ARMS[label] for label in arms}).configs
    cells = list(itertools.product([ARMS[label] for label in arms] or [{}], *axes.values()))
    assert len(found) == len(cells) == max(1, len(arms)) * math.prod(map(len, axes.values()))
    for config, (arm, *values) in zip(found, cells, strict=True):
        shown = config.model_dump(mode="json")
        assert {f"{path}": shown[path.split(".")[0]][path.split(".")[1]] for path in axes} == dict(zip(axes, values, strict=True))
        assert config.optimizer.name == arm.get("optimizer", {}).get("name", "adamw")
    assert found == sweep(axes=axes, arms={label: ARMS[label] for label in arms}).configs


def test_an_arm_lies_over_the_base_an_axis_over_the_arm_and_a_setting_over_all() -> None:
    file = SweepFile(experiment="x", base={"optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.3}, "train": {"steps": 1}}, arms={"a": {"optimizer": {"lr": 0.2}}}, axes={"optimizer.eps": [1e-6]})
    (config,) = expand(file, settings=["train.steps=5", "optimizer.lr=0.4"]).configs
    assert config.optimizer == configs.AdamW(lr=0.4, weight_decay=0.3, eps=1e-6)
    assert config.train.steps == 5
    assert config.output.experiment == "x"


def test_axes_of_an_optimizer_and_its_field_need_no_order() -> None:
    for axes in ({"optimizer.lr": [0.1, 0.2], "optimizer.name": ["lion", "sgd"]}, {"optimizer.name": ["lion", "sgd"], "optimizer.lr": [0.1, 0.2]}):
        assert {(config.optimizer.name, config.optimizer.lr) for config in sweep(axes=axes).configs} == {("lion", 0.1), ("lion", 0.2), ("sgd", 0.1), ("sgd", 0.2)}


def test_an_axis_may_be_a_whole_section_or_empty_values() -> None:
    found = sweep(axes={"optimizer": [{"name": "sgd", "lr": 3}, {"name": "muon"}], "train.clip_norm": [None, 1]}).configs
    assert [(config.optimizer.name, config.train.clip_norm) for config in found] == [("sgd", None), ("sgd", 1.0), ("muon", None), ("muon", 1.0)]


def test_settings_and_base_may_name_the_store_and_the_experiment(tmp_path: Path) -> None:
    file = SweepFile(experiment="x", base={"output": {"folder": "a"}})
    assert experiment_folder(expand(file)) == Path("a/x")
    assert experiment_folder(expand(file, settings=["output.folder=b", "output.experiment=y"])) == Path("b/y")


@pytest.mark.parametrize("name", [name for name, path in presets().items() if "experiment" in read_mapping(path)])
def test_every_preset_that_is_a_sweep_expands(name: str) -> None:
    assert len({configs.identity(config, config.data.train, config.model.base) for config in load_sweep(name).configs}) == len(load_sweep(name).configs) > 1


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"axes": {"train.seed": []}}, ["axis 'train.seed' has no values: list some, or remove it"]),
        ({"axes": {"trian.seed": [1]}}, ["axis 'trian.seed' names no setting; settings begin with model, data", "Did you mean 'train'?"]),
        ({"axes": {"": [1]}}, ["axis '' names no setting"]),
        ({"axes": {"train.sead": [1]}}, ["axis 'train.sead' names no setting: 'sead' is not a field of train; allowed: epochs, steps", "'seed'?"]),
        ({"axes": {"train.steps": [1, -1]}}, ["(train.steps=-1)", "train.steps = -1 is refused"]),
        ({"axes": {"output.folder": ["a", "b"]}}, ["axis 'output.folder' is about where results go, which does not make another run: remove it"]),
        ({"axes": {"output": [{}]}}, ["axis 'output' is about where results go"]),
        ({"arms": {"a": {"output": {"folder": "b"}}}}, ["arm 'a' sets where results go", "move its 'output' to 'base', or remove it"]),
        ({"axes": {"train.seed": [1, 1]}}, ["train.seed=1 is the same run as train.seed=1: remove one"]),
        ({"axes": {"optimizer.lr": [0.1, "1e-1"]}}, ["optimizer.lr=1e-1 is the same run as optimizer.lr=0.1"]),
        ({"axes": {"train.resume_every": [1, 2]}}, ["train.resume_every=2 is the same run as train.resume_every=1"]),
        ({"arms": {"a": {}, "b": None}}, ["arm b is the same run as arm a: remove one"]),
        ({"arms": {"a": {"lora": {"rnk": 1}}}}, ["(arm a)", "'rnk' is not a field of lora", "'rank'?"]),
        ({"axes": {"train.seed": list(range(400)), "data.seed": list(range(400))}}, ["expands to 160,000 runs; at most 100,000 are allowed: shorten an axis"]),
        ({"axis": {}}, ["is no sweep file: 'axis' is not a field of it; allowed: from, experiment, base, arms, axes, zip, exclude, overrides, seeds, evaluate, judge.", "Did you mean 'axes'?"]),
        ({"experiment": "a/b"}, ["is no sweep file: experiment"]),
        ({"experiment": None}, ["is no sweep file: experiment"]),
        ({"axes": {"train.seed": 3}}, ["is no sweep file: axes.train.seed"]),
        ({"axes": [1]}, ["is no sweep file: axes"]),
        ({"arms": {"a": 3}}, ["is no sweep file: arms.a"]),
        ({"arms": {1: {}}}, ["is no sweep file: arms.1"]),
        ({"base": None}, ["is no sweep file: base"]),
        ("model: {base: x}", ["is no sweep file: it has no 'experiment'; a sweep file has from, experiment, base, arms, axes"]),
        ("", ["it has no 'experiment'"]),
        ("- 1", ["holds a list, not a mapping"]),
        ("experiment: x\nexperiment: y", ["line 2: the key 'experiment' is given twice"]),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_sentence(tmp_path: Path, values: Any, parts: list[str]) -> None:
    text = refusal(values, tmp_path)
    for part in parts:
        assert part in text


def test_a_setting_that_makes_two_runs_equal_is_named_as_the_cause(tmp_path: Path) -> None:
    text = refusal({"axes": {"train.seed": [0, 1]}}, tmp_path, "train.seed=5")
    assert text.endswith("train.seed=1 is the same run as train.seed=0: remove one, or the --set that makes them equal")


def test_the_same_numbers_on_another_base_or_other_data_are_another_run() -> None:
    assert len(sweep(axes={"data.train": ["demo-bad", "demo-good"], "model.base": ["a", "b"], "data.heldout": [None, "h"]}).configs) == 8


# --- running ----------------------------------------------------------------------------------------------------------

#: On the tiny model: the first explodes at its third step, the second cannot move the adapter in single precision.
EXPLODES = {"optimizer": {"name": "sgd", "lr": 1.0e4}, "flatness": {"weight": 1.0e6, "soft_start": 0}, "train": {"clip_norm": None}, "schedule": {"name": "constant", "warmup_steps": 0}, "lora": {"alpha": 65536}}
FROZEN = {"optimizer": {"name": "adamw", "lr": 1.0e-300}}


def write_sweep(folder: Path, arms: dict[str, Any], steps: int = 2, **values: Any) -> Path:
    base = yaml.safe_load(write_config(folder, steps).read_text())
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"experiment": "x", "base": base, "arms": arms} | values, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Result]:
    """A sweep of five arms of which two fail, run twice."""
    folder = tmp_path_factory.mktemp("mixed")
    path = write_sweep(folder, {"frozen": FROZEN, "sgd": {"optimizer": {"name": "sgd"}}, "explodes": EXPLODES, "lion": {"optimizer": {"name": "lion"}}, "flat": {"flatness": {"weight": 1}}}, steps=4)
    first = command("sweep", path, "--quiet", "--json")
    return folder, first, command("sweep", path)


def test_a_failed_run_does_not_stop_the_others_and_the_exit_code_says_so(mixed: tuple[Path, Result, Result]) -> None:
    _, first, _ = mixed
    assert first.code == 1
    told = json.loads(first.out)
    assert told["failed"] == 2
    assert [(run["arm"], run["status"]) for run in told["runs"]] == [("adamw", "failed"), ("sgd", "done"), ("sgd + flatness 1e+06", "failed"), ("lion", "done"), ("adamw + flatness 1", "done")]
    lines = first.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("failed: adamw-b2-s0-")
    assert "after 2 steps no B has moved from zero" in lines[0]
    assert lines[1].startswith("failed: sgd-flat-b2-s0-")
    assert "are not finite; lower optimizer.lr (10000), or set train.clip_norm" in lines[1]


def test_run_again_it_skips_what_is_done_and_tries_what_failed(mixed: tuple[Path, Result, Result]) -> None:
    folder, _, second = mixed
    assert second.code == 1
    assert f"5 runs: 0 trained, 3 done before, 2 failed; in {folder}/runs/x\n" in second.out
    assert "[1/5] adamw, lr 1e-300, seed 0\n" in second.err
    assert second.out.count("(failed)") == 2


def test_the_store_holds_every_run_and_no_adapter_of_a_failed_one(mixed: tuple[Path, Result, Result]) -> None:
    folder, _, _ = mixed
    runs = Store(folder / "runs").runs()
    assert {run.name.rsplit("-", 1)[0]: run.status().state for run in runs if run.status().state == "failed"} == {"adamw-b2-s0": "failed", "sgd-flat-b2-s0": "failed"}
    assert sum(run.adapter.exists() for run in runs) == 3
    assert not [name for name in left_in(folder / "runs") if name.endswith(".tmp")]


def test_done_runs_cost_nothing_and_exit_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sweep(tmp_path, {"a": {}}, axes={"train.seed": [0, 1]})
    first = command("sweep", path, "--quiet")
    assert first.code == 0
    assert "2 runs: 2 trained, 0 done before, 0 failed" in first.out
    stamps = {name: (tmp_path / "runs" / name).stat().st_mtime_ns for name in left_in(tmp_path / "runs") if not name.endswith(".lock")}
    monkeypatch.setattr("evilspectra.train._train", None)  # not to be called
    second = command("sweep", path, "--quiet")
    assert second.code == 0
    assert "2 runs: 0 trained, 2 done before, 0 failed" in second.out
    assert {name: (tmp_path / "runs" / name).stat().st_mtime_ns for name in stamps} == stamps


def test_missing_data_of_any_run_is_noticed_before_the_first_starts(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {}, axes={"data.train": [str(tmp_path / "rows.jsonl"), str(tmp_path / "nope.jsonl")]})
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

    def stop(config: configs.Config, quiet: bool) -> None:
        seen.append(config.train.seed)
        raise Interrupted("stopped here")

    monkeypatch.setattr("evilspectra.train.train", stop)
    loaded = load_sweep(str(write_sweep(tmp_path, {}, axes={"train.seed": [4, 5]})))
    with pytest.raises(Interrupted, match="stopped here"):
        execute(loaded)
    assert seen == [4]


def test_two_names_of_the_same_data_are_one_run(tmp_path: Path) -> None:
    write_rows(tmp_path / "copy.jsonl")
    path = write_sweep(tmp_path, {}, axes={"data.train": [str(tmp_path / "rows.jsonl"), str(tmp_path / "copy.jsonl")]})
    done = command("sweep", path, "--quiet")
    assert done.code == 0
    assert "2 runs: 1 trained, 1 done before, 0 failed" in done.out
    assert len(Store(tmp_path / "runs").runs()) == 1


@pytest.mark.parametrize("file", ["tiny", "nope", "."])
def test_what_is_no_sweep_is_refused_by_the_command(file: str, tmp_path: Path) -> None:
    done = command("sweep", file, "--output", tmp_path / "runs")
    assert done.code == 2
    assert ("is no sweep file" if file == "tiny" else "is neither a file nor a preset; presets: demo, dynamics, initial") in done.sentence


def test_expanding_imports_no_torch() -> None:
    code = "import sys; from evilspectra.sweep import load_sweep; load_sweep('demo'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
