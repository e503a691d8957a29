"""Marks, axes and aggregations that the report's figures share. No torch."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.reporting.figures.charts import MANY, MOST_ROWS
from evilspectra.reporting.figures.palette import MUTED, Arms, Frame

POINTS = 12_000  # rows of a line chart, over all runs
FEW = 12  # so many points on a line are also drawn as dots


def opacity(full: float, otherwise: float) -> Any:
    """`full`, or `otherwise` while another arm is stressed or another run is picked.

    Marks of no single run stay as they are while a run is picked.
    """
    of_arm = "(shown === '' || datum.arm === shown)"
    of_run = "(picked === '' || !isValid(datum.run) || datum.run === picked)"
    return alt.condition(f"{of_arm} && {of_run}", alt.value(full), alt.value(otherwise))


def lines(
    base: alt.Chart,
    arms: Arms,
    y: alt.Y,
    tooltip: list[alt.Tooltip],
    by: str = "run",
) -> Any:
    """A line per `by`, dots where points are few, and wide transparent points for the tooltip."""
    x = base.encoding.x["shorthand"].split(":")[0]
    dots = base.mark_circle(size=34).encode(y=y, color=arms.colour(), opacity=opacity(1, 0.1))
    many = base.data[by].nunique() > MANY
    lines = base.mark_line(strokeWidth=1 if many else 2).encode(
        y=y, color=arms.colour(), strokeDash=arms.dash(), detail=f"{by}:N", opacity=opacity(1, 0.1)
    )
    points = base.mark_circle(size=160, opacity=0).encode(y=y, color=arms.colour(), tooltip=tooltip)
    return alt.layer(lines, *([dots] if base.data[x].nunique() <= FEW and not many else []), points)


def level(
    value: float,
    y: alt.Y,
    label: str,
    below: bool = False,
    at_start: bool = False,
) -> Any:
    """A dotted line at a height, with its name at one end."""
    base = alt.Chart(
        pd.DataFrame({y["shorthand"].split(":")[0]: [value], "label": [label]})
    ).encode(y=y)
    rule = base.mark_rule(color=MUTED, strokeDash=[2, 4], strokeWidth=1)
    name = base.mark_text(
        align="left" if at_start else "right",
        dx=4 if at_start else 0,
        dy=9 if below else -7,
        color=MUTED,
        fontSize=11,
        fontStyle="italic",
    )
    return rule + name.encode(x=alt.value(0) if at_start else alt.value("width"), text="label")


def log_axis(values: Frame) -> alt.Axis:
    """Ticks at powers of ten, or at 1, 2, 5 where the values span few of them."""
    low = math.floor(math.log10(values.min()))
    high = math.ceil(math.log10(values.max()))
    factors = (1,) if high - low > 2 else (1, 2, 5)
    return alt.Axis(
        format="~g",
        values=[factor * 10.0**power for power in range(low, high + 1) for factor in factors],
    )


def thin(frame: Frame, columns: list[str], runs: int) -> Frame:
    """The rows of each run averaged in neighbours, near POINTS rows for all runs together."""
    most = max(40, POINTS // max(runs, 1))
    count = frame.groupby("run")["run"].transform("size")
    position = frame.groupby("run").cumcount()
    bins = (position * most // count).where(count > most, position)
    return (
        frame.groupby(["run", "arm", bins], sort=False)[["step", *columns]]
        .mean()
        .reset_index(["run", "arm"])
    )


def band(frame: Frame, keys: list[str], column: str) -> Frame:
    """Median, 10 % and 90 % quantile of a column by `keys`, over the rows with a finite value."""
    groups = frame[np.isfinite(frame[column].astype(float))].groupby(keys, sort=False)[column]
    return pd.DataFrame(
        {
            name: groups.quantile(share)
            for name, share in (("low", 0.1), ("median", 0.5), ("high", 0.9))
        }
    ).reset_index()


def steps_axis() -> alt.X:
    """The optimiser's steps, from the first to the last."""
    return alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(format="~s", tickMinStep=1),
    )


def index_axis(last: int) -> alt.X:
    """The index of a singular value, from 1 to `last`."""
    every = last // 4
    ticks = sorted({1, *range(every, last + 1, every)}) if every else list(range(1, last + 1))
    return alt.X(
        "position:Q",
        title="index of the singular value",
        scale=alt.Scale(domain=[1, max(last, 2)], nice=False),
        axis=alt.Axis(format="d", values=ticks),
    )


def gathered(column: Frame, names: list[str]) -> tuple[Frame, list[str]]:
    """The column, and the names in it in order, with those beyond MOST_ROWS as a single one."""
    if len(names) <= MOST_ROWS:
        return column, names
    first = names[: MOST_ROWS - 1]
    rest = f"{len(names) - MOST_ROWS + 1} others, mean"
    return column.where(column.isin(first), rest), [*first, rest]


def rounded(frame: Frame) -> Frame:
    """The frame with floats of six significant digits.

    Files are shorter, and have the same bytes wherever sums differ in the last place.
    """
    numbers = frame.select_dtypes("float").columns
    return frame.assign(
        **{name: [float(f"{value:.6g}") for value in frame[name]] for name in numbers}
    ).reset_index(drop=True)


def bands(
    data: Frame,
    arms: Arms,
    x: alt.X,
    y: alt.Y,
    x_tip: alt.Tooltip,
    form: str,
) -> Any:
    """Median and 10 to 90 % band of every arm along x.

    `data`: as `band` makes it, a row per arm and x; `y`: the axis of its column `median`; `form`:
    the format of its numbers.
    """
    base = alt.Chart(data).encode(x=x)
    area = base.mark_area().encode(
        y=alt.Y("low:Q", scale=y["scale"], title=None),
        y2="high:Q",
        color=arms.colour(),
        opacity=opacity(0.13, 0.02),
    )
    tips = [alt.Tooltip("arm:N"), x_tip, *band_tips("median", form)]
    return area + lines(base, arms, y, tips, by="arm")


def band_tips(centre: str, form: str) -> list[alt.Tooltip]:
    """The tooltip of a column in the middle of a band, and of the band's ends."""
    columns = ((centre, centre), ("low", "10 %"), ("high", "90 %"))
    return [alt.Tooltip(f"{name}:Q", format=form, title=title) for name, title in columns]


def capitalised(text: str) -> str:
    """The text with a capital in front, the rest as it is."""
    return f"{text[:1].upper()}{text[1:]}"


def step_tip() -> alt.Tooltip:
    return alt.Tooltip("step:Q", format=",.0f")
