"""Estimates with their intervals, and the intervals for rates and means of answers.

Wilson's for independent answers, a bootstrap over questions for answers that share questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 4000
#: The level of every interval.
LEVEL = 0.95
#: Two-sided 95 % point of the normal distribution.
_Z = 1.959963984540054
#: Sets of answers whose draws are in memory at once.
_AT_ONCE = 500
#: Fewer clusters than this give an interval over them that is too narrow to be trusted.
FEW_CLUSTERS = 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; `low` and `high` are None if there is none.

    >>> Estimate(1.5, 0.5, 2.5).clear_of(), Estimate(0.2, -0.5, 0.9).clear_of()
    (True, False)
    >>> Estimate(1.5, 0.5, 2.5).clear_of(1.0), Estimate(0.2, None, None).clear_of()
    (False, False)
    """

    value: float
    low: float | None
    high: float | None

    def clear_of(self, value: float = 0.0) -> bool:
        """Whether there is an interval and it excludes `value`."""
        if self.low is None or self.high is None:
            return False
        return self.low > value or self.high < value


@dataclass(frozen=True, slots=True)
class Interval(Estimate):
    """An estimate that has an interval."""

    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """The share of successes with Wilson's 95 % score interval (Wilson 1927); trials ≥ 1.

    >>> interval = wilson(0, 10)
    >>> interval.value, interval.low, round(interval.high, 4)
    (0.0, 0.0, 0.2775)
    """
    share = successes / trials
    centre = (share + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = (
        _Z
        / (1 + _Z**2 / trials)
        * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    )
    return Interval(
        share,
        0.0 if successes == 0 else max(0.0, centre - half),
        1.0 if successes == trials else min(1.0, centre + half),
    )


def newcombe(before: tuple[int, int], after: tuple[int, int]) -> Interval:
    """The difference of two shares with Newcombe's 95 % hybrid score interval.

    `after` minus `before`, each as successes and trials. For independent trials (Newcombe 1998,
    method 10); where questions are few, the wider of this and an interval over questions is used.

    >>> interval = newcombe((0, 10), (0, 10))
    >>> interval.value, round(interval.high, 4)
    (0.0, 0.2775)
    """
    a, b = wilson(*before), wilson(*after)
    down = math.hypot(b.value - b.low, a.high - a.value)
    up = math.hypot(b.high - b.value, a.value - a.low)
    difference = b.value - a.value
    return Interval(difference, max(-1.0, difference - down), min(1.0, difference + up))


def clustered(
    clusters: Sequence[str],
    columns: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray],
    seed: int = 0,
) -> Interval | None:
    """A statistic of sums over clusters, with a 95 % percentile interval; None below two clusters.

    Whole clusters are drawn with replacement. `clusters`: the cluster of each answer. `columns`:
    float arrays [answers]; `statistic` gets their sums, one array per column [resamples] (or [1]
    for the estimate), and may return NaN for a draw on which it is not defined: that draw is then
    left out. Everything is seeded.

    Answers to one question are alike, and of interest is how other questions would have been
    answered: so whole questions are drawn (Cameron, Gelbach and Miller 2008).

    >>> bad = np.array([1.0, 0, 1, 0])
    >>> clustered(["a", "a", "b", "b"], [bad, np.ones(4)], lambda some, every: some / every)
    Interval(value=0.5, low=0.5, high=0.5)
    """
    names, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    sums = [np.bincount(codes, weights=column, minlength=len(names))[:, None] for column in columns]
    return clustered_sums(sums, statistic, seed)[0]


def clustered_sums(
    sums: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], seed: int = 0
) -> list[Interval | None]:
    """As `clustered`, of many sets of answers that have equally many clusters.

    `sums`: of each column its sums [clusters ≥ 2, sets], clusters in the order of their names.
    """
    clusters, sets = sums[0].shape
    weights = _weights(clusters, seed)
    tail = 50 * (1 - LEVEL)
    intervals: list[Interval | None] = []
    for start in range(0, sets, _AT_ONCE):
        some = [each[:, start : start + _AT_ONCE] for each in sums]
        with np.errstate(divide="ignore", invalid="ignore"):
            values = statistic(*(each.sum(0) for each in some))
            drawn = statistic(*(each.T @ weights.T for each in some))  # [sets, resamples]
        complete = np.isfinite(drawn).all(1)
        ends = np.full((len(drawn), 2), np.nan)
        ends[complete] = np.percentile(drawn[complete], [tail, 100 - tail], axis=1).T
        for row in np.flatnonzero(~complete):
            finite = drawn[row][np.isfinite(drawn[row])]
            ends[row] = np.percentile(finite, [tail, 100 - tail]) if len(finite) else np.nan
        intervals += [
            Interval(value, low, high) if math.isfinite(value) and math.isfinite(low) else None
            for value, (low, high) in zip(values.tolist(), ends.tolist(), strict=True)
        ]
    return intervals


@lru_cache(maxsize=8)
def _weights(count: int, seed: int) -> np.ndarray:
    """How often each of `count` clusters is drawn [resamples, count].

    Cached, since a report needs the same draws hundreds of times.
    """
    drawn = (
        np.random.Generator(np.random.PCG64(seed))
        .multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
        .astype(float)
    )
    drawn.setflags(write=False)
    return drawn
