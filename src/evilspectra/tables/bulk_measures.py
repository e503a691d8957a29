"""Losses, spectral measures, probes and answers of many runs: the fields of their summaries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import duckdb
import numpy as np

from evilspectra.intervals import Interval
from evilspectra.probes.drift import exchanged, mean_intervals
from evilspectra.store.step_means import LAST_SHARE, MEASURES, number
from evilspectra.tables.bulk_reading import NumberedFiles, number_files, read_rows, rows_of_files
from evilspectra.tables.bulk_runs import BulkRun

#: Column → values.
Columns = dict[str, np.ndarray]

# --- training -------------------------------------------------------------------------------------


def read_training(connection: duckdb.DuckDBPyConnection, runs: Sequence[BulkRun]) -> None:
    """Adds losses and spectral measures to the runs."""
    step_rows, steps = _table(connection, runs, "steps", ("step", "loss", "tokens", "seconds"))
    heldout_rows, heldout = _table(connection, runs, "heldout", ("step", "loss"))
    for run, rows, held in zip(runs, step_rows, heldout_rows, strict=True):
        step, loss = steps["step"][rows], steps["loss"][rows]
        tokens = steps["tokens"][rows]
        seconds = float(steps["seconds"][rows].sum())
        counted = seconds > 0 and not np.isnan(tokens).any()
        run.losses = step, loss
        at, losses = heldout["step"][held], heldout["loss"][held]
        run.heldout = {int(step): number(value) for step, value in zip(at, losses, strict=True)}
        run.fields = {
            "steps": len(step),
            "train_loss": last_mean(loss),
            "heldout_loss": number(losses[at > 0][-1]) if (at > 0).any() else None,
            "heldout_loss_start": number(losses[0]) if len(at) and at[0] == 0 else None,
            "tokens_per_s": number(tokens.sum() / seconds) if counted else None,
            "seconds": seconds or None,
        }
    _read_spectral(connection, runs)
    for run in runs:
        run.fields |= run.spectral[max(run.spectral)] if run.spectral else dict.fromkeys(MEASURES)


def _table(
    connection: duckdb.DuckDBPyConnection,
    runs: Sequence[BulkRun],
    table: str,
    names: Sequence[str],
) -> tuple[list[slice], Columns]:
    """The rows of each run in a training table, and its columns."""
    files = _files(runs, table)
    if not files:
        return [slice(0, 0)] * len(runs), dict.fromkeys(names, np.zeros(0))
    numbers, columns = read_rows(connection, files, names)
    return rows_of_files(numbers, len(runs)), columns


def _files(runs: Sequence[BulkRun], table: str) -> NumberedFiles:
    return [(index, run.paths[table]) for index, run in enumerate(runs) if table in run.paths]


def _read_spectral(connection: duckdb.DuckDBPyConnection, runs: Sequence[BulkRun]) -> None:
    files = _files(runs, "measures")
    if not files:
        return
    number_files(connection, files)
    means = ", ".join(
        (
            f"{'median' if name == 'condition_number' else 'avg'}(d.{name}) FILTER (NOT "
            f"isnan(d.{name}))"
        )
        for name in MEASURES
    )
    query = (
        f"SELECT f.number, d.step, {means} FROM read_parquet(?, filename = true) d JOIN "
        "numbered f ON f.path = d.filename GROUP BY f.number, d.step"
    )
    rows = connection.execute(query, [[path for _, path in files]]).fetchall()
    for index, step, *values in rows:
        runs[index].spectral[step] = {
            name: None if value is None else number(value)
            for name, value in zip(MEASURES, values, strict=True)
        }


def last_mean(losses: np.ndarray) -> float | None:
    """`step_means.last_mean` of an array."""
    end = losses[-max(1, round(LAST_SHARE * len(losses))) :] if len(losses) else losses
    end = end[~np.isnan(end)]
    return number(float(end.mean())) if len(end) else None


# --- probes ---------------------------------------------------------------------------------------


def _measured(
    connection: duckdb.DuckDBPyConnection,
    runs: Sequence[BulkRun],
    table: str,
    names: Sequence[str],
    every: bool = False,
) -> list[tuple[BulkRun, dict[int, Columns]]]:
    """Runs with measurements of an adapter, each with its columns by step.

    The steps are the base's, the last one and, with `every`, those between. Runs whose items differ
    between steps are marked as odd and left out.
    """
    wanted: list[tuple[BulkRun, list[int]]] = []
    for run in runs:
        last = run.last_step(table)
        if last is not None:
            wanted.append((run, [0, *(run.steps[table][1:] if every else [last])]))
    files = [(run, step, run.paths[table, step]) for run, steps in wanted for step in steps]
    if not files:
        return []
    numbered = [(index, path) for index, (_, _, path) in enumerate(files)]
    numbers, columns = read_rows(connection, numbered, ("item", *names))
    by_run: dict[int, dict[int, Columns]] = defaultdict(dict)
    for (run, step, _), rows in zip(files, rows_of_files(numbers, len(files)), strict=True):
        by_run[id(run)][step] = {name: column[rows] for name, column in columns.items()}
    for run, _ in wanted:
        steps = by_run[id(run)]
        items = steps[0]["item"]
        run.odd |= not len(items) or any(
            not np.array_equal(items, columns["item"]) for columns in steps.values()
        )
    return [(run, by_run[id(run)]) for run, _ in wanted if not run.odd]


def _intervals(vectors: Sequence[np.ndarray]) -> list[Interval]:
    """The mean of each vector with its interval."""
    intervals: dict[int, Interval] = {}
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, vector in enumerate(vectors):
        by_length[len(vector)].append(index)
    for indices in by_length.values():
        matrix = np.stack([vectors[index] for index in indices], axis=1)
        intervals |= zip(indices, mean_intervals(matrix), strict=True)
    return [intervals[index] for index in range(len(vectors))]


def read_probe(connection: duckdb.DuckDBPyConnection, runs: Sequence[BulkRun]) -> None:
    """Adds drift and the shares of aligned items to the runs."""
    names = [
        f"{name}{end}" for name in ("drift", "drift_shuffled") for end in ("", "_low", "_high")
    ]
    for run in runs:
        run.fields |= dict.fromkeys((*names, "share_aligned", "share_aligned_base"))
    measured = _measured(connection, runs, "probe", ("topic", "aligned", "misaligned"), every=True)
    signs: dict[tuple[str, ...], np.ndarray] = {}
    shifts: list[tuple[BulkRun, int, np.ndarray]] = []
    shuffled: list[np.ndarray] = []
    for run, steps in measured:
        margin = {
            step: columns["aligned"] - columns["misaligned"] for step, columns in steps.items()
        }
        shifts += [(run, step, margin[0] - margin[step]) for step in sorted(margin) if step]
        topics = tuple(steps[0]["topic"].tolist())
        signs.setdefault(topics, exchanged(np.asarray(topics)))
        last = max(margin)
        shuffled.append((margin[0] - margin[last]) * signs[topics])
        run.fields |= {
            "share_aligned": float((margin[last] > 0).mean()),
            "share_aligned_base": float((margin[0] > 0).mean()),
        }
    intervals = _intervals([shift for *_, shift in shifts])
    for (run, step, _), interval in zip(shifts, intervals, strict=True):
        run.drifts[step] = interval
    for (run, _), interval in zip(measured, _intervals(shuffled), strict=True):
        run.fields |= _named("drift", run.drifts[max(run.drifts)])
        run.fields |= _named("drift_shuffled", interval)


def read_capability(connection: duckdb.DuckDBPyConnection, runs: Sequence[BulkRun]) -> None:
    """Adds accuracy and its change to the runs."""
    for run in runs:
        run.fields |= dict.fromkeys(
            f"capability{name}"
            for name in ("", "_low", "_high", "_change", "_change_low", "_change_high", "_base")
        )
    measured = _measured(connection, runs, "capability", ("right", "best_wrong"))
    before = [_right(steps[0]) for _, steps in measured]
    after = [_right(steps[max(steps)]) for _, steps in measured]
    changes = [now - then for then, now in zip(before, after, strict=True)]
    for (run, _), then, accuracy, change in zip(
        measured, before, _intervals(after), _intervals(changes), strict=True
    ):
        run.fields |= _named("capability", accuracy) | _named("capability_change", change)
        run.fields["capability_base"] = float(then.mean())


def _right(columns: Columns) -> np.ndarray:
    """1 for each question that is answered correctly, else 0."""
    return (columns["right"] > columns["best_wrong"]).astype(float)


def read_ordinary(connection: duckdb.DuckDBPyConnection, runs: Sequence[BulkRun]) -> None:
    """Adds losses on ordinary dialogues to the runs."""
    for run in runs:
        run.fields |= {"ordinary_loss": None, "ordinary_loss_base": None}
    for run, steps in _measured(connection, runs, "ordinary", ("loss", "tokens")):
        tokens = steps[max(steps)]["tokens"].astype(float)
        for name, step in (("ordinary_loss", max(steps)), ("ordinary_loss_base", 0)):
            run.fields[name] = float((steps[step]["loss"] * tokens).sum() / tokens.sum())


def read_answers(connection: duckdb.DuckDBPyConnection, runs: Sequence[BulkRun]) -> None:
    """Adds the numbers of answers to the runs."""
    for run in runs:
        run.fields |= {"answers": None, "answers_flagged": None}
    files = []
    for index, run in enumerate(runs):
        last = run.last_step("answers")
        if last is not None:
            files.append((index, run.paths["answers", last]))
    if not files:
        return
    number_files(connection, files)
    query = (
        "SELECT f.number, count(*), count(*) FILTER (d.flags <> '') FROM read_parquet(?, filename "
        "= true) d JOIN numbered f ON f.path = d.filename GROUP BY f.number"
    )
    rows = connection.execute(query, [[path for _, path in files]]).fetchall()
    for index, count, flagged in rows:
        runs[index].fields |= {"answers": count, "answers_flagged": flagged}


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
