"""The figures of modules and steps: the spectrum while training, and where in the network the flatness is; a click on a cell shows its module. No torch."""

from __future__ import annotations

import math
import re

import altair as alt
import numpy as np

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
)
from evilspectra.reporting.figures.palette import PAPER, RAMP

#: Arms and steps of the figure of spectra while training.
MOST_ARMS, MOST_STEPS = 8, 6


def spectrum_over_training(tables: Tables) -> Figure | None:
    """Median relative spectrum at up to six of the measured steps, a panel per arm, later steps darker."""
    frame = tables.evolution
    if frame.empty or frame["step"].nunique() < 2:
        return None
    frame = (
        frame.groupby(["arm", "step", "position"], sort=False)["relative"].median().reset_index()
    )
    last = int(frame["position"].max())
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
    y = alt.Y("relative:Q", title=None, scale=alt.Scale(domain=[0, 1]))
    panels, shown = [], []
    arms = [name for name in tables.arms.names if name in set(frame["arm"])]
    for arm in arms[:MOST_ARMS]:
        part = frame[frame["arm"] == arm]
        steps = sorted(part["step"].unique())
        kept = sorted(
            {
                steps[round(place)]
                for place in np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps)))
            }
        )
        shown += kept
        part = rounded(
            part[part["step"].isin(kept)].assign(
                order=lambda rows, kept=kept: [kept.index(step) for step in rows["step"]]
            )
        )
        inks = list(RAMP[-len(kept) :]) if len(kept) < len(RAMP) else list(RAMP[1:])
        colour = alt.Color("order:O").scale(domain=list(range(len(kept))), range=inks).legend(None)
        tips = [
            alt.Tooltip("step:Q", format=",.0f"),
            alt.Tooltip("position:Q", title="index"),
            alt.Tooltip("relative:Q", format=".3f", title="σ / σ₁, median"),
        ]
        base = alt.Chart(part).encode(x=x, y=y, color=colour)
        lines = base.mark_line(strokeWidth=2).encode(detail="step:N", opacity=opacity(1, 0.15))
        panels.append(
            Panel(
                arm,
                level(1.0, y, "flat")
                + lines
                + base.mark_circle(size=120, opacity=0).encode(tooltip=tips),
                220,
                arm,
            )
        )
    rest = f" {len(arms) - MOST_ARMS} more arms are not drawn." if len(arms) > MOST_ARMS else ""
    caption = f"σ / σ₁ by index, median over modules and runs, at up to {MOST_STEPS} of the measured steps of each arm: the darker the line, the later. A flat spectrum stays on the dotted line.{rest}"
    return Figure(
        "spectrum-training",
        TITLES["spectrum-training"],
        caption,
        tuple(panels),
        2,
        (f"step {min(shown):,.0f}", f"step {max(shown):,.0f}"),
    )


def layers(tables: Tables) -> Figure | None:
    """Stable rank by layer and projection, one strip per run (per arm where runs are many)."""
    frame = tables.measures.dropna(subset=["stable_rank"])
    frame = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    if frame.empty:
        return None
    by = "run" if frame["run"].nunique() <= MANY else "arm"
    places = {name: place_of(name) for name in frame["module"].unique()}
    frame = frame.assign(
        layer=frame["module"].map({name: place[0] for name, place in places.items()}),
        part=frame["module"].map({name: place[1] for name, place in places.items()}),
    )
    rows = list(dict.fromkeys(frame["part"]))
    if len(rows) > MOST_ROWS:
        rest = f"{len(rows) - MOST_ROWS + 1} others, mean"
        frame["part"] = frame["part"].where(frame["part"].isin(rows[: MOST_ROWS - 1]), rest)
        rows = [*rows[: MOST_ROWS - 1], rest]
    data = rounded(
        frame.groupby(
            [by, "arm", "part", "layer"] if by == "run" else ["arm", "part", "layer"], sort=False
        )["stable_rank"]
        .mean()
        .reset_index()
    )
    across = sorted(
        data["layer"].unique(),
        key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0),
    )
    low, high = float(data["stable_rank"].min()), float(data["stable_rank"].max())
    colour = (
        alt.Color("stable_rank:Q")
        .scale(type="quantize", domain=[low, high], range=list(RAMP))
        .legend(format=".1f")
    )
    panels = []
    for name, part in sorted(
        data.groupby(by, sort=False),
        key=lambda pair: tables.arms.names.index(pair[1]["arm"].iloc[0]),
    ):
        ticks = across if len(across) <= 12 else across[:: 5 * math.ceil(len(across) / 60)]
        chart = (
            alt.Chart(part)
            .mark_rect(stroke=PAPER, strokeWidth=1, cursor="pointer")
            .encode(
                x=alt.X(
                    "layer:O",
                    sort=across,
                    title=None,
                    axis=alt.Axis(values=ticks, labelAngle=0, domain=False, labelFlush=False),
                    scale=alt.Scale(domain=across, padding=0),
                ),
                y=alt.Y(
                    "part:O",
                    sort=rows,
                    title=None,
                    scale=alt.Scale(domain=rows, padding=0),
                    axis=alt.Axis(labelLimit=110, grid=False),
                ),
                color=colour,
                tooltip=[
                    alt.Tooltip("layer:N"),
                    alt.Tooltip("part:N", title="projection"),
                    alt.Tooltip("stable_rank:Q", format=".2f", title="stable rank"),
                ],
            )
        )
        arm = str(part["arm"].iloc[0])
        panels.append(
            Panel(f"{arm} · {name}" if by == "run" else arm, chart, 30 + 14 * len(rows), arm)
        )
    each = "run" if by == "run" else "arm (mean over its runs)"
    caption = f"Stable rank at the last measured step of each projection (rows) in each layer (columns, from the input on): one map per {each}, one colour scale for all. Click a cell for its module’s spectrum."
    return Figure(
        "layers", TITLES["layers"], caption, tuple(panels), 2, (f"{low:.2f}", f"{high:.2f}")
    )


def place_of(module: str) -> tuple[str, str]:
    """Layer and projection in a module's name; a name without a layer's number stands for itself.

    >>> place_of("model.layers.12.self_attn.q_proj"), place_of("lm_head")
    (('12', 'q_proj'), ('–', 'lm_head'))
    """
    found = re.fullmatch(r"(?:.*?\.)?(\d{1,4})\.(?:.*\.)?([^.]*[^.\d][^.]*)", module, re.DOTALL)
    return (str(int(found[1])), found[2]) if found else ("–", module)
