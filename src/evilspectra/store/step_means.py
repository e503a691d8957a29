"""Means over the last steps of a run, and over the modules of one step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: "Training loss" is the mean data loss over this last share of the steps.
LAST_SHARE = 0.05
MEASURES = ("stable_rank", "spectral_entropy", "condition_number", "frobenius_nuclear", "frobenius")


def last_mean(losses: pd.Series) -> float | None:
    """Mean of the last 5 % of the values, at least one; None if there are none.

    >>> import pandas
    >>> last_mean(pandas.Series(range(100)))
    97.0
    """
    if losses.empty:
        return None
    return number(float(losses.iloc[-max(1, round(LAST_SHARE * len(losses))) :].mean()))


def number(value: float) -> float | None:
    """The value as a float, or None if it is not finite (JSON has no NaN)."""
    return float(value) if math.isfinite(value) else None


def module_summary(measures: Any) -> dict[str, float | None]:
    """The mean over modules of each spectral measure of one step (condition number: the median).

    Undefined values are left out.
    """
    return {
        name: number(
            measures[name].median() if name == "condition_number" else measures[name].mean()
        )
        for name in MEASURES
    }
