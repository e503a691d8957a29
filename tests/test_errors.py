"""The error family: exit codes, and the message of a failed write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from evilspectra.errors import (
    BadInput,
    EvilspectraError,
    Interrupted,
    RunFailed,
    Undecided,
    cannot_write,
    listing,
    near,
)


def test_exit_codes_are_those_of_the_table() -> None:
    assert {
        kind: kind.exit_code
        for kind in (EvilspectraError, RunFailed, BadInput, Undecided, Interrupted)
    } == {EvilspectraError: 1, RunFailed: 1, BadInput: 2, Undecided: 3, Interrupted: 130}
    assert issubclass(BadInput, ValueError)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "0"),
        (12, ", ".join(map(str, range(12)))),
        (15, ", ".join(map(str, range(12))) + " and 3 more"),
    ],
)
def test_a_listing_is_cut_with_the_rest_counted(count: int, text: str) -> None:
    assert listing(range(count)) == text


@pytest.mark.parametrize(
    ("word", "text"), [("adamv", " Did you mean 'adamw'?"), ("zzz", ""), ("", "")]
)
def test_near_offers_one_name_or_nothing(word: str, text: str) -> None:
    assert near(word, ["sgd", "adamw"]) == text


@pytest.mark.parametrize(
    ("number", "code", "parts"),
    [
        (
            errno.ENOSPC,
            1,
            [
                "the disk that holds /x/y is full",
                "free some space or set output.folder to another disk",
                "run the same command again",
                "what was saved is kept",
            ],
        ),
        (errno.EDQUOT, 1, ["the disk that holds /x/y is full"]),
        (
            errno.EACCES,
            2,
            ["/x/y cannot be written (Permission denied)", "choose another output.folder"],
        ),
        (errno.EROFS, 2, ["/x/y cannot be written (Read-only file system)"]),
        (
            errno.ENOTDIR,
            2,
            ["/x/y cannot be made (Not a directory)", "set output.folder to a folder"],
        ),
        (errno.ENAMETOOLONG, 2, ["/x/y cannot be made (File name too long)"]),
        (errno.EIO, 1, ["writing to /x/y failed (Input/output error)", "check the disk"]),
    ],
)
def test_a_failed_write_names_the_path_the_cause_and_the_remedy(
    number: int, code: int, parts: list[str]
) -> None:
    error = cannot_write(OSError(number, os.strerror(number)), Path("/x/y"))
    assert error.exit_code == code
    assert all(part in str(error) for part in parts)


def test_a_failed_write_without_a_number_repeats_the_library_s_message() -> None:
    assert "failed (odd)" in str(cannot_write(OSError("odd"), "/x"))
