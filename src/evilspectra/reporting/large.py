"""The report on a store with too many runs to show each: tables and figures by arm and factor.

It is one self-contained HTML file, without network and script, the same bytes each time. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from markupsafe import Markup

from evilspectra.errors import listing
from evilspectra.numbers import DASH
from evilspectra.reporting.aggregate import OUTCOMES, Level, Overview, Spread, outcomes_of, overview
from evilspectra.reporting.figures.palette import DARK, HUES, INK, MUTED, PAPER, THEME
from evilspectra.reporting.rendering import asset, environment
from evilspectra.store.files import write_atomically
from evilspectra.tables.index import Index

#: With more runs than this a report is about arms and factors, not about each run.
MANY_RUNS = 400
#: Rows of a figure.
_MOST_ARMS = 40
#: Reasons listed.
_MOST_REASONS = 12


def build_summary(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    index: Index | None = None,
) -> Path:
    """Writes the page, and returns its path: `out`, or `report.html` in `root`.

    Raises:
        BadInput: there is no run below `root`.
    """
    root = Path(root)
    text = render_summary(overview(root, index)).encode("utf-8", "replace")
    page = root / "report.html" if out is None else Path(out)
    write_atomically(page, lambda path: path.write_bytes(text))
    return page


def render_summary(store: Overview) -> str:
    """The page's text.

    Every string of the store goes through jinja's escaping, or through the drawing library's.
    """
    colours = DARK | dict(HUES.values())
    return (
        environment()
        .get_template("summary.html.j2")
        .render(
            title=listing(store.experiments, 3),
            facts=_facts(store),
            sentences=_sentences(store),
            arms=_table(store.arms),
            factors={name: _table(levels) for name, levels in store.factors.items()},
            figures=[
                (title, caption, Markup(_coloured(svg, colours)))
                for title, caption, svg in _figures(store)
            ],
            left_out=list(store.left_out.items())[:_MOST_REASONS],
            more=max(0, len(store.left_out) - _MOST_REASONS),
            many=MANY_RUNS,
            colours=colours,
            css=Markup(asset("report.css")),
        )
    )


def _facts(store: Overview) -> list[tuple[str, str]]:
    return [
        ("Runs", f"{store.runs:,}"),
        ("States", listing((f"{count:,} {state}" for state, count in store.states.items()), 6)),
        ("Experiments", f"{len(store.experiments):,}"),
        ("Arms", f"{len(store.arms):,}"),
        ("Factors", listing(store.factors, 6) or "none"),
    ]


def _sentences(store: Overview) -> list[str]:
    """The sentences that need no statistics.

    They give the number of runs, and the widest difference between arms beside the spread within
    them.
    """
    done = store.states.get("done", 0)
    sentences = [f"{done:,} of {store.runs:,} runs are done; the tables below are over those."]
    for outcome in ("mean_alignment", "misalignment", "drift"):
        arms = [
            (level.name, level.outcomes[outcome])
            for level in store.arms
            if outcome in level.outcomes
        ]
        if len(arms) > 1:
            low = min(arms, key=lambda arm: arm[1].mean)
            high = max(arms, key=lambda arm: arm[1].mean)
            within = [distribution.sd for _, distribution in arms if distribution.sd is not None]
            spread_within = (
                f"; the standard deviation within arms is {max(within):.3g} at most"
                if within
                else ""
            )
            sentences.append(
                f"By arm, the {OUTCOMES[outcome]} goes from {_mean_of(*low)} to {_mean_of(*high)}"
                f" on average{spread_within}."
            )
    sentences.append(
        "These are descriptions, not tests: runs of one arm may differ in other factors too."
    )
    return sentences


def _mean_of(arm: str, spread: Spread) -> str:
    return f"{spread.mean:.3g} ({arm}, {spread.runs:,} runs)"


def _table(levels: Sequence[Level]) -> dict[str, Any]:
    outcomes = outcomes_of(levels)
    rows = [
        [
            level.name,
            f"{level.runs:,}",
            f"{level.done:,}",
            *(_cell(level, outcome) for outcome in outcomes),
        ]
        for level in levels
    ]
    return {"heads": [OUTCOMES[outcome] for outcome in outcomes], "rows": rows}


def _cell(level: Level, outcome: str) -> tuple[str, str]:
    distribution = level.outcomes.get(outcome)
    if distribution is None:
        return DASH, ""
    text = f"{distribution.mean:.3g}"
    if distribution.sd is not None:
        text += f" ± {_tidy(distribution.sd, distribution.mean):.2g}"
    return text, "" if distribution.runs == level.done else f"{distribution.runs:,} runs"


def _tidy(sd: float, mean: float) -> float:
    """0 for a deviation that is rounding alone."""
    return 0.0 if sd < 1e-9 * abs(mean) else sd


# --- figures ------------------------------------------------------------------------------------


def _figures(store: Overview) -> list[tuple[str, str, str]]:
    """Title, caption and SVG."""
    drawn = []
    outcomes = outcomes_of(store.arms)
    if outcomes and len(store.arms) > 1:
        cut = (
            f" The first {_MOST_ARMS} of {len(store.arms)} arms."
            if len(store.arms) > _MOST_ARMS
            else ""
        )
        caption = (
            f"Dot: median over runs; thick: the middle half of the runs; thin: 5 to 95 %.{cut}"
        )
        ranges = [_ranges(store.arms[:_MOST_ARMS], outcome) for outcome in outcomes[:4]]
        drawn.append(("Outcomes by arm", caption, _svg(alt.hconcat(*ranges))))
    if len(store.curve):
        panels = [
            _curve(store.curve[store.curve["outcome"] == outcome], outcome)
            for outcome in dict.fromkeys(store.curve["outcome"])
        ]
        caption = (
            "Each dot is the mean of a tenth of an optimiser’s runs, those of like training loss"
            " together."
        )
        drawn.append(("Outcome against training loss", caption, _svg(alt.hconcat(*panels))))
    return drawn


def _ranges(arms: Sequence[Level], outcome: str) -> Any:
    rows = [
        {
            "arm": level.name,
            **dict(zip(("a", "b", "c", "d", "e"), distribution.quantiles, strict=True)),
        }
        for level in arms
        if (distribution := level.outcomes.get(outcome))
    ]
    base = alt.Chart(pd.DataFrame(rows), width=190, height=alt.Step(20), title=OUTCOMES[outcome])
    y = alt.Y("arm:N", sort=[level.name for level in arms], title=None)

    return alt.layer(
        base.mark_rule(color=MUTED, strokeWidth=1.2).encode(_quantile("a"), alt.X2("e:Q"), y),
        base.mark_rule(color=INK, strokeWidth=4).encode(_quantile("b"), alt.X2("d:Q"), y),
        base.mark_point(filled=True, size=42, color=PAPER, stroke=INK, opacity=1).encode(
            _quantile("c"), y
        ),
    )


def _quantile(name: str) -> alt.X:
    return alt.X(f"{name}:Q", title=None).scale(zero=False)


def _curve(rows: Any, outcome: str) -> Any:
    names = sorted(set(rows["optimizer"]))
    colour = (
        alt.Color("optimizer:N")
        .scale(domain=names, range=[HUES.get(name, (MUTED, MUTED))[0] for name in names])
        .legend(orient="bottom", title=None)
    )
    x = alt.X("loss:Q", title="training loss (nats/token)").scale(zero=False)
    y = alt.Y("value:Q", title=None).scale(zero=False)
    base = alt.Chart(rows, width=260, height=220, title=OUTCOMES[outcome])
    return alt.layer(
        base.mark_line().encode(x, y, colour, alt.Order("loss:Q")),
        base.mark_point(filled=True, size=36, opacity=1).encode(x, y, colour),
    )


def _svg(chart: Any) -> str:
    spec = chart.to_dict(validate=False)
    spec["config"] = THEME
    return vl_convert.vegalite_to_svg(spec)


def _coloured(svg: str, colours: dict[str, str]) -> str:
    """The figure in the page's colours: those that are whole attributes become CSS variables."""
    for light in colours:
        svg = svg.replace(f'"{light}"', f'"var(--c-{light[1:]})"')
    return svg
