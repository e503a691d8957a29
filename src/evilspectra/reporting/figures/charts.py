"""What the report's figures are made of: the tables behind them, panels, marks and axes; one colour per arm, no torch.

`Figure.specs` are for the page (size of their container, no legend: the page has one for all figures), `Figure.chart` is the
same figure as one file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from evilspectra.reporting.figures.palette import INK, MUTED, PAPER, THEME, Arms, Frame
from evilspectra.reporting.outcomes import Outcome
from evilspectra.reporting.statistics import Statistics

#: Name of the figure (and of its files) → heading, in order.
TITLES = {
    "loss-outcome": "Loss and outcome",
    "alignment": "Alignment while the loss falls",
    "drift": "Drift while the loss falls",
    "optimisers": "By optimiser and data",
    "variance": "What the outcome varies with",
    "partial": "Optimiser or loss?",
    "penalty": "With the penalty and without",
    "weights": "How much penalty?",
    "size": "By size of the base",
    "capability": "Drift beside capability",
    "topics": "Where the drift is",
    "loss": "Loss",
    "spectra": "Spectra of ΔW",
    "spectrum-training": "The spectrum while training",
    "measures": "Flatness over training",
    "flatness-loss": "Is flatness bought with loss?",
    "layers": "Where the flatness is",
}
#: Name of the figure → what it needs, said where it is missing.
NEEDS = {
    "loss-outcome": "at least two runs with a training loss and an outcome",
    "alignment": "answers at several checkpoints, judged",
    "drift": "the contrast probe",
    "optimisers": "an outcome on at least two optimisers or two data sets",
    "variance": "statistics on a factor that varies",
    "partial": "an outcome and a loss at two or more checkpoints, under two or more optimisers",
    "penalty": "finished runs that differ in the flatness penalty alone",
    "weights": "three or more weights of the penalty under an optimiser",
    "size": "bases of two or more known sizes",
    "capability": "the contrast probe beside capability questions or ordinary dialogues",
    "topics": "the contrast probe",
    "loss": "training losses",
    "spectra": "measured spectra",
    "spectrum-training": "spectra at two or more steps",
    "measures": "measured spectra",
    "flatness-loss": "finished runs with spectra and held-out losses",
    "layers": "measured spectra",
}
POINTS = 12_000  # rows of a line chart, over all runs
MOST_ROWS = 24  # rows of a heat map; what is beyond them is averaged into one
CROWD = 60  # with more runs: curves are of arms, as medians with bands
MANY = 12  # with more runs: heat maps per arm, thin lines without dots, points without names
FEW = 12  # so many points on a line are also drawn as dots
WIDTH = 430  # of a panel in the SVG and PNG files, in pixels


@dataclass(frozen=True)
class Tables:
    """What the figures draw: one row per run, and long frames whose rows all carry `run` and `arm`.

    `spectra` holds the last measured step of each run. `rank` is the adapters' common rank, None where runs differ in it.
    `drifts` has a row per probed step, the base's zero at step 0 included; `topics` one per topic at the last one, `effects` one per run.
    `evolution`: run, arm, step, position, median of σ/σ₁ over the run's modules. `paths`: run, arm, step, loss, mean_alignment at judged steps.
    `outcome` is what the figures of sweeps are about, None where nothing was measured; `statistics` what `analysis` made of it.
    `spectra_of_runs`: of every run what `details` packs, None where nothing was measured.
    """

    runs: Frame
    steps: Frame
    heldout: Frame
    measures: Frame
    spectra: Frame
    drifts: Frame
    topics: Frame
    effects: Frame
    rank: int | None
    evolution: Frame = field(default_factory=pd.DataFrame)
    paths: Frame = field(default_factory=pd.DataFrame)
    outcome: Outcome | None = None
    statistics: Statistics | None = None
    spectra_of_runs: tuple[Any, ...] = ()

    @cached_property
    def arms(self) -> Arms:
        return Arms.of(self.runs)


@dataclass(frozen=True)
class Panel:
    """One chart of a figure. `arm` is set where the whole panel is of one arm, `most_width` where it is not to be wider, in pixels."""

    title: str
    chart: Any
    height: int
    arm: str | None = None
    most_width: int | None = None

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The chart as Vega-Lite, without the library's own defaults."""
        spec = self.chart.to_dict(validate=False)
        del spec["$schema"], spec["config"]
        return spec


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, with the words that a reader needs; `key` are the ends of the colour scale, if it has one, and `ramp` is its kind."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 2
    key: tuple[str, str] | None = None
    ramp: str = "sequential"

    def specs(self) -> list[dict[str, Any]]:
        """Vega-Lite, one per panel, as wide and high as what holds it; the signal `shown` names the arm to stress, `picked` the run."""
        frame = {
            "width": "container",
            "height": "container",
            "autosize": {"type": "fit", "contains": "padding"},
            "params": _SHOWN,
        }
        specs = [panel.spec | frame for panel in self.panels]
        if self.key:
            specs = [_without_colour_legend(spec) for spec in specs]
        return specs

    def chart(self, arms: Arms) -> dict[str, Any]:
        """Vega-Lite of the whole figure with titles and a legend, for SVG, PNG and PDF."""
        width = WIDTH if self.columns > 1 else 2 * WIDTH
        panels = [
            panel.spec
            | {
                "width": min(width, panel.most_width or width),
                "height": panel.height - 50,
                "title": panel.title,
            }
            for panel in self.panels
        ]
        legend = [] if self.key else [Panel("", _legend(arms), 0).spec]
        datasets = {
            name: rows for part in (*panels, *legend) for name, rows in part["datasets"].items()
        }
        whole = {
            "concat": [_without_data(part) for part in panels],
            "columns": self.columns,
            "spacing": 40,
        }
        look = {
            "config": THEME | {"background": PAPER, "font": "Liberation Sans, Arial, sans-serif"},
            "padding": 20,
            "params": _SHOWN,
        }
        return {
            "$schema": alt.SCHEMA_URL,
            "vconcat": [whole, *map(_without_data, legend)],
            "spacing": 24,
            "datasets": datasets,
        } | look


_SHOWN = [{"name": "shown", "value": ""}, {"name": "picked", "value": ""}]


def _without_data(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "datasets"}


def _without_colour_legend(spec: Any) -> Any:
    if isinstance(spec, list):
        return [_without_colour_legend(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    return {
        key: item | {"legend": None}
        if key == "color" and "field" in item
        else item
        if key == "datasets"
        else _without_colour_legend(item)
        for key, item in spec.items()
    }


def _legend(arms: Arms) -> Any:
    """A stroke and a name per arm, in lines as wide as two panels; positions in pixels, for text widths are only estimated."""
    places, x, line = [], 0.0, 0
    for name in arms.names:
        wide = 52 + 6.6 * len(name)
        if x and x + wide > 2 * WIDTH:
            x, line = 0.0, line + 1
        places.append({"arm": name, "x": x, "end": x + 26, "text": x + 34, "y": 8 + 20 * line})
        x += wide
    base = alt.Chart(pd.DataFrame(places)).encode(y=alt.Y("y:Q", scale=None, axis=None))
    strokes = base.mark_rule(strokeWidth=2.5).encode(
        x=alt.X("x:Q", scale=None, axis=None),
        x2="end:Q",
        color=arms.colour(),
        strokeDash=arms.dash(),
    )
    names = base.mark_text(align="left", baseline="middle", color=INK, fontSize=12).encode(
        x=alt.X("text:Q", scale=None, axis=None), text="arm:N"
    )
    return (strokes + names).properties(width=2 * WIDTH, height=20 * (line + 1))


# --- marks ----------------------------------------------------------------------------------------------------------


def opacity(full: float, otherwise: float) -> Any:
    """`full`, or `otherwise` while another arm is stressed, or another run is picked; what belongs to no one run stays while one is picked."""
    return alt.condition(
        "(shown === '' || datum.arm === shown) && (picked === '' || !isValid(datum.run) || datum.run === picked)",
        alt.value(full),
        alt.value(otherwise),
    )


def lines(
    base: alt.Chart,
    arms: Arms,
    y: alt.Y,
    tooltip: list[alt.Tooltip],
    by: str = "run",
) -> Any:
    """A line per `by`, dots where the points are few, and wide transparent points that carry the tooltip."""
    x = base.encoding.x["shorthand"].split(":")[0]
    dots = base.mark_circle(size=34).encode(y=y, color=arms.colour(), opacity=opacity(1, 0.1))
    many = base.data[by].nunique() > MANY
    lines = base.mark_line(strokeWidth=1 if many else 2).encode(
        y=y, color=arms.colour(), strokeDash=arms.dash(), detail=f"{by}:N", opacity=opacity(1, 0.1)
    )
    points = base.mark_circle(size=160, opacity=0).encode(y=y, color=arms.colour(), tooltip=tooltip)
    return alt.layer(lines, *([dots] if base.data[x].nunique() <= FEW and not many else []), points)


def level(
    value: float,
    y: alt.Y,
    label: str,
    below: bool = False,
    at_start: bool = False,
) -> Any:
    """A dotted line at a height, with its name at one end."""
    base = alt.Chart(
        pd.DataFrame({y["shorthand"].split(":")[0]: [value], "label": [label]})
    ).encode(y=y)
    rule = base.mark_rule(color=MUTED, strokeDash=[2, 4], strokeWidth=1)
    name = base.mark_text(
        align="left" if at_start else "right",
        dx=4 if at_start else 0,
        dy=9 if below else -7,
        color=MUTED,
        fontSize=11,
        fontStyle="italic",
    )
    return rule + name.encode(x=alt.value(0) if at_start else alt.value("width"), text="label")


def log_axis(values: Frame) -> alt.Axis:
    """Ticks at powers of ten, or at 1, 2, 5 where the values span few of them."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    factors = (1,) if high - low > 2 else (1, 2, 5)
    return alt.Axis(
        format="~g",
        values=[factor * 10.0**power for power in range(low, high + 1) for factor in factors],
    )


def thin(frame: Frame, columns: list[str], runs: int) -> Frame:
    """The rows of each run averaged in neighbours, so that all runs together stay near POINTS rows."""
    most = max(40, POINTS // max(runs, 1))
    count, place = frame.groupby("run")["run"].transform("size"), frame.groupby("run").cumcount()
    bins = (place * most // count).where(count > most, place)
    return (
        frame.groupby(["run", "arm", bins], sort=False)[["step", *columns]]
        .mean()
        .reset_index(["run", "arm"])
    )


def band(frame: Frame, keys: list[str], column: str) -> Frame:
    """Median, 10 % and 90 % quantile of a column by `keys`; rows without a finite value are left out."""
    groups = frame[np.isfinite(frame[column].astype(float))].groupby(keys, sort=False)[column]
    return pd.DataFrame(
        {
            name: groups.quantile(share)
            for name, share in (("low", 0.1), ("median", 0.5), ("high", 0.9))
        }
    ).reset_index()


def steps_axis() -> alt.X:
    """The optimiser's steps, from the first to the last there is."""
    return alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(nice=False),
        axis=alt.Axis(format="~s", tickMinStep=1),
    )


def rounded(frame: Frame) -> Frame:
    """Floats to six significant digits: shorter files, and the same bytes wherever sums differ in the last place."""
    numbers = frame.select_dtypes("float").columns
    return frame.assign(
        **{name: [float(f"{value:.6g}") for value in frame[name]] for name in numbers}
    ).reset_index(drop=True)
