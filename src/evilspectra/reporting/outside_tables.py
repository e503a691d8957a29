"""A report on one table of runs that other tools made: what of it the figures and statistics know, and how its rows are shown. No torch.

A row is a run. Columns that are known here have the names of `tidy.runs_frame` (docs/tables.md), or are mapped to them; all others are shown as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evilspectra.analysis.outcome import BETTER, LABELS, choose, numbers, renamed
from evilspectra.reporting.figures.charts import Tables
from evilspectra.reporting.figures.effects import frames
from evilspectra.reporting.figures.palette import Arms, Frame
from evilspectra.reporting.outcomes import ALIGNMENT, DRIFT, Outcome, short_name, size_of
from evilspectra.reporting.page.cells import NONE
from evilspectra.reporting.statistics import statistics_of
from evilspectra.store.files import as_table
from evilspectra.store.records import TABLES
from evilspectra.text import printable

#: Columns that a figure may use, and what stands in them where the table has none.
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
    """What figures and statistics need of the table; without an optimiser all runs are one arm.

    Raises:
        BadInput: a mapped column, or the outcome, is not there or holds no numbers; or no column is a known outcome.
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
    chosen = next(
        (replace(one, note="") for one in (ALIGNMENT, DRIFT) if one.name == name), None
    ) or Outcome(
        name,
        LABELS.get(name, name),
        name.replace("_", " "),
        ".3~g",
        {1: True, -1: False}.get(BETTER.get(name, 0)),
    )
    empty = {
        table: as_table([], kind).to_pandas().assign(run="", arm="")
        for table, kind in TABLES.items()
    }
    made_up = [column for column in (*_USED, "optimizer") if column not in frame]
    statistics = statistics_of(runs.drop(columns=made_up), name, Arms.of(runs).names)
    return Tables(
        runs,
        rank=None,
        outcome=chosen,
        statistics=statistics,
        spectra_of_runs=(None,) * len(runs),
        **empty,
        **frames([]),
    )


def _labels(runs: Frame) -> list[str]:
    """The column `run`, or the row's number; made different where rows share one."""
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
    """Column, heading, format ("text" or nothing) and meaning: the outcome in front, then the table's own columns, as many as a page is wide."""
    name = tables.outcome.name if tables.outcome else ""
    beside = {
        "run",
        "arm",
        name,
        *(theirs for ours, theirs in mapping.items() if ours in ("run", name)),
    }
    own = [str(column) for column in frame.columns if str(column) not in beside]
    found = [
        (column, "" if pd.api.types.is_numeric_dtype(tables.runs[column]) else "text")
        for column in [name, *own][:MOST_COLUMNS]
    ]
    return [
        (column, printable(column, 40), form, LABELS.get(column, "As in the table"))
        for column, form in found
    ]


def cells(row: Mapping[str, Any], shown: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    """Text and sorting value of a run's cells."""
    found = [(row.get(column), form) for column, _, form, _ in shown]
    return [
        {
            "name": form or "number",
            "text": said(value),
            "below": "",
            "sort": "" if value is None or value != value else said(value) if form else value,
        }
        for value, form in found
    ]


def said(value: Any) -> str:
    """A value of somebody's table, safe to show."""
    if value is None or value != value:
        return NONE
    return (
        f"{value:.5g}".replace("-", "−") if isinstance(value, float) else printable(str(value), 80)
    )


def described(tables: Tables, frame: Frame) -> list[dict[str, Any]]:
    """Of every run what its panel says: all columns of the table."""
    rows = frame.to_dict("records")
    return [
        {
            "run": run,
            "arm": arm,
            "data": data,
            "state": "done",
            "facts": [[printable(str(name), 40), said(value)] for name, value in row.items()],
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
    found = [
        ("Table", path.name),
        (
            "Runs",
            f"{len(runs)} in {runs['arm'].nunique()} arm{'' if runs['arm'].nunique() == 1 else 's'}",
        ),
        ("Outcome", tables.outcome.title if tables.outcome else NONE),
    ]
    return found + (
        [("Data", ", ".join(dict.fromkeys(runs["dataset"])))]
        if runs["dataset"].nunique() <= 4
        else []
    )
