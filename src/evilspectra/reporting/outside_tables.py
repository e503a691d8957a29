"""A report on a table of runs from other tools: its figures' data, and its rows. No torch.

A row is a run. Columns that are known here have the names of `tidy.runs_frame` (docs/tables.md), or
are mapped to them; all others are shown as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evilspectra.analysis.outcome import BETTER, LABELS, choose, numbers, renamed
from evilspectra.numbers import DASH, minus
from evilspectra.reporting.figures.charts import Tables
from evilspectra.reporting.figures.frames import frames
from evilspectra.reporting.figures.palette import Arms, Frame
from evilspectra.reporting.outcomes import ALIGNMENT, DRIFT, Outcome, short_name, size_of
from evilspectra.reporting.statistics import statistics_of
from evilspectra.store.files import as_table
from evilspectra.store.records import TABLES
from evilspectra.text import printable

#: Columns that a figure may use, and their value where the table has none.
_USED: dict[str, Any] = {
    "status": "done",
    "control": False,
    "flatness_weight": 0.0,
    "seed": None,
    "misalignment": None,
    "capability": None,
    "stable_rank": None,
    "heldout_loss": None,
    "train_loss": None,
    "lr": None,
}
#: Columns of a page's table that are wide enough; the others are in the panel alone.
MOST_COLUMNS = 14


def tables_of(frame: Frame, mapping: Mapping[str, str], outcome: str | None = None) -> Tables:
    """The data of figures and statistics; without an optimiser all runs are one arm.

    Raises:
        BadInput: a mapped column, or the outcome, is not there or holds no numbers; or no column is
            a known outcome.
    """
    frame = renamed(frame, mapping)
    name = choose(frame, outcome)
    runs = frame.assign(**{column: value for column, value in _USED.items() if column not in frame})
    runs[name] = numbers(runs, name)
    for column in (
        "flatness_weight",
        "train_loss",
        "heldout_loss",
        "stable_rank",
        "capability",
        "misalignment",
        "lr",
        "seed",
    ):
        runs[column] = numbers(runs, column)
    runs["flatness_weight"] = runs["flatness_weight"].fillna(0.0)
    runs["control"] = [str(value).lower() in ("true", "1", "1.0") for value in runs["control"]]
    runs["optimizer"] = (
        [printable(str(value), 60) for value in runs["optimizer"]]
        if "optimizer" in runs
        else "all runs"
    )
    runs["run"] = _labels(runs)
    weights = [f" + flatness {weight:g}" if weight else "" for weight in runs["flatness_weight"]]
    arms = [
        f"{optimizer}{weight}" for optimizer, weight in zip(runs["optimizer"], weights, strict=True)
    ]
    runs["arm"] = [
        f"control ({arm})" if control else arm
        for arm, control in zip(arms, runs["control"], strict=True)
    ]
    runs["dataset"] = (
        [printable(short_name(str(value)), 60) for value in runs["data"]]
        if "data" in runs
        else "all data"
    )
    runs["model"] = (
        [printable(short_name(str(value)), 60) for value in runs["base"]]
        if "base" in runs
        else "not known"
    )
    runs["size"] = [size_of(str(value)) for value in runs["base"]] if "base" in runs else np.nan
    losses = runs["train_loss"].where(runs["train_loss"] > 0)
    runs["log_loss"] = np.log(losses)
    runs["twin"] = None
    empty = {
        table: as_table([], kind).to_pandas().assign(run="", arm="")
        for table, kind in TABLES.items()
    }
    made_up = [column for column in (*_USED, "optimizer") if column not in frame]
    statistics = statistics_of(runs.drop(columns=made_up), name, Arms.of(runs).names)
    return Tables(
        runs,
        rank=None,
        outcome=_outcome(name),
        statistics=statistics,
        spectra_of_runs=(None,) * len(runs),
        **empty,
        **frames([]),
    )


def _outcome(name: str) -> Outcome:
    """A column as an outcome; the notes on measurements of a store do not apply to it."""
    for outcome in (ALIGNMENT, DRIFT):
        if outcome.name == name:
            return replace(outcome, note="")
    return Outcome(
        name,
        LABELS.get(name, name),
        name.replace("_", " "),
        ".3~g",
        {1: True, -1: False}.get(BETTER.get(name, 0)),
    )


def _labels(runs: Frame) -> list[str]:
    """The column `run`, or the row's number; labels that several rows share get the number, too."""
    named = (
        [printable(str(value), 120) for value in runs["run"]]
        if "run" in runs
        else [f"row {number + 1}" for number in range(len(runs))]
    )
    return [
        name if named.count(name) == 1 else f"{name} (row {number + 1})"
        for number, name in enumerate(named)
    ]


def shown_columns(
    frame: Frame, mapping: Mapping[str, str], tables: Tables
) -> list[tuple[str, str, str, str]]:
    """Column, heading, format ("text" or nothing) and meaning.

    The outcome is in front, then come the table's own columns, as many as a page is wide.
    """
    name = tables.outcome.name if tables.outcome else ""
    shown_elsewhere = {
        "run",
        "arm",
        name,
        *(theirs for ours, theirs in mapping.items() if ours in ("run", name)),
    }
    own = [str(column) for column in frame.columns if str(column) not in shown_elsewhere]
    columns = [
        (column, "" if pd.api.types.is_numeric_dtype(tables.runs[column]) else "text")
        for column in [name, *own][:MOST_COLUMNS]
    ]
    return [
        (column, printable(column, 40), form, LABELS.get(column, "As in the table"))
        for column, form in columns
    ]


def cells(row: Mapping[str, Any], columns: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    """Text and sorting value of a run's cells."""
    cells = []
    for column, _, form, _ in columns:
        value = row.get(column)
        text = printed(value)
        sort = text if form else value
        cells.append(
            {
                "name": form or "number",
                "text": text,
                "below": "",
                "sort": "" if _is_missing(value) else sort,
            }
        )
    return cells


def printed(value: Any) -> str:
    """A value from another tool's table, safe to show."""
    if _is_missing(value):
        return DASH
    if isinstance(value, float):
        return minus(f"{value:.5g}")
    return printable(str(value), 80)


def _is_missing(value: Any) -> bool:
    """Whether a value is None or nan."""
    return value is None or value != value


def described(tables: Tables, frame: Frame) -> list[dict[str, Any]]:
    """The content of every run's panel: all columns of the table."""
    rows = frame.to_dict("records")
    return [
        {
            "run": run,
            "arm": arm,
            "data": data,
            "state": "done",
            "facts": [[printable(str(name), 40), printed(value)] for name, value in row.items()],
            "loss": [],
            "heldout": [],
            "drift": [],
            "mean_alignment": [],
        }
        for run, arm, data, row in zip(
            tables.runs["run"], tables.runs["arm"], tables.runs["dataset"], rows, strict=True
        )
    ]


def facts(path: Path, tables: Tables) -> list[tuple[str, str]]:
    """Label and text of the line under the title."""
    runs = tables.runs
    arms = runs["arm"].nunique()
    labelled = [
        ("Table", path.name),
        ("Runs", f"{len(runs)} in {arms} arm{'' if arms == 1 else 's'}"),
        ("Outcome", tables.outcome.title if tables.outcome else DASH),
    ]
    if runs["dataset"].nunique() <= 4:
        labelled.append(("Data", ", ".join(dict.fromkeys(runs["dataset"]))))
    return labelled
