"""Errors of DuckDB as one sentence each, with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from evilspectra.errors import BadInput, first_line, listing, near
from evilspectra.tables.views import ABOUT, view_columns

#: Memory that DuckDB may take; what does not fit goes to a temporary folder.
MEMORY = "1200MB"


@contextmanager
def query_errors() -> Iterator[None]:
    """Turns an error of DuckDB into a BadInput of one sentence that names the remedy."""
    try:
        yield
    except duckdb.ParserException as error:
        token = re.search(r'at or near "(.+?)"', str(error))
        line = re.search(r"^LINE (\d+):", str(error), re.MULTILINE)
        where = f" in line {line[1] if line else 1}" + (f" near '{token[1]}'" if token else "")
        details = "" if token else f" ({_reason(error)})"
        raise BadInput(
            f"the query is not valid SQL{where}{details}: correct it; `evilspectra query --help` "
            "shows examples"
        ) from None
    except duckdb.BinderException as error:
        raise BadInput(
            _unknown_column(str(error))
            or f"the query cannot be understood: {_reason(error)}; correct it"
        ) from None
    except duckdb.CatalogException as error:
        table = re.search(r"Table with name (\S+) does not exist", str(error))
        if table:
            raise BadInput(
                f"there is no view '{table[1]}'; views are "
                f"{listing(ABOUT, 20)}.{near(table[1], ABOUT)}"
            ) from None
        raise BadInput(f"the query cannot be understood: {_reason(error)}; correct it") from None
    except duckdb.PermissionException as error:
        raise BadInput(
            "the query is refused: it may read the store's views and nothing else "
            f"({_reason(error)}); views are {listing(ABOUT, 20)}"
        ) from None
    except duckdb.OutOfMemoryException as error:
        raise BadInput(
            f"the query needs more than {MEMORY} of memory ({_reason(error)}): select fewer rows "
            "or columns, or aggregate them in the query"
        ) from None
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        if ".parquet" in str(error):
            raise BadInput(
                f"a file of the store cannot be read ({_reason(error)}): restore it, or remove the "
                "folder of the run and run again"
            ) from None
        raise BadInput(f"the query failed: {_reason(error)}; correct it") from None
    except duckdb.Error as error:
        raise BadInput(f"the query failed: {_reason(error)}; correct it") from None


def _reason(error: Exception) -> str:
    """DuckDB's own message, without the kind of error."""
    return re.sub(r"^[A-Z][A-Za-z ]+ Error: ", "", first_line(error)).rstrip(".!")


def _unknown_column(text: str) -> str | None:
    """The sentence on a column that does not exist; None for any other error."""
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
    columns = [_column(candidate) for candidate in names]
    guess = near(name, columns or every) or near(name, every)
    similar = f" (similar names are {listing(names, 5)})" if names else ""
    return (
        f"there is no column '{name}' where the query looks for it{similar}: `evilspectra query "
        f"--views` lists the columns of every view.{guess}"
    )


def _column(candidate: str) -> str:
    """The column of a candidate, which may be qualified by its view."""
    view, *_ = candidate.split(".")
    return candidate.split(".", 1)[-1] if view in ABOUT else candidate
