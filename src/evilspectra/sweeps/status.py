"""The states of a sweep's runs, stage by stage: queued, running, done, failed, interrupted.

Reading them changes nothing. No torch here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evilspectra.errors import BadInput
from evilspectra.store.run import RunFolder, is_run
from evilspectra.sweeps.ledger import Event, Ledger, ledgers

#: A run's states, from the one that needs attention most.
STATES = ("failed", "interrupted", "running", "queued", "done")
#: The state of a run as a whole is the first of these that a stage of it is in.
_OVERALL = ("failed", "running", "interrupted", "queued", "done")


@dataclass(frozen=True)
class RunProgress:
    """The progress of one run.

    `stages`: stage → its state, for the wanted stages; `reason`: why a stage failed or the run
    stopped.
    """

    run: str
    experiment: str
    folder: str
    label: str
    stages: Mapping[str, str]
    reason: str | None = None
    step: int | None = None
    total_steps: int | None = None

    @property
    def state(self) -> str:
        """The state of the run as a whole."""
        return next(state for state in _OVERALL if state in self.stages.values())

    def flat(self) -> dict[str, Any]:
        """A mapping of JSON's types."""
        return asdict(self) | {"state": self.state}


def counts(runs: Iterable[RunProgress]) -> dict[str, int]:
    """Maps each state to its number of runs, in the order of `STATES`.

    >>> unjudged = RunProgress("a", "x", "x/a", "", {"train": "done", "judge": "failed"})
    >>> done = RunProgress("b", "x", "x/b", "", {"train": "done"})
    >>> counts([unjudged, done])
    {'failed': 1, 'done': 1}
    """
    numbers = Counter(run.state for run in runs)
    return {state: numbers[state] for state in STATES if numbers[state]}


def of_sweep(ledger: Ledger) -> list[RunProgress]:
    """The progress of the runs of one sweep, in its order."""
    events, driven = ledger.events(), ledger.driven
    return [
        _progress(
            RunFolder(ledger.folder / planned.run), planned.label, ledger.stages, events, driven
        )
        for planned in ledger.runs
    ]


def of_store(root: str | os.PathLike[str]) -> list[RunProgress]:
    """The progress of all runs in a store or an experiment, whether a sweep planned them or not.

    Raises:
        BadInput: there is no run and no sweep.
    """
    root = Path(root)
    if not root.is_dir():
        raise BadInput(
            f"{root} is not a folder: name a store of runs, an experiment in it, or a sweep file"
        )
    folders = [root, *(path for path in sorted(root.iterdir()) if path.is_dir())]
    by_path: dict[Path, RunProgress] = {}
    for ledger in ledgers(folders):
        by_path |= {Path(run.folder): run for run in of_sweep(ledger)}
    for run in _runs(folders):
        if run.path not in by_path:
            by_path[run.path] = _progress(run, "", ("train",), {}, False)
    if not by_path:
        raise BadInput(
            f"{root} holds no run and no sweep: name a store of runs, an experiment in it, or a "
            "sweep file"
        )
    return [by_path[path] for path in sorted(by_path)]


def _runs(folders: Sequence[Path]) -> Iterator[RunFolder]:
    for folder in folders:
        for path in folder.glob("*/status.json"):
            if is_run(path.parent):
                yield RunFolder(path.parent)


def _progress(
    run: RunFolder,
    label: str,
    wanted: Sequence[str],
    events: Mapping[tuple[str, str], Event],
    driven: bool,
) -> RunProgress:
    """Reads a run's progress from its directory, and from the ledger what that cannot say."""
    status = run.status()
    stages = {"train": status.state}
    reason = status.reason
    refused = events.get((run.name, "train"))
    # it was refused before anything was written
    if status.state == "queued" and refused is not None and refused.state == "failed":
        stages["train"], reason = "failed", refused.reason
    for stage in wanted:
        if stage == "train":
            continue
        event = events.get((run.name, stage)) if stages["train"] == "done" else None
        state = event.state if event else "queued"
        if state == "running" and not driven:
            state = "interrupted"
        if state == "queued" and stage == "measure" and stages["train"] == "done" and run.in_use:
            state = "running"
        stages[stage] = state
        reason = reason or (event.reason if event else None)
    return RunProgress(
        run.name,
        run.experiment,
        str(run.path),
        label,
        stages,
        reason,
        status.step,
        status.total_steps,
    )
