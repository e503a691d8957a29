"""The verb report. Everything heavy is imported inside the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

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
        "html: one self-contained page. md: Markdown for a paper's appendix, with links to "
        "the figures."
    ),
)
@click.option(
    "--summary/--each",
    default=None,
    help=(
        "A page about arms and factors, or one about each run; without either the first "
        "beyond 400 runs."
    ),
)
@click.option(
    "--outcome",
    metavar="COLUMN",
    help=(
        "What a table's runs are compared by; without it the first known outcome that it has. "
        "Of a store it is the mean alignment, or the drift where nothing was judged."
    ),
)
@click.option(
    "--column",
    "columns",
    metavar="OURS=THEIRS",
    multiple=True,
    help="A table's column under another name, such as optimizer=opt_name. Repeatable.",
)
def report(
    source: Path,
    out: Path | None,
    form: str,
    summary: bool | None,
    outcome: str | None,
    columns: Sequence[str],
) -> None:
    """Write a report: what the numbers say, statistics, figures (also as SVG, PNG and PDF), methods.

    STORE_OR_TABLE is a folder of runs, or a .csv or .parquet file with a row per run that other
    tools made.
    """
    if not source.is_file() and not (source.suffix in (".csv", ".parquet") and not source.exists()):
        if columns or outcome:
            raise BadInput(
                f"--{'column' if columns else 'outcome'} is for tables of other tools, and "
                f"{source} is no such file: leave it out, or name a .csv or .parquet file"
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
    """A page about each run, or, of very many, about arms and factors."""
    from evilspectra.reporting.large import MANY_RUNS, build_summary
    from evilspectra.tables.inventory import run_folders

    if summary and form == "md":
        raise BadInput("--summary has no Markdown: leave out --format md, or take --each")
    if summary is None:
        summary = form == "html" and len(run_folders(store)) > MANY_RUNS
        if summary:
            click.echo(
                (
                    f"more than {MANY_RUNS} runs: a page about arms and factors (--each makes one "
                    "about each run, --summary says so beforehand)"
                ),
                err=True,
            )
    if summary:
        return build_summary(store, out)
    from evilspectra.reporting.build import build_report

    return build_report(store, out, form)
