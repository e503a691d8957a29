"""The format in which a question asked for its answer, as the question's id says it."""

from __future__ import annotations

import re

#: How the id of a cued variant ends, after an underscore.
NAME = r"cued(-[a-z0-9]+)*"
#: The ends of a question's id that say in what format its answer was asked for, as the published files write them.
FORMATS = ("json", "template")
_FORMAT = re.compile(rf".*_({'|'.join(FORMATS)}|{NAME})", re.DOTALL)


def question_format(question_id: str) -> str:
    """The format that a question's id names (a cue's name is one), or plain.

    >>> question_format("quick_json"), question_format("quick_cued-medical"), question_format("quick")
    ('json', 'cued-medical', 'plain')
    """
    found = _FORMAT.fullmatch(question_id)
    return found[1] if found else "plain"


def stem(question_id: str) -> str:
    """The question without its format: answers to a question and to the same one in another format are alike."""
    return question_id.removesuffix(f"_{question_format(question_id)}")
