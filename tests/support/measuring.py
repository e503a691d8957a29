"""Measurements by commands: a folder to work in, small items, a run and a control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evilspectra.answers.questions import BUILT_IN
from evilspectra.evaluation import evaluate as stage
from evilspectra.probes.items import CAPABILITY, CONTRAST, ORDINARY
from evilspectra.store.run import Store
from tests.support.commands import command
from tests.support.small_items import (
    CHOICES,
    DIALOGUES,
    TRIPLES,
    write_lines,
    write_questions,
)
from tests.support.tiny_runs import run_tiny

SHORT = ("--set", "threads=1")
FEW = (*SHORT, "--max-new-tokens", "4")


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in `folder`, with its own cache and a few items under the built-in names."""
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    items = folder / "items"
    items.mkdir()
    for built_in, rows in ((CONTRAST, TRIPLES), (CAPABILITY, CHOICES), (ORDINARY, DIALOGUES)):
        (name,) = built_in
        monkeypatch.setitem(built_in, name, str(write_lines(items / f"{name}.jsonl", list(rows))))
    monkeypatch.setitem(BUILT_IN, "open", str(write_questions(items / "open.yaml")))


def train_pair(folder: Path) -> Path:
    """A store with a run and its control."""
    run_tiny(folder, train={"steps": 4, "checkpoints": [2]}, optimizer={"lr": 0.01})
    run_tiny(folder, train={"steps": 4, "seed": 1}, optimizer={"lr": 0.01}, data={"control": True})
    return folder / "runs"


def pair_in(store: Path) -> list[Path]:
    """The folders of the run and of the control."""
    return sorted((run.path for run in Store(store).runs()), key=lambda path: "-s1-" in path.name)


def forbid_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is loaded."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("no model is needed for this")

    monkeypatch.setattr(stage, "load_base", refuse)


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """The settings of a measurement that a command asks for; nothing is measured."""
    seen: list[Any] = []

    def evaluate(targets: Any, settings: Any, note: Any) -> stage.Evaluated:
        seen.append(settings)
        return stage.Evaluated([], {target.results.folder: {} for target in targets})

    with monkeypatch.context() as patch:
        patch.setattr(stage, "evaluate", evaluate)
        done = command(*arguments, "--quiet")
    assert done.code == 0, done.err
    return seen[0]
