"""The stability of findings: seeds, power, the order of groups, definitions of the rate and judges.

Power is that of a two-sided t test of means over n seeds per side (Cohen 1988):

    P(|t'(2n − 2, δ)| > t₀.₉₇₅),  δ = d/√(2(σ² + a²/m)/n),

where σ is the spread between seeds, a that of one answer, and m the number of answers per run.

Groups are ranked by least squares means, adjusted for the other factors, with Tukey and Kramer's
simultaneous differences: among k groups, a group's rank lies between 1 + the number shown better
and k − the number shown worse (Klein, Wright and Wieczorek 2020). A bootstrap of ranks is not used:
if two groups are equal it is inconsistent and its intervals are too narrow (Hall and Miller 2009),
and whether groups are equal is exactly the question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special, stats

from evilspectra.analysis.estimate import (
    TAIL,
    Frame,
    MethodEstimate,
    spread_interval,
    t_interval,
)
from evilspectra.analysis.linear import lay_out, text_columns
from evilspectra.intervals import LEVEL

#: The power to reach.
POWER = 0.8
#: Most seeds that a table of power tries.
MOST_SEEDS = 200


@dataclass(frozen=True, slots=True)
class Ranked:
    """A group's least squares mean and its rank, 1 the best (the largest where `better` is 0).

    `low` to `high` contain all groups' ranks at once with 95 %.
    """

    group: str
    mean: MethodEstimate
    rank: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Groups by rank, and all pairs' simultaneous differences (first − second)."""

    factor: str
    better: int
    groups: tuple[Ranked, ...]
    differences: dict[tuple[str, str], MethodEstimate]

    def clear_pairs(self) -> list[tuple[str, str]]:
        """Pairs whose first member is shown to be larger than the second."""
        return [
            (first, second) if difference.value > 0 else (second, first)
            for (first, second), difference in self.differences.items()
            if difference.clear_of()
        ]


@dataclass(frozen=True, slots=True)
class Spread:
    """One cell's replicates: standard deviation with its χ² interval."""

    cell: str
    runs: int
    mean: float
    sd: MethodEstimate


@dataclass(frozen=True, slots=True)
class Needed:
    """The seeds a group that show a difference `d` with 80 % power; None beyond MOST_SEEDS.

    `answers`: answers a run; None if the outcome has no counts.
    """

    d: float
    answers: int | None
    seeds: int | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of counting: the order of the groups, the pairs shown, the factor's partial η²."""

    variant: str
    runs: int
    order: tuple[str, ...]
    shown: tuple[tuple[str, str], ...]
    eta: MethodEstimate
    means: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stability:
    """The stability of an analysis.

    `seeds`: spread by cell; `pooled`: over all; `needed`: seeds for power; `ranking`: of the first
    factor's groups; `variants`: the same under each definition and judge.
    """

    seeds: tuple[Spread, ...]
    pooled: MethodEstimate | None
    needed: tuple[Needed, ...]
    ranking: Ranking | None
    variants: tuple[Variant, ...]
    reasons: dict[str, str]


def spreads(
    values: np.ndarray, cells: Sequence[str]
) -> tuple[tuple[Spread, ...], MethodEstimate | None]:
    """The spread of every cell with two runs or more, and of all within cells.

    >>> by_cell, pooled = spreads(np.array([1.0, 3, 5]), ["a", "a", "b"])
    >>> by_cell[0].cell, round(pooled.value, 3)
    ('a', 1.414)
    """
    names = np.asarray(cells)
    by_cell, ss, df = [], 0.0, 0
    for name in sorted(set(cells)):
        mine = values[names == name]
        if len(mine) > 1:
            own = float(((mine - mine.mean()) ** 2).sum())
            by_cell.append(
                Spread(name, len(mine), float(mine.mean()), spread_interval(own, len(mine) - 1))
            )
            ss, df = ss + own, df + len(mine) - 1
    return tuple(by_cell), spread_interval(ss, df) if df else None


def power(
    d: float,
    seeds: int,
    seed_sd: float,
    answer_sd: float = 0.0,
    answers: int | None = None,
) -> float:
    """Power of a two-sided 5 % t test between two groups of `seeds` runs each that differ by d.

    >>> round(power(1.0, 17, 1.0), 3)
    0.807
    """
    df = 2 * seeds - 2
    if df < 1:
        return 0.0
    variance = seed_sd**2 + (answer_sd**2 / answers if answers else 0.0)
    if variance <= 0:
        return 1.0 if d else 2 * TAIL
    squared = d * d / (2 * variance / seeds)
    limit = float(special.stdtrit(df, 1 - TAIL))
    return 1 - float(special.ncfdtr(1, df, squared, limit**2))  # t² is F


def seeds_needed(
    d: float,
    seed_sd: float,
    answer_sd: float = 0.0,
    answers: int | None = None,
    wanted: float = POWER,
) -> int | None:
    """The fewest seeds a group with that power; None beyond MOST_SEEDS.

    >>> seeds_needed(1.0, 1.0)
    17
    """
    low, high = 2, MOST_SEEDS
    if power(d, high, seed_sd, answer_sd, answers) < wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if power(d, middle, seed_sd, answer_sd, answers) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low


@lru_cache(maxsize=256)
def _tukey(groups: int, df: int) -> float:
    """The studentised range's 95 % point over √2."""
    if groups == 2:
        return float(special.stdtrit(df, 1 - TAIL))
    return float(stats.studentized_range.ppf(LEVEL, groups, df)) / math.sqrt(2)


def rank(
    values: np.ndarray,
    groups: Sequence[str],
    others: Mapping[str, Sequence[str]] | None = None,
    factor: str = "optimizer",
    better: int = 1,
    weights: np.ndarray | None = None,
) -> Ranking | None:
    """Rank groups of values [n], adjusted for other factors (main effects).

    None if there are fewer than two groups, no residual is left to estimate the error from, or the
    other factors hide the groups.

    >>> ranking = rank(np.array([1.0, 1.1, 5.0, 5.1, 5.2, 5.1]), list("aabbcc"))
    >>> [(ranked.group, ranked.low, ranked.high) for ranked in ranking.groups]
    [('c', 1, 2), ('b', 1, 2), ('a', 3, 3)]
    """
    names = sorted(set(groups))
    layout = lay_out({"g": groups, **(others or {})}, 1, weights)
    full = layout.basis(layout.terms)
    df = layout.n - full.shape[1]
    if len(names) < 2 or df < 1:
        return None
    other_terms = [term for term in layout.terms if term != ("g",)]
    if layout.added(("g",), other_terms).shape[1] < len(names) - 1:
        return None
    y = layout.weighted(values)
    residual = y - full @ (full.T @ y)
    variance = float(residual @ residual) / df
    if variance <= 0:
        return None
    member = np.stack([np.asarray(groups) == name for name in names], axis=1).astype(float)
    # The other factors' columns sum to zero over their levels: each mean is at the unweighted
    # average of the other factors.
    other_columns = [layout.columns[term] for term in other_terms]
    x = np.hstack([member, *other_columns]) * layout.root[:, None]
    inverse = np.linalg.pinv(x.T @ x)
    means = (inverse @ (x.T @ y))[: len(names)]
    covariance = inverse[: len(names), : len(names)] * variance
    differences = _differences(names, means, covariance, df)
    sign = -1 if better < 0 else 1
    order = sorted(range(len(names)), key=lambda i: -sign * means[i])
    ahead = dict.fromkeys(names, 0)
    behind = dict.fromkeys(names, 0)
    for (first, second), difference in differences.items():
        if difference.clear_of():
            winner, loser = (first, second) if sign * difference.value > 0 else (second, first)
            ahead[loser] += 1
            behind[winner] += 1
    ranked = tuple(
        Ranked(
            names[i],
            t_interval(float(means[i]), math.sqrt(covariance[i, i]), df),
            position,
            1 + ahead[names[i]],
            len(names) - behind[names[i]],
        )
        for position, i in enumerate(order, start=1)
    )
    return Ranking(factor, better, ranked, differences)


def _differences(
    names: Sequence[str],
    means: np.ndarray,
    covariance: np.ndarray,
    df: int,
) -> dict[tuple[str, str], MethodEstimate]:
    """All pairs' differences of means, with Tukey and Kramer's simultaneous intervals."""
    limit = _tukey(len(names), df)
    differences = {}
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            error = math.sqrt(max(0.0, covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]))
            value = float(means[i] - means[j])
            low, high = value - limit * error, value + limit * error
            differences[first, names[j]] = MethodEstimate(value, low, high, "Tukey–Kramer")
    return differences


def rank_frame(
    frame: Frame,
    values: np.ndarray,
    factor: str,
    others: Sequence[str],
    better: int,
    weights: np.ndarray | None = None,
) -> Ranking | None:
    """`rank` over the columns of a frame; other factors that hide the groups are left out."""
    texts = text_columns(
        frame, [factor, *(name for name in others if name != factor and name in frame)]
    )
    groups = texts.pop(factor)
    return rank(values, groups, texts, factor, better, weights) or rank(
        values, groups, None, factor, better, weights
    )
