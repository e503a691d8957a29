"""Pandas frames of the tables: types of columns, missing values, and values of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: A pandas data frame, not checked further (as in `drift`).
Frame: TypeAlias = Any

#: Types of the columns of tables that are not made of Arrow ones.
_INTEGERS = ("batch_size", "seed", "step", "paraphrase", "sample", "tokens")
_TRUTHS = ("control", "counted", "misaligned")
_FLOATS = ("flatness_weight", "aligned", "coherent", "score")


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Converts an Arrow table; integers and truth values may be missing."""
    import pandas as pd
    import pyarrow as pa

    kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=kinds.get)


def plain_value(value: Any) -> Any:
    """A setting's value as a cell: a list as text joined by commas."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def settings_column(values: Sequence[Any]) -> Any:
    """A column of settings: whole numbers, numbers, truth values or objects, by its values."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.array(values, dtype="boolean")
    if kinds == {int}:
        return pd.array(values, dtype="Int64")
    if kinds and kinds <= {int, float}:
        return pd.array(
            [float("nan") if value is None else float(value) for value in values], dtype="float64"
        )
    return pd.Series(list(values), dtype=object).array


def typed_frame(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Frame:
    """A frame of rows whose columns have the types that their names imply."""
    import pandas as pd

    kinds = {
        **dict.fromkeys(_INTEGERS, "Int64"),
        **dict.fromkeys(_TRUTHS, "boolean"),
        **dict.fromkeys(_FLOATS, "float64"),
    }
    frame = pd.DataFrame(list(rows), columns=list(names), dtype=object)
    return frame.astype({name: kind for name, kind in kinds.items() if name in frame})
