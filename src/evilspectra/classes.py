"""Classes of the user's own, named by import path: where they may come from, and their identity.

A class is imported when the user's command line, a config given to `train` or `sweep`, or Python
code names it. A file that lies in a store of runs never has one imported: a store may have been
handed over, and a class is code. The current folder is searched after everything that Python
searches anyway, so that nothing in it takes the place of an installed package; a folder within a
store is not searched at all.

A class's identity is its qualified name with the sha256 of its source file. A source whose code is
not the code in memory (edited since it was imported, or with stale bytecode) is refused, because
the hash would then name other code than what runs.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from evilspectra.config.own_class import check_path
from evilspectra.errors import BadInput, first_line, near
from evilspectra.store.run import is_run

#: Folders above a file in which a store is looked for; the last may be a wide one, of which this
#: many inner folders are looked at.
_ABOVE, _WIDEST = 3, 1000
#: Classes imported so far, with the sha256 that their source then had.
_hashes: dict[type, str | None] = {}


@dataclass(frozen=True)
class OwnClass:
    """A class, its qualified name as an import path, and the sha256 of its source if it has one."""

    cls: type
    path: str
    sha256: str | None


def import_class(
    path: str,
    setting: str,
    version: str | None = None,
    files: Sequence[str] = (),
) -> OwnClass:
    """Imports a class.

    Args:
        path: `package.module:Class`.
        setting: what names it, for messages, such as `optimizer.class`.
        version: stands in for the source of a class that has none.
        files: the files that name it; none for a command line.

    Raises:
        BadInput: a file in a store names it; it cannot be imported or is no class; it has no source
            and no version is given; its source is not the code in memory.

    >>> import_class("fractions:Fraction", "a setting").path
    'fractions:Fraction'
    """
    who = f"{setting} '{path}'"
    for file in files:
        if os.path.isfile(file) and in_store(Path(file)):
            raise BadInput(
                f"{who} is named by {file}, which lies in a store of runs, and a class is code: "
                "read it, then name it yourself on the command line, or in a config outside the "
                "store"
            )
    module_name, _, name = path.partition(":")
    _search_current_folder()
    importlib.invalidate_caches()
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise BadInput(
                f"{who}: there is no module '{error.name}' {_searched()}: start from the folder "
                "that holds it, or install it (on every node)"
            ) from None
        raise BadInput(f"{who} cannot be imported: {explained(error)}") from None
    except (Exception, SystemExit) as error:
        raise BadInput(f"{who} cannot be imported: {explained(error)}") from None
    for part in name.split("."):
        names = [other for other in vars(value) if not other.startswith("_")]
        if not hasattr(value, part):
            raise BadInput(
                f"{who}: {getattr(value, '__name__', value)} has no '{part}': correct the name."
                f"{near(part, names)}"
            )
        value = getattr(value, part)
    if not isinstance(value, type):
        raise BadInput(f"{who} is a {type(value).__name__}, not a class: name a class")
    sha256 = _source_sha256(value, who)
    if sha256 is None and version is None:
        raise BadInput(
            f"{who} has no Python source to identify it by: set version to a text that you change "
            "whenever the class changes"
        )
    return OwnClass(value, _qualified(value) or path, sha256)


def explained(error: BaseException) -> str:
    """A sentence about an error of the user's code: its type, its text, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "importlib" not in frame.filename]
    location = ""
    if isinstance(error, SyntaxError) and error.filename:
        location = f" ({Path(error.filename).name}, line {error.lineno})"
    elif inside:
        location = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})"
    kind, text = type(error).__name__, first_line(error)
    return kind + (f": {text}" if text != kind else "") + location


def check_arguments(cls: type, who: str, *arguments: Any, **settings: Any) -> None:
    """Checks that a class takes these arguments, without making an instance.

    Raises:
        BadInput: it does not; the sentence names what it takes.
    """
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return  # of a class written in C: making an instance will tell
    try:
        signature.bind(*arguments, **settings)
    except TypeError as error:
        raise BadInput(
            f"{who} does not take these settings ({error}): it takes {signature}"
        ) from None


def in_store(path: Path) -> bool:
    """Whether a file or folder lies in a run, an experiment or a store of runs."""
    absolute = Path(os.path.abspath(path))
    return any(map(_is_store_or_within, {absolute, absolute.resolve()}))


def _is_store_or_within(path: Path) -> bool:
    folders = [path, *path.parents] if path.is_dir() else list(path.parents)
    if any(map(is_run, folders)):
        return True
    home = Path(os.path.expanduser("~"))
    outer = {home, *home.parents}
    closest = [folder for folder in folders[:_ABOVE] if folder not in outer]
    return any(
        _holds_runs(folder, None if folder in folders[: _ABOVE - 1] else _WIDEST)
        for folder in closest
    )


def _holds_runs(folder: Path, most: int | None) -> bool:
    """Whether a folder is an experiment, which holds runs, or a store, which holds experiments.

    What another trainer has written (`out/evilspectra`) is a run, but a folder that holds such an
    output folder is no store: it may be anybody's working folder. `most`: of how many inner folders
    that is looked at; None for all.
    """
    inner = itertools.chain.from_iterable(
        ((path, True), *((below, False) for below in _folders(path))) for path in _folders(folder)
    )
    return any(
        is_run(Path(path)) and (direct or os.path.isfile(os.path.join(path, "config.yaml")))
        for path, direct in itertools.islice(inner, most)
    )


def _folders(folder: str | Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from [entry.path for entry in entries if entry.is_dir()]
    except OSError:
        return


def _search_current_folder() -> None:
    try:
        folder = os.getcwd()
    except OSError:
        return  # it was removed
    if folder not in sys.path and "" not in sys.path and not in_store(Path(folder)):
        sys.path.append(folder)


def _searched() -> str:
    """The places in which a module was looked for, as a clause."""
    others = "on PYTHONPATH or among the installed packages of this process"
    try:
        inside = in_store(Path(os.getcwd()))
    except OSError:
        return others
    if inside:
        return f"{others} (the current folder lies in a store of runs and is not searched)"
    return f"in the current folder, {others}"


def _qualified(cls: type) -> str | None:
    """The import path under which Python itself files a class; None if it is not found there."""
    value: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        value = getattr(value, part, None)
    path = f"{cls.__module__}:{cls.__qualname__}"
    try:
        return check_path(path) if value is cls else None
    except ValueError:
        return None


def _source_sha256(cls: type, who: str) -> str | None:
    try:
        file = inspect.getsourcefile(cls)
        source = Path(file).read_bytes() if file else None
    except (OSError, TypeError):
        source, file = None, None
    sha256 = hashlib.sha256(source).hexdigest() if source is not None else None
    if _hashes.setdefault(cls, sha256) != sha256 or not _is_in_memory(cls, source, file):
        raise BadInput(
            f"{who}: {file} is not the code that was imported from it (edited since, or its "
            "__pycache__ is stale): start again, or remove the __pycache__ next to it"
        )
    return sha256


def _is_in_memory(cls: type, source: bytes | None, file: str | None) -> bool:
    """Whether the functions of a class, and its bytecode on disk, are those of its source."""
    if source is None or file is None:
        return True
    try:
        compiled = compile(source, file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    loader: Any = getattr(sys.modules.get(cls.__module__), "__loader__", None)
    if hasattr(loader, "get_code") and getattr(loader, "path", None) == file:
        try:
            if loader.get_code(cls.__module__) != compiled:
                return False
        except ImportError:
            pass
    codes = set(_codes(compiled))
    functions = [value for value in vars(cls).values() if isinstance(value, FunctionType)]
    own = [function.__code__ for function in functions if function.__code__.co_filename == file]
    return all(code in codes for code in own)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
