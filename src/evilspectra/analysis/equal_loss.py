"""Comparison of groups at equal loss, by their own fitted lines and by matched pairs of runs.

By fit, each group has its own line and spread. By matched pairs, runs of two groups and of one
stratum whose ln(loss) differ by at most a caliper are paired, each used once. What is left of a
pair's difference in ln(loss) is taken off at the slope that all groups have in common (Abadie and
Imbens 2011). The error of the mean of n differences d, with Δ their mean distance in ln(loss), is

    √(s²_d/n + Δ²·se²(slope)),  t with the smaller of n − 1 and the slope's degrees of freedom.

The paired differences of rates would need logits of single runs, of which one without a misaligned
answer has none: there the matched runs of two groups are one binomial model of group, ln(loss) and
stratum, with a spread for each group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.optimize import linear_sum_assignment

from evilspectra.analysis.contrasts import Contrast, fit
from evilspectra.analysis.estimate import MethodEstimate, t_interval
from evilspectra.analysis.linear import coded, independent, is_rounding
from evilspectra.analysis.lines import (
    EXACT,
    OwnLines,
    common_slope,
    losses_vary,
    own_lines,
)
from evilspectra.analysis.outcome import Outcome

#: Runs are matched at equal loss if their ln(loss) differ by at most this.
CALIPER = 0.1
#: Fewest matched pairs from which their spread is estimated.
FEWEST_PAIRS = 3
#: Crossed pairs are as close in all as pairs in order: this share of their squared distance more
#: decides for those in order, so that the pairs do not depend on the order of runs.
_CROSSED = 1e-3
#: Of a pair of groups: no loss is within the ranges of both.
APART = "their losses do not overlap"
_TOO_FEW = f"fewer than {FEWEST_PAIRS} pairs"
_PAIRED, _COUNTED = "paired t", "binomial, matched runs"


@dataclass(frozen=True, slots=True)
class Difference:
    """`first` minus `second`; `loss` where they are compared at one.

    `pairs` and `loss_apart` where runs were matched: how many, and mean difference in ln(loss).
    """

    first: str
    second: str
    difference: MethodEstimate
    loss: float | None = None
    pairs: int | None = None
    loss_apart: float | None = None


@dataclass(frozen=True, slots=True)
class EqualLoss:
    """Groups compared at one loss: `means` there on the groups' own lines, and differences.

    `loss` is None, with a `reason`, if groups cannot all be compared at the loss that was asked
    for, or at any; `common`: the range of loss that all have.
    """

    loss: float | None
    means: dict[str, MethodEstimate]
    differences: tuple[Difference, ...]
    matched: tuple[Difference, ...]
    common: tuple[float, float] | None
    reason: str | None


def equal_loss(
    outcome: Outcome,
    loss: np.ndarray,
    names: np.ndarray,
    strata: np.ndarray | None = None,
    at: float | None = None,
    caliper: float = CALIPER,
) -> EqualLoss:
    """Compare groups at the loss `at`, or at the middle (of ln) of the range that all have.

    Never outside a group's own range: an `at` outside the common one compares nothing by fit; if
    there is no common range and no `at`, pairs are compared in the middle of their own. Every group
    has three runs at two losses.
    """
    x = np.log(loss)
    lines = own_lines(outcome, x, names)
    low = max(low for low, _ in lines.ranges.values())
    high = min(high for _, high in lines.ranges.values())
    common = (math.exp(low), math.exp(high)) if low <= high else None
    pairs = list(combinations(lines.names, 2))
    at_x, reason = None, None
    if at is None and common is not None:
        at_x = (low + high) / 2
    elif at is None:
        reason = (
            "no loss is common to all groups, so each pair is compared in the middle of the range "
            "that the two share"
        )
    elif common is None:
        reason = f"nothing is compared at a loss of {at:g}: no loss is common to all groups"
    elif low - 1e-12 <= math.log(at) <= high + 1e-12:
        at_x = math.log(at)
    else:
        reason = (
            f"nothing is compared at a loss of {at:g}, because all groups have losses only from "
            f"{common[0]:.4g} to {common[1]:.4g} and no line is drawn on beyond its runs"
        )
    differences: tuple[Difference, ...] = ()
    if at_x is not None or at is None:
        differences = tuple(_by_fit(lines, first, second, at_x) for first, second in pairs)
    slope = common_slope(outcome, x, names)
    matched = [
        _matched(outcome, x, names, strata, (first, second), caliper, slope)
        for first, second in pairs
    ]
    return EqualLoss(
        None if at_x is None else math.exp(at_x),
        {} if at_x is None else {name: lines.mean(name, at_x) for name in lines.names},
        differences,
        tuple(difference for difference in matched if difference),
        common,
        reason,
    )


def slope_differences(lines: OwnLines) -> tuple[Difference, ...]:
    """The pairs of groups' slopes."""
    return tuple(
        Difference(first, second, lines.slopes(first, second))
        for first, second in combinations(lines.names, 2)
    )


def _by_fit(
    lines: OwnLines,
    first: str,
    second: str,
    at_x: float | None,
) -> Difference:
    """The difference of two lines at `at_x`, or else in the middle of the range that they share."""
    low = max(lines.ranges[first][0], lines.ranges[second][0])
    high = min(lines.ranges[first][1], lines.ranges[second][1])
    if at_x is None and low > high:
        return Difference(first, second, MethodEstimate(math.nan, None, None, "t", APART))
    at_x = (low + high) / 2 if at_x is None else at_x
    return Difference(first, second, lines.difference(first, second, at_x), math.exp(at_x))


def _matched(
    outcome: Outcome,
    x: np.ndarray,
    names: np.ndarray,
    strata: np.ndarray | None,
    groups: tuple[str, str],
    caliper: float,
    slope: Contrast,
) -> Difference | None:
    """The difference of two groups over matched pairs of runs; None if no two match."""
    here, there = (np.flatnonzero(names == group) for group in groups)
    apart = np.abs(x[here][:, None] - x[there][None, :])
    barred = apart > caliper
    if strata is not None:
        barred |= strata[here][:, None] != strata[there][None, :]
    cost = apart + _CROSSED * apart**2
    rows, columns = linear_sum_assignment(np.where(barred, 1 + 2 * len(x) * cost.max(), cost))
    allowed = ~barred[rows, columns]
    left, right = here[rows[allowed]], there[columns[allowed]]
    if not len(left):
        return None
    if outcome.counted is None:
        estimate = _paired(outcome.values, x, left, right, slope)
    else:
        within = None if strata is None else strata[np.concatenate([left, right])]
        estimate = _counted(outcome, x, left, right, within)
    return Difference(*groups, estimate, None, len(left), float((x[left] - x[right]).mean()))


def _paired(
    y: np.ndarray,
    x: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    slope: Contrast,
) -> MethodEstimate:
    """The mean of the pairs' differences in y, at equal x."""
    distance = x[left] - x[right]
    d = y[left] - y[right] - slope.value * distance
    mean, count = float(d.mean()), len(d)
    if count < FEWEST_PAIRS:
        return MethodEstimate(mean, None, None, _PAIRED, _TOO_FEW)
    if is_rounding(d - mean, y[left]) or slope.p is None:
        return MethodEstimate(mean, None, None, _PAIRED, EXACT)
    by_slope = distance.mean() * slope.error
    error = math.hypot(d.std(ddof=1) / math.sqrt(count), by_slope)
    df = min(count - 1.0, slope.df) if by_slope else count - 1.0
    return t_interval(mean, error, df, _PAIRED)


def _counted(
    outcome: Outcome,
    x: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    strata: np.ndarray | None,
) -> MethodEstimate:
    """The difference of two groups' logits over their matched runs, at equal x and stratum."""
    rows = np.concatenate([left, right])
    levels = np.repeat([0, 1], [len(left), len(right)])
    columns = [np.eye(2)[levels]]
    if strata is not None:
        columns.append(coded(strata.tolist()))
    if losses_vary(np.exp(x[rows])):
        columns.append((x[rows] - x[rows].mean())[:, None])
    unlike = independent(np.hstack(columns))
    model = fit(outcome.take(rows), unlike, levels)
    contrast = np.zeros(unlike.shape[1])
    contrast[:2] = 1.0, -1.0
    estimate = replace(model.contrast(contrast).estimate, method=_COUNTED)
    if len(left) < FEWEST_PAIRS:
        return MethodEstimate(estimate.value, None, None, _COUNTED, _TOO_FEW)
    return estimate
