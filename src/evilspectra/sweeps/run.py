"""Execution of a sweep: its runs go to an executor and their answers to a judge.

No state here has to survive: if it is killed at any moment and started again, it finds finished
work in the store. Two processes may execute the same sweep, or sweeps with runs in common: while
one works on a run, the other leaves it alone until it is done or released.
"""

from __future__ import annotations

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evilspectra.answers.questions import read_questions
from evilspectra.config.sections import Config
from evilspectra.endpoint.chat import require_client
from evilspectra.executors.executor import Executor
from evilspectra.executors.local import InThisProcess
from evilspectra.executors.stages import Report, Task
from evilspectra.judging.background import BackgroundJudging, Verdict
from evilspectra.judging.inputs import answer_set_of
from evilspectra.judging.make import make_judge
from evilspectra.probes.probe import probes
from evilspectra.store.labels import arm
from evilspectra.store.results import Results
from evilspectra.store.run import RunFolder, Status
from evilspectra.sweeps.file import Sweep, experiment_folder
from evilspectra.sweeps.ledger import Event, Ledger, Planned, Stage, Writer
from evilspectra.training.identity import locate

#: How often a run is started whose workers end without a report.
ATTEMPTS = 3
#: Seconds between checks of runs that another process works on.
_LOOK = 0.5


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run.

    `trained`: it was not done before. `unmeasured`, `unjudged`: why measuring or judging failed, if
    it was wanted.
    """

    run: RunFolder
    status: Status
    trained: bool
    unmeasured: str | None = None
    unjudged: str | None = None

    @property
    def failed(self) -> str | None:
        """Why the run is not done, or not measured; None otherwise, verdicts aside."""
        if self.status.state == "done":
            return self.unmeasured
        return self.status.reason or self.status.state


def execute(
    sweep: Sweep,
    executor: Executor | None = None,
    *,
    quiet: bool = False,
    on_start: Callable[[int, Config], object] | None = None,
    only: Collection[str] | None = None,
    note: Callable[[str], object] | None = None,
) -> list[Outcome]:
    """Trains and measures what is not done of a sweep, and has it judged.

    `executor` says where; by default in this process. A run that fails does not stop the others.
    Data and base of every run, items and judge are looked for before the first one starts. `only`:
    names of the runs to execute, if not all are wanted. `note` receives a line about what the
    driver does; without it that goes to standard error, or with `quiet` nowhere.

    Raises:
        BadInput: data or base of some run, items to measure with, or the judge, are missing or
            unusable.
        Interrupted: a signal arrived; completed work is kept.
    """
    _check_instruments(sweep)
    folders = [locate(config)[0] for config in sweep.configs]
    chosen = [
        number for number, folder in enumerate(folders) if only is None or folder.name in only
    ]
    tasks = [Task(number, sweep.configs[number], sweep.evaluation, quiet) for number in chosen]
    if note is None:
        to_standard_error = functools.partial(print, file=sys.stderr, flush=True)
        note = (lambda text: None) if quiet else to_standard_error
    with Writer(ledger_of(sweep, folders)) as writer:
        driver = _Driver(sweep, folders, writer, note)
        driver.carry_out(executor or InThisProcess(), tasks, on_start)
    return [
        replace(driver.outcomes[number], unjudged=driver.unjudged.get(folders[number].path))
        for number in chosen
    ]


def ledger_of(sweep: Sweep, folders: Sequence[RunFolder]) -> Ledger:
    """The ledger of a sweep whose runs are in `folders`."""
    wanted: dict[Stage, Any] = {"train": True, "measure": sweep.evaluation, "judge": sweep.judging}
    instruments: dict[str, Any] = {"evaluate": None, "judge": None}
    if sweep.evaluation:
        instruments["evaluate"] = sweep.evaluation.model_dump(mode="json")
    if judging := sweep.judging:
        instruments["judge"] = {
            "judge": judging.settings.judge,
            "reading": judging.settings.reading,
            "metrics": list(judging.metrics),
            "questions": judging.questions,
        }
        if judging.settings.kind == "class":
            instruments["judge"] |= {
                "settings": judging.settings.settings,
                "version": judging.settings.version,
            }
    labels = {
        run.name: (
            f"{arm(config)}, lr {config.optimizer.lr:g}, batch {config.train.batch_size}, seed "
            f"{config.train.seed}"
        )
        for run, config in zip(folders, sweep.configs, strict=True)
    }
    return Ledger(
        experiment_folder(sweep),
        tuple(Planned(name, label) for name, label in labels.items()),
        tuple(stage for stage, settings in wanted.items() if settings),
        instruments,
    )


def _check_instruments(sweep: Sweep) -> None:
    """Refuses what would otherwise be missed only after hours of training."""
    if sweep.evaluation:
        probes(sweep.evaluation, {})
        if sweep.evaluation.harness:
            from evilspectra.probes.harness import harness_version

            harness_version()
        if sweep.evaluation.answers:
            read_questions(sweep.evaluation.answers.questions)
            if sweep.evaluation.answers.endpoint:
                require_client(sweep.evaluation.answers.endpoint)
    if sweep.judging:
        make_judge(sweep.judging.settings, sweep.judging.named_by)
        if sweep.judging.questions:
            read_questions(sweep.judging.questions)


class _Driver:
    """A sweep in progress.

    `outcomes`: number of the run → its outcome. `unjudged`: folder of a run → why answers of it
    have no verdict.
    """

    def __init__(
        self,
        sweep: Sweep,
        folders: Sequence[RunFolder],
        writer: Writer,
        note: Callable[[str], object],
    ) -> None:
        self.sweep = sweep
        self.folders = folders
        self.writer = writer
        self.note = note
        self.outcomes: dict[int, Outcome] = {}
        self.unjudged: dict[Path, str] = {}
        self.judges = (
            BackgroundJudging(sweep.judging, note, self._judged) if sweep.judging else None
        )

    def carry_out(
        self,
        executor: Executor,
        tasks: Sequence[Task],
        on_start: Callable[[int, Config], object] | None,
    ) -> None:
        """Executes tasks; retries those whose worker was lost or whose run was held elsewhere."""

        def started(task: Task) -> None:
            if on_start and tries[task.number] == 0:
                on_start(task.number, task.config)

        tries = Counter[int]()
        pending = list(tasks)
        by_number = {task.number: task for task in tasks}
        while pending:
            again, elsewhere = [], []
            for report in executor.run(pending, started):
                if report.busy:
                    elsewhere.append(by_number[report.number])
                elif report.lost and tries[report.number] + 1 < ATTEMPTS:
                    name = self.folders[report.number].name
                    self.note(f"{name}: {report.lost}; it resumes from where it stopped")
                    again.append(by_number[report.number])
                else:
                    self._settle(report)
            tries.update(task.number for task in again)
            if elsewhere and not again:
                self._wait([self.folders[task.number] for task in elsewhere])
            pending = again + elsewhere
        if self.judges:
            self.judges.finish()

    def _settle(self, report: Report) -> None:
        """Records the outcome of a run, and hands its answers to the judge."""
        run, reason = self.folders[report.number], report.lost
        status = Status("failed", reason) if reason else report.status
        self.outcomes[report.number] = Outcome(run, status, report.trained, report.unmeasured)
        done = status.state == "done"
        self.writer.tell(
            Event(run.name, "train", "done" if done else "failed", None if done else status.reason)
        )
        if not done or not self.sweep.evaluation:
            return
        self.writer.tell(
            Event(run.name, "measure", "failed" if report.unmeasured else "done", report.unmeasured)
        )
        if self.judges and report.unmeasured is None:
            config = self.sweep.configs[report.number]
            self.writer.tell(Event(run.name, "judge", "running"))
            self.judges.add(
                answer_set_of(
                    f"{arm(config)}, seed {config.train.seed}",
                    Results(run.path, selected=report.used),
                    run.provenance().get("base_sha256"),
                )
            )

    def _judged(self, verdict: Verdict) -> None:
        """Records a verdict on a run's answers; called by the judge's thread."""
        run = RunFolder(verdict.answers.results.folder)
        self.writer.tell(
            Event(run.name, "judge", "failed" if verdict.reason else "done", verdict.reason)
        )
        if verdict.reason:
            self.unjudged[run.path] = verdict.reason

    def _wait(self, runs: Sequence[RunFolder]) -> None:
        """Waits until another process has released one of the runs."""
        names = ", ".join(run.name for run in runs[:3])
        if len(runs) > 3:
            names += f" and {len(runs) - 3} more"
        self.note(f"another process works on {names}: waiting for it (^C stops waiting)")
        while all(run.in_use for run in runs):
            time.sleep(_LOOK)
