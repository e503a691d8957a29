"""Rows of any columns as text for a terminal, or as a file's bytes: CSV, JSON, Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Any

from evilspectra.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

#: The most characters of a cell on a terminal.
_WIDE = 60


def as_text(table: pa.Table) -> str:
    """Aligns columns as text: numbers to the right, missing values a dash, long texts cut.

    >>> import pyarrow
    >>> print(as_text(pyarrow.table({"run": ["a", "b"], "rate": [0.25, None]})))
    run  rate
    a    0.25
    b       -
    """
    import pyarrow.types as kinds

    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        right = (
            kinds.is_integer(field.type)
            or kinds.is_floating(field.type)
            or kinds.is_decimal(field.type)
        )
        cells = [printable(field.name, _WIDE), *(_cell(value) for value in column.to_pylist())]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value).replace("\n", " ⏎ "), _WIDE)


def as_bytes(table: pa.Table, form: str) -> bytes:
    """Encodes rows as a file in the form csv, json or parquet.

    A number that is not finite is null in JSON.

    >>> import pyarrow
    >>> as_bytes(pyarrow.table({"run": ["a"], "rate": [0.25]}), "csv")
    b'run,rate\\na,0.25\\n'
    """
    if form == "parquet":
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        return sink.getvalue()
    names = table.column_names
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    if form == "json":
        records = [dict(zip(names, map(_json, row), strict=True)) for row in rows]
        document = json.dumps(
            records,
            indent=2,
            ensure_ascii=False,
            allow_nan=False,
            default=str,
        )
        return f"{document}\n".encode("utf-8", "replace")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_json(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _json(entry) for key, entry in value.items()}
    return value
