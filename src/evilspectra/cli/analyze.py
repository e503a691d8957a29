"""The verb analyze: what goes with an outcome, over a store or over a table of runs made with other
tools. Everything heavy is imported inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from evilspectra.cli.options import JSON
from evilspectra.errors import BadInput, cannot_write, first_line, listing

#: Suffixes of tables that can be read.
TABLES = (".csv", ".parquet")


@click.command()
@click.argument("source", metavar="STORE_OR_TABLE", type=click.Path(path_type=Path))
@click.option(
    "--outcome",
    metavar="COLUMN",
    help=(
        "What is explained; without it the first of mean_alignment, misalignment, drift, "
        "stable_rank, capability, heldout_loss, train_loss that the runs have."
    ),
)
@click.option(
    "--factor",
    "factors",
    metavar="COLUMN",
    multiple=True,
    help=(
        "What explains it; without it those of optimizer, base, data, batch_size, "
        "flatness_weight, lora.rank that vary. Repeatable."
    ),
)
@click.option(
    "--order",
    type=click.IntRange(1, 4),
    default=2,
    show_default=True,
    help="Interactions of up to so many factors.",
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
    "at",
    type=click.FloatRange(min=0, min_open=True),
    help="Compare at this loss; without it in the middle of the range that all groups have.",
)
@click.option(
    "--by-checkpoint",
    is_flag=True,
    help="Partial R² at every checkpoint. A table then has columns run and step, one row each.",
)
@click.option(
    "--blocks", metavar="COLUMN", help="Permutations exchange runs within its levels only."
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
    "--column",
    "columns",
    metavar="OURS=THEIRS",
    multiple=True,
    help="A table's column under another name, such as optimizer=opt_name. Repeatable.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write to this file instead of the terminal."
)
@JSON
def analyze(
    source: Path,
    outcome: str | None,
    factors: Sequence[str],
    by_checkpoint: bool,
    columns: Sequence[str],
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """What goes with an outcome: design, variance, loss, flatness, stability, each with intervals, and
    sentences on what is shown.

    STORE_OR_TABLE is a folder of runs, or a .csv or .parquet file with a row per run.
    docs/statistics.md says what every number is.
    """
    from evilspectra.analysis.analyse import analyse
    from evilspectra.analysis.outcome import renamed

    runs, checkpoints, rates = _frames(source, by_checkpoint)
    mapping = mapping_of(columns)
    runs = renamed(runs, mapping)
    if by_checkpoint and source.is_file():
        checkpoints, runs = runs, _last_rows(runs, source)
    found = analyse(runs, outcome, list(factors) or None, checkpoints, rates=rates, **options)
    text = (
        json.dumps(found.to_dict(), indent=2, ensure_ascii=False) + "\n"
        if as_json
        else _text(found, by_checkpoint)
    )
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(error, out, "--out") from None


def _text(found: Any, by_checkpoint: bool) -> str:
    import io

    from rich.console import Console

    from evilspectra.cli.print_analysis import print_analysis

    page = io.StringIO()
    print_analysis(found, Console(file=page, width=140), by_checkpoint)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _frames(source: Path, by_checkpoint: bool) -> tuple[Any, Any, Any]:
    """Runs, checkpoints and rates of a store; the runs alone of a table."""
    if source.is_dir():
        from evilspectra.tables.tidy import checkpoints_frame, rates_frame, runs_frame

        return (
            runs_frame(source),
            checkpoints_frame(source) if by_checkpoint else None,
            rates_frame(source),
        )
    return read_table(source), None, None


def read_table(path: Path) -> Any:
    """A frame of a .csv or .parquet file.

    Raises:
        BadInput: there is no such file, it is no table, or it has no rows.
    """
    import pandas as pd

    if not path.is_file():
        raise BadInput(
            f"there is no folder or file {path}: name a folder of runs, or a table "
            f"({listing(TABLES)})."
        )
    if path.suffix.lower() not in TABLES:
        raise BadInput(
            f"{path} is no table that can be read: a table's name ends in {' or '.join(TABLES)}."
        )
    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError, UnicodeError) as error:
        raise BadInput(
            f"{path} cannot be read as a table ({first_line(error)}): write it again as CSV with "
            "a header, or as Parquet."
        ) from None
    if frame.empty:
        raise BadInput(f"{path} has no rows: it needs one per run.")
    return frame


def mapping_of(columns: Sequence[str]) -> Mapping[str, str]:
    """Our name of a column → theirs, from `--column OURS=THEIRS`.

    >>> mapping_of(["optimizer=opt"])
    {'optimizer': 'opt'}

    Raises:
        BadInput: one is not of that form.
    """
    pairs = [one.partition("=") for one in columns]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise BadInput(
                "--column takes OURS=THEIRS, such as optimizer=opt_name, not "
                f"'{ours}{equals}{theirs}'."
            )
    return {ours: theirs for ours, _, theirs in pairs}


def _last_rows(frame: Any, source: Path) -> Any:
    """Each run's last step of a table of checkpoints."""
    lacking = [name for name in ("run", "step") if name not in frame]
    if lacking:
        raise BadInput(
            f"{source} has no column {' and no column '.join(lacking)}: --by-checkpoint needs "
            "both, and --column names them."
        )
    return (
        frame.sort_values("step", kind="stable")
        .groupby("run", sort=False)
        .tail(1)
        .reset_index(drop=True)
    )
