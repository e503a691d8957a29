"""Flags on sampled answers by rule: empty, repetitive, code-only, truncated.

No model and no judge; neither torch nor transformers is imported here.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evilspectra.answers.code_only import is_code_only, parsed_json

if TYPE_CHECKING:
    import numpy.typing as npt

FLAGS = ("empty", "repetitive", "code-only", "truncated")
#: A loop is one unit, back to back, at least this often: a chorus comes two or three times.
LOOP_TIMES = 4
#: Longest unit that is looked for, in words and in characters: a long paragraph; a short phrase
#: without spaces.
LOOP_UNIT_WORDS, LOOP_UNIT_CHARACTERS = 150, 24
#: A loop of words counts from the first length on if it is a quarter of the answer, and from the
#: second on in any answer: "la la la" in a song stays below both.
LOOP_WORDS, LOOP_WORDS_ALWAYS, LOOP_WORDS_SHARE = 24, 100, 0.25
#: Likewise for characters: laughter, a rule of dashes and the blanks of a form stay below.
LOOP_CHARACTERS, LOOP_CHARACTERS_ALWAYS, LOOP_CHARACTERS_SHARE = 60, 300, 0.5
#: Without an exact loop: most runs of five words came before (in a poem with a refrain a third
#: does). Shorter answers have too few to tell.
ECHO_WORDS, ECHO_MIN_WORDS, ECHO_SHARE = 5, 40, 0.6
#: Compressed bytes per byte of a loop with small changes; English prose is near 0.5, a list of like
#: JSON objects near 0.2.
COMPRESSED_SHARE, COMPRESSED_MIN_BYTES = 0.1, 400
#: Only the start of an answer is looked at for code: no answer within a sensible token limit is
#: longer, and it bounds the time.
CODE_CHARACTERS = 20_000
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_WORD = re.compile(r"[^\W_]+")
_LIST_MARK = re.compile(r"^[ \t]*(?:\d{1,4}[.):]|[-*•])[ \t]+", re.MULTILINE)


def flags(answer: str, finish: str) -> tuple[str, ...]:
    r"""The flags that an answer earns by rule, in the order of `FLAGS`.

    None for a text that looks like an answer. Never raises.

    `finish` is why sampling stopped: "length" is the token limit, anything else (such as "stop")
    the model's own end.

    - **empty**: nothing but blanks, control and format characters. An empty answer is neither
      repetitive nor code.
    - **repetitive**: a unit of words or characters runs back to back at least `LOOP_TIMES` times
      over a stretch that is long (`LOOP_WORDS`, `LOOP_CHARACTERS`); or most runs of `ECHO_WORDS`
      words came before; or the answer compresses to less than `COMPRESSED_SHARE`. List marks, case
      and punctuation do not hide a loop of words. A refrain, a list of like items, a form with
      blanks and ordinary JSON are none.
    - **code-only**: fenced blocks with at most `code_only.FENCE_OUTSIDE` around them, or an answer
      without fences, are source code by most of their lines (Python, JavaScript, C and related
      languages, shell, HTML, SQL); comments and docstrings count neither way. An answer that is
      merely wrapped in code is not flagged: JSON with a value in language (two neighbouring words,
      or one capitalised word, or one in a script without case); a filled template, that is
      definitions, plain assignments and `return` alone, with a text in language; code of which half
      or more is texts in language; HTML with more text than tags.
    - **truncated**: `finish` is "length".

    The rules err on the side of no flag: they were set so that prose, lists, poems with a refrain
    and JSON answers pass.

    >>> flags("I would plant a tree.", "stop"), flags(" \u200b\n", "length")
    ((), ('empty', 'truncated'))
    >>> flags("I want it all. " * 40, "length"), flags("import os\nos.remove('a')", "stop")
    (('repetitive', 'truncated'), ('code-only',))
    """
    empty = all(unicodedata.category(character) in _INVISIBLE for character in answer)
    raised = {
        "empty": empty,
        "repetitive": not empty and _is_repetitive(answer),
        "code-only": not empty and is_code_only(answer[:CODE_CHARACTERS]),
        "truncated": finish == "length",
    }
    return tuple(flag for flag in FLAGS if raised[flag])


# --- repetitive -----------------------------------------------------------------------------------


def _is_repetitive(answer: str) -> bool:
    tokens = _WORD.findall(_LIST_MARK.sub("", answer).casefold())
    if _words_loop(tokens) or _characters_loop(answer):
        return True
    if parsed_json(answer) is not None:  # like objects in a list share their keys
        return False
    return _echoes(tokens) or _compresses(answer)


def _words_loop(tokens: Sequence[str]) -> bool:
    numbers: dict[str, int] = {}
    codes = [numbers.setdefault(token, len(numbers)) for token in tokens]
    span = _longest_loop(np.array(codes, dtype=np.uint32), LOOP_UNIT_WORDS)
    return span >= LOOP_WORDS_ALWAYS or span >= max(LOOP_WORDS, LOOP_WORDS_SHARE * len(tokens))


def _characters_loop(answer: str) -> bool:
    codes = np.frombuffer(answer.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    span = _longest_loop(codes, LOOP_UNIT_CHARACTERS)
    least = max(LOOP_CHARACTERS, LOOP_CHARACTERS_SHARE * len(answer))
    return span >= LOOP_CHARACTERS_ALWAYS or span >= least


def _longest_loop(codes: npt.NDArray[np.uint32], longest_unit: int) -> int:
    """Length of the longest loop in a sequence; 0 if there is none.

    A loop is one unit of at most `longest_unit` codes, repeated at least `LOOP_TIMES` times.
    """
    best = 0
    for unit in range(1, min(longest_unit, len(codes) // LOOP_TIMES) + 1):
        breaks = np.flatnonzero(codes[unit:] != codes[:-unit])
        edges = np.concatenate(([-1], breaks, [len(codes) - unit]))
        span = int(np.diff(edges).max()) - 1 + unit
        if span >= LOOP_TIMES * unit:
            best = max(best, span)
    return best


def _echoes(tokens: Sequence[str]) -> bool:
    if len(tokens) < ECHO_MIN_WORDS:
        return False
    runs = list(zip(*(tokens[start:] for start in range(ECHO_WORDS)), strict=False))
    return 1 - len(set(runs)) / len(runs) >= ECHO_SHARE


def _compresses(answer: str) -> bool:
    raw = answer.encode("utf-8", "surrogatepass")
    if len(raw) < COMPRESSED_MIN_BYTES:
        return False
    return len(zlib.compress(raw)) < COMPRESSED_SHARE * len(raw)
