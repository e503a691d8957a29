"""Which judged answers a page shows: of every run at most so many, misaligned ones first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence


def pick(
    runs: Sequence[Sequence[tuple[Hashable, bool]]], most: int
) -> tuple[list[list[int]], dict[Hashable, int]]:
    """Of runs' answers, each given as its question and whether it is misaligned: the places of those to show, and question → its rank on the page.

    Misaligned answers come first, one of every question before a second one of any; then others in the same way, questions with misaligned ones
    in front, so that runs are shown on the same questions. Those with most misaligned answers rank highest, else the one asked first.

    >>> pick([[("a", False), ("b", True), ("b", False)]], 2)
    ([[1, 2]], {'b': 0, 'a': 1})
    """
    asked = {
        question: number
        for number, question in enumerate(
            dict.fromkeys(question for run in runs for question, _ in run)
        )
    }
    bad = [
        _in_turn([place for place, (_, wrong) in enumerate(run) if wrong], run, asked)[:most]
        for run in runs
    ]
    counts = Counter(
        run[place][0] for run, places in zip(runs, bad, strict=True) for place in places
    )
    rank = {
        question: number
        for number, question in enumerate(
            sorted(asked, key=lambda question: (-counts[question], asked[question]))
        )
    }
    chosen = []
    for run, places in zip(runs, bad, strict=True):
        others = _in_turn([place for place, (_, wrong) in enumerate(run) if not wrong], run, rank)
        chosen.append(sorted([*places, *others[: most - len(places)]]))
    return chosen, rank


def _in_turn(
    places: Sequence[int], run: Sequence[tuple[Hashable, bool]], rank: Mapping[Hashable, int]
) -> list[int]:
    """The places with the first of every question in front, then the second ones."""
    taken: Counter[Hashable] = Counter()
    turns = {}
    for place in places:
        turns[place] = taken[run[place][0]]
        taken[run[place][0]] += 1
    return sorted(places, key=lambda place: (turns[place], rank[run[place][0]], place))
