"""What a sweep is to do, and how far it is, beside the runs: for `sweep status` and `sweep retry`.

Nothing that is computed depends on it. No torch here.

    <store>/<experiment>/sweeps/<id>.json    its runs and their stages, written when the sweep begins
    <store>/<experiment>/sweeps/<id>.jsonl   a line for every stage of a run that ended: done, or failed with its reason

How training stands is read from the runs' own directories, which know better; the ledger has what
they cannot know: runs that are only planned, refused before anything was written, not measured, not
judged. Lines are added whole; half a line that a killed process left is passed over.
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
    """A run of a sweep, by the name of its directory; `label`: what a person calls it."""

    run: str
    label: str


@dataclass(frozen=True)
class Event:
    """How a stage of a run ended: done, failed, or, while it is under way in the sweep's own
    process, running.
    """

    run: str
    stage: Stage
    state: str
    reason: str | None = None


@dataclass(frozen=True)
class Ledger:
    """The record of a sweep in the folder of its experiment."""

    folder: Path
    runs: tuple[Planned, ...]
    stages: tuple[Stage, ...]
    asked: Mapping[str, Any]

    @property
    def id(self) -> str:
        facts = [sorted(one.run for one in self.runs), self.stages, self.asked]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def path(self) -> Path:
        return self.folder / "sweeps" / f"{self.id}.json"

    def begin(self) -> None:
        """Writes what is planned, if it is not there."""
        if not self.path.is_file():
            write_json(
                self.path,
                {
                    "stages": self.stages,
                    "runs": [asdict(one) for one in self.runs],
                    "asked": dict(self.asked),
                },
            )

    def events(self) -> dict[tuple[str, str], Event]:
        """(run, stage) → how it ended last."""
        found = {}
        for line in self._lines():
            try:
                values = json.loads(line)
                event = Event(values["run"], values["stage"], values["state"], values.get("reason"))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the end of a line that a killed process left
            found[event.run, event.stage] = event
        return found

    def _lines(self) -> list[bytes]:
        try:
            return self.path.with_suffix(".jsonl").read_bytes().split(b"\n")
        except FileNotFoundError:
            return []

    @property
    def driven(self) -> bool:
        """Whether a process drives this sweep now."""
        return held(self.path.with_suffix(".lock"))


class Writer:
    """A ledger that is being written: by the process that drives the sweep, or by several at once,
    whose lines do not mix.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._known, self._guard = ledger, ledger.events(), threading.Lock()
        self._lock: FileLock | None = None

    def __enter__(self) -> Writer:
        self._ledger.begin()
        lock = FileLock(self._ledger.path.with_suffix(".lock"), thread_local=False)
        try:
            lock.acquire(timeout=0)
            self._lock = lock
        except (
            Timeout,
            OSError,
        ):
            # another process drives the same sweep: its lock says so for both
            self._lock = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.release()

    def tell(self, event: Event) -> None:
        """Adds a line, unless it is known."""
        with self._guard:
            if self._known.get((event.run, event.stage)) == event:
                return
            self._known[event.run, event.stage] = event
            line = (
                json.dumps(
                    asdict(event) | {"written": datetime.now(UTC).isoformat(timespec="seconds")},
                    ensure_ascii=False,
                )
                + "\n"
            )
            place = self._ledger.path.with_suffix(".jsonl")
            with writing(place):
                handle = os.open(place, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    size = os.fstat(handle).st_size
                    torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                    os.write(
                        handle, ("\n" if torn else "").encode() + line.encode("utf-8", "replace")
                    )
                finally:
                    os.close(handle)


def read_ledger(path: Path) -> Ledger:
    """The ledger in a file.

    Raises:
        BadInput: it cannot be read, or holds something else.
    """
    values = read_json(path, _REMEDY)
    try:
        runs = tuple(Planned(str(one["run"]), str(one["label"])) for one in values["runs"])
        stages = tuple(values["stages"])
        asked = dict(values["asked"])
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{path} holds no plan of a sweep: {_REMEDY}") from None
    if unknown := [stage for stage in stages if stage not in get_args(Stage)]:
        raise BadInput(
            f"{path} names the stage {unknown[0]!r}; allowed: {listing(get_args(Stage))}: {_REMEDY}"
        )
    return Ledger(path.parents[1], runs, stages, asked)


def ledgers(folders: Sequence[Path]) -> list[Ledger]:
    """The ledgers in the folders of experiments, the one that was written to last at the end."""
    places = [place for folder in folders for place in (folder / "sweeps").glob("*.json")]

    def written(place: Path) -> tuple[int, str]:
        return max(
            one.stat().st_mtime_ns for one in (place, place.with_suffix(".jsonl")) if one.exists()
        ), place.name

    return [read_ledger(place) for place in sorted(places, key=written)]
