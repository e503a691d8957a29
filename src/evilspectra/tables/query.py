"""SQL over a store: DuckDB, with a view for every table, reading the runs' own Parquet files.

Only views that a query names are created, so nothing else is opened. A query is a single SELECT and
can read only the store's tables: DuckDB's access to other files, to the network, to extensions and
to this process's variables is disabled before the query runs.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from evilspectra.errors import BadInput
from evilspectra.store.records import MEASURED, TABLES
from evilspectra.tables.index import no_runs, read_index
from evilspectra.tables.inventory import stocks
from evilspectra.tables.query_messages import MEMORY, query_errors
from evilspectra.tables.views import ABOUT, ViewSource, empty_view, make_view, sql_list

if TYPE_CHECKING:
    import pyarrow as pa

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


def query(
    root: str | os.PathLike[str],
    sql: str,
    note: Callable[[str], object] = lambda text: None,
) -> pa.Table:
    """Runs one SELECT over the runs below a root.

    `note` is called with messages on work that takes long.

    Raises:
        BadInput: no runs; not one SELECT; an unknown view or column; anything else that DuckDB
            refuses; a file that cannot be read.
    """
    root = Path(root)
    names = _checked(sql)
    needed = set(names) & {*TABLES, *MEASURED}
    if needed & {"answers", "verdicts"}:  # each says which of the other counts
        needed |= {"answers", "verdicts"}
    runs = stocks(root, needed)
    if not runs:
        raise no_runs(root)
    index = functools.cache(lambda: read_index(root, note))
    source = ViewSource(root, runs, index)
    with (
        tempfile.TemporaryDirectory(prefix="evilspectra-") as spill,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": spill}) as connection,
    ):
        allowed: list[str] = []
        with query_errors():
            for name in names:
                allowed += make_view(connection, name, source)
        _shut(connection, allowed)
        with query_errors():
            relation = connection.sql(sql)
            assert relation is not None  # it is a SELECT
            return relation.to_arrow_table()


def _checked(sql: str) -> list[str]:
    """The views that a query names, checked on empty tables.

    So mistakes are reported before anything is read.

    Raises:
        BadInput: it is not one SELECT, names another table or column, or cannot be understood.
    """
    with duckdb.connect() as scratch:
        _shut(scratch, [])
        with query_errors():
            statements = scratch.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            what = _described(statements)
            raise BadInput(
                f"a query is one SELECT, and this is {what}: stores are read, not changed; write "
                "a single SELECT"
            )
        parsed = scratch.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0]
        tree = json.loads(str(parsed))
        names = list(ABOUT)
        if not tree["error"]:
            names = sorted({name.lower() for name in _tables(tree)} & ABOUT.keys())
        for view in ABOUT:
            scratch.from_arrow(empty_view(view)).create(view)
        if "runs" not in names:  # its columns depend on the store
            with query_errors():
                scratch.execute(f"EXPLAIN {sql}")
    return names


def _described(statements: Sequence[duckdb.Statement]) -> str:
    if not statements:
        return "no statement"
    if len(statements) > 1:
        return f"{len(statements)} statements"
    return f"a statement of the kind {statements[0].type.name}"


def _tables(tree: Any) -> Iterator[str]:
    """Yields the names of tables in a parsed query."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "table_name" and isinstance(value, str):
                yield value
            yield from _tables(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _tables(value)


def _shut(connection: duckdb.DuckDBPyConnection, allowed: Sequence[str]) -> None:
    """Leaves a connection access to the allowed files and nothing else."""
    if allowed:
        connection.execute(f"SET allowed_paths = {sql_list(allowed)}")
    for setting in (
        "python_enable_replacements = false",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
