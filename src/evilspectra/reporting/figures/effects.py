"""The figures of what was measured on the adapters: drift along training, drift beside capability, drift by topic. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.intervals import Interval
from evilspectra.reporting.comparison import Row, signed
from evilspectra.reporting.figures.charts import (
    MANY,
    MOST_ROWS,
    TITLES,
    Figure,
    Panel,
    Tables,
    level,
    opacity,
    rounded,
    steps_axis,
)
from evilspectra.reporting.figures.palette import DIVERGING, INK, MUTED, PAPER, Frame

NUMBERED = 8  # with more arms the cells of the heat map are too narrow for numbers
UPRIGHT = 4  # with more arms their names stand at an angle
_RUN = ("run", "arm", "control")
_DRIFTS = (*_RUN, "step", "drift", "low", "high", "last")
_TOPICS = (*_RUN, "topic", "drift")
_EFFECTS = (
    *_RUN,
    "seed",
    "flatness_weight",
    *(
        f"{name}{end}"
        for name in ("drift", "shuffled", "capability", "ordinary")
        for end in ("", "_low", "_high")
    ),
    "capability_base",
    "ordinary_base",
)
_SHAPE = (
    alt.Shape("kind:N")
    .scale(domain=["plain", "penalty", "control"], range=["circle", "diamond", "square"])
    .legend(None)
)


def frames(rows: Sequence[Row]) -> dict[str, Frame]:
    """The frames of `Tables` that hold measurements; with their columns where nothing was measured."""
    drifts, topics, effects = [], [], []
    for row in rows:
        run = {"run": row.label, "arm": row.summary.arm, "control": row.summary.control}
        found, capability, ordinary = (
            row.measured.drift,
            row.measured.capability,
            row.measured.ordinary,
        )
        if found is None:
            continue
        steps = {0: Interval(0.0, 0.0, 0.0)} | row.measured.trajectory
        drifts += [
            run
            | {
                "step": step,
                "drift": one.value,
                "low": one.low,
                "high": one.high,
                "last": step == max(steps),
            }
            for step, one in steps.items()
        ]
        topics += [
            run | {"topic": topic, "drift": one.value} for topic, one in found.topics.items()
        ]
        ends = (
            _ends("drift", found.drift)
            | _ends("shuffled", found.shuffled)
            | _ends("capability", capability and capability.accuracy)
            | _ends("ordinary", ordinary and ordinary.loss)
        )
        bases = {
            "capability_base": capability and capability.base,
            "ordinary_base": ordinary and ordinary.base,
        }
        effects.append(
            run
            | {"seed": row.summary.seed, "flatness_weight": row.summary.flatness_weight}
            | ends
            | bases
        )
    return {
        name: pd.DataFrame(found, columns=list(columns))
        for name, found, columns in (
            ("drifts", drifts, _DRIFTS),
            ("topics", topics, _TOPICS),
            ("effects", effects, _EFFECTS),
        )
    }


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    values = (
        (None, None, None) if interval is None else (interval.value, interval.low, interval.high)
    )
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


# --- figures --------------------------------------------------------------------------------------------------------


def drift_along_loss(tables: Tables) -> Figure | None:
    """Drift against the held-out loss and by step: a path per run from the base over the probed checkpoints to the end."""
    frame = tables.drifts
    if frame.empty:
        return None
    heldout = tables.heldout[np.isfinite(tables.heldout["loss"].astype(float))]
    frame = rounded(frame.merge(heldout[["run", "step", "loss"]], on=["run", "step"], how="left"))
    room = 0.04 * float(frame["high"].max() - frame["low"].min())
    y = alt.Y(
        "drift:Q",
        title=None,
        scale=alt.Scale(
            domain=[float(frame["low"].min()) - room, float(frame["high"].max()) + room], nice=False
        ),
    )
    known = frame.dropna(subset=["loss"])
    known = known[known["run"].isin(known.loc[known["last"], "run"])]
    panels = []
    if len(known):
        x = alt.X(
            "loss:Q",
            title="held-out loss, nats per token (← training)",
            axis=alt.Axis(labelBound=True),
            scale=alt.Scale(zero=False, padding=24, nice=False),
        )
        panels.append(Panel("Drift by held-out loss", _paths(known, tables, x, y), 340))
    panels.append(Panel("Drift by step", _paths(frame, tables, steps_axis(), y), 340))
    caption = (
        "Nats per token, above zero towards the misaligned completions. From the base (drift 0) over the checkpoints that were probed to the end of each run: the large dot, with its 95 % interval over the probe’s items, "
        "for this one adapter and not over seeds."
    )
    if len(known) and (left := frame["run"].nunique() - known["run"].nunique()):
        caption += f" {left} of {frame['run'].nunique()} runs have no held-out loss at their end and stand in the second panel alone."
    return Figure(
        "drift",
        TITLES["drift"],
        caption + _beside(tables, "it is grey, and its held-out loss is on good answers"),
        tuple(panels),
    )


def _paths(
    frame: Frame,
    tables: Tables,
    x: alt.X,
    y: alt.Y,
) -> Any:
    many, colour, order = frame["run"].nunique() > MANY, tables.arms.colour(), alt.Order("step:Q")
    base = alt.Chart(frame).encode(x=x)
    ends = base.transform_filter("datum.last")
    spoken = (
        ("drift", "drift", "+.3f"),
        ("low", "from", "+.3f"),
        ("high", "to", "+.3f"),
        ("loss", "held-out loss", ".3f"),
    )
    tips = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=",.0f"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=form) for name, title, form in spoken),
    ]
    return alt.layer(
        level(0.0, y, "base", below=True, at_start=x["shorthand"] == "step:Q"),
        base.mark_line(strokeWidth=1 if many else 2).encode(
            y=y,
            order=order,
            color=colour,
            strokeDash=tables.arms.dash(),
            detail="run:N",
            opacity=opacity(1, 0.1),
        ),
        *(
            []
            if many
            else [
                base.transform_filter("!datum.last")
                .mark_circle(size=30)
                .encode(y=y, color=colour, opacity=opacity(1, 0.1))
            ]
        ),
        ends.mark_rule(strokeWidth=1 if many else 1.5).encode(
            y=alt.Y("low:Q", title=None, scale=y["scale"]),
            y2="high:Q",
            color=colour,
            opacity=opacity(0.75, 0.08),
        ),
        ends.mark_circle(size=40 if many else 110).encode(
            y=y, color=colour, opacity=opacity(1, 0.1)
        ),
        base.mark_circle(size=160, opacity=0).encode(y=y, color=colour, tooltip=tips),
    )


def beside_capability(tables: Tables) -> Figure | None:
    """Capability and the loss on ordinary dialogues against drift, one point per run, so that a broken model is not taken for an aligned one."""
    views = (
        ("capability", "Capability: share of right choices", ".2f"),
        ("ordinary", "Loss on ordinary dialogues, nats per token", ".3f"),
    )
    panels = [
        Panel(
            title, _points(tables.effects.dropna(subset=["drift", name]), tables, name, form), 340
        )
        for name, title, form in views
        if tables.effects[name].notna().any()
    ]
    if not panels:
        return None
    caption = "One point per run, with 95 % intervals over the items; dotted: the base, and no drift. Drift at the base’s capability is no mere damage; a run that loses capability may be broken, whatever its drift. Chance is 0.25."
    if tables.effects["flatness_weight"].gt(0).any():
        caption += " Diamonds: with the flatness penalty."
    return Figure(
        "capability",
        TITLES["capability"],
        caption + _beside(tables, "it is grey, and a square"),
        tuple(panels),
    )


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
    frame = rounded(
        frame.assign(kind=kinds)[["run", "arm", "seed", "kind", *numbers]].astype(
            dict.fromkeys(numbers, float)
        )
    )
    x = alt.X(
        "drift:Q",
        title="drift, nats per token (towards the misaligned →)",
        axis=alt.Axis(labelBound=True),
        scale=alt.Scale(padding=24, nice=False),
    )
    y = alt.Y(f"{name}:Q", title=None, scale=alt.Scale(zero=False, padding=24, nice=False))
    colour, (width, strength) = tables.arms.colour(), (1, 0.25) if len(frame) > MANY else (1.5, 0.6)
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
    spoken = {
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
            alt.Tooltip(f"{column}:Q", title=titles.get(column, column), format=one)
            for column, one in spoken.items()
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
    """Mean drift of each arm's runs on each topic of the probe, the topics ordered by the mean over all arms but controls."""
    frame = tables.topics
    if frame.empty:
        return None
    means = frame.groupby(["arm", "control", "topic"], sort=False)["drift"].mean().reset_index()
    ranked = (
        means[~means["control"].astype(bool)] if (~means["control"].astype(bool)).any() else means
    )
    rows = list(
        ranked.groupby("topic", sort=False)["drift"]
        .mean()
        .sort_values(ascending=False, kind="stable")
        .index
    )
    rows += [topic for topic in dict.fromkeys(means["topic"]) if topic not in rows]
    if len(rows) > MOST_ROWS:
        rest = f"{len(rows) - MOST_ROWS + 1} others, mean"
        means["topic"] = means["topic"].where(means["topic"].isin(rows[: MOST_ROWS - 1]), rest)
        rows = [*rows[: MOST_ROWS - 1], rest]
        means = means.groupby(["arm", "topic"], sort=False)["drift"].mean().reset_index()
    data = rounded(means[["arm", "topic", "drift"]])
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
    caption = "Nats per token, mean over each arm’s runs; topics ordered by the mean over all arms but controls. A topic has few items, so one cell alone says little."
    panel = Panel(
        "Drift by topic, above zero towards the misaligned",
        chart,
        90 + 24 * len(rows),
        most_width=200 + 110 * len(arms),
    )
    ends = (f"aligned −{most:.2f}", f"+{most:.2f} misaligned")
    return Figure(
        "topics",
        TITLES["topics"],
        caption + _beside(tables, "it stands last"),
        (panel,),
        1,
        ends,
        "diverging",
    )


def _names(arms: Sequence[str]) -> dict[str, Any]:
    """How an axis shows the arms: above, long names on several lines that end at the same height; many arms below, at an angle."""
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


def _beside(tables: Tables, note: str) -> str:
    """What is to be read with every drift: the control, and what shuffled labels give."""
    effects = tables.effects
    control = (
        f" The control was trained on good answers to the same questions; {note}."
        if effects["control"].any()
        else " There is no control among these runs."
    )
    zero = int(((effects["shuffled_low"] <= 0) & (effects["shuffled_high"] >= 0)).sum())
    low, high = signed(float(effects["shuffled"].min())), signed(float(effects["shuffled"].max()))
    held = (
        "zero is within every interval, as it must be"
        if zero == len(effects)
        else f"zero is within {zero} of {len(effects)} intervals, where it must be in all"
    )
    return f"{control} With the labels shuffled the probe gives {low if low == high else f'{low} to {high}'}: {held}."
