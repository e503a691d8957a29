"""The report's figures in order, and those of losses. No torch.

Figures get tidy data frames and give Altair charts. Everything is aggregated before it is drawn,
so a chart carries hundreds of rows and never the 210 modules × 16 values × steps behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.reporting.figures.charts import CROWD, MANY, TITLES, Figure, Panel, Tables
from evilspectra.reporting.figures.effects import (
    beside_capability,
    drift_along_loss,
    drift_by_topic,
)
from evilspectra.reporting.figures.marks import (
    band,
    bands,
    lines,
    opacity,
    rounded,
    step_tip,
    steps_axis,
    thin,
)
from evilspectra.reporting.figures.modules import layers, spectrum_over_training
from evilspectra.reporting.figures.palette import Frame
from evilspectra.reporting.figures.penalty import by_weight, with_and_without
from evilspectra.reporting.figures.spectra import measures, spectra
from evilspectra.reporting.figures.statistics import partial_r2, variance_shares
from evilspectra.reporting.figures.sweep import (
    alignment_along_loss,
    by_optimiser_and_data,
    by_size,
    loss_and_outcome,
)


def loss_curves(tables: Tables) -> Figure | None:
    """Training loss by step, raw and smoothed, with the held-out loss on the same scale.

    Where runs are many, the curves are those of arms.
    """
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
        step_tip(),
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
        y = alt.Y("loss:Q", scale=scale, title=None)
        tips = [tips[0], tips[1], tips[3]]
        panels.append(Panel("Held-out loss", lines(base, tables.arms, y, tips), 280))
    caption = (
        "Nats per supervised token, penalty excluded; both panels share their scale. Thin: every"
        f" step. Thick: centred mean over {window} steps."
    )
    if tables.runs["control"].any():
        caption += (
            " A control’s rows are others, held-out ones too: its losses are not to be set against"
            " the others’."
        )
    if tables.runs["trainer"].notna().any():
        caption += (
            " Of a run of another trainer it is what that trainer logged, in its own unit, each"
            " point a mean over the steps since the one before."
        )
    return Figure("loss", TITLES["loss"], caption, tuple(panels))


def _losses_of_arms(tables: Tables, steps: Frame, heldout: Frame) -> Figure:
    """Losses of a crowd of runs: medians and bands over the runs of an arm."""
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
        if part.empty:
            continue
        data = rounded(band(part, ["arm", "step"], "loss"))
        scale = alt.Scale(zero=False, nice=False, padding=14)
        y = alt.Y("median:Q", scale=scale, title=None, axis=alt.Axis())
        chart = bands(data, tables.arms, steps_axis(), y, step_tip(), ".3f")
        panels.append(Panel(title, chart, 280))
    caption = (
        "Nats per supervised token, penalty excluded. Line: median over the runs of an arm, the"
        f" training loss averaged over {width} step{'' if width == 1 else 's'}; band: 10 to 90 % of"
        " the runs. Choose a run to see its own curve."
    )
    return Figure("loss", TITLES["loss"], caption, tuple(panels))


def flatness_and_loss(tables: Tables) -> Figure | None:
    """Final held-out loss against stable rank, one point per finished run.

    Controls are left out: their held-out rows are others.
    """
    frame = tables.runs[(tables.runs["status"] == "done") & ~tables.runs["control"]].dropna(
        subset=["stable_rank", "heldout_loss"]
    )
    if frame.empty:
        return None
    columns = ["run", "arm", "seed", "lr", "flatness_weight"]
    columns += ["stable_rank", "heldout_loss", "train_loss"]
    frame = rounded(frame[columns].reset_index(drop=True))
    frame["label"] = frame["arm"] if len(frame) <= MANY else ""
    frame["side"] = _sides(frame["stable_rank"], frame["heldout_loss"])
    x = alt.X(
        "stable_rank:Q",
        title="stable rank, mean over modules (flatter →)",
        scale=alt.Scale(zero=False, padding=24),
    )
    y = alt.Y("heldout_loss:Q", title=None, scale=alt.Scale(zero=False, padding=24))
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
    caption = (
        "Final held-out loss (nats per token) against stable rank, one point per finished run: down"
        " is better, right is flatter. Diamonds: with the flatness penalty."
    )
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
    """How each point's label is aligned.

    It runs away from the nearest neighbour of similar height, or from the edge.
    """
    span, near = (x.max() - x.min()) or 1.0, 0.08 * ((y.max() - y.min()) or 1.0)
    sides = []
    for point, height in zip(x, y, strict=True):
        others = x[(y - height).abs() < near]
        left = point - x.min() + span / 10
        if (others < point).any():
            left = min(point - others[others < point].max(), left)
        right = x.max() - point + span / 10
        if (others > point).any():
            right = min(others[others > point].min() - point, right)
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
