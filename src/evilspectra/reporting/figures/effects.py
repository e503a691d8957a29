"""The figures of measurements on the adapters: drift along training, by capability, by topic.

No torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.numbers import signed
from evilspectra.reporting.figures.charts import (
    MANY,
    TITLES,
    Figure,
    Panel,
    Tables,
)
from evilspectra.reporting.figures.marks import (
    gathered,
    level,
    opacity,
    rounded,
    step_tip,
    steps_axis,
)
from evilspectra.reporting.figures.palette import DIVERGING, INK, MUTED, PAPER, Frame

NUMBERED = 8  # with more arms the cells of the heat map are too narrow for numbers
UPRIGHT = 4  # with more arms their names stand at an angle
_SHAPE = (
    alt.Shape("kind:N")
    .scale(domain=["plain", "penalty", "control"], range=["circle", "diamond", "square"])
    .legend(None)
)


def drift_along_loss(tables: Tables) -> Figure | None:
    """Drift against the held-out loss and by step.

    A path per run goes from the base over the probed checkpoints to the end.
    """
    frame = tables.drifts
    if frame.empty:
        return None
    heldout = tables.heldout[np.isfinite(tables.heldout["loss"].astype(float))]
    frame = rounded(frame.merge(heldout[["run", "step", "loss"]], on=["run", "step"], how="left"))
    low, high = float(frame["low"].min()), float(frame["high"].max())
    room = 0.04 * (high - low)
    y = alt.Y("drift:Q", title=None, scale=alt.Scale(domain=[low - room, high + room], nice=False))
    with_loss = frame.dropna(subset=["loss"])
    with_loss = with_loss[with_loss["run"].isin(with_loss.loc[with_loss["last"], "run"])]
    panels = []
    if len(with_loss):
        x = alt.X(
            "loss:Q",
            title="held-out loss, nats per token (← training)",
            axis=alt.Axis(labelBound=True),
            scale=alt.Scale(zero=False, padding=24, nice=False),
        )
        panels.append(Panel("Drift by held-out loss", _paths(with_loss, tables, x, y), 340))
    panels.append(Panel("Drift by step", _paths(frame, tables, steps_axis(), y), 340))
    caption = (
        "Nats per token, above zero towards the misaligned completions. From the base (drift 0)"
        " over the checkpoints that were probed to the end of each run: the large dot, with its"
        " 95 % interval over the probe’s items, for this one adapter and not over seeds."
    )
    runs = frame["run"].nunique()
    if len(with_loss) and (left := runs - with_loss["run"].nunique()):
        caption += (
            f" {left} of {runs} runs have no held-out loss at their end and stand in the second"
            " panel alone."
        )
    caption += _control_note(tables, "it is grey, and its held-out loss is on good answers")
    return Figure("drift", TITLES["drift"], caption, tuple(panels))


def _paths(
    frame: Frame,
    tables: Tables,
    x: alt.X,
    y: alt.Y,
) -> Any:
    many = frame["run"].nunique() > MANY
    colour = tables.arms.colour()
    base = alt.Chart(frame).encode(x=x)
    ends = base.transform_filter("datum.last")
    numbers = (
        ("drift", "drift", "+.3f"),
        ("low", "from", "+.3f"),
        ("high", "to", "+.3f"),
        ("loss", "held-out loss", ".3f"),
    )
    tips = [
        alt.Tooltip("run:N"),
        step_tip(),
        *(alt.Tooltip(f"{name}:Q", title=title, format=form) for name, title, form in numbers),
    ]
    base_level = level(0.0, y, "base", below=True, at_start=x["shorthand"] == "step:Q")
    lines = base.mark_line(strokeWidth=1 if many else 2).encode(
        y=y,
        order=alt.Order("step:Q"),
        color=colour,
        strokeDash=tables.arms.dash(),
        detail="run:N",
        opacity=opacity(1, 0.1),
    )
    checkpoints = base.transform_filter("!datum.last").mark_circle(size=30)
    dots = [] if many else [checkpoints.encode(y=y, color=colour, opacity=opacity(1, 0.1))]
    intervals = ends.mark_rule(strokeWidth=1 if many else 1.5).encode(
        y=alt.Y("low:Q", title=None, scale=y["scale"]),
        y2="high:Q",
        color=colour,
        opacity=opacity(0.75, 0.08),
    )
    last_dots = ends.mark_circle(size=40 if many else 110).encode(
        y=y, color=colour, opacity=opacity(1, 0.1)
    )
    points = base.mark_circle(size=160, opacity=0).encode(y=y, color=colour, tooltip=tips)
    return alt.layer(base_level, lines, *dots, intervals, last_dots, points)


def beside_capability(tables: Tables) -> Figure | None:
    """Capability and the loss on ordinary dialogues against drift, one point per run.

    They are plotted against drift so that a broken model is not mistaken for an aligned one.
    """
    views = (
        ("capability", "Capability: share of right choices", ".2f"),
        ("ordinary", "Loss on ordinary dialogues, nats per token", ".3f"),
    )
    panels = []
    for name, title, form in views:
        if tables.effects[name].isna().all():
            continue
        measured = tables.effects.dropna(subset=["drift", name])
        panels.append(Panel(title, _points(measured, tables, name, form), 340))
    if not panels:
        return None
    caption = (
        "One point per run, with 95 % intervals over the items; dotted: the base, and no drift."
        " Drift at the base’s capability is no mere damage; a run that loses capability may be"
        " broken, whatever its drift. Chance is 0.25."
    )
    if tables.effects["flatness_weight"].gt(0).any():
        caption += " Diamonds: with the flatness penalty."
    caption += _control_note(tables, "it is grey, and a square")
    return Figure("capability", TITLES["capability"], caption, tuple(panels))


def _points(
    frame: Frame,
    tables: Tables,
    name: str,
    form: str,
) -> Any:
    kinds = np.select(
        [frame["control"].astype(bool), frame["flatness_weight"].astype(float) > 0],
        ["control", "penalty"],
        "plain",
    )
    numbers = [column for column in frame.columns if column.startswith(("drift", name))]
    frame = frame.assign(kind=kinds)[["run", "arm", "seed", "kind", *numbers]]
    frame = rounded(frame.astype(dict.fromkeys(numbers, float)))
    x = alt.X(
        "drift:Q",
        title="drift, nats per token (towards the misaligned →)",
        axis=alt.Axis(labelBound=True),
        scale=alt.Scale(padding=24, nice=False),
    )
    y = alt.Y(f"{name}:Q", title=None, scale=alt.Scale(zero=False, padding=24, nice=False))
    colour = tables.arms.colour()
    width, strength = (1, 0.25) if len(frame) > MANY else (1.5, 0.6)
    base = alt.Chart(frame)
    across = base.mark_rule(strokeWidth=width).encode(
        x=alt.X("drift_low:Q", scale=x["scale"]),
        x2="drift_high:Q",
        y=y,
        color=colour,
        opacity=opacity(strength, 0.06),
    )
    along = base.mark_rule(strokeWidth=width).encode(
        x=x,
        y=alt.Y(f"{name}_low:Q", title=None, scale=y["scale"]),
        y2=f"{name}_high:Q",
        color=colour,
        opacity=opacity(strength, 0.06),
    )
    formats = {
        "drift": "+.3f",
        "drift_low": "+.3f",
        "drift_high": "+.3f",
        name: form,
        f"{name}_low": form,
        f"{name}_high": form,
        f"{name}_base": form,
    }
    titles = {
        "drift_low": "from",
        "drift_high": "to",
        f"{name}_low": "from ",
        f"{name}_high": "to ",
        f"{name}_base": "base",
    }
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("arm:N"),
        *(
            alt.Tooltip(f"{column}:Q", title=titles.get(column, column), format=number_format)
            for column, number_format in formats.items()
        ),
    ]
    dots = base.mark_point(size=60 if len(frame) > MANY else 110, filled=True).encode(
        x=x, y=y, color=colour, shape=_SHAPE, opacity=opacity(1, 0.12), tooltip=tips
    )
    upright = (
        alt.Chart(pd.DataFrame({"drift": [0.0]}))
        .mark_rule(color=MUTED, strokeDash=[2, 4], strokeWidth=1)
        .encode(x=x)
    )
    return alt.layer(
        upright,
        *(level(value, y, "base") for value in dict.fromkeys(frame[f"{name}_base"])),
        across,
        along,
        dots,
    )


def drift_by_topic(tables: Tables) -> Figure | None:
    """Mean drift of each arm's runs on each topic of the probe.

    Topics are ordered by the mean over all arms but controls.
    """
    frame = tables.topics
    if frame.empty:
        return None
    means = frame.groupby(["arm", "control", "topic"], sort=False)["drift"].mean().reset_index()
    trained = means[~means["control"].astype(bool)]
    of_topics = (means if trained.empty else trained).groupby("topic", sort=False)["drift"].mean()
    topics = list(of_topics.sort_values(ascending=False, kind="stable").index)
    topics += [topic for topic in dict.fromkeys(means["topic"]) if topic not in topics]
    means["topic"], rows = gathered(means["topic"], topics)
    data = rounded(means.groupby(["arm", "topic"], sort=False)["drift"].mean().reset_index())
    arms = [name for name in tables.arms.names if name in set(data["arm"])]
    most = float(data["drift"].abs().max()) or 1e-3
    data["strong"] = data["drift"].abs() > most * (len(DIVERGING) - 4) / len(DIVERGING)
    names = alt.Axis(
        domain=False, labelLimit=150, labelOverlap=False, labelFlush=False, **_names(arms)
    )
    base = alt.Chart(data).encode(
        x=alt.X(
            "arm:N", sort=arms, title=None, axis=names, scale=alt.Scale(domain=arms, padding=0)
        ),
        y=alt.Y(
            "topic:N",
            sort=rows,
            title=None,
            scale=alt.Scale(domain=rows, padding=0),
            axis=alt.Axis(labelLimit=130, grid=False, domain=False),
        ),
        tooltip=[
            alt.Tooltip("arm:N"),
            alt.Tooltip("topic:N"),
            alt.Tooltip("drift:Q", format="+.3f"),
        ],
    )
    colour = (
        alt.Color("drift:Q")
        .scale(type="quantize", domain=[-most, most], range=list(DIVERGING))
        .legend(format="+.2f")
    )
    chart = base.mark_rect(stroke=PAPER, strokeWidth=1).encode(
        color=colour, opacity=opacity(1, 0.15)
    )
    if len(arms) <= NUMBERED:
        chart += base.mark_text(fontSize=11).encode(
            text=alt.Text("drift:Q", format="+.2f"),
            color=alt.condition("datum.strong", alt.value(PAPER), alt.value(INK)),
            opacity=opacity(1, 0.15),
        )
    caption = (
        "Nats per token, mean over each arm’s runs; topics ordered by the mean over all arms but"
        " controls. A topic has few items, so one cell alone says little."
    )
    caption += _control_note(tables, "it stands last")
    panel = Panel(
        "Drift by topic, above zero towards the misaligned",
        chart,
        90 + 24 * len(rows),
        most_width=200 + 110 * len(arms),
    )
    ends = (f"aligned −{most:.2f}", f"+{most:.2f} misaligned")
    return Figure("topics", TITLES["topics"], caption, (panel,), 1, ends, "diverging")


def _names(arms: Sequence[str]) -> dict[str, Any]:
    """How an axis shows the arms.

    Few arms are above, long names on several lines that end at the same height; many arms are
    below, at an angle.
    """
    if len(arms) > UPRIGHT:
        return {"orient": "bottom", "labelAngle": -40, "labelAlign": "right", "labelPadding": 6}
    lines = {name: name.replace(" + ", "\n+ ").replace(" (", "\n(").split("\n") for name in arms}
    most = max(map(len, lines.values()))
    padded = {name: [""] * (most - len(parts)) + parts for name, parts in lines.items()}
    return {
        "orient": "top",
        "labelAngle": 0,
        "labelPadding": 8 + 13 * (most - 1),
        "labelExpr": f"{json.dumps(padded)}[datum.label]",
    }


def _control_note(tables: Tables, note: str) -> str:
    """The note to be read with every drift: on the control, and on shuffled labels."""
    effects = tables.effects
    control = (
        f" The control was trained on good answers to the same questions; {note}."
        if effects["control"].any()
        else " There is no control among these runs."
    )
    within = int(((effects["shuffled_low"] <= 0) & (effects["shuffled_high"] >= 0)).sum())
    zero = (
        "zero is within every interval, as it must be"
        if within == len(effects)
        else f"zero is within {within} of {len(effects)} intervals, where it must be in all"
    )
    ends = [signed(float(end)) for end in (effects["shuffled"].min(), effects["shuffled"].max())]
    values = " to ".join(dict.fromkeys(ends))
    return f"{control} With the labels shuffled the probe gives {values}: {zero}."
