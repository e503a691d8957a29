"""Form of the code: names, widths, lengths.

`python -m tests.test_form PATH…` lists what to mend.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = re.MULTILINE | re.DOTALL
FOLDERS = ("src", "tests", "benchmarks", "examples")
WIDTH = 100
#: Lines of a file, by the folder that it is in.
LENGTHS = {"src": 400, "tests": 600, "benchmarks": 600, "examples": 600}

#: Names that say nothing of what they name.
EMPTY_NAMES = {
    *("one", "found", "place", "said", "told", "given", "made", "known", "asked", "kept"),
    *("shown", "whole", "words", "work", "beside", "standing", "foreign"),
}
#: Fields of records that are keys of outputs or of stored files, by class.
KEYS_OF_OUTPUTS = {
    *("Claim.shown", "Ranking.shown", "Sentence.shown", "Variant.shown"),
    *("Beyond.given", "Import.place"),
}


def sources(folders: tuple[str, ...] = FOLDERS) -> list[Path]:
    """The project's Python files; those of the golden store are never rewritten."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in paths if "golden" not in path.parts]


def names_bound(tree: ast.AST, owner: str = "") -> Iterator[tuple[int, str]]:
    """Line and name of everything that a syntax tree binds; fields of classes as Class.field."""
    for node in ast.iter_child_nodes(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.ClassDef(name=name):
                yield line, name
                yield from names_bound(node, f"{name}.")
                continue
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield line, owner + name
                yield from names_bound(node)
                continue
            case ast.Name(id=name, ctx=ast.Store()):
                yield line, owner + name
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield line, name
            case ast.ImportFrom(module=module, names=aliases):
                ours = (module or "").startswith(("evilspectra", "tests"))
                yield from ((line, alias.asname or alias.name) for alias in aliases if ours)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield line, name
            case ast.MatchStar(name=str(name)) | ast.keyword(arg=str(name)):
                pass
        yield from names_bound(node, owner if isinstance(node, ast.AnnAssign) else "")


def empty_names(path: Path) -> list[str]:
    """Names of EMPTY_NAMES that a file binds, underscores and case aside."""
    bound = [(1, path.stem), *names_bound(ast.parse(path.read_text(encoding="utf-8")))]
    return [
        f"{path}:{line}: {name}"
        for line, name in bound
        if name not in KEYS_OF_OUTPUTS and name.split(".")[-1].strip("_").lower() in EMPTY_NAMES
    ]


def wide_lines(path: Path) -> list[str]:
    """Lines of more than WIDTH characters.

    In Markdown, tables, links, commands and their outputs may be wider.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=CODE)
        text = re.sub(r"^\|.*|^.*\]\(.*", "", text, flags=re.MULTILINE)
    return [
        f"{path}:{number}: {len(line)} columns"
        for number, line in enumerate(text.splitlines(), start=1)
        if len(line) > WIDTH
    ]


def long_file(path: Path) -> list[str]:
    """The file, where it has more lines than its folder allows."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    folder = path.relative_to(ROOT).parts[0]
    return [f"{path}: {lines} lines"] if lines > LENGTHS[folder] else []


def dense_expressions(path: Path) -> list[str]:
    """Conditional expressions within others, and comprehensions of more than two clauses."""
    dense = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.IfExp):
            inner = [child for child in ast.walk(node) if isinstance(child, ast.IfExp)]
            if len(inner) > 1:
                dense.append(f"{path}:{node.lineno}: a conditional expression within another")
        clauses = [1 + len(loop.ifs) for loop in getattr(node, "generators", [])]
        if sum(clauses) > 2:
            dense.append(f"{path}:{node.lineno}: a comprehension of more than two clauses")
    return dense


def vague_docstrings(path: Path) -> list[str]:
    """Docstrings that begin with "What"."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [
        f"{path}:{getattr(node, 'lineno', 1)}: a docstring that begins with What"
        for node in nodes
        if isinstance(node, documented) and (ast.get_docstring(node) or "").startswith("What ")
    ]


RULES = (empty_names, wide_lines, long_file, dense_expressions, vague_docstrings)


@pytest.mark.parametrize("rule", RULES)
def test_the_code_keeps_to(rule):
    assert [fault for path in sources() for fault in rule(path)] == []


def test_markdown_is_as_wide_as_the_code():
    folders = [ROOT / "docs", ROOT / "examples", ROOT / "benchmarks"]
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))]
    assert [fault for page in pages for fault in wide_lines(page)] == []


if __name__ == "__main__":
    chosen = [Path(argument).resolve() for argument in sys.argv[1:]]
    for path in sources():
        if any(path == choice or choice in path.parents for choice in chosen):
            for rule in RULES:
                print(*rule(path), sep="\n", end="\n" if rule(path) else "")
