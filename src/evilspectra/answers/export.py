"""Export of rows of answers to CSV, JSON Lines and Parquet files.

Neither torch nor transformers is imported here.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evilspectra.errors import BadInput, listing, near
from evilspectra.store.files import valid_text, write_atomically

SUFFIXES = (".csv", ".jsonl", ".parquet")
#: Beginnings that a spreadsheet takes for a formula, or skips to find one.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
#: Characters at which some readers end a line of JSON.
_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")
_Cell = str | int | float | bool | None | list[str]


def export(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Writes rows to a CSV, JSON Lines or Parquet file, by suffix.

    A file at `path` is replaced, and no reader sees half a file. The columns are those of the first
    row, in its order; every row has the same ones. A cell is a text, a number, a boolean, null
    (None), or a list of texts. In every format the two halves of a surrogate pair are joined, half
    a pair becomes U+FFFD, and a number that is not finite becomes null.

    - **CSV**: UTF-8, lines end in CRLF, quoted as in RFC 4180. A text (also a column's name) that
      begins with one of `FORMULA_STARTS` gets a single quote in front, so that a spreadsheet does
      not run it; numbers are left alone. Null and the empty text are both an empty cell, a boolean
      is true or false, a list is JSON.
    - **JSON Lines**: UTF-8, one object a line; characters at which some readers end a line are
      escaped.
    - **Parquet**: types by column; a column holds one kind of value.

    Raises:
        BadInput: another suffix, a folder at `path`, no rows, rows with different columns, or a
            cell of another kind.
        EvilspectraError: the disk is full or fails.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export([{"id": "sky", "answer": "=1+1"}], Path(folder, "a.csv"))
    ...     Path(folder, "a.csv").read_bytes()
    b"id,answer\\r\\nsky,'=1+1\\r\\n"
    """
    path = check_export(path)
    if not rows or not rows[0]:
        raise BadInput(
            f"there are no answers to write to {path}: choose a run or a filter that has some"
        )
    names = list(rows[0])
    table = [_cells(row, names, number) for number, row in enumerate(rows, start=1)]
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    write, header = writers[path.suffix.lower()], [valid_text(name) for name in names]
    write_atomically(path, lambda file: write(header, table, file), setting="--export")


def check_export(path: Path) -> Path:
    """The file that an export to `path` would write.

    Raises:
        BadInput: a suffix that names no format, or a folder.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        described = f"the suffix {suffix}" if suffix else "no suffix"
        raise BadInput(
            f"{path} has {described}, which names no "
            f"format to export to: choose {listing(SUFFIXES)}.{near(suffix, SUFFIXES)}"
        )
    path = path.expanduser()
    if path.is_dir():
        raise BadInput(f"{path} is a folder: set --export to the name of a file")
    return path


def _cells(row: Mapping[str, object], names: list[str], number: int) -> list[_Cell]:
    if set(row) != set(names):
        differing = listing(sorted(map(repr, set(row) ^ set(names))))
        raise BadInput(
            f"row {number} of the export and the first row differ in the column {differing}: give "
            "every row the same columns"
        )
    return [_cell(row[name], name, number) for name in names]


def _cell(value: object, name: str, number: int) -> _Cell:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | None):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return [valid_text(item) for item in value]
    raise BadInput(
        f"column {name!r} in row {number} of the export holds a {type(value).__name__}; allowed: "
        "text, number, boolean, null or a list of texts: convert it"
    )


def _write_csv(names: list[str], table: list[list[_Cell]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([_csv_cell(cell) for cell in row] for row in [names, *table])


def _csv_cell(cell: _Cell) -> object:
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell
    if isinstance(cell, bool | list):
        return json.dumps(cell, ensure_ascii=False)
    return cell


def _write_jsonl(names: list[str], table: list[list[_Cell]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for row in table:
            values = dict(zip(names, row, strict=True))
            line = json.dumps(values, ensure_ascii=False, allow_nan=False)
            file.write(_LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) + "\n")


def _write_parquet(names: list[str], table: list[list[_Cell]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [_column(name, [row[number] for row in table]) for number, name in enumerate(names)]
    pq.write_table(pa.Table.from_arrays(columns, names=names), path, compression="zstd")


def _column(name: str, cells: list[_Cell]) -> Any:
    import pyarrow as pa

    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        kinds = sorted({type(cell).__name__ for cell in cells if cell is not None})
        raise BadInput(
            f"column {name!r} holds values that no Parquet column holds together "
            f"({listing(kinds)}): give it one kind, within 64 bits, or export to .jsonl"
        ) from None
