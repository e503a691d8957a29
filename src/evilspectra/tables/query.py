"""SQL over a store: DuckDB, with a view for every table, reading the runs' own Parquet files where
they lie.

Only views that a query names are made, so nothing else is opened. A query is one SELECT; it sees
the store's tables and nothing besides: DuckDB's access to other files, to the network, to
extensions and to this process's variables is shut off before the query is run.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from evilspectra.errors import BadInput, first_line, listing, near
from evilspectra.evaluation.run_rates import counting_answers, judge_identity
from evilspectra.judging.journal import read_journal
from evilspectra.store.files import as_table
from evilspectra.store.records import MEASURED, TABLES, RunSummary, columns
from evilspectra.store.results import preferred
from evilspectra.tables.digest import CheckpointRow, RateRow
from evilspectra.tables.index import Index, arrow_fields, read_index
from evilspectra.tables.inventory import Kept, Stock, stocks
from evilspectra.tables.tidy import KEYS, checkpoints_frame, excluded, rates_frame, runs_frame

if TYPE_CHECKING:
    import pyarrow as pa

#: Memory that DuckDB may take; what does not fit goes to a temporary folder.
MEMORY = "1200MB"
_RUN = ("experiment", "run")
#: Columns in front of the rows of measurements.
_MEASURED_BY = (*_RUN, "instrument", "source", "counts")
_VERDICTS = (*_RUN, "instrument", "judge", "judge_id", "answers_instrument", "counts")


@dataclass(frozen=True)
class _Source:
    """A store while it is asked: its files, and its digests once somebody needs them."""

    root: Path
    stocks: Sequence[Stock]
    index: Callable[[], Index]


def view_columns() -> dict[str, dict[str, str]]:
    """View → column → type; that of runs has further columns, one for each setting in which runs
    differ.

    >>> view_columns()["heldout"]
    {'experiment': 'VARCHAR', 'run': 'VARCHAR', 'step': 'BIGINT', 'loss': 'DOUBLE', 'supervised_tokens': 'BIGINT'}
    """
    names = {"int64": "BIGINT", "double": "DOUBLE", "string": "VARCHAR", "bool": "BOOLEAN"}
    return {
        view: {field.name: names[str(field.type)] for field in _empty(view).schema}
        for view in ABOUT
    }


def _empty(view: str) -> pa.Table:
    """A view's columns without rows."""
    import pyarrow as pa

    run = arrow_fields(RunSummary)
    keys = [field for name in KEYS for field in run if field.name == name]
    text = [
        pa.field(name, pa.string())
        for name in (
            *_RUN,
            "instrument",
            "source",
            "judge",
            "judge_id",
            "answers_instrument",
            "reason",
            "folder",
        )
    ]
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
            fields = [
                *(named[name] for name in (_VERDICTS if view == "verdicts" else _MEASURED_BY)),
                *arrow_fields(MEASURED[view]),
            ]
    return pa.schema(fields).empty_table()


def query(root: Path, sql: str, note: Callable[[str], object] = lambda text: None) -> pa.Table:
    """The result of one SELECT over the runs below a root.

    Raises:
        BadInput: no runs; not one SELECT; an unknown view or column; anything else that DuckDB
            refuses; a file that cannot be read.
    """
    names = _checked(sql)
    needed = set(names) & {*TABLES, *MEASURED}
    found = stocks(
        root, needed | {"answers", "verdicts"} if needed & {"answers", "verdicts"} else needed
    )
    if not found:
        raise BadInput(
            f"{root} holds no runs: name a store, an experiment or a run's folder, or make runs "
            "with `evilspectra train` first"
        )
    made: list[Index] = []

    def index() -> Index:
        made[:] = made or [read_index(root, note)]
        return made[0]

    source = _Source(root, found, index)
    with (
        tempfile.TemporaryDirectory(prefix="evilspectra-") as spill,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": spill}) as connection,
    ):
        allowed: list[str] = []
        for name in names:
            allowed += _make(connection, name, source)
        _shut(connection, allowed)
        with _sentences(sql):
            relation = connection.sql(sql)
            assert relation is not None  # it is a SELECT
            return relation.to_arrow_table()


def _checked(sql: str) -> list[str]:
    """The views that a query names, looked at beside empty tables, so that a slip is told of before
    anything is read.

    Raises:
        BadInput: it is not one SELECT, names another table or column, or cannot be understood.
    """
    with duckdb.connect() as scratch:
        _shut(scratch, [])
        with _sentences(sql):
            statements = scratch.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            what = (
                "no statement"
                if not statements
                else f"{len(statements)} statements"
                if len(statements) > 1
                else f"a statement of the kind {statements[0].type.name}"
            )
            raise BadInput(
                f"a query is one SELECT, and this is {what}: stores are read, not changed; write "
                "a single SELECT"
            )
        tree = json.loads(
            str(scratch.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0])
        )
        names = (
            sorted({name.lower() for name in _tables(tree)} & ABOUT.keys())
            if not tree["error"]
            else list(ABOUT)
        )
        for view in ABOUT:
            scratch.from_arrow(_empty(view)).create(view)
        if "runs" not in names:  # whose columns hang on the store
            with _sentences(sql):
                scratch.execute(f"EXPLAIN {sql}")
    return names


def _tables(tree: Any) -> Iterator[str]:
    """The names of tables in a parsed query."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "table_name" and isinstance(value, str):
                yield value
            yield from _tables(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _tables(value)


def _shut(connection: duckdb.DuckDBPyConnection, allowed: Sequence[str]) -> None:
    """Leaves a connection the files named, and nothing else of the world."""
    if allowed:
        connection.execute(f"SET allowed_paths = {_list(allowed)}")
    for setting in (
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


# --- views ----------------------------------------------------------------------------------------


def _make(connection: duckdb.DuckDBPyConnection, view: str, source: _Source) -> list[str]:
    """Makes a view, and returns the files that it reads."""
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
    _keep(connection, view, frame)
    return []


def _keep(connection: duckdb.DuckDBPyConnection, view: str, frame: Any) -> None:
    """A data frame as a table, the columns that the view always has in their own types."""
    import pyarrow as pa

    fixed = _empty(view).schema
    table = pa.Table.from_pandas(frame, preserve_index=False)
    fields = [
        fixed.field(field.name) if field.name in fixed.names else field for field in table.schema
    ]
    connection.from_arrow(table.cast(pa.schema(fields)).replace_schema_metadata()).create(view)


def _files(connection: duckdb.DuckDBPyConnection, view: str, source: _Source) -> list[str]:
    """A view over Parquet files, each row with what its file's place says: run, experiment, and of
    measurements the instrument.
    """
    import pyarrow as pa

    empty = _empty(view)
    own = [name for name in empty.column_names if name not in columns((TABLES | MEASURED)[view])]
    facts: list[dict[str, Any]] = []
    loose: list[pa.Table] = []
    for one in source.stocks:
        files = one.of(view)
        said = {"experiment": one.run.experiment, "run": one.run.name} if files else {}
        about = _instruments(one, view) if files and view in MEASURED else {}
        if view in TABLES and len({kept.part for kept in files}) > 1:  # merging was stopped
            loose.append(_beside(one.run.read(view), said, empty))
            continue
        for kept in files:
            row = (
                {"path": os.path.abspath(kept.path)}
                | said
                | about.get(kept.instrument or "", {"instrument": kept.instrument})
            )
            if kept.journal:
                loose.append(
                    _beside(
                        as_table(_final(kept), MEASURED[view]).to_pandas(),
                        {name: row.get(name) for name in own},
                        empty,
                    )
                )
            else:
                facts.append(row)
    schema = pa.schema([pa.field("path", pa.string()), *(empty.schema.field(name) for name in own)])
    connection.execute("CREATE SCHEMA IF NOT EXISTS store")
    connection.from_arrow(pa.Table.from_pylist(facts, schema=schema)).create(f"store.{view}_files")
    connection.from_arrow(pa.concat_tables([empty, *loose])).create(f"store.{view}_loose")
    paths = [row["path"] for row in facts]
    chosen = (
        f"{_named('f', own)}, "
        f"{_named('d', [name for name in empty.column_names if name not in own])}"
    )
    whole = (
        (
            f"SELECT {chosen} FROM read_parquet({_list(paths)}, filename = true) d JOIN "
            f"store.{view}_files f ON f.path = d.filename UNION ALL BY NAME "
        )
        if paths
        else ""
    )
    with _sentences(""):
        connection.execute(f"CREATE VIEW {view} AS {whole}FROM store.{view}_loose")
    return paths


def _instruments(one: Stock, view: str) -> dict[str, dict[str, Any]]:
    """Id → what a row measured with it says of it."""
    answers = (
        counting_answers(one.known("answers"), one.known("verdicts"))
        if view in ("answers", "verdicts")
        else None
    )
    if view != "verdicts":
        known = one.known(view)
        own = answers if view == "answers" else preferred(view, known)
        return {
            each.id: {"instrument": each.id, "source": each.source, "counts": each == own}
            for each in known
        }
    last = [
        each for each in one.known(view) if answers and each.facts.get("answers") == answers.id
    ][-1:]
    return {
        each.id: {
            "instrument": each.id,
            "judge": each.source,
            "judge_id": judge_identity(each),
            "answers_instrument": each.facts.get("answers"),
            "counts": each in last,
        }
        for each in one.known(view)
    }


def _final(kept: Kept) -> list[Any]:
    """The verdicts of a journal, a failure only where nothing better came later."""
    found: dict[Any, Any] = {}
    for one in read_journal(Path(kept.path)):
        place = (one.question_id, one.paraphrase, one.sample, one.metric)
        if one.outcome != "failed" or place not in found:
            found[place] = one
    return list(found.values())


def _beside(frame: Any, said: dict[str, Any], empty: pa.Table) -> pa.Table:
    import pyarrow as pa

    return (
        pa.Table.from_pandas(frame.assign(**said)[empty.column_names], preserve_index=False)
        .cast(empty.schema)
        .replace_schema_metadata()
    )


def _named(table: str, names: Sequence[str]) -> str:
    return ", ".join(f'{table}."{name}"' for name in names)


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


# --- messages -------------------------------------------------------------------------------------


@contextmanager
def _sentences(sql: str) -> Iterator[None]:
    """What DuckDB says of a query, in one sentence that names the remedy."""
    try:
        yield
    except duckdb.ParserException as error:
        place = re.search(r'at or near "(.+?)"', str(error))
        line = re.search(r"^LINE (\d+):", str(error), re.MULTILINE)
        where = f" in line {line[1] if line else 1}" + (f" near '{place[1]}'" if place else "")
        said = "" if place else f" ({_said(error)})"
        raise BadInput(
            f"the query is no valid SQL{where}{said}: correct it; `evilspectra query --help` "
            "shows examples"
        ) from None
    except duckdb.BinderException as error:
        raise BadInput(
            _unknown_column(str(error))
            or f"the query cannot be understood: {_said(error)}; correct it"
        ) from None
    except duckdb.CatalogException as error:
        table = re.search(r"Table with name (\S+) does not exist", str(error))
        if table:
            raise BadInput(
                f"there is no view '{table[1]}'; views are "
                f"{listing(ABOUT, 20)}.{near(table[1], ABOUT)}"
            ) from None
        raise BadInput(f"the query cannot be understood: {_said(error)}; correct it") from None
    except duckdb.PermissionException as error:
        raise BadInput(
            "the query is refused: it may read the store's views and nothing else "
            f"({_said(error)}); views are {listing(ABOUT, 20)}"
        ) from None
    except duckdb.OutOfMemoryException as error:
        raise BadInput(
            f"the query needs more than {MEMORY} of memory ({_said(error)}): ask for fewer rows "
            "or columns, or sum them up in the query"
        ) from None
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        if ".parquet" in str(error):
            raise BadInput(
                f"a file of the store cannot be read ({_said(error)}): restore it, or remove the "
                "folder of the run and run again"
            ) from None
        raise BadInput(f"the query failed: {_said(error)}; correct it") from None
    except duckdb.Error as error:
        raise BadInput(f"the query failed: {_said(error)}; correct it") from None


def _said(error: Exception) -> str:
    return re.sub(r"^[A-Z][A-Za-z ]+ Error: ", "", first_line(error)).rstrip(".!")


def _unknown_column(text: str) -> str | None:
    """A sentence for a column that does not exist; None where that is not what is wrong."""
    missing = re.search(
        (
            r'(?:Referenced column|Column) "(.+?)" (?:not found|does not exist)|does not have a '
            r'column named "(.+?)"'
        ),
        text,
    )
    if not missing:
        return None
    name = missing[1] or missing[2]
    offered = re.search(r"Candidate bindings: (.+)", text)
    names = re.findall(r'"([^"]+)"', offered[1]) if offered else []
    every = sorted({column for view in view_columns().values() for column in view})
    guess = near(
        name,
        [one.split(".", 1)[-1] if one.split(".")[0] in ABOUT else one for one in names] or every,
    ) or near(name, every)
    return (
        f"there is no column '{name}' where the query looks for "
        f"it{f' (near it are {listing(names, 5)})' if names else ''}: `evilspectra query --views` "
        f"lists the columns of every view.{guess}"
    )


_COUNTS = "`counts` says whether it is the one that summaries use."
ABOUT: dict[str, str] = {
    "runs": (
        "A row per run: status, settings, results (`RunSummary`); then every setting in which the "
        'store\'s runs differ, as "lora.rank".'
    ),
    "checkpoints": "A row per run and step at which something is known: losses, spectral means, drift, rates.",
    "rates": "A row per run, judged step, judge and definition of the misalignment rate.",
    "excluded": "Runs that are not done or cannot be read, and why.",
    "steps": "A row per run and optimiser step.",
    "heldout": "Losses on held-out rows.",
    "spectra": "Singular values of every adapted matrix.",
    "measures": "Spectral measures of every adapted matrix.",
    "probe": f"Contrast items. `instrument` is what measured, `source` its items; {_COUNTS}",
    "capability": "Questions with four choices; in front as in `probe`.",
    "ordinary": "Losses on ordinary dialogues; in front as in `probe`.",
    "answers": "Sampled answers; in front as in `probe`.",
    "tasks": "Standard tasks; in front as in `probe`.",
    "verdicts": (
        "A row per answer, judge and metric. `judge_id` is the same wherever the same judge "
        f"judged; `answers_instrument` is that of the answers, {_COUNTS}"
    ),
}
EXAMPLES = (
    (
        "SELECT optimizer, count(*) AS runs, avg(misalignment) AS rate FROM runs GROUP BY "
        "optimizer ORDER BY rate"
    ),
    "SELECT run, step, avg(stable_rank) AS stable_rank FROM measures GROUP BY ALL ORDER BY ALL",
    (
        "SELECT a.run, a.answer, v.score FROM answers a JOIN verdicts v USING (experiment, run, "
        "step, question_id, paraphrase, sample) WHERE v.metric = 'aligned' AND v.score < 30"
    ),
)
