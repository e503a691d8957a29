"""An outcome on the logarithm of the training loss: one line for all, a line per group, equal lines or not, and groups compared at equal loss.

With x = ln(loss), the models are

    pooled     y = a + b·x                 groups only      y = a_g
    common     y = a_g + b·x               separate         y = a_g + b_g·x

Adjusted R² is 1 − (SSE/df)/(SST/(n − 1)). Partial R² of the group given x is 1 − SSE(common)/SSE(pooled); of x given the group 1 − SSE(common)/SSE(groups only).
Groups are the optimisers unless another factor is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import special
from scipy.optimize import linear_sum_assignment

from evilspectra.analysis.estimate import Estimate, f_tail, mean_interval, plain, share, t_interval
from evilspectra.analysis.linear import lay_out, squares

#: Runs are matched at equal loss where their ln(loss) differ by at most this.
CALIPER = 0.1
#: Sums of squares below this share of what they are part of are rounding.
_ROUNDING = 1e-20


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope·ln(loss) of one group; the intercept is at loss 1. `r2`: with the interval of the share in the population; `low`, `high`: range of loss."""

    group: str
    n: int
    slope: Estimate
    intercept: Estimate
    r2: Estimate
    r2_adjusted: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Test:
    """An F test and its p-value, None where the data leave no residual."""

    name: str
    df: int
    residual_df: int
    f: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """`first` minus `second`; `p` adjusted by Holm over all pairs; `pairs` and `loss_apart` where runs were matched: how many, and mean difference in ln(loss)."""

    first: str
    second: str
    difference: Estimate
    loss: float | None
    p: float | None = None
    pairs: int | None = None
    loss_apart: float | None = None


@dataclass(frozen=True, slots=True)
class EqualLoss:
    """Groups compared at one loss: `means` there on the groups' own lines, and by pairs. None, with a `reason`, where no loss is common to all."""

    loss: float | None
    means: dict[str, Estimate]
    differences: tuple[Difference, ...]
    matched: tuple[Difference, ...]
    common: tuple[float, float] | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class LossFit:
    """All of the module for one set of runs. `separate`, `common`: adjusted R² of the stratified models; `given_loss`, `given_group`: partial R² of the group given loss, and of loss given the group."""

    group: str
    n: int
    pooled: Line
    lines: tuple[Line, ...]
    separate_r2: float
    separate_adjusted: float | None
    common_r2: float
    common_adjusted: float | None
    common_slope: Estimate
    slopes_equal: Test
    intercepts_equal: Test
    given_loss: Estimate
    given_group: Estimate
    equal_loss: EqualLoss
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


def fit_loss(
    y: np.ndarray,
    loss: np.ndarray,
    groups: Sequence[str],
    strata: Sequence[str] | None = None,
    at: float | None = None,
    group: str = "optimizer",
    caliper: float = CALIPER,
) -> LossFit | None:
    """Everything above for y [n] on loss [n] > 0 by groups [n]; None where fewer than two groups have three runs at two losses. Groups of fewer runs are left out, and a note says so.

    >>> x = np.array([0.5, 1.0, 2.0, 4.0] * 2)
    >>> found = fit_loss(np.log(x) * 2 + [0, 0.1, 0, -0.1, 5, 5.1, 5, 4.9], x, ["sgd"] * 4 + ["lion"] * 4)
    >>> round(found.lines[0].slope.value, 2), round(found.given_loss.value, 3)
    (1.94, 1.0)
    """
    names = np.asarray([str(one) for one in groups])
    kept = {
        str(one)
        for one in names
        if (names == one).sum() >= 3 and len(set(loss[names == one].tolist())) > 1
    }
    notes = tuple(
        f"{one} is left out: a line needs three runs at two losses"
        for one in sorted(set(names.tolist()) - kept)
    )
    which = np.isin(names, sorted(kept))
    if len(kept) < 2:
        return None
    y, loss, names = y[which], loss[which], names[which]
    x = np.log(loss)
    layout = lay_out({"g": names.tolist()}, 2, numbers={"x": x})
    sse = {name: float(y @ y - squares(layout.basis(terms), y)) for name, terms in MODELS.items()}
    df = {name: len(y) - layout.basis(terms).shape[1] for name, terms in MODELS.items()}
    sst = sse["mean"]
    lines = tuple(_line(y[names == one], x[names == one], one) for one in sorted(kept))
    return LossFit(
        group=group, n=len(y), pooled=_line(y, x, "all"), lines=lines,
        separate_r2=1 - sse["separate"] / sst, separate_adjusted=_adjusted(sse["separate"], df["separate"], sst, len(y)),
        common_r2=1 - sse["common"] / sst, common_adjusted=_adjusted(sse["common"], df["common"], sst, len(y)),
        common_slope=_common_slope(y, x, names, sse["common"], df["common"]),
        slopes_equal=_test("equal slopes", sse["common"], df["common"], sse["separate"], df["separate"]),
        intercepts_equal=_test("equal intercepts, given equal slopes", sse["pooled"], df["pooled"], sse["common"], df["common"]),
        given_loss=_partial(sse["pooled"], df["pooled"], sse["common"], df["common"], len(y)),
        given_group=_partial(sse["groups"], df["groups"], sse["common"], df["common"], len(y)),
        equal_loss=equal_loss(y, loss, names, None if strata is None else np.asarray(strata)[which], at, caliper), notes=notes,
    )  # fmt: skip


#: Model → its terms over the group g and the logarithm of the loss x.
MODELS: dict[str, list[tuple[str, ...]]] = {
    "mean": [],
    "pooled": [("x",)],
    "groups": [("g",)],
    "common": [("g",), ("x",)],
    "separate": [("g",), ("x",), ("g", "x")],
}


def _adjusted(
    sse: float,
    df: int,
    sst: float,
    n: int,
) -> float | None:
    return 1 - (sse / df) / (sst / (n - 1)) if df > 0 else None


def _test(
    name: str,
    small: float,
    small_df: int,
    large: float,
    large_df: int,
) -> Test:
    df = small_df - large_df
    if large_df < 1 or large <= 0 or df < 1:
        return Test(name, df, large_df, None, None)
    f = max(0.0, small - large) / df / (large / large_df)
    return Test(name, df, large_df, f, f_tail(f, df, large_df))


def _partial(
    small: float,
    small_df: int,
    large: float,
    large_df: int,
    n: int,
) -> Estimate:
    """1 − SSE(large)/SSE(small), with the noncentral F interval of the share in the population."""
    df = small_df - large_df
    f = (
        (small - large) / df / (large / large_df)
        if large_df > 0 and large > 0 and df > 0
        else math.nan
    )
    return share(1 - large / small if small > 0 else math.nan, f, df, large_df, n)


def _line(y: np.ndarray, x: np.ndarray, name: str) -> Line:
    n, sxx = len(y), float(((x - x.mean()) ** 2).sum())
    slope = float((x - x.mean()) @ y) / sxx
    start = float(y.mean() - slope * x.mean())
    sse, sst = float(((y - start - slope * x) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    ends = (float(np.exp(x.min())), float(np.exp(x.max())))
    if sst <= _ROUNDING * float(y @ y):
        same = Estimate(0.0, None, None, "t", "all values are equal")
        return Line(
            name,
            n,
            same,
            Estimate(float(y.mean()), None, None, "t", same.note),
            Estimate(math.nan, None, None, "noncentral F", same.note),
            None,
            *ends,
        )
    sse = 0.0 if sse <= _ROUNDING * sst else sse
    df = n - 2
    variance = sse / df if df > 0 else math.nan
    r2 = _partial(sst, n - 1, sse, df, n)
    return Line(
        name,
        n,
        t_interval(slope, math.sqrt(variance / sxx), df),
        t_interval(start, math.sqrt(variance * (1 / n + x.mean() ** 2 / sxx)), df),
        r2,
        _adjusted(sse, df, sst, n),
        *ends,
    )


def _common_slope(
    y: np.ndarray,
    x: np.ndarray,
    names: np.ndarray,
    sse: float,
    df: int,
) -> Estimate:
    inside = x - _by_group(x, names)
    sxx = float(inside @ inside)
    return t_interval(
        float(inside @ y) / sxx, math.sqrt(max(sse, 0.0) / df / sxx) if df > 0 else math.nan, df
    )


def _by_group(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Each row's group mean."""
    places = np.unique(names, return_inverse=True)[1]
    return (np.bincount(places, weights=values) / np.bincount(places))[places]


# --- at equal loss ---------------------------------------------------------------------------------------------------


def equal_loss(
    y: np.ndarray,
    loss: np.ndarray,
    names: np.ndarray,
    strata: np.ndarray | None = None,
    at: float | None = None,
    caliper: float = CALIPER,
) -> EqualLoss:
    """Groups compared at the loss `at`, or at the middle (of ln) of the range that all have; never outside a group's own range.

    By fit: each group's own line, one residual variance, t intervals. By matched pairs: runs of two groups, of one stratum, whose ln(loss) differ by at
    most `caliper`, each used once, as close as possible in all; what is left of a pair's difference in ln(loss) is taken off at the common slope
    (Abadie and Imbens 2011); Student's interval of the pairs' differences.
    """
    x = np.log(loss)
    kept = sorted(set(names.tolist()))
    ranges = {one: (float(x[names == one].min()), float(x[names == one].max())) for one in kept}
    low, high = max(low for low, _ in ranges.values()), min(high for _, high in ranges.values())
    common = (math.exp(low), math.exp(high)) if low <= high else None
    asked = None if at is None else math.log(at)
    reason = None
    if common is None:
        reason = "no loss is common to all groups: pairs are compared in the middle of their own common range"
    elif asked is not None and not low - 1e-12 <= asked <= high + 1e-12:
        reason = f"a loss of {at:g} lies outside the range that all groups have ({common[0]:.4g} to {common[1]:.4g}): lines are not drawn on beyond their runs"
    where = None if common is None or reason else (asked if asked is not None else (low + high) / 2)
    sse = {one: _line(y[names == one], x[names == one], one) for one in kept}
    df = len(y) - 2 * len(kept)
    residual = sum(
        float(
            (
                (
                    y[names == one]
                    - sse[one].intercept.value
                    - sse[one].slope.value * x[names == one]
                )
                ** 2
            ).sum()
        )
        for one in kept
    )
    variance = residual / df if df > 0 else math.nan

    def mean_at(one: str, place: float) -> tuple[float, float]:
        inside = x[names == one]
        error = variance * (
            1 / len(inside)
            + (place - inside.mean()) ** 2 / float(((inside - inside.mean()) ** 2).sum())
        )
        return sse[one].intercept.value + sse[one].slope.value * place, error

    means = (
        {
            one: t_interval(mean_at(one, where)[0], math.sqrt(mean_at(one, where)[1]), df)
            for one in kept
        }
        if where is not None
        else {}
    )
    differences = []
    for first, second in combinations(kept, 2):
        lower, upper = (
            max(ranges[first][0], ranges[second][0]),
            min(ranges[first][1], ranges[second][1]),
        )
        place = (
            where
            if where is not None
            else (lower + upper) / 2
            if lower <= upper and common is None
            else None
        )
        if place is None:
            differences.append(
                Difference(
                    first,
                    second,
                    Estimate(math.nan, None, None, "t", "their losses do not overlap"),
                    None,
                )
            )
            continue
        (a, error_a), (b, error_b) = mean_at(first, place), mean_at(second, place)
        error = math.sqrt(error_a + error_b)
        p = float(2 * special.stdtr(df, -abs(a - b) / error)) if df > 0 and error > 0 else None
        differences.append(
            Difference(first, second, t_interval(a - b, error, df), math.exp(place), p)
        )
    inside = x - _by_group(x, names)
    slope = float(inside @ y / (inside @ inside))
    matched = tuple(
        one
        for first, second in combinations(kept, 2)
        if (one := _matched(y, x, names, strata, first, second, caliper, slope))
    )
    return EqualLoss(
        None if where is None else math.exp(where),
        means,
        holm(differences),
        matched,
        common,
        reason,
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
    here, there = np.flatnonzero(names == first), np.flatnonzero(names == second)
    apart = np.abs(x[here][:, None] - x[there][None, :])
    barred = apart > caliper
    if strata is not None:
        barred |= strata[here][:, None] != strata[there][None, :]
    rows, columns = linear_sum_assignment(np.where(barred, 1e6, apart))
    found = [
        (here[row], there[column])
        for row, column in zip(rows, columns, strict=True)
        if not barred[row, column]
    ]
    if not found:
        return None
    left, right = (np.array(side) for side in zip(*found, strict=True))
    return Difference(
        first,
        second,
        mean_interval(y[left] - y[right] - slope * (x[left] - x[right]), "paired t"),
        None,
        None,
        len(found),
        float((x[left] - x[right]).mean()),
    )


def holm(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """The differences with their p-values adjusted by Holm's (1979) step-down rule."""
    known = sorted((one.p, place) for place, one in enumerate(differences) if one.p is not None)
    adjusted, reached = {}, 0.0
    for rank, (p, place) in enumerate(known):
        reached = max(reached, min(1.0, p * (len(known) - rank)))
        adjusted[place] = reached
    return tuple(
        Difference(
            one.first,
            one.second,
            one.difference,
            one.loss,
            adjusted.get(place),
            one.pairs,
            one.loss_apart,
        )
        for place, one in enumerate(differences)
    )
