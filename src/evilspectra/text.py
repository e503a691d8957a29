"""Text made safe to show."""

from __future__ import annotations

import reprlib
import unicodedata
from typing import Any

from evilspectra.errors import BadInput

_JOINER = "\u200d"
_EMOJI_STYLE = "\ufe0f"
_SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
#: Unicode categories whose characters are escaped.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})


def printable(text: str, most: int = 400) -> str:
    r"""Text that is safe on a terminal and in a log.

    Of a long text the start, an ellipsis and the number of characters left out. `most` bounds the
    characters before the ellipsis, escapes counted at full length and never cut.

    Newline and tab stay. Other control characters (ANSI escapes begin with one), bidirectional and
    other format characters, line separators, halves of surrogate pairs, private and unassigned
    characters become escapes; a zero-width joiner stays between two emoji. A backslash stays as it
    is, so an escape cannot be distinguished from the same text written out.

    Raises:
        BadInput: `most` is below 1.

    >>> printable("\x1b[31mred\u202e"), printable("abcdef", most=4)
    ('\\x1b[31mred\\u202e', 'abcd… (2 more characters)')
    """
    if most < 1:
        raise BadInput(
            f"most is {most}, but at least 1 character must be shown: give a whole number from 1"
        )
    pieces: list[str] = []
    length = 0
    for position, character in enumerate(text):
        piece = character
        if unicodedata.category(character) in _ESCAPED and not _stays(text, position):
            piece = _escaped(character)
        if length + len(piece) > most:
            break
        pieces.append(piece)
        length += len(piece)
    while pieces and len(pieces) < len(text) and pieces[-1] == _JOINER:
        pieces.pop()
    left = len(text) - len(pieces)
    if not left:
        return "".join(pieces)
    return "".join(pieces) + f"… ({left} more character{'s' if left > 1 else ''})"


def _stays(text: str, position: int) -> bool:
    """Whether a character of an escaped category stays.

    Newline and tab do, and a joiner between two emoji.
    """
    if text[position] != _JOINER:
        return text[position] in "\n\t"
    neighbours = (
        text[max(0, position - 2) : position].removesuffix(_EMOJI_STYLE)[-1:],
        text[position + 1 : position + 2],
    )
    return all(
        side and (unicodedata.category(side) == "So" or side in _SKIN_TONES) for side in neighbours
    )


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80
_REPR.maxlevel = 3


def short_repr(value: Any) -> str:
    """A value as Python writes it, cut to a length that fits a sentence."""
    try:
        return _REPR.repr(value)
    except ValueError:
        return "a number of thousands of digits"
