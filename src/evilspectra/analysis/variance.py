"""The share of an outcome's variance that each factor explains.

Type II and III analysis of variance, effect sizes with intervals, LMG shares, permutation tests.

| quantity | formula | source |
|---|---|---|
| type II SS of T | what T adds to all terms that do not contain it | Yates 1934; Langsrud 2003 |
| type III SS of T | what T adds to all other terms, sum-to-zero coding | Yates 1934 |
| partial η² | SS/(SS + SSE) | Cohen 1973 |
| partial ω² | (SS − df·MSE)/(SS + (n − df)·MSE) | Olejnik and Algina 2003 |
| their interval | λ/(λ + n) with both λ from the noncentral F | Steiger 2004 |
| LMG share | gain in R², averaged over all orders of entry | Lindeman, Merenda and Gold 1980 |
| permutation p | residuals without T, exchanged within blocks | Freedman and Lane 1983 |

Type III is computed only if no cell is empty. LMG shares are descriptive and have no interval here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial, nan
from typing import Any

import numpy as np

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.contrasts import fit
from evilspectra.analysis.design import Confounded, aliases
from evilspectra.analysis.estimate import Frame, MethodEstimate, f_tail, share
from evilspectra.analysis.linear import (
    Layout,
    Term,
    is_rounding,
    lay_out,
    spelled,
    squares,
    text_columns,
)
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.terms import term_claim

#: Draws of a permutation test: p-values are multiples of 1/2000.
PERMUTATIONS = 1999
_SEED = 0
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of one term.

    `eta`: partial η² with the interval of the share in the population; `omega`: partial ω², the
    less biased estimate of the same. `permutation`: p-value, None if not requested.
    """

    term: str
    df: int
    ss: float
    f: float
    p: float | None
    permutation: float | None
    eta: MethodEstimate
    omega: float


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Variance of an outcome by terms.

    `type2`, `type3`: effects by each kind; type III is empty where `no_type3` says why. `lmg`:
    factor → share of R². `order`: of the interactions that were fitted. `blocks`: the column within
    whose levels residuals were exchanged.
    """

    outcome: str
    scale: str
    n: int
    order: int
    type2: tuple[Effect, ...]
    type3: tuple[Effect, ...]
    no_type3: str | None
    residual_df: int
    residual_ss: float
    total_ss: float
    r2: float
    r2_adjusted: float | None
    lmg: dict[str, float]
    confounded: tuple[Confounded, ...]
    dropped: tuple[str, ...]
    blocks: str | None
    notes: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    def effect(self, term: str) -> Effect | None:
        """The type II effect of a term, given by its name."""
        return next((effect for effect in self.type2 if effect.term == term), None)


def decompose(
    frame: Frame,
    outcome: Outcome,
    factors: Sequence[str],
    order: int = 2,
    blocks: str | None = None,
    permutations: int = PERMUTATIONS,
) -> Decomposition:
    """The decomposition of an outcome of runs over factors that vary.

    The order is lowered where the requested one leaves no residual.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"a": list("xxyy") * 2, "b": list("pqpq") * 2})
    >>> outcome = Outcome("y", "as measured", np.array([1.0, 2, 3, 4, 1, 2, 3, 5]))
    >>> parts = decompose(frame, outcome, ["a", "b"], permutations=0)
    >>> [(effect.term, effect.df, round(effect.ss, 3)) for effect in parts.type2]
    [('a', 1, 10.125), ('b', 1, 3.125), ('a × b', 1, 0.125)]
    """
    values = text_columns(frame, factors)
    notes = [outcome.note] if outcome.note else []
    requested = order = min(order, len(factors))
    layout = lay_out(values, order)
    while order > 1 and layout.n - layout.basis(layout.terms).shape[1] < 1:
        order -= 1
        layout = lay_out(values, order)
    if order < requested:
        notes.append(
            f"terms of order {requested} leave no residual (nothing is replicated), so order "
            f"{order} was fitted, and what is left holds the interactions above it"
        )
    response, layout = weighted(outcome, values, order, layout)
    y = layout.weighted(response - response.mean())
    full = layout.basis(layout.terms)
    mean = layout.basis([])
    residual_df = layout.n - full.shape[1]
    residual = y - full @ (full.T @ y)
    total = float(y @ y - squares(mean, y))
    rss = 0.0 if is_rounding(residual, layout.weighted(response)) else float(residual @ residual)
    groups, dropped = aliases(layout)
    units = units_of(layout, groups, dropped)
    exchange = None if blocks is None else [str(value) for value in frame[blocks]]
    type2 = tuple(
        effect_of(layout, y, unit, layout.without(*unit), rss, residual_df, exchange, permutations)
        for unit in units
    )
    no_type3 = _why_no_type3(values, order, confounded=bool(groups))
    type3: list[Effect] = []
    for unit in [] if no_type3 else units:
        others = [term for term in layout.terms if term not in unit]
        type3.append(effect_of(layout, y, unit, others, rss, residual_df, exchange, 0))
    if residual_df < 1:
        notes.append(
            "the factors fit every run exactly: no residual is left, so nothing can be tested"
        )
    r2_adjusted = None
    if residual_df > 0 and total:
        r2_adjusted = 1 - (rss / residual_df) / (total / (layout.n - 1))
    return Decomposition(
        outcome=outcome.name,
        scale=outcome.scale,
        n=layout.n,
        order=order,
        type2=type2,
        type3=tuple(type3),
        no_type3=no_type3,
        residual_df=residual_df,
        residual_ss=rss,
        total_ss=total,
        r2=1 - rss / total if total else nan,
        r2_adjusted=r2_adjusted,
        lmg=lmg(layout, y, factors),
        confounded=tuple(Confounded(tuple(map(spelled, group)), lost) for group, lost in groups),
        dropped=tuple(map(spelled, dropped)),
        blocks=blocks,
        notes=tuple(notes),
        claims=tuple(
            term_claim(outcome, values, lay_out(values, order), unit, effect.eta.value)
            for unit, effect in zip(units, type2, strict=True)
            if residual_df > 0 and rss > 0
        ),
    )


def _why_no_type3(values: Mapping[str, Sequence[str]], order: int, confounded: bool) -> str | None:
    if order > 1 and not _crossed_fully(values):
        return "cells are empty, so type III compares averages over levels that have no runs"
    return "terms are confounded" if confounded else None


def weighted(
    outcome: Outcome, values: Mapping[str, Sequence[str]], order: int, layout: Layout
) -> tuple[np.ndarray, Layout]:
    """The response [n] that is decomposed and the layout with its weights.

    A rate is decomposed by the working response of its binomial model with all terms of the layout
    and one variance between all runs, as an analysis of variance has one. (With a variance for each
    level, from its few runs, weights become too unlike: F then rejects 14 to 20 % of true
    hypotheses at a level of 5 % where runs differ by 0.4.)
    """
    if outcome.misaligned is None or outcome.counted is None:
        return outcome.values, layout
    levels = np.zeros(len(outcome.values), int)
    model = fit(outcome, layout.basis(layout.terms), levels)
    return model.response, lay_out(values, order, model.weights)


def units_of(
    layout: Layout,
    groups: Sequence[tuple[tuple[Term, ...], tuple[int, ...]]],
    dropped: Sequence[Term],
) -> list[tuple[Term, ...]]:
    """The terms that share a line: each term alone, confounded ones together, dropped ones not."""
    within = {term: group for group, _ in groups for term in group}
    return list(
        dict.fromkeys(within.get(term, (term,)) for term in layout.terms if term not in dropped)
    )


def statistics(
    layout: Layout,
    y: np.ndarray,
    unit: Sequence[Term],
    others: Sequence[Term],
) -> tuple[Any, int, Any, int]:
    """SS and df of a unit adjusted for other terms, then residual SS and df.

    `y`: a weighted outcome [n], or many [n, m].
    """
    added, full = layout.added(list(unit), others), layout.basis(layout.terms)
    return (
        squares(added, y),
        added.shape[1],
        (y * y).sum(axis=0) - squares(full, y),
        layout.n - full.shape[1],
    )


def effect_of(
    layout: Layout,
    y: np.ndarray,
    unit: Sequence[Term],
    others: Sequence[Term],
    rss: float,
    residual_df: int,
    exchange: Sequence[str] | None,
    permutations: int,
) -> Effect:
    """The effect of a unit (terms that cannot be told apart), adjusted for other terms.

    Its sum of squares, F, shares with intervals, and p; also by permutation if `permutations` > 0.
    """
    ss, df, _, _ = statistics(layout, y, unit, others)
    ss = float(ss)
    name = " + ".join(spelled(term) for term in unit)
    if residual_df < 1 or rss <= 0 or df < 1:
        value = ss / (ss + rss) if ss + rss else nan
        eta = MethodEstimate(value, None, None, "noncentral F", "no residual is left")
        return Effect(name, df, ss, nan, None, None, eta, nan)
    mse = rss / residual_df
    f = ss / df / mse
    permuted = (
        permutation_p(layout, y, unit, others, exchange, permutations) if permutations else None
    )
    omega = (ss - df * mse) / (ss + (layout.n - df) * mse)
    return Effect(
        name,
        df,
        ss,
        f,
        f_tail(f, df, residual_df),
        permuted,
        share(ss / (ss + rss), f, df, residual_df, layout.n),
        omega,
    )


def permutation_p(
    layout: Layout,
    y: np.ndarray,
    unit: Sequence[Term],
    others: Sequence[Term],
    exchange: Sequence[str] | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = _SEED,
) -> float:
    """Freedman and Lane's p-value of a unit.

    Weighted residuals of the model without it are exchanged within blocks;
    p = (1 + statistics at least as large)/(1 + draws).
    """
    nuisance = layout.basis(others)
    added = layout.added(list(unit), others)
    full = layout.basis(layout.terms)
    residual = y - nuisance @ (nuisance.T @ y)

    def f(drawn: np.ndarray) -> np.ndarray:
        left = (drawn * drawn).sum(axis=0) - squares(full, drawn)
        return squares(added, drawn) / np.maximum(left, 1e-300)

    observed, larger = float(f(residual[:, None])[0]), 0
    draw = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, permutations, _BATCH):
        rows = exchanged(layout.n, exchange, min(_BATCH, permutations - start), draw)
        larger += int((f(residual[rows].T) >= observed * (1 - 1e-12)).sum())
    return (1 + larger) / (1 + permutations)


def exchanged(
    n: int,
    blocks: Sequence[str] | None,
    draws: int,
    draw: np.random.Generator,
) -> np.ndarray:
    """Row numbers [draws, n], each a permutation that keeps every row in its block."""
    if blocks is None:
        return draw.random((draws, n)).argsort(axis=1)
    codes = np.unique(np.asarray(blocks), return_inverse=True)[1]
    inside = np.argsort(codes, kind="stable")
    shuffled = (draw.random((draws, n)) + codes).argsort(axis=1)
    rows = np.empty((draws, n), int)
    rows[:, inside] = shuffled
    return rows


def lmg(layout: Layout, y: np.ndarray, factors: Sequence[str]) -> dict[str, float]:
    """Each factor's gain in R², averaged over all orders in which main effects may enter.

    The shares add up to the main effects' R². Eight factors at most.
    """
    names = list(factors)[:8]
    total = float(y @ y - squares(layout.basis([]), y))
    if not total:
        return {}
    mean = squares(layout.basis([]), y)
    r2 = {
        chosen: float(squares(layout.basis([(name,) for name in chosen]), y) - mean) / total
        for size in range(len(names) + 1)
        for chosen in combinations(names, size)
    }
    averages = {}
    for name in names:
        others = [other for other in names if other != name]
        gains = []
        for size in range(len(others) + 1):
            weight = factorial(size) * factorial(len(names) - size - 1) / factorial(len(names))
            for before in combinations(others, size):
                after = tuple(other for other in names if other in before or other == name)
                gains.append(weight * (r2[after] - r2[before]))
        averages[name] = sum(gains)
    return averages


def _crossed_fully(values: Mapping[str, Sequence[str]]) -> bool:
    cells = set(zip(*values.values(), strict=True))
    return len(cells) == int(np.prod([len(set(levels)) for levels in values.values()]))
