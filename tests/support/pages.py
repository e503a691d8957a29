"""The documentation, executed: blocks of a page, and a folder in which they run as they stand.

A fenced block is one of these:

| first word after the fence | it is |
|---|---|
| `bash`, `sh` | run, line by line, in this process; `# exit 3` after a command names its code |
| `yaml` | a file, written under the name in its first line (`# name.yaml`) |
| `python`, `sql` | run; the Python of one page shares its names |
| `diff` | run twice, without the added lines and with them |
| `text`, `json` | the output of the block above it, compared; or the signature of a public name |

A line `<!-- not run: REASON -->` above the fence exempts a block; its commands must still exist,
with the options that they have there. In an output `…` stands for the rest of a line or, alone, for
further lines. Numbers, bars and run ids depend on the machine and are masked before outputs are
compared; words, columns and lines must be the same.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

import evilspectra
from evilspectra.cli.main import cli
from tests.support.commands import command

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(?P<above>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
EXEMPT = re.compile(r"<!-- not run: (\S.*\S) -->")
COMMANDS = ("bash", "sh")
OUTPUTS = ("text", "json")
#: A text block of one line, which shows how a public name is called; test_api compares arguments.
SIGNATURE = re.compile(r"(\w+)\([^\n]*\)(?: -> [^\n]+)?\n")
CODE = re.compile(r"\bexit (\d+)\b")

#: A mask for each thing that differs between machines or adapters, in this order.
MASKS = (
    (re.compile(r"\b([a-z][a-z-]*(?:-b\d+)?-s\d+)-[0-9a-f]{10}\b"), r"\1-id"),
    (re.compile(r"\bmodel\.layers\.\d+\.[\w.]+"), "module"),
    (re.compile(r"[▁-█]+"), "▁"),
    (re.compile(r"(?<=\d )[kM](?= numbers)"), "M"),
    (re.compile(r"[+−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"), "0"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass(frozen=True)
class Block:
    """A fenced block, with its line in the page; `reason` says why it is not run, if it is not."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages, relative to the project's folder."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    for folder in ("docs", "examples"):
        paths += sorted((ROOT / folder).rglob("*.md"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: a fence is indented, does not end, or follows another without a line between.
    """
    text = (ROOT / page).read_text(encoding="utf-8") if text is None else text
    text = "\n" + text
    result = []
    for match in FENCE.finditer(text):
        exempt = EXEMPT.fullmatch(match["above"].strip())
        result.append(
            Block(
                page,
                text.count("\n", 0, match.start("language")),
                match["language"],
                match["text"],
                exempt[1] if exempt else None,
            )
        )
    if 2 * len(result) != len(re.findall(r"^[ >]*```", text, re.M)):
        raise ValueError(f"{page}: a fence that is indented, or opened and not closed")
    return result


def lines(text: str) -> Iterator[tuple[str, int]]:
    """Commands of a block, continued lines joined, each with the exit code that it should have."""
    for line in text.replace("\\\n", " ").splitlines():
        bare, _, remark = line.partition("  #")
        if bare.strip() and not bare.startswith("#"):
            wanted = CODE.search(remark)
            yield bare.strip(), int(wanted[1]) if wanted else 0


def shape(text: str, names: Mapping[str, str] | None = None) -> list[str]:
    """The lines of an output with everything masked that differs between machines.

    `names`: text → text that stands for it on both sides.

    >>> shape("adamw-b8-s0-eb3213bac8  +0.103 [+0.055, +0.151]  █▅▄▁")
    ['adamw-b0-s0-id 0 [0, 0] ▁']
    """
    for name, other in (names or {}).items():
        text = text.replace(name, other)
    for mask, replacement in MASKS:
        text = mask.sub(replacement, text)
    masked = [line.strip() for line in text.splitlines()]
    return [line for line in masked if line]


def differs(expected: list[str], actual: list[str]) -> str | None:
    """The first line of an output that is not as shown; None where all are."""
    remaining = list(actual)
    skipping = False
    for line in expected:
        if line == "…":
            skipping = True
            continue
        while skipping and remaining and not _same(line, remaining[0]):
            remaining.pop(0)
        if not remaining or not _same(line, remaining[0]):
            return f"shown {line!r}, printed {remaining[0] if remaining else 'no such line'!r}"
        skipping = False
        remaining.pop(0)
    return None if skipping or not remaining else f"not expected: {remaining[0]!r}"


def _same(expected: str, actual: str) -> bool:
    if expected.endswith("…"):
        return actual.startswith(expected[:-1].rstrip())
    return expected == actual


def extras() -> dict[str, list[str]]:
    """The project's extras, and their requirements."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]


def check_command(tokens: list[str]) -> None:
    """Checks a command without running it: command, options, extras and targets exist.

    Raises:
        AssertionError: one of them does not.
    """
    while tokens and re.fullmatch(r"\w+=\S*", tokens[0]):
        tokens = tokens[1:]
    match tokens:
        case ["evilspectra", *arguments] | ["python", "-m", "evilspectra", *arguments]:
            check_options(arguments)
        case ["make", *targets]:
            existing = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
            assert set(targets) <= set(existing), f"make has no target {targets}"
        case ["pip", "install", *requirements]:
            named = re.findall(r"(?:\.|evilspectra|\.whl)\[([\w,-]+)\]", " ".join(requirements))
            lacking = {extra for text in named for extra in text.split(",")} - extras().keys()
            assert not lacking, f"pyproject.toml has no extra {lacking}"


def check_options(arguments: list[str]) -> None:
    """Checks that a command of ours and every option in `arguments` exist."""
    part: click.Command = cli
    rest = list(arguments)
    while isinstance(part, click.Group) and rest and not rest[0].startswith("-"):
        name = rest[0] if part is cli or rest[0] in part.commands else "run"  # `sweep FILE`
        assert name in part.commands, f"there is no command: evilspectra {shlex.join(arguments)}"
        part = part.commands[name]
        rest = rest[name == rest[0] :]
    existing = {name for option in part.params for name in (*option.opts, *option.secondary_opts)}
    existing |= {"--help", "-h"}
    for word in rest:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in existing, f"evilspectra {shlex.join(arguments)}: no {word}"


@dataclass
class Runner:
    """Runs the blocks of a page in the working directory, which stands for a reader's.

    `names`: a name in the page → the one that stands for it here. `prepare_diff` puts the names
    that a page's diffs assume into their namespace; `check_diff` looks at what both sides left.
    """

    names: dict[str, str] = field(default_factory=dict)
    prepare_diff: Callable[[dict[str, Any]], None] = lambda _names: None
    check_diff: Callable[[], None] = lambda: None
    printed: str | None = None
    values: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})

    def run(self, block: Block) -> None:
        """Runs or compares one block.

        Raises:
            AssertionError: it does not do what the page says.
        """
        if block.reason is not None:
            self.check(block)
        elif block.language in COMMANDS:
            self.printed = "".join(self._line(block, *line) for line in lines(block.text))
        elif block.language == "yaml":
            name = re.match(r"# (\S+\.ya?ml)$", block.text.split("\n")[0])
            assert name, f"{block}: the first line is not the file's name, as in '# my-run.yaml'"
            Path(name[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.printed = self._python(block.text, str(block), self.values)
        elif block.language == "diff":
            self._diff(block)
        elif block.language == "sql":
            import duckdb

            self.printed = str(duckdb.sql(block.text).fetchall())
        elif signature := SIGNATURE.fullmatch(block.text):
            assert signature[1] in evilspectra.__all__, f"{block}: no public name {signature[1]}"
        elif block.language in OUTPUTS:
            assert self.printed is not None, f"{block}: an output of nothing"
            fault = differs(shape(block.text, self.names), shape(self.printed, self.names))
            assert fault is None, f"{block}: {fault}"
            self.printed = None
        else:
            raise AssertionError(
                f"{block}: is neither run nor compared: name its language, or say above the fence "
                "why not: <!-- not run: it needs … -->"
            )

    def check(self, block: Block) -> None:
        """Checks the commands of a block that is not run."""
        if block.language in COMMANDS:
            for line, _code in lines(block.text):
                check_command(shlex.split(line))

    def _line(self, block: Block, line: str, code: int) -> str:
        """Runs a command; its output."""
        for name, other in self.names.items():
            line = line.replace(name, other)
        tokens = shlex.split(line)
        into = None
        if ">" in tokens:
            where = tokens.index(">")
            into, tokens = tokens[where + 1], tokens[:where]
        tokens = [word for pattern in tokens for word in _expanded(pattern)]
        match tokens:
            case ["evilspectra", *arguments] | ["python", "-m", "evilspectra", *arguments]:
                done = command(*arguments)
                assert done.code == code, f"{block}: {line}: {done.code}: {done.out}{done.err}"
                output = done.out
            case ["cp", "-r", source, target]:
                shutil.copytree(source, target, dirs_exist_ok=True)
                output = ""
            case ["make", *_] | ["pip", "install", *_]:
                check_command(tokens)
                output = ""
            case _:
                raise AssertionError(f"{block}: cannot run here: {line}")
        if into is None:
            return output
        Path(into).write_text(output, encoding="utf-8")
        return ""

    def _python(self, text: str, name: str, values: dict[str, Any]) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, name, "exec"), values)
        return printed.getvalue()

    def _diff(self, block: Block) -> None:
        marks = [line[:1] for line in block.text.splitlines()]
        assert set(marks) <= {"+", " ", ""}, f"{block}: lines are added or kept"
        assert "+" in marks, f"{block}: nothing is added"
        for marked in (" ", " +"):
            values: dict[str, Any] = {"__name__": "page"}
            self.prepare_diff(values)
            text = "\n".join(line[1:] for line in block.text.splitlines() if line[:1] in marked)
            self._python(text, str(block), values)
        self.check_diff()


def _expanded(pattern: str) -> list[str]:
    """The paths that a pattern matches, as a shell expands it."""
    if not re.search(r"[*?]", pattern) or os.path.exists(pattern):
        return [pattern]
    return sorted(glob.glob(pattern)) or [pattern]


def commands_in_text(text: str) -> list[str]:
    """Commands of ours between single backticks, outside of blocks."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"`(evilspectra\s[a-z][^`]*)`", outside)]


def title(page: Path) -> str:
    """The heading of a page."""
    return page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
