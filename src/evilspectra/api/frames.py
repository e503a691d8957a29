"""Data frames as rows of plain values."""

from __future__ import annotations

from typing import Any


def plain_rows(frame: Any) -> list[dict[str, Any]]:
    """The rows of a data frame of pandas; missing values are None.

    >>> import pandas as pd
    >>> plain_rows(pd.DataFrame({"step": [1, 2], "loss": [0.5, float("nan")]}))
    [{'step': 1, 'loss': 0.5}, {'step': 2, 'loss': None}]
    """
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def ends(name: str, estimate: Any) -> dict[str, float | None]:
    """An estimate and the ends of its interval as three columns; None where there is none.

    >>> from evilspectra.intervals import Interval
    >>> ends("drift", Interval(0.1, 0.0, 0.2)), ends("drift", None)["drift_low"]
    ({'drift': 0.1, 'drift_low': 0.0, 'drift_high': 0.2}, None)
    """
    values = (estimate.value, estimate.low, estimate.high) if estimate else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
