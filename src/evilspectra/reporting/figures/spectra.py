"""The figures of spectra at the end and of the flatness measures over training. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.reporting.figures.charts import CROWD, TITLES, Figure, Panel, Tables
from evilspectra.reporting.figures.marks import (
    band,
    band_tips,
    bands,
    index_axis,
    level,
    lines,
    log_axis,
    rounded,
    step_tip,
    steps_axis,
    thin,
)
from evilspectra.reporting.figures.palette import Frame

MEASURES = {
    "stable_rank": "Stable rank",
    "spectral_entropy": "Spectral entropy",
    "frobenius_nuclear": "Frobenius / nuclear",
    "condition_number": "Condition number, median",
}
#: Measures whose scale is logarithmic, and which are summarised by their median.
_LOGARITHMIC = ("condition_number",)
#: Measures that are larger, the less flat a spectrum is: their flat value is at the bottom.
_LARGER_IS_STEEPER = ("frobenius_nuclear", "condition_number")


def flat_value(measure: str, rank: int) -> float:
    """The value of a measure where all `rank` singular values are equal.

    >>> flat_value("frobenius_nuclear", 16)
    0.25
    """
    return {
        "stable_rank": float(rank),
        "spectral_entropy": math.log(rank),
        "condition_number": 1.0,
        "frobenius_nuclear": 1 / math.sqrt(rank),
    }[measure]


def spectra(tables: Tables) -> Figure | None:
    """Singular value by index at the last measured step, relative to the largest and absolute."""
    frame = tables.spectra.assign(position=tables.spectra["index"] + 1)
    largest = frame.groupby(["run", "module"])["singular_value"].transform("max")
    frame = frame.assign(
        relative=frame["singular_value"] / largest.where(largest > 0),
        singular_value=frame["singular_value"].where(frame["singular_value"] > 0),
    )
    if frame["relative"].notna().sum() == 0:
        return None
    last = int(frame["position"].max())
    positions = np.unique(np.geomspace(1, last, 128).round().astype(int))
    index_tip = alt.Tooltip("position:Q", title="index")
    panels = []
    views = (
        ("Relative to the largest, σ / σ₁", "relative", alt.Scale(domain=[0, 1]), ".3f"),
        ("Absolute, σ (log scale)", "singular_value", alt.Scale(type="log", nice=False), ".3~g"),
    )
    for title, column, scale, form in views:
        data = rounded(band(frame[frame["position"].isin(positions)], ["arm", "position"], column))
        axis = alt.Axis() if column == "relative" else log_axis(data["low"])
        y = alt.Y("median:Q", scale=scale, title=None, axis=axis)
        chart = bands(data, tables.arms, index_axis(last), y, index_tip, form)
        if column == "relative":
            chart = level(1.0, y, "flat") + chart
        panels.append(Panel(title, chart, 300))
    caption = (
        "Singular values at each run's last measured step. Line: median over modules and runs of"
        " the arm. Band: 10 to 90 %. A flat spectrum stays on the dotted line."
    )
    return Figure("spectra", TITLES["spectra"], caption, tuple(panels))


def measures(tables: Tables) -> Figure | None:
    """The four measures over training, one line per run."""
    if len(tables.runs) > CROWD:
        return _measures_of_arms(tables)
    panels = []
    for name, title in MEASURES.items():
        data = band(tables.measures, ["run", "arm", "step"], name)
        if data.empty:
            continue
        finite = tables.measures[np.isfinite(tables.measures[name].astype(float))]
        groups = finite.groupby(["run", "arm", "step"], sort=False)[name]
        data = data.merge(groups.mean().rename("mean").reset_index(), on=["run", "arm", "step"])
        data = rounded(thin(data, ["low", "median", "high", "mean"], 4 * len(tables.runs)))
        line = "median" if name in _LOGARITHMIC else "mean"
        scale, axis = _scale_and_axis(name, data[line])
        y = alt.Y(f"{line}:Q", title=None, scale=scale, axis=axis)
        base = alt.Chart(data).encode(x=steps_axis())
        tips = [alt.Tooltip("run:N"), step_tip(), *band_tips(line, ".4~g")]
        area = base.mark_area(clip=True).encode(
            y=alt.Y("low:Q", title=None),
            y2="high:Q",
            color=tables.arms.colour(),
            detail="run:N",
            opacity=alt.condition("datum.arm === shown", alt.value(0.14), alt.value(0)),
        )
        chart = area + lines(base, tables.arms, y, tips)
        panels.append(Panel(title, _with_flat_value(chart, name, tables.rank, y), 220))
    return _panels_of_measures(
        panels,
        "Mean over modules (condition number: median, log scale), one line per run. Choose an arm"
        " above to see the 10 to 90 % band over its modules. Dotted: a flat spectrum.",
    )


def _measures_of_arms(tables: Tables) -> Figure | None:
    """The measures of a crowd of runs: medians and bands over the runs of an arm.

    They are of each run's mean (or median) over its modules.
    """
    panels = []
    for name, title in MEASURES.items():
        finite = tables.measures[np.isfinite(tables.measures[name].astype(float))]
        groups = finite.groupby(["run", "arm", "step"], sort=False)[name]
        of_runs = (groups.median() if name in _LOGARITHMIC else groups.mean()).reset_index()
        if of_runs.empty:
            continue
        scale, axis = _scale_and_axis(name, of_runs[name])
        y = alt.Y("median:Q", title=None, scale=scale, axis=axis)
        data = rounded(band(of_runs, ["arm", "step"], name))
        chart = bands(data, tables.arms, steps_axis(), y, step_tip(), ".4~g")
        panels.append(Panel(title, _with_flat_value(chart, name, tables.rank, y), 220))
    return _panels_of_measures(
        panels,
        "Of each run the mean over its modules (condition number: median, log scale). Line: median"
        " over the runs of an arm. Band: 10 to 90 % of its runs. Dotted: a flat spectrum.",
    )


def _panels_of_measures(panels: Sequence[Panel], caption: str) -> Figure | None:
    """The figure of the panels; None without any."""
    return Figure("measures", TITLES["measures"], caption, tuple(panels)) if panels else None


def _scale_and_axis(measure: str, values: Frame) -> tuple[alt.Scale, alt.Axis]:
    if measure not in _LOGARITHMIC:
        return alt.Scale(zero=False, padding=14, nice=False), alt.Axis()
    axis = log_axis(pd.concat([values, pd.Series([1.0])]))
    return alt.Scale(type="log", nice=False, padding=14), axis


def _with_flat_value(chart: Any, measure: str, rank: int | None, y: alt.Y) -> Any:
    """The chart with a dotted line at a flat spectrum's value, where the rank is known."""
    if not rank:
        return chart
    below = measure in _LARGER_IS_STEEPER
    return level(flat_value(measure, rank), y, "flat", below=below) + chart
