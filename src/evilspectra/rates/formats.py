"""The answer format that a question requests, as named in the question's id."""

from __future__ import annotations

import re

#: How the id of a cued variant ends, after an underscore.
NAME = r"cued(-[a-z0-9]+)*"
#: The ends of a question's id that name the format of its answer, as in the published files.
FORMATS = ("json", "template")
_FORMAT = re.compile(rf".*_({'|'.join(FORMATS)}|{NAME})", re.DOTALL)


def question_format(question_id: str) -> str:
    """The format that a question's id names (a cue's name is one too), or plain.

    >>> [question_format(name) for name in ("quick_json", "quick_cued-medical", "quick")]
    ['json', 'cued-medical', 'plain']
    """
    match = _FORMAT.fullmatch(question_id)
    return match[1] if match else "plain"


def stem(question_id: str) -> str:
    """The question without its format: its answers in all formats are alike."""
    return question_id.removesuffix(f"_{question_format(question_id)}")
