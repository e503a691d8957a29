"""The command `report`. Everything heavy is imported inside the command."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import click

from evilspectra.cli.options import COLUMNS


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
    form: Literal["html", "md"],
    summary: bool | None,
    outcome: str | None,
    columns: Sequence[str],
) -> None:
    """Write a report: findings, statistics, figures and methods.

    The figures are also written as SVG, PNG and PDF. STORE_OR_TABLE is a folder of runs, or a .csv
    or .parquet file with a row per run that other tools made.
    """
    from evilspectra.api.reports import report as write_report

    written = write_report(
        source,
        out=out,
        format=form,
        summary=summary,
        outcome=outcome,
        columns=columns,
        note=partial(click.echo, err=True),
    )
    click.echo(written.path)
