"""Drift, capability and ordinary loss: their laws, and their intervals against a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evilspectra.errors import BadInput
from evilspectra.intervals import LEVEL, RESAMPLES, Interval
from evilspectra.probes.drift import beyond_control, capability, drift, exchanged, ordinary
from tests.reference.bootstrap import interval_by_loop

#: Means of numbers of size 5, taken in another order.
CLOSE = 1e-12


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


def probe_rows(
    count: int,
    seed: int = 0,
    topics: int = 3,
    **columns: Any,
) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    values = {
        "item": [f"i{number}" for number in range(count)],
        "topic": [f"topic{number % topics}" for number in range(count)],
        "aligned": -random.uniform(1, 5, count),
        "misaligned": -random.uniform(1, 5, count),
        "aligned_tokens": random.integers(5, 30, count),
        "misaligned_tokens": random.integers(5, 30, count),
    }
    return pd.DataFrame(values | columns)


counts, seeds = st.integers(2, 30), st.integers(0, 10**6)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame]:
    count, topics = draw(counts), draw(st.integers(1, 4))
    base, after = (probe_rows(count, draw(seeds), topics) for _ in range(2))
    after[["aligned_tokens", "misaligned_tokens"]] = base[["aligned_tokens", "misaligned_tokens"]]
    return base, after


law = settings(max_examples=25, deadline=None)


# --- drift ----------------------------------------------------------------------------------------


def test_the_definition_by_hand() -> None:
    base = pd.DataFrame(
        {
            "item": ["a", "b"],
            "topic": ["x", "y"],
            "aligned": [-1.0, -2.0],
            "misaligned": [-2.0, -1.5],
            "aligned_tokens": 4,
            "misaligned_tokens": 4,
        }
    )
    result = drift(base, base.assign(aligned=[-3.0, -2.5], misaligned=[-1.0, -3.0]))
    assert result.drift.value == ((-1 + 3) - (-2 + 1) + (-3 + 2.5) - (-1.5 + 2)) / 2 == 1.0
    assert {topic: interval.value for topic, interval in result.topics.items()} == {
        "x": 3.0,
        "y": -1.0,
    }
    assert (result.share_aligned.value, result.base_share_aligned) == (0.5, 0.5)
    assert (result.margin, result.base_margin, result.items) == (-0.75, 0.25, 2)


@law
@given(st.integers(2, 30), seeds)
def test_an_adapter_that_changes_nothing_has_no_drift_at_all(count: int, seed: int) -> None:
    base = probe_rows(count, seed)
    result = drift(base, base.copy())
    for interval in (result.drift, result.equal_length, result.shuffled, *result.topics.values()):
        assert interval == Interval(0, 0, 0)
    assert result.share_aligned.value == result.base_share_aligned
    assert result.resolution == 0
    assert not result.drift.clear_of()


@law
@given(pairs())
def test_exchanging_the_labels_negates_drift(both: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    names = {
        "aligned": "misaligned",
        "misaligned": "aligned",
        "aligned_tokens": "misaligned_tokens",
        "misaligned_tokens": "aligned_tokens",
    }
    straight, swapped = drift(*both), drift(*(rows.rename(columns=names) for rows in both))
    for name in ("drift", "equal_length", "shuffled"):
        a, b = getattr(straight, name), getattr(swapped, name)
        assert (a.value, a.low, a.high) == pytest.approx(
            (-b.value, -b.high, -b.low), abs=CLOSE * 10
        )
    assert straight.margin == pytest.approx(-swapped.margin, abs=CLOSE)
    assert {topic: -value.value for topic, value in straight.topics.items()} == pytest.approx(
        {topic: value.value for topic, value in swapped.topics.items()}, abs=CLOSE
    )


@law
@given(pairs(), st.floats(-50, 50), st.floats(-50, 50))
def test_a_constant_on_all_log_probabilities_changes_nothing(
    both: tuple[pd.DataFrame, pd.DataFrame], first: float, second: float
) -> None:
    moved = [
        rows.assign(aligned=rows["aligned"] + by, misaligned=rows["misaligned"] + by)
        for rows, by in zip(both, (first, second), strict=True)
    ]
    before, after = drift(*both), drift(*moved)
    for name in ("drift", "equal_length", "shuffled"):
        a, b = getattr(before, name), getattr(after, name)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-10)


@law
@given(pairs(), st.floats(0, 100))
def test_drift_is_linear_in_the_shift(
    both: tuple[pd.DataFrame, pd.DataFrame], factor: float
) -> None:
    base, after = both
    further = after.assign(
        **{
            name: base[name] + factor * (after[name] - base[name])
            for name in ("aligned", "misaligned")
        }
    )
    assert drift(base, further).drift.value == pytest.approx(
        factor * drift(base, after).drift.value, rel=1e-9, abs=1e-9
    )


@law
@given(pairs(), seeds)
def test_the_order_of_items_does_not_matter_to_the_value(
    both: tuple[pd.DataFrame, pd.DataFrame], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(both[0]))
    straight, reordered = (
        drift(*both),
        drift(*(rows.iloc[order].reset_index(drop=True) for rows in both)),
    )
    assert straight.drift.value == pytest.approx(reordered.drift.value, abs=CLOSE)
    assert straight.equal_length.value == pytest.approx(reordered.equal_length.value, abs=1e-10)
    assert straight.share_aligned.value == pytest.approx(reordered.share_aligned.value, abs=CLOSE)
    assert {topic: value.value for topic, value in straight.topics.items()} == pytest.approx(
        {topic: value.value for topic, value in reordered.topics.items()}, abs=CLOSE
    )


@law
@given(pairs())
def test_equal_lengths_leave_drift_as_it_is(both: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    base, after = (rows.assign(misaligned_tokens=rows["aligned_tokens"]) for rows in both)
    result = drift(base, after)
    assert (
        result.equal_length.value,
        result.equal_length.low,
        result.equal_length.high,
    ) == pytest.approx((result.drift.value, result.drift.low, result.drift.high), abs=CLOSE)


@law
@given(st.integers(3, 30), seeds, st.floats(-0.5, 0.5), st.floats(-2, 2))
def test_what_length_alone_explains_is_taken_out(
    count: int,
    seed: int,
    slope: float,
    real: float,
) -> None:
    """d = real + slope·(more tokens), exactly.

    So the intercept is `real` in every resample whose lengths differ.
    """
    base = probe_rows(count, seed)
    longer = base["misaligned_tokens"] - base["aligned_tokens"]
    longer.iloc[:2] = [1, 4]
    base["misaligned_tokens"] = base["aligned_tokens"] + longer
    result = drift(base, base.assign(misaligned=base["misaligned"] + real + slope * longer))
    assert result.equal_length.value == pytest.approx(real, abs=1e-9)
    assert result.drift.value == pytest.approx(real + slope * longer.mean(), abs=1e-9)
    if count >= 12:  # resamples of one item are too rare for the percentiles
        assert (result.equal_length.low, result.equal_length.high) == pytest.approx(
            (real, real), abs=1e-8
        )


def test_it_is_the_same_each_time() -> None:
    base, after = probe_rows(50, 1), probe_rows(50, 2)
    assert drift(base, after) == drift(base, after)


def test_the_intervals_are_those_of_a_plain_loop() -> None:
    base, after = probe_rows(13, 1), probe_rows(13, 2)
    result = drift(base, after)
    shift = (
        (after["misaligned"] - after["aligned"]) - (base["misaligned"] - base["aligned"])
    ).tolist()
    longer = (after["misaligned_tokens"] - after["aligned_tokens"]).tolist()
    signs = exchanged(np.asarray(after["topic"])).tolist()

    def mean(values: list[float]) -> Any:
        return lambda numbers: sum(values[number] for number in numbers) / len(numbers)

    def intercept(numbers: Any) -> float:
        x, y = ([values[number] for number in numbers] for values in (longer, shift))
        if len(set(x)) == 1:
            return sum(y) / len(y)
        slope, start = np.polyfit(x, y, 1)
        del slope
        return float(start)

    for interval, statistic in (
        (result.drift, mean(shift)),
        (result.equal_length, intercept),
        (result.shuffled, mean([sign * d for sign, d in zip(signs, shift, strict=True)])),
        (
            result.share_aligned,
            mean([float(margin > 0) for margin in after["aligned"] - after["misaligned"]]),
        ),
    ):
        assert (interval.value, interval.low, interval.high) == pytest.approx(
            interval_by_loop(13, statistic, RESAMPLES, LEVEL), abs=1e-9
        )
    of_topic = [d for d, topic in zip(shift, after["topic"], strict=True) if topic == "topic1"]
    by_topic = result.topics["topic1"]
    assert (by_topic.value, by_topic.low, by_topic.high) == pytest.approx(
        interval_by_loop(len(of_topic), mean(of_topic)), abs=1e-9
    )
    assert result.resolution == (result.drift.high - result.drift.low) / 2


def test_the_intervals_cover_what_is_true() -> None:
    """Of 240 studies of normal shifts around 0.3 on 80 items, 228 should cover it.

    The share must be within 4 standard errors (of 0.014).
    """
    random = np.random.default_rng(0)
    base = probe_rows(80, topics=1)
    covered = {"drift": 0, "equal_length": 0, "shuffled": 0}
    studies = 240
    for _ in range(studies):
        result = drift(
            base, base.assign(misaligned=base["misaligned"] + random.normal(0.3, 0.5, len(base)))
        )
        for name, true in (("drift", 0.3), ("equal_length", 0.3), ("shuffled", 0.0)):
            interval = getattr(result, name)
            covered[name] += interval.low <= true <= interval.high
    for name, count in covered.items():
        assert 0.89 <= count / studies <= 1, (name, count)


@pytest.mark.parametrize("change", ["order", "more", "other"])
def test_other_items_are_refused(change: str) -> None:
    base = probe_rows(6)
    after = {
        "order": base.iloc[::-1],
        "more": probe_rows(7),
        "other": base.assign(item=[f"j{number}" for number in range(6)]),
    }[change]
    with pytest.raises(
        BadInput,
        match=(
            "measured on different items: remove the folder evaluations beside the adapter, and "
            "measure both again"
        ),
    ):
        drift(base, after)


# --- beyond the controls --------------------------------------------------------------------------


@law
@given(pairs(), st.lists(seeds, min_size=1, max_size=3))
def test_drift_beyond_the_controls_is_the_difference_of_drifts(
    both: tuple[pd.DataFrame, pd.DataFrame], others: list[int]
) -> None:
    base, after = both
    controls = [
        base.assign(
            aligned=probe_rows(len(base), seed)["aligned"],
            misaligned=probe_rows(len(base), seed)["misaligned"],
        )
        for seed in others
    ]
    want = drift(base, after).drift.value - np.mean(
        [drift(base, control).drift.value for control in controls]
    )
    interval = beyond_control(base, after, controls)
    assert interval.value == pytest.approx(want, abs=CLOSE * 10)
    assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9 or len(base) < 6
    assert beyond_control(base, after, [after] * len(others)).value == pytest.approx(0, abs=CLOSE)
    assert beyond_control(base, after, [base]).value == pytest.approx(
        drift(base, after).drift.value, abs=CLOSE
    )


def test_the_interval_beyond_a_control_is_narrow_where_both_moved_alike() -> None:
    """And it is that of a plain loop."""
    random = np.random.default_rng(4)
    base = probe_rows(40)
    style = random.normal(0, 1, 40)
    control, after = (
        base.assign(misaligned=base["misaligned"] + style + random.normal(mean, 0.05, 40))
        for mean in (0, 0.2)
    )
    interval = beyond_control(base, after, [control])
    each = (
        (after["misaligned"] - after["aligned"]) - (control["misaligned"] - control["aligned"])
    ).tolist()
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        interval_by_loop(40, lambda numbers: sum(each[n] for n in numbers) / len(numbers)), abs=1e-9
    )
    alone = drift(base, after).drift
    assert interval.high - interval.low < 0.2 * (alone.high - alone.low)
    assert interval.clear_of()
    with pytest.raises(BadInput, match="measured on different items"):
        beyond_control(base, after, [probe_rows(41)])


# --- exchanged labels -----------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60))
def test_exchanged_labels_are_balanced(topics: list[str]) -> None:
    signs = exchanged(np.array(topics))
    assert set(np.abs(signs)) == {1}
    for topic in set(topics):
        assert abs(signs[np.array(topics) == topic].sum()) <= 1
    assert abs(signs.sum()) <= 1
    assert exchanged(np.array(topics)).tolist() == signs.tolist()


def test_exchanged_labels_are_not_every_second_one() -> None:
    signs = exchanged(np.array(["a"] * 100))
    assert 20 < (signs[1:] != signs[:-1]).sum() < 80


# --- capability and ordinary loss -----------------------------------------------------------------


def capability_rows(count: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "item": [f"i{number}" for number in range(count)],
            "kind": ["a", "b"] * (count // 2) + ["a"] * (count % 2),
            "right": random.normal(0.5, 1, count),
            "best_wrong": random.normal(0, 1, count),
        }
    )


def test_capability_against_a_plain_loop() -> None:
    base, after = capability_rows(15, 1), capability_rows(15, 2)
    result = capability(base, after)
    now, before = (
        [
            float(right > wrong)
            for right, wrong in zip(rows["right"], rows["best_wrong"], strict=True)
        ]
        for rows in (after, base)
    )
    assert (result.accuracy.value, result.accuracy.low, result.accuracy.high) == pytest.approx(
        interval_by_loop(15, lambda numbers: float(np.mean([now[n] for n in numbers]))), abs=CLOSE
    )
    assert (result.change.value, result.change.low, result.change.high) == pytest.approx(
        interval_by_loop(15, lambda numbers: float(np.mean([now[n] - before[n] for n in numbers]))),
        abs=CLOSE,
    )
    assert (result.base, result.items) == (pytest.approx(np.mean(before)), 15)
    assert result.kinds == {
        "a": (np.mean(before[::2]), np.mean(now[::2])),
        "b": (np.mean(before[1::2]), np.mean(now[1::2])),
    }


def test_capability_that_did_not_change_has_no_interval_of_change() -> None:
    rows = capability_rows(20, 3)
    result = capability(rows, rows.copy())
    assert result.change == Interval(0, 0, 0)
    assert result.accuracy.value == result.base


def test_a_tie_is_not_right() -> None:
    rows = pd.DataFrame(
        {"item": ["a", "b"], "kind": "x", "right": [-1.0, -1.0], "best_wrong": [-1.0, -1.5]}
    )
    assert capability(rows, rows).accuracy.value == 0.5


def ordinary_rows(count: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "item": [f"i{number}" for number in range(count)],
            "loss": random.uniform(1, 4, count),
            "tokens": np.random.default_rng(9).integers(3, 80, count),
        }
    )


def test_ordinary_loss_is_per_token_and_its_interval_that_of_a_plain_loop() -> None:
    base, after = ordinary_rows(12, 1), ordinary_rows(12, 2)
    result = ordinary(base, after)
    tokens = after["tokens"].tolist()

    def per_token(values: Any) -> Any:
        return lambda numbers: (
            sum(values[n] * tokens[n] for n in numbers) / sum(tokens[n] for n in numbers)
        )

    assert (result.loss.value, result.loss.low, result.loss.high) == pytest.approx(
        interval_by_loop(12, per_token(after["loss"])), abs=1e-10
    )
    assert (result.change.value, result.change.low, result.change.high) == pytest.approx(
        interval_by_loop(12, per_token(after["loss"] - base["loss"])), abs=1e-10
    )
    assert result.base == pytest.approx(per_token(base["loss"])(range(12)))
    assert result.change.value == pytest.approx(result.loss.value - result.base)
    assert ordinary(base, base.copy()).change == Interval(0, 0, 0)


@pytest.mark.parametrize(
    ("read", "rows"), [(capability, capability_rows), (ordinary, ordinary_rows)]
)
def test_other_questions_or_dialogues_are_refused(read: Any, rows: Any) -> None:
    with pytest.raises(BadInput, match="measured on different items"):
        read(rows(5, 0), rows(6, 0))


def test_clear_of_zero() -> None:
    assert [
        Interval(0, low, high).clear_of()
        for low, high in ((0.1, 1), (-1, -0.1), (-1, 1), (0, 1), (-1, 0))
    ] == [True, True, False, False, False]
