"""Expanding a sweep file: every combination once, in order; mistakes refused beforehand."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evilspectra.config import loading as configs
from evilspectra.config import optimizers
from evilspectra.config.yaml_files import flat, presets, read_mapping
from evilspectra.sweeps.file import SweepFile, expand, experiment_folder, load_sweep
from tests.support.sweep_files import refusal, sweep

ARMS: dict[str, Any] = {
    "a": {"optimizer": {"name": "adamw", "lr": 0.1}},
    "b": {"optimizer": {"name": "lion"}},
    "c": None,
}


AXES = {
    "train.seed": st.integers(0, 99),
    "optimizer.lr": st.floats(1e-6, 1),
    "lora.rank": st.integers(1, 64),
    "flatness.weight": st.floats(0, 9),
    "train.checkpoints": st.sampled_from([[1], [2, 3], "log:3"]),
}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            path: st.lists(values, min_size=1, max_size=3, unique_by=repr)
            for path, values in AXES.items()
        },
    ),
    st.lists(st.sampled_from(["a", "b"]), max_size=2, unique=True),
)
def test_a_sweep_is_the_product_of_its_arms_and_axes_in_order(
    axes: dict[str, list[Any]], arms: list[str]
) -> None:
    expanded = sweep(axes=axes, arms={label: ARMS[label] for label in arms}).configs
    cells = list(itertools.product([ARMS[label] for label in arms] or [{}], *axes.values()))
    assert len(expanded) == len(cells) == max(1, len(arms)) * math.prod(map(len, axes.values()))
    for config, (arm, *values) in zip(expanded, cells, strict=True):
        settings = flat(config.model_dump(mode="json"))
        assert {path: settings[path] for path in axes} == dict(zip(axes, values, strict=True))
        assert config.optimizer.name == arm.get("optimizer", {}).get("name", "adamw")
    assert expanded == sweep(axes=axes, arms={label: ARMS[label] for label in arms}).configs


def test_an_arm_lies_over_the_base_an_axis_over_the_arm_and_a_setting_over_all() -> None:
    file = SweepFile(
        experiment="x",
        base={
            "optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.3},
            "train": {"steps": 1},
        },
        arms={"a": {"optimizer": {"lr": 0.2}}},
        axes={"optimizer.eps": [1e-6]},
    )
    (config,) = expand(file, settings=["train.steps=5", "optimizer.lr=0.4"]).configs
    assert config.optimizer == optimizers.AdamW(lr=0.4, weight_decay=0.3, eps=1e-6)
    assert config.train.steps == 5
    assert config.output.experiment == "x"


def test_axes_of_an_optimizer_and_its_field_need_no_order() -> None:
    for axes in (
        {"optimizer.lr": [0.1, 0.2], "optimizer.name": ["lion", "sgd"]},
        {"optimizer.name": ["lion", "sgd"], "optimizer.lr": [0.1, 0.2]},
    ):
        assert {
            (config.optimizer.name, config.optimizer.lr) for config in sweep(axes=axes).configs
        } == {("lion", 0.1), ("lion", 0.2), ("sgd", 0.1), ("sgd", 0.2)}


def test_an_axis_may_be_a_whole_section_or_empty_values() -> None:
    expanded = sweep(
        axes={
            "optimizer": [{"name": "sgd", "lr": 3}, {"name": "muon"}],
            "train.clip_norm": [None, 1],
        }
    ).configs
    assert [(config.optimizer.name, config.train.clip_norm) for config in expanded] == [
        ("sgd", None),
        ("sgd", 1.0),
        ("muon", None),
        ("muon", 1.0),
    ]


def test_settings_and_base_may_name_the_store_and_the_experiment(tmp_path: Path) -> None:
    file = SweepFile(experiment="x", base={"output": {"folder": "a"}})
    assert experiment_folder(expand(file)) == Path("a/x")
    assert experiment_folder(
        expand(file, settings=["output.folder=b", "output.experiment=y"])
    ) == Path("b/y")


@pytest.mark.parametrize(
    "name", [name for name, path in presets().items() if "experiment" in read_mapping(path)]
)
def test_every_preset_that_is_a_sweep_expands(name: str) -> None:
    assert (
        len(
            {
                configs.identity(config, config.data.train, config.model.base)
                for config in load_sweep(name).configs
            }
        )
        == len(load_sweep(name).configs)
        > 1
    )


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"axes": {"train.seed": []}},
            ["axis 'train.seed' has no values: list some, or remove it"],
        ),
        (
            {"axes": {"trian.seed": [1]}},
            [
                "axis 'trian.seed' names no setting; settings begin with model, data",
                "Did you mean 'train'?",
            ],
        ),
        ({"axes": {"": [1]}}, ["axis '' names no setting"]),
        (
            {"axes": {"train.sead": [1]}},
            [
                (
                    "axis 'train.sead' names no setting: 'sead' is not a field of train; allowed: "
                    "epochs, steps"
                ),
                "'seed'?",
            ],
        ),
        ({"axes": {"train.steps": [1, -1]}}, ["(train.steps=-1)", "train.steps = -1 is refused"]),
        (
            {"axes": {"output.folder": ["a", "b"]}},
            [
                (
                    "axis 'output.folder' sets where results go, which does not define a different "
                    "run: remove it"
                )
            ],
        ),
        ({"axes": {"output": [{}]}}, ["axis 'output' sets where results go"]),
        (
            {"arms": {"a": {"output": {"folder": "b"}}}},
            ["arm 'a' sets where results go", "move its 'output' to 'base', or remove it"],
        ),
        (
            {"axes": {"train.seed": [1, 1]}},
            ["train.seed=1 is the same run as train.seed=1: remove one"],
        ),
        (
            {"axes": {"optimizer.lr": [0.1, "1e-1"]}},
            ["optimizer.lr=1e-1 is the same run as optimizer.lr=0.1"],
        ),
        (
            {"axes": {"train.resume_every": [1, 2]}},
            ["train.resume_every=2 is the same run as train.resume_every=1"],
        ),
        ({"arms": {"a": {}, "b": None}}, ["arm b is the same run as arm a: remove one"]),
        (
            {"arms": {"a": {"lora": {"rnk": 1}}}},
            ["(arm a)", "'rnk' is not a field of lora", "'rank'?"],
        ),
        (
            {"axes": {"train.seed": list(range(400)), "data.seed": list(range(400))}},
            ["expands to 160,000 runs; at most 100,000 are allowed: shorten an axis"],
        ),
        (
            {"axis": {}},
            [
                (
                    "is not a sweep file: 'axis' is not a field of it; allowed: from, experiment, "
                    "base, arms, axes, zip, exclude, overrides, seeds, evaluate, judge."
                ),
                "Did you mean 'axes'?",
            ],
        ),
        ({"experiment": "a/b"}, ["is not a sweep file: experiment"]),
        ({"experiment": None}, ["is not a sweep file: experiment"]),
        ({"axes": {"train.seed": 3}}, ["is not a sweep file: axes.train.seed"]),
        ({"axes": [1]}, ["is not a sweep file: axes"]),
        ({"arms": {"a": 3}}, ["is not a sweep file: arms.a"]),
        ({"arms": {1: {}}}, ["is not a sweep file: arms.1"]),
        ({"base": None}, ["is not a sweep file: base"]),
        (
            "model: {base: x}",
            [
                (
                    "is not a sweep file: it has no 'experiment'; a sweep file has from, "
                    "experiment, base, arms, axes"
                )
            ],
        ),
        ("", ["it has no 'experiment'"]),
        ("- 1", ["holds a list, not a mapping"]),
        ("experiment: x\nexperiment: y", ["line 2: the key 'experiment' is given twice"]),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_sentence(
    tmp_path: Path, values: Any, parts: list[str]
) -> None:
    text = refusal(values, tmp_path)
    for part in parts:
        assert part in text


def test_a_setting_that_makes_two_runs_equal_is_named_as_the_cause(tmp_path: Path) -> None:
    text = refusal({"axes": {"train.seed": [0, 1]}}, tmp_path, "train.seed=5")
    assert text.endswith(
        "train.seed=1 is the same run as train.seed=0: remove one, or the --set that makes them "
        "equal"
    )


def test_the_same_numbers_on_another_base_or_other_data_are_another_run() -> None:
    assert (
        len(
            sweep(
                axes={
                    "data.train": ["demo-bad", "demo-good"],
                    "model.base": ["a", "b"],
                    "data.heldout": [None, "h"],
                }
            ).configs
        )
        == 8
    )


def test_expanding_imports_no_torch() -> None:
    code = (
        "import sys; from evilspectra.sweeps.file import load_sweep; load_sweep('demo'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
