"""The least squares line of an outcome on ln(loss), with adjusted and partial R²."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from evilspectra.analysis.estimate import TAIL, MethodEstimate, share, t_interval

#: Sums of squares below this share of the whole sum are rounding.
_ROUNDING = 1e-20


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope·ln(loss) of one group; the intercept is at loss 1.

    `r2`: with the interval of the share in the population; `low`, `high`: range of loss.
    """

    group: str
    n: int
    slope: MethodEstimate
    intercept: MethodEstimate
    r2: MethodEstimate
    r2_adjusted: float | None
    low: float
    high: float


def adjusted_r2(
    sse: float,
    df: int,
    sst: float,
    n: int,
) -> float | None:
    """Adjusted R²; None if no residual is left."""
    return 1 - (sse / df) / (sst / (n - 1)) if df > 0 else None


def partial_r2(
    small: float,
    small_df: int,
    large: float,
    large_df: int,
    n: int,
) -> MethodEstimate:
    """1 − SSE(large)/SSE(small), with the noncentral F interval of the share in the population."""
    df = small_df - large_df
    f = (
        (small - large) / df / (large / large_df)
        if large_df > 0 and large > 0 and df > 0
        else math.nan
    )
    return share(1 - large / small if small > 0 else math.nan, f, df, large_df, n)


def fit_line(y: np.ndarray, x: np.ndarray, name: str) -> Line:
    """The line of y [n] on x [n], the logarithm of the loss, of the group of that name."""
    n, sxx = len(y), float(((x - x.mean()) ** 2).sum())
    slope = float((x - x.mean()) @ y) / sxx
    intercept = float(y.mean() - slope * x.mean())
    sse = float(((y - intercept - slope * x) ** 2).sum())
    sst = float(((y - y.mean()) ** 2).sum())
    ends = (float(np.exp(x.min())), float(np.exp(x.max())))
    if sst <= _ROUNDING * float(y @ y):
        same = MethodEstimate(0.0, None, None, "t", "all values are equal")
        return Line(
            name,
            n,
            same,
            MethodEstimate(float(y.mean()), None, None, "t", same.note),
            MethodEstimate(math.nan, None, None, "noncentral F", same.note),
            None,
            *ends,
        )
    sse = 0.0 if sse <= _ROUNDING * sst else sse
    df = n - 2
    variance = sse / df if df > 0 else math.nan
    r2 = partial_r2(sst, n - 1, sse, df, n)
    return Line(
        name,
        n,
        t_interval(slope, math.sqrt(variance / sxx), df),
        t_interval(intercept, math.sqrt(variance * (1 / n + x.mean() ** 2 / sxx)), df),
        r2,
        adjusted_r2(sse, df, sst, n),
        *ends,
    )


def mean_band(
    line: Line,
    x: np.ndarray,
    y: np.ndarray,
    points: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The line of y [n] on x [n] at the points [m], and half the width of its mean's 95 % band.

    That half is t(0.975, n − 2)·s·√(1/n + (point − x̄)²/Sxx); zero where no residual is left.
    """
    mean = line.intercept.value + line.slope.value * points
    df, sxx = len(x) - 2, ((x - x.mean()) ** 2).sum()
    if df <= 0 or sxx <= 0:
        return mean, np.zeros_like(points)
    sse = ((y - line.intercept.value - line.slope.value * x) ** 2).sum()
    variance = sse / df * (1 / len(x) + (points - x.mean()) ** 2 / sxx)
    return mean, special.stdtrit(df, 1 - TAIL) * np.sqrt(variance)


def group_means(values: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Each row's group mean."""
    codes = np.unique(names, return_inverse=True)[1]
    return (np.bincount(codes, weights=values) / np.bincount(codes))[codes]
