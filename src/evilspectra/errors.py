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
from collections.abc import Iterable, Sequence


class EvilspectraError(Exception):
    """Base of the family; `exit_code` is what a command returns for it."""

    exit_code = 1


class RunFailed(EvilspectraError):
    """A run ended without a result (a non-finite loss, say). Exit code 1."""


class BadInput(EvilspectraError, ValueError):
    """A value, file or folder that cannot be used as given. Exit code 2."""

    exit_code = 2


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
