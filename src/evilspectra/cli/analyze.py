"""The command `analyze`: statistics of an outcome, from a store or from a table of other tools.

Everything heavy is imported inside the command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from evilspectra.cli.options import COLUMNS, JSON
from evilspectra.errors import BadInput, cannot_write, first_line, listing

#: Suffixes of tables that can be read.
TABLES = (".csv", ".parquet")


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
@COLUMNS
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
    """Analyse what explains an outcome, with intervals, and sentences on what is shown.

    The parts are design, variance, loss, flatness and stability. STORE_OR_TABLE is a folder of
    runs, or a .csv or .parquet file with a row per run. docs/statistics.md explains every number.
    """
    from evilspectra.analysis.analyse import analyse
    from evilspectra.analysis.outcome import renamed

    runs, checkpoints, rates = _frames(source, by_checkpoint)
    mapping = mapping_of(columns)
    runs = renamed(runs, mapping)
    if by_checkpoint and source.is_file():
        checkpoints, runs = runs, _last_rows(runs, source)
    analysis = analyse(runs, outcome, list(factors) or None, checkpoints, rates=rates, **options)
    text = _json(analysis) if as_json else _text(analysis)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(error, out, "--out") from None


def _json(analysis: Any) -> str:
    return json.dumps(analysis.to_dict(), indent=2, ensure_ascii=False) + "\n"


def _text(analysis: Any) -> str:
    import io

    from rich.console import Console

    from evilspectra.cli.print_analysis import print_analysis

    page = io.StringIO()
    print_analysis(analysis, Console(file=page, width=140))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _frames(source: Path, by_checkpoint: bool) -> tuple[Any, Any, Any]:
    """Runs, checkpoints and rates of a store; of a table only the runs."""
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
            f"there is no folder or file {path}: "
            f"name a folder of runs, or a table ({listing(TABLES)})."
        )
    if path.suffix.lower() not in TABLES:
        raise BadInput(
            f"{path} is no table that can be read: a table's name ends in {' or '.join(TABLES)}."
        )
    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError, UnicodeError) as error:
        raise BadInput(
            f"{path} cannot be read as a table ({first_line(error)}): "
            "write it again as CSV with a header, or as Parquet."
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
    pairs = [column.partition("=") for column in columns]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            text = f"{ours}{equals}{theirs}"
            raise BadInput(f"--column takes OURS=THEIRS, such as optimizer=opt_name, not '{text}'.")
    return {ours: theirs for ours, _, theirs in pairs}


def _last_rows(frame: Any, source: Path) -> Any:
    """Each run's last step of a table of checkpoints."""
    lacking = [name for name in ("run", "step") if name not in frame]
    if lacking:
        raise BadInput(
            f"{source} has no column {' and no column '.join(lacking)}: "
            "--by-checkpoint needs both, and --column names them."
        )
    by_run = frame.sort_values("step", kind="stable").groupby("run", sort=False)
    return by_run.tail(1).reset_index(drop=True)
