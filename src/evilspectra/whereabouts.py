"""Where a run's directory is, which depends on the content of data and base. No torch here."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Literal

from evilspectra import base as bases
from evilspectra.base import Base
from evilspectra.config import Config, identity
from evilspectra.rows import read_rows
from evilspectra.store import RunFolder, Store


def locate(config: Config) -> tuple[RunFolder, Base]:
    """The run's directory, which need not be there yet, and the base that was found.

    Raises:
        BadInput: data or base are missing or unusable.
    """
    base = bases.resolve(config.model)
    sha256 = [_content(config, source) for source in (config.data.train, config.data.heldout) if source]
    digest = identity(config, sha256[0], base.sha256, *sha256[1:])
    return Store(Path(config.output.folder)).run(config, digest), base


def _content(config: Config, source: str) -> str:
    """The content hash of a data source, which is read through to find its faults; a file once, however many runs share it."""
    stamp = (stat.st_size, stat.st_mtime_ns) if os.path.isfile(source) and (stat := os.stat(source)) else time.monotonic_ns()
    return _read_content(source, config.data.split, config.data.on_bad_row, config.data.local_files_only, stamp)


@lru_cache(maxsize=64)
def _read_content(source: str, split: str, on_bad_row: Literal["error", "skip"], local_files_only: bool, stamp: object) -> str:
    return read_rows(source, split=split, on_bad_row=on_bad_row, local_files_only=local_files_only).sha256
