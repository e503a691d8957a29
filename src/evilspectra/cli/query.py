"""The command `query`: SQL over a store, to the terminal or a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evilspectra.cli.options import QUIET, progress
from evilspectra.errors import BadInput, listing

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("csv", "json", "parquet")
#: Rows of a result that a terminal gets.
_ROWS_SHOWN = 1000


class _QueryCommand(click.Command):
    """A command whose help ends with views and examples, which are imported for the help only."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from evilspectra.tables.query import EXAMPLES
        from evilspectra.tables.views import ABOUT

        examples = "\n".join(_example(sql) for sql in EXAMPLES)
        self.epilog: str | None = f"\b\nViews: {', '.join(ABOUT)}.\n\n\b\nExamples:\n{examples}"
        super().format_epilog(ctx, formatter)


def _example(sql: str) -> str:
    quote = "'" if '"' in sql else '"'
    return f"  evilspectra query {quote}{sql}{quote}"


@click.command("query", cls=_QueryCommand)
@click.argument("sql", metavar="SQL", required=False)
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The store, an experiment's folder, or one run's.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", *FORMATS]),
    help="Without it: by the ending of --out, or else a table.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write the result to this file instead of printing it.",
)
@click.option("--views", is_flag=True, help="List the views and their columns, and run no query.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@QUIET
def query_verb(
    sql: str | None,
    store: Path,
    form: str | None,
    out: Path | None,
    views: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Ask a store in SQL: one SELECT over views of all its runs, finished or under way.

    Nothing but the store's tables can be read, and nothing can be changed. The first question about
    `runs`, `checkpoints`, `rates` or `excluded` reads every run once and keeps the result in
    STORE/.index, which may be removed at any time.
    """
    from evilspectra.store.files import write_atomically
    from evilspectra.tables.query import query
    from evilspectra.tables.rowtext import as_bytes
    from evilspectra.tables.views import view_columns

    form = _form("json" if as_json else form, out)
    if views:
        columns = view_columns()
        click.echo(json.dumps(columns, indent=2) if form == "json" else _described(columns))
        return
    if sql is None:
        raise click.UsageError(
            'Give a query, such as "SELECT run, status FROM runs", or --views to see what there is.'
        )
    table = query(store, sql, progress(quiet))
    if out is None:
        _print(table, form)
    else:
        write_atomically(out, lambda path: path.write_bytes(as_bytes(table, form)), "--out")
        click.echo(f"{len(table):,} row{'' if len(table) == 1 else 's'}, written to {out}")


def _form(form: str | None, out: Path | None) -> str:
    """The format of the result: the option's, or by the ending of the file."""
    if form is None and out is not None:
        form = out.suffix.lower().lstrip(".")
        if form not in FORMATS:
            raise BadInput(
                f"--out {out} has no ending that names a format: "
                f"end it in {listing(f'.{name}' for name in FORMATS)}, or give --format"
            )
    if form == "parquet" and out is None:
        raise BadInput("--format parquet is for a file: name one with --out FILE")
    return form or "table"


def _print(table: pa.Table, form: str) -> None:
    from evilspectra.tables.rowtext import as_bytes, as_text

    if form != "table":
        click.echo(as_bytes(table, form).decode(), nl=False)
        return
    click.echo(as_text(table.slice(0, _ROWS_SHOWN)))
    if len(table) > _ROWS_SHOWN:
        click.echo(
            f"{len(table):,} rows, the first {_ROWS_SHOWN:,} shown: "
            "--format csv or --out FILE gives all"
        )


def _described(views: Mapping[str, Mapping[str, str]]) -> str:
    """The views in Markdown."""
    from evilspectra.tables.views import ABOUT

    parts: list[str] = []
    for view, kinds in views.items():
        parts += [
            f"## {view}",
            "",
            ABOUT[view],
            "",
            "| column | type |",
            "|---|---|",
            *(f"| `{name}` | {kind} |" for name, kind in kinds.items()),
            "",
        ]
    return "\n".join(parts).rstrip()
