"""The report's figures: tidy data frames in, Altair charts out; small data, no torch.

Everything is aggregated here, so a chart carries hundreds of rows and never the 210 modules × 16 values × steps behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.reporting.figures.charts import (
    CROWD,
    MANY,
    TITLES,
    Figure,
    Panel,
    Tables,
    band,
    level,
    lines,
    log_axis,
    opacity,
    rounded,
    steps_axis,
    thin,
)
from evilspectra.reporting.figures.effects import (
    beside_capability,
    drift_along_loss,
    drift_by_topic,
)
from evilspectra.reporting.figures.modules import layers, spectrum_over_training
from evilspectra.reporting.figures.palette import Frame
from evilspectra.reporting.figures.statistics import partial_r2, variance_shares
from evilspectra.reporting.figures.sweep import (
    alignment_along_loss,
    by_optimiser_and_data,
    by_size,
    by_weight,
    loss_and_outcome,
    with_and_without,
)

MEASURES = {
    "stable_rank": "Stable rank",
    "spectral_entropy": "Spectral entropy",
    "frobenius_nuclear": "Frobenius / nuclear",
    "condition_number": "Condition number, median",
}


def flat_value(measure: str, rank: int) -> float:
    """What `measure` is where all `rank` singular values are equal.

    >>> flat_value("frobenius_nuclear", 16)
    0.25
    """
    return {
        "stable_rank": float(rank),
        "spectral_entropy": math.log(rank),
        "condition_number": 1.0,
        "frobenius_nuclear": 1 / math.sqrt(rank),
    }[measure]


# --- figures --------------------------------------------------------------------------------------------------------


def loss_curves(tables: Tables) -> Figure | None:
    """Training loss by step, raw and smoothed, beside the held-out loss, on one scale; of arms where runs are many."""
    steps = tables.steps[np.isfinite(tables.steps["loss"])]
    heldout = tables.heldout[np.isfinite(tables.heldout["loss"])]
    if steps.empty:
        return None
    if len(tables.runs) > CROWD:
        return _losses_of_arms(tables, steps, heldout)
    window = max(5, int(steps.groupby("run").size().max()) // 10)
    smooth = steps.assign(
        smooth=steps.groupby("run")["loss"].transform(
            lambda loss: loss.rolling(window, min_periods=1, center=True).mean()
        )
    )
    base = alt.Chart(rounded(thin(smooth, ["loss", "smooth"], len(tables.runs)))).encode(
        x=steps_axis()
    )
    every: Frame = pd.concat([steps["loss"], heldout["loss"]])
    room = 0.03 * (every.max() - every.min())
    scale = alt.Scale(domain=[float(every.min() - room), float(every.max() + room)], zero=False)
    raw = base.mark_line(strokeWidth=1).encode(
        y=alt.Y("loss:Q", scale=scale, title=None),
        color=tables.arms.colour(),
        detail="run:N",
        opacity=opacity(0.28, 0.05),
    )
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=",.0f"),
        alt.Tooltip("smooth:Q", format=".3f", title="smoothed"),
        alt.Tooltip("loss:Q", format=".3f"),
    ]
    panels = [
        Panel(
            "Training loss",
            raw + lines(base, tables.arms, alt.Y("smooth:Q", scale=scale, title=None), tips),
            280,
        )
    ]
    if len(heldout):
        base = alt.Chart(rounded(heldout[["run", "arm", "step", "loss"]])).encode(x=steps_axis())
        y, tips = alt.Y("loss:Q", scale=scale, title=None), [tips[0], tips[1], tips[3]]
        panels.append(Panel("Held-out loss", lines(base, tables.arms, y, tips), 280))
    caption = f"Nats per supervised token, penalty excluded; both panels share their scale. Thin: every step. Thick: centred mean over {window} steps."
    if tables.runs["control"].any():
        caption += " A control’s rows are others, held-out ones too: its losses are not to be set against the others’."
    if tables.runs["trainer"].notna().any():
        caption += " Of a run of another trainer it is what that trainer logged, in its own unit, each point a mean over the steps since the one before."
    return Figure("loss", TITLES["loss"], caption, tuple(panels))


def _losses_of_arms(tables: Tables, steps: Frame, heldout: Frame) -> Figure:
    """The same for a crowd of runs: medians and bands over the runs of an arm."""
    most = int(steps["step"].max())
    width = max(1, math.ceil(most / 80))
    steps = (
        steps.assign(step=((steps["step"] - 1) // width + 1) * width)
        .groupby(["run", "arm", "step"], sort=False)["loss"]
        .mean()
        .reset_index()
    )
    panels = []
    for title, part in (("Training loss", steps), ("Held-out loss", heldout)):
        if len(part):
            panels.append(
                Panel(
                    title,
                    bands(
                        part, tables, "loss", ".3f", alt.Scale(zero=False, nice=False, padding=14)
                    ),
                    280,
                )
            )
    caption = f"Nats per supervised token, penalty excluded. Line: median over the runs of an arm, the training loss averaged over {width} step{'' if width == 1 else 's'}; band: 10 to 90 % of the runs. Choose a run to see its own curve."
    return Figure("loss", TITLES["loss"], caption, tuple(panels))


def bands(
    frame: Frame,
    tables: Tables,
    column: str,
    form: str,
    scale: alt.Scale,
    axis: alt.Axis | None = None,
) -> Any:
    """Median and 10 to 90 % band of a column by arm and step."""
    base = alt.Chart(rounded(band(frame, ["arm", "step"], column))).encode(x=steps_axis())
    y = alt.Y("median:Q", scale=scale, title=None, axis=axis or alt.Axis())
    area = base.mark_area().encode(
        y=alt.Y("low:Q", scale=scale, title=None),
        y2="high:Q",
        color=tables.arms.colour(),
        opacity=opacity(0.13, 0.02),
    )
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("step:Q", format=",.0f"),
        *(
            alt.Tooltip(f"{name}:Q", format=form, title=title)
            for name, title in (("median", "median"), ("low", "10 %"), ("high", "90 %"))
        ),
    ]
    return area + lines(base, tables.arms, y, tips, by="arm")


def spectra(tables: Tables) -> Figure | None:
    """Singular value by index at the last measured step: relative to the largest, and as it is."""
    frame = tables.spectra.assign(position=tables.spectra["index"] + 1)
    largest = frame.groupby(["run", "module"])["singular_value"].transform("max")
    frame = frame.assign(
        relative=frame["singular_value"] / largest.where(largest > 0),
        singular_value=frame["singular_value"].where(frame["singular_value"] > 0),
    )
    if frame["relative"].notna().sum() == 0:
        return None
    last = int(frame["position"].max())
    kept = np.unique(np.geomspace(1, last, 128).round().astype(int))
    ticks = (
        sorted({1, *range(last // 4, last + 1, last // 4)})
        if last >= 4
        else list(range(1, last + 1))
    )
    x = alt.X(
        "position:Q",
        title="index of the singular value",
        scale=alt.Scale(domain=[1, max(last, 2)], nice=False),
        axis=alt.Axis(format="d", values=ticks),
    )
    panels = []
    views = (
        ("Relative to the largest, σ / σ₁", "relative", alt.Scale(domain=[0, 1]), ".3f"),
        ("Absolute, σ (log scale)", "singular_value", alt.Scale(type="log", nice=False), ".3~g"),
    )
    for title, column, scale, form in views:
        data = rounded(band(frame[frame["position"].isin(kept)], ["arm", "position"], column))
        axis = alt.Axis() if column == "relative" else log_axis(data["low"])
        base, y = alt.Chart(data).encode(x=x), alt.Y("median:Q", scale=scale, title=None, axis=axis)
        area = base.mark_area().encode(
            y=alt.Y("low:Q", scale=scale, title=None),
            y2="high:Q",
            color=tables.arms.colour(),
            opacity=opacity(0.13, 0.02),
        )
        tips = [
            alt.Tooltip("arm:N"),
            alt.Tooltip("position:Q", title="index"),
            *(
                alt.Tooltip(f"{name}:Q", format=form, title=label)
                for name, label in (("median", "median"), ("low", "10 %"), ("high", "90 %"))
            ),
        ]
        chart = area + lines(base, tables.arms, y, tips, by="arm")
        panels.append(
            Panel(title, level(1.0, y, "flat") + chart if column == "relative" else chart, 300)
        )
    return Figure(
        "spectra",
        TITLES["spectra"],
        "Singular values at each run's last measured step. Line: median over modules and runs of the arm. Band: 10 to 90 %. A flat spectrum stays on the dotted line.",
        tuple(panels),
    )


def measures(tables: Tables) -> Figure | None:
    """The four measures over training, one line per run."""
    if len(tables.runs) > CROWD:
        return _measures_of_arms(tables)
    known = {name: band(tables.measures, ["run", "arm", "step"], name) for name in MEASURES}
    panels = []
    for name, title in MEASURES.items():
        data = known[name]
        if data.empty:
            continue
        finite = tables.measures[np.isfinite(tables.measures[name].astype(float))]
        mean = (
            finite.groupby(["run", "arm", "step"], sort=False)[name]
            .mean()
            .rename("mean")
            .reset_index()
        )
        data = rounded(
            thin(
                data.merge(mean, on=["run", "arm", "step"]),
                ["low", "median", "high", "mean"],
                4 * len(tables.runs),
            )
        )
        log, line = name == "condition_number", "median" if name == "condition_number" else "mean"
        y = alt.Y(
            f"{line}:Q",
            title=None,
            scale=alt.Scale(type="log", nice=False, padding=14)
            if log
            else alt.Scale(zero=False, padding=14, nice=False),
            axis=log_axis(pd.concat([data[line], pd.Series([1.0])])) if log else alt.Axis(),
        )
        base = alt.Chart(data).encode(x=steps_axis())
        tips = [
            alt.Tooltip("run:N"),
            alt.Tooltip("step:Q", format=",.0f"),
            *(
                alt.Tooltip(f"{column}:Q", format=".4~g", title=label)
                for column, label in ((line, line), ("low", "10 %"), ("high", "90 %"))
            ),
        ]
        area = base.mark_area(clip=True).encode(
            y=alt.Y("low:Q", title=None),
            y2="high:Q",
            color=tables.arms.colour(),
            detail="run:N",
            opacity=alt.condition("datum.arm === shown", alt.value(0.14), alt.value(0)),
        )
        chart = area + lines(base, tables.arms, y, tips)
        panels.append(
            Panel(
                title,
                level(
                    flat_value(name, tables.rank),
                    y,
                    "flat",
                    below=name in ("frobenius_nuclear", "condition_number"),
                )
                + chart
                if tables.rank
                else chart,
                220,
            )
        )
    if not panels:
        return None
    return Figure(
        "measures",
        TITLES["measures"],
        "Mean over modules (condition number: median, log scale), one line per run. Choose an arm above to see the 10 to 90 % band over its modules. Dotted: a flat spectrum.",
        tuple(panels),
    )


def _measures_of_arms(tables: Tables) -> Figure | None:
    """The same for a crowd of runs: medians and bands over the runs of an arm, of each run's mean (or median) over its modules."""
    panels = []
    for name, title in MEASURES.items():
        finite = tables.measures[np.isfinite(tables.measures[name].astype(float))]
        log = name == "condition_number"
        groups = finite.groupby(["run", "arm", "step"], sort=False)[name]
        of_runs = (groups.median() if log else groups.mean()).reset_index()
        if of_runs.empty:
            continue
        scale = (
            alt.Scale(type="log", nice=False, padding=14)
            if log
            else alt.Scale(zero=False, padding=14, nice=False)
        )
        axis = log_axis(pd.concat([of_runs[name], pd.Series([1.0])])) if log else None
        chart = bands(of_runs, tables, name, ".4~g", scale, axis)
        y = alt.Y("median:Q", title=None, scale=scale, axis=axis or alt.Axis())
        panels.append(
            Panel(
                title,
                level(
                    flat_value(name, tables.rank),
                    y,
                    "flat",
                    below=name in ("frobenius_nuclear", "condition_number"),
                )
                + chart
                if tables.rank
                else chart,
                220,
            )
        )
    if not panels:
        return None
    caption = "Of each run the mean over its modules (condition number: median, log scale). Line: median over the runs of an arm. Band: 10 to 90 % of its runs. Dotted: a flat spectrum."
    return Figure("measures", TITLES["measures"], caption, tuple(panels))


def flatness_and_loss(tables: Tables) -> Figure | None:
    """Final held-out loss against stable rank, one point per finished run; not of controls, whose held-out rows are others."""
    frame = tables.runs[(tables.runs["status"] == "done") & ~tables.runs["control"]].dropna(
        subset=["stable_rank", "heldout_loss"]
    )
    if frame.empty:
        return None
    frame = rounded(
        frame[
            [
                "run",
                "arm",
                "seed",
                "lr",
                "flatness_weight",
                "stable_rank",
                "heldout_loss",
                "train_loss",
            ]
        ].reset_index(drop=True)
    )
    frame["label"] = frame["arm"] if len(frame) <= MANY else ""
    frame["side"] = _sides(frame["stable_rank"], frame["heldout_loss"])
    x, y = (
        alt.X(
            "stable_rank:Q",
            title="stable rank, mean over modules (flatter →)",
            scale=alt.Scale(zero=False, padding=24),
        ),
        alt.Y("heldout_loss:Q", title=None, scale=alt.Scale(zero=False, padding=24)),
    )
    numbers = (
        ("lr", "lr", "~g"),
        ("stable_rank", "stable rank", ".2f"),
        ("heldout_loss", "held-out loss", ".3f"),
        ("train_loss", "training loss", ".3f"),
    )
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("arm:N"),
        alt.Tooltip("seed:Q"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=form) for name, title, form in numbers),
    ]
    base = alt.Chart(frame).encode(x=x, y=y)
    dots = base.mark_point(size=120, filled=True, strokeWidth=2).encode(
        color=tables.arms.colour(),
        opacity=opacity(1, 0.12),
        shape=alt.condition("datum.flatness_weight > 0", alt.value("diamond"), alt.value("circle")),
        tooltip=tips,
    )
    layers = dots
    for side in sorted(set(frame["side"])):
        layers += (
            base.transform_filter(f"datum.side === '{side}'")
            .mark_text(align=side, dx=11 if side == "left" else -11, fontSize=12)
            .encode(text="label:N", color=tables.arms.colour(), opacity=opacity(1, 0.12))
        )
    caption = "Final held-out loss (nats per token) against stable rank, one point per finished run: down is better, right is flatter. Diamonds: with the flatness penalty."
    if tables.runs["control"].any():
        caption += " Controls are left out: their held-out rows are others."
    return Figure(
        "flatness-loss",
        TITLES["flatness-loss"],
        caption,
        (Panel("Final held-out loss", layers, 340),),
        1,
    )


def _sides(x: Frame, y: Frame) -> list[str]:
    """How each point's label is aligned, so that it runs away from its nearest neighbour of similar height, or from the edge."""
    span, near = (x.max() - x.min()) or 1.0, 0.08 * ((y.max() - y.min()) or 1.0)
    sides = []
    for here, height in zip(x, y, strict=True):
        others = x[(y - height).abs() < near]
        left = (
            min(here - others[others < here].max(), here - x.min() + span / 10)
            if (others < here).any()
            else here - x.min() + span / 10
        )
        right = (
            min(others[others > here].min() - here, x.max() - here + span / 10)
            if (others > here).any()
            else x.max() - here + span / 10
        )
        sides.append("left" if right >= left else "right")
    return sides


#: The report's figures, in order; each is None where what it draws was not measured.
FIGURES: tuple[Callable[[Tables], Figure | None], ...] = (
    loss_and_outcome,
    alignment_along_loss,
    drift_along_loss,
    by_optimiser_and_data,
    variance_shares,
    partial_r2,
    with_and_without,
    by_weight,
    by_size,
    beside_capability,
    drift_by_topic,
    loss_curves,
    spectra,
    spectrum_over_training,
    measures,
    flatness_and_loss,
    layers,
)
