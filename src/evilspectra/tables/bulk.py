"""Digests of many runs at once: those of `digest`, from a few reads of many files.

Reading one run by itself takes about fifty reads and twenty bootstraps; ten thousand runs would
take a quarter of an hour. Here one query reads a table for all runs, and all intervals over the
same number of items or questions use one matrix of draws, the same one as in `drift` and
`intervals`. Unusual runs (from another trainer, unfinished, with verdicts in a journal, with an
unreadable file) are left to `digest`. A test checks that both give the same results, up to
rounding.

`bulk_runs` prepares the runs, `bulk_reading` reads tables, `bulk_measures` and `bulk_rates` compute
the fields of summaries.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from evilspectra.evaluation.summary import summary
from evilspectra.tables.bulk_measures import (
    last_mean,
    read_answers,
    read_capability,
    read_ordinary,
    read_probe,
    read_training,
)
from evilspectra.tables.bulk_rates import read_rates
from evilspectra.tables.bulk_runs import BulkRun, prepare
from evilspectra.tables.digest import Digest, checkpoint_row, shown_rates
from evilspectra.tables.inventory import Stock


def digests(stocks: Sequence[Stock]) -> list[Digest | None]:
    """A digest for every run, in order; None for those that must be read by themselves."""
    prepared = [prepare(stock) for stock in stocks]
    _read([run for run in prepared if run is not None])
    return [None if run is None or run.odd else _digest(run) for run in prepared]


def _read(runs: Sequence[BulkRun]) -> None:
    """Fills the runs in.

    Where one of their files cannot be read, its runs are found by halving, and marked as odd.
    """
    if not runs:
        return
    try:
        with duckdb.connect(config={"memory_limit": "800MB"}) as connection:
            read_training(connection, runs)
            read_probe(connection, runs)
            read_capability(connection, runs)
            read_ordinary(connection, runs)
            read_answers(connection, runs)
            read_rates(connection, runs)
    except duckdb.Error:
        if len(runs) == 1:
            runs[0].odd = True
            return
        for run in runs:
            run.fields, run.rates = {}, []
        _read(runs[: len(runs) // 2])
        _read(runs[len(runs) // 2 :])


def _digest(run: BulkRun) -> Digest:
    steps, losses = run.losses
    rates = shown_rates(run.rates, run.steps["answers"][-1]) if run.rates else {}
    end = int(steps[-1]) if len(steps) else None
    recorded: set[int] = {*run.heldout, *run.spectral, *run.drifts, *rates}
    if end is not None:
        recorded.add(end)
    rows = [
        checkpoint_row(
            step,
            step == end,
            last_mean(losses[steps <= step]),
            run.heldout.get(step),
            run.spectral.get(step),
            run.drifts.get(step),
            rates.get(step),
        )
        for step in sorted(recorded)
    ]
    return Digest(
        summary(run.stock.run, run.origin, run.status, run.fields),
        run.origin.settings,
        tuple(rows),
        tuple(run.rates),
    )
