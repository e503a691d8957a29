"""What a run of a sweep goes through, one stage after the other, each skipped where it is done:
train, measure, and, elsewhere, judge.

Training and measuring need the model, so a worker does both while it has the base in memory
(`carry_out`). Measuring is, per checkpoint as asked, the probes, capability, ordinary loss and the
sampling of answers. Judges are asked beside that, by whoever drives the sweep. No torch before a
run is carried out.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evilspectra.config.sections import Config, Evaluation
from evilspectra.errors import EvilspectraError, Interrupted, InUse, first_line
from evilspectra.model.base import CACHE_VARIABLE
from evilspectra.store.results import Instrument
from evilspectra.store.run import RunFolder, Status
from evilspectra.targets.find import run_target
from evilspectra.training.identity import locate

if TYPE_CHECKING:
    from evilspectra.model.reuse import Loaded


@dataclass(frozen=True)
class Task:
    """One run of a sweep as a worker gets it, on this machine or another: records alone, so that it
    can be sent.

    `number`: its place in the sweep; `folder`: what relative paths are meant from; `cache`: where
    the user's cache was moved to, if it was.
    """

    number: int
    config: Config
    evaluation: Evaluation | None = None
    quiet: bool = True
    folder: str = field(default_factory=os.getcwd)
    cache: str | None = field(default_factory=lambda: os.environ.get(CACHE_VARIABLE))


@dataclass(frozen=True)
class Report:
    """What became of a task.

    `trained`: it was not done before. `unmeasured`: why it could not be measured, if it was to be.

    `busy`: another process is at work on the run, so nothing was done. `lost`: why the worker ended
    without a word. `used`: table → what was measured with. `loads`: how many times the worker has
    loaded a base so far.
    """

    number: int
    status: Status
    trained: bool = False
    unmeasured: str | None = None
    busy: bool = False
    lost: str | None = None
    used: Mapping[str, Instrument] = field(default_factory=dict)
    loads: int = 0


def carry_out(task: Task, loaded: Loaded) -> Report:
    """Trains a run and measures it, as far as that is not done; a failure is reported, not raised.

    Raises:
        Interrupted: a signal; what was done is kept.
    """
    from evilspectra.training import train as training

    trained = False
    try:
        run, _ = locate(task.config)
        trained = run.status().state != "done"
        training.train(task.config, task.quiet, loaded)
        status = run.status()
    except Interrupted:
        raise
    except InUse:
        return Report(task.number, Status("running"), busy=True, loads=loaded.loads)
    except EvilspectraError as error:
        return Report(task.number, Status("failed", str(error)), trained, loads=loaded.loads)
    report = Report(task.number, status, trained, loads=loaded.loads)
    return (
        _measured(report, run, task.evaluation, task.quiet, loaded) if task.evaluation else report
    )


def _measured(
    report: Report,
    run: RunFolder,
    evaluation: Evaluation,
    quiet: bool,
    loaded: Loaded,
) -> Report:
    """The report of a trained run, measured as well."""
    from evilspectra.evaluation.evaluate import evaluate

    note = (lambda text: None) if quiet else functools.partial(print, file=sys.stderr, flush=True)
    why, used = None, {}
    try:
        with run.locked():
            done = evaluate([run_target(run)], evaluation, note, loaded)
        used = done.used.get(run.path, {})
        why = next((str(error) for _, error in done.failed), None)
    except Interrupted:
        raise
    except InUse:
        return Report(report.number, report.status, report.trained, busy=True, loads=loaded.loads)
    except EvilspectraError as error:
        why = str(error)
    return Report(
        report.number, report.status, report.trained, unmeasured=why, used=used, loads=loaded.loads
    )


def carry_out_elsewhere(task: Task, loaded: Loaded) -> Report:
    """The same in a process that was not started for this task alone: its folder and cache are
    taken up, and an unforeseen error is a report too.

    Raises:
        Interrupted: a signal; what was done is kept.
    """
    os.chdir(task.folder)
    if task.cache is not None:
        os.environ[CACHE_VARIABLE] = task.cache
    try:
        return carry_out(task, loaded)
    except EvilspectraError:
        raise
    except (
        Exception
    ) as error:  # one run's misfortune: the worker lives on, and the report says what it was
        import traceback

        traceback.print_exc()
        loaded.drop()
        return Report(
            task.number,
            Status("failed", f"an unforeseen {type(error).__name__}: {first_line(error)}"),
            loads=loaded.loads,
        )
