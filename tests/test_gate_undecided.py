"""Candidates and baselines on which the gate decides nothing, each with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evilspectra.errors import RunFailed
from evilspectra.evaluation import evaluate as stage
from evilspectra.gating import evidence
from tests.support.commands import write_model
from tests.support.gating import (
    bad_and_control,
    enter_with_judge,
    gate,
    train_bad_and_control,
    undecided,
)
from tests.support.small_items import write_adapter


@pytest.fixture(autouse=True)
def _items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_with_judge(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_bad_and_control(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> dict[str, Path]:
    """bad and control → run folders in ./runs."""
    shutil.copytree(trained, tmp_path / "runs")
    return bad_and_control(tmp_path / "runs")


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    """An adapter that changes little."""
    return write_adapter(tmp_path / "fine", size=0.0003)


def spoilt(
    adapter: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Path:
    weights = change(load_file(adapter / "adapter_model.safetensors"))
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    return adapter


def test_a_zero_adapter(tmp_path: Path) -> None:
    assert "does not change the logits of tiny-random: it is empty (B = 0)" in undecided(
        gate(write_adapter(tmp_path / "zero", size=0), "--json")
    )


def test_a_zero_baseline(tmp_path: Path, fine: Path) -> None:
    assert "the baseline cannot be measured: the adapter in" in undecided(
        gate(fine, "--json", baseline=write_adapter(tmp_path / "zero", size=0))
    )


def other_base(folder: Path) -> Path:
    """A model of the tiny model's shape with other weights."""
    write_model(folder)
    return spoilt_model(folder)


def spoilt_model(folder: Path) -> Path:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value * 1.1 for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def test_an_adapter_of_another_base(tmp_path: Path, fine: Path) -> None:
    other = other_base(tmp_path / "other")
    reason = undecided(gate(fine, "--json", baseline=other))
    assert "the candidate belongs to tiny-random (" in reason
    assert f"and the baseline to {other} (" in reason
    mine = write_adapter(tmp_path / "mine", seed=3)
    settings = json.loads((mine / "adapter_config.json").read_text())
    (mine / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(other)})
    )
    assert "compare an adapter with its own base" in undecided(gate(mine, "--json"))
    assert "compare an adapter with its own base" in undecided(gate(mine, "--json", baseline=fine))


def test_an_adapter_that_does_not_fit_the_base_it_names(fine: Path) -> None:
    spoilt(
        fine,
        lambda weights: {
            name: value.repeat(1, 2) if "lora_A" in name else value
            for name, value in weights.items()
        },
    )
    assert "does not fit tiny-random" in undecided(gate(fine, "--json"))


def test_a_base_that_its_training_record_contradicts(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["bad"] / "adapter", tmp_path / "moved")
    other = other_base(tmp_path / "other")
    config = tmp_path / "moved" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(other)})
    )
    assert "was trained on another content of" in undecided(gate("moved", "--json", baseline=other))
    assert gate("moved", "--base", other, baseline=other).code in (
        0,
        1,
    )  # the user says that it is meant for this one


def test_weights_that_are_not_those_that_were_trained(runs: dict[str, Path]) -> None:
    assert gate(runs["control"]).code == 0
    spoilt(
        runs["control"] / "adapter",
        lambda weights: {name: value * 3 for name, value in weights.items()},
    )
    assert "are not those that were trained" in undecided(gate(runs["control"], "--json"))


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (
            lambda folder: (folder / "adapter_model.safetensors").unlink(),
            "holds no adapter_model.safetensors",
        ),
        (shutil.rmtree, "is no run below runs/"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(
                b"\x08\0\0\0\0\0\0\0garbage!"
            ),
            "the candidate cannot be measured",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text("{"),
            "adapter_config.json cannot be read",
        ),
        (
            lambda folder: (folder / "adapter_config.json").write_text(
                '{"base_model_name_or_path": "/gone"}'
            ),
            "/gone",
        ),
        (
            lambda folder: spoilt(
                folder,
                lambda weights: {name: value * float("nan") for name, value in weights.items()},
            ),
            "the model's logits are not finite",
        ),
    ],
)
def test_files_that_are_missing_or_damaged(
    fine: Path, harm: Callable[[Path], object], text: str
) -> None:
    harm(fine)
    assert text in undecided(gate("fine", "--json"))


def test_a_folder_of_several_runs(runs: dict[str, Path]) -> None:
    assert "holds 2 runs: name one of them" in undecided(gate("runs", "--json"))


def test_a_candidate_that_is_its_own_baseline(fine: Path) -> None:
    assert "candidate and baseline are the same" in undecided(gate(fine, "--json", baseline=fine))
    shutil.copytree(fine, "copy")
    assert "give the same log-probabilities to every text" in undecided(
        gate(fine, "--json", baseline="copy")
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out: lower answers.batch_size"),
        (MemoryError(), "memory ran out: take a smaller base"),
        (RunFailed("the device was lost"), "the device was lost"),
        (KeyError("layers"), "an unforeseen KeyError in "),
        (AssertionError(), "an unforeseen AssertionError in "),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_whatever_goes_wrong_while_measuring(
    fine: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    text: str,
) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(stage, "token_log_probs", broken)
    assert text in undecided(gate(fine, "--json"))


def test_log_probabilities_that_are_not_finite(fine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage.token_log_probs
    monkeypatch.setattr(
        stage,
        "token_log_probs",
        lambda *arguments, **more: [scores * float("nan") for scores in before(*arguments, **more)],
    )
    assert "some log-probabilities are not finite" in undecided(gate(fine, "--json"))


def test_one_side_that_fails_hides_no_failure_of_the_other_checks(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gate(runs["bad"]).code == 1
    monkeypatch.setattr(
        evidence, "judge_answer_sets", lambda *arguments, **more: pytest.fail("unforeseen")
    )
    monkeypatch.setattr(evidence, "_capability", lambda *arguments: 1 / 0)
    done = gate(runs["bad"], "--json")
    printed = json.loads(done.out)
    assert (done.code, [check["outcome"] for check in printed["checks"]]) == (
        1,
        ["fail", "undecided"],
    )
    assert printed["reasons"][0].startswith("drift: ")
    assert "an unforeseen ZeroDivisionError in test_gate_undecided.py" in printed["reasons"][1]
