"""The directory of a run, which depends on the content of data and base. No torch here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from evilspectra.config.loading import identity
from evilspectra.config.sections import Config
from evilspectra.data.rows import read_rows
from evilspectra.model import base as bases
from evilspectra.model.base import Base
from evilspectra.optim.own import pinned
from evilspectra.store.run import RunFolder, Store


@dataclass(frozen=True)
class Source:
    """A data source: sha256 of its content, usable rows, and characters in their turns."""

    sha256: str
    rows: int
    characters: int


def locate(config: Config) -> tuple[RunFolder, Base]:
    """The run's directory, which depends on the content of data and base, and the base itself.

    Raises:
        BadInput: data or base are missing or unusable, or so is an optimiser of the user's own.
    """
    config = pinned(config)
    base = bases.resolve(config.model)
    sha256 = [
        read_source(config, source).sha256
        for source in (config.data.train, config.data.heldout)
        if source
    ]
    return folder_of(config, base.sha256, *sha256), base


def folder_of(
    config: Config,
    base: str,
    data: str,
    heldout: str | None = None,
) -> RunFolder:
    """The run's directory, given the hashes of its contents."""
    return Store(Path(config.output.folder)).run(config, identity(config, data, base, heldout))


def read_source(config: Config, source: str) -> Source:
    """Reads a data source to the end, so that faults are found; a file once for all runs.

    Raises:
        BadInput: it is missing or unusable.
    """
    stamp: object = time.monotonic_ns()
    if os.path.isfile(source):
        stat = os.stat(source)
        stamp = stat.st_size, stat.st_mtime_ns
    return _read(
        source, config.data.split, config.data.on_bad_row, config.data.local_files_only, stamp
    )


@lru_cache(maxsize=64)
def _read(
    source: str,
    split: str,
    on_bad_row: Literal["error", "skip"],
    local_files_only: bool,
    stamp: object,
) -> Source:
    read = read_rows(source, split=split, on_bad_row=on_bad_row, local_files_only=local_files_only)
    return Source(
        read.sha256,
        len(read.conversations),
        sum(len(turn.content) for talk in read.conversations for turn in talk.messages),
    )
