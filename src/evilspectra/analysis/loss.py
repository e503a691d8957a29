"""An outcome on the logarithm of the training loss: one line for all runs, or a line per group.

With x = ln(loss), the models are

    pooled     y = a + b·x                 groups only      y = a_g
    common     y = a_g + b·x               separate         y = a_g + b_g·x

Adjusted R² is 1 − (SSE/df)/(SST/(n − 1)). Partial R² of the group given x is
1 − SSE(common)/SSE(pooled); of x given the group 1 − SSE(common)/SSE(groups only). Groups are the
optimisers unless another factor is named. Module `equal_loss` compares them at one loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evilspectra.analysis.equal_loss import CALIPER, EqualLoss, equal_loss
from evilspectra.analysis.estimate import MethodEstimate, f_tail, t_interval
from evilspectra.analysis.linear import lay_out, squares
from evilspectra.analysis.lines import Line, adjusted_r2, fit_line, group_means, partial_r2

#: Model → its terms over the group g and the logarithm of the loss x.
MODELS: dict[str, list[tuple[str, ...]]] = {
    "mean": [],
    "pooled": [("x",)],
    "groups": [("g",)],
    "common": [("g",), ("x",)],
    "separate": [("g",), ("x",), ("g", "x")],
}


@dataclass(frozen=True, slots=True)
class Test:
    """An F test and its p-value, None if the data leave no residual."""

    name: str
    df: int
    residual_df: int
    f: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class LossFit:
    """All models of one set of runs.

    `separate_r2`, `common_r2`: R² of the stratified models, with their adjusted ones; `given_loss`,
    `given_group`: partial R² of the group given loss, and of loss given the group.
    """

    group: str
    n: int
    pooled: Line
    lines: tuple[Line, ...]
    separate_r2: float
    separate_adjusted: float | None
    common_r2: float
    common_adjusted: float | None
    common_slope: MethodEstimate
    slopes_equal: Test
    intercepts_equal: Test
    given_loss: MethodEstimate
    given_group: MethodEstimate
    equal_loss: EqualLoss
    notes: tuple[str, ...] = ()


def fit_loss(
    y: np.ndarray,
    loss: np.ndarray,
    groups: Sequence[str],
    strata: Sequence[str] | None = None,
    at: float | None = None,
    group: str = "optimizer",
    caliper: float = CALIPER,
) -> LossFit | None:
    """All models for y [n] on loss [n] > 0 by groups [n].

    Groups need three runs at two losses: others are left out, and a note says so; None if fewer
    than two groups are left.

    >>> x = np.array([0.5, 1.0, 2.0, 4.0] * 2)
    >>> y = np.log(x) * 2 + [0, 0.1, 0, -0.1, 5, 5.1, 5, 4.9]
    >>> fit = fit_loss(y, x, ["sgd"] * 4 + ["lion"] * 4)
    >>> round(fit.lines[0].slope.value, 2), round(fit.given_loss.value, 3)
    (1.94, 1.0)
    """
    names = np.asarray([str(name) for name in groups])
    fitted = {
        name
        for name in set(names.tolist())
        if (names == name).sum() >= 3 and len(set(loss[names == name].tolist())) > 1
    }
    notes = tuple(
        f"{name} is left out: a line needs three runs at two losses"
        for name in sorted(set(names.tolist()) - fitted)
    )
    which = np.isin(names, sorted(fitted))
    if len(fitted) < 2:
        return None
    y, loss, names = y[which], loss[which], names[which]
    x = np.log(loss)
    layout = lay_out({"g": names.tolist()}, 2, numbers={"x": x})
    sse = {name: float(y @ y - squares(layout.basis(terms), y)) for name, terms in MODELS.items()}
    df = {name: len(y) - layout.basis(terms).shape[1] for name, terms in MODELS.items()}
    sst = sse["mean"]
    n = len(y)
    within = None if strata is None else np.asarray(strata)[which]
    pooled, common, separate = ((sse[name], df[name]) for name in ("pooled", "common", "separate"))
    return LossFit(
        group=group,
        n=n,
        pooled=fit_line(y, x, "all"),
        lines=tuple(fit_line(y[names == name], x[names == name], name) for name in sorted(fitted)),
        separate_r2=1 - sse["separate"] / sst,
        separate_adjusted=adjusted_r2(*separate, sst, n),
        common_r2=1 - sse["common"] / sst,
        common_adjusted=adjusted_r2(*common, sst, n),
        common_slope=_common_slope(y, x, names, *common),
        slopes_equal=_test("equal slopes", *common, *separate),
        intercepts_equal=_test("equal intercepts, given equal slopes", *pooled, *common),
        given_loss=partial_r2(*pooled, *common, n),
        given_group=partial_r2(sse["groups"], df["groups"], *common, n),
        equal_loss=equal_loss(y, loss, names, within, at, caliper),
        notes=notes,
    )


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


def _common_slope(
    y: np.ndarray,
    x: np.ndarray,
    names: np.ndarray,
    sse: float,
    df: int,
) -> MethodEstimate:
    inside = x - group_means(x, names)
    sxx = float(inside @ inside)
    return t_interval(
        float(inside @ y) / sxx, math.sqrt(max(sse, 0.0) / df / sxx) if df > 0 else math.nan, df
    )
