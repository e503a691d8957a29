"""What a store knows of its runs, kept beside them: a Parquet file of digests,
`<store>/.index/runs.parquet`, that may be removed at any time.

A row holds good as long as the run's files have the names, sizes and times of change that it was
made from; other rows are made anew when somebody asks. So nobody has to keep the file up to date,
two writers cannot spoil it (the last one's file stands, and what it lacks is made again), a run
that changes while it is read is read again, and a store that cannot be written is merely slower.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import evilspectra
from evilspectra.errors import BadInput, EvilspectraError, first_line
from evilspectra.store.files import write_table
from evilspectra.store.records import RunSummary, columns
from evilspectra.store.run import RunFolder, Status, is_run
from evilspectra.tables.bulk import digests
from evilspectra.tables.digest import CheckpointRow, Digest, RateRow, digest
from evilspectra.tables.inventory import Stock, run_folders, stocks

if TYPE_CHECKING:
    import pyarrow as pa

#: Raised whenever what a row holds, or how it is worked out, changes.
VERSION = 1
#: A file that changed less than this many ns before it was read may change again without showing
#: it: file systems count time in coarse ticks.
_SETTLED = 2_000_000_000
#: Runs after which what was found is saved, so that an interruption costs little.
_CHUNK = 1000


@dataclass(frozen=True)
class Index:
    """The digests of a store.

    `stocks`: its runs, in order; `table`: a row for each, `checkpoints` and `rates` being lists of
    structs; `made`: how many were made now.
    """

    root: Path
    stocks: Sequence[Stock]
    table: pa.Table
    made: int

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
        """Folder → why a run could not be read."""
        return {
            folder: why
            for folder, why in zip(
                self.table["folder"].to_pylist(), self.table["problem"].to_pylist(), strict=True
            )
            if why
        }

    def _read(self) -> pa.Table:
        return self.table.filter(self.table["problem"].is_null())


def states(root: Path) -> dict[Path, Status | BadInput]:
    """Folder of every run below the root → its status (or why that cannot be read), in order;
    nothing but the status is opened.
    """
    return {folder: _status(RunFolder(folder)) for folder in run_folders(root)}


def _status(run: RunFolder) -> Status | BadInput:
    try:
        return run.status()
    except BadInput as error:
        return error


def read_index(
    root: Path, note: Callable[[str], object] = lambda text: None, *, keep: bool = True
) -> Index:
    """The digests of every run below the root, those that are out of date made anew and kept;
    `note` is told of work that takes long.

    Raises:
        BadInput: there is no run below the root.
    """
    found = stocks(root)
    if not found:
        raise BadInput(
            f"{root} holds no runs: name a store, an experiment or a run's folder, or make runs "
            "with `evilspectra train` first"
        )
    place = _place(root)
    table = _kept(place)
    names = [_name(root, one) for one in found]
    have = {name: row for row, name in enumerate(table["key"].to_pylist())}
    facts = list(zip(table["state"].to_pylist(), table["read_at"].to_pylist(), strict=True))
    good = {
        name: have[name]
        for name, one in zip(names, found, strict=True)
        if name in have
        and facts[have[name]][0] == one.state
        and one.newest + _SETTLED < facts[have[name]][1]
    }
    table = _rows(table, good.values())
    missing = [(name, one) for name, one in zip(names, found, strict=True) if name not in good]
    for start in range(0, len(missing), _CHUNK):
        if start or len(missing) > _CHUNK:
            note(f"reading runs: {start:,} of {len(missing):,} that are new or have changed")
        table = _joined(table, missing[start : start + _CHUNK])
        if keep and place:
            _keep(table, place)
    if keep and place and not missing and len(table) < len(have):
        _keep(table, place)
    order = {name: row for row, name in enumerate(table["key"].to_pylist())}
    return Index(
        root, found, _alive(root, _rows(table, (order[name] for name in names))), len(missing)
    )


def _place(root: Path) -> Path | None:
    """Where the digests are kept; nowhere for a single run."""
    return None if is_run(root) else root / ".index" / "runs.parquet"


def _name(root: Path, one: Stock) -> str:
    return one.run.path.relative_to(root).as_posix()


def _rows(table: pa.Table, which: Iterable[int]) -> pa.Table:
    import pyarrow as pa

    return table.take(pa.array(which, pa.int64()))


def _joined(table: pa.Table, missing: Sequence[tuple[str, Stock]]) -> pa.Table:
    import pyarrow as pa

    read_at = time.time_ns()
    found = digests([one for _, one in missing])
    rows = [
        _row(name, one, read_at, made) for (name, one), made in zip(missing, found, strict=True)
    ]
    return pa.concat_tables([table, pa.Table.from_pylist(rows, schema=_schema())])


def _row(
    name: str,
    one: Stock,
    read_at: int,
    made: Digest | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"key": name, "state": one.state, "read_at": read_at, "problem": None}
    try:
        return row | flat(made or digest(one.run))
    except EvilspectraError as error:
        return row | {
            "problem": str(error),
            "run": one.run.name,
            "experiment": one.run.experiment,
            "folder": str(one.run.path),
        }
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:
        # a file that holds what nobody here wrote
        return row | {
            "problem": f"{type(error).__name__}: {first_line(error)}",
            "run": one.run.name,
            "experiment": one.run.experiment,
            "folder": str(one.run.path),
        }


def flat(found: Digest) -> dict[str, Any]:
    """A digest as a row of the index."""
    return asdict(found.summary) | {
        "settings": json.dumps(found.settings, ensure_ascii=False),
        "checkpoints": [asdict(one) for one in found.checkpoints],
        "rates": [asdict(one) for one in found.rates],
    }


def _alive(root: Path, table: pa.Table) -> pa.Table:
    """With folders below this root, and the states of runs under way as they are now: they hang on
    a lock, which no file shows.
    """
    import pyarrow as pa

    folders = [str(root / key) for key in table["key"].to_pylist()]
    state, reason = table["status"].to_pylist(), table["reason"].to_pylist()
    for row, said in enumerate(state):
        if said in ("running", "interrupted"):
            now = _status(RunFolder(Path(folders[row])))
            state[row], reason[row] = (
                (now.state, now.reason) if isinstance(now, Status) else (said, str(now))
            )
    for name, values in (("folder", folders), ("status", state), ("reason", reason)):
        table = table.set_column(
            table.schema.get_field_index(name),
            table.schema.field(name),
            pa.array(values, pa.string()),
        )
    return table


# --- the file -------------------------------------------------------------------------------------


def _kept(place: Path | None) -> pa.Table:
    """What was kept, or nothing where there is nothing that this version made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    with suppress(pa.ArrowException, OSError, ValueError):
        if place and place.is_file():
            table = pq.read_table(place)
            if (table.schema.metadata or {}).get(b"evilspectra") == schema.metadata[b"evilspectra"]:
                return table.cast(schema)
    return schema.empty_table()


def _keep(table: pa.Table, place: Path) -> None:
    # a store that cannot be written, or a full disk: it is slower, no more
    with suppress(EvilspectraError):
        write_table(place, table)


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
    """The columns of a class of rows, all of which may be null here."""
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
    """A row for every entry of a column of lists."""
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
