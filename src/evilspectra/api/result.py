"""The base of all results: a table of rows, a line that sums it up, and its display.

A result prints nothing by itself, and holds no torch tensor. Its class is a frozen dataclass with
`repr=False`, so that the readable form of this base stays:

    @dataclass(frozen=True, repr=False)
    class Verdict(Result): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from evilspectra.errors import packages_explained
from evilspectra.numbers import number
from evilspectra.text import printable

if TYPE_CHECKING:
    from pandas import DataFrame

#: Rows of a notebook's table, and characters of a cell, at most.
_ROWS, _CELL = 60, 200


@dataclass(frozen=True, repr=False)
class Result(ABC):
    """Base of the results of `evilspectra`'s functions: frozen, with a table and a display."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """The result in one line of plain text."""

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """A row per thing that the result lists, as plain values by column."""

    @property
    def details(self) -> tuple[str, ...]:
        """Sentences that a reader must know besides headline and rows: notes, reasons."""
        return ()

    @packages_explained()
    def to_frame(self) -> DataFrame:
        """The rows as a data frame of pandas."""
        from pandas import DataFrame

        return DataFrame(self.rows())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({printable(self.headline, 400)})"

    def __str__(self) -> str:
        lines = [self.headline, *(f"- {detail}" for detail in self.details)]
        return "\n".join(printable(line, 1000) for line in lines)

    def _repr_html_(self) -> str:
        """The display in a notebook; every text is escaped."""
        parts = [f"<p><strong>{_shielded(self.headline, 1000)}</strong></p>", table(self.rows())]
        if self.details:
            items = "".join(f"<li>{_shielded(detail, 1000)}</li>" for detail in self.details)
            parts.append(f"<ul>{items}</ul>")
        return "".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table, every text escaped; the number of rows that are left out after it.

    >>> table([{"name": "<b>", "value": 0.123456}]).split("<tbody>")[1]
    '<tr><td>&lt;b&gt;</td><td>0.1235</td></tr></tbody></table>'
    """
    if not rows:
        return ""
    columns = list(dict.fromkeys(column for row in rows[:_ROWS] for column in row))
    head = "".join(f"<th>{_shielded(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(row.get(column))}</td>' for column in columns)}</tr>"
        for row in rows[:_ROWS]
    )
    left_out = len(rows) - _ROWS
    more = f"<p>and {left_out} more rows: to_frame() has all</p>" if left_out > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return _shielded(number(value, ".4g") if isinstance(value, float) else str(value))


def _shielded(text: str, most: int = _CELL) -> str:
    return escape(printable(text, most))
