"""Text made safe to show."""

from __future__ import annotations

import reprlib
import unicodedata
from typing import Any

from evilspectra.errors import BadInput

# --- printable ----------------------------------------------------------------------------------------------------------

_JOINER, _EMOJI_STYLE, _SKIN_TONES = (
    "\u200d",
    "\ufe0f",
    "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff",
)
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})


def printable(text: str, most: int = 400) -> str:
    r"""Text that is safe on a terminal and in a log; of a long one the start, an ellipsis and the number of characters left out.

    Newline and tab stay. Other control characters (ANSI escapes begin with one), bidirectional and other format characters, line
    separators, halves of surrogate pairs, private and unassigned characters are shown as escapes; a zero-width joiner stays
    between two emoji. A backslash stays as it is, so an escape cannot be told from the same text written out.
    `most` bounds the characters before the ellipsis, escapes counted at full length and never cut.

    Raises:
        BadInput: `most` is below 1.

    >>> printable("\x1b[31mred\u202e"), printable("abcdef", most=4)
    ('\\x1b[31mred\\u202e', 'abcd… (2 more characters)')
    """
    if most < 1:
        raise BadInput(
            f"most is {most}, but at least 1 character must be shown: give a whole number from 1"
        )
    shown: list[str] = []
    length = 0
    for place, character in enumerate(text):
        piece = (
            _escaped(character)
            if unicodedata.category(character) in _ESCAPED and not _stays(text, place)
            else character
        )
        if length + len(piece) > most:
            break
        shown.append(piece)
        length += len(piece)
    while shown and len(shown) < len(text) and shown[-1] == _JOINER:
        shown.pop()
    left = len(text) - len(shown)
    return "".join(shown) + (f"… ({left} more character{'s' if left > 1 else ''})" if left else "")


def _stays(text: str, place: int) -> bool:
    """Whether a character of an escaped category stays: newline, tab, and a joiner between two emoji."""
    if text[place] != _JOINER:
        return text[place] in "\n\t"
    neighbours = (
        text[max(0, place - 2) : place].removesuffix(_EMOJI_STYLE)[-1:],
        text[place + 1 : place + 2],
    )
    return all(
        side and (unicodedata.category(side) == "So" or side in _SKIN_TONES) for side in neighbours
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80
_REPR.maxlevel = 3


def short_repr(value: Any) -> str:
    """A value as Python writes it, cut to a length that fits a sentence."""
    try:
        return _REPR.repr(value)
    except ValueError:
        return "a number of thousands of digits"
