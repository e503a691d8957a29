"""The measurements in a folder: the last step against the base, the instrument that counts.

None where nothing was measured.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evilspectra.answers.questions import read_questions
from evilspectra.config.evaluation import Answers
from evilspectra.errors import BadInput
from evilspectra.evaluation.measured import (
    Measured,
    answer_rows,
    beyond_control,
    measured,
    measured_rows,
    tasks,
    trajectory,
)
from evilspectra.probes import drift as numbers
from evilspectra.store.records import (
    AnswerRecord,
    CapabilityRecord,
    OrdinaryRecord,
    ProbeRecord,
    RunSummary,
    TaskRecord,
)
from evilspectra.store.results import Instrument, Results, chosen, last
from tests.support.small_items import write_questions


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "run")


def instrument(table: str = "probe", source: str = "own.jsonl", **facts: Any) -> Instrument:
    return Instrument(table, source, {"version": 1, **facts})


def probe_rows(step: int, count: int = 12) -> list[ProbeRecord]:
    random = np.random.default_rng(step)
    return [
        ProbeRecord(
            step,
            f"i{number}",
            "ab"[number % 2],
            -random.uniform(1, 5),
            -random.uniform(1, 5),
            5 + number % 3,
            6,
        )
        for number in range(count)
    ]


def write(
    results: Results,
    measuring: Instrument,
    *steps: int,
    rows: Any = probe_rows,
) -> Instrument:
    for step in steps:
        results.write(measuring, step, rows(step))
    return measuring


def used_at(results: Results, measuring: Instrument, time: int) -> None:
    os.utime(
        results.folder / "evaluations" / measuring.table / f"{measuring.id}.json", (time, time)
    )


def frame(rows: list[Any]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows])


NOTHING = Measured(None, None, None, {}, None, None, {})


def test_nothing_was_measured(results: Results) -> None:
    assert measured(results) == NOTHING
    assert (
        chosen(results, "probe"),
        last(results, "probe"),
        trajectory(results),
        tasks(results),
    ) == (None, None, {}, {})


def test_only_the_base_was_measured(results: Results) -> None:
    write(results, instrument(), 0)
    assert measured(results) == NOTHING


def test_the_last_step_is_set_against_the_base(results: Results) -> None:
    write(results, instrument(), 0, 4, 16)
    measurements = measured(results)
    assert measurements.drift == numbers.drift(frame(probe_rows(0)), frame(probe_rows(16)))
    assert measurements.trajectory == {
        step: numbers.drift(frame(probe_rows(0)), frame(probe_rows(step))).drift for step in (4, 16)
    }
    assert list(measurements.trajectory) == [4, 16]


def test_every_table(results: Results) -> None:
    def choices(step: int) -> list[CapabilityRecord]:
        return [
            CapabilityRecord(step, f"i{number}", "k", -1.0 - (number + step) % 3, -1.5)
            for number in range(6)
        ]

    def dialogues(step: int) -> list[OrdinaryRecord]:
        return [
            OrdinaryRecord(step, f"i{number}", 2.0 + step + number, 3 + number)
            for number in range(4)
        ]

    def answer_rows(step: int) -> list[AnswerRecord]:
        return [
            AnswerRecord(step, "q", 0, number, None, "?", "!", 2, "stop", flag)
            for number, flag in enumerate(("", "empty,truncated", "truncated"))
        ]

    for table, rows in (("capability", choices), ("ordinary", dialogues), ("answers", answer_rows)):
        write(results, instrument(table), 0, 4, rows=rows)
    measurements = measured(results)
    assert measurements.capability == numbers.capability(frame(choices(0)), frame(choices(4)))
    assert measurements.ordinary == numbers.ordinary(frame(dialogues(0)), frame(dialogues(4)))
    assert (measurements.drift, measurements.answers, measurements.flagged) == (None, 3, 2)


def test_rows_without_the_base_s_are_no_result(results: Results) -> None:
    """As where step 0 was removed by hand."""
    write(results, instrument(), 4)
    assert measured(results) == NOTHING


# --- which instrument counts ----------------------------------------------------------------------


def test_the_built_in_items_count_or_else_those_used_last(results: Results) -> None:
    first, second = (
        write(results, instrument(source=f"{name}.jsonl", items=name), 0, 4) for name in "ab"
    )
    used_at(results, first, 1000)
    used_at(results, second, 2000)
    assert chosen(results, "probe") == second
    built_in = write(results, instrument(source="contrast", items="c"), 0, 4)
    used_at(results, built_in, 1)
    assert chosen(results, "probe") == built_in


def test_of_two_with_the_built_in_items_the_one_used_last_counts(results: Results) -> None:
    """With another number type, or a later version of the items, the last one used is shown."""
    first, second = (
        write(results, instrument(source="contrast", sha256=name), 0, 4) for name in "ab"
    )
    used_at(results, first, 1000)
    used_at(results, second, 2000)
    assert chosen(results, "probe") == second


def test_a_damaged_table_is_named(results: Results) -> None:
    measuring = write(results, instrument(), 0, 4)
    path = results.folder / "evaluations" / "probe" / f"{measuring.id}-00000000.parquet"
    path.write_bytes(b"")
    with pytest.raises(
        BadInput,
        match=r"-00000000\.parquet cannot be read \(.*\): remove that file, and measure again$",
    ):
        measured(results)


# --- numbers of a run's row -----------------------------------------------------------------------


def test_the_flat_numbers_are_columns_of_a_run_s_summary(results: Results) -> None:
    names = {field.name for field in fields(RunSummary)}
    assert set(NOTHING.flat()) < names
    assert set(NOTHING.flat().values()) == {None}
    write(results, instrument(), 0, 4)
    measurements = measured(results)
    assert measurements.drift is not None
    flat = measurements.flat()
    assert (flat["drift"], flat["drift_low"], flat["drift_high"]) == (
        measurements.drift.drift.value,
        measurements.drift.drift.low,
        measurements.drift.drift.high,
    )
    assert (flat["drift_shuffled"], flat["share_aligned"], flat["share_aligned_base"]) == (
        measurements.drift.shuffled.value,
        measurements.drift.share_aligned.value,
        measurements.drift.base_share_aligned,
    )
    assert flat["capability"] is None
    json.dumps(flat, allow_nan=False)


def test_a_drift_of_exactly_zero_is_zero_and_not_missing(results: Results) -> None:
    write(
        results,
        instrument(),
        0,
        4,
        rows=lambda step: [
            ProbeRecord(step, f"i{number}", "t", -1.0, -2.0, 3, 3) for number in range(4)
        ],
    )
    flat = measured(results).flat()
    assert (flat["drift"], flat["drift_low"], flat["drift_high"], flat["share_aligned"]) == (
        0.0,
        0.0,
        0.0,
        1.0,
    )


# --- tasks and answers ----------------------------------------------------------------------------


def test_tasks_are_named_by_metric_and_filter(results: Results) -> None:
    def scores(step: int) -> list[TaskRecord]:
        return [
            TaskRecord(step, "gsm", "exact_match", cut, 0.25 + step + position, None, 4, "1")
            for position, cut in enumerate(("none", "strict"))
        ]

    write(results, instrument("tasks", "gsm"), 0, 4, rows=scores)
    assert tasks(results) == {
        "gsm exact_match": (0.25, 4.25),
        "gsm exact_match (strict)": (1.25, 5.25),
    }


@pytest.fixture
def sampling(tmp_path: Path) -> Answers:
    return Answers(questions=str(write_questions(tmp_path / "questions.yaml")), samples=2)


def answered(step: int) -> list[AnswerRecord]:
    return [
        AnswerRecord(
            step, "q", 0, number, None if number else "", "?", f"{step} {number}", 2, "stop", ""
        )
        for number in range(2)
    ]


def facts(sampling: Answers, **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "sha256": read_questions(sampling.questions).sha256,
        **sampling.model_dump(exclude={"questions", "checkpoints"}),
        "dtype": "float32",
        **more,
    }


def test_answers_of_a_folder_are_those_that_were_asked_for(
    results: Results, sampling: Answers
) -> None:
    first, second = (Instrument("answers", "x", facts(sampling, seed=seed)) for seed in (0, 3))
    write(results, first, 0, 4, rows=answered)
    write(results, second, 0, 9, rows=answered)
    rows = answer_rows("me", replace(results, selected={"answers": first}))
    assert [(row["target"], row["step"], row["sample"], row["answer"]) for row in rows] == [
        ("me", step, number, f"{step} {number}") for step in (0, 4) for number in range(2)
    ]
    assert [row["system"] for row in rows] == ["", None] * 2
    assert set(rows[0]) == {"target", *(field.name for field in fields(AnswerRecord))}
    assert {
        row["step"] for row in answer_rows("me", replace(results, selected={"answers": second}))
    } == {0, 9}
    json.dumps(rows, allow_nan=False)


def test_answers_of_a_folder_are_otherwise_those_used_last(
    results: Results, sampling: Answers
) -> None:
    assert answer_rows("me", results) == []
    for time, dtype in enumerate(("float64", "float32")):
        used_at(
            results,
            write(
                results,
                Instrument("answers", "x", facts(sampling, dtype=dtype)),
                time,
                rows=answered,
            ),
            1000 + time,
        )
    assert {row["step"] for row in answer_rows("me", results)} == {1}


def test_a_probe_that_was_asked_for_counts_before_the_built_in_one(results: Results) -> None:
    own, mine = (
        Instrument("probe", "contrast", {"version": 1}),
        Instrument("probe", "mine.jsonl", {"version": 1, "sha256": "x"}),
    )
    for measuring in (mine, own):
        write(results, measuring, 0, 4)
    assert chosen(results, "probe") == own
    assert chosen(replace(results, selected={"probe": mine}), "probe") == mine


def test_a_base_alone_is_shown_with_its_own_numbers(results: Results) -> None:
    write(results, Instrument("probe", "contrast", {"version": 1}), 0)
    assert measured(results).drift is None
    alone = measured(replace(results, alone=True)).drift
    assert alone is not None
    assert (alone.drift.value, alone.drift.low, alone.drift.high) == (0, 0, 0)
    assert alone.share_aligned.value == alone.base_share_aligned


# --- controls -------------------------------------------------------------------------------------


def control(
    tmp_path: Path,
    name: str,
    step: int,
    measuring: Instrument | None = None,
) -> Results:
    results = Results(tmp_path / name)
    write(results, measuring or instrument(), 0, step)
    return results


def test_beyond_the_controls_is_the_difference_item_by_item(tmp_path: Path) -> None:
    mine, *controls = [
        control(tmp_path, name, step) for name, step in (("mine", 4), ("a", 5), ("b", 6))
    ]
    difference = beyond_control(mine, controls)
    want = numbers.beyond_control(
        frame(probe_rows(0)), frame(probe_rows(4)), [frame(probe_rows(step)) for step in (5, 6)]
    )
    assert difference == want

    def shift(step: int) -> pd.Series:
        base, after = frame(probe_rows(0)), frame(probe_rows(step))
        return (after["misaligned"] - after["aligned"]) - (base["misaligned"] - base["aligned"])

    assert difference is not None
    assert math.isclose(
        difference.value, float((shift(4) - (shift(5) + shift(6)) / 2).mean()), abs_tol=1e-12
    )
    itself = beyond_control(mine, [mine])
    assert itself == numbers.Interval(0, 0, 0)


def test_controls_that_were_not_measured_or_otherwise_do_not_count(tmp_path: Path) -> None:
    mine = control(tmp_path, "mine", 4)
    assert beyond_control(mine, []) is None
    assert beyond_control(mine, [Results(tmp_path / "nothing")]) is None
    assert beyond_control(mine, [control(tmp_path, "other", 5, instrument(items="others"))]) is None
    assert beyond_control(Results(tmp_path / "nothing"), [mine]) is None


def test_a_control_measured_with_the_same_items_under_another_name_counts(tmp_path: Path) -> None:
    mine = control(tmp_path, "mine", 4)
    assert (
        beyond_control(mine, [control(tmp_path, "other", 5, instrument(source="copy.jsonl"))])
        is not None
    )


def test_lines_are_compared_with_controls_of_their_own_base(tmp_path: Path) -> None:
    mine, good, elsewhere = (
        control(tmp_path, name, step) for name, step in (("mine", 4), ("good", 5), ("elsewhere", 6))
    )
    rows = measured_rows(
        [
            ("mine", mine, "a", False),
            ("good", good, "a", True),
            ("elsewhere", elsewhere, "b", True),
            ("none", mine, "c", False),
        ]
    )
    assert [row.label for row in rows] == ["mine", "good", "elsewhere", "none"]
    assert [row.beyond for row in rows] == [beyond_control(mine, [good]), None, None, None]
