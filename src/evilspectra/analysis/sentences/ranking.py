"""Sentences on the order of the groups, and on the paper's order of optimisers."""

from __future__ import annotations

from collections.abc import Iterator

from evilspectra.analysis.estimate import MethodEstimate
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import PAPER_OUTCOMES, outcome_name, paper_name, within
from evilspectra.analysis.stability import Ranked, Ranking
from evilspectra.numbers import figure

#: The paper's order of misalignment, least first (abstract).
PAPER_ORDER = ("muon", "adam", "lion")


def ranking_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """The order of the groups, and each pair of optimisers against the paper's order."""
    ranking = analysis.stability.ranking
    if ranking is None:
        return
    order = ", ".join(_in_order(ranking.factor, ranked) for ranked in ranking.groups)
    direction = {
        1: "highest first, which is best",
        -1: "lowest first, which is best",
        0: "highest first",
    }[ranking.better]
    pairs = ranking.differences
    clear = sum(difference.clear_of() for difference in pairs.values())
    verdict = (
        f"{clear} of {len(pairs)} pairs are shown to differ"
        if clear
        else "no two are shown to differ"
    )
    yield Sentence(
        "ranking",
        f"By {outcome_name(analysis)}, {direction}: {order}; {verdict} "
        "(95 % for all pairs at once).",
        bool(clear),
    )
    if ranking.factor == "optimizer" and analysis.outcome in PAPER_OUTCOMES:
        yield from _against_paper(ranking, analysis.better)


def _in_order(factor: str, ranked: Ranked) -> str:
    rank = f"{ranked.low}" if ranked.low == ranked.high else f"{ranked.low} to {ranked.high}"
    return f"{_level(factor, ranked.group)} {figure(ranked.mean.value)} (rank {rank})"


def _level(factor: str, group: str) -> str:
    """A level by its name, a number with the factor's before it.

    >>> _level("optimizer", "muon"), _level("flatness_weight", "0.3")
    ('muon', 'flatness_weight = 0.3:')
    """
    digits = group.replace(".", "", 1).replace("e-", "", 1)
    return f"{factor} = {group}:" if digits.isdigit() else group


def _against_paper(ranking: Ranking, better: int) -> Iterator[Sentence]:
    for (first, second), difference in ranking.differences.items():
        names = [paper_name(first), paper_name(second)]
        if set(names) <= set(PAPER_ORDER) and names[0] != names[1]:
            yield _on_pair(first, second, difference, better)


def _on_pair(first: str, second: str, difference: MethodEstimate, better: int) -> Sentence:
    """A sentence on two optimisers whose order the paper reports."""
    in_order = sorted((first, second), key=lambda name: PAPER_ORDER.index(paper_name(name)))
    safer, worse = in_order
    ours = (difference.value if safer == first else -difference.value) * better
    text = f"{first} − {second}: {within(difference, plus=True)}"
    if not difference.clear_of():
        return Sentence(
            "ranking",
            f"That {safer} stays more aligned than {worse}, as in the paper, is not shown here "
            f"({text}).",
            False,
        )
    if ours > 0:
        return Sentence(
            "ranking",
            f"As in the paper, {safer} stays more aligned than {worse} ({text}).",
            True,
        )
    return Sentence(
        "ranking",
        f"This contradicts the paper: {worse} stays more aligned than {safer} here ({text}); "
        f"the paper has {safer} more aligned.",
        True,
        True,
    )
