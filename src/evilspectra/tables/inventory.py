"""What files the runs of a store have: one pass over its folders, nothing opened.

With `store` and `results`, all that knows file names.

Checkpoints, adapters and resume states are not looked into; hidden files and folders are no part of
a run, and links to folders are not followed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from evilspectra.store.files import read_json
from evilspectra.store.records import MEASURED, TABLES
from evilspectra.store.results import Instrument
from evilspectra.store.run import OUTSIDE, RunFolder

_FILE = re.compile(r"^(?P<instrument>.+)-(?P<step>[0-9]{1,19})\.(?P<kind>parquet|jsonl|parts)$")


@dataclass(frozen=True, slots=True)
class Kept:
    """A file with rows of a table.

    Of measurements: by which `instrument`, after which `step`. `part`: of a table that still grows;
    `journal`: verdicts as JSON lines.
    """

    table: str
    path: str
    instrument: str | None = None
    step: int | None = None
    part: bool = False
    journal: bool = False


@dataclass(frozen=True)
class Stock:
    """A run and its files.

    `state`: digest of every file's name, size and time of change; `newest`: the last of these
    times, in ns.

    `instruments`: table → id → time of change, in ns, of the file that says what the instrument is.
    """

    run: RunFolder
    files: tuple[Kept, ...]
    instruments: Mapping[str, Mapping[str, int]]
    state: str
    newest: int
    outside: bool

    def of(self, table: str) -> list[Kept]:
        """The files that make up a table: what stands in a whole file is not read again from its
        parts or its journal.

        Of a training table both may be there, where merging was stopped: then the store's own
        reading decides (`RunFolder.read`).
        """
        found = [kept for kept in self.files if kept.table == table]
        whole = {
            (kept.instrument, kept.step) for kept in found if not kept.part and not kept.journal
        }
        return [
            kept
            for kept in found
            if kept.step is None
            or not (kept.part or kept.journal)
            or (kept.instrument, kept.step) not in whole
        ]

    def known(self, table: str) -> list[Instrument]:
        """The instruments of a table, the one that was used first in front, as
        `Results.instruments` gives them.

        Raises:
            BadInput: what says so cannot be read.
        """
        found = []
        for name, _ in sorted(
            self.instruments.get(table, {}).items(), key=lambda item: (item[1], f"{item[0]}.json")
        ):
            facts = read_json(self.run.path / "evaluations" / table / f"{name}.json")
            found.append(Instrument(table, str(facts.pop("source", "")), facts))
        return found


def run_folders(root: Path) -> list[Path]:
    """The folders of the runs below a root, which may be a run itself; sorted.

    What lies inside a run's folder is not looked into.

    >>> run_folders(Path("no-such-store"))
    []
    """
    return sorted(Path(folder) for folder in _runs(os.fspath(root)))


def _runs(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry for entry in entries}
    except (NotADirectoryError, FileNotFoundError, PermissionError):
        return
    if _is_run(found.keys()) and not os.path.basename(os.path.abspath(folder)).startswith("."):
        yield folder
        return
    for name, entry in found.items():
        if not name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _runs(entry.path)


def _is_run(names: Collection[str]) -> bool:
    return any(name in names for name in ("config.yaml", OUTSIDE)) and any(
        name in names for name in ("status.json", "provenance.json")
    )


def stocks(root: Path, tables: Collection[str] | None = None) -> list[Stock]:
    """The runs below a root with their files, in the order of `run_folders`; with `tables`, the
    files of these alone, and no `state` that says more than those.
    """
    return [stock(folder, tables) for folder in run_folders(root)]


def stock(folder: Path, tables: Collection[str] | None = None) -> Stock:
    """A run's files."""
    walk = _Walk(os.fspath(folder), tables)
    return Stock(
        RunFolder(folder),
        tuple(sorted(walk.kept, key=lambda kept: (kept.table, kept.path))),
        walk.instruments,
        walk.state(),
        walk.newest,
        OUTSIDE in walk.top,
    )


class _Walk:
    """One run's folders, gone through."""

    def __init__(self, folder: str, tables: Collection[str] | None) -> None:
        self._skip = len(folder) + 1
        self._tables = {*TABLES, *MEASURED} if tables is None else set(tables)
        self._whole = tables is None
        self.kept: list[Kept] = []
        self.instruments: dict[str, dict[str, int]] = {}
        self.seen: list[str] = []
        self.newest = 0
        self.top: set[str] = set()
        for entry in self._entries(folder):
            name = entry.name
            self.top.add(name)
            if name == "evaluations":
                if self._tables & MEASURED.keys():
                    self._evaluations(entry.path)
            elif (
                name.endswith(".parts")
                and (table := name.removesuffix(".parts")) in self._tables & TABLES.keys()
            ):
                self.kept += [Kept(table, path, part=True) for path in self._parts(entry.path)]
            elif name.endswith((".parquet", ".json", ".yaml")):
                self._note(entry)
                if (table := name.removesuffix(".parquet")) in self._tables & TABLES.keys():
                    self.kept.append(Kept(table, entry.path))

    def state(self) -> str:
        return hashlib.sha256(
            "\n".join(sorted(self.seen)).encode("utf-8", "surrogateescape")
        ).hexdigest()[:20]

    def _evaluations(self, folder: str) -> None:
        for table in self._entries(folder):
            if table.name not in self._tables & MEASURED.keys() or not table.is_dir(
                follow_symlinks=False
            ):
                continue
            for entry in self._entries(table.path):
                if entry.name.endswith(".json"):
                    self.instruments.setdefault(table.name, {})[
                        entry.name.removesuffix(".json")
                    ] = self._note(entry)
                elif match := _FILE.match(entry.name):
                    instrument, step = match["instrument"], int(match["step"])
                    if match["kind"] == "parts":
                        self.kept += [
                            Kept(table.name, path, instrument, step, part=True)
                            for path in self._parts(entry.path)
                        ]
                    elif match["kind"] == "parquet" or table.name == "verdicts":
                        self._note(entry)
                        self.kept.append(
                            Kept(
                                table.name,
                                entry.path,
                                instrument,
                                step,
                                journal=match["kind"] == "jsonl",
                            )
                        )

    def _parts(self, folder: str) -> list[str]:
        found = [
            entry
            for entry in self._entries(folder)
            if entry.name.endswith(".parquet") and entry.name.removesuffix(".parquet").isdigit()
        ]
        for entry in found:
            self._note(entry)
        return [entry.path for entry in found]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What a folder holds; nothing where it went away meanwhile, as parts do when they are
        merged.
        """
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _note(self, entry: os.DirEntry[str]) -> int:
        if not self._whole and not entry.name.endswith(".json"):
            return 0
        try:
            facts = entry.stat()
        except FileNotFoundError:
            return 0
        self.seen.append(f"{entry.path[self._skip :]} {facts.st_size} {facts.st_mtime_ns}")
        self.newest = max(self.newest, facts.st_mtime_ns)
        return facts.st_mtime_ns
