"""The figure at the top of README: `python docs/figures/make_spectra.py runs/demo`.

For every run of the demo under SGD, AdamW, Lion and Muon without penalty: the mean over its adapted
matrices of σᵢ/σ₁, by i, at the last measured step. Written as SVG for light and for dark pages.
"""

from __future__ import annotations

import sys
from pathlib import Path

import altair as alt
import pandas as pd
import vl_convert

from evilspectra.reporting.figures.palette import DARK, HUES, INK, LINE, MUTED, THEME
from evilspectra.store.run import Store

FOLDER = Path(__file__).parent
#: Optimiser → its name in the figure, in the order of the legend.
NAMES = {"muon": "Muon", "lion": "Lion", "adamw": "AdamW", "sgd": "SGD"}


def mean_spectra(store: Path) -> pd.DataFrame:
    """Optimiser, index (from 1) and mean σᵢ/σ₁ of the runs of the figure.

    Raises:
        SystemExit: the store lacks a finished run under one of the optimisers.
    """
    frames = {}
    for run in Store(store).runs():
        config = run.config()
        plain = config.flatness.weight == 0 and not config.data.control
        if plain and config.optimizer.name in NAMES and run.status().state == "done":
            values = run.read("spectra")
            values = values[values["step"] == values["step"].max()]
            largest = values.groupby("module")["singular_value"].transform("max")
            relative = values.assign(relative=values["singular_value"] / largest)
            mean = relative.groupby("index")["relative"].mean().reset_index()
            frames[config.optimizer.name] = mean.assign(
                optimizer=NAMES[config.optimizer.name], index=mean["index"] + 1
            )
    if lacking := NAMES.keys() - frames.keys():
        sys.exit(f"{store} holds no finished run under {', '.join(sorted(lacking))}: make demo")
    return pd.concat([frames[name] for name in NAMES], ignore_index=True)


def draw(data: pd.DataFrame, dark: bool) -> str:
    """The figure as SVG."""
    ink, muted, line = (DARK[colour] if dark else colour for colour in (INK, MUTED, LINE))
    last = int(data["index"].max())
    colour = alt.Color(
        "optimizer:N",
        legend=None,
        scale=alt.Scale(
            domain=list(NAMES.values()), range=[HUES[name][int(dark)] for name in NAMES]
        ),
    )
    x = alt.X(
        "index:Q",
        title="index of the singular value",
        scale=alt.Scale(domain=[1, last]),
        axis=alt.Axis(values=[1, *range(4, last + 1, 4)]),
    )
    y = alt.Y("relative:Q", title="singular value, largest = 1", scale=alt.Scale(domain=[0, 1]))
    curves = alt.Chart(data).mark_line(strokeWidth=2.5).encode(x=x, y=y, color=colour)
    ends = alt.Chart(_apart(data[data["index"] == last]))
    names = ends.mark_text(align="left", dx=8, fontSize=13, fontWeight=600).encode(
        x=x, y="label:Q", text="optimizer:N", color=colour
    )
    flat = alt.Chart(pd.DataFrame({"index": [1, last], "relative": [1.0, 1.0]}))
    level = flat.mark_line(strokeDash=[2, 4], color=muted, strokeWidth=1.5).encode(x=x, y=y)
    word = flat.transform_filter(f"datum.index == {last}").mark_text(
        align="left", dx=8, fontSize=13, color=muted, text="flat"
    )
    chart = (level + word.encode(x=x, y=y) + curves + names).properties(width=560, height=250)
    spec = chart.to_dict()
    axis = THEME["axis"] | {
        "gridColor": line,
        "labelColor": muted,
        "titleColor": ink,
        "labelFontSize": 12,
        "titleFontSize": 13,
    }
    spec["config"] = THEME | {
        "axis": axis,
        "axisX": THEME["axisX"] | {"domainColor": line},
        "axisY": {},
        "font": "Liberation Sans, Arial, sans-serif",
    }
    spec["padding"] = 12
    return vl_convert.vegalite_to_svg(spec)


def _apart(ends: pd.DataFrame, gap: float = 0.075) -> pd.DataFrame:
    """The ends of the curves with heights for their names, at least `gap` apart."""
    ends = ends.sort_values("relative").assign(label=0.0)
    lowest = 0.0
    for row in ends.index:
        lowest = max(lowest, float(ends.loc[row, "relative"]))
        ends.loc[row, "label"] = lowest
        lowest += gap
    return ends


def main(store: Path) -> None:
    """Writes both files."""
    data = mean_spectra(store)
    for name, dark in (("spectra.svg", False), ("spectra-dark.svg", True)):
        (FOLDER / name).write_text(draw(data, dark) + "\n", encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
