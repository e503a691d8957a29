"""Reports on a store or a table of runs: `report`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evilspectra.api.arguments import PathLike, choice, file, silent
from evilspectra.api.result import Result
from evilspectra.api.tables import TABLES, Columns, mapping_of, read_table
from evilspectra.errors import BadInput, packages_explained


@dataclass(frozen=True, repr=False)
class Report(Result):
    """A report that was written; it may be given wherever a path is expected.

    Attributes:
        path: the page, or the Markdown file.
        figures: the folder of its figures as SVG, PNG and PDF; None of a page about arms and
            factors, which has them inside.
    """

    path: Path
    figures: Path | None

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def headline(self) -> str:
        return f"report: {self.path}"

    def rows(self) -> list[dict[str, Any]]:
        """A row per file: the report, then its figures."""
        drawn = sorted(self.figures.glob("*")) if self.figures else []
        return [{"file": str(path), "bytes": path.stat().st_size} for path in (self.path, *drawn)]


@packages_explained()
def report(
    source: PathLike = "runs",
    *,
    out: PathLike | None = None,
    format: Literal["html", "md"] = "html",
    summary: bool | None = None,
    outcome: str | None = None,
    columns: Columns = (),
    note: Callable[[str], object] | None = None,
) -> Report:
    """Writes a report: findings, statistics, figures and methods, in one self-contained file.

    The figures are also written as SVG, PNG and PDF, into a folder beside it.

    Args:
        source: a folder of runs, or a .csv or .parquet file with a row per run that other tools
            made.
        out: the file to write; without it report.html (or .md) in the store, or beside the table.
        format: html: one page; md: Markdown for a paper's appendix, with links to the figures.
        summary: True: a page about arms and factors; False: one about each run; None: the first
            beyond 400 runs.
        outcome: the column by which a table's runs are compared; without it the first known one.
        columns: a table's columns under other names, ours to theirs.
        note: called with a line where the page is about arms because the runs are many.

    Raises:
        BadInput: no run or table, an option that is for the other kind of source, or a file that
            cannot be written.
    """
    path = file(source, "source")
    target = None if out is None else file(out, "out")
    choice(format, ("html", "md"), "format")
    missing_table = path.suffix in TABLES and not path.exists()
    if not path.is_file() and not missing_table:
        if columns or outcome:
            option = "column" if columns else "outcome"
            raise BadInput(
                f"--{option} is for tables of other tools, and {path} is no such file: "
                "leave it out, or name a .csv or .parquet file"
            )
        return _of_store(path, target, format, summary, note or silent)
    if summary is not None:
        raise BadInput(
            f"--summary and --each are for stores of runs, and {path} is a table: leave it out"
        )
    from evilspectra.reporting.build import build_table_report, table_figures

    frame = read_table(path)
    page = build_table_report(path, frame, mapping_of(columns), outcome, target, format)
    return Report(page, table_figures(path))


def _of_store(
    store: Path,
    out: Path | None,
    form: str,
    summary: bool | None,
    note: Callable[[str], object],
) -> Report:
    """Writes a page about each run or, if there are very many, about arms and factors."""
    from evilspectra.reporting.large import MANY_RUNS, build_summary
    from evilspectra.tables.inventory import run_folders

    if summary and form == "md":
        raise BadInput("--summary has no Markdown: leave out --format md, or take --each")
    if summary is None:
        summary = form == "html" and len(run_folders(store)) > MANY_RUNS
        if summary:
            note(
                f"more than {MANY_RUNS} runs: a page about arms and factors "
                "(--each makes one about each run, --summary chooses this one beforehand)"
            )
    if summary:
        return Report(build_summary(store, out), None)
    from evilspectra.reporting.build import build_report, store_figures

    return Report(build_report(store, out, form), store_figures(store))
