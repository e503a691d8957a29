"""Measurements of a run, an adapter or a model: the files below `evaluations/`.

    <folder>/evaluations/
        probe/1f3a9c04d2.json               the instrument 1f3a9c04d2: items (name, hash), settings
        probe/1f3a9c04d2-00000032.parquet   its rows for the adapter after step 32 (0: the base)
        capability/…  ordinary/…  answers/…
        answers/1f3a9c04d2-00000032.parts/0003.parquet   while answers are being sampled
        verdicts/1f3a9c04d2-00000032.jsonl               while verdicts are missing

A file is written as a whole or not at all, and never twice: a step that has its file is finished.
Instruments that differ in an item, a setting or the arithmetic have different ids, so that their
results never mix.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilspectra.store.built_in import BUILT_IN
from evilspectra.store.files import as_table, read_json, read_table, write_json, write_table
from evilspectra.store.records import MEASURED

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_REMEDY = "remove that file, and measure again"


@dataclass(frozen=True)
class Instrument:
    """A way of measuring that fills one table.

    `facts`: everything that determines its results, of JSON's types; its id is their hash, which
    does not depend on the name of the `source`.

    >>> copy = Instrument("probe", "a-copy.jsonl", {"version": 1})
    >>> Instrument("probe", "contrast", {"version": 1}).id == copy.id
    True
    """

    table: str
    source: str
    facts: Mapping[str, Any]

    @property
    def id(self) -> str:
        text = json.dumps([self.table, self.facts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Results:
    """The measurements in a folder.

    `setting`: the setting that a user changes to have them elsewhere. `selected`: table → the
    instrument that counts, where a command asked for one. `alone`: they are of a base model,
    without adapters.
    """

    folder: Path
    setting: str = "output.folder"
    selected: Mapping[str, Instrument] = field(default_factory=dict, hash=False, compare=False)
    alone: bool = False

    def has(self, instrument: Instrument, step: int) -> bool:
        return self._file(instrument, step).is_file()

    def write(self, instrument: Instrument, step: int, rows: Sequence[Any]) -> None:
        """Writes the rows of a step, and the facts of the instrument."""
        self.describe(instrument)
        write_table(
            self._file(instrument, step), as_table(rows, MEASURED[instrument.table]), self.setting
        )

    def instruments(self, table: str) -> list[Instrument]:
        """The instruments with results in a table, in the order of their first use."""
        files = self._folder(table).glob("*.json")
        paths = sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [read_instrument(path, table) for path in paths]

    def steps(self, instrument: Instrument) -> list[int]:
        """The steps that were measured, in order."""
        files = self._folder(instrument.table).glob(f"{instrument.id}-*.parquet")
        numbers = [path.stem.removeprefix(f"{instrument.id}-") for path in files]
        return sorted(int(number) for number in numbers if number.isdigit())

    def read(self, instrument: Instrument, step: int) -> pd.DataFrame:
        """The rows of a step, in the order written.

        Raises:
            BadInput: they cannot be read.
        """
        return self._arrow(self._file(instrument, step), instrument.table).to_pandas()

    def copy(self, other: Results, instrument: Instrument, step: int) -> None:
        """Copies the rows of a step from other results."""
        self.describe(instrument)
        write_table(
            self._file(instrument, step),
            other._arrow(other._file(instrument, step), instrument.table),
            self.setting,
        )

    # --- a step under way -------------------------------------------------------------------------

    def has_part(self, instrument: Instrument, step: int, number: int) -> bool:
        return self._part(instrument, step, number).is_file()

    def write_part(
        self,
        instrument: Instrument,
        step: int,
        number: int,
        rows: Sequence[Any],
    ) -> None:
        """Writes the rows of part `number` (from 0) of a step that takes long."""
        write_table(
            self._part(instrument, step, number),
            as_table(rows, MEASURED[instrument.table]),
            self.setting,
        )

    def join(self, instrument: Instrument, step: int, count: int) -> None:
        """Joins the parts of a step into its file, and removes them."""
        import pyarrow as pa

        self.describe(instrument)
        parts = [
            self._arrow(self._part(instrument, step, number), instrument.table)
            for number in range(count)
        ]
        write_table(self._file(instrument, step), pa.concat_tables(parts), self.setting)
        shutil.rmtree(self._parts(instrument, step), ignore_errors=True)

    def journal(self, instrument: Instrument, step: int) -> Path:
        """The file that rows are written to one by one while a step takes long."""
        return self._file(instrument, step).with_suffix(".jsonl")

    # --- names ------------------------------------------------------------------------------------

    def _folder(self, table: str) -> Path:
        return self.folder / "evaluations" / table

    def _file(self, instrument: Instrument, step: int) -> Path:
        return self._folder(instrument.table) / f"{instrument.id}-{step:08d}.parquet"

    def _parts(self, instrument: Instrument, step: int) -> Path:
        return self._file(instrument, step).with_suffix(".parts")

    def _part(self, instrument: Instrument, step: int, number: int) -> Path:
        return self._parts(instrument, step) / f"{number:04d}.parquet"

    def describe(self, instrument: Instrument) -> None:
        """Writes the facts of an instrument next to its rows."""
        path = self._folder(instrument.table) / f"{instrument.id}.json"
        if not path.is_file():
            write_json(path, {"source": instrument.source, **instrument.facts}, self.setting)

    def _arrow(self, path: Path, table: str) -> pa.Table:
        return read_table(path, MEASURED[table], _REMEDY)


def read_instrument(path: Path, table: str) -> Instrument:
    """The instrument that a file describes.

    Raises:
        BadInput: it cannot be read.
    """
    facts = read_json(path)
    return Instrument(table, str(facts.pop("source", "")), facts)


def verdicts_on(answers: Instrument | None, judges: Sequence[Instrument]) -> list[Instrument]:
    """Those of the instruments of verdicts that judged certain answers, in their order."""
    return [judge for judge in judges if answers and judge.facts.get("answers") == answers.id]


def last(results: Results, table: str) -> Any:
    """The rows of the last measured step; None if nothing was measured after step 0.

    For a base model without adapters these are its rows of step 0.
    """
    instrument = chosen(results, table)
    steps = results.steps(instrument) if instrument else []
    complete = steps and steps[0] == 0 and (steps[-1] > 0 or results.alone)
    return results.read(instrument, steps[-1]) if instrument and complete else None


def chosen(results: Results, table: str) -> Instrument | None:
    """The instrument of a table that counts: the selected one, or else the `preferred` one."""
    if table in results.selected:
        return results.selected[table]
    return preferred(table, results.instruments(table))


def preferred(table: str, instruments: Sequence[Instrument]) -> Instrument | None:
    """The instrument to use if none was selected; None if there is none.

    Of `instruments`, in the order of their first use, it is the last built-in one, or else the
    last.
    """
    names = BUILT_IN.get(table, ())
    built_in = [instrument for instrument in instruments if instrument.source in names]
    return next(reversed(built_in or [*instruments]), None)
