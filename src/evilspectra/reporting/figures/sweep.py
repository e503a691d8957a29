"""The figures that compare the runs of a sweep: outcome against loss, optimiser, data, size of the base, and the penalty. No torch.

Every point is a run and carries its name, so that a click on it opens the run. Controls are left out, for their data differ: only where drift
is drawn along training (`effects`) they stand beside the others.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.reporting.figures.charts import (
    MANY,
    TITLES,
    Figure,
    Panel,
    Tables,
    opacity,
    rounded,
    steps_axis,
)
from evilspectra.reporting.figures.palette import MUTED, Frame
from evilspectra.reporting.outcomes import Outcome

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
    """The finished runs that are no controls and have the outcome and what else is needed; empty where there is no outcome."""
    if tables.outcome is None:
        return tables.runs.iloc[:0]
    done = tables.runs[(tables.runs["status"] == "done") & ~tables.runs["control"].astype(bool)]
    found = done.dropna(subset=[tables.outcome.name, *needed])
    return found.assign(outcome=found[tables.outcome.name].astype(float))


def left_out(tables: Tables, frame: Frame) -> str:
    """How many of the runs a figure does not show, as a sentence with a blank before it; nothing where it shows all."""
    missing = len(tables.runs) - len(frame)
    return (
        f" {missing} of {len(tables.runs)} runs are not in it: controls, unfinished ones, or without these numbers."
        if missing
        else ""
    )


def _tips(outcome: Outcome, *further: tuple[str, str, str]) -> list[alt.Tooltip]:
    known = [
        alt.Tooltip("run:N"),
        alt.Tooltip("arm:N"),
        alt.Tooltip("dataset:N", title="data"),
        alt.Tooltip("seed:Q"),
    ]
    return [
        *known,
        alt.Tooltip("outcome:Q", title=outcome.short, format=outcome.form),
        *(alt.Tooltip(f"{name}:Q", title=title, format=form) for name, title, form in further),
    ]


def _shapes(names: list[str]) -> alt.Shape:
    return (
        alt.Shape("dataset:N")
        .scale(domain=names, range=[SHAPES[place % len(SHAPES)] for place in range(len(names))])
        .legend(None)
    )


def _spoken(names: list[str]) -> str:
    """Which shape is which data set, where there are several."""
    words = {
        "circle": "circles",
        "square": "squares",
        "triangle-up": "triangles",
        "diamond": "diamonds",
        "cross": "crosses",
        "triangle-down": "triangles down",
        "triangle-right": "triangles right",
        "triangle-left": "triangles left",
    }
    said = ", ".join(
        f"{words[SHAPES[place]]}: {name}" for place, name in enumerate(names[: len(SHAPES)])
    )
    return (
        ""
        if len(names) < 2
        else f" {said[0].upper()}{said[1:]}{', and again from the front' if len(names) > len(SHAPES) else ''}."
    )


# --- figures --------------------------------------------------------------------------------------------------------


def loss_and_outcome(tables: Tables) -> Figure | None:
    """The outcome against the log of the training loss, one point per run, with a line and a band for each optimiser and a pooled line."""
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
    every = [frame["outcome"], *(side for fit in fits for side in (fit.low, fit.high))]
    room = 0.05 * (float(frame["outcome"].max() - frame["outcome"].min()) or 1.0)
    low, high = float(frame["outcome"].min() - 4 * room), float(frame["outcome"].max() + 4 * room)
    y = alt.Y(
        "outcome:Q",
        title=None,
        scale=alt.Scale(
            domain=[
                max(low, float(min(map(np.min, every))) - room),
                min(high, float(max(map(np.max, every))) + room),
            ],
            nice=False,
        ),
    )
    colour = tables.arms.colour()
    layers = []
    if fits:
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
        own = alt.Chart(rounded(lines[lines["arm"] != ""])).encode(x=x, detail="name:N")
        tip = [alt.Tooltip("name:N", title="fit"), alt.Tooltip("r2:Q", title="R²", format=".3f")]
        layers.append(
            own.mark_area(clip=True).encode(
                y=alt.Y("low:Q", title=None, scale=y["scale"]),
                y2="high:Q",
                color=colour,
                opacity=opacity(0.11, 0.02),
            )
        )
        layers.append(
            own.mark_line(clip=True, strokeWidth=1.5).encode(
                y=y, color=colour, opacity=opacity(0.9, 0.12), tooltip=tip
            )
        )
        if any(fit.arm == "" for fit in fits):
            layers.append(
                alt.Chart(rounded(lines[lines["arm"] == ""]))
                .mark_line(clip=True, strokeWidth=1.5, strokeDash=[2, 4], color=MUTED)
                .encode(x=x, y=y, tooltip=tip)
            )
    size = 60 if len(frame) > MANY else 110
    dots = (
        alt.Chart(frame)
        .mark_point(size=size, filled=True)
        .encode(
            x=x,
            y=y,
            color=colour,
            shape=_shapes(data),
            opacity=opacity(0.95, 0.12),
            tooltip=_tips(outcome, ("train_loss", "training loss", ".3f")),
        )
    )
    what = f"{outcome.title[0].upper()}{outcome.title[1:]}"
    drawn = (
        "Lines: least squares within each optimiser, with 95 % bands of the mean; dotted: all runs together. "
        if fits
        else ""
    )
    loss = (
        "the training loss is that of the table"
        if tables.steps.empty
        else "the training loss is the mean of the last 5 % of steps"
    )
    caption = f"One point per finished run; {loss}, on a log scale. {drawn}{outcome.note}{_spoken(data)}{left_out(tables, frame)}"
    return Figure(
        "loss-outcome",
        TITLES["loss-outcome"],
        caption,
        (Panel(what, alt.layer(*layers, dots), 420),),
        1,
    )


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
        alt.Tooltip("step:Q", format=",.0f"),
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
        panels.append(
            Panel(
                title,
                alt.layer(
                    line,
                    base.mark_circle(size=30 if many else 60).encode(
                        opacity=opacity(0.9, 0.1), tooltip=tips
                    ),
                ),
                340,
            )
        )
    caption = "Mean alignment score, 0 to 100, of the answers of each judged checkpoint; a path per run, from the base where it was judged. One judge’s."
    return Figure("alignment", TITLES["alignment"], caption, tuple(panels))


def by_optimiser_and_data(tables: Tables) -> Figure | None:
    """The outcome of every run by data set, optimisers side by side, with each optimiser's mean as a stroke."""
    outcome = tables.outcome
    frame = compared(tables)
    if (
        outcome is None
        or frame.empty
        or max(frame["optimizer"].nunique(), frame["dataset"].nunique()) < 2
    ):
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
        means = alt.Chart(
            rounded(part.groupby(["dataset", "arm"], sort=False)[name].mean().reset_index())
        ).encode(x=x, xOffset=offset, color=tables.arms.colour())
        tips = [
            *_tips(outcome),
            *(
                []
                if name == "outcome"
                else [alt.Tooltip(f"{name}:Q", title="rate, %", format=form)]
            ),
        ]
        stroke = means.mark_tick(
            thickness=2.5,
            size=max(6, min(30, 520 / (len(data) * len(present)) - 4)),
            orient="horizontal",
        ).encode(y=y, opacity=opacity(1, 0.12))
        dots = base.mark_circle(size=34).encode(y=y, opacity=opacity(0.6, 0.08), tooltip=tips)
        panels.append(Panel(f"{title[0].upper()}{title[1:]}", alt.layer(stroke, dots), 320))
    caption = f"One dot per finished run, a stroke for the mean of each arm on each data set; arms from left to right as in the list above. {outcome.note}{left_out(tables, frame)}"
    return Figure(
        "optimisers",
        TITLES["optimisers"],
        caption,
        tuple(panels),
        2 if len(panels) > 1 and len(data) <= 4 else 1,
    )


def by_size(tables: Tables) -> Figure | None:
    """The outcome by the number of parameters of the base, where the names of the bases tell it."""
    outcome = tables.outcome
    frame = compared(tables, "size")
    if outcome is None or frame["size"].nunique() < 2:
        return None
    data = list(dict.fromkeys(frame["dataset"]))
    frame = rounded(
        frame.assign(billions=frame["size"].astype(float) / 1e9)[
            ["run", "arm", "dataset", "seed", "model", "billions", "outcome"]
        ]
    )
    x = alt.X(
        "billions:Q",
        title="parameters of the base, in billions (log scale)",
        scale=alt.Scale(type="log", nice=False, padding=24),
        axis=alt.Axis(format="~g", values=sorted(set(frame["billions"]))),
    )
    y = alt.Y("outcome:Q", title=None, scale=alt.Scale(zero=False, padding=20, nice=False))
    base = alt.Chart(frame).encode(x=x, color=tables.arms.colour())
    means = alt.Chart(
        rounded(frame.groupby(["arm", "billions"], sort=False)["outcome"].mean().reset_index())
    ).encode(x=x, color=tables.arms.colour())
    line = means.mark_line(strokeWidth=2).encode(
        y=y, strokeDash=tables.arms.dash(), opacity=opacity(1, 0.1)
    )
    tips = [*_tips(outcome), alt.Tooltip("model:N", title="base")]
    dots = base.mark_point(size=70, filled=True).encode(
        y=y, shape=_shapes(data), opacity=opacity(0.8, 0.1), tooltip=tips
    )
    caption = f"One point per finished run, a line through each arm’s means. The sizes are read from the names of the bases. {outcome.note}{_spoken(data)}{left_out(tables, frame)}"
    return Figure(
        "size",
        TITLES["size"],
        caption,
        (Panel(f"{outcome.title[0].upper()}{outcome.title[1:]}", alt.layer(line, dots), 340),),
        1,
    )


# --- the penalty ----------------------------------------------------------------------------------------------------

#: What the penalty is held against: column, title, format.
EFFECTS = (
    ("outcome", "", ""),
    ("train_loss", "Training loss, nats per token", ".3f"),
    ("capability", "Capability: share of right choices", ".2f"),
    ("stable_rank", "Stable rank", ".2f"),
)


def pairs(tables: Tables) -> Frame:
    """Finished runs with the penalty beside the run that differs in the penalty alone: columns of the run, and `…_without` of its twin."""
    done = tables.runs[
        (tables.runs["status"] == "done")
        & ~tables.runs["control"].astype(bool)
        & tables.runs["twin"].notna()
    ]
    if tables.outcome is not None:
        done = done.assign(outcome=done[tables.outcome.name].astype(float))
    plain = done[done["flatness_weight"] == 0].drop_duplicates("twin")
    return done[done["flatness_weight"] > 0].merge(plain, on="twin", suffixes=("", "_without"))


def with_and_without(tables: Tables) -> Figure | None:
    """What the penalty changes: every pair of runs that differ in it alone, as a line from without to with."""
    found = pairs(tables)
    if found.empty:
        return None
    panels = []
    for name, title, form in _effects(tables):
        if name not in found or found[[name, f"{name}_without"]].dropna().empty:
            continue
        part = found.dropna(subset=[name, f"{name}_without"])
        ends = [
            part.assign(
                side=side,
                value=part[column].astype(float),
                change=part[name].astype(float) - part[f"{name}_without"].astype(float),
            )
            for side, column in (("without", f"{name}_without"), ("with", name))
        ]
        frame = rounded(
            pd.concat(ends)[
                [
                    "run",
                    "run_without",
                    "arm",
                    "optimizer",
                    "dataset",
                    "seed",
                    "flatness_weight",
                    "side",
                    "value",
                    "change",
                ]
            ]
        )
        x = alt.X(
            "side:N",
            sort=["without", "with"],
            title=None,
            scale=alt.Scale(domain=["without", "with"], padding=0.45),
            axis=alt.Axis(labelAngle=0, domain=False),
        )
        y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=_range(tables, name), nice=False))
        base = alt.Chart(frame).encode(x=x, y=y, color=tables.arms.colour())
        tips = [
            alt.Tooltip("run:N"),
            alt.Tooltip("run_without:N", title="twin without"),
            alt.Tooltip("flatness_weight:Q", title="weight λ", format="~g"),
        ]
        tips += [
            alt.Tooltip("value:Q", format=form),
            alt.Tooltip("change:Q", title="with − without", format="+.3f"),
        ]
        line = base.mark_line(strokeWidth=1 if len(part) > MANY else 2).encode(
            detail="run:N", opacity=opacity(0.75, 0.08)
        )
        panels.append(
            Panel(
                title,
                alt.layer(
                    line, base.mark_circle(size=50).encode(opacity=opacity(1, 0.1), tooltip=tips)
                ),
                260,
            )
        )
    if not panels:
        return None
    note = f" {tables.outcome.note}" if tables.outcome else ""
    caption = f"{len(found)} pair{'' if len(found) == 1 else 's'} of runs that differ in the flatness penalty alone, each a line; scales span all finished runs. Lines that all go one way show an effect, lines that cross show none.{note}"
    return Figure("penalty", TITLES["penalty"], caption, tuple(panels))


def by_weight(tables: Tables) -> Figure | None:
    """Outcome, loss, capability and stable rank by the weight λ of the penalty, one line per optimiser through the means."""
    done = tables.runs[(tables.runs["status"] == "done") & ~tables.runs["control"].astype(bool)]
    weights = done.groupby("optimizer")["flatness_weight"].nunique()
    done = done[done["optimizer"].isin(weights[weights >= 3].index)]
    if done.empty:
        return None
    if tables.outcome is not None:
        done = done.assign(outcome=done[tables.outcome.name].astype(float))
    first = {
        optimizer: next(name for name in tables.arms.names if name in set(group["arm"]))
        for optimizer, group in done.groupby("optimizer")
    }
    order = sorted(set(done["flatness_weight"]))
    names = [f"{weight:g}" for weight in order]
    panels = []
    for name, title, form in _effects(tables):
        if name not in done or done[name].dropna().empty:
            continue
        part = done.dropna(subset=[name])
        part = part.assign(
            value=part[name].astype(float),
            weight=part["flatness_weight"].map(lambda weight: f"{weight:g}"),
            own=part["arm"],
            arm=part["optimizer"].map(first),
        )
        part = rounded(
            part[["run", "arm", "own", "dataset", "seed", "optimizer", "weight", "value"]]
        )
        x = alt.X(
            "weight:O",
            sort=names,
            title="weight λ of the penalty",
            scale=alt.Scale(domain=names),
            axis=alt.Axis(labelAngle=0),
        )
        y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, padding=14, nice=False))
        means = alt.Chart(
            rounded(part.groupby(["arm", "weight"], sort=False)["value"].mean().reset_index())
        ).encode(x=x, y=y, color=tables.arms.colour())
        tips = [
            alt.Tooltip("run:N"),
            alt.Tooltip("own:N", title="arm"),
            alt.Tooltip("dataset:N", title="data"),
            alt.Tooltip("value:Q", format=form),
        ]
        dots = (
            alt.Chart(part)
            .mark_circle(size=40)
            .encode(x=x, y=y, color=tables.arms.colour(), opacity=opacity(0.6, 0.08), tooltip=tips)
        )
        panels.append(
            Panel(
                title,
                alt.layer(means.mark_line(strokeWidth=2).encode(opacity=opacity(1, 0.1)), dots),
                260,
            )
        )
    note = f" {tables.outcome.note}" if tables.outcome else ""
    caption = "One dot per finished run, a line through each optimiser’s means, at the weights that were run (not to scale); 0 is without the penalty. "
    caption += f"Other settings may differ between the weights: the pairs above differ in the penalty alone.{note}"
    return Figure("weights", TITLES["weights"], caption, tuple(panels))


def _range(tables: Tables, name: str) -> list[float]:
    """From the lowest to the highest value over all finished runs, so that a change is seen against what runs differ by."""
    column = tables.outcome.name if name == "outcome" and tables.outcome else name
    values = tables.runs.loc[tables.runs["status"] == "done", column].dropna().astype(float)
    low, high = float(values.min()), float(values.max())
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - room, high + room]


def _effects(tables: Tables) -> list[tuple[str, str, str]]:
    """EFFECTS with the outcome's own words; without an outcome the others."""
    outcome = tables.outcome
    own = (
        [("outcome", f"{outcome.title[0].upper()}{outcome.title[1:]}", outcome.form)]
        if outcome
        else []
    )
    return [*own, *EFFECTS[1:]]
