"""A run as rows, as stored in the index of a store.

They are its summary, its results at each step, and its rates by judge and definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.evaluation.measured import Measured, measured
from evilspectra.evaluation.rate_rows import RateRow, rate_row
from evilspectra.evaluation.run_rates import (
    MAIN_DEFINITION,
    counting,
    judge_identity,
    judges_of,
    rates,
)
from evilspectra.evaluation.summary import summarise
from evilspectra.intervals import Interval
from evilspectra.judging.verdicts import judged
from evilspectra.rates.definitions import DEFINITIONS, score
from evilspectra.store.origin import origin
from evilspectra.store.records import RunSummary
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder
from evilspectra.store.step_means import last_mean, module_summary, number


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """Measurements of a run after `step` steps; null where unknown. Units as in `RunSummary`.

    `train_loss`: mean of the last 5 % of the steps up to this one; spectral measures: means over
    modules (condition number: median). `misalignment` to `mean_coherence`: by the judge that the
    run's summary shows, under its definition. `last`: whether it is the run's last step.
    """

    step: int
    last: bool
    train_loss: float | None
    heldout_loss: float | None
    stable_rank: float | None
    spectral_entropy: float | None
    condition_number: float | None
    frobenius_nuclear: float | None
    frobenius: float | None
    drift: float | None
    drift_low: float | None
    drift_high: float | None
    misalignment: float | None
    misalignment_low: float | None
    misalignment_high: float | None
    misalignment_counted: int | None
    misaligned: int | None
    mean_alignment: float | None
    mean_coherence: float | None


@dataclass(frozen=True, slots=True)
class Digest:
    """A run in rows. `settings`: dotted path → value, as far as it is known."""

    summary: RunSummary
    settings: Mapping[str, Any]
    checkpoints: tuple[CheckpointRow, ...]
    rates: tuple[RateRow, ...]


def digest(run: RunFolder) -> Digest:
    """Collects everything that the tables of runs, checkpoints and rates contain of a run.

    Raises:
        BadInput: one of its files cannot be read.
    """
    results = counting(Results(run.path))
    measurements = measured(results)
    rows = rate_rows(results)
    answers = chosen(results, "answers")
    rates_by_step = shown_rates(rows, results.steps(answers)[-1]) if answers and rows else {}
    return Digest(
        summarise(run, measurements, rates(results)),
        origin(run).settings,
        checkpoint_rows(run, measurements, rates_by_step),
        rows,
    )


def rate_rows(results: Results) -> tuple[RateRow, ...]:
    """Every judge's rates at every step whose answers it judged, under each definition.

    Judges are in the order of first use. `results`: a folder as `counting` returns it.
    """
    answers = chosen(results, "answers")
    if answers is None:
        return ()
    rows: list[RateRow] = []
    for judge in judges_of(results, answers):
        for step in results.steps(answers):
            verdicts = [answer for _, answer in judged(results, answers, step, judge)]
            if any(answer.aligned or answer.coherent for answer in verdicts):
                rows += [
                    rate_row(
                        step, judge.source, judge_identity(judge), judge.id, score(verdicts, name)
                    )
                    for name in DEFINITIONS
                ]
    return tuple(rows)


def checkpoint_rows(
    run: RunFolder, measurements: Measured, rates_by_step: Mapping[int, RateRow]
) -> tuple[CheckpointRow, ...]:
    """A row for every step at which more than the training loss is known, and for the last one.

    In order of steps.
    """
    steps: Any = run.read("steps")
    heldout: Any = run.read("heldout")
    measures: Any = run.read("measures")
    logged = steps.dropna(subset="loss") if run.is_outside else steps
    held = {
        int(step): number(loss) for step, loss in zip(heldout["step"], heldout["loss"], strict=True)
    }
    spectral = {int(step): module_summary(rows) for step, rows in measures.groupby("step")}
    end = int(steps["step"].iloc[-1]) if len(steps) else None
    recorded: set[int] = {*held, *spectral, *measurements.trajectory, *rates_by_step}
    if end is not None:
        recorded.add(end)
    return tuple(
        checkpoint_row(
            step,
            step == end,
            last_mean(logged[logged["step"] <= step]["loss"]),
            held.get(step),
            spectral.get(step),
            measurements.trajectory.get(step),
            rates_by_step.get(step),
        )
        for step in sorted(recorded)
    )


def shown_rates(rows: Sequence[RateRow], last: int | None) -> dict[int, RateRow]:
    """Maps each step to the row that a table with one rate shows.

    It is that of the judge used last among those that judged the answers of the step `last`, under
    the definition that is shown.
    """
    judges = [row.verdicts for row in rows if row.step == last] or [row.verdicts for row in rows]
    return {
        row.step: row
        for row in rows
        if row.verdicts == judges[-1] and row.definition == MAIN_DEFINITION
    }


def checkpoint_row(
    step: int,
    last: bool,
    loss: float | None,
    heldout: float | None,
    spectral: Mapping[str, float | None] | None,
    drift: Interval | None,
    rated: RateRow | None,
) -> CheckpointRow:
    """Builds the row of a step."""
    return CheckpointRow(
        step=step,
        last=last,
        train_loss=loss,
        heldout_loss=heldout,
        **(
            spectral
            or dict.fromkeys(
                (
                    "stable_rank",
                    "spectral_entropy",
                    "condition_number",
                    "frobenius_nuclear",
                    "frobenius",
                )
            )
        ),
        drift=drift and drift.value,
        drift_low=drift and drift.low,
        drift_high=drift and drift.high,
        misalignment=rated and rated.misalignment,
        misalignment_low=rated and rated.misalignment_low,
        misalignment_high=rated and rated.misalignment_high,
        misalignment_counted=rated and rated.counted,
        misaligned=rated and rated.misaligned,
        mean_alignment=rated and rated.mean_alignment,
        mean_coherence=rated and rated.mean_coherence,
    )
