"""A memory-mapped safetensors file, whose header is checked in full before it is used.

The format: the length n of the header (8 bytes, unsigned, little-endian), n bytes of JSON, then the
numbers. The header gives each tensor's name, number type, shape, and first and last byte. Adapters
come from anywhere, so nothing in a header is taken on trust:

| refused | because |
|---|---|
| a header longer than the file, or than `LARGEST_HEADER` | memory and time must be bounded |
| more than `MOST_TENSORS` tensors | the same |
| JSON nested too deep, with NaN, or with a key twice | two readers would see different files |
| a name that is long, or holds a slash or two dots in a row | it might become a path |
| a name with a character that does not print | it might become a line on a terminal |
| an unknown number type, a shape that is none | sizes could not be checked |
| bytes that are not shape × size | the same |
| tensors that overlap, leave gaps, or end before or after the file | data is hidden, or cut off |

Nothing is copied: a tensor is a view of the mapping, and becomes float64 a block at a time. No
torch here.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evilspectra.errors import BadInput, first_line

LARGEST_HEADER = 1 << 25
MOST_TENSORS = 150_000
LONGEST_NAME = 500
_MOST_AXES = 16
#: Number type → (bits of a number, how NumPy sees it; None if it has no such type).
_TYPES: dict[str, tuple[int, str | None]] = {
    "F64": (64, "<f8"), "F32": (32, "<f4"), "F16": (16, "<f2"), "BF16": (16, "<u2"),
    "I64": (64, "<i8"), "I32": (32, "<i4"), "I16": (16, "<i2"), "I8": (8, "|i1"),
    "U64": (64, "<u8"), "U32": (32, "<u4"), "U16": (16, "<u2"), "U8": (8, "|u1"),
    "BOOL": (8, "|b1"), "C64": (64, None),
    "F8_E4M3": (8, None), "F8_E5M2": (8, None), "F8_E8M0": (8, None),
    "F6_E2M3": (6, None), "F6_E3M2": (6, None), "F4": (4, None),
}  # fmt: skip
#: Those that a factor may have.
REAL = ("F64", "F32", "F16", "BF16")
#: Numbers that are float64 at a time: 2 MB of them stay in a processor's cache.
BLOCK = 1 << 18


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in its file: `start` and `stop` count from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Mapped:
    """An open safetensors file whose header has been checked.

    `entries`: name → where it lies; `metadata`: the header's texts.

    Raises:
        BadInput: not a regular file, or a fault of the table above; the sentence says which.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A pipe must not make us wait, hence O_NONBLOCK.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BadInput(
                f"{path} cannot be opened ({error.strerror}): name a safetensors file"
            ) from None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(f"{path} is not a regular file: name a safetensors file")
            self.size: int = status.st_size
            self.entries: dict[str, Entry]
            self.metadata: dict[str, str]
            self.entries, self.metadata = self._header(handle)
            self._map = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                f"{path} cannot be read ({first_line(error)}): copy or save the adapter again"
            ) from None
        finally:
            os.close(handle)

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor as stored in the file: a read-only view, bfloat16 as its 16 bits.

        Raises:
            BadInput: a number type that NumPy lacks.
        """
        entry = self.entries[name]
        kind = _TYPES[entry.dtype][1]
        if kind is None:
            raise BadInput(
                f"{name} in {self.path} has the number type {entry.dtype}, which is not read "
                "here: save it as float32, bfloat16 or float16"
            )
        if entry.start == entry.stop:
            return np.empty(entry.shape, kind)
        return np.frombuffer(self._map, kind, math.prod(entry.shape), entry.start).reshape(
            entry.shape
        )

    def blocks(self, name: str, axis: int) -> Iterator[NDArray[np.float64]]:
        """Yields a matrix in float64, block after block of rows (`axis` 0) or of columns (1).

        No full copy of it is ever made.
        """
        stored, dtype = self.stored(name), self.entries[name].dtype
        length, across = stored.shape[axis], max(1, stored.shape[1 - axis])
        step = max(1, BLOCK // across)
        for first in range(0, length, step):
            yield widened(
                stored[first : first + step] if axis == 0 else stored[:, first : first + step],
                dtype,
            )

    def wide(self, name: str) -> NDArray[np.float64]:
        """All of a tensor, in float64."""
        return widened(self.stored(name), self.entries[name].dtype)

    def raw(self, name: str) -> memoryview:
        """The bytes of a tensor as they lie in the file."""
        entry = self.entries[name]
        return memoryview(self._map)[entry.start : entry.stop]

    def _header(self, handle: int) -> tuple[dict[str, Entry], dict[str, str]]:
        if self.size < 8:
            raise self._damaged(f"it has {self.size} bytes")
        length = int.from_bytes(_read(handle, 8, 0), "little")
        if length > self.size - 8:
            raise self._damaged(
                f"its header would have {length:,} bytes, and the file has {self.size:,}"
            )
        if length > LARGEST_HEADER:
            raise BadInput(
                f"{self.path} has a header of {length:,} bytes, and at most {LARGEST_HEADER:,} "
                "are read: no adapter needs so many; name another file"
            )
        try:
            text = _read(handle, length, 8)
            # Too many are refused before the parser spends memory and time on them.
            braces, brackets, colons = (text.count(mark) for mark in (b"{", b"[", b":"))
            if max(braces, brackets // 2, colons // 4 - 1000) > MOST_TENSORS + 2:
                raise self._many()
            header = json.loads(
                text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number
            )
        except BadInput:
            raise
        except (ValueError, RecursionError, OSError) as error:
            raise self._damaged(f"its header is not JSON: {first_line(error)}") from None
        if not isinstance(header, dict):
            raise self._damaged("its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        texts = isinstance(metadata, dict) and all(
            isinstance(value, str) for value in metadata.values()
        )
        if not texts:
            raise self._damaged("its metadata is not an object of strings")
        if len(header) > MOST_TENSORS:
            raise self._many()
        entries = {name: self._entry(name, value, 8 + length) for name, value in header.items()}
        end = 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start < end:
                raise self._damaged(f"{name} overlaps the tensor before it")
            if entry.start > end:
                raise self._damaged(f"{name} leaves a gap before it")
            end = entry.stop
        if end != self.size:
            raise self._damaged(f"its tensors end at byte {end:,}, and the file at {self.size:,}")
        return entries, metadata

    def _entry(self, name: str, value: Any, begin: int) -> Entry:
        printable = 0 < len(name) <= LONGEST_NAME and name.isprintable()
        if not printable or any(mark in name for mark in ("/", "\\", "..")):
            raise self._damaged(f"{name[:60]!a} is not the name of a tensor")
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"{name} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _TYPES:
            raise self._damaged(f"{name} has the unknown number type {ascii(dtype)[:40]}")
        lists = _is_index_list(shape) and _is_index_list(offsets)
        if not lists or len(shape) > _MOST_AXES or len(offsets) != 2:
            raise self._damaged(
                f"the shape or the offsets of {name} are not lists of whole numbers"
            )
        start, stop = offsets
        if not start <= stop <= self.size - begin:
            raise self._damaged(f"{name} lies outside the file")
        if math.prod(shape) * _TYPES[dtype][0] != 8 * (stop - start):
            raise self._damaged(
                f"{name} has {stop - start:,} bytes, which is not what its shape needs"
            )
        return Entry(dtype, tuple(shape), begin + start, begin + stop)

    def _many(self) -> BadInput:
        return BadInput(
            f"{self.path} has more than {MOST_TENSORS:,} tensors, or as many other entries: no "
            "adapter needs so many; name another file"
        )

    def _damaged(self, why: str) -> BadInput:
        return BadInput(
            f"{self.path} is damaged or not a safetensors file ({why}): "
            "copy or save the adapter again"
        )


def widened(stored: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    """Numbers in float64, without loss: the 16 bits of a bfloat16 are the upper half of a float32.

    >>> widened(np.array([0x3F80, 0xC000], dtype="<u2"), "BF16").tolist()
    [1.0, -2.0]
    """
    if dtype == "BF16":
        stored = np.left_shift(stored, 16, dtype=np.uint32).view(np.float32)
    return stored.astype(np.float64)


def _read(handle: int, count: int, at: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        piece = os.pread(handle, count - len(content), at + len(content))
        if not piece:
            raise OSError("it ends too early")
        content += piece
    return bytes(content)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key appears in it twice")
    return entries


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _is_index_list(value: Any) -> bool:
    """Whether a value is a list of numbers 0, 1, 2, … below 2⁶³."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    )
