"""The runs of a store as rows of the report, and their tables in one frame each. No torch."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from evilspectra.errors import BadInput
from evilspectra.evaluation.measured import beyond_control, measured
from evilspectra.evaluation.run_rates import counting, rates
from evilspectra.evaluation.summary import summarise
from evilspectra.intervals import Interval
from evilspectra.reporting.arm_claims import arm_claims, page_claims
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.figures.charts import Tables
from evilspectra.reporting.figures.frames import frames
from evilspectra.reporting.figures.palette import Arms
from evilspectra.reporting.outcomes import checkpoints_table, outcome_of, runs_table
from evilspectra.reporting.page.details import Spectra, read_spectra
from evilspectra.reporting.statistics import statistics_of
from evilspectra.store.origin import origin
from evilspectra.store.records import TABLES
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder, Store

#: Threads that read runs and write figures: most of it is done outside Python's lock.
WORKERS = min(8, os.cpu_count() or 1)


def read_rows(root: str | os.PathLike[str]) -> list[Row]:
    """The runs below `root`, labelled by name, or by experiment and name if there are several."""
    root = Path(root)
    runs = Store(root).runs()
    if not runs:
        raise BadInput(
            f"{root} holds no runs: name a store, an experiment or a run's folder, or make runs"
            " with `evilspectra train` first"
        )
    alone = len({run.path.parent for run in runs}) == 1
    with ThreadPoolExecutor(WORKERS) as pool:
        rows = list(pool.map(lambda run: _row(root, run, alone), runs))
        beyond = pool.map(lambda row: _beyond(root, row, rows), rows)
        return [replace(row, beyond=interval) for row, interval in zip(rows, beyond, strict=True)]


def _row(root: Path, run: RunFolder, alone: bool) -> Row:
    """A run; `alone`: whether all runs are of one experiment, so that their names are enough."""
    folder = PurePosixPath(run.path.relative_to(root).as_posix())
    try:
        provenance = run.provenance()
    except BadInput:  # a run that was stopped before it wrote one; every value is then a dash
        provenance = {}
    results = counting(Results(run.path))
    measurements, rated = measured(results), rates(results)
    values = {
        "probe": measurements.drift,
        "capability": measurements.capability,
        "ordinary": measurements.ordinary,
        "answers": measurements.answers,
    }
    instruments = {
        table: instrument
        for table, value in values.items()
        if value is not None and (instrument := chosen(results, table))
    }
    run_origin = origin(run)
    return Row(
        _label(run, folder, alone),
        folder,
        run_origin,
        provenance,
        summarise(run, measurements, rated, run_origin),
        measurements,
        instruments,
        rated=rated,
    )


def _label(run: RunFolder, folder: PurePosixPath, alone: bool) -> str:
    # the tables of another trainer lie in a folder of its output
    output = folder.parent if run.is_outside else folder
    if not alone and output.parts:
        return str(output)
    return run.name if run.is_outside else run.path.resolve().name


def _beyond(root: Path, row: Row, rows: list[Row]) -> Interval | None:
    """A run's drift minus that of the controls on the same base."""
    if row.summary.control:
        return None
    base = row.ground()["base model"]
    controls = [
        Results(root / other.folder)
        for other in rows
        if other.summary.control and other.ground()["base model"] == base
    ]
    return beyond_control(Results(root / row.folder), controls)


def read_tables(root: str | os.PathLike[str], rows: list[Row]) -> Tables:
    """The data of the figures and the panel: the tables of all runs in one frame each.

    Of the spectra they hold the last step, and medians of the steps before.
    """
    root = Path(root)
    with ThreadPoolExecutor(WORKERS) as pool:
        read = list(pool.map(_read, rows, Store(root).runs()))
    joined = {
        name: _joined([tables[name] for tables, _ in read]) for name in (*TABLES, "evolution")
    }
    runs = runs_table(rows)
    outcome = outcome_of(runs)
    checkpoints, rated = checkpoints_table(rows, root)
    paths = checkpoints
    if len(checkpoints):
        judged = checkpoints.dropna(subset=["mean_alignment"])
        paths = judged.rename(columns={"train_loss": "loss"})
    statistics = None
    if outcome:
        arms = Arms.of(runs).names
        judge_rates = rated if len(rated) else None
        statistics = statistics_of(
            runs,
            outcome.name,
            arms,
            checkpoints,
            judge_rates,
            lambda analysis: arm_claims(rows, runs, analysis).claims,
        )
    ranks = {row.origin.rank for row in rows}
    return Tables(
        runs,
        rank=ranks.pop() if len(ranks) == 1 else None,
        outcome=outcome,
        spectra_of_runs=tuple(spectra for _, spectra in read),
        paths=paths,
        statistics=statistics,
        claims=page_claims(rows, runs, statistics.analysis if statistics else None),
        **joined,
        **frames(rows),
    )


def _joined(parts: list[Any]) -> Any:
    """The frames in one; an empty one of the same columns where all are empty."""
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


def _read(row: Row, run: RunFolder) -> tuple[dict[str, Any], Spectra | None]:
    """A run's tables under its label and arm, and the spectra that the panel holds.

    Of the spectra's table only the last step is left; `evolution` has the steps before.
    """
    tables: dict[str, Any] = {name: run.read(name) for name in TABLES}
    spectra, tables["evolution"] = read_spectra(tables["spectra"], tables["measures"])
    steps = tables["spectra"]["step"]
    tables["spectra"] = tables["spectra"][steps == steps.max()]
    labelled = {
        name: table.assign(run=row.label, arm=row.summary.arm) for name, table in tables.items()
    }
    return labelled, spectra
