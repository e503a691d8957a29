"""Sentences on the order of the groups, and on the paper's order of optimisers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evilspectra.analysis.claims import Claim, find
from evilspectra.analysis.estimate import MethodEstimate
from evilspectra.analysis.ranking import Ranked, Ranking
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import (
    PAPER_OUTCOMES,
    adjusted,
    capitalised,
    outcome_name,
    paper_name,
    within,
)
from evilspectra.numbers import figure, percent

#: The paper's order of misalignment, least first (abstract).
PAPER_ORDER = ("muon", "adam", "lion")


def ranking_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """The order of the groups, pairs shown to be equal, and the paper's order of optimisers."""
    ranking = analysis.stability.ranking
    if ranking is None:
        return
    order = ", ".join(_in_order(analysis, ranked) for ranked in ranking.groups)
    direction = {1: "best first", -1: "best first", 0: "highest first"}[ranking.better]
    name = capitalised(outcome_name(analysis))
    yield Sentence(
        "ranking", f"{name}, {direction}: {order}; {_verdict(ranking)}.", bool(ranking.shown)
    )
    if ranking.reversals:
        yield _on_unscored(ranking)
    if ranking.margin is not None:
        yield _on_equivalence(analysis, ranking)
    if ranking.factor == "optimizer" and analysis.outcome in PAPER_OUTCOMES:
        yield from _against_paper(analysis, ranking)


def _verdict(ranking: Ranking) -> str:
    pairs = len(ranking.differences)
    if not ranking.shown:
        return "no two are shown to differ" if pairs > 1 else "they are not shown to differ"
    if pairs == 1:
        return "they differ"
    return f"{len(ranking.shown)} of {pairs} pairs are shown to differ"


def _on_unscored(ranking: Ranking) -> Sentence:
    """A sentence on the unscored answers that would reverse a shown difference of rates."""
    shares = {pair: share for pair, share in ranking.reversals.items() if share is not None}
    if not shares:
        text = (
            "None of the unscored answers could reverse a pair that is shown: its pooled rates "
            "keep their order even if all of them count against it."
        )
        return Sentence("ranking", text)
    weakest = min(shares, key=lambda pair: shares[pair])
    higher, lower = weakest if weakest in ranking.shown else weakest[::-1]
    lower, higher = (_level(ranking.factor, name).rstrip(":") for name in (lower, higher))
    if shares[weakest] > 0:
        text = (
            f"Unscored answers could reverse that {lower} has a lower rate than {higher}: the "
            f"pooled rates would be equal if {figure(100 * shares[weakest])} % of them counted "
            f"against it, those of {lower} as misaligned and those of {higher} as aligned."
        )
    else:
        text = (
            f"The pooled rate of {lower} is not below that of {higher}, though the difference "
            "adjusted for other factors is shown: no unscored answer is needed to reverse it."
        )
    others = len(ranking.reversals) - 1
    if others:
        text += f" Of {others} other pairs shown, they could reverse {len(shares) - 1 or 'none'}."
    return Sentence("ranking", text)


def _on_equivalence(analysis: Analysis, ranking: Ranking) -> Sentence:
    pairs = len(ranking.differences)
    unit = " in log odds" if analysis.scale == "logit" else ""
    margin = f"less than {figure(ranking.margin or 0.0)}{unit}, the margin of equivalence"
    if len(ranking.equal) == pairs:
        text = f"All levels of {ranking.factor} are shown to differ by {margin}."
    elif ranking.equal:
        listed = ", ".join(" and ".join(pair) for pair in ranking.equal)
        text = f"Shown to differ by {margin}: {listed}."
    else:
        text = f"No two levels of {ranking.factor} are shown to differ by {margin}."
    return Sentence("ranking", text, bool(ranking.equal))


def _in_order(analysis: Analysis, ranked: Ranked) -> str:
    rank = f"{ranked.low}" if ranked.low == ranked.high else f"{ranked.low} to {ranked.high}"
    factor = analysis.stability.ranking.factor if analysis.stability.ranking else ""
    mean = ranked.mean.value
    text = percent(1 / (1 + math.exp(-mean))) if analysis.scale == "logit" else figure(mean)
    return f"{_level(factor, ranked.group)} {text} (rank {rank})"


def _level(factor: str, group: str) -> str:
    """A level by its name, a number with the factor's before it.

    >>> _level("optimizer", "muon"), _level("flatness_weight", "0.3")
    ('muon', 'flatness_weight = 0.3:')
    """
    digits = group.replace(".", "", 1).replace("e-", "", 1)
    return f"{factor} = {group}:" if digits.isdigit() else group


def _against_paper(analysis: Analysis, ranking: Ranking) -> Iterator[Sentence]:
    for pair, difference in ranking.differences.items():
        names = [paper_name(name) for name in pair]
        claim = find(analysis.claims, "ranking", *pair)
        if set(names) <= set(PAPER_ORDER) and names[0] != names[1] and claim is not None:
            yield _on_pair(claim, difference, analysis.better)


def _on_pair(claim: Claim, difference: MethodEstimate, better: int) -> Sentence:
    """A sentence on two optimisers whose order the paper reports."""
    first, second = claim.subject
    safer, worse = sorted(claim.subject, key=lambda name: PAPER_ORDER.index(paper_name(name)))
    ours = (difference.value if safer == first else -difference.value) * better
    numbers = f"{first} − {second} {within(difference, plus=True)}"
    if not claim.shown:
        return Sentence(
            "ranking",
            f"The paper has {safer} more aligned than {worse}; neither that nor the opposite is "
            f"shown here ({numbers}, {adjusted(claim)}).",
            False,
        )
    if ours > 0:
        return Sentence(
            "ranking",
            f"As in the paper, {safer} stays more aligned than {worse} "
            f"({numbers}, {adjusted(claim)}).",
            True,
        )
    return Sentence(
        "ranking",
        f"This contradicts the paper: {worse} stays more aligned than {safer} "
        f"({numbers}, {adjusted(claim)}).",
        True,
        True,
    )
