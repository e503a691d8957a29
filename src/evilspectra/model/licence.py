"""The licence of a base model, as stated in its own files; never guessed. No torch here."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

import yaml

from evilspectra.model.base import Base

_KEY = "general.license"
#: Bytes of GGUF's scalar types by number
#: (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); 8 is a string, 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING = 8
#: No key or text that matters here is longer than this.
_LONGEST = 1 << 16


def licence_of(base: Base) -> str | None:
    """The hub's identifier of the licence, such as apache-2.0; None if the files name none."""
    licence = None
    if base.kind == "folder":
        licence = _of_card(base.path / "README.md")
    elif base.kind == "gguf":
        licence = _of_gguf(base.path)
    return licence if licence and re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", licence) else None


def _of_card(card: Path) -> str | None:
    """`license` of a model card's front matter."""
    try:
        head = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        values = yaml.safe_load(head[1]) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError):
        return None
    licence = values.get("license") if isinstance(values, dict) else None
    return licence.lower() if isinstance(licence, str) else None


def _of_gguf(file: Path) -> str | None:
    """`general.license` in a GGUF file's head.

    The general keys come before the first array, so reading stops there.
    """
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                return None
            _, _, count = struct.unpack("<IQQ", _exactly(stream, 20))
            for _ in range(min(count, 1000)):
                key, (kind,) = _text(stream), struct.unpack("<I", _exactly(stream, 4))
                if kind == _STRING:
                    value = _text(stream)
                    if key == _KEY:
                        return value.lower()
                elif kind in _SIZES:
                    _exactly(stream, _SIZES[kind])
                else:
                    return None
    except (OSError, ValueError, struct.error):
        return None
    return None


def _text(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    if length > _LONGEST:
        raise ValueError("too long")
    return _exactly(stream, length).decode("utf-8", "replace")


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("the file ends too early")
    return data
