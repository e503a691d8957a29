"""The figures of a sweep's statistics: shares of variance, partial R² over training. No torch."""

from __future__ import annotations

import altair as alt
import pandas as pd

from evilspectra.reporting.figures.charts import TITLES, Figure, Panel, Tables
from evilspectra.reporting.figures.marks import capitalised, rounded, step_tip
from evilspectra.reporting.figures.palette import INK, MUTED, RAMP, Frame

#: Colours and strokes of the two partial R²: of the optimiser, of the loss.
_PARTIAL = ((INK, [1, 0]), (RAMP[5], [6, 4]))


def variance_shares(tables: Tables) -> Figure | None:
    """A bar per term with its 95 % interval, a panel per kind of share."""
    shares = tables.statistics.shares if tables.statistics else ()
    if not shares:
        return None
    panels = []
    for kind in dict.fromkeys(share.what for share in shares):
        of_kind = [share for share in shares if share.what == kind]
        terms = [share.term for share in of_kind]
        rows = [
            {"term": share.term, "share": share.share, "low": share.low, "high": share.high}
            for share in of_kind
        ]
        frame = _plain(pd.DataFrame(rows))
        frame["is_shown"] = [share.is_shown for share in of_kind]
        y = alt.Y(
            "term:N",
            sort=terms,
            title=None,
            scale=alt.Scale(domain=terms, padding=0.35),
            axis=alt.Axis(labelLimit=190, grid=False, domain=False),
        )
        ends = [end for share in of_kind for end in (share.share, share.low, share.high)]
        ends = [0.0, *(end for end in ends if end is not None)]
        x = alt.X(
            "share:Q",
            title="share of the variance",
            scale=alt.Scale(domain=[min(ends), max(1e-3, *ends)], nice=True),
            axis=alt.Axis(format="%", grid=True),
        )
        base = alt.Chart(frame).encode(y=y)
        tips = [
            alt.Tooltip("term:N"),
            alt.Tooltip("share:Q", format=".1%"),
            alt.Tooltip("low:Q", title="from", format=".1%"),
            alt.Tooltip("high:Q", title="to", format=".1%"),
        ]
        bars = base.mark_bar(height={"band": 0.72}).encode(
            x=x,
            color=alt.condition("datum.is_shown", alt.value(RAMP[4]), alt.value(RAMP[2])),
            tooltip=tips,
        )
        rules = (
            base.transform_filter("isValid(datum.low) && isValid(datum.high)")
            .mark_rule(color=INK, strokeWidth=1.5)
            .encode(x=alt.X("low:Q", title="share of the variance"), x2="high:Q")
        )
        title = capitalised(kind)
        panels.append(Panel(title, bars + rules, 70 + 30 * len(terms), most_width=640))
    outcome = tables.outcome
    what = outcome.short if outcome else "outcome"
    caption = (
        f"How much of the variance of the {what} over runs each factor explains; the lines are"
        " 95 % intervals, each for itself. Dark bars: factors that the text shows to matter, after"
        " adjustment for all that the page claims. A share names a cause only where the design gave"
        " every level of a factor to every level of the others."
    )
    columns = 2 if len(panels) > 1 else 1
    return Figure("variance", TITLES["variance"], caption, tuple(panels), columns)


def partial_r2(tables: Tables) -> Figure | None:
    """Partial R² of the optimiser given loss, and of loss given the optimiser, with 95 % intervals.

    At every measured step; None if there are fewer than two.
    """
    partials = tables.statistics.partials if tables.statistics else ()
    if len({partial.step for partial in partials}) < 2:
        return None
    frame = _plain(pd.DataFrame(partials)[["step", "what", "r2", "low", "high"]])
    names = list(dict.fromkeys(partial.what for partial in partials))
    colours, dashes = (list(column) for column in zip(*_PARTIAL, strict=True))
    x = alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(nice=False, padding=10),
        axis=alt.Axis(format="~s", tickMinStep=1),
    )
    y = alt.Y("r2:Q", title=None, scale=alt.Scale(domain=[0, 1]))
    colour = alt.Color("what:N").scale(domain=names, range=colours).legend(None)
    base = alt.Chart(frame).encode(x=x, color=colour)
    tips = [
        alt.Tooltip("what:N", title="partial R²"),
        step_tip(),
        *(
            alt.Tooltip(f"{name}:Q", title=title, format=".3f")
            for name, title in (("r2", "R²"), ("low", "from"), ("high", "to"))
        ),
    ]
    area = base.mark_area(opacity=0.13).encode(
        y=alt.Y("low:Q", title=None, scale=y["scale"]), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2).encode(
        y=y, strokeDash=alt.StrokeDash("what:N").scale(domain=names, range=dashes).legend(None)
    )
    dots = base.mark_circle(size=70).encode(y=y, tooltip=tips)
    ends = frame[frame["step"] == frame["step"].max()]
    labels = (
        alt.Chart(ends[["step", "what", "r2"]])
        .mark_text(align="right", dx=-8, dy=-12, fontSize=12, color=MUTED)
        .encode(x=x, y=y, text="what:N")
    )
    outcome = tables.outcome
    what = outcome.short if outcome else "outcome"
    caption = (
        f"How much of what is left of the {what} over runs the one explains once the other is"
        " known, at every measured step; bands: 95 % intervals. Whether the optimiser explains more"
        " than the loss is tested once, at the last step, and stated in the text."
    )
    panel = Panel("Partial R²", alt.layer(area, line, dots, labels), 340)
    return Figure("partial", TITLES["partial"], caption, (panel,), 1)


def _plain(frame: Frame) -> Frame:
    """The frame rounded, all numbers as floats: Altair writes unknown ones as null."""
    numbers = [name for name in ("share", "r2", "low", "high", "step") if name in frame]
    return rounded(frame.astype(dict.fromkeys(numbers, float)))
