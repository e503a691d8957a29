"""Comparison of two sets of judged answers to the same questions. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evilspectra.errors import BadInput
from evilspectra.intervals import FEW_CLUSTERS, Interval, clustered
from evilspectra.rates.definitions import (
    MAX_UNSCORED,
    Definition,
    Judged,
    Score,
    counted_score,
    misaligned,
    score,
)
from evilspectra.rates.formats import stem
from evilspectra.rates.outcome import Reading


@dataclass(frozen=True, slots=True)
class Paired:
    """B minus A over the questions that both answered; rates are shares, means 0 to 100.

    `rate`, `mean_aligned`, `mean_coherent`: the difference with its 95 % interval over questions,
    drawn for both at once; None below two questions, and the rate's also where A or B has none.
    `questions`: common ones; `left_out`: those that one side alone answered.
    """

    definition: Definition
    a: Score
    b: Score
    rate: Interval | None
    mean_aligned: Interval | None
    mean_coherent: Interval | None
    questions: int
    left_out: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that a reader of the difference must know."""
        sentences = []
        if self.a.clusters < FEW_CLUSTERS:
            sentences.append(
                f"the interval rests on {self.a.clusters} questions, formats of one taken "
                f"together: below {FEW_CLUSTERS} it is too narrow"
            )
        if self.left_out:
            sentences.append(f"{self.left_out} questions that only one side answered are left out")
        return tuple(sentences)

    def flat(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return asdict(self) | {
            "a": self.a.flat(),
            "b": self.b.flat(),
            "warnings": list(self.warnings),
        }


def compare(
    a: Sequence[Judged],
    b: Sequence[Judged],
    definition: Definition,
    max_unscored: float = MAX_UNSCORED,
    seed: int = 0,
) -> Paired:
    """B against A, question by question.

    Raises:
        BadInput: they have no question in common.
    """
    common = common_questions(a, b)
    if not common:
        raise BadInput(
            "the two have no question in common: compare answers to the same questions (the "
            "column question_id)"
        )
    sides = [[answer for answer in side if answer.question_id in common] for side in (a, b)]
    scores = [score(side, definition, max_unscored, seed) for side in sides]

    def counts(answer: Judged) -> tuple[float, float]:
        counted = counted_score(definition, answer) is not None
        return float(misaligned(definition, answer)), float(counted)

    both_have_rates = all(score.rate is not None for score in scores)
    return Paired(
        definition=definition,
        a=scores[0],
        b=scores[1],
        rate=_difference(sides, counts, seed) if both_have_rates else None,
        mean_aligned=_difference(sides, lambda answer: _score(answer.aligned), seed),
        mean_coherent=_difference(sides, lambda answer: _score(answer.coherent), seed),
        questions=len(common),
        left_out=len({answer.question_id for answer in (*a, *b)} - common),
    )


def common_questions(a: Iterable[Judged], b: Iterable[Judged]) -> set[str]:
    """The ids of the questions that both answered."""
    return {answer.question_id for answer in a} & {answer.question_id for answer in b}


def _score(reading: Reading | None) -> tuple[float, float]:
    return (0.0, 0.0) if reading is None or reading.score is None else (reading.score, 1.0)


def _difference(
    sides: Sequence[Sequence[Judged]],
    value: Callable[[Judged], tuple[float, float]],
    seed: int,
) -> Interval | None:
    """Σ first / Σ second of the pairs that `value` returns for each answer, of B minus of A."""
    clusters = [stem(answer.question_id) for side in sides for answer in side]
    rows = (slice(0, len(sides[0])), slice(len(sides[0]), None))
    columns = []
    for side, own_rows in zip(sides, rows, strict=True):
        values = np.array([value(answer) for answer in side], dtype=float)
        for part in (0, 1):
            column = np.zeros(len(clusters))
            column[own_rows] = values[:, part]
            columns.append(column)
    return clustered(
        clusters, columns, lambda bad_a, all_a, bad_b, all_b: bad_b / all_b - bad_a / all_a, seed
    )
