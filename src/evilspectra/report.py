"""One HTML file that shows every run of a store: headline, table, figures, methods; no network, the same bytes each time."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evilspectra import figures, page
from evilspectra.charts import TITLES, Figure, Tables
from evilspectra.comparison import Row
from evilspectra.drift import Interval
from evilspectra.effects import frames
from evilspectra.errors import BadInput, listing
from evilspectra.flags import FLAGS
from evilspectra.headline import headline
from evilspectra.judged import judged_table
from evilspectra.measured import beyond_control, chosen, measured
from evilspectra.origin import differing, origin
from evilspectra.palette import DARK, DIVERGING, RAMP, THEME, Arms
from evilspectra.rates import counting, rates
from evilspectra.records import TABLES
from evilspectra.results import Results
from evilspectra.store import Store, write_atomically
from evilspectra.summary import summarise
from evilspectra.transcripts import LONG, transcripts


def build_report(root: Path, out: Path | None = None) -> Path:
    """Writes the report on every run below `root` (a store, an experiment or one run), and its figures as files.

    Returns:
        The HTML file: `out`, or `report.html` in `root`. SVG and PNG files are in `root/figures`.

    Raises:
        BadInput: there is no run below `root`.
    """
    rows = read_rows(root)
    tables = read_tables(root, rows)
    drawn = [figure for draw in figures.FIGURES if (figure := draw(tables))]
    out = out or root / "report.html"
    text = render(root, rows, tables.arms, drawn).encode("utf-8", "replace")
    for figure in drawn:
        write_figure(figure, tables.arms, root / "figures")
    write_atomically(out, lambda path: path.write_bytes(text))
    return out


def read_rows(root: Path) -> list[Row]:
    """The runs below `root`, labelled by their name, or by experiment and name where there are several experiments."""
    runs = Store(root).runs()
    if not runs:
        raise BadInput(f"{root} holds no runs: name a store, an experiment or a run's folder, or make runs with `evilspectra train` first")
    alone = len({run.path.parent for run in runs}) == 1
    rows = []
    for run in runs:
        folder = PurePosixPath(run.path.relative_to(root).as_posix())
        try:
            provenance = run.provenance()
        except BadInput:  # a run that was stopped before it wrote one; every value is then a dash
            provenance = {}
        results = counting(Results(run.path))
        found, rated = measured(results), rates(results)
        known = {"probe": found.drift, "capability": found.capability, "ordinary": found.ordinary, "answers": found.answers}
        instruments = {table: one for table, value in known.items() if value is not None and (one := chosen(results, table))}
        own = folder.parent if run.is_outside else folder  # the tables of another trainer lie in a folder of its output
        label = str(own) if not alone and own.parts else run.name if run.is_outside else run.path.resolve().name
        rows.append(Row(label, folder, origin(run), provenance, summarise(run, found, rated), found, instruments, rated=rated))
    return [replace(row, beyond=_beyond(root, row, rows)) for row in rows]


def _beyond(root: Path, row: Row, rows: list[Row]) -> Interval | None:
    """A run's drift minus that of the controls on the same base."""
    controls = [Results(root / other.folder) for other in rows if other.summary.control and other.ground()["base model"] == row.ground()["base model"]]
    return None if row.summary.control else beyond_control(Results(root / row.folder), controls)


def read_tables(root: Path, rows: list[Row]) -> Tables:
    """What the figures need, of all runs in one frame per table; of the spectra the last step only."""
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for row, run in zip(rows, Store(root).runs(), strict=True):
        for name, parts in found.items():
            frame = run.read(name)
            if name == "spectra":
                frame = frame[frame["step"] == frame["step"].max()]
            parts.append(frame.assign(run=row.label, arm=row.summary.arm))
    whole = {name: pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True) for name, parts in found.items()}
    runs = pd.DataFrame([asdict(row.summary) | {"run": row.label} for row in rows])
    ranks = {row.origin.rank for row in rows}
    return Tables(runs, rank=ranks.pop() if len(ranks) == 1 else None, **whole, **frames(rows))


def write_figure(figure: Figure, arms: Arms, folder: Path) -> None:
    spec = figure.chart(arms)
    svg = vl_convert.vegalite_to_svg(spec)
    write_atomically(folder / f"{figure.name}.svg", lambda path: path.write_text(svg, encoding="utf-8"))
    write_atomically(folder / f"{figure.name}.png", lambda path: path.write_bytes(vl_convert.svg_to_png(svg, scale=2)))


# --- the page -------------------------------------------------------------------------------------------------------


def render(root: Path, rows: list[Row], arms: Arms, drawn: list[Figure]) -> str:
    """The page's text; every string of the store goes through jinja's escaping or `script_json`."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    dark = DARK | dict(zip(arms.colours, arms.dark, strict=True))
    specs = [spec for figure in drawn for spec in figure.specs()]
    differ = differing([row.origin for row in rows])
    measured_columns = page.measured_columns(rows)
    environment.filters["bound"] = lambda text: text.replace(" %", "\u00a0%")  # no line break before a per cent sign
    environment.globals["sources"] = {name: (colour, dash) for name, colour, dash in zip(arms.names, arms.colours, arms.dashes, strict=True)}
    return environment.get_template("report.html.j2").render(
        title=listing(dict.fromkeys(row.summary.experiment if row.folder.parts else root.resolve().parent.name for row in rows), 3),
        facts=page.facts(rows),
        sentences=headline(rows),
        columns=page.COLUMNS,
        rows=[table_row(row, page.cells(row)) for row in rows],
        measured_columns=measured_columns,
        measured_rows=[table_row(row, page.measured_cells(row, measured_columns)) for row in rows if row.instruments],
        judged=judged_table(rows),
        transcripts=transcripts(rows, root, arms.names),
        flags=FLAGS,
        longest=LONG,
        arms=list(zip(arms.names, arms.colours, arms.dashes, strict=True)),
        drawn=drawn,
        missing=[title for name, title in TITLES.items() if name not in {figure.name for figure in drawn}],
        rank=rows[0].origin.rank if "lora.rank" not in differ else None,
        flat=figures.flat_value,
        colours=dark,
        differ=differ,
        settings=[(row.label, [page.plain(row.origin.settings.get(path)) for path in differ]) for row in rows],
        shared=[(path, page.plain(value)) for path, value in rows[0].origin.settings.items() if path not in differ],
        provenance=page.provenance(rows),
        instruments=page.instruments(rows),
        packages=page.packages(rows),
        commands=[f"evilspectra train {shlex.quote(str(row.folder / 'config.yaml'))} --set output.folder=again" for row in rows if row.origin.trainer is None],
        outsiders=page.outsiders(rows),
        ramps={"sequential": RAMP, "diverging": DIVERGING},
        css=Markup((folder / "report.css").read_text(encoding="utf-8")),
        scripts=Markup(vega() + "\n" + (folder / "report.js").read_text(encoding="utf-8")),
        payload=script_json({"specs": through_css(specs, set(dark)), "config": through_css(THEME, set(dark))}),
    )


def table_row(row: Row, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {"label": row.label, "arm": row.summary.arm, "reason": row.summary.reason, "state": row.summary.status, "cells": cells}


_GLOBALS = "window.vegaEmbed = vegaEmbed;"


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that leaves the name vegaEmbed behind and no other."""
    return "(()=>{" + re.sub(r"</(script)", r"<\\/\1", vl_convert.javascript_bundle(_GLOBALS), flags=re.IGNORECASE).replace("<!--", r"<\!--") + "\n})();"


def script_json(value: Any) -> Markup:
    """JSON that cannot end, or open a comment in, the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def through_css(value: Any, colours: set[str]) -> Any:
    """A spec whose colours are CSS variables, so that the page's colour scheme (and print) is the charts'; data stays as it is."""
    if isinstance(value, dict):
        return {key: item if key == "datasets" else through_css(item, colours) for key, item in value.items()}
    if isinstance(value, list):
        return [through_css(item, colours) for item in value]
    return f"var(--c-{value[1:]})" if isinstance(value, str) and value in colours else value
