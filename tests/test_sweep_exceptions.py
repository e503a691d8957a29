"""Zipped axes, seeds, exceptions, files that begin from others, and the section `judge`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evilspectra.errors import BadInput
from evilspectra.sweeps.file import SweepFile, expand, load_sweep
from tests.support.sweep_files import refusal, sweep

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
    pairs = [(0.1, 2), (0.2, 4)]
    assert cells(
        zip=[PAIRS],
        arms={"a": {"optimizer": {"name": "lion"}}, "b": {"optimizer": {"name": "sgd"}}},
        seeds=2,
    ) == [
        (name, lr, size, seed)
        for name, (lr, size), seed in itertools.product(("lion", "sgd"), pairs, (0, 1))
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
    expanded = expand(
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
        for config in expanded
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
        unique_by=lambda setting: setting[0],
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
    remaining = [
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
    assert list(sweep(axes=axes, exclude=[dict(wanted)]).configs) == remaining


def test_an_override_changes_the_cells_it_fits_and_a_later_one_wins() -> None:
    expanded = sweep(
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
    assert [(config.optimizer.lr, config.schedule.warmup_steps) for config in expanded] == [
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


@pytest.mark.parametrize(("section", "actual", "wanted", "fit"), COMPARED)
def test_values_are_compared_as_a_config_reads_them(
    section: str,
    actual: Any,
    wanted: Any,
    fit: bool,
) -> None:
    file = {
        "axes": {section: [actual], "lora.rank": [1, 2]},
        "exclude": [{section: wanted, "lora.rank": 1}],
    }
    if fit:
        assert len(sweep(**file).configs) == 1
    else:
        with pytest.raises(BadInput, match="exclude 1 matches no cell"):
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
    third = load_sweep(str(tmp_path / "third.yaml"))
    assert third.experiment == "three"
    assert [
        (
            config.lora.rank,
            config.lora.alpha,
            config.optimizer.lr,
            config.train.batch_size,
            config.train.seed,
        )
        for config in third.configs
    ] == [(5, 3, 0.1, 4, 0), (5, 3, 0.1, 4, 1)]
    (tmp_path / "first.yaml").write_text("from: third.yaml")
    with pytest.raises(
        BadInput,
        match=(
            r"first.yaml|third.yaml.* begins from itself \(from: …, via third.yaml, "
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
        ({"zip": [{"lora.rank": 3}]}, "zip 1: 'lora.rank' needs a list of values"),
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
            "'train.seed' is an axis twice (once as `seeds`): name it once",
        ),
        (
            {"seeds": 0},
            (
                "seeds = 0 is refused: give a number (seeds: 3 means 0, 1 and 2) or a list "
                "(seeds: [0, 7])"
            ),
        ),
        (
            {"seeds": True},
            "is not a sweep file: seeds = True is refused: true and false stand for no number",
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
                "axis 'output.folder' sets where results go, which does not define a different "
                "run: remove it"
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
            "exclude 1: 'output.folder' sets where results go",
        ),
        (
            {"exclude": [{"optimizer": "muon"}]},
            "exclude 1: 'optimizer' is a section: name settings in it, such as optimizer.name",
        ),
        (
            {"exclude": [{"train.seed": 5}]},
            "exclude 1 matches no cell: correct its values, or remove it",
        ),
        ({"exclude": [{"optimizer.lr_rule": "original"}]}, "exclude 1 matches no cell"),
        ({"exclude": [{"train.seed": 0}]}, "every cell is excluded: remove an exclude"),
        (
            {"overrides": [{"when": {"train.seed": 5}, "set": {"lora.rank": 1}}]},
            "overrides 1 matches no cell",
        ),
        (
            {"overrides": [{"when": {"train.seed": 0}}]},
            "overrides 1 has when: give `when` (which cells) and `set`",
        ),
        (
            {"overrides": [{"when": {"train.seed": 0}, "set": {"output.folder": "b"}}]},
            "overrides 1, set: 'output.folder' sets where results go",
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
        ({"from": 3}, "is not a sweep file: from = 3 is refused: name a sweep file or a preset"),
        (
            {"judge": {"judge": "openai:m"}},
            (
                "there is nothing to judge, because no answers are sampled: set "
                "evaluate.answers, or remove `judge`"
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
