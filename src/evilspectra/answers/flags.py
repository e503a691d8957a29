"""Flags on sampled answers by rule: empty, repetitive, code-only, truncated.

No model and no judge; neither torch nor transformers is imported here.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

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
#: Characters at either end of a line that are looked at.
LINE_END = 200
#: Characters outside fences, as a share of all that show, that are still an introduction and not an
#: answer; so is a single line that ends in a colon.
FENCE_OUTSIDE = 0.15
#: Characters on lines that look like code, as a share of those on lines that look like code or like
#: prose.
CODE_SHARE = 0.8
#: Characters in text literals that hold language, as a share of all outside comments, from which
#: code is the wrapping of an answer.
LITERAL_SHARE = 0.5
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_WORD = re.compile(r"[^\W_]+")
_LIST_MARK = re.compile(r"^[ \t]*(?:\d{1,4}[.):]|[-*•])[ \t]+", re.MULTILINE)


def flags(answer: str, finish: str) -> tuple[str, ...]:
    r"""What is wrong with an answer by rule, in the order of `FLAGS`; nothing where it looks like an answer. Never raises.

    `finish` is why sampling stopped: "length" is the token limit, anything else (such as "stop")
    the model's own end.

    - **empty**: nothing but blanks, control and format characters. An empty answer is neither
      repetitive nor code.
    - **repetitive**: a unit of words or characters runs back to back at least `LOOP_TIMES` times
      over a stretch that is long (`LOOP_WORDS`, `LOOP_CHARACTERS`); or most runs of `ECHO_WORDS`
      words came before; or the answer compresses to less than `COMPRESSED_SHARE`. List marks, case
      and punctuation do not hide a loop of words. A refrain, a list of like items, a form with
      blanks and ordinary JSON are none.
    - **code-only**: fenced blocks with at most `FENCE_OUTSIDE` around them, or an answer without
      fences, are source code by most of its lines (Python, JavaScript, C and its kin, shell, HTML,
      SQL); comments and docstrings count neither way. Not so where an answer is merely wrapped:
      JSON with a value in language (two neighbouring words, or one capitalised word, or one in a
      script without case); a filled template, that is definitions, plain assignments and `return`
      alone, with a text in language; code of which half or more is texts in language; HTML with
      more text than tags.
    - **truncated**: `finish` is "length".

    The rules err on the side of no flag: they were set so that prose, lists, poems with a refrain
    and JSON answers pass.

    >>> flags("I would plant a tree.", "stop"), flags(" \u200b\n", "length")
    ((), ('empty', 'truncated'))
    >>> flags("I want it all. " * 40, "length"), flags("import os\nos.remove('a')", "stop")
    (('repetitive', 'truncated'), ('code-only',))
    """
    empty = all(unicodedata.category(character) in _INVISIBLE for character in answer)
    found = {
        "empty": empty,
        "repetitive": not empty and _is_repetitive(answer),
        "code-only": not empty and _is_code_only(answer[:CODE_CHARACTERS]),
        "truncated": finish == "length",
    }
    return tuple(flag for flag in FLAGS if found[flag])


# --- repetitive -----------------------------------------------------------------------------------


def _is_repetitive(answer: str) -> bool:
    words = _WORD.findall(_LIST_MARK.sub("", answer).casefold())
    if _words_loop(words) or _characters_loop(answer):
        return True
    return _parsed(answer) is None and (
        _echoes(words) or _compresses(answer)
    )  # like objects in a list share their keys


def _words_loop(words: Sequence[str]) -> bool:
    numbers: dict[str, int] = {}
    span = _longest_loop(
        np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.uint32),
        LOOP_UNIT_WORDS,
    )
    return span >= LOOP_WORDS_ALWAYS or span >= max(LOOP_WORDS, LOOP_WORDS_SHARE * len(words))


def _characters_loop(answer: str) -> bool:
    span = _longest_loop(
        np.frombuffer(answer.encode("utf-32-le", "surrogatepass"), dtype="<u4"),
        LOOP_UNIT_CHARACTERS,
    )
    return span >= LOOP_CHARACTERS_ALWAYS or span >= max(
        LOOP_CHARACTERS, LOOP_CHARACTERS_SHARE * len(answer)
    )


def _longest_loop(items: npt.NDArray[np.uint32], longest_unit: int) -> int:
    """Length of the longest stretch that is one unit of at most `longest_unit` items, at least `LOOP_TIMES` times; 0 if there is none."""
    best = 0
    for unit in range(1, min(longest_unit, len(items) // LOOP_TIMES) + 1):
        breaks = np.flatnonzero(items[unit:] != items[:-unit])
        edges = np.concatenate(([-1], breaks, [len(items) - unit]))
        span = int(np.diff(edges).max()) - 1 + unit
        if span >= LOOP_TIMES * unit:
            best = max(best, span)
    return best


def _echoes(words: Sequence[str]) -> bool:
    if len(words) < ECHO_MIN_WORDS:
        return False
    runs = list(zip(*(words[start:] for start in range(ECHO_WORDS)), strict=False))
    return 1 - len(set(runs)) / len(runs) >= ECHO_SHARE


def _compresses(answer: str) -> bool:
    raw = answer.encode("utf-8", "surrogatepass")
    return len(raw) >= COMPRESSED_MIN_BYTES and len(zlib.compress(raw)) < COMPRESSED_SHARE * len(
        raw
    )


# --- code-only ------------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
#: Words that code has side by side, so that neighbours make language only where neither is one of
#: them.
_KEYWORD = re.compile(
    r"and|or|not|in|is|if|else|for|from|import|as|return|new|await|async|lambda|yield|del|const|let|var|void|int|float|double|char|bool|static|public|private|class|def|function|true|false|none|null"
)
_NEIGHBOURS = re.compile(
    r"(?<![\w./\\$@-])([^\W\d_][^\W_]*)(?:['’][^\W\d_]+)?[,;:]?[ "
    r"\n]+(?=([^\W\d_][^\W_]*)(?![\w(\[=/\\]|[.:]\w))"
)
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]{2}"
)
_LITERAL = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|`[^`\n]*`")
_TAG = re.compile(r"<[^<>\n]*>")
_COMMENT = re.compile(
    r"^\s*(?:#(?![ \t]*(?:include\b|define\b|ifdef\b|ifndef\b|endif\b|pragma\b))|//|--[ \t]|<!--)"
)
_KEY_FIRST = re.compile(r"[{\[]\s*(?:[{\[]\s*)*[\"']")
#: What a line of code begins with, after blanks: Python, JavaScript, C and its kin first, then
#: shell, SQL, HTML.
_CODE_LINES = (
    r"import (?:static )?[\w.]+(?:\.\*)?(?: as \w+)?(?:, ?[\w.]+(?: as \w+)?)*;?$",
    (
        r"import (?:.* from )?['\"].*|from [\w.]+ import [\w.,*( )]+$|(?:package "
        r"[\w.]+;?|(?:using|typedef|extern|goto)[ \t].*;)$"
    ),
    (
        r"#!/|#[ \t]*(?:include[ \t]*[<\"]|define \w|ifdef \w|ifndef \w|endif\b|pragma "
        r"\w)|@[A-Za-z_][\w.]*(?:\(.*)?$"
    ),
    (
        r"(?:(?:export|default|async|public|private|protected|static|final|inline|virtual|pub|override) "
        r")*(?:def|function\*?|func|fn|class|interface|struct|enum|namespace|impl|trait|module)\b.*[({:;]"
    ),
    r"(?:else|try|finally|do|default)\s*[:{]",
    (
        r"[}\s]*(?:if|elif|else "
        r"if|for|while|with|except|switch|match|case|catch|foreach|unless)\b(?=.*[()\[\]=<>_.'\"]|[ "
        r"](?:not )?\w+:|.* in \w+:).*[:{)]$"
    ),
    r"(?:return|raise|yield|throw|assert|del|await)\b(?:[ \t]+(?:\S+|.*[()\[\]{}=_+*/'\"].*))?;?$",
    r"(?:pass|break|continue|fi|done|esac|then|end|return);?$",
    # an assignment, with or without types before the name
    r"(?:(?:const|let|var|final|static|public|private|protected|readonly|export|local|my|auto|unsigned|signed|[A-Za-z_][\w:<>,]*[*&]?)[ "
    r"\t]+){0,3}"
    r"[$*&A-Za-z_][\w.\[\]'\"$>:-]*[ \t]*(?::[ \t]*[\w.\[\], |]+)?[ "
    r"\t]*(?:[-+*/|&^%:?.]|<<|>>|\*\*|//)?=(?![=>])[ \t]*\S(?!.*[^.][.!?]$)",
    r"(?:await |print )?[$A-Za-z_][\w.$:>\[\]-]*\(.*[\](){},;:]$|\.\w+\(",  # a call
    r".*\w[(\[{]$|.*\) ?\{.*\}$|.*\)\s*(?:=>|->.*)?\s*\{$|[.#@:]?[\w\-.#:>*, ]+\{$|.*=>\s*[{(\[]?$",
    r"[\[\](){}>]+(?:[;,).]|\s*(?:else\b.*|catch\b.*|while\b.*))*[{(:;]?$",
    r"[\"'][^\"']*[\"']\s*[:,=].*[,\[{(]$|[\w$]+:[ \t]*\S+,$",  # an item of a literal
    (
        r".*(?:[=<>\[\]{}_$&|+*/)\"']|\w\(|->|::).*;$|[\w<>:*&\[\]]+[ \t]+[\w*&\[\]]+;$|[a-z-]+:[ "
        r"\t]*[^.!?]+;$"
    ),
    (
        r"\$ ?\w[\w.-]*(?:[ \t]|$)|.*;[ \t]*(?:do|then)$|(?:exec|trap|eval|printf|unset|exit)[ "
        r"\t]+\S*[\"'$\d&].*"
    ),
    r"(?:sudo "
    r")?(?:apt-get|apt|brew|pip3?|npm|npx|yarn|git|docker|kubectl|curl|wget|chmod|chown|mkdir|rm|cp|mv|ls|cd|cat|grep|sed|awk|echo|export|ssh|scp|tar|systemctl|source|set|node|python3?)"
    r"[ "
    r"\t]+(?:-{1,2}\w|[./~$\"']|\w+[./=]\w|(?:install|clone|commit|push|pull|run|build|add|init|update|start|stop|restart)\b)",
    r"(?:SELECT|INSERT INTO|DELETE FROM|(?:CREATE|ALTER|DROP) (?:OR REPLACE |TEMP(?:ORARY)? "
    r"|UNIQUE )?(?:TABLE|VIEW|INDEX|DATABASE|FUNCTION|TRIGGER)"
    r"|(?:LEFT |RIGHT |INNER |OUTER |CROSS |FULL )*JOIN|GROUP BY|ORDER BY|UNION(?: ALL)?$|VALUES "
    r"?\(|WITH \w+ AS|ON \w+\.\w+|LIMIT \d)\b|[A-Z]{2,}[ \t].*;$",
    (
        r"(?:FROM|UPDATE|WHERE|AND|OR|HAVING|SET)[ \t]+[\w.\"`]+(?:[ \t]*$|[ \t]*[=<>!,;()]|[ "
        r"\t]+(?:SET|AS|IN|IS|LIKE|BETWEEN|[a-z]{1,2})\b)"
    ),
    (
        r"\w+[ "
        r"\t]+(?:INT|INTEGER|BIGINT|SMALLINT|SERIAL|TEXT|VARCHAR|CHAR|DATE|TIMESTAMP|DATETIME|BOOLEAN|DECIMAL|NUMERIC|FLOAT|REAL)\b.*[,)\w]$"
    ),
    r"<\?php|<!DOCTYPE\b|<!doctype\b",
)
#: A line with an equals sign that reads as arithmetic as well as code.
_FORMULA = re.compile(r"[^()\[\]{};\"'$\n]*=[^()\[\]{};\"'$\n]*")
_CODE_LINE = re.compile(r"[ \t]*(?:" + "|".join(f"(?:{pattern})" for pattern in _CODE_LINES) + ")")
#: The only lines of a filled template, with its texts taken out: definitions, assignments without a
#: call, return, brackets.
_TEMPLATE_LINE = re.compile(
    r"[ \t]*(?:(?:async )?(?:def|class|function)\b.*|(?:const |let |var )?[\w.\[\]]+(?:[ \t]*:[ "
    r"\t]*\w+)?[ \t]*=(?!=)(?:(?!\w\().)*|return\b(?:(?!\w\().)*|pass|\.\.\.|[\"'\[\](){},; \t]*)$"
)


def _is_code_only(answer: str) -> bool:
    body = _body(answer)
    parsed = _parsed(body)
    if parsed is not None:
        return not any(map(_is_language_value, _texts(parsed)))
    if _KEY_FIRST.match(body.lstrip()) and any(
        _is_language(literal) for literal in _LITERAL.findall(body)
    ):
        return False  # JSON that was cut or is not quite right
    body = _without_docstrings(body)
    code, prose = _weigh(body)
    return (
        code > 0
        and not _FORMULA.fullmatch(body.strip())
        and code >= CODE_SHARE * (code + prose)
        and not _is_wrapping(body)
    )


def _body(answer: str) -> str:
    """What is to be judged: all where there are no fences, their inside where they hold the answer, else nothing."""
    marks = list(_FENCE.finditer(answer))
    if not marks:
        return answer
    edges = [0, *(place for mark in marks for place in mark.span()), len(answer)]
    parts = [answer[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    outside, inside = ("\n".join(parts[first::2]).strip() for first in (0, 1))
    announced = outside.endswith(":") and "\n" not in outside
    return inside if announced or _size(outside) <= FENCE_OUTSIDE * _size(answer) else ""


def _size(text: str) -> int:
    """Characters that show."""
    return sum(map(len, text.split()))


def _parsed(body: str) -> list[Any] | dict[str, Any] | None:
    try:
        value = json.loads(body) if body.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


def _texts(value: object) -> Iterator[str]:
    """All keys and texts in a JSON value; without recursion, since a model may nest deeply."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from (key for key in item if " " in key)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _is_language_value(text: str) -> bool:
    word = text.strip().rstrip(".!?,")
    return _is_language(text) or (
        word.isalpha() and (word.istitle() or word.lower() == word.upper())
    )


def _is_language(text: str) -> bool:
    """Whether two neighbouring words, neither a keyword of programming languages, stand in the text, or two signs of a script without spaces."""
    if _UNSPACED.search(text):
        return True
    return any(
        not any(map(_KEYWORD.fullmatch, pair.groups()))
        for pair in _NEIGHBOURS.finditer(text.casefold())
    )


def _without_docstrings(text: str) -> str:
    """Without block comments and texts in three quotes that begin a line; other texts in three quotes become one-line literals."""
    for opening, closing in (('"""', '"""'), ("'''", "'''"), ("/*", "*/"), ("<!--", "-->")):
        text = "".join(_pieces(text, opening, closing))
    return text


def _pieces(text: str, opening: str, closing: str) -> Iterator[str]:
    place = 0
    while (start := text.find(opening, place)) >= 0 and (
        end := text.find(closing, start + len(opening))
    ) >= 0:
        before = text[place:start]
        yield before
        if opening[0] in "\"'" and before.rsplit("\n", 1)[-1].strip():
            yield '"' + re.sub(r"[\"'`\s]+", " ", text[start + len(opening) : end]) + '"'
        place = end + len(closing)
    yield text[place:]


def _weigh(body: str) -> tuple[int, int]:
    """Characters on lines that look like code, and on lines that look like prose; what is neither counts for neither."""
    code = prose = 0
    for line in _uncommented(body):
        line, size = _shortened(line.rstrip()), _size(line)
        tags = sum(map(len, _TAG.findall(line))) if line.lstrip().startswith("<") else 0
        if 2 * tags >= _size(line) > 0 or (not tags and _CODE_LINE.match(line)):
            code += size
        elif _is_language(line):
            prose += size
    return code, prose


def _shortened(line: str) -> str:
    """Start and end of a long line, so that looking at it takes bounded time."""
    return line if len(line) <= 2 * LINE_END else f"{line[:LINE_END]} {line[-LINE_END:]}"


def _is_wrapping(body: str) -> bool:
    """Whether the code merely carries an answer in its texts."""
    plain = re.sub(r"\\.", "", body)
    spoken = [
        text for literal in _LITERAL.findall(plain) if _is_language(text := _TAG.sub(" ", literal))
    ]
    if all(map(_TEMPLATE_LINE.match, _uncommented(_LITERAL.sub('""', plain)))):
        return bool(spoken) or any(
            _is_language(line.partition("=")[2]) for line in _uncommented(plain)
        )
    return sum(map(_size, spoken)) >= LITERAL_SHARE * _size("\n".join(_uncommented(plain)))


def _uncommented(text: str) -> list[str]:
    return [line for line in text.splitlines() if not _COMMENT.match(line)]
