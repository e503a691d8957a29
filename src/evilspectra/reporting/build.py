"""One HTML file that shows every run of a store: headline, table, figures, methods; no network, the same bytes each time."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import evilspectra
from evilspectra.answers.flags import FLAGS
from evilspectra.errors import BadInput, listing
from evilspectra.evaluation.measured import beyond_control, measured
from evilspectra.evaluation.run_rates import counting, rates
from evilspectra.evaluation.summary import summarise
from evilspectra.intervals import Interval
from evilspectra.reporting import outside_tables as foreign
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.figures import runs as figures
from evilspectra.reporting.figures.charts import NEEDS, TITLES, Figure, Tables
from evilspectra.reporting.figures.effects import frames
from evilspectra.reporting.figures.palette import DARK, DIVERGING, RAMP, THEME, Arms, Frame
from evilspectra.reporting.markdown import appendix
from evilspectra.reporting.outcomes import checkpoints_table, left_out_runs, outcome_of, runs_table
from evilspectra.reporting.page import cells as page
from evilspectra.reporting.page.answers import LONG, transcripts
from evilspectra.reporting.page.details import Spectra, describe, pack, read_spectra
from evilspectra.reporting.page.judged import judged_table
from evilspectra.reporting.page.panel import panel_specs
from evilspectra.reporting.page.samples import samples
from evilspectra.reporting.sentences.headline import headline
from evilspectra.reporting.statistics import statistics_of
from evilspectra.store.files import write_atomically
from evilspectra.store.origin import differing, origin
from evilspectra.store.records import TABLES
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder, Store

#: Threads that read runs and write figures: most of it is done outside Python's lock.
WORKERS = min(8, os.cpu_count() or 1)
#: Sentences at the top where statistics lead them; those on single arms and runs are folded away below.
FIRST = 8


def build_report(root: Path, out: Path | None = None, form: str = "html") -> Path:
    """Writes the report on every run below `root` (a store, an experiment or one run), and its figures as files.

    Returns:
        The file: `out`, or `report.html` (`report.md` where `form` is "md") in `root`. SVG, PNG and PDF files are in `root/figures`.

    Raises:
        BadInput: there is no run below `root`.
    """
    rows = read_rows(root)
    tables = read_tables(root, rows)
    return _write(
        page_of(root, rows, tables), tables, out or root / f"report.{form}", root / "figures", form
    )


def build_table_report(
    path: Path,
    frame: Frame,
    mapping: Mapping[str, str],
    outcome: str | None = None,
    out: Path | None = None,
    form: str = "html",
) -> Path:
    """The same on a table of runs that other tools made; `mapping`: our name of a column → theirs. Written beside the table, figures in a folder of its name.

    Raises:
        BadInput: the table lacks what is asked of it.
    """
    tables = foreign.tables_of(frame, mapping, outcome)
    return _write(
        page_of_table(path, frame, mapping, tables),
        tables,
        out or path.with_name(f"{path.stem}-report.{form}"),
        path.with_name(f"{path.stem}-figures"),
        form,
    )


def _write(
    page: dict[str, Any],
    tables: Tables,
    out: Path,
    folder: Path,
    form: str,
) -> Path:
    drawn = draw(tables)
    text = (
        appendix(page | {"missing": _missing(drawn)}, drawn, os.path.relpath(folder, out.parent))
        if form == "md"
        else html(page, tables, drawn)
    )
    write_figures(drawn, tables.arms, folder)
    write_atomically(out, lambda path: path.write_bytes(text.encode("utf-8", "replace")))
    return out


def draw(tables: Tables) -> list[Figure]:
    """The figures that the tables allow, in order."""
    return [figure for one in figures.FIGURES if (figure := one(tables))]


def read_rows(root: Path) -> list[Row]:
    """The runs below `root`, labelled by their name, or by experiment and name where there are several experiments."""
    runs = Store(root).runs()
    if not runs:
        raise BadInput(
            f"{root} holds no runs: name a store, an experiment or a run's folder, or make runs with `evilspectra train` first"
        )
    alone = len({run.path.parent for run in runs}) == 1
    with ThreadPoolExecutor(WORKERS) as pool:
        rows = list(pool.map(lambda run: _row(root, run, alone), runs))
        return [
            replace(row, beyond=beyond)
            for row, beyond in zip(
                rows, pool.map(lambda row: _beyond(root, row, rows), rows), strict=True
            )
        ]


def _row(root: Path, run: RunFolder, alone: bool) -> Row:
    """A run; `alone`: whether all runs are of one experiment, so that their names tell them apart."""
    folder = PurePosixPath(run.path.relative_to(root).as_posix())
    try:
        provenance = run.provenance()
    except BadInput:  # a run that was stopped before it wrote one; every value is then a dash
        provenance = {}
    results = counting(Results(run.path))
    found, rated = measured(results), rates(results)
    known = {
        "probe": found.drift,
        "capability": found.capability,
        "ordinary": found.ordinary,
        "answers": found.answers,
    }
    instruments = {
        table: one
        for table, value in known.items()
        if value is not None and (one := chosen(results, table))
    }
    own = (
        folder.parent if run.is_outside else folder
    )  # the tables of another trainer lie in a folder of its output
    label = (
        str(own)
        if not alone and own.parts
        else run.name
        if run.is_outside
        else run.path.resolve().name
    )
    made = origin(run)
    return Row(
        label,
        folder,
        made,
        provenance,
        summarise(run, found, rated, made),
        found,
        instruments,
        rated=rated,
    )


def _beyond(root: Path, row: Row, rows: list[Row]) -> Interval | None:
    """A run's drift minus that of the controls on the same base."""
    controls = [
        Results(root / other.folder)
        for other in rows
        if other.summary.control and other.ground()["base model"] == row.ground()["base model"]
    ]
    return None if row.summary.control else beyond_control(Results(root / row.folder), controls)


def read_tables(root: Path, rows: list[Row]) -> Tables:
    """What the figures and the panel need, of all runs in one frame per table; of the spectra the last step, and medians of the steps before."""
    with ThreadPoolExecutor(WORKERS) as pool:
        read = list(pool.map(_read, rows, Store(root).runs()))
    parts: dict[str, list[Any]] = {
        name: [tables[name] for tables, _ in read] for name in (*TABLES, "evolution")
    }
    whole = {
        name: pd.concat([part for part in some if len(part)] or some[:1], ignore_index=True)
        for name, some in parts.items()
    }
    runs = runs_table(rows)
    outcome = outcome_of(runs)
    moments, rated = checkpoints_table(rows, root)
    paths = (
        moments.dropna(subset=["mean_alignment"]).rename(columns={"train_loss": "loss"})
        if len(moments)
        else moments
    )
    statistics = (
        statistics_of(
            runs, outcome.name, Arms.of(runs).names, moments, rated if len(rated) else None
        )
        if outcome
        else None
    )
    ranks = {row.origin.rank for row in rows}
    return Tables(
        runs,
        rank=ranks.pop() if len(ranks) == 1 else None,
        outcome=outcome,
        spectra_of_runs=tuple(spectra for _, spectra in read),
        paths=paths,
        statistics=statistics,
        **whole,
        **frames(rows),
    )


def _read(row: Row, run: RunFolder) -> tuple[dict[str, Any], Spectra | None]:
    """A run's tables under its label and arm, of the spectra the last step and `evolution`; and what the panel holds of them."""
    tables: dict[str, Any] = {name: run.read(name) for name in TABLES}
    spectra, tables["evolution"] = read_spectra(tables["spectra"], tables["measures"])
    tables["spectra"] = tables["spectra"][
        tables["spectra"]["step"] == tables["spectra"]["step"].max()
    ]
    return {
        name: table.assign(run=row.label, arm=row.summary.arm) for name, table in tables.items()
    }, spectra


def write_figures(drawn: Sequence[Figure], arms: Arms, folder: Path) -> None:
    """Every figure as SVG, PNG and PDF."""
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda figure: write_figure(figure, arms, folder), drawn))


def write_figure(figure: Figure, arms: Arms, folder: Path) -> None:
    svg = vl_convert.vegalite_to_svg(figure.chart(arms))
    write_atomically(
        folder / f"{figure.name}.svg", lambda path: path.write_text(svg, encoding="utf-8")
    )
    write_atomically(
        folder / f"{figure.name}.png",
        lambda path: path.write_bytes(vl_convert.svg_to_png(svg, scale=2)),
    )
    write_atomically(
        folder / f"{figure.name}.pdf", lambda path: path.write_bytes(vl_convert.svg_to_pdf(svg))
    )


# --- the page -------------------------------------------------------------------------------------------------------


def render(
    root: Path,
    rows: list[Row],
    tables: Tables,
    drawn: list[Figure],
) -> str:
    """The page's text."""
    return html(page_of(root, rows, tables), tables, drawn)


def page_of(root: Path, rows: list[Row], tables: Tables) -> dict[str, Any]:
    """What a page on runs of a store says; `details` are those of the panel."""
    differ = differing([row.origin for row in rows])
    leading = tables.statistics.leading if tables.statistics else []
    measured_columns = page.measured_columns(rows)
    return _said(tables) | {
        "title": listing(
            dict.fromkeys(
                row.summary.experiment if row.folder.parts else root.resolve().parent.name
                for row in rows
            ),
            3,
        ),
        "facts": page.facts(rows),
        "sentences": [*leading, *headline(rows)],
        "folded": FIRST if len(leading) else None,
        "columns": page.COLUMNS,
        "rows": [table_row(row, page.cells(row)) for row in rows],
        "measured_columns": measured_columns,
        "measured_rows": [
            table_row(row, page.measured_cells(row, measured_columns))
            for row in rows
            if row.instruments
        ],
        "judged": judged_table(rows),
        "transcripts": transcripts(rows, root, tables.arms.names),
        "rank": rows[0].origin.rank if "lora.rank" not in differ else None,
        "differ": differ,
        "settings": [
            (row.label, [page.plain(row.origin.settings.get(path)) for path in differ])
            for row in rows
        ],
        "shared": [
            (path, page.plain(value))
            for path, value in rows[0].origin.settings.items()
            if path not in differ
        ],
        "provenance": page.provenance(rows),
        "instruments": page.instruments(rows),
        "packages": page.packages(rows),
        "commands": [
            f"evilspectra train {shlex.quote(str(row.folder / 'config.yaml'))} --set output.folder=again"
            for row in rows
            if row.origin.trainer is None
        ],
        "outsiders": page.outsiders(rows),
        "details": {"runs": describe(rows, tables), "answers": samples(rows, root)},
    }


def page_of_table(
    path: Path,
    frame: Frame,
    mapping: Mapping[str, str],
    tables: Tables,
) -> dict[str, Any]:
    """What a page on a table of other tools says."""
    shown = foreign.shown_columns(frame, mapping, tables)
    found = tables.runs.to_dict("records")
    return _said(tables) | {
        "title": path.stem,
        "facts": foreign.facts(path, tables),
        "sentences": _of_table(tables),
        "columns": shown,
        "rows": [
            {
                "label": row["run"],
                "arm": row["arm"],
                "reason": None,
                "state": str(row["status"]),
                "cells": foreign.cells(row, shown),
            }
            for row in found
        ],
        "foreign": path.name,
        "details": {
            "runs": foreign.described(tables, frame),
            "answers": {"questions": [], "runs": {}, "length": 0, "judges": [], "most": 0},
        },
    }


def _of_table(tables: Tables) -> list[str]:
    found = tables.statistics
    if found is None or found.analysis is None:
        return [
            "There are too few runs in this table for statistics; the figures and the table show what there is."
        ]
    return found.leading or [f"{found.design}. What the statistics say of them stands below."]


def _said(tables: Tables) -> dict[str, Any]:
    """What every page has, and what only those of stores fill."""
    lists = (
        "measured_columns",
        "measured_rows",
        "differ",
        "settings",
        "shared",
        "provenance",
        "instruments",
        "commands",
        "outsiders",
    )
    empty = {
        "folded": None,
        "foreign": None,
        "judged": None,
        "transcripts": None,
        "rank": None,
        "packages": "",
    } | {name: [] for name in lists}
    return empty | {
        "statistics": tables.statistics,
        "excluded": left_out_runs(tables.runs, tables.outcome),
        "version": evilspectra.__version__,
    }


def _missing(drawn: Sequence[Figure]) -> list[tuple[str, str]]:
    return [
        (title, NEEDS[name])
        for name, title in TITLES.items()
        if name not in {figure.name for figure in drawn}
    ]


def html(said: Mapping[str, Any], tables: Tables, drawn: Sequence[Figure]) -> str:
    """The page's text; every string of the store goes through jinja's escaping or `script_json`."""
    arms = tables.arms
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    dark = DARK | dict(zip(arms.colours, arms.dark, strict=True))
    packed = pack(tables.spectra_of_runs)
    blocks = {name: Markup(packed.pop(name)) for name in ("relative", "largest", "ranks")}
    outcome = {
        "outcome": tables.outcome and tables.outcome.name,
        "outcomeTitle": tables.outcome and tables.outcome.title,
    }
    details = (
        said["details"]
        | outcome
        | {"spectra": packed, "specs": through_css(panel_specs(arms, tables.outcome), set(dark))}
    )
    specs = [spec for figure in drawn for spec in figure.specs()]
    environment.filters["bound"] = lambda text: text.replace(
        " %", "\u00a0%"
    )  # no line break before a per cent sign
    environment.globals["sources"] = {
        name: (colour, dash)
        for name, colour, dash in zip(arms.names, arms.colours, arms.dashes, strict=True)
    }
    return environment.get_template("report.html.j2").render(
        {name: value for name, value in said.items() if name != "details"},
        flags=FLAGS,
        longest=LONG,
        arms=list(zip(arms.names, arms.colours, arms.dashes, strict=True)),
        drawn=drawn,
        missing=_missing(drawn),
        blocks=blocks,
        details=script_json(details),
        flat=figures.flat_value,
        colours=dark,
        ramps={"sequential": RAMP, "diverging": DIVERGING},
        css=Markup((folder / "report.css").read_text(encoding="utf-8")),
        scripts=Markup(vega() + "\n" + (folder / "report.js").read_text(encoding="utf-8")),
        payload=script_json(
            {"specs": through_css(specs, set(dark)), "config": through_css(THEME, set(dark))}
        ),
    )


def table_row(row: Row, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "label": row.label,
        "arm": row.summary.arm,
        "reason": row.summary.reason,
        "state": row.summary.status,
        "cells": cells,
    }


_GLOBALS = "window.vegaEmbed = vegaEmbed;"


@cache
def vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that leaves the name vegaEmbed behind and no other."""
    return (
        "(()=>{"
        + re.sub(
            r"</(script)", r"<\\/\1", vl_convert.javascript_bundle(_GLOBALS), flags=re.IGNORECASE
        ).replace("<!--", r"<\!--")
        + "\n})();"
    )


def script_json(value: Any) -> Markup:
    """JSON that cannot end, or open a comment in, the script element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def through_css(value: Any, colours: set[str]) -> Any:
    """A spec whose colours are CSS variables, so that the page's colour scheme (and print) is the charts'; data stays as it is."""
    if isinstance(value, dict):
        return {
            key: item if key == "datasets" else through_css(item, colours)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [through_css(item, colours) for item in value]
    return f"var(--c-{value[1:]})" if isinstance(value, str) and value in colours else value
