"""The journal of verdicts: a file of lines, each written to disk before the next request.

A line is one verdict as a JSON object. A process may be killed at any moment: complete lines count,
and text after the last line end is removed when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evilspectra.errors import BadInput, cannot_read
from evilspectra.store.files import valid_text, writing
from evilspectra.store.records import VerdictRecord, columns

_COLUMNS = frozenset(columns(VerdictRecord))


class Journal:
    """An open journal; only this process writes to it."""

    def __init__(self, path: Path, setting: str) -> None:
        self.path: Path = path
        self.setting: str = setting

    def append(self, verdicts: Iterable[VerdictRecord]) -> None:
        """Writes verdicts, and returns when they are on the disk."""
        lines = "".join(_line(verdict) for verdict in verdicts)
        with writing(self.path, self.setting), self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Removes the file, once its verdicts are stored elsewhere."""
        self.path.unlink(missing_ok=True)


@contextmanager
def opened(path: Path, setting: str = "output.folder") -> Iterator[Journal]:
    """The journal, locked for this process, without an incomplete line left by a killed one.

    Raises:
        BadInput: another process writes to it.
    """
    lock = FileLock(path.with_name(f".{path.stem}.lock"))
    with writing(path, setting):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:  # an OSError too
            raise BadInput(
                f"{path} is being written by another process, which judges the same answers: wait "
                "until it ends, then run the same command again"
            ) from None
    try:
        with writing(path, setting):
            if path.is_file():
                complete = path.read_bytes().rfind(b"\n") + 1
                if complete < path.stat().st_size:
                    os.truncate(path, complete)
        yield Journal(path, setting)
    finally:
        lock.release()


def read_journal(path: Path) -> list[VerdictRecord]:
    """Reads the verdicts of a journal in the order written; none if there is no file.

    The journal may be open in another process.

    Raises:
        BadInput: a line of it is no verdict.
    """
    try:
        lines: Sequence[bytes] = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot_read(error, path) from None
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _line(verdict: VerdictRecord) -> str:
    values = {
        name: valid_text(value) if isinstance(value, str) else value
        for name, value in asdict(verdict).items()
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def _record(line: bytes, label: str) -> VerdictRecord:
    try:
        values: Any = json.loads(line)
        if not isinstance(values, dict) or values.keys() != _COLUMNS:
            raise ValueError("it holds no verdict")
        return VerdictRecord(**values)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{label} cannot be read ({str(error)[:80]}): remove that line, and judge again"
        ) from None
