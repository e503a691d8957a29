"""Rates as counts: a bias-reduced binomial model with a spread between runs of its own per level.

Run i has k_i misaligned of m_i counted answers, logit p_i = x_iᵀβ + b_i, and b_i has the variance
τ_g² of the run's level g. With w = m·p·(1 − p), u = w/(1 + τ_g²·w) (Williams 1982) and h the
leverages of the weighted model, β solves Firth's (1993) estimating equation

    Σ x_i·[(u_i/w_i)·(k_i − m_i·p_i) + h_i·(½ − p_i)] = 0,

and τ_g² is the root of Σ_{i in g} u_i·r_i² = Σ_{i in g} (1 − h_i), r = (k − m·p)/w being the
working residual (Paule and Mandel 1982), or 0 where the left side is smaller already. So a level
whose runs agree better than binomial sampling lets them is not believed beyond it, a run without a
misaligned answer stays finite, and the number of its answers moves nothing but its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Rounds of the outer iteration, between β and τ².
_ROUNDS = 12
#: Newton's steps for β, and the longest one, on the logit scale.
_STEPS, _LONGEST = 60, 4.0
_HALVINGS = 40
#: Logits beyond this are not told apart.
_FURTHEST = 30.0


@dataclass(frozen=True)
class CountsFit:
    """The model of n runs with k columns and L levels.

    `coefficients` [k]; `weights` u [n]; `fitted`: logits [n]; `residuals`: working residuals r [n];
    `between`: τ² by level [L].
    """

    coefficients: np.ndarray
    weights: np.ndarray
    fitted: np.ndarray
    residuals: np.ndarray
    between: np.ndarray

    @property
    def response(self) -> np.ndarray:
        """The working response [n]: the fitted logits and the working residuals."""
        return self.fitted + self.residuals


def fit_counts(
    misaligned: np.ndarray,
    counted: np.ndarray,
    columns: np.ndarray,
    levels: np.ndarray,
    sampling: bool = False,
) -> CountsFit:
    """Fit the model to counts [n] over columns [n, k] of full rank and levels [n], numbered from 0.

    `sampling`: τ² stays 0, so that weights are those of binomial sampling alone and the spread of
    the working residuals is all that there is between runs.

    >>> fit = fit_counts(np.zeros(2), np.array([10.0, 400]), np.ones((2, 1)), np.zeros(2, int))
    >>> fit.coefficients.round(2).tolist(), fit.between.tolist()
    ([-6.71], [0.0])
    """
    between = np.zeros(int(levels.max()) + 1)
    start = np.log((misaligned + 0.5) / (counted - misaligned + 0.5))
    beta = np.linalg.lstsq(columns, start, rcond=None)[0]
    fitted, w, u, h, r, _ = _parts(misaligned, counted, columns, between[levels], beta)
    for _ in range(_ROUNDS):
        beta = _solve(misaligned, counted, columns, between[levels], beta)
        fitted, w, u, h, r, _ = _parts(misaligned, counted, columns, between[levels], beta)
        updated = np.array(
            [
                _between(
                    w[levels == level], r[levels == level], float((1 - h[levels == level]).sum())
                )
                for level in range(len(between))
            ]
        )
        if sampling or np.allclose(updated, between, rtol=1e-6, atol=1e-9):
            break
        between = updated
    return CountsFit(beta, u, fitted, r, between)


def _parts(
    misaligned: np.ndarray,
    counted: np.ndarray,
    columns: np.ndarray,
    between: np.ndarray,
    beta: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fitted logits, w, u, leverages, working residuals, and the inverse of the information."""
    fitted = np.clip(columns @ beta, -_FURTHEST, _FURTHEST)
    rate = 1 / (1 + np.exp(-fitted))
    w = np.maximum(counted * rate * (1 - rate), 1e-300)
    u = w / (1 + between * w)
    inverse = np.linalg.pinv(columns.T @ (columns * u[:, None]), hermitian=True)
    leverages = u * ((columns @ inverse) * columns).sum(axis=1)
    return fitted, w, u, leverages, (misaligned - counted * rate) / w, inverse


def _solve(
    misaligned: np.ndarray,
    counted: np.ndarray,
    columns: np.ndarray,
    between: np.ndarray,
    beta: np.ndarray,
) -> np.ndarray:
    """The coefficients for given τ² of each run."""
    for _ in range(_STEPS):
        fitted, _, u, h, r, inverse = _parts(misaligned, counted, columns, between, beta)
        rate = 1 / (1 + np.exp(-fitted))
        score = columns.T @ (u * r + h * (0.5 - rate))
        step = inverse @ score
        longest = float(np.abs(step).max(initial=0.0))
        beta = beta + step * min(1.0, _LONGEST / max(longest, 1e-300))
        if longest < 1e-9:
            break
    return beta


def _between(w: np.ndarray, residuals: np.ndarray, df: float) -> float:
    """τ² of one level, so that its weighted squares are as large as their degrees of freedom."""

    def surplus(between: float) -> float:
        return float((w / (1 + between * w) * residuals**2).sum()) - df

    if df < 1e-6 or surplus(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while surplus(high) > 0 and high < 1e9:
        high *= 4
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return high
