"""Lines of an outcome on ln(loss): of one set of runs, and of groups with a spread each.

Rates are bias-reduced binomial fits, other outcomes least squares (module `contrasts`). Sums of
squares, and the R² made of them, are of the model's response and weights; those of rates describe
the fit and decide nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from evilspectra.analysis.contrasts import Contrast, Model, fit
from evilspectra.analysis.estimate import TAIL, MethodEstimate, share
from evilspectra.analysis.linear import is_rounding
from evilspectra.analysis.outcome import Outcome

EXACT = "the runs lie exactly on the fitted lines"
CONSTANT = "all values are equal"


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


def losses_vary(loss: np.ndarray) -> bool:
    """Whether losses [n] differ by more than rounding."""
    return not is_rounding(loss - loss.mean(), loss)


def estimate_of(contrast: Contrast, method: str | None = None) -> MethodEstimate:
    """A contrast of lines with its interval.

    Lines have three runs or more and so a spread: there is no error where residuals are rounding.
    """
    estimate = contrast.estimate
    note = EXACT if estimate.p is None else None
    return replace(estimate, note=note, method=method or estimate.method)


@dataclass(frozen=True)
class OwnLines:
    """A line and a spread for each of L groups.

    `names`: sorted; `ranges`: (lowest, highest) ln(loss) by group; `centres`: mean ln(loss) [L];
    `model`: columns are the groups' values at their centres, then their slopes.
    """

    names: tuple[str, ...]
    ranges: dict[str, tuple[float, float]]
    centres: np.ndarray
    model: Model

    def _at(self, name: str, x: float) -> np.ndarray:
        group = self.names.index(name)
        c = np.zeros(2 * len(self.names))
        c[group], c[len(self.names) + group] = 1.0, x - self.centres[group]
        return c

    def mean(self, name: str, x: float) -> MethodEstimate:
        """A group's mean at a value of ln(loss)."""
        return estimate_of(self.model.contrast(self._at(name, x)), "t")

    def difference(self, first: str, second: str, x: float) -> MethodEstimate:
        """The difference of two groups' lines at a value of ln(loss)."""
        return estimate_of(self.model.contrast(self._at(first, x) - self._at(second, x)))

    def slopes(self, first: str, second: str) -> MethodEstimate:
        """The difference of two groups' slopes."""
        count = len(self.names)
        c = np.zeros(2 * count)
        c[count + self.names.index(first)] = 1.0
        c[count + self.names.index(second)] = -1.0
        return estimate_of(self.model.contrast(c))


def own_lines(outcome: Outcome, x: np.ndarray, names: np.ndarray) -> OwnLines:
    """Each group's line over x [n], the logarithm of the loss; names [n]."""
    groups, levels = np.unique(names, return_inverse=True)
    centred = x - group_means(x, names)
    member = np.eye(len(groups))[levels]
    columns = np.hstack([member, member * centred[:, None]])
    model = fit(outcome, columns, levels)
    by_group = {str(name): x[names == name] for name in groups}
    return OwnLines(
        names=tuple(by_group),
        ranges={name: (float(own.min()), float(own.max())) for name, own in by_group.items()},
        centres=np.array([own.mean() for own in by_group.values()]),
        model=model,
    )


def common_slope(outcome: Outcome, x: np.ndarray, names: np.ndarray) -> Contrast:
    """The slope that groups have in common, each with a mean and a spread of its own."""
    groups, levels = np.unique(names, return_inverse=True)
    centred = x - group_means(x, names)
    columns = np.hstack([np.eye(len(groups))[levels], centred[:, None]])
    model = fit(outcome, columns, levels)
    return model.contrast(np.eye(len(groups) + 1)[-1])


def residual_squares(response: np.ndarray, weights: np.ndarray, basis: np.ndarray) -> float:
    """Σ u·(y − fit)² over an orthonormal basis [n, rank] with rows multiplied by √u; 0 if rounding.

    The response [n] is centred first: the basis contains the intercept.
    """
    root = np.sqrt(weights)
    centred = root * (response - float(weights @ response / weights.sum()))
    rest = centred - basis @ (basis.T @ centred)
    return 0.0 if is_rounding(rest, root * response) else float(rest @ rest)


def adjusted_r2(
    sse: float,
    df: int,
    sst: float,
    n: int,
) -> float | None:
    """Adjusted R²; None if no residual is left."""
    return 1 - (sse / df) / (sst / (n - 1)) if df > 0 and sst > 0 else None


def partial_r2(
    small: float,
    small_df: int,
    large: float,
    large_df: int,
    n: int,
) -> MethodEstimate:
    """1 − SSE(large)/SSE(small), with the noncentral F interval of the share in the population."""
    df = small_df - large_df
    if small <= 0:
        return MethodEstimate(math.nan, None, None, "noncentral F", EXACT)
    if large <= 0:
        return MethodEstimate(1.0, None, None, "noncentral F", EXACT)
    f = (small - large) / df / (large / large_df) if large_df > 0 and df > 0 else math.nan
    return share(1 - large / small, f, df, large_df, n)


def fit_line(outcome: Outcome, x: np.ndarray, name: str) -> Line:
    """The line of n runs on x [n], the logarithm of the loss; `name`: of their group."""
    n = len(x)
    ends = (float(np.exp(x.min())), float(np.exp(x.max())))
    columns = np.column_stack([np.ones(n), x - x.mean()])
    model = fit(outcome, columns, np.zeros(n, int))
    intercept = estimate_of(model.contrast([1.0, -float(x.mean())]), "t")
    if outcome.constant is not None:
        level = float(outcome.values.mean()) if outcome.counted is None else intercept.value
        return Line(
            name,
            n,
            MethodEstimate(0.0, None, None, "t", CONSTANT),
            MethodEstimate(level, None, None, "t", CONSTANT),
            MethodEstimate(math.nan, None, None, "noncentral F", CONSTANT),
            None,
            *ends,
        )
    root = np.sqrt(model.weights)[:, None]
    bases = [np.linalg.qr(root * columns[:, :width])[0] for width in (1, 2)]
    sst, sse = (residual_squares(model.response, model.weights, basis) for basis in bases)
    return Line(
        name,
        n,
        estimate_of(model.contrast([0.0, 1.0]), "t"),
        intercept,
        partial_r2(sst, n - 1, sse, n - 2, n),
        adjusted_r2(sse, n - 2, sst, n),
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
