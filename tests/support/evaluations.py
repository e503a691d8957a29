"""Targets to evaluate, and what the tests of the evaluation stage check on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evilspectra.config.evaluation import Evaluation
from evilspectra.errors import EvilspectraError
from evilspectra.evaluation import evaluate as stage
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.targets.find import Target, find_targets
from tests.support.small_items import (
    one_target,
    write_adapter,
)
from tests.support.tiny_runs import run_tiny


def train_two(folder: Path) -> Path:
    """A store with two runs of 4 steps, with checkpoints."""
    for seed in (0, 1):
        run_tiny(
            folder,
            train={"steps": 4, "checkpoints": [0, 2, 3], "seed": seed},
            optimizer={"lr": 0.01},
        )
    return folder / "runs"


def copied_targets(store: Path, folder: Path) -> list[Target]:
    """The runs of a copy of a store, not measured before."""
    shutil.copytree(store, folder / "runs")
    return find_targets([str(folder / "runs")], str(folder / "runs"))


def adapter_maker(folder: Path) -> Callable[..., Target]:
    """Makes a target of a drawn adapter, or of a folder that `spoil` has changed."""

    def make(
        name: str,
        seed: int = 1,
        spoil: Callable[[Path], object] | None = None,
        **more: Any,
    ) -> Target:
        path = write_adapter(folder / name, seed, **more)
        if spoil:
            spoil(path)
        return one_target(path, folder / "runs")

    return make


def counted_loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every base model that is loaded from here on."""
    bases_loaded: list[Any] = []
    load = stage.load_base

    def counted(*arguments: Any) -> Any:
        loaded = load(*arguments)
        bases_loaded.append(loaded[0])
        return loaded

    monkeypatch.setattr(stage, "load_base", counted)
    return bases_loaded


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("this was done before")

    for name in names or ("load_base", "load_adapter", "token_log_probs", "sample"):
        monkeypatch.setattr(stage, name, refuse)


def tables(target: Target) -> dict[str, list[int]]:
    return {
        table: target.results.steps(measuring)
        for table in ("probe", "capability", "ordinary", "answers")
        for measuring in target.results.instruments(table)
    }


def done(
    targets: list[Target], settings: Evaluation, note: Callable[[str], object] = lambda text: None
) -> None:
    assert evaluate(targets, settings, note).failed == []


def why(target: Target, settings: Evaluation, *others: Target) -> EvilspectraError:
    """Why a target could not be measured; the others were."""
    failed = evaluate([target, *others], settings).failed
    assert [failed_target.label for failed_target, _ in failed] == [target.label], [
        str(error) for _, error in failed
    ]
    error = failed[0][1]
    assert "\n" not in str(error)
    assert not any(step for steps in tables(target).values() for step in steps)
    return error
