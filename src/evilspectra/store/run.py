"""The run directory: the only module that knows its file names.

    runs/<experiment>/<run id>/
        config.yaml  provenance.json  status.json
        steps.parquet  heldout.parquet  spectra.parquet  measures.parquet
        checkpoints/<step>/  adapter/  resume.pt (while running)

A run of another trainer has the same tables, in `<its output folder>/evilspectra/`, and instead of
config.yaml a `trainer.json` with the settings that are known of it.

Every file is written under a temporary name, flushed to disk and renamed, so that a reader never
sees half of a file. During a run its tables are in parts (`steps.parts/00000010.parquet` holds the
rows up to step 10), which are merged at the end of the run. Both are read the same way.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from filelock import FileLock, Timeout

from evilspectra.config import loading as configs
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import flat, read_mapping
from evilspectra.errors import BadInput, InUse, listing, near
from evilspectra.store.files import (
    arrow_schema,
    as_table,
    read_json,
    read_table,
    remove,
    write_atomically,
    write_json,
    write_table,
    writing,
)
from evilspectra.store.labels import run_id
from evilspectra.store.records import TABLES, State

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class Status:
    """The state of a run: queued, running, done, failed or interrupted; the reason if not done."""

    state: str
    reason: str | None = None
    step: int | None = None
    total_steps: int | None = None


#: The folder of a run's tables in the output folder of another trainer.
TABLES_FOLDER = "evilspectra"
#: The file there with the settings that are known of the run.
OUTSIDE = "trainer.json"


@dataclass(frozen=True)
class RunFolder:
    """One run's directory. Nothing is created before something is written."""

    path: Path

    @classmethod
    def of_trainer(cls, output: Path) -> RunFolder:
        """The directory of a run that another trainer makes in the folder `output`."""
        return cls(output.resolve() / TABLES_FOLDER)

    @property
    def name(self) -> str:
        return self._own.name

    @property
    def experiment(self) -> str:
        return self._own.parent.name

    @property
    def _own(self) -> Path:
        """The folder that has the run's name: its own, or the output folder of another trainer."""
        if self.path.name == TABLES_FOLDER and self.is_outside:
            return self.path.resolve().parent
        return self.path

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def resume_file(self) -> Path:
        return self.path / "resume.pt"

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / str(step)

    def checkpoints(self) -> dict[int, Path]:
        """Step → folder of the saved checkpoints, in order."""
        folders = (self.path / "checkpoints").glob("*")
        by_step = {int(folder.name): folder for folder in folders if folder.name.isdigit()}
        return dict(sorted(by_step.items()))

    # --- config, provenance, status ---------------------------------------------------------------

    def config(self) -> Config:
        path = self.path / "config.yaml"
        return configs.build(read_mapping(path), str(path))

    def provenance(self) -> dict[str, Any]:
        return read_json(self.path / "provenance.json")

    @property
    def is_outside(self) -> bool:
        """Whether another trainer made the run; such a run has no config."""
        return os.path.isfile(self.path / OUTSIDE)

    def outside(self) -> dict[str, Any]:
        """The known settings of a run that another trainer made: section → field → value."""
        return read_json(self.path / OUTSIDE)

    def describe(self, description: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Writes the known settings of such a run and its provenance, replacing earlier ones."""
        write_json(self.path / OUTSIDE, description, "output_dir")
        write_json(self.path / "provenance.json", provenance, "output_dir")

    def begin(self, config: Config, provenance: dict[str, Any]) -> None:
        """Writes config and provenance, or checks that those in the folder are of the same run.

        Raises:
            BadInput: the folder was made with another config (the message names the settings that
                differ), on another kind of device, or in another number type.
        """
        config_file = self.path / "config.yaml"
        if config_file.exists():
            self.check(config)
        else:
            write_atomically(
                config_file, lambda path: path.write_text(configs.dump(config), encoding="utf-8")
            )
        if not (self.path / "provenance.json").exists():
            write_json(self.path / "provenance.json", provenance)
            return
        before, now = (
            f"{origin.get('dtype')} on {str(origin.get('device')).split(':')[0]}"
            for origin in (self.provenance(), provenance)
        )
        if before != now:
            raise BadInput(
                f"{self.path} was begun in {before}, and this would go on in {now}: set "
                "model.device and model.dtype to what it was begun with, or remove the folder"
            )

    def check(self, config: Config) -> None:
        """Refuses a config that is not the one the folder was made with.

        Raises:
            BadInput: the config differs; the message names the settings that do.
        """
        if different := _differences(self.config(), config):
            raise BadInput(
                f"{self.path} was made with another config ({listing(different, 4)}): restore its "
                "config.yaml, or remove the folder, or set output.experiment to a new name"
            )

    def status(self) -> Status:
        """The stored status; interrupted where that is running and no process holds the lock."""
        file = self.path / "status.json"
        if not os.path.exists(file):
            return Status("queued")
        values = read_json(file)
        if values.get("state") not in get_args(State):
            raise BadInput(
                f"{file} names the state {values.get('state')!r}; allowed: "
                f"{listing(get_args(State))}: restore it, or remove the run's folder and run again"
            )
        status = Status(
            values["state"], values.get("reason"), values.get("step"), values.get("total_steps")
        )
        if status.state == "running" and not self.in_use:
            return Status(
                "interrupted",
                "the process ended without a word; run the same command again to go on",
                status.step,
                status.total_steps,
            )
        return status

    def set_status(self, status: Status) -> None:
        write_json(
            self.path / "status.json",
            asdict(status) | {"written": datetime.now(UTC).isoformat(timespec="seconds")},
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process; the lock ends with the process, however that ends.

        A folder that stays empty is removed.

        Raises:
            InUse: another process holds the run.
        """
        lock = FileLock(self.path / ".lock")
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=1)  # longer than a reader of the status holds it
            except Timeout:  # an OSError too
                raise InUse(
                    f"{self.path} is being written by another process: wait until it ends, or "
                    "stop it, then run the same command again"
                ) from None
        try:
            yield
        finally:
            if os.listdir(self.path) == [".lock"]:  # refused before anything was written
                with suppress(OSError):
                    shutil.rmtree(self.path)
                    self.path.parent.rmdir()
            lock.release()

    @property
    def in_use(self) -> bool:
        """Whether a process holds the run."""
        return held(self.path / ".lock")

    # --- tables -----------------------------------------------------------------------------------

    def append(self, table: str, rows: Sequence[Any], upto: int) -> None:
        """Adds rows (records of the table's class) as the part that ends with step `upto`.

        Without rows there is no part. Parts follow each other: the steps of the rows are above
        those appended before, and at most `upto`.
        """
        if rows:
            part = self.path / f"{table}.parts" / f"{upto:08d}.parquet"
            write_table(part, as_table(rows, TABLES[table]))

    def truncate(self, step: int) -> None:
        """Drops the records and checkpoints of steps after `step`, which a resumed run repeats.

        Temporary files are removed too.
        """
        import pyarrow.compute as pc

        for table in TABLES:
            merged = self.path / f"{table}.parquet"  # of a run that was stopped while merging
            if merged.exists():
                write_table(merged, self._arrow(table).filter(pc.field("step") <= step))
                shutil.rmtree(self.path / f"{table}.parts", ignore_errors=True)
            for part in self._parts(table):
                if int(part.stem) > step:
                    rows = read_table(part, TABLES[table]).filter(pc.field("step") <= step)
                    if len(rows):
                        write_table(part.with_name(f"{step:08d}.parquet"), rows)
                    part.unlink()
        for saved, folder in self.checkpoints().items():
            if saved > step:
                shutil.rmtree(folder)
        for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            remove(leftover)

    def merge(self) -> None:
        """Makes one Parquet file of each table's parts; safe to repeat after an interruption."""
        for table in TABLES:
            if self._parts(table):
                write_table(self.path / f"{table}.parquet", self._arrow(table))
            shutil.rmtree(self.path / f"{table}.parts", ignore_errors=True)

    def read(self, table: str) -> pd.DataFrame:
        """A table as a data frame, in the order written; without rows where none is stored yet."""
        return self._arrow(table).to_pandas()

    def _parts(self, table: str) -> list[Path]:
        files = (self.path / f"{table}.parts").glob("*.parquet")
        parts = [path for path in files if path.stem.isdigit()]
        return sorted(parts, key=lambda path: int(path.stem))

    def _arrow(self, table: str) -> pa.Table:
        """The merged file's rows, and the rows of the parts that are past its last step.

        Parts left over from a merge that was stopped repeat rows of the merged file.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        schema = arrow_schema(TABLES[table])
        merged = self.path / f"{table}.parquet"
        tables = [read_table(merged, TABLES[table])] if merged.exists() else [schema.empty_table()]
        last = int(tables[0]["step"].to_numpy().max()) if len(tables[0]) else None
        for part in self._parts(table):
            data = read_table(part, TABLES[table])
            tables.append(data if last is None else data.filter(pc.field("step") > last))
        return pa.concat_tables(tables)


@dataclass(frozen=True)
class Store:
    """A folder of experiments, each a folder of runs."""

    root: Path

    def run(self, config: Config, digest: str) -> RunFolder:
        """The directory of a run (not created yet)."""
        return RunFolder(self.root.expanduser() / config.output.experiment / run_id(config, digest))

    def runs(self) -> list[RunFolder]:
        """The runs below the root, which is a store, an experiment or a run; sorted by path."""
        names = ("config.yaml", OUTSIDE)
        folders = {path.parent for name in names for path in self.root.glob(f"**/{name}")}
        return [RunFolder(folder) for folder in sorted(folders) if is_run(folder)]


def held(lock: Path) -> bool:
    """Whether a process holds the lock at a path."""
    try:
        if lock.exists():
            with FileLock(lock, timeout=0):
                pass
    except OSError as error:
        return isinstance(error, Timeout)  # an OSError too
    return False


class NoRun(BadInput):
    """A name that means no run."""


def find_run(name: str, root: str = "runs") -> RunFolder:
    """The run that a name means: its folder, or (the start or the end of) its id below `root`.

    Raises:
        NoRun: the name means no run.
        BadInput: the name means more than one run.
    """
    for folder in (Path(name), Path(name) / TABLES_FOLDER) if name else ():
        if is_run(folder):
            return RunFolder(folder.resolve())
    runs = Store(Path(root)).runs() if name else []
    matching = [run for run in runs if name in (run.name, run.name.rsplit("-", 1)[-1])]
    matching = matching or [run for run in runs if run.name.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise BadInput(
            f"'{name}' means {len(matching)} runs ({listing([run.path for run in matching], 4)}): "
            "name one folder"
        )
    ids = [run.name for run in runs]
    raise NoRun(
        f"there is no run '{name}': name a run's folder, or the id of a run below {root}/ "
        f"({listing(ids, 6) or 'which holds none'}).{near(name, ids)}"
    )


def is_run(folder: Path, entries: Collection[str] | None = None) -> bool:
    """Whether a folder is a run's; a config.yaml or trainer.json alone may be any program's.

    `entries`: the names of all that it holds, where they have been listed.
    """
    pairs = {"config.yaml", OUTSIDE}, {"status.json", "provenance.json"}
    if entries is None:
        entries = [file for file in set().union(*pairs) if os.path.isfile(folder / file)]
    return not (folder.name.startswith(".") or any(pair.isdisjoint(entries) for pair in pairs))


def _differences(there: Config, here: Config) -> list[str]:
    a, b = (
        flat(config.model_dump(mode="json", exclude=configs.NOT_IDENTITY))
        for config in (there, here)
    )
    return [
        f"{key}: {a.get(key, 'absent')} there, {b.get(key, 'absent')} here"
        for key in a | b
        if a.get(key, ...) != b.get(key, ...)
    ]
