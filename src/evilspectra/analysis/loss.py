"""An outcome on the logarithm of the training loss: one line for all runs, or a line per group.

With x = ln(loss), the models are

    pooled     y = a + b·x                 groups only      y = a_g
    common     y = a_g + b·x               separate         y = a_g + b_g·x

Adjusted R² is 1 − (SSE/df)/(SST/(n − 1)). Partial R² of the group given x is
1 − SSE(common)/SSE(pooled); of x given the group 1 − SSE(common)/SSE(groups only). These, and the F
tests with one variance for all groups, describe the fit; what is shown follows from contrasts with
a spread for each group (`loss_claims`). Groups are the optimisers unless another factor is named.
Module `equal_loss` compares them at one loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.equal_loss import (
    CALIPER,
    Difference,
    EqualLoss,
    equal_loss,
    slope_differences,
)
from evilspectra.analysis.estimate import MethodEstimate, f_tail
from evilspectra.analysis.linear import lay_out
from evilspectra.analysis.lines import (
    Line,
    adjusted_r2,
    common_slope,
    estimate_of,
    fit_line,
    losses_vary,
    own_lines,
    partial_r2,
    residual_squares,
)
from evilspectra.analysis.outcome import Outcome

#: Fewest runs of a line.
FEWEST_RUNS = 3
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

    `separate_r2`, `common_r2`: R² of the stratified models, with their adjusted ones; `slopes`:
    differences between the groups' slopes; `given_loss`, `given_group`: partial R² of the group
    given loss, and of loss given the group.
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
    slopes: tuple[Difference, ...]
    slopes_equal: Test
    intercepts_equal: Test
    given_loss: MethodEstimate
    given_group: MethodEstimate
    equal_loss: EqualLoss
    notes: tuple[str, ...] = ()


def why_no_fit(
    outcome: Outcome,
    loss: np.ndarray,
    groups: Sequence[str],
    group: str = "optimizer",
) -> str | None:
    """Why there are no lines of the outcome on loss [n] > 0 by groups [n]; None if there are."""
    names = np.asarray([str(name) for name in groups])
    fitted = _with_lines(loss, names)
    which = np.isin(names, fitted) if len(fitted) > 1 else np.full(len(names), True)
    if len(names) and outcome.take(which).constant is not None:
        return "the outcome is the same in all runs"
    if len(names) and not losses_vary(loss):
        return "the loss is the same in all runs"
    if len(fitted) < 2:
        return (
            f"a line needs three runs at two losses in each of two groups of {group}: train with "
            "more seeds, data sets or learning rates"
        )
    return None


def _with_lines(loss: np.ndarray, names: np.ndarray) -> list[str]:
    """The groups of three runs or more at two losses or more, sorted."""
    return [
        name
        for name in sorted(set(names.tolist()))
        if (names == name).sum() >= FEWEST_RUNS and losses_vary(loss[names == name])
    ]


def fit_loss(
    outcome: Outcome,
    loss: np.ndarray,
    groups: Sequence[str],
    strata: Sequence[str] | None = None,
    at: float | None = None,
    group: str = "optimizer",
    caliper: float = CALIPER,
) -> LossFit | None:
    """All models of an outcome of n runs on loss [n] > 0 by groups [n].

    Groups need three runs at two losses: others are left out, and a note says so; None if fewer
    than two groups are left, or if the outcome of those or their loss does not vary.

    >>> x = np.array([0.5, 1.0, 2.0, 4.0] * 2)
    >>> y = np.log(x) * 2 + [0, 0.1, 0, -0.1, 5, 5.1, 5, 4.9]
    >>> fit = fit_loss(Outcome("drift", "as measured", y), x, ["sgd"] * 4 + ["lion"] * 4)
    >>> round(fit.lines[0].slope.value, 2), round(fit.given_loss.value, 3)
    (1.94, 1.0)
    """
    names = np.asarray([str(name) for name in groups])
    fitted = _with_lines(loss, names)
    notes = tuple(
        f"{name} is left out: a line needs three runs at two losses"
        for name in sorted(set(names.tolist()) - set(fitted))
    )
    if why_no_fit(outcome, loss, groups) is not None:
        return None
    which = np.isin(names, fitted)
    outcome, loss, names = outcome.take(which), loss[which], names[which]
    x, n = np.log(loss), len(loss)
    lines = own_lines(outcome, x, names)
    response, weights = lines.model.response, lines.model.weights
    layout = lay_out({"g": names.tolist()}, 2, weights, numbers={"x": x})
    weights = layout.root**2
    bases = {name: layout.basis(terms) for name, terms in MODELS.items()}
    sse = {name: residual_squares(response, weights, basis) for name, basis in bases.items()}
    df = {name: n - basis.shape[1] for name, basis in bases.items()}
    sst = sse["mean"]
    within = None if strata is None else np.asarray(strata)[which]
    pooled, common, separate = ((sse[name], df[name]) for name in ("pooled", "common", "separate"))
    return LossFit(
        group=group,
        n=n,
        pooled=fit_line(outcome, x, "all"),
        lines=tuple(
            fit_line(outcome.take(names == name), x[names == name], name) for name in fitted
        ),
        separate_r2=1 - sse["separate"] / sst if sst > 0 else math.nan,
        separate_adjusted=adjusted_r2(*separate, sst, n),
        common_r2=1 - sse["common"] / sst if sst > 0 else math.nan,
        common_adjusted=adjusted_r2(*common, sst, n),
        common_slope=estimate_of(common_slope(outcome, x, names)),
        slopes=slope_differences(lines),
        slopes_equal=_test("equal slopes", *common, *separate),
        intercepts_equal=_test("equal intercepts, given equal slopes", *pooled, *common),
        given_loss=partial_r2(*pooled, *common, n),
        given_group=partial_r2(sse["groups"], df["groups"], *common, n),
        equal_loss=equal_loss(outcome, loss, names, within, at, caliper),
        notes=notes,
    )


def loss_claims(fit: LossFit) -> list[Claim]:
    """List what the fit may show, undecided.

    That the outcome changes with the loss within groups; that the slopes of two groups differ; that
    two groups differ at equal loss, by fit and by matched pairs. The first of the two also decides
    whether the group explains anything beyond the loss.
    """
    slope = fit.common_slope
    subject = (fit.group,)
    claims = [Claim("slope", subject, slope.value, slope.p, slope.method, slope.note)]
    for section, pairs in (
        ("slopes", fit.slopes),
        ("equal loss", fit.equal_loss.differences),
        ("matched", fit.equal_loss.matched),
    ):
        for pair in pairs:
            estimate = pair.difference
            subject = (pair.first, pair.second)
            claims.append(
                Claim(section, subject, estimate.value, estimate.p, estimate.method, estimate.note)
            )
    return claims


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
