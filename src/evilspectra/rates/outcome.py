"""What a judge's reply comes to: an outcome, and a score where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["scored", "code", "refusal", "unparsed", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reply says. `score`: from 0 to 100 where the outcome is scored, else None."""

    outcome: Outcome
    score: float | None = None
