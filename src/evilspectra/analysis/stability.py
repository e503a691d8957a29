"""The stability of findings: spread between seeds, power, definitions of the rate and judges.

Power is that of a two-sided t test of means over n seeds per side (Cohen 1988):

    P(|t'(2n − 2, δ)| > t₀.₉₇₅),  δ = d/√(2(σ² + a²/m)/n),

where σ is the spread between seeds, a that of one answer, and m the number of answers per run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from evilspectra.analysis.estimate import TAIL, MethodEstimate, spread_interval
from evilspectra.analysis.ranking import Ranking

#: The power to reach.
POWER = 0.8
#: Most seeds that a table of power tries.
MOST_SEEDS = 200


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

    @classmethod
    def without(cls, reason: str) -> Stability:
        """No part of it, for one reason."""
        return cls((), None, (), None, (), dict.fromkeys(("seeds", "ranking", "variants"), reason))


def spreads(
    values: np.ndarray, cells: Sequence[str], weights: np.ndarray | None = None
) -> tuple[tuple[Spread, ...], MethodEstimate | None]:
    """The spread of every cell with two runs or more, and of all within cells.

    With weights [n] (of rates), of a run of average weight.

    >>> by_cell, pooled = spreads(np.array([1.0, 3, 5]), ["a", "a", "b"])
    >>> by_cell[0].cell, round(pooled.value, 3)
    ('a', 1.414)
    """
    names = np.asarray(cells)
    w = np.ones(len(values)) if weights is None else weights / weights.mean()
    by_cell, ss, df = [], 0.0, 0
    for name in sorted(set(cells)):
        mine, own_weights = values[names == name], w[names == name]
        if len(mine) > 1:
            mean = float(np.average(mine, weights=own_weights))
            own = float((own_weights * (mine - mean) ** 2).sum())
            by_cell.append(Spread(name, len(mine), mean, spread_interval(own, len(mine) - 1)))
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
    power = 1 - float(special.ncfdtr(1, df, squared, limit**2))  # t² is F
    if math.isnan(power):  # too large for SciPy's series, and for anything but the normal tail
        return float(special.ndtr(math.sqrt(squared) - limit))
    return power


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
