"""JSON objects and Parquet tables on disk, each written as a whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from evilspectra.errors import BadInput, cannot_write, first_line
from evilspectra.store.records import columns

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def writing(path: object, setting: str = "output.folder") -> Iterator[None]:
    """Turns an operating system's refusal to write below `path` into one sentence.

    `setting` is the setting that moves the path elsewhere.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(error, path, setting) from error
    except (SafetensorError, RuntimeError) as error:  # they hide the system's own error
        code = re.search(r"os error (\d+)", str(error))
        full = shutil.disk_usage(_existing(path)).free < _NEARLY_FULL
        if not code and not full:
            raise
        number = int(code[1]) if code else errno.ENOSPC
        raise cannot_write(OSError(number, os.strerror(number)), path, setting) from error


#: Bytes left on a disk below which a failed write is attributed to a full disk.
_NEARLY_FULL = 1 << 16


def _existing(location: object) -> Path:
    path = Path(str(location)).absolute()
    return next(parent for parent in [path, *path.parents] if parent.exists())


def write_atomically(
    path: Path, write: Callable[[Path], object], setting: str = "output.folder"
) -> None:
    """Calls `write` with a temporary path in the same folder, then renames that to `path`.

    Works for a file and for a folder, which are flushed to disk before. A file or folder at `path`
    is replaced. On failure nothing is left behind.
    """
    with writing(path, setting):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        remove(temporary)
        try:
            with writing(path, setting):  # while the temporary file still fills the disk
                write(temporary)
            for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
                _flush(file)
            if path.is_dir():
                remove(path)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            remove(temporary)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def valid_text(text: str) -> str:
    """Text that every file format takes.

    Halves of surrogate pairs are joined; a half without the other is replaced by U+FFFD.

    >>> valid_text("a" + chr(0xD800)) == "a" + chr(0xFFFD)
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def as_table(rows: Sequence[Any], kind: type) -> pa.Table:
    """Records of one class as an Arrow table; its texts are made valid by `valid_text`."""
    import pyarrow as pa

    def stored(value: Any) -> Any:
        return valid_text(value) if isinstance(value, str) else value

    return pa.Table.from_pydict(
        {name: [stored(getattr(row, name)) for row in rows] for name in columns(kind)},
        schema=arrow_schema(kind),
    )


def write_table(path: Path, data: pa.Table, setting: str = "output.folder") -> None:
    """Writes a table as Parquet, as a whole or not at all."""
    import pyarrow.parquet as pq

    write_atomically(
        path, lambda temporary: pq.write_table(data, temporary, compression="zstd"), setting
    )


def read_table(
    path: Path,
    kind: type,
    remedy: str = "restore it, or remove the folder of the run and run again",
) -> pa.Table:
    """The rows of a Parquet file that holds records of a class.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(kind)
    try:
        return pq.ParquetFile(path).read(columns=schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({first_line(error)}): {remedy}") from None


def arrow_schema(kind: type) -> pa.Schema:
    import pyarrow as pa

    kinds = {"int": pa.int64(), "float": pa.float64(), "str": pa.string()}
    hints: dict[str, Any] = kind.__annotations__
    types = {name: str(hints[name]) for name in columns(kind)}
    return pa.schema(
        [
            pa.field(name, kinds[re.split(r"\W", hint)[0]], nullable="None" in hint)
            for name, hint in types.items()
        ]
    )


def write_json(path: Path, values: dict[str, Any], setting: str = "output.folder") -> None:
    """Writes a JSON object, as a whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), setting)


def read_json(
    path: Path,
    remedy: str = "it belongs to the run; restore it, or remove the run's folder and run again",
) -> dict[str, Any]:
    """The object in a JSON file; `remedy` is the advice at the end of a message.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read ({error}): {remedy}") from None
    return values
