"""Tuning: trials are runs of the store, nothing is trained twice, the search repeats itself.

A rate at which training fails is a bad one, and a best rate at the edge is reported.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evilspectra.config import loading as configs
from evilspectra.errors import BadInput, Interrupted, RunFailed
from evilspectra.store.run import Store
from evilspectra.sweeps.file import SweepFile, expand, load_sweep
from evilspectra.sweeps.tune import Task, Trial, best, coarse, overrides, tasks, tune
from tests.support.commands import command, write_config

BLOCKS = [{"name": "adamw", "lr": 0.03}, {"name": "sgd", "lr": 30.0}]


def write_sweep(folder: Path, **values: Any) -> Path:
    base = yaml.safe_load(write_config(folder, 3, monitor={"every": 0}).read_text())
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({"experiment": "x", "base": base, "axes": {"optimizer": BLOCKS}} | values),
        encoding="utf-8",
    )
    return path


def bowl(at: dict[str, float], steps: list[float]) -> Any:
    """Stands in for training: held-out loss (log10 lr − log10 best)², failing above 0.5."""

    def attempt(
        task: Task,
        quiet: bool,
        note: Any,
        lr: float,
    ) -> Trial:
        steps.append(lr)
        if lr > 0.5:
            return Trial(lr, None, (), "step 1: loss inf")
        return Trial(lr, math.log10(lr / at[task.label]) ** 2, ())

    return attempt


def listed_tasks(**values: Any) -> list[Task]:
    return tasks(
        expand(
            SweepFile.model_validate({"experiment": "x", "axes": {"optimizer": BLOCKS}} | values)
        )
    )


# --- the search -----------------------------------------------------------------------------------


@given(at=st.floats(-4, -1), seed=st.integers(0, 9))
def test_the_search_comes_near_the_best_rate_and_repeats_itself(at: float, seed: int) -> None:
    (task, *_) = tasks(
        expand(SweepFile(experiment="x", axes={"optimizer": BLOCKS[:1]})), bounds=(1e-5, 1.0)
    )
    runs: list[list[float]] = []
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            runs.append([])
            patch.setattr("evilspectra.sweeps.tune._attempt", bowl({"adamw": 10**at}, runs[-1]))
            patch.setattr("evilspectra.sweeps.tune.locate", lambda config: None)
            (tuned,) = tune([task], 8, seed=seed)
    assert runs[0] == runs[1]
    assert runs[0][:5] == coarse(1e-5, 1.0, 5)
    assert len(runs[0]) == len(set(runs[0])) <= 8
    assert tuned.lr is not None
    assert tuned.loss == min(trial.loss for trial in tuned.trials if trial.loss is not None)
    # half the step of five rates over five decades, and the rounding
    assert abs(math.log10(tuned.lr) - at) <= 0.625 + 0.03


def test_more_trials_begin_with_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[float]] = [[], []]
    monkeypatch.setattr("evilspectra.sweeps.tune.locate", lambda config: None)
    for count, rates in zip((6, 9), tried, strict=True):
        monkeypatch.setattr("evilspectra.sweeps.tune._attempt", bowl({"adamw": 0.003}, rates))
        tune(listed_tasks(axes={"optimizer": BLOCKS[:1]}), count)
    assert tried[1][: len(tried[0])] == tried[0]
    assert len(tried[1]) > len(tried[0])


TASK = Task("adamw", {"optimizer.name": "adamw"}, (), 1e-4, 1.0)


@pytest.mark.parametrize(
    ("losses", "lr", "edge"),
    [
        ({0.1: 2.0, 0.2: 1.0, 0.3: 2.0}, 0.2, None),
        ({0.1: 2.0, 0.2: 1.5, 0.3: 1.0}, 0.3, "the highest that was tried"),
        ({0.1: 1.0, 0.2: 1.5, 0.3: 2.0}, 0.1, "the lowest that was tried"),
        # beyond it training fails, which bounds the search
        ({0.1: 2.0, 0.2: 1.0, 0.3: None}, 0.2, None),
        ({0.1: 1.0, 0.2: 1.0, 0.05: 3.0}, 0.1, None),
        (
            {0.1: None, 0.2: None},
            None,
            "every trial of adamw failed; at the lowest rate: why 0.1",
        ),
    ],
)
def test_the_best_rate_and_the_edge_of_the_range(
    losses: dict[float, float | None], lr: float | None, edge: str | None
) -> None:
    tuned = best(
        TASK,
        [Trial(rate, loss, (), None if loss else f"why {rate:g}") for rate, loss in losses.items()],
    )
    assert tuned.lr == lr
    assert [trial.lr for trial in tuned.trials] == sorted(losses)
    assert tuned.warning is None if edge is None else edge in str(tuned.warning)


# --- what is tuned --------------------------------------------------------------------------------


def test_a_sweep_s_blocks_are_tuned_at_its_first_cell_of_each() -> None:
    sweep = expand(
        SweepFile(
            experiment="x",
            axes={"flatness.weight": [0, 1], "optimizer": BLOCKS, "train.batch_size": [2, 4]},
            seeds=3,
        )
    )
    listed = tasks(sweep)
    assert [(task.label, task.when, len(task.configs), task.low, task.high) for task in listed] == [
        ("adamw", {"optimizer.name": "adamw"}, 1, 0.001, 0.9),
        ("sgd", {"optimizer.name": "sgd"}, 1, 1.0, 900.0),
    ]
    (config,) = listed[1].configs
    assert (
        config.flatness.weight,
        config.train.batch_size,
        config.train.seed,
        config.output.experiment,
    ) == (0, 2, 0, "x-tune")
    # the sweep's run, except for the rate
    assert tasks(sweep, experiment="x")[1].configs[0] == sweep.configs[6]


def test_rates_per_setting_and_means_over_settings() -> None:
    sweep = expand(
        SweepFile(
            experiment="x",
            axes={"optimizer": BLOCKS, "train.batch_size": [2, 4], "data.train": ["a", "b"]},
            seeds=3,
        )
    )
    listed = tasks(
        sweep, names=["sgd"], per=["train.batch_size"], over=["data.train", "train.seed"]
    )
    assert [task.when for task in listed] == [
        {"optimizer.name": "sgd", "train.batch_size": 2},
        {"optimizer.name": "sgd", "train.batch_size": 4},
    ]
    assert [
        {(config.data.train, config.train.seed) for config in task.configs} for task in listed
    ] == [{(name, seed) for name in "ab" for seed in range(3)}] * 2
    assert listed[0].label == "sgd, train.batch_size 2"


def test_two_blocks_of_one_optimiser_are_told_apart_by_their_settings() -> None:
    listed = listed_tasks(
        axes={
            "optimizer": [
                {"name": "muon", "lr": 0.1},
                {"name": "muon", "lr": 0.1, "lr_rule": "original"},
            ]
        }
    )
    assert [task.when["optimizer.lr_rule"] for task in listed] == ["match_rms_adamw", "original"]
    assert "lr_rule original" in listed[1].label


@pytest.mark.parametrize(
    ("values", "options", "part"),
    [
        ({}, {"names": ["muon"]}, "the sweep has no optimiser 'muon'; it has adamw, sgd."),
        (
            {},
            {"per": ["train.sead"]},
            "'train.sead' names no setting: 'sead' is not a field of train",
        ),
        (
            {},
            {"over": ["optimizer.lr"]},
            "'optimizer.lr' belongs to the optimiser, which is what is tuned",
        ),
        (
            {"axes": {"optimizer.lr": [0.1, 0.2]}},
            {},
            (
                "the sweep itself varies the learning rate of adamw (0.1, 0.2): tune a sweep with "
                "one rate per optimiser"
            ),
        ),
        (
            {"base": {"data": {"heldout_share": 0}}},
            {},
            "no rows are held out (data.heldout_share is 0, data.heldout null)",
        ),
        (
            {},
            {"bounds": (2.0, 3.0)},
            (
                "the range from 2 to 1 contains no learning rate for adamw (more than 0 and at "
                "most 1)"
            ),
        ),
        ({}, {"experiment": "a/b"}, "--experiment: experiment = 'a/b' is refused"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_sentence(
    values: dict[str, Any], options: dict[str, Any], part: str
) -> None:
    sweep = expand(
        SweepFile.model_validate({"experiment": "x", "axes": {"optimizer": BLOCKS}} | values)
    )
    with pytest.raises(BadInput) as caught:
        tasks(sweep, **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evilspectra.sweeps.tune.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"not installed: pip install 'evilspectra\[tune\]'"):
        tune(listed_tasks(), 3)


# --- over the store -------------------------------------------------------------------------------


def test_trials_are_runs_and_nothing_is_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(tmp_path)
    first = command("tune", path, "--trials", "3", "--json", "--quiet")
    assert first.code == 0, first.err
    runs = {run.name: run for run in Store(tmp_path / "runs").runs()}
    tuned = json.loads(first.out)["tuned"]
    assert {run.experiment for run in runs.values()} == {"x-tune"}
    trials = [trial for rate in tuned for trial in rate["trials"]]
    assert sorted(name for trial in trials for name in trial["runs"]) == sorted(runs)
    for trial in trials:
        table = runs[trial["runs"][0]].read("heldout")
        assert trial["loss"] == table["loss"].iloc[-1] != table["loss"].iloc[0]
        assert runs[trial["runs"][0]].config().optimizer.lr == trial["lr"]
    monkeypatch.setattr("evilspectra.training.train._train", None)  # not to be called
    again = command("tune", path, "--trials", "3", "--json", "--quiet")
    assert (again.code, again.out) == (0, first.out)


def test_an_interrupted_search_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evilspectra.training.train as training

    undisturbed, cut = tmp_path / "whole", tmp_path / "cut"
    paths = []
    for folder in (undisturbed, cut):
        folder.mkdir()
        paths.append(write_sweep(folder))
    expected = command("tune", paths[0], "--trials", "4", "--json", "--quiet")
    real, count = training._train, 0

    def stop_at_the_third(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise Interrupted("stopped here")
        real(*arguments)

    monkeypatch.setattr(training, "_train", stop_at_the_third)
    stopped = command("tune", paths[1], "--trials", "4", "--json", "--quiet")
    assert (stopped.code, stopped.sentence) == (130, "stopped here")
    done = [run for run in Store(cut / "runs").runs() if run.status().state == "done"]
    assert len(done) == 2
    stamps = {
        run.name: (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns for run in done
    }
    went_on = command("tune", paths[1], "--trials", "4", "--json", "--quiet")
    assert json.loads(went_on.out)["tuned"] == json.loads(expected.out)["tuned"]
    assert count == 3 + len(Store(cut / "runs").runs()) - 2
    assert {
        run.name: (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns for run in done
    } == stamps


def test_a_rate_at_which_training_fails_is_a_bad_trial_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evilspectra.training.train as training

    real = training._train

    def explode(training_run: Any, *rest: Any) -> None:
        if training_run.config.optimizer.lr > 0.1:
            raise RunFailed("step 1: loss inf, gradient norm nan are not finite")
        real(training_run, *rest)

    monkeypatch.setattr(training, "_train", explode)
    path = write_sweep(tmp_path, axes={"optimizer": BLOCKS[:1]})
    done = command("tune", path, "--trials", "3")
    assert done.code == 0
    assert (
        "    lr 0.9      failed: step 1: loss inf, gradient norm nan are not finite\n" in done.out
    )
    assert "adamw, lr 0.9: failed: step 1" in done.err
    (rate,) = json.loads(command("tune", path, "--trials", "3", "--quiet", "--json").out)["tuned"]
    assert rate["lr"] in (0.001, 0.03)
    alone = command(
        "tune",
        path,
        "--trials",
        "3",
        "--range",
        "0.2",
        "0.9",
        "--out",
        tmp_path / "none.yaml",
        "--quiet",
        "--json",
    )
    assert alone.code == 1
    assert "every trial of adamw failed; at the lowest rate: step 1" in alone.err
    assert not (tmp_path / "none.yaml").exists()


def test_the_result_is_a_sweep_file_that_trains_at_the_best_rates(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, seeds=2)
    out = tmp_path / "below" / "tuned.yaml"
    done = command(
        "tune", path, "--trials", "3", "--out", out, "--experiment", "x", "--quiet", "--json"
    )
    assert done.code == 0
    best_rates = {rate["label"]: rate["lr"] for rate in json.loads(done.out)["tuned"]}
    sweep = load_sweep(str(out))
    assert [
        (config.optimizer.name, config.optimizer.lr, config.train.seed) for config in sweep.configs
    ] == [(name, best_rates[name], seed) for name in ("adamw", "sgd") for seed in (0, 1)]
    assert [configs.identity(config, "d", "b") for config in sweep.configs] != [
        configs.identity(config, "d", "b") for config in load_sweep(str(path)).configs
    ]
    plan = json.loads(command("sweep", out, "--dry-run", "--json").out)
    # the best trials are runs of the sweep
    assert [run["state"] for run in plan["runs"]] == ["done", "queued"] * 2
    assert out.read_text().startswith("# Learning rates chosen by held-out loss: evilspectra tune ")


def test_overrides_leave_out_what_could_not_be_tuned() -> None:
    tuned = [best(TASK, [Trial(0.1, None, (), "why")]), best(TASK, [Trial(0.1, 1.0, ())])]
    assert overrides(tuned) == [{"when": {"optimizer.name": "adamw"}, "set": {"optimizer.lr": 0.1}}]
