"""Lines and tables on a terminal, as plain text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def wide_console(console: Console | None, width: int) -> Console:
    """The console (by default a new one), at least `width` columns wide.

    A line that wraps is better than a number that is cut.
    """
    console = console or Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, width)
    return console


def plain_table() -> Table:
    """An empty table without a frame."""
    return Table(box=None, pad_edge=False, header_style="bold")


def print_line(console: Console, text: str) -> None:
    """Prints a line without reading markup in it and without wrapping it."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Prints a table without cutting its cells."""
    console.print(table, no_wrap=True, crop=False, markup=False, highlight=False)
