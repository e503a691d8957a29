"""Questions and items that come with the package: their names, and their files among its assets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evilspectra.errors import BadInput

#: The name of the paper's questions.
PAPER = "paper"
#: Table of results → name → file. The file of the paper's questions lists published files, which do
#: not come with the package.
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "probe": {"contrast": "contrast.jsonl"},
    "capability": {"capability": "capability.jsonl"},
    "ordinary": {"ordinary": "ordinary.jsonl"},
    "answers": {"open": "questions.yaml", PAPER: "paper_questions.yaml"},
}


def built_in_file(file: str, subject: str) -> Path:
    """The path of a file among the package's assets.

    `subject`: how the error speaks of it, with its verb.

    >>> built_in_file("questions.yaml", "the built-in questions open are").name
    'questions.yaml'

    Raises:
        BadInput: the installation lacks it.
    """
    path = Path(__file__).parents[1] / "assets" / file
    if not path.is_file():
        raise BadInput(
            f"{subject} missing from this installation ({path}): install the package again"
        )
    return path
