"""A run in one row: what is known is right, what is not known is null, and it prints whole."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from evilspectra.cli.print_runs import print_summaries
from evilspectra.config import loading as configs
from evilspectra.evaluation.summary import summarise
from evilspectra.store.records import HeldoutRecord, MeasureRecord, RunSummary, StepRecord
from evilspectra.store.run import RunFolder, Status
from evilspectra.store.step_means import last_mean, number
from tests.support.synthetic_store import Arm, write_run


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_the_training_loss_is_the_mean_of_the_last_twentieth(losses: list[float]) -> None:
    count = max(1, round(len(losses) / 20))
    assert last_mean(pd.Series(losses)) == pytest.approx(
        math.fsum(losses[-count:]) / count, abs=1e-6
    )


@pytest.mark.parametrize(
    ("losses", "mean"),
    [([], None), ([2.0], 2.0), ([1.0] * 39 + [3.0], 2.0), ([1.0, float("nan")], None)],
)
def test_the_training_loss_at_the_edges(losses: list[float], mean: float | None) -> None:
    assert last_mean(pd.Series(losses, dtype=float)) == mean


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (math.nan, None), (math.inf, None), (-math.inf, None)],
)
def test_a_number_that_json_does_not_know_is_null(value: float, expected: float | None) -> None:
    assert number(value) == expected


def begun(folder: Path) -> RunFolder:
    run = RunFolder(folder / "x" / "run")
    run.begin(
        configs.build(
            {
                "model": {"base": "tiny-random"},
                "optimizer": {"name": "lion", "lr": 0.5},
                "flatness": {"weight": 2},
                "train": {"seed": 7, "batch_size": 3},
            }
        ),
        {},
    )
    return run


def test_a_run_without_records_is_all_null_but_its_settings(tmp_path: Path) -> None:
    summary = asdict(summarise(begun(tmp_path)))
    settings = {
        "experiment": "x",
        "run": "run",
        "arm": "lion + flatness 2",
        "base": "tiny-random",
        "data": "demo-bad",
        "optimizer": "lion",
        "lr": 0.5,
        "flatness_weight": 2.0,
        "batch_size": 3,
        "seed": 7,
    }
    assert settings.items() <= summary.items()
    assert (summary["status"], summary["steps"]) == ("queued", 0)
    assert all(
        summary[name] is None
        for name in (
            "train_loss",
            "heldout_loss",
            "heldout_loss_start",
            "stable_rank",
            "spectral_entropy",
            "condition_number",
            "frobenius_nuclear",
            "frobenius",
            "tokens_per_s",
            "seconds",
            "reason",
        )
    )


def test_the_numbers_are_those_of_the_records(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.append(
        "steps",
        [
            StepRecord(step, 4.0 - step, 0.5, 1.0, 100 * step, 9, None, None, 0.5)
            for step in (1, 2, 3)
        ],
        3,
    )
    run.append(
        "heldout", [HeldoutRecord(0, 5.0, 9), HeldoutRecord(2, 3.0, 9), HeldoutRecord(3, 2.0, 9)], 3
    )
    run.append(
        "measures",
        [MeasureRecord(1, "a", 9.0, 9.0, 9.0, 9.0, 9.0, "gram")]
        + [
            MeasureRecord(3, module, value, value, value, value, value, "gram")
            for module, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))
        ],
        3,
    )
    run.append("measures", [], 3)
    run.set_status(Status("failed", "why", 3, 9))
    summary = summarise(run)
    assert (summary.status, summary.reason, summary.steps) == ("failed", "why", 3)
    assert (summary.train_loss, summary.heldout_loss_start, summary.heldout_loss) == (1.0, 5.0, 2.0)
    assert (
        summary.stable_rank,
        summary.spectral_entropy,
        summary.frobenius_nuclear,
        summary.frobenius,
    ) == (3.0, 3.0, 3.0, 3.0)
    assert summary.condition_number == 2.0  # the median
    assert (summary.tokens_per_s, summary.seconds) == (400.0, 1.5)


def test_modules_without_a_spectrum_are_left_out_and_infinite_condition_is_null(
    tmp_path: Path,
) -> None:
    run = begun(tmp_path)
    run.append(
        "measures",
        [
            MeasureRecord(1, "a", 0.0, None, None, None, None, "zero"),
            MeasureRecord(1, "b", 2.0, 1.5, 0.5, math.inf, 0.7, "gram"),
        ],
        1,
    )
    summary = summarise(run)
    assert (summary.stable_rank, summary.condition_number, summary.frobenius) == (1.5, None, 1.0)
    json.dumps(asdict(summary), allow_nan=False)


def test_only_the_loss_before_training_is_the_start(tmp_path: Path) -> None:
    run = begun(tmp_path)
    run.append("heldout", [HeldoutRecord(2, 3.0, 9)], 2)
    assert (summarise(run).heldout_loss_start, summarise(run).heldout_loss) == (None, 3.0)


def printed(*summaries: RunSummary, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summaries(summaries, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_prints_every_number_whole_on_a_narrow_screen(tmp_path: Path) -> None:
    summary = summarise(write_run(tmp_path, Arm("adamw", 1e6, [400.0, 2.0, 1.0, 0.5])))
    text = printed(summary, width=40)
    assert "…" not in text
    values = (
        f"{summary.train_loss:.3f}",
        f"{summary.heldout_loss:.3f}",
        f"{summary.stable_rank:.2f}",
        f"{summary.spectral_entropy:.2f}",
        f"{summary.frobenius_nuclear:.3f}",
        f"{summary.condition_number:.3g}",
        f"{summary.tokens_per_s:.0f}",
        f"{summary.lr:g}",
    )
    assert all(value in text for value in ("adamw + flatness 1e+06", *values))
    assert text.count("\n") == 3


def test_the_table_marks_what_is_not_done_with_its_reason_as_it_is(tmp_path: Path) -> None:
    done = summarise(write_run(tmp_path, Arm("sgd", seed=1)))
    failed = summarise(
        write_run(
            tmp_path,
            Arm(
                "lion", status=Status("failed", "[bold]no[/bold] :smile:"), steps=0, measured=False
            ),
        )
    )
    text = printed(done, failed)
    assert "sgd, seed 1 " in text
    assert "lion, seed 0 (failed)" in text
    assert f"{failed.run}: [bold]no[/bold] :smile:" in text
    assert (
        next(line for line in text.splitlines() if line.startswith("lion")).split()[-7:]
        == ["-"] * 7
    )


def test_every_field_of_a_summary_is_plain_json(tmp_path: Path) -> None:
    summary = asdict(summarise(write_run(tmp_path, Arm("muon", 2.5))))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary.keys() == {field.name for field in fields(RunSummary)}
