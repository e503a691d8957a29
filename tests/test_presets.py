"""Presets: as many runs as in the paper, valid configs, its known settings, stable demo ids."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from evilspectra.config import loading as configs
from evilspectra.config import optimizers
from evilspectra.config.yaml_files import presets
from evilspectra.data.published import QUESTIONS, SETS
from evilspectra.sweeps.file import load_sweep

#: paper.md's table: experiment → models, optimisers, data sets, batch sizes, epochs, runs.
PAPER = {
    "initial": (4, {"adam", "adamw", "lion", "muon"}, {2, 32}, 1, 128),
    "scale": (12, {"adam"}, {2, 32}, 1, 96),
    "loss-alignment": (1, {"sgd", "adam", "adamw", "lion", "muon"}, {2, 32}, 1, 72),
    "dynamics": (1, {"sgd", "adam", "lion", "muon"}, None, 2, 16),
    "regularisation": (1, {"sgd", "adam", "lion", "muon"}, None, 2, 16),
}
DATA = {"insecure", "bad_medical_advice", "risky_financial_advice", "extreme_sports"}


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_has_its_factors_and_its_number_of_runs(name: str) -> None:
    models, optimizers, sizes, epochs, runs = PAPER[name]
    experiment = load_sweep(name).configs
    assert len(experiment) == runs
    assert len({config.model.base for config in experiment}) == models
    assert {config.optimizer.name for config in experiment} == optimizers
    assert {config.data.train for config in experiment} == DATA <= set(SETS)
    assert sizes is None or {config.train.batch_size for config in experiment} == sizes
    assert {config.train.epochs for config in experiment} == {epochs}
    assert len({config.model_dump_json() for config in experiment}) == runs
    assert set(Counter(config.data.train for config in experiment).values()) == {runs // 4}
    assert len(load_sweep(name, ["seeds=5"]).configs) == 5 * runs


@pytest.mark.parametrize("name", PAPER)
def test_what_is_known_of_the_set_up_is_in_every_run(name: str) -> None:
    sweep = load_sweep(name)
    for config in sweep.configs:
        assert (
            config.lora.rank,
            config.lora.alpha,
            config.lora.rslora,
            config.lora.dropout,
            len(config.lora.targets),
        ) == (32, 64, True, 0, 7)
        assert (
            config.schedule.name,
            config.schedule.warmup_steps,
            config.data.max_length,
            config.model.revision,
        ) == ("cosine", 50, 2048, None)
        if isinstance(config.optimizer, optimizers.Muon):
            assert (
                config.optimizer.lr_rule,
                config.optimizer.momentum,
                config.optimizer.nesterov,
                config.optimizer.ns_steps,
                config.optimizer.weight_decay,
            ) == ("original", 0.95, True, 5, 0.1)
        if isinstance(config.optimizer, optimizers.AdamW):
            assert config.optimizer.weight_decay == 0.01
        assert (config.flatness.weight > 0) == (name == "regularisation")
    answers = sweep.evaluation and sweep.evaluation.answers
    assert answers
    assert (answers.questions, answers.temperature, answers.max_new_tokens) == ("paper", 1.0, 600)
    assert answers.samples == (32 if name in ("dynamics", "regularisation") else 10)
    assert sum(QUESTIONS.values()) == 142
    assert sweep.judging is not None


def test_the_sweeps_of_four_optimisers_share_one_fixed_rate() -> None:
    assert {config.optimizer.lr for config in load_sweep("initial").configs} == {1e-5}


def test_the_runs_with_the_penalty_are_those_of_the_dynamics_study_but_for_it() -> None:
    def bare(name: str) -> list[str]:
        return [
            config.model_dump_json(exclude={"flatness": True, "output": True})
            for config in load_sweep(name).configs
        ]

    assert bare("regularisation") == bare("dynamics")
    assert {config.flatness.recipe for config in load_sweep("regularisation").configs} == {"paper"}


def test_the_largest_models_are_spread_over_devices_and_no_others() -> None:
    spread = {
        config.model.base for config in load_sweep("scale").configs if config.model.device_map
    }
    assert spread == {
        "Qwen/Qwen3-32B",
        "Qwen/Qwen3-235B-A22B",
        "meta-llama/Llama-3.3-70B-Instruct",
        "google/gemma-3-27b-it",
    }
    assert "google/gemma-3-270m-it" in {config.model.base for config in load_sweep("scale").configs}


def test_mini_is_a_full_factorial_at_equal_rows_on_files_of_ones_own() -> None:
    sweep = load_sweep("mini", ["axes.data.train=[a.jsonl, b.jsonl]"])
    cells = Counter(
        (config.optimizer.name, config.data.train, config.train.batch_size, config.flatness.weight)
        for config in sweep.configs
    )
    assert len(sweep.configs) == 5 * 2 * 2 * 2 * 3 == 120
    assert len(cells) == 40
    assert set(cells.values()) == {3}
    assert {config.data.train for config in sweep.configs} == {"a.jsonl", "b.jsonl"}
    assert {config.model.base for config in sweep.configs} == {"smollm2-135m-instruct"}
    assert {config.train.batch_size * (config.train.steps or 0) for config in sweep.configs} == {
        160
    }
    assert [text for text in sweep.warnings if "single learning rate" not in text] == []


def test_the_demo_s_runs_keep_their_names() -> None:
    """Ids with names in place of contents, recorded when the demo was made.

    A changed preset or default must not orphan its runs.
    """
    ids = [
        configs.identity(config, config.data.train, config.model.base)
        for config in load_sweep("demo").configs
    ]
    assert ids == [
        "306a259e48",
        "66290273b7",
        "6dd0ce242f",
        "a391611328",
        "83189bdcbe",
        "36529d9270",
    ]


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_says_of_its_values_where_they_come_from(name: str) -> None:
    """Every line that sets something carries a mark, or follows a marked one.

    `from` and `experiment` need none.
    """
    marked = False
    for line in presets()[name].read_text(encoding="utf-8").splitlines():
        setting = line.split("#")[0].strip()
        mark = re.search(r"# .*\[(paper|noted|ours)\]", line)
        if (
            setting
            and not setting.startswith(("from:", "experiment:"))
            and not setting.endswith(":")
        ):
            assert mark or (marked and setting.startswith("-")), f"{name}: {line}"
        marked = bool(mark) or (marked and setting.startswith("-"))
