"""Charts of a few numbers by themselves: estimates with intervals, figures as one chart. No torch.

Unlike the report's figures they are Altair objects, to be shown in a notebook or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from evilspectra.reporting.figures.charts import WIDTH, Figure, legend_of
from evilspectra.reporting.figures.marks import rounded
from evilspectra.reporting.figures.palette import INK, MUTED, PAPER, RAMP, THEME, Arms

_LOOK: dict[str, Any] = {**THEME, "background": PAPER}
#: Columns of the frame of `estimates`.
COLUMNS = ("name", "value", "low", "high")


def estimates(
    rows: Sequence[tuple[str, float | None, float | None, float | None]],
    title: str,
    form: str,
    reference: float | None = None,
) -> alt.LayerChart | alt.FacetChart:
    """A dot per name with its interval as a line, in order from above.

    `rows`: name, value and the ends of the interval, None where they are not known. `title`: of the
    axis, with its unit; `form`: the format of the numbers; `reference`: a value with a dotted line.
    """
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame = rounded(frame.astype(dict.fromkeys(COLUMNS[1:], float)))
    y = alt.Y("name:N", sort=None, title=None, axis=alt.Axis(labelLimit=260, grid=False))
    scale = alt.Scale(zero=False, padding=14, nice=True)
    axis = alt.Axis(format=form, grid=True)
    tips = [
        alt.Tooltip("name:N", title="target"),
        *(
            alt.Tooltip(f"{column}:Q", title=heading, format=form)
            for column, heading in (("value", "value"), ("low", "from"), ("high", "to"))
        ),
    ]
    base = alt.Chart(frame).encode(y=y)
    rules = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(color=INK, strokeWidth=1.5)
        .encode(x=alt.X("low:Q", title=title, scale=scale, axis=axis), x2="high:Q")
    )
    dots = base.mark_circle(size=90, color=RAMP[5], opacity=1).encode(
        x=alt.X("value:Q", title=title, scale=scale, axis=axis), tooltip=tips
    )
    layers: list[Any] = [rules, dots]
    if reference is not None:
        line = alt.Chart(pd.DataFrame({"value": [reference]}))
        layers.insert(0, line.mark_rule(color=MUTED, strokeDash=[2, 3]).encode(x="value:Q"))
    chart = alt.layer(*layers).properties(width=430, height=max(60, 34 * len(frame)))
    return chart.configure(**_LOOK)


def joined(figures: Sequence[Figure], arms: Arms) -> alt.VConcatChart:
    """The panels of several figures as one chart, with titles and a legend."""
    panels = [panel for figure in figures for panel in figure.panels]
    charts = [
        panel.chart.properties(width=WIDTH, height=panel.height - 50, title=panel.title)
        for panel in panels
    ]
    chart = alt.vconcat(alt.concat(*charts, columns=2, spacing=40), legend_of(arms), spacing=24)
    chart.params = [alt.VariableParameter(name=name, value="") for name in ("shown", "picked")]
    return chart.configure(**_LOOK)
