"""Where the runs of a sweep stand: queued, running, done, failed or interrupted, stage by stage,
read without touching anything. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evilspectra.errors import BadInput
from evilspectra.store.run import RunFolder, is_run
from evilspectra.sweeps.ledger import Event, Ledger, ledgers

#: A run's states, from the one that asks for attention most.
STATES = ("failed", "interrupted", "running", "queued", "done")
#: Of what stands open, the state that a whole run is said to be in.
_WHOLE = ("failed", "running", "interrupted", "queued", "done")


@dataclass(frozen=True)
class Standing:
    """One run.

    `stages`: stage → its state, those that are wanted; `reason`: of what failed, or why it stopped.
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
        """The run as a whole."""
        return next(state for state in _WHOLE if state in self.stages.values())

    def flat(self) -> dict[str, Any]:
        """Of JSON's types."""
        return asdict(self) | {"state": self.state}


def counts(found: Iterable[Standing]) -> dict[str, int]:
    """State → number of runs, in the order of `STATES`.

    >>> counts([Standing("a", "x", "x/a", "", {"train": "done", "judge": "failed"}), Standing("b", "x", "x/b", "", {"train": "done"})])
    {'failed': 1, 'done': 1}
    """
    many = Counter(one.state for one in found)
    return {state: many[state] for state in STATES if many[state]}


def of_sweep(ledger: Ledger) -> list[Standing]:
    """Where the runs of one sweep stand, in its order."""
    events, driven = ledger.events(), ledger.driven
    return [
        _standing(RunFolder(ledger.folder / one.run), one.label, ledger.stages, events, driven)
        for one in ledger.runs
    ]


def of_store(root: Path) -> list[Standing]:
    """Where everything stands below a store or an experiment: the runs that sweeps planned, and any
    other.

    Raises:
        BadInput: there is nothing of the kind.
    """
    if not root.is_dir():
        raise BadInput(
            f"{root} is no folder: name a store of runs, an experiment in it, or a sweep file"
        )
    folders = [root, *(place for place in sorted(root.iterdir()) if place.is_dir())]
    found: dict[Path, Standing] = {}
    for ledger in ledgers(folders):
        found |= {Path(one.folder): one for one in of_sweep(ledger)}
    for run in _runs(folders):
        if run.path not in found:
            found[run.path] = _standing(run, "", ("train",), {}, False)
    if not found:
        raise BadInput(
            f"{root} holds no run and no sweep: name a store of runs, an experiment in it, or a "
            "sweep file"
        )
    return [found[path] for path in sorted(found)]


def _runs(folders: Sequence[Path]) -> Iterator[RunFolder]:
    for folder in folders:
        for place in folder.glob("*/status.json"):
            if is_run(place.parent):
                yield RunFolder(place.parent)


def _standing(
    run: RunFolder,
    label: str,
    wanted: Sequence[str],
    events: Mapping[tuple[str, str], Event],
    driven: bool,
) -> Standing:
    """A run by its own directory, and by the ledger in what that cannot say."""
    status = run.status()
    stages, reason = {"train": status.state}, status.reason
    refused = events.get((run.name, "train"))
    # before anything was written
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
    return Standing(
        run.name,
        run.experiment,
        str(run.path),
        label,
        stages,
        reason,
        status.step,
        status.total_steps,
    )
