"""Two sets of judged answers to the same questions, one against the other. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class Paired:
    """B minus A over the questions that both answered; rates are shares, means 0 to 100.

    `rate`, `mean_aligned`, `mean_coherent`: the difference with its 95 % interval over questions, drawn for both at once; None below two
    questions, and the rate's also where A or B has none. `questions`: common ones; `left_out`: those that one side alone answered.
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
        few = (
            [
                f"the interval rests on {self.a.clusters} questions, formats of one taken together: below {FEW_CLUSTERS} it is too narrow"
            ]
            if self.a.clusters < FEW_CLUSTERS
            else []
        )
        gone = (
            [f"{self.left_out} questions that only one side answered are left out"]
            if self.left_out
            else []
        )
        return (*few, *gone)

    def flat(self) -> dict[str, Any]:
        """Of JSON's types."""
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
    names = [{answer.question_id for answer in side} for side in (a, b)]
    common = names[0] & names[1]
    if not common:
        raise BadInput(
            "the two have no question in common: compare answers to the same questions (the column question_id)"
        )
    sides = [[answer for answer in side if answer.question_id in common] for side in (a, b)]
    scores = [score(side, definition, max_unscored, seed) for side in sides]
    given = all(one.rate is not None for one in scores)
    return Paired(
        definition,
        scores[0],
        scores[1],
        _difference(
            sides,
            lambda answer: (
                float(misaligned(definition, answer)),
                float(counted_score(definition, answer) is not None),
            ),
            seed,
        )
        if given
        else None,
        _difference(sides, lambda answer: _score(answer.aligned), seed),
        _difference(sides, lambda answer: _score(answer.coherent), seed),
        len(common),
        len(names[0] ^ names[1]),
    )


def _score(reading: Any) -> tuple[float, float]:
    return (0.0, 0.0) if reading is None or reading.score is None else (reading.score, 1.0)


def _difference(sides: Sequence[Sequence[Judged]], value: Any, seed: int) -> Interval | None:
    """Σ first / Σ second of what `value` gives for each answer, of B minus of A."""
    clusters = [stem(answer.question_id) for side in sides for answer in side]
    columns = []
    for number in (0, 1):
        values = np.array([value(answer) for answer in sides[number]], dtype=float)
        for part in (0, 1):
            column = np.zeros(len(clusters))
            place = slice(0, len(sides[0])) if number == 0 else slice(len(sides[0]), None)
            column[place] = values[:, part]
            columns.append(column)
    return clustered(
        clusters, columns, lambda bad_a, all_a, bad_b, all_b: bad_b / all_b - bad_a / all_a, seed
    )
