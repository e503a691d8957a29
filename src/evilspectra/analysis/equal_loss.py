"""Comparison of groups at equal loss, by their own fitted lines and by matched pairs of runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import special
from scipy.optimize import linear_sum_assignment

from evilspectra.analysis.estimate import MethodEstimate, mean_interval, t_interval
from evilspectra.analysis.lines import Line, fit_line, group_means

#: Runs are matched at equal loss if their ln(loss) differ by at most this.
CALIPER = 0.1


@dataclass(frozen=True, slots=True)
class Difference:
    """`first` minus `second`; `p` adjusted by Holm over all pairs.

    `pairs` and `loss_apart` where runs were matched: how many, and mean difference in ln(loss).
    """

    first: str
    second: str
    difference: MethodEstimate
    loss: float | None
    p: float | None = None
    pairs: int | None = None
    loss_apart: float | None = None


@dataclass(frozen=True, slots=True)
class EqualLoss:
    """Groups compared at one loss: `means` there on the groups' own lines, and differences.

    `loss` is None, with a `reason`, if no loss is common to all groups.
    """

    loss: float | None
    means: dict[str, MethodEstimate]
    differences: tuple[Difference, ...]
    matched: tuple[Difference, ...]
    common: tuple[float, float] | None
    reason: str | None


def equal_loss(
    y: np.ndarray,
    loss: np.ndarray,
    names: np.ndarray,
    strata: np.ndarray | None = None,
    at: float | None = None,
    caliper: float = CALIPER,
) -> EqualLoss:
    """Compare groups at the loss `at`, or at the middle (of ln) of the range that all have.

    Never outside a group's own range. By fit: each group's own line, one residual variance, t
    intervals. By matched pairs: runs of two groups, of one stratum, whose ln(loss) differ by at
    most `caliper`, each used once, as close as possible in all; the rest of a pair's difference in
    ln(loss) is taken off at the common slope (Abadie and Imbens 2011); Student's interval of the
    pairs' differences.
    """
    x = np.log(loss)
    lines = _own_lines(y, x, names)
    low = max(low for low, _ in lines.ranges.values())
    high = min(high for _, high in lines.ranges.values())
    common = (math.exp(low), math.exp(high)) if low <= high else None
    wanted = None if at is None else math.log(at)
    reason = None
    if common is None:
        reason = (
            "no loss is common to all groups: pairs are compared in the middle of their own common "
            "range"
        )
    elif wanted is not None and not low - 1e-12 <= wanted <= high + 1e-12:
        reason = (
            f"a loss of {at:g} lies outside the range that all groups have ({common[0]:.4g} to "
            f"{common[1]:.4g}): lines are not drawn on beyond their runs"
        )
    at_x = None
    if reason is None:
        at_x = (low + high) / 2 if wanted is None else wanted
    means = {} if at_x is None else {name: lines.mean(name, at_x) for name in lines.own}
    differences = [
        lines.difference(first, second, at_x, common is None)
        for first, second in combinations(lines.own, 2)
    ]
    inside = x - group_means(x, names)
    slope = float(inside @ y / (inside @ inside))
    matched = [
        _matched(y, x, names, strata, first, second, caliper, slope)
        for first, second in combinations(lines.own, 2)
    ]
    return EqualLoss(
        None if at_x is None else math.exp(at_x),
        means,
        holm(differences),
        tuple(difference for difference in matched if difference),
        common,
        reason,
    )


@dataclass(frozen=True, slots=True)
class _OwnLines:
    """A line per group with one residual variance; `x`, `ranges`: of ln(loss), by group."""

    own: dict[str, Line]
    x: dict[str, np.ndarray]
    ranges: dict[str, tuple[float, float]]
    df: int
    variance: float

    def at(self, name: str, at_x: float) -> tuple[float, float]:
        """A group's mean at a value of ln(loss), and the variance of its error."""
        line, x = self.own[name], self.x[name]
        sxx = float(((x - x.mean()) ** 2).sum())
        error = self.variance * (1 / len(x) + (at_x - x.mean()) ** 2 / sxx)
        return line.intercept.value + line.slope.value * at_x, error

    def mean(self, name: str, at_x: float) -> MethodEstimate:
        value, error = self.at(name, at_x)
        return t_interval(value, math.sqrt(error), self.df)

    def difference(
        self,
        first: str,
        second: str,
        at_x: float | None,
        in_own_range: bool,
    ) -> Difference:
        """The difference of two groups at `at_x`.

        Without `at_x` in the middle of the range that the two have, if `in_own_range`.
        """
        low = max(self.ranges[first][0], self.ranges[second][0])
        high = min(self.ranges[first][1], self.ranges[second][1])
        if at_x is None and in_own_range and low <= high:
            at_x = (low + high) / 2
        if at_x is None:
            estimate = MethodEstimate(math.nan, None, None, "t", "their losses do not overlap")
            return Difference(first, second, estimate, None)
        (a, error_a), (b, error_b) = self.at(first, at_x), self.at(second, at_x)
        error = math.sqrt(error_a + error_b)
        p = None
        if self.df > 0 and error > 0:
            p = float(2 * special.stdtr(self.df, -abs(a - b) / error))
        return Difference(first, second, t_interval(a - b, error, self.df), math.exp(at_x), p)


def _own_lines(y: np.ndarray, x: np.ndarray, names: np.ndarray) -> _OwnLines:
    """Each group's line; groups in sorted order."""
    groups = sorted(set(names.tolist()))
    by_group = {name: x[names == name] for name in groups}
    own = {name: fit_line(y[names == name], by_group[name], name) for name in groups}
    residual = 0.0
    for name, line in own.items():
        rest = y[names == name] - line.intercept.value - line.slope.value * by_group[name]
        residual += float((rest**2).sum())
    df = len(y) - 2 * len(groups)
    return _OwnLines(
        own=own,
        x=by_group,
        ranges={name: (float(own_x.min()), float(own_x.max())) for name, own_x in by_group.items()},
        df=df,
        variance=residual / df if df > 0 else math.nan,
    )


def _matched(
    y: np.ndarray,
    x: np.ndarray,
    names: np.ndarray,
    strata: np.ndarray | None,
    first: str,
    second: str,
    caliper: float,
    slope: float,
) -> Difference | None:
    """The difference of two groups over matched pairs of runs; None if no two match."""
    here, there = np.flatnonzero(names == first), np.flatnonzero(names == second)
    apart = np.abs(x[here][:, None] - x[there][None, :])
    barred = apart > caliper
    if strata is not None:
        barred |= strata[here][:, None] != strata[there][None, :]
    rows, columns = linear_sum_assignment(np.where(barred, 1e6, apart))
    pairs = [
        (here[row], there[column])
        for row, column in zip(rows, columns, strict=True)
        if not barred[row, column]
    ]
    if not pairs:
        return None
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    return Difference(
        first,
        second,
        mean_interval(y[left] - y[right] - slope * (x[left] - x[right]), "paired t"),
        None,
        None,
        len(pairs),
        float((x[left] - x[right]).mean()),
    )


def holm(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """The differences with their p-values adjusted by Holm's (1979) step-down rule."""
    tested = sorted(
        (difference.p, position)
        for position, difference in enumerate(differences)
        if difference.p is not None
    )
    adjusted, reached = {}, 0.0
    for rank, (p, position) in enumerate(tested):
        reached = max(reached, min(1.0, p * (len(tested) - rank)))
        adjusted[position] = reached
    return tuple(
        replace(difference, p=adjusted.get(position))
        for position, difference in enumerate(differences)
    )
