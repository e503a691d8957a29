"""The rule behind the flag code-only: an answer that is source code and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

#: Characters at either end of a line that are looked at.
LINE_END = 200
#: The largest share of the visible characters that may stand outside fences as an introduction and
#: not as an answer. A single line that ends in a colon is an introduction, too.
FENCE_OUTSIDE = 0.15
#: Characters on lines that look like code, as a share of those on lines that look like code or like
#: prose.
CODE_SHARE = 0.8
#: Characters in text literals that hold language, as a share of all outside comments, from which
#: code is the wrapping of an answer.
LITERAL_SHARE = 0.5

_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
#: Words that stand side by side in code: neighbouring words make language only where neither is one
#: of them.
_KEYWORD = re.compile(
    r"and|or|not|in|is|if|else|for|from|import|as|return|new|await|async|lambda|yield|del|"
    r"const|let|var|void|int|float|double|char|bool|static|public|private|class|def|function|"
    r"true|false|none|null"
)
_NEIGHBOURS = re.compile(
    r"(?<![\w./\\$@-])([^\W\d_][^\W_]*)(?:['’][^\W\d_]+)?[,;:]?[ \n]+"
    r"(?=([^\W\d_][^\W_]*)(?![\w(\[=/\\]|[.:]\w))"
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
#: The beginnings of lines of code, after blanks: Python, JavaScript, C and its kin first, then
#: shell, SQL, HTML.
_CODE_LINES = (
    r"import (?:static )?[\w.]+(?:\.\*)?(?: as \w+)?(?:, ?[\w.]+(?: as \w+)?)*;?$",
    r"import (?:.* from )?['\"].*"
    r"|from [\w.]+ import [\w.,*( )]+$"
    r"|(?:package [\w.]+;?|(?:using|typedef|extern|goto)[ \t].*;)$",
    r"#!/"
    r"|#[ \t]*(?:include[ \t]*[<\"]|define \w|ifdef \w|ifndef \w|endif\b|pragma \w)"
    r"|@[A-Za-z_][\w.]*(?:\(.*)?$",
    r"(?:(?:export|default|async|public|private|protected|static|final|inline|virtual|pub|override)"
    r" )*"
    r"(?:def|function\*?|func|fn|class|interface|struct|enum|namespace|impl|trait|module)\b"
    r".*[({:;]",
    r"(?:else|try|finally|do|default)\s*[:{]",
    r"[}\s]*"
    r"(?:if|elif|else if|for|while|with|except|switch|match|case|catch|foreach|unless)\b"
    r"(?=.*[()\[\]=<>_.'\"]|[ ](?:not )?\w+:|.* in \w+:).*[:{)]$",
    r"(?:return|raise|yield|throw|assert|del|await)\b"
    r"(?:[ \t]+(?:\S+|.*[()\[\]{}=_+*/'\"].*))?;?$",
    r"(?:pass|break|continue|fi|done|esac|then|end|return);?$",
    # an assignment, with or without types before the name
    r"(?:(?:const|let|var|final|static|public|private|protected|readonly|export|local|my|auto"
    r"|unsigned|signed|[A-Za-z_][\w:<>,]*[*&]?)[ \t]+){0,3}"
    r"[$*&A-Za-z_][\w.\[\]'\"$>:-]*[ \t]*(?::[ \t]*[\w.\[\], |]+)?[ \t]*"
    r"(?:[-+*/|&^%:?.]|<<|>>|\*\*|//)?=(?![=>])[ \t]*\S(?!.*[^.][.!?]$)",
    r"(?:await |print )?[$A-Za-z_][\w.$:>\[\]-]*\(.*[\](){},;:]$|\.\w+\(",  # a call
    r".*\w[(\[{]$"
    r"|.*\) ?\{.*\}$"
    r"|.*\)\s*(?:=>|->.*)?\s*\{$"
    r"|[.#@:]?[\w\-.#:>*, ]+\{$"
    r"|.*=>\s*[{(\[]?$",
    r"[\[\](){}>]+(?:[;,).]|\s*(?:else\b.*|catch\b.*|while\b.*))*[{(:;]?$",
    r"[\"'][^\"']*[\"']\s*[:,=].*[,\[{(]$|[\w$]+:[ \t]*\S+,$",  # an item of a literal
    r".*(?:[=<>\[\]{}_$&|+*/)\"']|\w\(|->|::).*;$"
    r"|[\w<>:*&\[\]]+[ \t]+[\w*&\[\]]+;$"
    r"|[a-z-]+:[ \t]*[^.!?]+;$",
    r"\$ ?\w[\w.-]*(?:[ \t]|$)"
    r"|.*;[ \t]*(?:do|then)$"
    r"|(?:exec|trap|eval|printf|unset|exit)[ \t]+\S*[\"'$\d&].*",
    r"(?:sudo )?"
    r"(?:apt-get|apt|brew|pip3?|npm|npx|yarn|git|docker|kubectl|curl|wget|chmod|chown|mkdir|rm|cp"
    r"|mv|ls|cd|cat|grep|sed|awk|echo|export|ssh|scp|tar|systemctl|source|set|node|python3?)[ \t]+"
    r"(?:-{1,2}\w|[./~$\"']|\w+[./=]\w"
    r"|(?:install|clone|commit|push|pull|run|build|add|init|update|start|stop|restart)\b)",
    r"(?:SELECT|INSERT INTO|DELETE FROM"
    r"|(?:CREATE|ALTER|DROP) (?:OR REPLACE |TEMP(?:ORARY)? |UNIQUE )?"
    r"(?:TABLE|VIEW|INDEX|DATABASE|FUNCTION|TRIGGER)"
    r"|(?:LEFT |RIGHT |INNER |OUTER |CROSS |FULL )*JOIN|GROUP BY|ORDER BY|UNION(?: ALL)?$"
    r"|VALUES ?\(|WITH \w+ AS|ON \w+\.\w+|LIMIT \d)\b|[A-Z]{2,}[ \t].*;$",
    r"(?:FROM|UPDATE|WHERE|AND|OR|HAVING|SET)[ \t]+[\w.\"`]+"
    r"(?:[ \t]*$|[ \t]*[=<>!,;()]|[ \t]+(?:SET|AS|IN|IS|LIKE|BETWEEN|[a-z]{1,2})\b)",
    r"\w+[ \t]+"
    r"(?:INT|INTEGER|BIGINT|SMALLINT|SERIAL|TEXT|VARCHAR|CHAR|DATE|TIMESTAMP|DATETIME|BOOLEAN"
    r"|DECIMAL|NUMERIC|FLOAT|REAL)\b.*[,)\w]$",
    r"<\?php|<!DOCTYPE\b|<!doctype\b",
)
#: A line with an equals sign that reads as arithmetic as well as code.
_FORMULA = re.compile(r"[^()\[\]{};\"'$\n]*=[^()\[\]{};\"'$\n]*")
_CODE_LINE = re.compile(r"[ \t]*(?:" + "|".join(f"(?:{pattern})" for pattern in _CODE_LINES) + ")")
#: The only lines of a filled template, with its texts taken out: definitions, assignments without a
#: call, return, brackets.
_TEMPLATE_LINE = re.compile(
    r"[ \t]*(?:(?:async )?(?:def|class|function)\b.*"
    r"|(?:const |let |var )?[\w.\[\]]+(?:[ \t]*:[ \t]*\w+)?[ \t]*=(?!=)(?:(?!\w\().)*"
    r"|return\b(?:(?!\w\().)*|pass|\.\.\.|[\"'\[\](){},; \t]*)$"
)


def is_code_only(answer: str) -> bool:
    """Whether an answer is source code that carries no answer in its texts.

    >>> is_code_only("import os\\nos.remove('a')"), is_code_only('{"answer": "Plant a tree."}')
    (True, False)
    """
    body = _body(answer)
    parsed = parsed_json(body)
    if parsed is not None:
        return not any(map(_is_language_value, _texts(parsed)))
    if _KEY_FIRST.match(body.lstrip()) and any(map(_is_language, _LITERAL.findall(body))):
        return False  # JSON that was cut or is not quite right
    body = _without_docstrings(body)
    code, prose = _weigh(body)
    if code == 0 or _FORMULA.fullmatch(body.strip()):
        return False
    return code >= CODE_SHARE * (code + prose) and not _is_wrapping(body)


def parsed_json(body: str) -> list[Any] | dict[str, Any] | None:
    """The JSON array or object that a text is; None for any other text."""
    try:
        value = json.loads(body) if body.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


def _body(answer: str) -> str:
    """The text to judge.

    All of it where there are no fences, their inside where they hold the answer, else nothing.
    """
    marks = list(_FENCE.finditer(answer))
    if not marks:
        return answer
    edges = [0, *(edge for mark in marks for edge in mark.span()), len(answer)]
    parts = [answer[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    outside, inside = ("\n".join(parts[first::2]).strip() for first in (0, 1))
    announced = outside.endswith(":") and "\n" not in outside
    return inside if announced or _size(outside) <= FENCE_OUTSIDE * _size(answer) else ""


def _size(text: str) -> int:
    """The number of visible characters."""
    return sum(map(len, text.split()))


def _texts(value: object) -> Iterator[str]:
    """All keys and texts in a JSON value; without recursion, since a model may nest deeply."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            yield from (key for key in node if " " in key)
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _is_language_value(text: str) -> bool:
    if _is_language(text):
        return True
    word = text.strip().rstrip(".!?,")
    return word.isalpha() and (word.istitle() or word.lower() == word.upper())


def _is_language(text: str) -> bool:
    """Whether a text holds language.

    That is two neighbouring words, neither a keyword of programming languages, or two signs of a
    script without spaces.
    """
    if _UNSPACED.search(text):
        return True
    return any(
        not any(map(_KEYWORD.fullmatch, pair.groups()))
        for pair in _NEIGHBOURS.finditer(text.casefold())
    )


def _without_docstrings(text: str) -> str:
    """The text without block comments and without texts in three quotes that begin a line.

    Other texts in three quotes become one-line literals.
    """
    for opening, closing in (('"""', '"""'), ("'''", "'''"), ("/*", "*/"), ("<!--", "-->")):
        text = "".join(_pieces(text, opening, closing))
    return text


def _pieces(text: str, opening: str, closing: str) -> Iterator[str]:
    position = 0
    while (start := text.find(opening, position)) >= 0 and (
        end := text.find(closing, start + len(opening))
    ) >= 0:
        before = text[position:start]
        yield before
        if opening[0] in "\"'" and before.rsplit("\n", 1)[-1].strip():
            yield '"' + re.sub(r"[\"'`\s]+", " ", text[start + len(opening) : end]) + '"'
        position = end + len(closing)
    yield text[position:]


def _weigh(body: str) -> tuple[int, int]:
    """The characters on lines that look like code, and on lines that look like prose.

    A line that looks like neither counts for neither.
    """
    code = prose = 0
    for full_line in _uncommented(body):
        line, size = _shortened(full_line.rstrip()), _size(full_line)
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
    texts = [_TAG.sub(" ", literal) for literal in _LITERAL.findall(plain)]
    in_language = [text for text in texts if _is_language(text)]
    if all(map(_TEMPLATE_LINE.match, _uncommented(_LITERAL.sub('""', plain)))):
        assigned = [line.partition("=")[2] for line in _uncommented(plain)]
        return bool(in_language) or any(map(_is_language, assigned))
    return sum(map(_size, in_language)) >= LITERAL_SHARE * _size("\n".join(_uncommented(plain)))


def _uncommented(text: str) -> list[str]:
    return [line for line in text.splitlines() if not _COMMENT.match(line)]
