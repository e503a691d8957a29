"""The run directory: the only file that knows file names.

    runs/<experiment>/<run id>/
        config.yaml  provenance.json  status.json
        steps.parquet  heldout.parquet  spectra.parquet  measures.parquet
        checkpoints/<step>/  adapter/  resume.pt (while running)

What other people's trainers leave behind has the same tables, in `<their output
folder>/evilspectra/`, and in place of config.yaml a `trainer.json` that says what is known of the
run.

Every file is written under a temporary name, flushed to disk and renamed, so a reader never sees
half of one. While a run is under way its tables are parts (`steps.parts/00000010.parquet` holds
what came up to step 10); the end of the run merges them. Reading does not care which.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
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
    _arrow_schema,
    _remove,
    as_table,
    read_json,
    read_table,
    write_atomically,
    write_json,
    write_table,
    writing,
)
from evilspectra.store.records import TABLES, State

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def arm(config: Config) -> str:
    """@@FIX A short label for what distinguishes runs: the optimiser, the penalty's weight where there is
    one, whether it is a control.

    >>> arm(configs.build({"flatness": {"weight": 3}}))
    'adamw + flatness 3'
    """
    weight = config.flatness.weight
    label = config.optimizer.name + (f" + flatness {weight:g}" if weight else "")
    return f"control ({label})" if config.data.control else label


def run_id(config: Config, digest: str) -> str:
    """Readable prefix and digest: `adamw-flat-b8-s0-1f3a9c04d2`."""
    flat = "-flat" if config.flatness.weight else ""
    return f"{config.optimizer.name}{flat}-b{config.train.batch_size}-s{config.train.seed}-{digest}"


@dataclass(frozen=True)
class Status:
    """@@FIX Where a run stands: queued, running, done, failed or interrupted, and why if it is not done."""

    state: str
    reason: str | None = None
    step: int | None = None
    total_steps: int | None = None


#: The folder of a run's tables in the output folder of another trainer, and the file there that
#: says what is known of the run.
BESIDE, OUTSIDE = "evilspectra", "trainer.json"


@dataclass(frozen=True)
class RunFolder:
    """One run's directory. Nothing is created before something is written."""

    path: Path

    @classmethod
    def of_trainer(cls, output: Path) -> RunFolder:
        """The directory of a run that another trainer makes in the folder `output`."""
        return cls(output.resolve() / BESIDE)

    @property
    def name(self) -> str:
        return self._own.name

    @property
    def experiment(self) -> str:
        return self._own.parent.name

    @property
    def _own(self) -> Path:
        """The folder that has the run's name: its own, or the output folder of another trainer."""
        return (
            self.path.resolve().parent
            if self.path.name == BESIDE and self.is_outside
            else self.path
        )

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
        return dict(
            sorted((int(folder.name), folder) for folder in folders if folder.name.isdigit())
        )

    # --- config, provenance, status ---------------------------------------------------------------

    def config(self) -> Config:
        return configs.build(
            read_mapping(self.path / "config.yaml"), str(self.path / "config.yaml")
        )

    def provenance(self) -> dict[str, Any]:
        return read_json(self.path / "provenance.json")

    @property
    def is_outside(self) -> bool:
        """Whether another trainer made the run, so that there is no config of it."""
        return os.path.isfile(self.path / OUTSIDE)

    def outside(self) -> dict[str, Any]:
        """What is known of a run that another trainer made: section → field → value."""
        return read_json(self.path / OUTSIDE)

    def describe(self, known: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Writes what is known of such a run, over what was written before."""
        write_json(self.path / OUTSIDE, known, "output_dir")
        write_json(self.path / "provenance.json", provenance, "output_dir")

    def begin(self, config: Config, provenance: dict[str, Any]) -> None:
        """Writes config and provenance, or checks that what is there is the same run.

        Raises:
            BadInput: the directory was made with another config (the message names the settings
                that differ), or on another kind of device, or in another number type.
        """
        place = self.path / "config.yaml"
        if place.exists():
            self.check(config)
        else:
            write_atomically(
                place, lambda path: path.write_text(configs.dump(config), encoding="utf-8")
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
        """Refuses a config that is not the one the directory was made with.

        Raises:
            BadInput: it names the settings that differ.
        """
        if different := _differences(self.config(), config):
            raise BadInput(
                f"{self.path} was made with another config ({listing(different, 4)}): restore its "
                "config.yaml, or remove the folder, or set output.experiment to a new name"
            )

    def status(self) -> Status:
        """@@FIX The stored status; a run that says running while no process holds its lock was
        interrupted.
        """
        place = self.path / "status.json"
        if not os.path.exists(place):
            return Status("queued")
        values = read_json(place)
        if values.get("state") not in get_args(State):
            raise BadInput(
                f"{place} names the state {values.get('state')!r}; allowed: "
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
        """Holds the run for this process; the lock goes with the process, however it ends.

        A folder that stays empty is removed.

        Raises:
            InUse: another process holds it.
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
        """@@FIX Adds rows (records of the table's class) as the part that ends with step `upto`; no rows,
        no part.

        Parts follow each other: the steps of the rows are above what was appended before, and at
        most `upto`.
        """
        if rows:
            write_table(
                self.path / f"{table}.parts" / f"{upto:08d}.parquet", as_table(rows, TABLES[table])
            )

    def truncate(self, step: int) -> None:
        """@@FIX Drops records and checkpoints that were written after `step`, so that a resumed run
        repeats them; temporary files too.
        """
        import pyarrow.compute as pc

        for table in TABLES:
            whole = self.path / f"{table}.parquet"  # of a run that was stopped while merging
            if whole.exists():
                write_table(whole, self._arrow(table).filter(pc.field("step") <= step))
                shutil.rmtree(self.path / f"{table}.parts", ignore_errors=True)
            for part in self._parts(table):
                if int(part.stem) > step:
                    kept = read_table(part, TABLES[table]).filter(pc.field("step") <= step)
                    if len(kept):
                        write_table(part.with_name(f"{step:08d}.parquet"), kept)
                    part.unlink()
        for saved, folder in self.checkpoints().items():
            if saved > step:
                shutil.rmtree(folder)
        for leftover in [*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")]:
            _remove(leftover)

    def merge(self) -> None:
        """Makes one Parquet file of each table's parts; safe to repeat after an interruption."""
        for table in TABLES:
            if self._parts(table):
                write_table(self.path / f"{table}.parquet", self._arrow(table))
            shutil.rmtree(self.path / f"{table}.parts", ignore_errors=True)

    def read(self, table: str) -> pd.DataFrame:
        """@@FIX A table as a data frame, in the order written; empty (with its columns) where nothing is
        stored yet.
        """
        return self._arrow(table).to_pandas()

    def _parts(self, table: str) -> list[Path]:
        return sorted(
            (
                path
                for path in (self.path / f"{table}.parts").glob("*.parquet")
                if path.stem.isdigit()
            ),
            key=lambda path: int(path.stem),
        )

    def _arrow(self, table: str) -> pa.Table:
        """@@FIX The merged file, and of the parts what is past it: parts that were left over when merging
        was stopped repeat it.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        schema = _arrow_schema(TABLES[table])
        whole = self.path / f"{table}.parquet"
        found = [read_table(whole, TABLES[table])] if whole.exists() else [schema.empty_table()]
        last = int(found[0]["step"].to_numpy().max()) if len(found[0]) else None
        for part in self._parts(table):
            data = read_table(part, TABLES[table])
            found.append(data if last is None else data.filter(pc.field("step") > last))
        return pa.concat_tables(found)


@dataclass(frozen=True)
class Store:
    """A folder of experiments, each a folder of runs."""

    root: Path

    def run(self, config: Config, digest: str) -> RunFolder:
        """The directory of a run (not created yet)."""
        return RunFolder(self.root.expanduser() / config.output.experiment / run_id(config, digest))

    def runs(self) -> list[RunFolder]:
        """@@FIX The runs below the root, wherever it points: at a store, an experiment or one run; sorted
        by path.
        """
        folders = {
            place.parent
            for name in ("config.yaml", OUTSIDE)
            for place in self.root.glob(f"**/{name}")
        }
        return [RunFolder(folder) for folder in sorted(folders) if is_run(folder)]


def held(place: Path) -> bool:
    """Whether a process holds the lock at a path."""
    try:
        if place.exists():
            with FileLock(place, timeout=0):
                pass
    except OSError as error:
        return isinstance(error, Timeout)  # an OSError too
    return False


class NoRun(BadInput):
    """A name that means no run."""


def find_run(name: str, root: str = "runs") -> RunFolder:
    """@@FIX The run that a command's argument means: its folder, or its id (or the end or start of it)
    below `root`.

    Raises:
        BadInput: nothing, or more than one run, answers to the name.
    """
    for folder in (Path(name), Path(name) / BESIDE) if name else ():
        if is_run(folder):
            return RunFolder(folder.resolve())
    runs = Store(Path(root)).runs() if name else []
    found = [run for run in runs if name in (run.name, run.name.rsplit("-", 1)[-1])] or [
        run for run in runs if run.name.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(
            f"'{name}' means {len(found)} runs ({listing([run.path for run in found], 4)}): name "
            "one folder"
        )
    known = [run.name for run in runs]
    raise NoRun(
        f"there is no run '{name}': name a run's folder, or the id of a run below {root}/ "
        f"({listing(known, 6) or 'which holds none'}).{near(name, known)}"
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's; a config.yaml or trainer.json alone may be anybody's."""
    named, beside = (
        [os.path.isfile(folder / name) for name in names]
        for names in (("config.yaml", OUTSIDE), ("status.json", "provenance.json"))
    )
    return any(named) and any(beside) and not folder.name.startswith(".")


def _differences(there: Config, here: Config) -> list[str]:
    a, b = (
        flat(one.model_dump(mode="json", exclude=configs.NOT_IDENTITY)) for one in (there, here)
    )
    return [
        f"{key}: {a.get(key, 'absent')} there, {b.get(key, 'absent')} here"
        for key in a | b
        if a.get(key, ...) != b.get(key, ...)
    ]
