"""Execution of a sweep by a command, and the printing of its outcome.

Everything heavy is imported inside the functions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.errors import Undecided

if TYPE_CHECKING:
    from evilspectra.api.sweeping import SweepOutcome
    from evilspectra.store.records import RunSummary


def run_sweep(
    file: str,
    settings: Sequence[str],
    as_json: bool,
    quiet: bool,
    options: dict[str, Any] | None = None,
    only: Collection[str] | None = None,
    warn: bool = False,
) -> SweepOutcome:
    """Carries out a sweep and prints its outcome.

    `only`: names of the runs to carry out; None for all. `warn`: print the file's warnings too.

    Raises:
        Undecided: all is trained and measured, and verdicts are missing.
    """
    from evilspectra.api.sweeping import WARNING, sweep

    def note(text: str) -> None:
        if warn or not text.startswith(WARNING):
            click.echo(text, err=True)

    outcome = sweep(
        file,
        settings=settings,
        only=only,
        note=None if quiet else note,
        progress=not quiet,
        **options or {},
    )
    summaries = [run.summary for run in outcome.runs if run.summary]
    failed, unjudged = outcome.failed, outcome.unjudged
    if as_json:
        values: dict[str, Any] = {
            "runs": [asdict(summary) for summary in summaries],
            "failed": len(failed),
        }
        if outcome.judged:
            values["unjudged"] = len(unjudged)
        click.echo(json.dumps(values, indent=2))
    else:
        _print_runs(summaries, outcome.measured)
        click.echo(outcome.headline)
    for run in failed:
        click.echo(f"failed: {run.run}: {run.failed}", err=True)
    if unjudged and not failed:
        raise Undecided(
            f"{len(unjudged)} of {len(outcome.runs)} runs lack verdicts ({unjudged[0].unjudged}); "
            "everything else is done and kept: the same command will ask for the verdicts alone"
        )
    return outcome


def _print_runs(summaries: Sequence[RunSummary], measured: bool) -> None:
    """The table of runs, and that of their measurements if there are any."""
    from evilspectra.cli.print_runs import print_measured, print_summaries
    from evilspectra.evaluation.measured import measured_rows
    from evilspectra.store.results import Results

    print_summaries(summaries)
    if measured:
        click.echo()
        rows = [
            (
                f"{summary.arm}, seed {summary.seed}",
                Results(Path(summary.folder)),
                str(summary.base),
                summary.control,
            )
            for summary in summaries
        ]
        print_measured(measured_rows(rows))
