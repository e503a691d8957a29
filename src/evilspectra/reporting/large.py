"""The report on a store with too many runs for a page about each: tables and figures by arm and by factor, in one self-contained HTML file; no network, no script, the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evilspectra.errors import listing
from evilspectra.reporting.aggregate import MAIN_DEFINITION, Level, Overview, outcomes_of, overview
from evilspectra.reporting.figures.palette import DARK, HUES, INK, MUTED, PAPER, THEME
from evilspectra.store.files import write_atomically
from evilspectra.tables.index import Index

#: With more runs than this a report is about arms and factors, not about each run.
MANY_RUNS = 400
#: Rows of a figure.
_MOST_ARMS = 40
#: Reasons listed.
_MOST_REASONS = 12


def build_summary(root: Path, out: Path | None = None, index: Index | None = None) -> Path:
    """Writes the page, and returns its place: `out`, or `report.html` in `root`.

    Raises:
        BadInput: there is no run below `root`.
    """
    text = render_summary(overview(root, index)).encode("utf-8", "replace")
    out = out or root / "report.html"
    write_atomically(out, lambda path: path.write_bytes(text))
    return out


def render_summary(found: Overview) -> str:
    """The page's text; every string of the store goes through jinja's escaping, or through the drawing library's."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = DARK | dict(HUES.values())
    return environment.get_template("summary.html.j2").render(
        title=listing(found.experiments, 3),
        facts=_facts(found),
        sentences=_sentences(found),
        arms=_table(found.arms),
        factors={name: _table(levels) for name, levels in found.factors.items()},
        figures=[
            (title, caption, Markup(_coloured(svg, colours)))
            for title, caption, svg in _figures(found)
        ],
        left_out=list(found.left_out.items())[:_MOST_REASONS],
        more=max(0, len(found.left_out) - _MOST_REASONS),
        many=MANY_RUNS,
        colours=colours,
        css=Markup((folder / "report.css").read_text(encoding="utf-8")),
    )


def _facts(found: Overview) -> list[tuple[str, str]]:
    return [
        ("Runs", f"{found.runs:,}"),
        ("States", listing((f"{count:,} {state}" for state, count in found.states.items()), 6)),
        ("Experiments", f"{len(found.experiments):,}"),
        ("Arms", f"{len(found.arms):,}"),
        ("Factors", listing(found.factors, 6) or "none"),
    ]


def _sentences(found: Overview) -> list[str]:
    """What the page can say without statistics: how many runs, and the widest difference between arms beside the spread within them."""
    done = found.states.get("done", 0)
    said = [f"{done:,} of {found.runs:,} runs are done; the tables below are over those."]
    for outcome in ("mean_alignment", "misalignment", "drift"):
        arms = [
            (level.name, level.outcomes[outcome])
            for level in found.arms
            if outcome in level.outcomes
        ]
        if len(arms) > 1:
            low, high = (
                min(arms, key=lambda arm: arm[1].mean),
                max(arms, key=lambda arm: arm[1].mean),
            )
            within = [one.sd for _, one in arms if one.sd is not None]
            beside = (
                f"; the standard deviation within arms is {max(within):.3g} at most"
                if within
                else ""
            )
            said.append(
                f"By arm, the {MAIN_DEFINITION[outcome]} goes from {low[1].mean:.3g} ({low[0]}, {low[1].runs:,} runs) to {high[1].mean:.3g} ({high[0]}, {high[1].runs:,} runs) on average{beside}."
            )
    said.append(
        "These are descriptions, not tests: runs of one arm may differ in other factors too."
    )
    return said


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
    return {"heads": [MAIN_DEFINITION[outcome] for outcome in outcomes], "rows": rows}


def _cell(level: Level, outcome: str) -> tuple[str, str]:
    one = level.outcomes.get(outcome)
    if one is None:
        return "–", ""
    return f"{one.mean:.3g}" + (
        "" if one.sd is None else f" ± {_tidy(one.sd, one.mean):.2g}"
    ), "" if one.runs == level.done else f"{one.runs:,} runs"


def _tidy(sd: float, mean: float) -> float:
    """0 for what is rounding alone."""
    return 0.0 if sd < 1e-9 * abs(mean) else sd


# --- figures --------------------------------------------------------------------------------------------------------


def _figures(found: Overview) -> list[tuple[str, str, str]]:
    """Title, caption and SVG."""
    drawn = []
    outcomes = outcomes_of(found.arms)
    if outcomes and len(found.arms) > 1:
        cut = (
            f" The first {_MOST_ARMS} of {len(found.arms)} arms."
            if len(found.arms) > _MOST_ARMS
            else ""
        )
        drawn.append(
            (
                "Outcomes by arm",
                f"Dot: median over runs; thick: the middle half of the runs; thin: 5 to 95 %.{cut}",
                _svg(
                    alt.hconcat(
                        *(_ranges(found.arms[:_MOST_ARMS], outcome) for outcome in outcomes[:4])
                    )
                ),
            )
        )
    if len(found.curve):
        panels = [
            _curve(found.curve[found.curve["outcome"] == outcome], outcome)
            for outcome in dict.fromkeys(found.curve["outcome"])
        ]
        drawn.append(
            (
                "Outcome against training loss",
                "Each dot is the mean of a tenth of an optimiser’s runs, those of like training loss together.",
                _svg(alt.hconcat(*panels)),
            )
        )
    return drawn


def _ranges(arms: Sequence[Level], outcome: str) -> Any:
    rows = [
        {"arm": level.name, **dict(zip(("a", "b", "c", "d", "e"), one.quantiles, strict=True))}
        for level in arms
        if (one := level.outcomes.get(outcome))
    ]
    base = alt.Chart(
        pd.DataFrame(rows), width=190, height=alt.Step(20), title=MAIN_DEFINITION[outcome]
    )
    y = alt.Y("arm:N", sort=[level.name for level in arms], title=None)

    def scale(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title=None).scale(zero=False)

    return alt.layer(
        base.mark_rule(color=MUTED, strokeWidth=1.2).encode(scale("a"), alt.X2("e:Q"), y),
        base.mark_rule(color=INK, strokeWidth=4).encode(scale("b"), alt.X2("d:Q"), y),
        base.mark_point(filled=True, size=42, color=PAPER, stroke=INK, opacity=1).encode(
            scale("c"), y
        ),
    )


def _curve(rows: Any, outcome: str) -> Any:
    names = sorted(set(rows["optimizer"]))
    colour = (
        alt.Color("optimizer:N")
        .scale(domain=names, range=[HUES.get(name, (MUTED, MUTED))[0] for name in names])
        .legend(orient="bottom", title=None)
    )
    x, y = (
        alt.X("loss:Q", title="training loss (nats/token)").scale(zero=False),
        alt.Y("value:Q", title=None).scale(zero=False),
    )
    base = alt.Chart(rows, width=260, height=220, title=MAIN_DEFINITION[outcome])
    return alt.layer(
        base.mark_line().encode(x, y, colour, alt.Order("loss:Q")),
        base.mark_point(filled=True, size=36, opacity=1).encode(x, y, colour),
    )


def _svg(chart: Any) -> str:
    spec = chart.to_dict(validate=False)
    spec["config"] = THEME
    return vl_convert.vegalite_to_svg(spec)


def _coloured(svg: str, colours: dict[str, str]) -> str:
    """The figure with the page's colour scheme: colours as CSS variables, where they stand as whole attributes."""
    for light in colours:
        svg = svg.replace(f'"{light}"', f'"var(--c-{light[1:]})"')
    return svg
