"""The figures of modules and steps: the spectrum while training, and flatness by layer. No torch.

A click on a cell of the map of layers shows its module.
"""

from __future__ import annotations

import math
import re

import altair as alt
import numpy as np

from evilspectra.reporting.figures.charts import (
    MANY,
    TITLES,
    Figure,
    Panel,
    Tables,
)
from evilspectra.reporting.figures.marks import gathered, index_axis, level, opacity, rounded
from evilspectra.reporting.figures.palette import PAPER, RAMP

#: Arms and steps of the figure of spectra while training.
MOST_ARMS, MOST_STEPS = 8, 6


def spectrum_over_training(tables: Tables) -> Figure | None:
    """Median relative spectrum at up to six measured steps, a panel per arm, later steps darker."""
    frame = tables.evolution
    if frame.empty or frame["step"].nunique() < 2:
        return None
    groups = frame.groupby(["arm", "step", "position"], sort=False)["relative"]
    frame = groups.median().reset_index()
    x = index_axis(int(frame["position"].max()))
    y = alt.Y("relative:Q", title=None, scale=alt.Scale(domain=[0, 1]))
    panels, steps_drawn = [], []
    arms = [name for name in tables.arms.names if name in set(frame["arm"])]
    for arm in arms[:MOST_ARMS]:
        part = frame[frame["arm"] == arm]
        steps = sorted(part["step"].unique())
        indices = np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps)))
        chosen = sorted({steps[round(index)] for index in indices})
        steps_drawn += chosen
        part = part[part["step"].isin(chosen)]
        part = rounded(part.assign(order=[chosen.index(step) for step in part["step"]]))
        inks = list(RAMP[-len(chosen) :]) if len(chosen) < len(RAMP) else list(RAMP[1:])
        colour = (
            alt.Color("order:O").scale(domain=list(range(len(chosen))), range=inks).legend(None)
        )
        tips = [
            alt.Tooltip("step:Q", format=",.0f"),
            alt.Tooltip("position:Q", title="index"),
            alt.Tooltip("relative:Q", format=".3f", title="σ / σ₁, median"),
        ]
        base = alt.Chart(part).encode(x=x, y=y, color=colour)
        lines = base.mark_line(strokeWidth=2).encode(detail="step:N", opacity=opacity(1, 0.15))
        points = base.mark_circle(size=120, opacity=0).encode(tooltip=tips)
        panels.append(Panel(arm, level(1.0, y, "flat") + lines + points, 220, arm))
    rest = f" {len(arms) - MOST_ARMS} more arms are not drawn." if len(arms) > MOST_ARMS else ""
    caption = (
        f"σ / σ₁ by index, median over modules and runs, at up to {MOST_STEPS} of the measured"
        " steps of each arm: the darker the line, the later. A flat spectrum stays on the dotted"
        f" line.{rest}"
    )
    return Figure(
        "spectrum-training",
        TITLES["spectrum-training"],
        caption,
        tuple(panels),
        2,
        (f"step {min(steps_drawn):,.0f}", f"step {max(steps_drawn):,.0f}"),
    )


def layers(tables: Tables) -> Figure | None:
    """Stable rank by layer and projection, one strip per run (per arm where runs are many)."""
    frame = tables.measures.dropna(subset=["stable_rank"])
    frame = frame[frame["step"] == frame.groupby("run")["step"].transform("max")]
    if frame.empty:
        return None
    by = "run" if frame["run"].nunique() <= MANY else "arm"
    located = {name: map_cell(name) for name in frame["module"].unique()}
    frame = frame.assign(
        layer=[located[name][0] for name in frame["module"]],
        part=[located[name][1] for name in frame["module"]],
    )
    frame["part"], rows = gathered(frame["part"], list(dict.fromkeys(frame["part"])))
    keys = [*dict.fromkeys((by, "arm")), "part", "layer"]
    data = rounded(frame.groupby(keys, sort=False)["stable_rank"].mean().reset_index())
    columns = sorted(
        data["layer"].unique(),
        key=lambda layer: (not layer.isdigit(), int(layer) if layer.isdigit() else 0),
    )
    low = float(data["stable_rank"].min())
    high = float(data["stable_rank"].max())
    colour = (
        alt.Color("stable_rank:Q")
        .scale(type="quantize", domain=[low, high], range=list(RAMP))
        .legend(format=".1f")
    )
    ticks = columns if len(columns) <= 12 else columns[:: 5 * math.ceil(len(columns) / 60)]
    x = alt.X(
        "layer:O",
        sort=columns,
        title=None,
        axis=alt.Axis(values=ticks, labelAngle=0, domain=False, labelFlush=False),
        scale=alt.Scale(domain=columns, padding=0),
    )
    y = alt.Y(
        "part:O",
        sort=rows,
        title=None,
        scale=alt.Scale(domain=rows, padding=0),
        axis=alt.Axis(labelLimit=110, grid=False),
    )
    tips = [
        alt.Tooltip("layer:N"),
        alt.Tooltip("part:N", title="projection"),
        alt.Tooltip("stable_rank:Q", format=".2f", title="stable rank"),
    ]
    panels = []
    for name, part in sorted(
        data.groupby(by, sort=False),
        key=lambda pair: tables.arms.names.index(pair[1]["arm"].iloc[0]),
    ):
        cells = alt.Chart(part).mark_rect(stroke=PAPER, strokeWidth=1, cursor="pointer")
        chart = cells.encode(x=x, y=y, color=colour, tooltip=tips)
        arm = str(part["arm"].iloc[0])
        panels.append(
            Panel(f"{arm} · {name}" if by == "run" else arm, chart, 30 + 14 * len(rows), arm)
        )
    each = "run" if by == "run" else "arm (mean over its runs)"
    caption = (
        "Stable rank at the last measured step of each projection (rows) in each layer (columns,"
        f" from the input on): one map per {each}, one colour scale for all. Click a cell for its"
        " module’s spectrum."
    )
    return Figure(
        "layers", TITLES["layers"], caption, tuple(panels), 2, (f"{low:.2f}", f"{high:.2f}")
    )


def map_cell(module: str) -> tuple[str, str]:
    """Layer and projection in a module's name; without a layer's number, a dash and the name.

    >>> map_cell("model.layers.12.self_attn.q_proj")
    ('12', 'q_proj')
    >>> map_cell("lm_head")
    ('–', 'lm_head')
    """
    match = re.fullmatch(r"(?:.*?\.)?(\d{1,4})\.(?:.*\.)?([^.]*[^.\d][^.]*)", module, re.DOTALL)
    return (str(int(match[1])), match[2]) if match else ("–", module)
