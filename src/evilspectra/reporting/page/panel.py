"""The charts of the panel that a click opens: a spectrum, losses, the outcome over training.

Their rows come from the page's script. No torch.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from evilspectra.reporting.figures.marks import step_tip, steps_axis
from evilspectra.reporting.figures.palette import MUTED, Arms
from evilspectra.reporting.outcomes import Outcome


def panel_specs(arms: Arms, outcome: Outcome | None) -> dict[str, Any]:
    """Vega-Lite of each chart, in the size of its container; their data is the set named `rows`."""
    charts = {"spectrum": _spectrum(arms), "losses": _losses(arms)}
    if outcome:
        charts["path"] = _path(arms, outcome)
    return {name: _bare(chart) for name, chart in charts.items()}


def _bare(chart: Any) -> dict[str, Any]:
    spec = chart.to_dict(validate=False)
    del spec["$schema"], spec["config"]
    return spec | {
        "width": "container",
        "height": "container",
        "autosize": {"type": "fit", "contains": "padding"},
    }


def _spectrum(arms: Arms) -> Any:
    """Rows: name, arm, position, relative, low, high, strong (whether it is the chosen one)."""
    base = alt.Chart().encode(
        x=alt.X(
            "position:Q",
            title="index of the singular value",
            scale=alt.Scale(nice=False),
            axis=alt.Axis(format="d", tickMinStep=1),
        ),
        color=arms.colour(),
    )
    y = alt.Y("relative:Q", title=None, scale=alt.Scale(domain=[0, 1]))
    area = base.mark_area(opacity=0.14).encode(
        y=alt.Y("low:Q", title=None, scale=y["scale"]), y2="high:Q", detail="name:N"
    )
    strength = alt.condition("datum.strong", alt.value(1), alt.value(0.35))
    line = base.mark_line(strokeWidth=2).encode(
        y=y, detail="name:N", strokeDash=arms.dash(), opacity=strength
    )
    tips = [
        alt.Tooltip("name:N", title="of"),
        alt.Tooltip("position:Q", title="index"),
        alt.Tooltip("relative:Q", title="σ / σ₁", format=".3f"),
        alt.Tooltip("value:Q", title="σ", format=".3~g"),
    ]
    dots = base.mark_circle(size=130, opacity=0).encode(y=y, tooltip=tips)
    flat = alt.Chart().mark_rule(color=MUTED, strokeDash=[2, 4]).encode(y=alt.datum(1))
    return alt.layer(flat, area, line, dots, data=alt.NamedData("rows"))


def _losses(arms: Arms) -> Any:
    """Rows: arm, kind (training or held-out), step, loss."""
    y = alt.Y("loss:Q", title=None, scale=alt.Scale(zero=False, nice=False, padding=8))
    base = alt.Chart().encode(x=steps_axis(), y=y, color=arms.colour())
    tips = [
        alt.Tooltip("kind:N", title="loss"),
        step_tip(),
        alt.Tooltip("loss:Q", format=".3f"),
    ]
    training = base.transform_filter("datum.kind === 'training'").mark_line(
        strokeWidth=1, opacity=0.55
    )
    after = base.transform_filter("datum.kind === 'held-out'")
    return alt.layer(
        training,
        after.mark_line(strokeWidth=2),
        after.mark_circle(size=40),
        base.mark_circle(size=110, opacity=0).encode(tooltip=tips),
        data=alt.NamedData("rows"),
    )


def _path(arms: Arms, outcome: Outcome) -> Any:
    """Rows: arm, step, outcome."""
    y = alt.Y(
        "outcome:Q", title=None, scale=alt.Scale(zero=not outcome.aligned, nice=False, padding=8)
    )
    base = alt.Chart().encode(x=steps_axis(), y=y, color=arms.colour())
    tips = [
        step_tip(),
        alt.Tooltip("outcome:Q", title=outcome.short, format=outcome.form),
    ]
    return alt.layer(
        base.mark_line(strokeWidth=2),
        base.mark_circle(size=50).encode(tooltip=tips),
        data=alt.NamedData("rows"),
    )
