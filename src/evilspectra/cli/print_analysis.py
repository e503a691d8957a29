"""An analysis as text on a terminal: the sentences, then tables."""

from __future__ import annotations

from rich.console import Console

from evilspectra.analysis.result import Analysis
from evilspectra.analysis.sentences import paragraphs
from evilspectra.analysis.tables import StatisticsTable, statistics_tables
from evilspectra.terminal import plain_table, print_line, print_table, wide_console

_WIDTH = 120


def print_analysis(analysis: Analysis, console: Console | None = None) -> None:
    """Print the sentences, then each part as a table.

    For a part that the data do not allow, a sentence gives the reason.
    """
    console = wide_console(console, _WIDTH)
    print_line(
        console,
        f"{analysis.runs} runs · outcome: {analysis.label} · "
        f"factors: {', '.join(analysis.factors) or 'none'} · intervals: 95 %",
    )
    for topic, texts in paragraphs(analysis.sentences).items():
        print_line(console, f"\n{topic}")
        for text in texts:
            print_line(console, f"  {text}")
    for table in statistics_tables(analysis, detailed=True):
        _print_statistics(console, table)


def _print_statistics(console: Console, statistics: StatisticsTable) -> None:
    """Prints a table below an empty line, with its title above and its notes below."""
    table = plain_table()
    table.title = statistics.title
    table.title_justify, table.title_style = "left", "bold"
    for column, heading in enumerate(statistics.headings):
        table.add_column(heading, justify="left" if column == 0 else "right", no_wrap=True)
    for row in statistics.rows:
        table.add_row(*row)
    console.print()
    print_table(console, table)
    for note in statistics.notes:
        print_line(console, note)
