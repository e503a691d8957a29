"""Figures of the report, their panels, and the tables behind them. No torch.

`Figure.specs` are for the page (size of their container, no legend: the page has one for all
figures), `Figure.chart` is the same figure as one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import altair as alt
import pandas as pd

from evilspectra.reporting.arm_claims import ArmClaims
from evilspectra.reporting.figures.palette import INK, PAPER, THEME, Arms, Frame
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
#: Name of the figure → the data that it needs, named where it is missing.
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
MOST_ROWS = 24  # rows of a heat map; those beyond them are averaged into one
CROWD = 60  # with more runs: curves are of arms, as medians with bands
MANY = 12  # with more runs: heat maps per arm, thin lines without dots, points without names
WIDTH = 430  # of a panel in the SVG and PNG files, in pixels


@dataclass(frozen=True)
class Tables:
    """The data behind the figures: one row per run, and long frames with `run` and `arm`.

    `spectra` holds the last measured step of each run. `rank` is the adapters' common rank, None
    where runs differ in it. `drifts` has a row per probed step, the base's zero at step 0 included;
    `topics` one per topic at the last one, `effects` one per run. `evolution`: run, arm, step,
    position, median of σ/σ₁ over the run's modules. `paths`: run, arm, step, loss, mean_alignment
    at judged steps. `outcome` is the outcome that the figures of sweeps compare, None if nothing
    was measured; `statistics`: the analysis of it. `spectra_of_runs`: the spectra of every run that
    `details` packs, None if nothing was measured. `claims`: decisions between arms.
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
    claims: ArmClaims | None = None

    @cached_property
    def arms(self) -> Arms:
        return Arms.of(self.runs)


@dataclass(frozen=True)
class Panel:
    """One chart of a figure.

    `arm` is set where the whole panel is of one arm; `most_width`, in pixels, where it is not to be
    wider.
    """

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
    """Panels that belong together, with title and caption.

    `key`: the ends of the colour scale, if there is one, and `ramp` its kind.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 2
    key: tuple[str, str] | None = None
    ramp: str = "sequential"

    def specs(self) -> list[dict[str, Any]]:
        """Vega-Lite, one per panel, in the size of its container.

        The signal `shown` names the arm to stress, `picked` the run.
        """
        frame = {
            "width": "container",
            "height": "container",
            "autosize": {"type": "fit", "contains": "padding"},
            "params": _SIGNALS,
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
        legend = [] if self.key else [Panel("", legend_of(arms), 0).spec]
        datasets = {
            name: rows for part in (*panels, *legend) for name, rows in part["datasets"].items()
        }
        grid = {
            "concat": [_without_data(part) for part in panels],
            "columns": self.columns,
            "spacing": 40,
        }
        return {
            "$schema": alt.SCHEMA_URL,
            "vconcat": [grid, *map(_without_data, legend)],
            "spacing": 24,
            "datasets": datasets,
            "config": THEME | {"background": PAPER, "font": "Liberation Sans, Arial, sans-serif"},
            "padding": 20,
            "params": _SIGNALS,
        }


def missing_figures(drawn: Sequence[Figure]) -> list[tuple[str, str]]:
    """Title and needs of the figures that are not drawn, for want of data."""
    names = {figure.name for figure in drawn}
    return [(title, NEEDS[name]) for name, title in TITLES.items() if name not in names]


_SIGNALS = [{"name": "shown", "value": ""}, {"name": "picked", "value": ""}]


def _without_data(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "datasets"}


def _without_colour_legend(spec: Any) -> Any:
    if isinstance(spec, list):
        return [_without_colour_legend(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    spec = {
        key: part if key == "datasets" else _without_colour_legend(part)
        for key, part in spec.items()
    }
    if "field" in spec.get("color", ()):
        spec["color"] = spec["color"] | {"legend": None}
    return spec


def legend_of(arms: Arms) -> Any:
    """A stroke and a name per arm, in lines as wide as two panels.

    Positions are in pixels, as the widths of texts are only estimated.
    """
    entries, x, line = [], 0.0, 0
    for name in arms.names:
        width = 52 + 6.6 * len(name)
        if x and x + width > 2 * WIDTH:
            x, line = 0.0, line + 1
        entries.append({"arm": name, "x": x, "end": x + 26, "text": x + 34, "y": 8 + 20 * line})
        x += width
    base = alt.Chart(pd.DataFrame(entries)).encode(y=alt.Y("y:Q", scale=None, axis=None))
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
