"""The command `analyze`: statistics of an outcome, from a store or from a table of other tools.

Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.options import COLUMNS, JSON
from evilspectra.errors import cannot_write

if TYPE_CHECKING:
    from evilspectra.api.analyses import Analysis


@click.command()
@click.argument("source", metavar="STORE_OR_TABLE", type=click.Path(path_type=Path))
@click.option(
    "--outcome",
    metavar="COLUMN",
    help=(
        "The outcome to explain; without it the first of mean_alignment, misalignment, drift, "
        "stable_rank, capability, heldout_loss, train_loss that the runs have."
    ),
)
@click.option(
    "--factor",
    "factors",
    metavar="COLUMN",
    multiple=True,
    help=(
        "A factor that may explain it; without it those of optimizer, base, data, batch_size, "
        "flatness_weight, lora.rank that vary. Repeatable."
    ),
)
@click.option(
    "--order",
    type=click.IntRange(1, 4),
    default=2,
    show_default=True,
    help="Interactions of up to this many factors.",
)
@click.option(
    "--loss",
    metavar="COLUMN",
    default="train_loss",
    show_default=True,
    help="The loss whose logarithm is used.",
)
@click.option(
    "--at-loss",
    type=click.FloatRange(min=0, min_open=True),
    help="Compare at this loss; without it in the middle of the range that all groups have.",
)
@click.option(
    "--by-checkpoint",
    is_flag=True,
    help="Partial R² at every checkpoint. A table then has columns run and step, one row each.",
)
@click.option(
    "--blocks",
    metavar="COLUMN",
    help="Permutations exchange runs only within the levels of this column.",
)
@click.option(
    "--permutations",
    type=click.IntRange(0, 100000),
    default=1999,
    show_default=True,
    help="Draws of the permutation tests; 0: none.",
)
@click.option(
    "--difference",
    "differences",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="How many seeds would show this difference? Repeatable.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0, min_open=True),
    help=(
        "The largest difference between two groups that is of no importance (log odds for rates); "
        "pairs shown to differ by less are named. Each outcome has a default."
    ),
)
@COLUMNS
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write to this file instead of the terminal."
)
@JSON
def analyze(
    source: Path,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Analyse what explains an outcome, with intervals, and sentences on what is shown.

    The parts are design, variance, loss, flatness and stability. STORE_OR_TABLE is a folder of
    runs, or a .csv or .parquet file with a row per run. docs/statistics.md explains every number.
    """
    from evilspectra.api.analyses import analyze as analyze_runs

    analysis = analyze_runs(source, **options)
    text = _json(analysis) if as_json else _text(analysis)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(error, out, "--out") from None


def _json(analysis: Analysis) -> str:
    return json.dumps(analysis.flat(), indent=2, ensure_ascii=False) + "\n"


def _text(analysis: Analysis) -> str:
    import io

    from rich.console import Console

    from evilspectra.cli.print_analysis import print_analysis

    page = io.StringIO()
    print_analysis(analysis.parts, Console(file=page, width=140))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"
