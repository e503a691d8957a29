"""The stages of a run of a sweep: train, measure and, elsewhere, judge.

Finished stages are skipped. Training and measuring need the model, so a worker does both while it
has the base in memory (`carry_out`). Measuring covers, for each checkpoint as configured, the
probes, capability, ordinary loss and the sampling of answers. Meanwhile, the process that drives
the sweep sends the requests to judges. No torch before a run is executed.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evilspectra.config.evaluation import Evaluation
from evilspectra.config.sections import Config
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
    """One run of a sweep as a worker gets it, here or elsewhere: records only, so it can be sent.

    `number`: its position in the sweep; `folder`: what relative paths are relative to; `cache`:
    where the user's cache was moved to, if it was.
    """

    number: int
    config: Config
    evaluation: Evaluation | None = None
    quiet: bool = True
    folder: str = field(default_factory=os.getcwd)
    cache: str | None = field(default_factory=lambda: os.environ.get(CACHE_VARIABLE))


@dataclass(frozen=True)
class Report:
    """The outcome of a task.

    `trained`: it was not done before; `unmeasured`: why measuring failed, if it was to be measured;
    `busy`: another process holds the run, so nothing was done; `lost`: why the worker ended without
    a report; `used`: table → instrument that filled it; `loads`: how many times the worker has
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
    """Trains and measures a run, skipping finished stages; failures are reported, not raised.

    Raises:
        Interrupted: a signal arrived; completed work is kept.
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
    if task.evaluation is None:
        return report
    return _measured(report, run, task.evaluation, task.quiet, loaded)


def _measured(
    report: Report,
    run: RunFolder,
    evaluation: Evaluation,
    quiet: bool,
    loaded: Loaded,
) -> Report:
    """Measures a trained run and returns its report."""
    from evilspectra.evaluation.evaluate import evaluate

    note = (lambda text: None) if quiet else functools.partial(print, file=sys.stderr, flush=True)
    reason, used = None, {}
    try:
        with run.locked():
            done = evaluate([run_target(run)], evaluation, note, loaded)
        used = done.used.get(run.path, {})
        reason = next((str(error) for _, error in done.failed), None)
    except Interrupted:
        raise
    except InUse:
        return Report(report.number, report.status, report.trained, busy=True, loads=loaded.loads)
    except EvilspectraError as error:
        reason = str(error)
    return Report(
        report.number,
        report.status,
        report.trained,
        unmeasured=reason,
        used=used,
        loads=loaded.loads,
    )


def carry_out_elsewhere(task: Task, loaded: Loaded) -> Report:
    """Executes a task in a process that is shared with other tasks.

    The task's folder and cache become the process's, and an unforeseen error becomes a report too.

    Raises:
        Interrupted: a signal arrived; completed work is kept.
    """
    os.chdir(task.folder)
    if task.cache is not None:
        os.environ[CACHE_VARIABLE] = task.cache
    try:
        return carry_out(task, loaded)
    except EvilspectraError:
        raise
    except Exception as error:  # concerns one run: the worker lives on, and the report names it
        import traceback

        traceback.print_exc()
        loaded.drop()
        return Report(
            task.number,
            Status("failed", f"an unforeseen {type(error).__name__}: {first_line(error)}"),
            loads=loaded.loads,
        )
