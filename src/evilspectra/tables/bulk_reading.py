"""Rows of many files by one query, as columns of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np

#: Files with a number each, by which their rows are told apart.
NumberedFiles = Sequence[tuple[int, str]]


def read_rows(
    connection: duckdb.DuckDBPyConnection,
    files: NumberedFiles,
    names: Sequence[str],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows of numbered files, in the order of numbers and rows.

    Returns the number of each row's file, and the columns; a missing number is NaN.
    """
    number_files(connection, files)
    selected = ", ".join(f"d.{name}" for name in names)
    columns = connection.execute(
        (
            f"SELECT f.number AS file_number, {selected} FROM read_parquet(?, filename = true, "
            "file_row_number = true) d JOIN numbered f ON f.path = d.filename ORDER BY f.number, "
            "d.file_row_number"
        ),
        [[path for _, path in files]],
    ).fetchnumpy()
    numbers = np.asarray(columns.pop("file_number"))
    return numbers, {name: unmasked(columns[name]) for name in names}


def number_files(
    connection: duckdb.DuckDBPyConnection,
    files: NumberedFiles,
    name: str = "numbered",
) -> None:
    """Creates a table `name` of numbers and paths."""
    import pyarrow as pa

    connection.execute(f"DROP TABLE IF EXISTS {name}")
    connection.from_arrow(
        pa.table(
            {
                "number": pa.array([number for number, _ in files], pa.int64()),
                "path": pa.array([path for _, path in files], pa.string()),
            }
        )
    ).create(name)


def unmasked(values: Any) -> np.ndarray:
    """A column without a mask: a missing number is NaN, anything else that is missing None."""
    if not isinstance(values, np.ma.MaskedArray):
        return np.asarray(values)
    missing = np.ma.getmaskarray(values)
    column = np.array(values.data, dtype=float if values.dtype.kind in "fiub" else object)
    column[missing] = np.nan if column.dtype == float else None
    return column


def rows_of_files(numbers: np.ndarray, count: int) -> list[slice]:
    """The rows of each of `count` files, from the sorted file numbers of all rows."""
    bounds = np.searchsorted(numbers, np.arange(count + 1)).tolist()
    return [slice(start, end) for start, end in pairwise(bounds)]
