"""The command `report`. Everything heavy is imported inside the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from evilspectra.cli.options import COLUMNS
from evilspectra.errors import BadInput


@click.command()
@click.argument("source", metavar="STORE_OR_TABLE", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file to write; default report.html (or .md) in the store, or beside the table.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md"]),
    default="html",
    show_default=True,
    help=(
        "html: one self-contained page. "
        "md: Markdown for a paper's appendix, with links to the figures."
    ),
)
@click.option(
    "--summary/--each",
    default=None,
    help=(
        "A page about arms and factors, or one about each run; "
        "without either the first beyond 400 runs."
    ),
)
@click.option(
    "--outcome",
    metavar="COLUMN",
    help=(
        "The outcome by which a table's runs are compared; without it the first known outcome "
        "that it has. Of a store it is the mean alignment, or the drift if nothing was judged."
    ),
)
@COLUMNS
def report(
    source: Path,
    out: Path | None,
    form: str,
    summary: bool | None,
    outcome: str | None,
    columns: Sequence[str],
) -> None:
    """Write a report: findings, statistics, figures and methods.

    The figures are also written as SVG, PNG and PDF. STORE_OR_TABLE is a folder of runs, or a .csv
    or .parquet file with a row per run that other tools made.
    """
    missing_table = source.suffix in (".csv", ".parquet") and not source.exists()
    if not source.is_file() and not missing_table:
        if columns or outcome:
            option = "column" if columns else "outcome"
            raise BadInput(
                f"--{option} is for tables of other tools, and {source} is no such file: "
                "leave it out, or name a .csv or .parquet file"
            )
        click.echo(_of_store(source, out, form, summary))
        return
    if summary is not None:
        raise BadInput(
            f"--summary and --each are for stores of runs, and {source} is a table: leave it out"
        )
    from evilspectra.cli.analyze import mapping_of, read_table
    from evilspectra.reporting.build import build_table_report

    click.echo(
        build_table_report(source, read_table(source), mapping_of(columns), outcome, out, form)
    )


def _of_store(
    store: Path,
    out: Path | None,
    form: str,
    summary: bool | None,
) -> Path:
    """Writes a page about each run or, if there are very many, about arms and factors."""
    from evilspectra.reporting.large import MANY_RUNS, build_summary
    from evilspectra.tables.inventory import run_folders

    if summary and form == "md":
        raise BadInput("--summary has no Markdown: leave out --format md, or take --each")
    if summary is None:
        summary = form == "html" and len(run_folders(store)) > MANY_RUNS
        if summary:
            click.echo(
                f"more than {MANY_RUNS} runs: a page about arms and factors "
                "(--each makes one about each run, --summary chooses this one beforehand)",
                err=True,
            )
    if summary:
        return build_summary(store, out)
    from evilspectra.reporting.build import build_report

    return build_report(store, out, form)
