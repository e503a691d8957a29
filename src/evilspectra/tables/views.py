"""The views of a store for SQL: one for every table, over the runs' own Parquet files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from evilspectra.evaluation.rate_rows import RateRow
from evilspectra.evaluation.run_rates import counting_answers, judge_identity
from evilspectra.judging.journal import read_journal
from evilspectra.judging.verdicts import settled
from evilspectra.store.files import as_table
from evilspectra.store.records import MEASURED, TABLES, RunSummary, columns
from evilspectra.store.results import preferred, verdicts_on
from evilspectra.tables.digest import CheckpointRow
from evilspectra.tables.index import Index, arrow_fields
from evilspectra.tables.inventory import Stock, TableFile
from evilspectra.tables.tidy import KEYS, checkpoints_frame, excluded, rates_frame, runs_frame

if TYPE_CHECKING:
    import pyarrow as pa

_RUN = ("experiment", "run")
#: Leading columns of measurements.
_MEASURED_BY = (*_RUN, "instrument", "source", "counts")
_VERDICTS = (*_RUN, "instrument", "judge", "judge_id", "answers_instrument", "counts")

_COUNTS = "`counts` says whether it is the one that summaries use."
ABOUT: dict[str, str] = {
    "runs": (
        "A row per run: status, settings, results (`RunSummary`); then every setting in which the "
        'store\'s runs differ, as "lora.rank".'
    ),
    "checkpoints": (
        "A row per run and step at which something is known: losses, spectral means, drift, rates."
    ),
    "rates": "A row per run, judged step, judge and definition of the misalignment rate.",
    "excluded": "Runs that are not done or cannot be read, and why.",
    "steps": "A row per run and optimiser step.",
    "heldout": "Losses on held-out rows.",
    "spectra": "Singular values of every adapted matrix.",
    "measures": "Spectral measures of every adapted matrix.",
    "probe": f"Contrast items. `instrument` is an id, `source` names its items; {_COUNTS}",
    "capability": "Questions with four choices; leading columns as in `probe`.",
    "ordinary": "Losses on ordinary dialogues; leading columns as in `probe`.",
    "answers": "Sampled answers; leading columns as in `probe`.",
    "tasks": "Standard tasks; leading columns as in `probe`.",
    "verdicts": (
        "A row per answer, judge and metric. `judge_id` is the same wherever the same judge "
        f"judged; `answers_instrument` is that of the answers, {_COUNTS}"
    ),
}


@dataclass(frozen=True)
class ViewSource:
    """A store that is queried: its files, and its digests once they are needed."""

    root: Path
    stocks: Sequence[Stock]
    index: Callable[[], Index]


def view_columns() -> dict[str, dict[str, str]]:
    """Maps each view to its columns and their types.

    The view of runs has further columns, one for each setting in which runs differ.

    >>> view_columns()["excluded"]
    {'folder': 'VARCHAR', 'experiment': 'VARCHAR', 'run': 'VARCHAR', 'reason': 'VARCHAR'}
    """
    names = {"int64": "BIGINT", "double": "DOUBLE", "string": "VARCHAR", "bool": "BOOLEAN"}
    return {
        view: {field.name: names[str(field.type)] for field in empty_view(view).schema}
        for view in ABOUT
    }


def empty_view(view: str) -> pa.Table:
    """A view's columns without rows."""
    import pyarrow as pa

    run = arrow_fields(RunSummary)
    by_name = {field.name: field for field in run}
    keys = [by_name[name] for name in KEYS]
    texts = (*_MEASURED_BY, *_VERDICTS, "reason", "folder")
    text = [pa.field(name, pa.string()) for name in texts if name != "counts"]
    named = {field.name: field for field in text} | {"counts": pa.field("counts", pa.bool_())}
    match view:
        case "runs":
            fields = run
        case "checkpoints":
            fields = [*keys, *arrow_fields(CheckpointRow)]
        case "rates":
            fields = [*keys, *arrow_fields(RateRow)]
        case "excluded":
            fields = [named[name] for name in ("folder", *_RUN, "reason")]
        case _ if view in TABLES:
            fields = [*(named[name] for name in _RUN), *arrow_fields(TABLES[view])]
        case _:
            leading = _VERDICTS if view == "verdicts" else _MEASURED_BY
            fields = [*(named[name] for name in leading), *arrow_fields(MEASURED[view])]
    return pa.schema(fields).empty_table()


def make_view(connection: duckdb.DuckDBPyConnection, view: str, source: ViewSource) -> list[str]:
    """Creates a view, and returns the files that it reads."""
    match view:
        case "runs":
            frame: Any = runs_frame(source.root, source.index())
        case "checkpoints":
            frame = checkpoints_frame(source.root, source.index())
        case "rates":
            frame = rates_frame(source.root, source.index())
        case "excluded":
            frame = excluded(source.root, index=source.index())
        case _:
            return _files(connection, view, source)
    _create_table(connection, view, frame)
    return []


def _create_table(connection: duckdb.DuckDBPyConnection, view: str, frame: Any) -> None:
    """Creates a table from a data frame, with the view's own types for its fixed columns."""
    import pyarrow as pa

    fixed = empty_view(view).schema
    table = pa.Table.from_pandas(frame, preserve_index=False)
    fields = [
        fixed.field(field.name) if field.name in fixed.names else field for field in table.schema
    ]
    connection.from_arrow(table.cast(pa.schema(fields)).replace_schema_metadata()).create(view)


def _files(connection: duckdb.DuckDBPyConnection, view: str, source: ViewSource) -> list[str]:
    """Creates a view over Parquet files, and returns them.

    Each row has what its file's path says: run, experiment, and of measurements the instrument.
    """
    import pyarrow as pa

    empty = empty_view(view)
    own = [name for name in empty.column_names if name not in columns((TABLES | MEASURED)[view])]
    facts: list[dict[str, Any]] = []
    loose: list[pa.Table] = []
    for stock in source.stocks:
        files = stock.of(view)
        if not files:
            continue
        run = {"experiment": stock.run.experiment, "run": stock.run.name}
        if view in TABLES and len({file.part for file in files}) > 1:  # merging was stopped
            loose.append(_with_facts(stock.run.read(view), run, empty))
            continue
        instruments = _instruments(stock, view) if view in MEASURED else {}
        for file in files:
            unknown = {"instrument": file.instrument}
            row = run | instruments.get(file.instrument or "", unknown)
            if file.journal:
                frame = as_table(_final(file), MEASURED[view]).to_pandas()
                loose.append(_with_facts(frame, {name: row.get(name) for name in own}, empty))
            else:
                facts.append({"path": os.path.abspath(file.path)} | row)
    schema = pa.schema([pa.field("path", pa.string()), *(empty.schema.field(name) for name in own)])
    connection.execute("CREATE SCHEMA IF NOT EXISTS store")
    connection.from_arrow(pa.Table.from_pylist(facts, schema=schema)).create(f"store.{view}_files")
    connection.from_arrow(pa.concat_tables([empty, *loose])).create(f"store.{view}_loose")
    paths = [row["path"] for row in facts]
    others = [name for name in empty.column_names if name not in own]
    select = ""
    if paths:
        select = (
            f"SELECT {_named('f', own)}, {_named('d', others)} FROM "
            f"read_parquet({sql_list(paths)}, filename = true) d JOIN store.{view}_files f ON "
            "f.path = d.filename UNION ALL BY NAME "
        )
    connection.execute(f"CREATE VIEW {view} AS {select}FROM store.{view}_loose")
    return paths


def _instruments(stock: Stock, view: str) -> dict[str, dict[str, Any]]:
    """Maps each instrument's id to the columns that describe it."""
    instruments = stock.instruments_of(view)
    answers = None
    if view in ("answers", "verdicts"):
        answers = counting_answers(
            stock.instruments_of("answers"), stock.instruments_of("verdicts")
        )
    if view != "verdicts":
        counting = answers if view == "answers" else preferred(view, instruments)
        return {
            instrument.id: {
                "instrument": instrument.id,
                "source": instrument.source,
                "counts": instrument == counting,
            }
            for instrument in instruments
        }
    judges = verdicts_on(answers, instruments)
    return {
        judge.id: {
            "instrument": judge.id,
            "judge": judge.source,
            "judge_id": judge_identity(judge),
            "answers_instrument": judge.facts.get("answers"),
            "counts": judge in judges[-1:],
        }
        for judge in instruments
    }


def _final(file: TableFile) -> list[Any]:
    """The verdicts of a journal, a failure only where nothing better came later."""
    return list(settled(read_journal(Path(file.path))).values())


def _with_facts(frame: Any, facts: dict[str, Any], empty: pa.Table) -> pa.Table:
    """A data frame as a table of a view, with the facts as its leading columns."""
    import pyarrow as pa

    rows = frame.assign(**facts)[empty.column_names]
    table = pa.Table.from_pandas(rows, preserve_index=False).cast(empty.schema)
    return table.replace_schema_metadata()


def _named(table: str, names: Sequence[str]) -> str:
    """Quoted columns of a table, as a list for SELECT."""
    return ", ".join(f'{table}."{name}"' for name in names)


def sql_list(texts: Sequence[str]) -> str:
    """A list of texts as SQL."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"
