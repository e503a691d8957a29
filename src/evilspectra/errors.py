"""The errors that a user can cause or must act on, each with the exit code of every command.

| code | meaning |
|---|---|
| 0 | done |
| 1 | the answer is no, or a run failed |
| 2 | usage or bad input |
| 3 | could not be decided |
| 130 | interrupted |

A message is one clear sentence (or two): it names the value, what is allowed, and the remedy.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec


class EvilspectraError(Exception):
    """Base of the family; `exit_code` is what a command returns for it."""

    exit_code = 1


class RunFailed(EvilspectraError):
    """A run ended without a result (a non-finite loss, say). Exit code 1."""


class BadInput(EvilspectraError, ValueError):
    """A value, file or folder that cannot be used as given. Exit code 2."""

    exit_code = 2


class MissingPackage(BadInput, ImportError):
    """A package that an extra adds is not installed; `name` is the one it is imported by."""


class InUse(BadInput):
    """Another process is at work on the same run."""


class Undecided(EvilspectraError):
    """The question could not be answered, and the message says why. Exit code 3."""

    exit_code = 3


class NothingMeasured(EvilspectraError):
    """No target could be measured; the exit code is that of the first one's error."""

    exit_code: int

    def __init__(self, failures: Sequence[tuple[str, EvilspectraError]]) -> None:
        reasons = "; ".join(f"{label}: {error}" for label, error in failures)
        several = f"none of {len(failures)} targets could be measured: "
        super().__init__((several if len(failures) > 1 else "") + reasons)
        self.exit_code = failures[0][1].exit_code


class Interrupted(EvilspectraError):
    """The user stopped the work; what was done is saved. Exit code 130."""

    exit_code = 130


#: Extra → the packages that it adds, under the names by which they are imported.
EXTRAS: dict[str, tuple[str, ...]] = {
    "report": ("altair", "duckdb", "jinja2", "pandas", "pyarrow", "scipy", "vl_convert"),
    "train": ("accelerate", "datasets", "gguf", "peft", "tokenizers", "torch", "transformers"),
    "data": ("cryptography",),
    "judge": ("openai",),
    "harness": ("lm_eval",),
    "inspect": ("inspect_ai",),
    "optimizers": ("pytorch_optimizer",),
    "ray": ("ray",),
    "slurm": ("submitit",),
    "trl": ("trl",),
    "tune": ("optuna",),
}


@contextmanager
def packages_explained(extra: str | None = None) -> Iterator[None]:
    """Turns the failed import of a package of the extras into one sentence; others pass.

    It is a context and a decorator; every command runs within it. `extra` is the one that a command
    or function needs as a whole; without it the sentence names the one that adds the package.

    Raises:
        MissingPackage: a package of an extra is not installed.

    >>> try:
    ...     with packages_explained():
    ...         raise ModuleNotFoundError(name="duckdb")
    ... except MissingPackage as error:
    ...     print(error)
    the package duckdb is needed and not installed: pip install 'evilspectra[report]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, MissingPackage) or not error.name:
            raise
        extras = [name for name, packages in EXTRAS.items() if error.name in packages]
        if not extras:
            raise
        missing = MissingPackage(
            f"the package {error.name.replace('_', '-')} is needed and not installed: "
            f"pip install 'evilspectra[{extra or extras[0]}]'"
        )
        missing.name = error.name
        raise missing from error


def require(*packages: str, extra: str | None = None) -> None:
    """Checks that packages are installed, without importing them.

    Raises:
        MissingPackage: one is not.
    """
    with packages_explained(extra):
        for package in packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)


def listing(names: Iterable[object], most: int = 12) -> str:
    """The names joined by commas, cut after `most` with the number left out.

    >>> listing(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    items = [str(name) for name in names]
    if len(items) <= most:
        return ", ".join(items)
    return ", ".join(items[:most]) + f" and {len(items) - most} more"


def near(word: str, allowed: Iterable[object]) -> str:
    """A question to append to a message when `word` looks like one of `allowed`, or nothing.

    >>> near("adamv", ["sgd", "adamw"])
    " Did you mean 'adamw'?"
    """
    matches = difflib.get_close_matches(str(word), [str(item) for item in allowed], n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, at most 200 characters; its type if it has no text.

    >>> first_line(KeyError()), first_line(ValueError("a sentence"))
    ('KeyError', 'a sentence')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


#: Numbers of the system's errors: a full disk, no permission, a path that cannot be a folder.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {
    *(errno.ENOTDIR, errno.EEXIST, errno.ENOENT),
    *(errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP),
}


def cannot_read(error: OSError, source: object) -> BadInput:
    """One sentence for a file of the user's that the system does not let us read."""
    return BadInput(
        f"{source} cannot be read ({error.strerror or error}): check the file and its rights"
    )


def cannot_write(error: OSError, path: object, setting: str = "output.folder") -> EvilspectraError:
    """One sentence for a failed write.

    A full disk or a failing one has exit code 1, a folder that cannot be used has 2.
    """
    if error.errno in _FULL:
        return EvilspectraError(
            f"the disk that holds {path} is full: free some space or set {setting} to another "
            "disk, then run the same command again; what was saved is kept"
        )
    if error.errno in _FORBIDDEN:
        return BadInput(
            f"{path} cannot be written ({error.strerror}): choose another {setting}, or correct "
            "the folder's rights"
        )
    if error.errno in _NO_FOLDER:
        return BadInput(
            f"{path} cannot be made ({error.strerror}): set {setting} to a folder, or to a name "
            "that is free"
        )
    return EvilspectraError(
        f"writing to {path} failed ({error.strerror or error}): check the disk, then run the same "
        "command again; what was saved is kept"
    )
