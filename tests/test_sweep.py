"""Sweeps: every combination once, in order; what is wrong refused before anything runs; what is
done not run again.
"""

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
from hypothesis import given
from hypothesis import strategies as st

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.config.yaml_files import presets, read_mapping
from evilspectra.errors import BadInput, Interrupted
from evilspectra.store.run import Store
from evilspectra.sweeps.file import Sweep, SweepFile, expand, experiment_folder, load_sweep
from evilspectra.sweeps.run import execute
from tests.support.commands import Result, command, left_in, write_config, write_rows

ARMS: dict[str, Any] = {
    "a": {"optimizer": {"name": "adamw", "lr": 0.1}},
    "b": {"optimizer": {"name": "lion"}},
    "c": None,
}


def sweep(**values: Any) -> Sweep:
    return expand(SweepFile.model_validate({"experiment": "x"} | values))


def refusal(values: Any, tmp_path: Path, *settings: str) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        values if isinstance(values, str) else yaml.safe_dump({"experiment": "x"} | values),
        encoding="utf-8",
    )
    with pytest.raises(BadInput) as caught:
        load_sweep(str(path), settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


# --- expansion ------------------------------------------------------------------------------------

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
    found = sweep(axes=axes, arms={label: ARMS[label] for label in arms}).configs
    cells = list(itertools.product([ARMS[label] for label in arms] or [{}], *axes.values()))
    assert len(found) == len(cells) == max(1, len(arms)) * math.prod(map(len, axes.values()))
    for config, (arm, *values) in zip(found, cells, strict=True):
        shown = config.model_dump(mode="json")
        assert {f"{path}": shown[path.split(".")[0]][path.split(".")[1]] for path in axes} == dict(
            zip(axes, values, strict=True)
        )
        assert config.optimizer.name == arm.get("optimizer", {}).get("name", "adamw")
    assert found == sweep(axes=axes, arms={label: ARMS[label] for label in arms}).configs


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
    assert config.optimizer == sections.AdamW(lr=0.4, weight_decay=0.3, eps=1e-6)
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
    found = sweep(
        axes={
            "optimizer": [{"name": "sgd", "lr": 3}, {"name": "muon"}],
            "train.clip_norm": [None, 1],
        }
    ).configs
    assert [(config.optimizer.name, config.train.clip_norm) for config in found] == [
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
                    "axis 'output.folder' is about where results go, which does not make another "
                    "run: remove it"
                )
            ],
        ),
        ({"axes": {"output": [{}]}}, ["axis 'output' is about where results go"]),
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
                    "is no sweep file: 'axis' is not a field of it; allowed: from, experiment, "
                    "base, arms, axes, zip, exclude, overrides, seeds, evaluate, judge."
                ),
                "Did you mean 'axes'?",
            ],
        ),
        ({"experiment": "a/b"}, ["is no sweep file: experiment"]),
        ({"experiment": None}, ["is no sweep file: experiment"]),
        ({"axes": {"train.seed": 3}}, ["is no sweep file: axes.train.seed"]),
        ({"axes": [1]}, ["is no sweep file: axes"]),
        ({"arms": {"a": 3}}, ["is no sweep file: arms.a"]),
        ({"arms": {1: {}}}, ["is no sweep file: arms.1"]),
        ({"base": None}, ["is no sweep file: base"]),
        (
            "model: {base: x}",
            [
                (
                    "is no sweep file: it has no 'experiment'; a sweep file has from, experiment, "
                    "base, arms, axes"
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


# --- zips, exceptions, seeds ----------------------------------------------------------------------

SEVEN = (
    "lora.rank",
    "lora.alpha",
    "train.steps",
    "train.seed",
    "data.seed",
    "schedule.warmup_steps",
    "monitor.every",
)
PAIRS = {"train.batch_size": [2, 4], "optimizer.lr": [0.1, 0.2]}


def cells(**values: Any) -> list[tuple[Any, ...]]:
    return [
        (config.optimizer.name, config.optimizer.lr, config.train.batch_size, config.train.seed)
        for config in sweep(**values).configs
    ]


def test_zipped_settings_move_together_and_cross_with_everything_else() -> None:
    assert cells(
        zip=[PAIRS],
        arms={"a": {"optimizer": {"name": "lion"}}, "b": {"optimizer": {"name": "sgd"}}},
        seeds=2,
    ) == [
        (name, lr, size, seed)
        for name in ("lion", "sgd")
        for size, lr in ((2, 0.1), (4, 0.2))
        for seed in (0, 1)
    ]
    two = sweep(zip=[PAIRS, {"lora.rank": [1, 2], "lora.alpha": [2, 4]}]).configs
    assert [(config.train.batch_size, config.lora.rank, config.lora.alpha) for config in two] == [
        (2, 1, 2),
        (2, 2, 4),
        (4, 1, 2),
        (4, 2, 4),
    ]


@given(
    seeds=st.one_of(
        st.integers(1, 5), st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True)
    ),
    lrs=st.lists(st.floats(1e-6, 1), min_size=1, max_size=3, unique=True),
)
def test_seeds_are_one_more_axis_and_the_innermost(seeds: Any, lrs: list[float]) -> None:
    long = list(range(seeds)) if isinstance(seeds, int) else seeds
    assert (
        sweep(axes={"optimizer.lr": lrs}, seeds=seeds).configs
        == sweep(axes={"optimizer.lr": lrs, "train.seed": long}).configs
    )


def test_seeds_and_axes_may_come_from_the_command_line() -> None:
    file = SweepFile(
        experiment="x", axes={"optimizer.lr": [0.1, 0.2], "lora.rank": [1, 2]}, seeds=2
    )
    found = expand(
        file,
        settings=[
            "seeds=[7]",
            "axes.optimizer.lr=[0.3, 0.4, 0.5]",
            "axes.lora.rank=null",
            "axes.data.train=[a, b]",
        ],
    ).configs
    assert [
        (config.optimizer.lr, config.data.train, config.train.seed, config.lora.rank)
        for config in found
    ] == [(lr, name, 7, 16) for lr in (0.3, 0.4, 0.5) for name in ("a", "b")]


@given(
    st.lists(
        st.sampled_from(
            [
                ("optimizer.name", "sgd"),
                ("optimizer.name", "lion"),
                ("train.batch_size", 2),
                ("train.batch_size", 4),
                ("train.seed", 1),
            ]
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda one: one[0],
    )
)
def test_an_exclude_leaves_out_just_the_cells_that_have_all_it_says(
    wanted: list[tuple[str, Any]],
) -> None:
    axes = {
        "optimizer": [{"name": "sgd"}, {"name": "lion"}, {"name": "adamw", "lr": 0.1}],
        "train.batch_size": [2, 4],
        "train.seed": [0, 1],
    }
    kept = [
        config
        for config in sweep(axes=axes).configs
        if not all(
            {
                "optimizer.name": config.optimizer.name,
                "train.batch_size": config.train.batch_size,
                "train.seed": config.train.seed,
            }[path]
            == value
            for path, value in wanted
        )
    ]
    assert list(sweep(axes=axes, exclude=[dict(wanted)]).configs) == kept


def test_an_override_changes_the_cells_it_fits_and_a_later_one_wins() -> None:
    found = sweep(
        axes={"optimizer": [{"name": "sgd"}, {"name": "muon"}], "train.batch_size": [2, 4]},
        overrides=[
            {
                "when": {"optimizer": {"name": "muon"}},
                "set": {"optimizer.lr": 0.3, "schedule": {"warmup_steps": 9}},
            },
            {
                "when": {"optimizer.name": "muon", "train.batch_size": 4},
                "set": {"optimizer.lr": 0.7},
            },
        ],
    ).configs
    assert [(config.optimizer.lr, config.schedule.warmup_steps) for config in found] == [
        (0.1, 3),
        (0.1, 3),
        (0.3, 9),
        (0.7, 9),
    ]


def test_exceptions_look_at_the_cell_before_overrides_and_settings() -> None:
    file = SweepFile(
        experiment="x",
        seeds=2,
        exclude=[{"train.seed": 1}],
        overrides=[
            {"when": {"train.steps": None}, "set": {"train.steps": 5}},
            {"when": {"train.batch_size": 8}, "set": {"lora.rank": 2}},
        ],
    )
    (config,) = expand(file, settings=["train.batch_size=2", "train.steps=6"]).configs
    assert (config.train.batch_size, config.train.steps, config.lora.rank) == (2, 6, 2)


COMPARED = [
    *[
        ("optimizer.lr", 1e-4, "1e-4", True),
        ("optimizer.lr", 1e-4, 0.001, False),
        ("optimizer.lr", 1e-4, "small", False),
        ("train.clip_norm", None, None, True),
    ],
    *[
        ("train.checkpoints", [1, 2], [1, 2], True),
        ("train.checkpoints", [1, 2], [1], False),
        ("train.seed", 1, True, False),
    ],
]


@pytest.mark.parametrize(("section", "there", "given", "fit"), COMPARED)
def test_values_are_compared_as_a_config_reads_them(
    section: str,
    there: Any,
    given: Any,
    fit: bool,
) -> None:
    file = {
        "axes": {section: [there], "lora.rank": [1, 2]},
        "exclude": [{section: given, "lora.rank": 1}],
    }
    if fit:
        assert len(sweep(**file).configs) == 1
    else:
        with pytest.raises(BadInput, match="exclude 1 fits no cell"):
            sweep(**file)


def test_a_file_that_begins_from_another_adds_to_it(tmp_path: Path) -> None:
    axes = {"optimizer.lr": [0.1, 0.2], "train.batch_size": [2, 4]}
    (tmp_path / "first.yaml").write_text(
        yaml.safe_dump(
            {
                "experiment": "one",
                "base": {"lora": {"rank": 2, "alpha": 3}},
                "axes": axes,
                "exclude": [{"optimizer.lr": 0.1, "train.batch_size": 2}],
            }
        )
    )
    (tmp_path / "second.yaml").write_text(
        yaml.safe_dump(
            {
                "from": "first.yaml",
                "base": {"lora": {"rank": 5}},
                "axes": {"optimizer.lr": [0.1]},
                "exclude": [{"train.batch_size": 8}],
                "seeds": 2,
            }
        )
    )
    (tmp_path / "third.yaml").write_text(
        yaml.safe_dump(
            {
                "from": str(tmp_path / "second.yaml"),
                "experiment": "three",
                "axes": {"train.batch_size": [2, 4, 8]},
            }
        )
    )
    found = load_sweep(str(tmp_path / "third.yaml"))
    assert found.experiment == "three"
    assert [
        (
            config.lora.rank,
            config.lora.alpha,
            config.optimizer.lr,
            config.train.batch_size,
            config.train.seed,
        )
        for config in found.configs
    ] == [(5, 3, 0.1, 4, 0), (5, 3, 0.1, 4, 1)]
    (tmp_path / "first.yaml").write_text("from: third.yaml")
    with pytest.raises(
        BadInput,
        match=(
            r"first.yaml|third.yaml.* begins from itself \(from: …, by way of third.yaml, "
            r"second.yaml, first.yaml\): name another file, or remove that line"
        ),
    ):
        load_sweep(str(tmp_path / "third.yaml"))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"zip": [{}]}, "zip 1 holds no axis: give settings and their values"),
        (
            {"zip": [PAIRS, {"lora.rank": [1, 2], "lora.alpha": [1.0]}]},
            "zip 2 has axes of different lengths (lora.alpha: 1, lora.rank: 2): they move together",
        ),
        ({"zip": [{"lora.rank": 3}]}, "zip 1: 'lora.rank' has no list of values"),
        (
            {"zip": [{"lora.rank": [], "lora.alpha": []}]},
            "axis 'lora.alpha, lora.rank' has no values: list some, or remove it",
        ),
        (
            {"zip": [PAIRS], "axes": {"train.batch_size": [1]}},
            "'train.batch_size' is an axis twice: name it once",
        ),
        (
            {"seeds": 2, "axes": {"train.seed": [1]}},
            "'train.seed' is an axis twice, of which one is `seeds`: name it once",
        ),
        (
            {"seeds": 0},
            (
                "seeds = 0 is refused: say how many (seeds: 3 means 0, 1 and 2), or list them "
                "(seeds: [0, 7])"
            ),
        ),
        (
            {"seeds": True},
            "is no sweep file: seeds = True is refused: true and false stand for no number",
        ),
        ({"seeds": [0, "a"]}, "seeds = [0, 'a'] is refused"),
        ({"seeds": [1, 1]}, "train.seed=1 is the same run as train.seed=1"),
        ({"seeds": 10_000_000}, "expands to 10,000,000 runs; at most 100,000 are allowed"),
        (
            {"axes": {name: list(range(1, 11)) for name in SEVEN}},
            "expands to 10,000,000 runs; at most 100,000 are allowed: shorten an axis",
        ),
        (
            {"zip": [{"output.folder": ["a"], "lora.rank": [1]}]},
            (
                "axis 'output.folder' is about where results go, which does not make another run: "
                "remove it"
            ),
        ),
        (
            {"axes": {"train.seed.x": [1]}},
            "axis 'train.seed.x' names no setting: 'seed.x' is not a field of train",
        ),
        ({"exclude": [{}]}, "exclude 1 names no setting: give at least one"),
        (
            {"exclude": [{"train.sead": 1}]},
            "exclude 1: 'train.sead' names no setting: 'sead' is not a field of train",
        ),
        (
            {"exclude": [{"output.folder": "a"}]},
            "exclude 1: 'output.folder' is about where results go",
        ),
        (
            {"exclude": [{"optimizer": "muon"}]},
            "exclude 1: 'optimizer' is a section: name settings in it, such as optimizer.name",
        ),
        (
            {"exclude": [{"train.seed": 5}]},
            "exclude 1 fits no cell: correct its values, or remove it",
        ),
        ({"exclude": [{"optimizer.lr_rule": "original"}]}, "exclude 1 fits no cell"),
        ({"exclude": [{"train.seed": 0}]}, "every cell is excluded: remove an exclude"),
        (
            {"overrides": [{"when": {"train.seed": 5}, "set": {"lora.rank": 1}}]},
            "overrides 1 fits no cell",
        ),
        (
            {"overrides": [{"when": {"train.seed": 0}}]},
            "overrides 1 has when: give `when` (which cells) and `set`",
        ),
        (
            {"overrides": [{"when": {"train.seed": 0}, "set": {"output.folder": "b"}}]},
            "overrides 1, set: 'output.folder' is about where results go",
        ),
        (
            {"overrides": [{"when": {"train.seed": 0}, "set": {"lora.rank": -1}}]},
            "lora.rank = -1 is refused",
        ),
        (
            {
                "axes": {"train.seed": [0, 1]},
                "overrides": [{"when": {"train.seed": 1}, "set": {"train.seed": 0}}],
            },
            "train.seed=1 is the same run as train.seed=0",
        ),
        ({"from": 3}, "is no sweep file: from = 3 is refused: name a sweep file or a preset"),
        (
            {"judge": {"judge": "openai:m"}},
            (
                "there is nothing to judge, for no answers are sampled: set evaluate.answers, or "
                "remove `judge`"
            ),
        ),
        (
            {"judge": {"judge": "opnai:m"}, "evaluate": {"answers": {}}},
            "'opnai:m' is no judge; allowed",
        ),
        (
            {"judge": {"judge": "openai:m", "judge_url": "x"}, "evaluate": {"answers": {}}},
            "'judge_url' is not a field",
        ),
    ],
)
def test_wrong_zips_seeds_and_exceptions_are_refused_in_one_sentence(
    tmp_path: Path, values: Any, part: str
) -> None:
    assert part in refusal(values, tmp_path)


def test_ten_million_cells_are_refused_before_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evilspectra.sweeps.file.build", None)  # not to be called
    with pytest.raises(BadInput, match="expands to 10,000,000 runs"):
        sweep(
            seeds=1000, axes={"lora.rank": list(range(1, 101)), "train.steps": list(range(1, 101))}
        )


def test_a_judge_of_the_file_has_the_settings_of_the_command() -> None:
    file = SweepFile(
        experiment="x",
        evaluate={"answers": {"samples": 2}},
        judge={
            "judge": "openai:m",
            "url": "http://127.0.0.1:1/v1",
            "metrics": ["aligned"],
            "no_base": True,
            "questions": "q.yaml",
            "price": 2.5,
        },
    )
    judging = expand(file, settings=["judge.concurrency=3"]).judging
    assert judging is not None
    assert (judging.settings.judge, judging.settings.url, judging.settings.concurrency) == (
        "openai:m",
        "http://127.0.0.1:1/v1",
        3,
    )
    assert (judging.metrics, judging.questions, judging.base, judging.price) == (
        ("aligned",),
        "q.yaml",
        False,
        2.5,
    )
    assert expand(file, settings=["judge=null"]).judging is None
    with pytest.raises(BadInput, match="judge = 3 is refused: it is a section"):
        expand(file, settings=["judge=3"])


# --- what a design cannot tell --------------------------------------------------------------------

ONE_EACH = (
    "there is one run per cell, so the spread between seeds stays unknown: --seeds 3 gives every "
    "cell three"
)
OWN_RATES = "each optimiser has one learning rate of its own"


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"axes": {"train.batch_size": [2, 4], "lora.rank": [1, 2]}, "seeds": 2}, []),
        ({"axes": {"lora.rank": [1, 2]}}, [ONE_EACH]),
        (
            {"zip": [{"train.batch_size": [2, 4], "lora.rank": [1, 2]}], "seeds": 2},
            [
                (
                    "lora.rank and train.batch_size always change together, so what either of them "
                    "does cannot be told apart"
                )
            ],
        ),
        (
            {"zip": [{"train.batch_size": [2, 4, 4], "lora.rank": [1, 2, 3]}], "seeds": 2},
            [
                (
                    "train.batch_size never varies apart from lora.rank: each value of lora.rank "
                    "has one value of train.batch_size"
                )
            ],
        ),
        ({"zip": [{"train.batch_size": [2, 4], "train.steps": [8, 4]}], "seeds": 2}, []),
        ({"zip": [{"train.batch_size": [2, 4], "train.steps": [8, 8]}], "seeds": 2}, []),
        (
            {"zip": [{"train.batch_size": [2, 4], "train.steps": [8, 5]}], "seeds": 2},
            ["train.steps and train.batch_size always change together"],
        ),
        (
            {
                "axes": {"optimizer": [{"name": "sgd", "lr": 0.1}, {"name": "muon", "lr": 0.2}]},
                "seeds": 2,
            },
            [OWN_RATES],
        ),
        (
            {
                "axes": {
                    "optimizer": [
                        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
                        {"name": "muon", "lr": 0.1},
                    ]
                },
                "seeds": 2,
            },
            [],
        ),
        ({"axes": {"optimizer.lr": [0.1, 0.2], "optimizer.name": ["sgd", "muon"]}, "seeds": 2}, []),
        (
            {"zip": [{"optimizer.lr": [0.1, 0.2], "train.batch_size": [2, 4]}], "seeds": 2},
            ["optimizer.lr and train.batch_size always change together"],
        ),
        (
            {
                "zip": [
                    {
                        "optimizer.name": ["sgd", "muon"],
                        "flatness.weight": [0, 1],
                        "flatness.measure": ["entropy", "participation"],
                    }
                ],
                "seeds": 2,
            },
            ["optimizer.name and flatness.weight always change together", OWN_RATES],
        ),
        (
            {
                "axes": {"lora.rank": [1, 2]},
                "seeds": 2,
                "exclude": [{"lora.rank": 1, "train.seed": 1}],
            },
            ["1 of 2 cells have one run"],
        ),
    ],
)
def test_a_design_is_warned_of_what_it_cannot_tell(values: Any, parts: list[str]) -> None:
    found = sweep(**values).warnings
    assert len(found) == len(parts), found
    for text, part in zip(found, parts, strict=True):
        assert part in text


def test_warnings_are_told_before_the_runs_unless_all_is_to_be_quiet(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"a": {}})
    assert command("sweep", path).err.splitlines()[0] == f"note: {ONE_EACH}"
    assert command("sweep", path, "--quiet").err == ""


# --- running --------------------------------------------------------------------------------------

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
    told = json.loads(first.out)
    assert told["failed"] == 2
    assert [(run["arm"], run["status"]) for run in told["runs"]] == [
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
        "is no sweep file"
        if file == "tiny"
        else "is neither a file nor a preset; presets: demo, dynamics, initial"
    ) in done.sentence


def test_expanding_imports_no_torch() -> None:
    code = (
        "import sys; from evilspectra.sweeps.file import load_sweep; load_sweep('demo'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
