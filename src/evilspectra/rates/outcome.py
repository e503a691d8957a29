"""The reading of a judge's reply: an outcome, and a score if the outcome is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["scored", "code", "refusal", "unparsed", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class Reading:
    """A reply as read. `score`: from 0 to 100 if the outcome is scored, else None."""

    outcome: Outcome
    score: float | None = None
