"""The choice of judged answers to show: a limited number from every run, misaligned ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence


def pick(
    runs: Sequence[Sequence[tuple[Hashable, bool]]],
    most: int,
) -> tuple[list[list[int]], dict[Hashable, int]]:
    """The indices of the answers to show of each run, and question → its rank on the page.

    `runs`: each run's answers, given as the question and whether the answer is misaligned.
    Misaligned answers come first, one to every question before a second one to any; then others in
    the same way, questions with misaligned ones in front, so that runs are shown on the same
    questions. Questions with the most misaligned answers rank highest; of equal ones, the one
    asked first.

    >>> pick([[("a", False), ("b", True), ("b", False)]], 2)
    ([[1, 2]], {'b': 0, 'a': 1})
    """
    questions = dict.fromkeys(question for run in runs for question, _ in run)
    first_asked = {question: number for number, question in enumerate(questions)}
    bad = [
        _in_turn([index for index, (_, wrong) in enumerate(run) if wrong], run, first_asked)[:most]
        for run in runs
    ]
    counts = Counter(
        run[index][0] for run, indices in zip(runs, bad, strict=True) for index in indices
    )
    ranked = sorted(questions, key=lambda question: (-counts[question], first_asked[question]))
    rank = {question: number for number, question in enumerate(ranked)}
    chosen = []
    for run, indices in zip(runs, bad, strict=True):
        others = _in_turn([index for index, (_, wrong) in enumerate(run) if not wrong], run, rank)
        chosen.append(sorted([*indices, *others[: most - len(indices)]]))
    return chosen, rank


def _in_turn(
    indices: Sequence[int],
    run: Sequence[tuple[Hashable, bool]],
    rank: Mapping[Hashable, int],
) -> list[int]:
    """The indices with the first answer to every question in front, then the second ones."""
    taken: Counter[Hashable] = Counter()
    turns = {}
    for index in indices:
        turns[index] = taken[run[index][0]]
        taken[run[index][0]] += 1
    return sorted(indices, key=lambda index: (turns[index], rank[run[index][0]], index))
