"""The figures that compare a sweep's runs: outcome by loss, optimiser, data and size of the base.

Every point is a run and carries its name, so that a click on it opens the run. Controls are left
out, because their data differ; only the figure of drift during training (`effects`) includes them.
No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from evilspectra.reporting.figures.charts import (
    MANY,
    TITLES,
    Figure,
    Panel,
    Tables,
)
from evilspectra.reporting.figures.marks import capitalised, opacity, rounded, step_tip, steps_axis
from evilspectra.reporting.figures.palette import MUTED, Frame
from evilspectra.reporting.outcomes import Outcome
from evilspectra.reporting.statistics import Fit

#: Shapes of data sets in order, then again from the front.
SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "cross",
    "triangle-down",
    "triangle-right",
    "triangle-left",
)


def compared(tables: Tables, *needed: str) -> Frame:
    """The finished runs that are no controls and have the outcome and the columns needed.

    The frame is empty where there is no outcome.
    """
    if tables.outcome is None:
        return tables.runs.iloc[:0]
    done = tables.runs[(tables.runs["status"] == "done") & ~tables.runs["control"].astype(bool)]
    complete = done.dropna(subset=[tables.outcome.name, *needed])
    return complete.assign(outcome=complete[tables.outcome.name].astype(float))


def left_out(tables: Tables, frame: Frame) -> str:
    """The number of runs that a figure does not show, as a sentence with a blank before it.

    Nothing where it shows all.
    """
    missing = len(tables.runs) - len(frame)
    if not missing:
        return ""
    return (
        f" {missing} of {len(tables.runs)} runs are not in it: controls, unfinished ones, or"
        " without these numbers."
    )


def _tips(outcome: Outcome, *further: tuple[str, str, str]) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("run:N"),
        alt.Tooltip("arm:N"),
        alt.Tooltip("dataset:N", title="data"),
        alt.Tooltip("seed:Q"),
        alt.Tooltip("outcome:Q", title=outcome.short, format=outcome.form),
        *(alt.Tooltip(f"{name}:Q", title=title, format=form) for name, title, form in further),
    ]


def _shapes(names: list[str]) -> alt.Shape:
    return (
        alt.Shape("dataset:N")
        .scale(domain=names, range=[SHAPES[index % len(SHAPES)] for index in range(len(names))])
        .legend(None)
    )


def _shape_key(names: list[str]) -> str:
    """Which shape is which data set, where there are several."""
    if len(names) < 2:
        return ""
    plurals = {
        "circle": "circles",
        "square": "squares",
        "triangle-up": "triangles",
        "diamond": "diamonds",
        "cross": "crosses",
        "triangle-down": "triangles down",
        "triangle-right": "triangles right",
        "triangle-left": "triangles left",
    }
    named = zip(SHAPES, names, strict=False)
    listed = ", ".join(f"{plurals[shape]}: {name}" for shape, name in named)
    again = ", and again from the front" if len(names) > len(SHAPES) else ""
    return f" {listed[0].upper()}{listed[1:]}{again}."


def loss_and_outcome(tables: Tables) -> Figure | None:
    """The outcome against the log of the training loss, one point per run.

    Each optimiser has a line and a band; a pooled line is dotted.
    """
    frame = compared(tables, "log_loss")
    outcome = tables.outcome
    if outcome is None or len(frame) < 2:
        return None
    data = list(dict.fromkeys(frame["dataset"]))
    fits = tables.statistics.fits if tables.statistics else []
    frame = rounded(frame[["run", "arm", "dataset", "seed", "log_loss", "train_loss", "outcome"]])
    x = alt.X(
        "log_loss:Q",
        title="log training loss (← training)",
        scale=alt.Scale(zero=False, padding=24, nice=False),
    )
    scale = alt.Scale(domain=_domain(frame["outcome"], fits), nice=False)
    y = alt.Y("outcome:Q", title=None, scale=scale)
    size = 60 if len(frame) > MANY else 110
    dots = (
        alt.Chart(frame)
        .mark_point(size=size, filled=True)
        .encode(
            x=x,
            y=y,
            color=tables.arms.colour(),
            shape=_shapes(data),
            opacity=opacity(0.95, 0.12),
            tooltip=_tips(outcome, ("train_loss", "training loss", ".3f")),
        )
    )
    panel = Panel(capitalised(outcome.title), alt.layer(*_fitted(tables, fits, x, y), dots), 420)
    drawn = (
        "Lines: least squares within each optimiser, with 95 % bands of the mean; dotted: all runs"
        " together. "
        if fits
        else ""
    )
    loss = (
        "the training loss is that of the table"
        if tables.steps.empty
        else "the training loss is the mean of the last 5 % of steps"
    )
    caption = (
        f"One point per finished run; {loss}, on a log scale. {drawn}{outcome.note}"
        f"{_shape_key(data)}{left_out(tables, frame)}"
    )
    return Figure("loss-outcome", TITLES["loss-outcome"], caption, (panel,), 1)


def _domain(outcomes: Frame, fits: Sequence[Fit]) -> list[float]:
    """From the lowest to the highest end of points and bands, but not far beyond the points."""
    lowest, highest = float(outcomes.min()), float(outcomes.max())
    room = 0.05 * ((highest - lowest) or 1.0)
    ends = [lowest, highest]
    for fit in fits:
        ends += [*fit.low, *fit.high]
    low, high = float(min(ends)), float(max(ends))
    return [max(lowest - 4 * room, low - room), min(highest + 4 * room, high + room)]


def _fitted(
    tables: Tables,
    fits: Sequence[Fit],
    x: alt.X,
    y: alt.Y,
) -> list[Any]:
    """Bands and lines of the optimisers, and the dotted line of all runs."""
    if not fits:
        return []
    colour = tables.arms.colour()
    lines = pd.concat(
        [
            pd.DataFrame(
                {
                    "arm": fit.arm,
                    "name": fit.name,
                    "log_loss": fit.x,
                    "outcome": fit.y,
                    "low": fit.low,
                    "high": fit.high,
                    "r2": fit.r2,
                }
            )
            for fit in fits
        ]
    )
    of_arms = alt.Chart(rounded(lines[lines["arm"] != ""])).encode(x=x, detail="name:N")
    tips = [alt.Tooltip("name:N", title="fit"), alt.Tooltip("r2:Q", title="R²", format=".3f")]
    layers = [
        of_arms.mark_area(clip=True).encode(
            y=alt.Y("low:Q", title=None, scale=y["scale"]),
            y2="high:Q",
            color=colour,
            opacity=opacity(0.11, 0.02),
        ),
        of_arms.mark_line(clip=True, strokeWidth=1.5).encode(
            y=y, color=colour, opacity=opacity(0.9, 0.12), tooltip=tips
        ),
    ]
    if any(fit.arm == "" for fit in fits):
        pooled = alt.Chart(rounded(lines[lines["arm"] == ""]))
        dotted = pooled.mark_line(clip=True, strokeWidth=1.5, strokeDash=[2, 4], color=MUTED)
        layers.append(dotted.encode(x=x, y=y, tooltip=tips))
    return layers


def alignment_along_loss(tables: Tables) -> Figure | None:
    """Mean alignment at the judged checkpoints, by training loss and by step: a path per run."""
    frame = tables.paths
    if frame.empty or frame.groupby("run")["step"].nunique().max() < 2:
        return None
    many = frame["run"].nunique() > MANY
    frame = rounded(frame[["run", "arm", "step", "loss", "mean_alignment"]])
    y = alt.Y("mean_alignment:Q", title=None, scale=alt.Scale(zero=False, padding=14, nice=False))
    tips = [
        alt.Tooltip("run:N"),
        step_tip(),
        alt.Tooltip("mean_alignment:Q", title="alignment", format=".1f"),
        alt.Tooltip("loss:Q", format=".3f"),
    ]
    by_loss = alt.X(
        "loss:Q",
        title="training loss, nats per token (← training)",
        scale=alt.Scale(type="log", nice=False, padding=20),
        axis=alt.Axis(format="~g", labelBound=True),
    )
    axes = (
        ("By training loss (log scale)", by_loss, frame.dropna(subset=["loss"])),
        ("By step", steps_axis(), frame),
    )
    panels = []
    for title, x, part in axes:
        if part.empty or part.groupby("run")["step"].size().max() < 2:
            continue
        base = alt.Chart(part).encode(x=x, y=y, color=tables.arms.colour())
        line = base.mark_line(strokeWidth=1 if many else 2).encode(
            order=alt.Order("step:Q"),
            strokeDash=tables.arms.dash(),
            detail="run:N",
            opacity=opacity(1, 0.1),
        )
        dots = base.mark_circle(size=30 if many else 60)
        dots = dots.encode(opacity=opacity(0.9, 0.1), tooltip=tips)
        panels.append(Panel(title, alt.layer(line, dots), 340))
    caption = (
        "Mean alignment score, 0 to 100, of the answers of each judged checkpoint; a path per run,"
        " from the base where it was judged. One judge’s."
    )
    return Figure("alignment", TITLES["alignment"], caption, tuple(panels))


def by_optimiser_and_data(tables: Tables) -> Figure | None:
    """The outcome of every run by data set, optimisers side by side, their means as strokes."""
    outcome = tables.outcome
    frame = compared(tables)
    if outcome is None or frame.empty:
        return None
    if max(frame["optimizer"].nunique(), frame["dataset"].nunique()) < 2:
        return None
    data = list(dict.fromkeys(frame["dataset"]))
    present = [name for name in tables.arms.names if name in set(frame["arm"])]
    views = [(outcome.title, "outcome", outcome.form)]
    if frame["misalignment"].notna().any():
        views.append(("misalignment rate (definition spectra), %", "rate", ".1f"))
    panels = []
    for title, name, form in views:
        part = frame.assign(rate=100 * frame["misalignment"].astype(float)).dropna(subset=[name])
        part = rounded(part[["run", "arm", "dataset", "seed", *dict.fromkeys(("outcome", name))]])
        x = alt.X(
            "dataset:N",
            sort=data,
            title=None,
            axis=alt.Axis(
                labelAngle=0 if len(data) <= 4 else -30,
                labelLimit=150,
                labelOverlap=False,
                domain=False,
            ),
            scale=alt.Scale(domain=data, paddingInner=0.25, paddingOuter=0.12),
        )
        offset = alt.XOffset("arm:N", sort=present, scale=alt.Scale(domain=present, padding=0.5))
        y = alt.Y(
            f"{name}:Q", title=None, scale=alt.Scale(zero=name == "rate", padding=14, nice=False)
        )
        base = alt.Chart(part).encode(x=x, xOffset=offset, color=tables.arms.colour())
        of_arms = part.groupby(["dataset", "arm"], sort=False)[name].mean().reset_index()
        means = alt.Chart(rounded(of_arms)).encode(x=x, xOffset=offset, color=tables.arms.colour())
        tips = _tips(outcome)
        if name != "outcome":
            tips.append(alt.Tooltip(f"{name}:Q", title="rate, %", format=form))
        stroke = means.mark_tick(
            thickness=2.5,
            size=max(6, min(30, 520 / (len(data) * len(present)) - 4)),
            orient="horizontal",
        ).encode(y=y, opacity=opacity(1, 0.12))
        dots = base.mark_circle(size=34).encode(y=y, opacity=opacity(0.6, 0.08), tooltip=tips)
        panels.append(Panel(capitalised(title), alt.layer(stroke, dots), 320))
    caption = (
        "One dot per finished run, a stroke for the mean of each arm on each data set; arms from"
        f" left to right as in the list above. {outcome.note}{left_out(tables, frame)}"
    )
    columns = 2 if len(panels) > 1 and len(data) <= 4 else 1
    return Figure("optimisers", TITLES["optimisers"], caption, tuple(panels), columns)


def by_size(tables: Tables) -> Figure | None:
    """The outcome by the number of parameters of the base, where the bases' names give it."""
    outcome = tables.outcome
    frame = compared(tables, "size")
    if outcome is None or frame["size"].nunique() < 2:
        return None
    data = list(dict.fromkeys(frame["dataset"]))
    frame = frame.assign(billions=frame["size"].astype(float) / 1e9)
    frame = rounded(frame[["run", "arm", "dataset", "seed", "model", "billions", "outcome"]])
    x = alt.X(
        "billions:Q",
        title="parameters of the base, in billions (log scale)",
        scale=alt.Scale(type="log", nice=False, padding=24),
        axis=alt.Axis(format="~g", values=sorted(set(frame["billions"]))),
    )
    y = alt.Y("outcome:Q", title=None, scale=alt.Scale(zero=False, padding=20, nice=False))
    base = alt.Chart(frame).encode(x=x, color=tables.arms.colour())
    of_arms = frame.groupby(["arm", "billions"], sort=False)["outcome"].mean().reset_index()
    means = alt.Chart(rounded(of_arms)).encode(x=x, color=tables.arms.colour())
    line = means.mark_line(strokeWidth=2).encode(
        y=y, strokeDash=tables.arms.dash(), opacity=opacity(1, 0.1)
    )
    tips = [*_tips(outcome), alt.Tooltip("model:N", title="base")]
    dots = base.mark_point(size=70, filled=True).encode(
        y=y, shape=_shapes(data), opacity=opacity(0.8, 0.1), tooltip=tips
    )
    caption = (
        "One point per finished run, a line through each arm’s means. The sizes are read from the"
        f" names of the bases. {outcome.note}{_shape_key(data)}{left_out(tables, frame)}"
    )
    panel = Panel(capitalised(outcome.title), alt.layer(line, dots), 340)
    return Figure("size", TITLES["size"], caption, (panel,), 1)
