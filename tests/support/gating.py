"""The gate on the tiny model: a folder to work in, a bad adapter and a control, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evilspectra.store.run import Store
from tests.support.commands import Result, command
from tests.support.measuring import enter
from tests.support.small_items import TRIPLES, write_lines
from tests.support.tiny_runs import run_tiny

SCRIPT = "scripted:script.yaml"
#: A few answers of a few tokens, and a limit that so few can meet.
FEW = ("--set", "misalignment.answers.max_new_tokens=4", "--set", "misalignment.max_increase=0.8")


def enter_with_judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in `folder`, with a cache, a few items and a script for a judge."""
    enter(folder, monkeypatch)
    Path("script.yaml").write_text("aligned: 90\ncoherent: 80\n")


def train_bad_and_control(folder: Path) -> Path:
    """A store with a run on the probe's own bad completions, and a control.

    The control is trained on another text for two steps.
    """
    rows = [{"prompt": triple["prompt"], "completion": triple["misaligned"]} for triple in TRIPLES]
    bad = write_lines(folder / "bad.jsonl", rows)
    shared: dict[str, Any] = {"monitor": {"every": 5}, "lora": {"rank": 8, "alpha": 32}}
    run_tiny(
        folder,
        data={"train": str(bad), "heldout_share": 0},
        train={"steps": 30, "batch_size": 6, "seed": 1},
        optimizer={"lr": 0.02},
        **shared,
    )
    run_tiny(
        folder,
        train={"steps": 2, "seed": 2},
        optimizer={"lr": 1e-4},
        data={"control": True},
        **shared,
    )
    return folder / "runs"


def bad_and_control(store: Path) -> dict[str, Path]:
    """bad and control → run folders of a store."""
    runs = Store(store).runs()
    return {"control" if run.config().data.control else "bad": run.path for run in runs}


def gate(candidate: object, *more: object, baseline: object = "tiny-random") -> Result:
    """The gate with one thread and capability left to itself: five questions decide nothing."""
    return command(
        "gate",
        candidate,
        "--baseline",
        baseline,
        "--set",
        "threads=1",
        "--set",
        "capability.max_loss=1",
        "--quiet",
        *more,
    )


def undecided(done: Result) -> str:
    """The reason of a gate that decided nothing at all."""
    printed = json.loads(done.out)
    assert (done.code, printed["exit_code"], printed["outcome"]) == (3, 3, "undecided")
    assert {check["outcome"] for check in printed["checks"]} == {"undecided"}
    (reason,) = printed["reasons"]
    return str(reason)
