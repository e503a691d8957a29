"""@@FIX Measurements of a run, an adapter or a model: the file names below `evaluations/`, and nothing
else.

    <folder>/evaluations/
        probe/1f3a9c04d2.json               what instrument 1f3a9c04d2 is: items by name and hash,
        settings probe/1f3a9c04d2-00000032.parquet   its rows for the adapter after step 32 (0: the
        base) capability/…  ordinary/…  answers/… answers/1f3a9c04d2-00000032.parts/0003.parquet
        while answers are being sampled verdicts/1f3a9c04d2-00000032.jsonl               while
        answers are being judged, and as long as verdicts are missing

A file is there whole or not at all, and is never written twice: what is there is done. Instruments
that differ in an item, a setting or the arithmetic have different ids, so they never mix.
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
    """A table's way of measuring.

    `facts`: what determines it, of JSON's types; its id is their hash, whatever the `source` is
    called.

    >>> Instrument("probe", "contrast", {"version": 1}).id == Instrument("probe", "a-copy.jsonl", {"version": 1}).id
    True
    """

    table: str
    source: str
    facts: Mapping[str, Any]

    @property
    def id(self) -> str:
        return hashlib.sha256(
            json.dumps([self.table, self.facts], sort_keys=True).encode()
        ).hexdigest()[:10]


@dataclass(frozen=True)
class Results:
    """The measurements in a folder. `setting` is what a user changes to have them elsewhere.

    `asked`: table → the instrument that counts, where a command asked for one. `alone`: they are of
    a base model, without adapters.
    """

    folder: Path
    setting: str = "output.folder"
    selected: Mapping[str, Instrument] = field(default_factory=dict, hash=False, compare=False)
    alone: bool = False

    def has(self, instrument: Instrument, step: int) -> bool:
        return self._file(instrument, step).is_file()

    def write(self, instrument: Instrument, step: int, rows: Sequence[Any]) -> None:
        """Keeps the rows of a step, and what the instrument is."""
        self.describe(instrument)
        write_table(
            self._file(instrument, step), as_table(rows, MEASURED[instrument.table]), self.setting
        )

    def instruments(self, table: str) -> list[Instrument]:
        """Those with which something was measured, the one that was used first in front."""
        found = []
        for path in sorted(
            self._folder(table).glob("*.json"),
            key=lambda path: (path.stat().st_mtime_ns, path.name),
        ):
            facts = read_json(path)
            found.append(Instrument(table, str(facts.pop("source", "")), facts))
        return found

    def steps(self, instrument: Instrument) -> list[int]:
        """The steps that were measured, in order."""
        return sorted(
            int(path.stem.rsplit("-", 1)[-1])
            for path in self._folder(instrument.table).glob(f"{instrument.id}-*.parquet")
            if path.stem.removeprefix(f"{instrument.id}-").isdigit()
        )

    def read(self, instrument: Instrument, step: int) -> pd.DataFrame:
        """The rows of a step, in the order written.

        Raises:
            BadInput: they cannot be read.
        """
        return self._arrow(self._file(instrument, step), instrument.table).to_pandas()

    def copy(self, other: Results, instrument: Instrument, step: int) -> None:
        """Takes the rows of a step over from elsewhere."""
        self.describe(instrument)
        write_table(
            self._file(instrument, step),
            other._arrow(other._file(instrument, step), instrument.table),
            self.setting,
        )

    # --- on the way -------------------------------------------------------------------------------

    def has_part(self, instrument: Instrument, step: int, number: int) -> bool:
        return self._part(instrument, step, number).is_file()

    def write_part(
        self,
        instrument: Instrument,
        step: int,
        number: int,
        rows: Sequence[Any],
    ) -> None:
        """Keeps the rows of part `number` (from 0) of a step that takes long."""
        write_table(
            self._part(instrument, step, number),
            as_table(rows, MEASURED[instrument.table]),
            self.setting,
        )

    def join(self, instrument: Instrument, step: int, count: int) -> None:
        """Makes the step's rows of its parts, which then go."""
        import pyarrow as pa

        self.describe(instrument)
        parts = [
            self._arrow(self._part(instrument, step, number), instrument.table)
            for number in range(count)
        ]
        write_table(self._file(instrument, step), pa.concat_tables(parts), self.setting)
        shutil.rmtree(self._parts(instrument, step), ignore_errors=True)

    def journal(self, instrument: Instrument, step: int) -> Path:
        """Where rows go one by one while a step takes long."""
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
        """Keeps what the instrument is, beside where its rows go."""
        place = self._folder(instrument.table) / f"{instrument.id}.json"
        if not place.is_file():
            write_json(place, {"source": instrument.source, **instrument.facts}, self.setting)

    def _arrow(self, place: Path, table: str) -> pa.Table:
        return read_table(place, MEASURED[table], _REMEDY)


def last(results: Results, table: str) -> Any:
    """@@FIX The rows of the last measured step; None where only the base, or nothing, was measured (for a
    base alone: its own).
    """
    instrument = chosen(results, table)
    steps = results.steps(instrument) if instrument else []
    complete = steps and steps[0] == 0 and (steps[-1] > 0 or results.alone)
    return results.read(instrument, steps[-1]) if instrument and complete else None


def chosen(results: Results, table: str) -> Instrument | None:
    """@@FIX The instrument that counts: the one asked for, or else of the built-in ones, or else of all,
    the one used last; None where there is none.
    """
    if table in results.selected:
        return results.selected[table]
    return preferred(table, results.instruments(table))


def preferred(table: str, found: Sequence[Instrument]) -> Instrument | None:
    """@@FIX Which of a table's instruments, the one used last at the end, counts where none was asked
    for.
    """
    return next(
        (
            instrument
            for instrument in reversed(found)
            if instrument.source in BUILT_IN.get(table, ())
        ),
        found[-1] if found else None,
    )
