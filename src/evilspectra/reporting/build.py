"""The report on every run of a store, or on a table of runs: one file, and a folder of figures.

The HTML file shows headline, tables, figures and methods; it makes no network requests, and is
byte-identical each time. No torch.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import vl_convert

import evilspectra
from evilspectra.errors import listing
from evilspectra.reporting import outside_tables
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.figures.charts import Figure, Tables, missing_figures
from evilspectra.reporting.figures.palette import Arms, Frame
from evilspectra.reporting.figures.runs import FIGURES
from evilspectra.reporting.markdown import appendix
from evilspectra.reporting.outcomes import left_out_runs
from evilspectra.reporting.page import cells
from evilspectra.reporting.page.answers import transcripts
from evilspectra.reporting.page.details import describe
from evilspectra.reporting.page.document import html
from evilspectra.reporting.page.judged import judged_table
from evilspectra.reporting.page.samples import samples
from evilspectra.reporting.rows import WORKERS, read_rows, read_tables
from evilspectra.reporting.sentences.headline import headline
from evilspectra.store.files import write_atomically
from evilspectra.store.origin import differing

#: Sentences at the top where statistics lead them; those on single arms and runs are folded away
#: below.
FIRST = 8


def store_figures(root: Path) -> Path:
    """The folder for the figures of a report on a store."""
    return root / "figures"


def table_figures(path: Path) -> Path:
    """The folder for the figures of a report on a table."""
    return path.with_name(f"{path.stem}-figures")


def build_report(
    root: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, form: str = "html"
) -> Path:
    """Writes the report on every run below `root`, and its figures as files.

    `root` is a store, an experiment or one run.

    Returns:
        The file: `out`, or `report.html` (`report.md` where `form` is "md") in `root`. SVG, PNG and
        PDF files are in `root/figures`.

    Raises:
        BadInput: there is no run below `root`.
    """
    root = Path(root)
    rows = read_rows(root)
    tables = read_tables(root, rows)
    page = page_of(root, rows, tables)
    path = root / f"report.{form}" if out is None else Path(out)
    return _write(page, tables, path, store_figures(root), form)


def build_table_report(
    path: str | os.PathLike[str],
    frame: Frame,
    mapping: Mapping[str, str],
    outcome: str | None = None,
    out: str | os.PathLike[str] | None = None,
    form: str = "html",
) -> Path:
    """Writes the report on a table of runs that other tools made, and its figures as files.

    They are beside the table, figures in a folder of its name. `mapping`: our name of a column →
    theirs.

    Raises:
        BadInput: the table lacks a column that is mapped or needed.
    """
    path = Path(path)
    tables = outside_tables.tables_of(frame, mapping, outcome)
    page = page_of_table(path, frame, mapping, tables)
    target = path.with_name(f"{path.stem}-report.{form}") if out is None else Path(out)
    return _write(page, tables, target, table_figures(path), form)


def _write(
    page: dict[str, Any],
    tables: Tables,
    out: Path,
    folder: Path,
    form: str,
) -> Path:
    drawn = draw(tables)
    if form == "md":
        page = page | {"missing": missing_figures(drawn)}
        text = appendix(page, drawn, os.path.relpath(folder, out.parent))
    else:
        text = html(page, tables, drawn)
    write_figures(drawn, tables.arms, folder)
    write_atomically(out, lambda path: path.write_bytes(text.encode("utf-8", "replace")))
    return out


def draw(tables: Tables) -> list[Figure]:
    """The figures that the tables allow, in order."""
    return [figure for draw_figure in FIGURES if (figure := draw_figure(tables))]


def write_figures(drawn: Sequence[Figure], arms: Arms, folder: Path) -> None:
    """Every figure as SVG, PNG and PDF."""
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda figure: write_figure(figure, arms, folder), drawn))


def write_figure(figure: Figure, arms: Arms, folder: Path) -> None:
    """A figure as SVG, PNG and PDF."""
    svg = vl_convert.vegalite_to_svg(figure.chart(arms))
    files = {
        "svg": svg.encode("utf-8"),
        "png": vl_convert.svg_to_png(svg, scale=2),
        "pdf": vl_convert.svg_to_pdf(svg),
    }
    for ending, content in files.items():
        path = folder / f"{figure.name}.{ending}"
        write_atomically(path, lambda path, content=content: path.write_bytes(content))


# --- the page -----------------------------------------------------------------------------------


def render(
    root: Path,
    rows: list[Row],
    tables: Tables,
    drawn: list[Figure],
) -> str:
    """The page's text."""
    return html(page_of(root, rows, tables), tables, drawn)


def page_of(root: Path, rows: list[Row], tables: Tables) -> dict[str, Any]:
    """The content of a page on runs of a store; `details` are those of the panel."""
    differ = differing([row.origin for row in rows])
    leading = tables.statistics.leading if tables.statistics else []
    measured_columns = cells.measured_columns(rows)
    experiments = dict.fromkeys(
        row.summary.experiment if row.folder.parts else root.resolve().parent.name for row in rows
    )
    return _common(tables) | {
        "title": listing(experiments, 3),
        "facts": cells.facts(rows),
        "sentences": [*leading, *headline(rows, tables.claims)],
        "folded": FIRST if len(leading) else None,
        "columns": cells.COLUMNS,
        "rows": [table_row(row, cells.cells(row)) for row in rows],
        "measured_columns": measured_columns,
        "measured_rows": [
            table_row(row, cells.measured_cells(row, measured_columns))
            for row in rows
            if row.instruments
        ],
        "judged": judged_table(rows),
        "transcripts": transcripts(rows, root, tables.arms.names),
        "rank": rows[0].origin.rank if "lora.rank" not in differ else None,
        "differ": differ,
        "settings": [
            (row.label, [cells.plain(row.origin.settings.get(path)) for path in differ])
            for row in rows
        ],
        "shared": [
            (path, cells.plain(value))
            for path, value in rows[0].origin.settings.items()
            if path not in differ
        ],
        "provenance": cells.provenance(rows),
        "instruments": cells.instruments(rows),
        "packages": cells.packages(rows),
        "commands": [_command(row) for row in rows if row.origin.trainer is None],
        "outsiders": cells.outsiders(rows),
        "details": {"runs": describe(rows, tables), "answers": samples(rows, root)},
    }


def page_of_table(
    path: Path,
    frame: Frame,
    mapping: Mapping[str, str],
    tables: Tables,
) -> dict[str, Any]:
    """The content of a page on a table of other tools."""
    columns = outside_tables.shown_columns(frame, mapping, tables)
    return _common(tables) | {
        "title": path.stem,
        "facts": outside_tables.facts(path, tables),
        "sentences": _sentences_on_table(tables),
        "columns": columns,
        "rows": [
            {
                "label": row["run"],
                "arm": row["arm"],
                "reason": None,
                "state": str(row["status"]),
                "cells": outside_tables.cells(row, columns),
            }
            for row in tables.runs.to_dict("records")
        ],
        "foreign": path.name,
        "details": {
            "runs": outside_tables.described(tables, frame),
            "answers": {"questions": [], "runs": {}, "length": 0, "judges": [], "most": 0},
        },
    }


def _sentences_on_table(tables: Tables) -> list[str]:
    statistics = tables.statistics
    if statistics is None or statistics.analysis is None:
        return [
            "There are too few runs in this table for statistics; the figures and the table show"
            " what there is."
        ]
    return statistics.leading or [
        f"{statistics.design}. What the statistics say of them stands below."
    ]


def _common(tables: Tables) -> dict[str, Any]:
    """The content that every page has, and the keys that only those of stores fill."""
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


def _command(row: Row) -> str:
    """The command that repeats a run."""
    config = shlex.quote(str(row.folder / "config.yaml"))
    return f"evilspectra train {config} --set output.folder=again"


def table_row(row: Row, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of a table of runs."""
    return {
        "label": row.label,
        "arm": row.summary.arm,
        "reason": row.summary.reason,
        "state": row.summary.status,
        "cells": cells,
    }
