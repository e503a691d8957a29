"""Tables of runs that other tools made: reading them, and columns under other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from evilspectra.errors import BadInput, first_line, listing

#: Our name of a column → theirs, or the same as texts "ours=theirs".
Columns: TypeAlias = Mapping[str, str] | Sequence[str]
#: Suffixes of tables that can be read.
TABLES = (".csv", ".parquet")


def read_table(path: Path) -> Any:
    """A frame of a .csv or .parquet file.

    Raises:
        BadInput: there is no such file, it is no table, or it has no rows.
    """
    import pandas as pd

    if not path.is_file():
        raise BadInput(
            f"there is no folder or file {path}: "
            f"name a folder of runs, or a table ({listing(TABLES)})."
        )
    if path.suffix.lower() not in TABLES:
        raise BadInput(
            f"{path} is no table that can be read: a table's name ends in {' or '.join(TABLES)}."
        )
    try:
        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError, UnicodeError) as error:
        raise BadInput(
            f"{path} cannot be read as a table ({first_line(error)}): "
            "write it again as CSV with a header, or as Parquet."
        ) from None
    if frame.empty:
        raise BadInput(f"{path} has no rows: it needs one per run.")
    return frame


def mapping_of(columns: Columns) -> Mapping[str, str]:
    """Our name of a column → theirs, from a mapping or from `OURS=THEIRS`.

    >>> mapping_of(["optimizer=opt"]), mapping_of({"optimizer": "opt"})
    ({'optimizer': 'opt'}, {'optimizer': 'opt'})

    Raises:
        BadInput: one is not of that form.
    """
    if isinstance(columns, Mapping):
        return columns
    texts = [columns] if isinstance(columns, str) else columns
    pairs = [column.partition("=") for column in texts]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            text = f"{ours}{equals}{theirs}"
            raise BadInput(f"--column takes OURS=THEIRS, such as optimizer=opt_name, not '{text}'.")
    return {ours: theirs for ours, _, theirs in pairs}
