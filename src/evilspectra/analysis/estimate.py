"""A number with its 95 % interval and the method of that interval.

Also the two inversions that most intervals of this package rest on. Shares of variance get
intervals by inverting the noncentral F distribution (Steiger 2004; Smithson 2003): for a fixed
design with normal errors

    F ~ F'(df₁, df₂, λ),  λ = SS_effect(true means) / σ²,  share in the population = λ / (λ + n),

so [λ_low, λ_high] with P(F' ≥ F | λ_low) = P(F' ≤ F | λ_high) = 0.025 covers exactly. Where λ = 0
the lower end is 0 and the interval is one-sided: it covers in 97.5 % of cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import special, stats

from evilspectra.intervals import LEVEL, Estimate

TAIL = (1 - LEVEL) / 2
#: A pandas data frame, or one of its columns: pandas annotates them as unions, and type checkers
#: then refuse calls on them.
Frame: TypeAlias = Any
#: Halvings of the search for λ: enough for 12 digits.
_HALVINGS = 50


@dataclass(frozen=True, slots=True)
class MethodEstimate(Estimate):
    """An estimate with the method of its interval.

    `method`: the kind of interval, as docs/statistics.md names it. `note`: why there is no
    interval, where there is none. `p`: two-sided p-value of no effect of this estimate alone, where
    it has one; what a page shows is decided over all its claims (module `claims`).

    >>> MethodEstimate(0.2, None, None, "t", "one run").clear_of()
    False
    """

    method: str
    note: str | None = None
    p: float | None = None


def missing(value: Any) -> bool:
    """Whether a table's cell is empty: None, NaN or pandas' NA."""
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float) and math.isnan(value))
    )


def t_interval(
    value: float,
    error: float,
    df: float,
    method: str = "t",
) -> MethodEstimate:
    """value ± t(0.975, df)·error and its p-value; none where df < 1 or the error is unknown.

    >>> estimate = t_interval(1.0, 0.5, 10)
    >>> round(estimate.low, 4), round(estimate.high, 4), round(estimate.p, 4)
    (-0.1141, 2.1141, 0.0734)
    """
    if df < 1 or not math.isfinite(error):
        return MethodEstimate(
            float(value), None, None, method, "nothing is left to estimate the error from"
        )
    half = float(special.stdtrit(df, 1 - TAIL)) * error
    p = float(2 * special.stdtr(df, -abs(value) / error)) if error > 0 else None
    return MethodEstimate(float(value), float(value - half), float(value + half), method, None, p)


def mean_interval(values: Sequence[float] | np.ndarray, method: str = "t") -> MethodEstimate:
    """The mean of independent values with Student's interval.

    >>> mean_interval([1.0]).note
    'one value: no interval'
    """
    array = np.asarray(values, float)
    if len(array) < 2:
        return MethodEstimate(float(array.mean()), None, None, method, "one value: no interval")
    return t_interval(
        float(array.mean()),
        float(array.std(ddof=1) / math.sqrt(len(array))),
        len(array) - 1,
        method,
    )


def spread_interval(sum_of_squares: float, df: int, method: str = "χ²") -> MethodEstimate:
    """A standard deviation √(SS/df) with its χ² interval: exact for normal values.

    >>> estimate = spread_interval(10.0, 10)
    >>> round(estimate.value, 3), round(estimate.low, 3), round(estimate.high, 3)
    (1.0, 0.699, 1.755)
    """
    if df < 1:
        return MethodEstimate(math.nan, None, None, method, "no two values to compare")
    low, high = (
        math.sqrt(sum_of_squares / float(special.chdtri(df, tail))) for tail in (TAIL, 1 - TAIL)
    )
    return MethodEstimate(math.sqrt(sum_of_squares / df), low, high, method)


def noncentrality(
    f: Any,
    df1: float,
    df2: float,
    probability: float,
) -> np.ndarray:
    """λ ≥ 0 at which the noncentral F distribution function at `f` is `probability`.

    0 where it is lower already at λ = 0. Arrays broadcast.

    >>> [round(float(noncentrality(5.0, 4, 40, tail)), 2) for tail in (0.975, 0.025)]
    [2.85, 40.57]
    """
    f = np.asarray(f, float)
    low, high = np.zeros_like(f), 8.0 * df1 * (f + 1) + 100.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = special.ncfdtr(df1, df2, middle, f) > probability
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(special.fdtr(df1, df2, f) <= probability, 0.0, (low + high) / 2)


def shares(
    f: Any,
    df1: float,
    df2: float,
    n: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the 95 % interval of λ/(λ + n).

    That is the share of variance in the population (partial η², R², partial R²).
    """
    ends = [noncentrality(f, df1, df2, probability) for probability in (1 - TAIL, TAIL)]
    return ends[0] / (ends[0] + n), ends[1] / (ends[1] + n)


def share(
    value: float,
    f: float,
    df1: int,
    df2: int,
    n: int,
    method: str = "noncentral F",
) -> MethodEstimate:
    """A share of variance with its interval, from the F statistic that tests it.

    No interval where the fit is exact or no residual is left. Where F is smaller than chance alone
    makes likely, both ends of the inversion are 0; the interval then reaches to the value itself.
    """
    if df1 < 1 or df2 < 1 or not math.isfinite(f):
        return MethodEstimate(
            value, None, None, method, "nothing is left to estimate the error from"
        )
    low, high = shares(f, df1, df2, n)
    return MethodEstimate(value, min(float(low), value), max(float(high), value), method)


def f_tail(f: float, df1: int, df2: int) -> float | None:
    """P(F(df₁, df₂) > f); None if a degree of freedom is missing."""
    if df1 < 1 or df2 < 1 or math.isnan(f):
        return None
    return float(stats.f.sf(f, df1, df2))


def plain(value: Any) -> Any:
    """The value in JSON's types.

    Dataclasses become objects, tuples lists, keys text, NaN and infinities null.

    >>> plain({("a", "b"): (MethodEstimate(float("nan"), None, None, "t"),)})
    {'a:b': [{'value': None, 'low': None, 'high': None, 'method': 't', 'note': None, 'p': None}]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {
            ":".join(map(str, key)) if isinstance(key, tuple) else str(key): plain(element)
            for key, element in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [plain(element) for element in value]
    if isinstance(value, np.generic):
        value = value.item()
    if missing(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
