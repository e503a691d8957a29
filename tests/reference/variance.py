"""Slow, obvious twins of the analysis of variance.

Type III from cell means, LMG over all orders of entry, ω² by its definition, λ by root search.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from scipy import stats
from scipy.optimize import brentq


def type3_by_cell_means(
    y: np.ndarray, a: Sequence[str], b: Sequence[str]
) -> tuple[float, float, float]:
    """SS of A, B and A × B as hypotheses on the table of cell means (Searle 1987).

    They are equal unweighted row means, equal unweighted column means, no interaction contrast.
    """
    rows, columns = sorted(set(a)), sorted(set(b))
    cells = [
        [y[[i for i in range(len(y)) if a[i] == row and b[i] == column]] for column in columns]
        for row in rows
    ]
    means = np.array([cell.mean() for line in cells for cell in line])
    counts = np.array([len(cell) for line in cells for cell in line], float)

    def hypothesis(contrasts: np.ndarray) -> float:
        """(C m)' [C diag(1/n) C']⁻¹ (C m)"""
        difference = contrasts @ means
        return float(
            difference @ np.linalg.solve(contrasts @ np.diag(1 / counts) @ contrasts.T, difference)
        )

    def differences(k: int) -> np.ndarray:
        return np.hstack([np.eye(k - 1), -np.ones((k - 1, 1))])

    flat = [np.full((1, k), 1 / k) for k in (len(rows), len(columns))]
    return (
        hypothesis(np.kron(differences(len(rows)), flat[1])),
        hypothesis(np.kron(flat[0], differences(len(columns)))),
        hypothesis(np.kron(differences(len(rows)), differences(len(columns)))),
    )


def sse(y: np.ndarray, *factors: Sequence[str]) -> float:
    """Residual sum of squares of main effects, by dummy columns and least squares."""
    columns = [
        np.ones(len(y)),
        *(
            np.array([value == level for value in factor], float)
            for factor in factors
            for level in sorted(set(factor))
        ),
    ]
    x = np.stack(columns, axis=1)
    return float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).sum())


def lmg_by_orders(y: np.ndarray, factors: dict[str, Sequence[str]]) -> dict[str, float]:
    """Each factor's gain in R², averaged over every order of entry."""
    total, gains = sse(y), dict.fromkeys(factors, 0.0)
    orders = list(permutations(factors))
    for order in orders:
        for position, name in enumerate(order):
            before, after = (
                sse(y, *(factors[factor] for factor in order[:end]))
                for end in (position, position + 1)
            )
            gains[name] += (before - after) / total / len(orders)
    return gains


def omega_by_definition(
    ss: float,
    df: int,
    rss: float,
    residual_df: int,
    n: int,
) -> float:
    """Estimated variance of the effect over that plus the error's: σ̂²_effect = df·(MS − MSE)/n."""
    mse = rss / residual_df
    effect = df * (ss / df - mse) / n
    return effect / (effect + mse)


def noncentrality_by_root(
    f: float,
    df1: int,
    df2: int,
    probability: float,
) -> float:
    """λ by Brent's method on scipy's noncentral F."""
    if stats.f.cdf(f, df1, df2) <= probability:
        return 0.0

    def excess(size: float) -> float:
        return float(stats.ncf.cdf(f, df1, df2, size)) - probability

    return float(brentq(excess, 1e-9, 10 * df1 * (f + 1) + 200, xtol=1e-10))
