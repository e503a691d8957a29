"""The order of groups: least squares means adjusted for other factors, and all pairs' differences.

Each group has a spread of its own (module `contrasts`). Which pairs are shown is decided over the
whole page (module `claims`); then, among k groups, a group's rank lies between 1 + the number shown
better and k − the number shown worse (Klein, Wright and Wieczorek 2020). A bootstrap of ranks is
not used: if two groups are equal it is inconsistent and its intervals are too narrow (Hall and
Miller 2009), and whether groups are equal is exactly the question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from evilspectra.analysis.claims import EQUIVALENCE, Claim, find
from evilspectra.analysis.contrasts import Contrast, fit
from evilspectra.analysis.estimate import Frame, MethodEstimate
from evilspectra.analysis.linear import independent, lay_out, text_columns
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.unscored import Pooled, pooled, reversing_share

#: A pair of groups.
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A group's mean and its rank, 1 the best (the largest where `better` is 0).

    `low` to `high` contain all groups' ranks at once with 95 %.
    """

    group: str
    mean: MethodEstimate
    rank: int
    low: int
    high: int


@dataclass(frozen=True)
class Ranking:
    """Groups by rank, and all pairs' differences (first − second), with their own intervals.

    `shown`: the pairs whose first member is shown to be larger than the second. `margin` and
    `equal`: the margin of equivalence, and the pairs shown to differ by less. Of rates, `pooled`:
    each group's answers; `reversals`: for each pair of `differences` that is shown and has unscored
    answers, the share of them that would reverse it, None if none of them could.
    """

    factor: str
    better: int
    groups: tuple[Ranked, ...]
    differences: dict[Pair, MethodEstimate]
    shown: tuple[Pair, ...] = ()
    margin: float | None = None
    equal: tuple[Pair, ...] = ()
    claims: tuple[Claim, ...] = ()
    pooled: dict[str, Pooled] = field(default_factory=dict)
    reversals: dict[Pair, float | None] = field(default_factory=dict)


def rank(
    outcome: Outcome,
    groups: Sequence[str],
    others: Mapping[str, Sequence[str]] | None = None,
    factor: str = "optimizer",
    margin: float | None = None,
) -> Ranking | None:
    """Rank the groups [n] by an outcome of n runs, adjusted for other factors (main effects).

    None if there are fewer than two groups, or the other factors hide the groups.

    >>> y = Outcome("capability", "as measured", np.array([1.0, 1.1, 5.0, 5.2, 5.1, 5.3]))
    >>> ranking = rank(y, list("aabbcc"))
    >>> [ranked.group for ranked in ranking.groups], ranking.differences["a", "b"].method
    (['c', 'b', 'a'], 't, smallest df')
    """
    names = sorted(set(groups))
    if len(names) < 2:
        return None
    layout = lay_out({"g": groups, **(others or {})}, 1)
    other_terms = [term for term in layout.terms if term != ("g",)]
    if layout.added(("g",), other_terms).shape[1] < len(names) - 1:
        return None
    levels = np.array([names.index(name) for name in groups])
    member = np.eye(len(names))[levels]
    # The other factors' columns sum to zero over their levels: each mean is at the unweighted
    # average of the other factors.
    columns = independent(np.hstack([member, *(layout.columns[term] for term in other_terms)]))
    model = fit(outcome, columns, levels)
    unit = np.eye(columns.shape[1])
    means = [model.contrast(unit[i]) for i in range(len(names))]
    contrasts = {
        (names[i], names[j]): model.contrast(unit[i] - unit[j])
        for i, j in combinations(range(len(names)), 2)
    }
    sign = -1 if outcome.better < 0 else 1
    order = sorted(range(len(names)), key=lambda i: -sign * means[i].value)
    ranked = tuple(
        Ranked(names[i], means[i].estimate, position, 1, len(names))
        for position, i in enumerate(order, start=1)
    )
    differences = {pair: contrast.estimate for pair, contrast in contrasts.items()}
    return Ranking(
        factor,
        outcome.better,
        ranked,
        differences,
        margin=margin,
        claims=tuple(_claims(contrasts, differences, margin)),
    )


def _claims(
    contrasts: Mapping[Pair, Contrast],
    differences: Mapping[Pair, MethodEstimate],
    margin: float | None,
) -> Iterable[Claim]:
    """Claims that pairs differ; with a margin, also that they differ by less."""
    for pair, estimate in differences.items():
        yield Claim("ranking", pair, estimate.value, estimate.p, estimate.method, estimate.note)
    if margin is None:
        return
    for pair, contrast in contrasts.items():
        p = within_margin(contrast, margin)
        method = f"two one-sided tests, {contrast.method}"
        yield Claim(EQUIVALENCE, pair, contrast.value, p, method)


def within_margin(contrast: Contrast, margin: float) -> float | None:
    """The p-value of two one-sided tests (Schuirmann 1987) of |contrast| ≥ margin.

    >>> round(within_margin(Contrast(0.0, 1.0, 10.0, "t"), 2.0), 4)
    0.0367
    """
    below = contrast.one_sided(margin)
    above = Contrast(-contrast.value, contrast.error, contrast.df, contrast.method)
    other = above.one_sided(margin)
    return None if below is None or other is None else max(below, other)


def settle(ranking: Ranking, claims: Iterable[Claim]) -> Ranking:
    """The ranking with what the page's claims decided about its pairs."""
    decided = tuple(claims)
    ahead = {ranked.group: 0 for ranked in ranking.groups}
    behind = dict(ahead)
    sign = -1 if ranking.better < 0 else 1
    apart: list[Pair] = []
    equal: list[Pair] = []
    reversals: dict[Pair, float | None] = {}
    for pair, difference in ranking.differences.items():
        claim = find(decided, "ranking", *pair)
        if claim is not None and claim.shown:
            larger, smaller = pair if difference.value > 0 else pair[::-1]
            apart.append((larger, smaller))
            if any(ranking.pooled[group].unscored for group in pair if group in ranking.pooled):
                low, high = ranking.pooled[smaller], ranking.pooled[larger]
                reversals[pair] = reversing_share(low, high)
            winner, loser = (larger, smaller) if sign > 0 else (smaller, larger)
            ahead[loser] += 1
            behind[winner] += 1
        claim = find(decided, EQUIVALENCE, *pair)
        if claim is not None and claim.shown:
            equal.append(pair)
    groups = tuple(
        replace(
            ranked, low=1 + ahead[ranked.group], high=len(ranking.groups) - behind[ranked.group]
        )
        for ranked in ranking.groups
    )
    return replace(
        ranking, groups=groups, shown=tuple(apart), equal=tuple(equal), reversals=reversals
    )


def rank_frame(
    frame: Frame,
    outcome: Outcome,
    factor: str | None,
    others: Sequence[str],
    margin: float | None = None,
) -> Ranking | None:
    """`rank` over the columns of a frame; other factors that hide the groups are left out."""
    if factor is None:
        return None
    names = [name for name in others if name != factor and name in frame]
    texts = text_columns(frame, [factor, *names])
    groups = texts.pop(factor)
    ranking = rank(outcome, groups, texts, factor, margin) or rank(
        outcome, groups, None, factor, margin
    )
    if ranking is None or outcome.counted is None:
        return ranking
    return replace(ranking, pooled=pooled(frame, factor))
