"""Runs on their way to digests: their files, settings and instruments, before tables are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.config.yaml_files import parse_yaml, read_mapping
from evilspectra.errors import EvilspectraError
from evilspectra.evaluation.rate_rows import RateRow
from evilspectra.evaluation.run_rates import counting_answers
from evilspectra.intervals import Interval
from evilspectra.store.origin import Origin, own_origin
from evilspectra.store.results import Instrument, preferred, verdicts_on
from evilspectra.store.run import Status
from evilspectra.tables.inventory import Stock, TableFile

_PROBES = ("probe", "capability", "ordinary")


@dataclass
class BulkRun:
    """A run on its way to a digest.

    `paths`: table (of a measurement: table and step; of verdicts: table, step, judge) → file;
    `fields`: name → value of the summary's fields so far; `losses`: steps and training losses;
    `odd`: it must be read by itself.
    """

    stock: Stock
    origin: Origin
    status: Status
    paths: dict[Any, str]
    steps: Mapping[str, list[int]]
    judges: Sequence[Instrument]
    fields: dict[str, Any] = field(default_factory=dict)
    drifts: dict[int, Interval] = field(default_factory=dict)
    losses: Any = None
    heldout: dict[int, float | None] = field(default_factory=dict)
    spectral: dict[int, dict[str, float | None]] = field(default_factory=dict)
    rates: list[RateRow] = field(default_factory=list)
    odd: bool = False

    def last_step(self, table: str) -> int | None:
        """The last measured step; None if only the base, or nothing, was measured."""
        steps = self.steps[table]
        return steps[-1] if steps and steps[0] == 0 and steps[-1] > 0 else None


def prepare(stock: Stock) -> BulkRun | None:
    """Collects what is needed to read a run's tables; None if it must be read by itself."""
    if stock.outside or any(file.part or file.journal for file in stock.files):
        return None
    try:
        tables = (*_PROBES, "answers", "verdicts")
        instruments = {table: stock.instruments_of(table) for table in tables}
        answers = counting_answers(instruments["answers"], instruments["verdicts"])
        chosen = {table: preferred(table, instruments[table]) for table in _PROBES}
        chosen["answers"] = answers
        judges = verdicts_on(answers, instruments["verdicts"])
        ids = {table: instrument and instrument.id for table, instrument in chosen.items()}
        paths = {
            _key(file): file.path
            for file in stock.files
            if file.instrument is None
            or file.table == "verdicts"
            or ids.get(file.table) == file.instrument
        }
        steps = {
            table: sorted(key[1] for key in paths if isinstance(key, tuple) and key[0] == table)
            for table in ids
        }
        origin = own_origin(_config(stock.run.path / "config.yaml"))
        return BulkRun(stock, origin, stock.run.status(), paths, steps, judges)
    except EvilspectraError:
        return None  # `digest` raises the error


def _key(file: TableFile) -> Any:
    if file.step is None:
        return file.table
    if file.table == "verdicts":
        return file.table, file.step, file.instrument
    return file.table, file.step


# --- settings -------------------------------------------------------------------------------------

#: The form in which `config.dump` writes: sections of indented lines. Each section is then parsed
#: by itself, and equal ones once.
_SECTIONS = re.compile(r"(?:[a-z_]+:\n(?:  .*\n)+)+")
_SECTION = re.compile(r"^([a-z_]+):\n((?:  .*\n)+)", re.MULTILINE)
_NAME = re.compile(r"^  ([^ :]+):", re.MULTILINE)
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _config(path: Path) -> sections.Config:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    parts = _SECTION.findall(text)
    plain = (
        _SECTIONS.fullmatch(text)
        and not set("&*%") & set(text)
        and len({name for name, _ in parts}) == len(parts)
    )
    values = {name: _section(body) for name, body in parts} if plain else read_mapping(path)
    return configs.build(values, str(path))


@lru_cache(maxsize=20_000)
def _section(text: str) -> Any:
    names = _NAME.findall(text)
    # no key is given twice, which the fast parser would not notice
    if len(set(names)) == len(names) and "\n    " not in text:
        with suppress(yaml.YAMLError):
            return yaml.load(text, _FAST)
    return parse_yaml(text, "config.yaml")
