"""Intervals for rates and means of answers: Wilson's for independent ones, a bootstrap over questions for those that share questions. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from evilspectra.drift import LEVEL, RESAMPLES, Interval

#: Two-sided 95 % point of the normal distribution.
_Z = 1.959963984540054
#: Fewer clusters than this give a bootstrap interval that is too narrow to be taken at its word.
FEW_CLUSTERS = 20


def wilson(successes: int, trials: int) -> Interval:
    """The share of successes with Wilson's 95 % score interval (Wilson 1927); trials ≥ 1.

    >>> interval = wilson(0, 10)
    >>> interval.value, interval.low, round(interval.high, 4)
    (0.0, 0.0, 0.2775)
    """
    share = successes / trials
    centre = (share + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z / (1 + _Z**2 / trials) * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    return Interval(share, 0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == trials else min(1.0, centre + half))


def newcombe(before: tuple[int, int], after: tuple[int, int]) -> Interval:
    """The difference of two shares, `after` minus `before`, each given as successes and trials, with Newcombe's 95 % hybrid score interval.

    For independent trials (Newcombe 1998, method 10); the wider of an interval over questions and this is used where questions are few.

    >>> interval = newcombe((0, 10), (0, 10))
    >>> interval.value, round(interval.high, 4)
    (0.0, 0.2775)
    """
    a, b = wilson(*before), wilson(*after)
    down = math.hypot(b.value - b.low, a.high - a.value)
    up = math.hypot(b.high - b.value, a.value - a.low)
    difference = b.value - a.value
    return Interval(difference, max(-1.0, difference - down), min(1.0, difference + up))


def clustered(clusters: Sequence[str], columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], seed: int = 0) -> Interval | None:
    """`statistic` of the columns' sums, with a 95 % percentile interval over whole clusters drawn with replacement; None below two clusters.

    `clusters`: the cluster of each answer. `columns`: float arrays [answers]; `statistic` gets their sums, one array per column [resamples]
    (or [1] for the estimate), and may give NaN where a draw has nothing to say, which is then left out. Everything is seeded.

    Answers to one question are alike, and what one wants to know is what other questions would have given: so whole questions are drawn
    (Cameron, Gelbach and Miller 2008).

    >>> clustered(["a", "a", "b", "b"], [np.array([1.0, 0, 1, 0]), np.ones(4)], lambda some, every: some / every)
    Interval(value=0.5, low=0.5, high=0.5)
    """
    names, places = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    sums = [np.bincount(places, weights=column, minlength=len(names)) for column in columns]
    draw = np.random.Generator(np.random.PCG64(seed))
    weights = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*(np.array([total.sum()]) for total in sums))[0])
        drawn = statistic(*(weights @ total for total in sums))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not math.isfinite(value):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
