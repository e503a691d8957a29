"""Execution of a sweep by a command, and the printing of its outcome.

Everything heavy is imported inside the functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.executor_options import executor_of
from evilspectra.errors import EvilspectraError, Undecided

if TYPE_CHECKING:
    from evilspectra.store.records import RunSummary
    from evilspectra.sweeps.file import Sweep
    from evilspectra.sweeps.run import Outcome


def load(file: str, settings: Sequence[str]) -> Sweep:
    """The sweep of a file or preset, changed by `--set` assignments."""
    from evilspectra.sweeps.file import load_sweep

    return load_sweep(file, settings)


def run_sweep(
    file: str,
    settings: Sequence[str],
    as_json: bool,
    quiet: bool,
    options: dict[str, Any] | None = None,
    only: Collection[str] | None = None,
    say: Callable[[Sequence[str]], None] = lambda warnings: None,
) -> tuple[Path, bool]:
    """Carries out a sweep and prints its outcome.

    Returns the experiment's folder, and whether a run failed. `only`: names of the runs to carry
    out; None for all. `say` is called with the file's warnings.

    Raises:
        Undecided: all is trained and measured, and verdicts are missing.
    """
    loaded = load(file, settings)
    say(() if quiet else loaded.warnings)
    from evilspectra.evaluation.summary import summarise
    from evilspectra.store.run import arm
    from evilspectra.sweeps.file import experiment_folder
    from evilspectra.sweeps.run import execute
    from evilspectra.tables.index import read_index

    def announce(number: int, config: Any) -> None:
        if not quiet:
            run = f"{arm(config)}, lr {config.optimizer.lr:g}, seed {config.train.seed}"
            click.echo(f"[{number + 1}/{len(loaded.configs)}] {run}", err=True)

    executor = executor_of(loaded, quiet, options or {})
    outcomes = execute(loaded, executor, quiet=quiet, on_start=announce, only=only)
    folder = experiment_folder(loaded)
    if any(outcome.trained for outcome in outcomes):
        # The index makes the first question to the store quick; without it the store is read then.
        with suppress(EvilspectraError):
            read_index(folder.parent)
    failed = [outcome for outcome in outcomes if outcome.failed]
    unjudged = [outcome for outcome in outcomes if outcome.unjudged and not outcome.failed]
    summaries = [
        summarise(outcome.run)
        for outcome in outcomes
        if (outcome.run.path / "config.yaml").exists()
    ]
    if as_json:
        values: dict[str, Any] = {
            "runs": [asdict(summary) for summary in summaries],
            "failed": len(failed),
        }
        if loaded.judging:
            values["unjudged"] = len(unjudged)
        click.echo(json.dumps(values, indent=2))
    else:
        _print_runs(summaries, measured=bool(loaded.evaluation))
        click.echo(f"{_counts(outcomes, len(unjudged))}; in {folder}")
    for outcome in failed:
        click.echo(f"failed: {outcome.run.name}: {outcome.failed}", err=True)
    if unjudged and not failed:
        raise Undecided(
            f"{len(unjudged)} of {len(outcomes)} runs lack verdicts ({unjudged[0].unjudged}); "
            "everything else is done and kept: the same command will ask for the verdicts alone"
        )
    return folder, bool(failed)


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


def _counts(outcomes: Sequence[Outcome], unjudged: int) -> str:
    """The numbers of runs that were trained, done before, or failed."""
    failed = sum(bool(outcome.failed) for outcome in outcomes)
    already = sum(not outcome.trained and not outcome.failed for outcome in outcomes)
    trained = len(outcomes) - failed - already
    verdicts = f", {unjudged} without all verdicts" if unjudged else ""
    counts = f"{trained} trained, {already} done before, {failed} failed"
    return f"{len(outcomes)} runs: {counts}{verdicts}"
