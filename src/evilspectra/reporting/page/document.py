"""The page about runs as one HTML file: its template filled in, scripts and data. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import vl_convert
from markupsafe import Markup

from evilspectra.answers.flags import FLAGS
from evilspectra.reporting.figures.charts import Figure, Tables, missing_figures
from evilspectra.reporting.figures.palette import DARK, DIVERGING, RAMP, THEME
from evilspectra.reporting.figures.spectra import flat_value
from evilspectra.reporting.page.answers import LONG
from evilspectra.reporting.page.details import pack
from evilspectra.reporting.page.panel import panel_specs
from evilspectra.reporting.rendering import asset, environment

_GLOBALS = "window.vegaEmbed = vegaEmbed;"


def html(page: Mapping[str, Any], tables: Tables, drawn: Sequence[Figure]) -> str:
    """The page's text; every string of the store goes through jinja's escaping or `script_json`."""
    arms = tables.arms
    looks = list(zip(arms.names, arms.colours, arms.dashes, strict=True))
    colours = DARK | dict(zip(arms.colours, arms.dark, strict=True))
    packed = pack(tables.spectra_of_runs)
    blocks = {name: Markup(packed.pop(name)) for name in ("relative", "largest", "ranks")}
    details = page["details"] | {
        "outcome": tables.outcome and tables.outcome.name,
        "outcomeTitle": tables.outcome and tables.outcome.title,
        "spectra": packed,
        "specs": through_css(panel_specs(arms, tables.outcome), set(colours)),
    }
    payload = {
        "specs": [spec for figure in drawn for spec in figure.specs()],
        "config": THEME,
    }
    templates = environment()
    templates.filters["bound"] = _bound
    templates.globals["sources"] = {name: (colour, dash) for name, colour, dash in looks}
    return templates.get_template("report.html.j2").render(
        {name: value for name, value in page.items() if name != "details"},
        flags=FLAGS,
        longest=LONG,
        arms=looks,
        drawn=drawn,
        missing=missing_figures(drawn),
        blocks=blocks,
        details=script_json(details),
        flat=flat_value,
        colours=colours,
        ramps={"sequential": RAMP, "diverging": DIVERGING},
        css=Markup(asset("report.css")),
        scripts=Markup(vega() + "\n" + asset("report.js")),
        payload=script_json(through_css(payload, set(colours))),
    )


def _bound(text: str) -> str:
    """The text without a line break before a per cent sign."""
    return text.replace(" %", "\u00a0%")


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that leaves only the name vegaEmbed behind."""
    bundle = vl_convert.javascript_bundle(_GLOBALS)
    bundle = re.sub(r"</(script)", r"<\\/\1", bundle, flags=re.IGNORECASE)
    return "(()=>{" + bundle.replace("<!--", r"<\!--") + "\n})();"


def script_json(value: Any) -> Markup:
    """JSON that cannot end, or open a comment in, the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def through_css(value: Any, colours: set[str]) -> Any:
    """A spec whose colours are CSS variables; its data stays as it is.

    So the page's colour scheme, and print, is the charts' too.
    """
    if isinstance(value, dict):
        return {
            key: part if key == "datasets" else through_css(part, colours)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [through_css(part, colours) for part in value]
    return f"var(--c-{value[1:]})" if isinstance(value, str) and value in colours else value
