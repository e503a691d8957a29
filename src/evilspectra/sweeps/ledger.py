"""The plan of a sweep and its progress, kept with the runs for `sweep status` and `sweep retry`.

    <store>/<experiment>/sweeps/<id>.json    its runs and stages, written when the sweep begins
    <store>/<experiment>/sweeps/<id>.jsonl   a line for every stage of a run that ended: done, or
                                             failed with its reason

No result depends on it. The state of training is read from the runs' own directories, which are
authoritative; the ledger adds the states that they cannot record: runs that are only planned,
refused before anything was written, not measured, not judged. Lines are appended whole; an
incomplete line left by a killed process is skipped. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from evilspectra.errors import BadInput, listing
from evilspectra.store.files import read_json, write_json, writing
from evilspectra.store.run import held

Stage = Literal["train", "measure", "judge"]
_REMEDY = "remove it, and run the sweep again"


@dataclass(frozen=True)
class Planned:
    """A run of a sweep, by the name of its directory; `label`: a readable description."""

    run: str
    label: str


@dataclass(frozen=True)
class Event:
    """The state of a stage of a run: done, failed or running.

    Running means in progress in the sweep's own process.
    """

    run: str
    stage: Stage
    state: str
    reason: str | None = None


@dataclass(frozen=True)
class Ledger:
    """The record of a sweep in the folder of its experiment.

    `instruments`: the settings that its measurements and verdicts are made with.
    """

    folder: Path
    runs: tuple[Planned, ...]
    stages: tuple[Stage, ...]
    instruments: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The first ten digits of a hash of runs, stages and instruments."""
        facts = [sorted(run.run for run in self.runs), self.stages, self.instruments]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def path(self) -> Path:
        return self.folder / "sweeps" / f"{self.id}.json"

    def begin(self) -> None:
        """Writes the plan, if it does not exist yet."""
        if not self.path.is_file():
            write_json(
                self.path,
                {
                    "stages": self.stages,
                    "runs": [asdict(run) for run in self.runs],
                    "asked": dict(self.instruments),
                },
            )

    def events(self) -> dict[tuple[str, str], Event]:
        """Maps (run, stage) to its last event."""
        events = {}
        for line in self._lines():
            try:
                values = json.loads(line)
                event = Event(values["run"], values["stage"], values["state"], values.get("reason"))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # part of a line that a killed process left
            events[event.run, event.stage] = event
        return events

    def _lines(self) -> list[bytes]:
        try:
            return self.path.with_suffix(".jsonl").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []

    @property
    def driven(self) -> bool:
        """Whether a process is driving this sweep."""
        return held(self.path.with_suffix(".lock"))


class Writer:
    """A ledger being written, by the process that drives the sweep.

    Several may write at once; their lines do not mix.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._events = ledger.events()
        self._guard = threading.Lock()
        self._lock: FileLock | None = None

    def __enter__(self) -> Writer:
        self._ledger.begin()
        lock = FileLock(self._ledger.path.with_suffix(".lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
            self._lock = lock
        except (Timeout, OSError):
            # another process drives the same sweep: its lock says so for both
            self._lock = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.release()

    def tell(self, event: Event) -> None:
        """Appends an event, unless it is the last one of its run and stage."""
        with self._guard:
            if self._events.get((event.run, event.stage)) == event:
                return
            self._events[event.run, event.stage] = event
            written = datetime.now(UTC).isoformat(timespec="seconds")
            line = json.dumps(asdict(event) | {"written": written}, ensure_ascii=False) + "\n"
            path = self._ledger.path.with_suffix(".jsonl")
            with writing(path):
                handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    size = os.fstat(handle).st_size
                    torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                    os.write(
                        handle, ("\n" if torn else "").encode() + line.encode("utf-8", "replace")
                    )
                finally:
                    os.close(handle)


def read_ledger(path: Path) -> Ledger:
    """Reads the ledger in a file.

    Raises:
        BadInput: it cannot be read, or holds something else.
    """
    values = read_json(path, _REMEDY)
    try:
        runs = tuple(Planned(str(run["run"]), str(run["label"])) for run in values["runs"])
        stages = tuple(values["stages"])
        instruments = dict(values["asked"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{path} holds no plan of a sweep: {_REMEDY}") from None
    if unknown := [stage for stage in stages if stage not in get_args(Stage)]:
        raise BadInput(
            f"{path} names the stage {unknown[0]!r}; allowed: {listing(get_args(Stage))}: {_REMEDY}"
        )
    return Ledger(path.parents[1], runs, stages, instruments)


def ledgers(folders: Sequence[Path]) -> list[Ledger]:
    """The ledgers in the folders of experiments, ordered by the time of their last change."""
    paths = [path for folder in folders for path in (folder / "sweeps").glob("*.json")]

    def last_change(path: Path) -> tuple[int, str]:
        files = [file for file in (path, path.with_suffix(".jsonl")) if file.exists()]
        return max(file.stat().st_mtime_ns for file in files), path.name

    return [read_ledger(path) for path in sorted(paths, key=last_change)]
