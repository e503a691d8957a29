"""The index of a store: a Parquet file of its runs' digests, `<store>/.index/runs.parquet`.

It may be removed at any time. A row is valid as long as the run's files still have the names, sizes
and modification times from which it was made; other rows are rebuilt on the next query. So nothing
has to keep the file up to date, two writers cannot corrupt it (the last one wins, and missing rows
are added again), a run that changes while it is read is read again, and a read-only store is merely
slower.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evilspectra
from evilspectra.errors import BadInput, EvilspectraError, first_line
from evilspectra.evaluation.rate_rows import RateRow
from evilspectra.store.files import write_table
from evilspectra.store.records import RunSummary, columns
from evilspectra.store.run import RunFolder, Status, is_run
from evilspectra.tables.bulk import digests
from evilspectra.tables.digest import CheckpointRow, Digest, digest
from evilspectra.tables.inventory import Stock, run_folders, stocks

if TYPE_CHECKING:
    import pyarrow as pa

#: Increased whenever the content of a row, or how it is computed, changes.
VERSION = 2
#: A file that changed less than this many ns before it was read may change again without showing
#: it: file systems count time in coarse ticks.
_SETTLED = 2_000_000_000
#: Runs after which the index is saved, so that an interruption costs little.
_CHUNK = 1000


@dataclass(frozen=True)
class Index:
    """The digests of a store.

    `stocks`: its runs, in order; `table`: a row for each, `checkpoints` and `rates` being lists of
    structs; `renewed`: how many rows were made now.
    """

    root: Path
    stocks: Sequence[Stock]
    table: pa.Table
    renewed: int

    def runs(self) -> pa.Table:
        """One row per run that could be read: the fields of `RunSummary` and `settings` as JSON."""
        return self._read().select([*columns(RunSummary), "settings"])

    def checkpoints(self) -> pa.Table:
        """The fields of `CheckpointRow`, with `folder` in front."""
        return _long(self._read(), "checkpoints")

    def rates(self) -> pa.Table:
        """The fields of `RateRow`, with `folder` in front."""
        return _long(self._read(), "rates")

    def problems(self) -> dict[str, str]:
        """Maps each folder of a run that could not be read to the reason."""
        folders, problems = self.table["folder"].to_pylist(), self.table["problem"].to_pylist()
        return {
            folder: problem for folder, problem in zip(folders, problems, strict=True) if problem
        }

    def _read(self) -> pa.Table:
        return self.table.filter(self.table["problem"].is_null())


def states(root: str | os.PathLike[str]) -> dict[Path, Status | BadInput]:
    """Maps the folder of every run below the root to its status, or why that cannot be read.

    In order of folders; nothing but the status is opened.
    """
    return {folder: _status(RunFolder(folder)) for folder in run_folders(root)}


def _status(run: RunFolder) -> Status | BadInput:
    try:
        return run.status()
    except BadInput as error:
        return error


def read_index(
    root: str | os.PathLike[str],
    note: Callable[[str], object] = lambda text: None,
    *,
    keep: bool = True,
) -> Index:
    """Reads the digests of every run below the root, and renews those that are out of date.

    `note` is called with messages on work that takes long; with `keep` the renewed rows are saved.

    Raises:
        BadInput: there is no run below the root.
    """
    root = Path(root)
    runs = stocks(root)
    if not runs:
        raise no_runs(root)
    path = _index_path(root)
    table = _load(path)
    names = [_name(root, stock) for stock in runs]
    row_of = {name: row for row, name in enumerate(table["key"].to_pylist())}
    facts = list(zip(table["state"].to_pylist(), table["read_at"].to_pylist(), strict=True))
    valid: dict[str, int] = {}
    outdated: list[tuple[str, Stock]] = []
    for name, stock in zip(names, runs, strict=True):
        if name in row_of and _is_valid(stock, *facts[row_of[name]]):
            valid[name] = row_of[name]
        else:
            outdated.append((name, stock))
    table = _rows(table, valid.values())
    for start in range(0, len(outdated), _CHUNK):
        if start or len(outdated) > _CHUNK:
            note(f"reading runs: {start:,} of {len(outdated):,} that are new or have changed")
        table = _joined(table, outdated[start : start + _CHUNK])
        if keep and path:
            _save(table, path)
    if keep and path and not outdated and len(table) < len(row_of):
        _save(table, path)
    order = {name: row for row, name in enumerate(table["key"].to_pylist())}
    table = _with_current_states(root, _rows(table, (order[name] for name in names)))
    return Index(root, runs, table, len(outdated))


def no_runs(root: str | os.PathLike[str]) -> BadInput:
    """The error for a root without runs."""
    return BadInput(
        f"{root} holds no runs: name a store, an experiment or a run's folder, or make runs with "
        "`evilspectra train` first"
    )


def _is_valid(stock: Stock, state: str, read_at: int) -> bool:
    """Whether a row, of files in that state and read at that time, still holds."""
    return state == stock.state and stock.newest + _SETTLED < read_at


def _index_path(root: Path) -> Path | None:
    """The file of the index; None for a single run."""
    return None if is_run(root) else root / ".index" / "runs.parquet"


def _name(root: Path, stock: Stock) -> str:
    return stock.run.path.relative_to(root).as_posix()


def _rows(table: pa.Table, numbers: Iterable[int]) -> pa.Table:
    import pyarrow as pa

    return table.take(pa.array(numbers, pa.int64()))


def _joined(table: pa.Table, outdated: Sequence[tuple[str, Stock]]) -> pa.Table:
    """The table with rows of outdated runs appended, read now."""
    import pyarrow as pa

    read_at = time.time_ns()
    fast = digests([stock for _, stock in outdated])
    rows = [
        _row(name, stock, read_at, ready)
        for (name, stock), ready in zip(outdated, fast, strict=True)
    ]
    return pa.concat_tables([table, pa.Table.from_pylist(rows, schema=_schema())])


def _row(
    name: str,
    stock: Stock,
    read_at: int,
    ready: Digest | None,
) -> dict[str, Any]:
    """The row of a run, whose digest is read unless it is ready."""
    row: dict[str, Any] = {"key": name, "state": stock.state, "read_at": read_at, "problem": None}
    try:
        return row | flat(ready or digest(stock.run))
    except EvilspectraError as error:
        problem = str(error)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        # a file with content that this package does not write
        problem = f"{type(error).__name__}: {first_line(error)}"
    return row | {
        "problem": problem,
        "run": stock.run.name,
        "experiment": stock.run.experiment,
        "folder": str(stock.run.path),
    }


def flat(digest: Digest) -> dict[str, Any]:
    """Converts a digest to a row of the index."""
    return asdict(digest.summary) | {
        "settings": json.dumps(digest.settings, ensure_ascii=False),
        "checkpoints": [asdict(row) for row in digest.checkpoints],
        "rates": [asdict(row) for row in digest.rates],
    }


def _with_current_states(root: Path, table: pa.Table) -> pa.Table:
    """The table with folders below this root, and the current states of unfinished runs.

    Those depend on a lock, which no file shows.
    """
    import pyarrow as pa

    folders = [str(root / key) for key in table["key"].to_pylist()]
    state, reason = table["status"].to_pylist(), table["reason"].to_pylist()
    for row, stored in enumerate(state):
        if stored in ("running", "interrupted"):
            now = _status(RunFolder(Path(folders[row])))
            if isinstance(now, Status):
                state[row], reason[row] = now.state, now.reason
            else:
                reason[row] = str(now)
    for name, values in (("folder", folders), ("status", state), ("reason", reason)):
        table = table.set_column(
            table.schema.get_field_index(name),
            table.schema.field(name),
            pa.array(values, pa.string()),
        )
    return table


# --- the file -------------------------------------------------------------------------------------


def _load(path: Path | None) -> pa.Table:
    """The saved index; empty where there is none of this version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    with suppress(pa.ArrowException, OSError, ValueError):
        if path and path.is_file():
            table = pq.read_table(path)
            if (table.schema.metadata or {}).get(b"evilspectra") == schema.metadata[b"evilspectra"]:
                return table.cast(schema)
    return schema.empty_table()


def _save(table: pa.Table, path: Path) -> None:
    # a store that cannot be written, or a full disk, is merely slower
    """Saves the index, if possible."""
    with suppress(EvilspectraError):
        write_table(path, table)


def _schema() -> pa.Schema:
    import pyarrow as pa

    own = [
        pa.field(name, kind)
        for name, kind in (
            ("key", pa.string()),
            ("state", pa.string()),
            ("read_at", pa.int64()),
            ("problem", pa.string()),
            ("settings", pa.string()),
        )
    ]
    lists = [
        pa.field(name, pa.list_(pa.struct(arrow_fields(kind))))
        for name, kind in (("checkpoints", CheckpointRow), ("rates", RateRow))
    ]
    made_by = f"{VERSION} {evilspectra.__version__}"
    return pa.schema([*own, *arrow_fields(RunSummary), *lists], metadata={"evilspectra": made_by})


def arrow_fields(kind: type) -> list[pa.Field]:
    """The columns of a class of rows, all nullable."""
    import pyarrow as pa

    kinds = {
        "int": pa.int64(),
        "float": pa.float64(),
        "str": pa.string(),
        "State": pa.string(),
        "bool": pa.bool_(),
    }
    hints: Mapping[str, Any] = kind.__annotations__
    return [pa.field(name, kinds[str(hints[name]).split(" ")[0]]) for name in columns(kind)]


def _long(table: pa.Table, name: str) -> pa.Table:
    """A table with a row for every entry of a column of lists."""
    import pyarrow as pa

    column: Any = (
        pa.concat_arrays(table[name].chunks)
        if table[name].num_chunks
        else pa.array([], table.schema.field(name).type)
    )
    entries = column.flatten()
    parents = table["folder"].take(column.value_parent_indices())
    return pa.Table.from_arrays(
        [parents, *entries.flatten()], names=["folder", *(field.name for field in entries.type)]
    )
