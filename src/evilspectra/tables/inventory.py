"""The files of a store's runs, from one pass over its folders; nothing is opened.

Only this module, `store` and `results` know file names. Checkpoints, adapters and resume states are
not opened; hidden files and folders are not part of a run, and links to folders are not followed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from evilspectra.store.records import MEASURED, TABLES
from evilspectra.store.results import Instrument, read_instrument
from evilspectra.store.run import OUTSIDE, RunFolder, is_run

_FILE = re.compile(r"^(?P<instrument>.+)-(?P<step>[0-9]{1,19})\.(?P<kind>parquet|jsonl|parts)$")


@dataclass(frozen=True, slots=True)
class TableFile:
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
    times, in ns; `instruments`: table → id → time of change, in ns, of the file that describes the
    instrument.
    """

    run: RunFolder
    files: tuple[TableFile, ...]
    instruments: Mapping[str, Mapping[str, int]]
    state: str
    newest: int
    outside: bool

    def of(self, table: str) -> list[TableFile]:
        """The files that make up a table.

        A complete file replaces its parts and its journal. Of a training table both may exist,
        where merging was stopped: then the store's own reading decides (`RunFolder.read`).
        """
        files = [file for file in self.files if file.table == table]
        complete = {
            (file.instrument, file.step) for file in files if not file.part and not file.journal
        }
        return [
            file
            for file in files
            if file.step is None
            or not (file.part or file.journal)
            or (file.instrument, file.step) not in complete
        ]

    def instruments_of(self, table: str) -> list[Instrument]:
        """The instruments of a table in the order of first use.

        The same as `Results.instruments` lists.

        Raises:
            BadInput: the description of an instrument cannot be read.
        """
        times = self.instruments.get(table, {})
        folder = self.run.path / "evaluations" / table
        names = sorted(times, key=lambda name: (times[name], f"{name}.json"))
        return [read_instrument(folder / f"{name}.json", table) for name in names]


def run_folders(root: str | os.PathLike[str]) -> list[Path]:
    """Lists the folders of the runs below a root, which may be a run itself; sorted.

    Folders inside a run's folder are not looked into.

    >>> run_folders(Path("no-such-store"))
    []
    """
    return sorted(Path(folder) for folder in _runs(os.fspath(root)))


def _runs(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            by_name = {entry.name: entry for entry in entries}
    except (NotADirectoryError, FileNotFoundError, PermissionError):
        return
    if is_run(Path(os.path.abspath(folder)), by_name.keys()):
        yield folder
        return
    for name, entry in by_name.items():
        if not name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _runs(entry.path)


def stocks(root: str | os.PathLike[str], tables: Collection[str] | None = None) -> list[Stock]:
    """Lists the runs below a root with their files, in the order of `run_folders`.

    With `tables`, only the files of these tables, and a `state` that covers no others.
    """
    return [stock(folder, tables) for folder in run_folders(root)]


def stock(folder: Path, tables: Collection[str] | None = None) -> Stock:
    """Collects a run's files."""
    walk = _Walk(os.fspath(folder), tables)
    return Stock(
        RunFolder(folder),
        tuple(sorted(walk.files, key=lambda file: (file.table, file.path))),
        walk.instruments,
        walk.state(),
        walk.newest,
        OUTSIDE in walk.top,
    )


class _Walk:
    """A walk through one run's folders."""

    def __init__(self, folder: str, tables: Collection[str] | None) -> None:
        self._skip = len(folder) + 1
        self._tables = {*TABLES, *MEASURED} if tables is None else set(tables)
        self._complete = tables is None
        self.files: list[TableFile] = []
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
                self.files += [
                    TableFile(table, path, part=True) for path in self._parts(entry.path)
                ]
            elif name.endswith((".parquet", ".json", ".yaml")):
                self._note(entry)
                if (table := name.removesuffix(".parquet")) in self._tables & TABLES.keys():
                    self.files.append(TableFile(table, entry.path))

    def state(self) -> str:
        """Digest of every file's name, size and time of change."""
        lines = "\n".join(sorted(self.seen)).encode("utf-8", "surrogateescape")
        return hashlib.sha256(lines).hexdigest()[:20]

    def _evaluations(self, folder: str) -> None:
        for table in self._entries(folder):
            measured = table.name in self._tables & MEASURED.keys()
            if not measured or not table.is_dir(follow_symlinks=False):
                continue
            for entry in self._entries(table.path):
                self._evaluation(table.name, entry)

    def _evaluation(self, table: str, entry: os.DirEntry[str]) -> None:
        if entry.name.endswith(".json"):
            times = self.instruments.setdefault(table, {})
            times[entry.name.removesuffix(".json")] = self._note(entry)
        elif match := _FILE.match(entry.name):
            instrument, step = match["instrument"], int(match["step"])
            if match["kind"] == "parts":
                self.files += [
                    TableFile(table, path, instrument, step, part=True)
                    for path in self._parts(entry.path)
                ]
            elif match["kind"] == "parquet" or table == "verdicts":
                self._note(entry)
                journal = match["kind"] == "jsonl"
                self.files.append(TableFile(table, entry.path, instrument, step, journal=journal))

    def _parts(self, folder: str) -> list[str]:
        parts = [
            entry
            for entry in self._entries(folder)
            if entry.name.endswith(".parquet") and entry.name.removesuffix(".parquet").isdigit()
        ]
        for entry in parts:
            self._note(entry)
        return [entry.path for entry in parts]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """The visible entries of a folder; empty where it has gone.

        Parts go when they are merged.
        """
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _note(self, entry: os.DirEntry[str]) -> int:
        if not self._complete and not entry.name.endswith(".json"):
            return 0
        try:
            facts = entry.stat()
        except FileNotFoundError:
            return 0
        self.seen.append(f"{entry.path[self._skip :]} {facts.st_size} {facts.st_mtime_ns}")
        self.newest = max(self.newest, facts.st_mtime_ns)
        return facts.st_mtime_ns
