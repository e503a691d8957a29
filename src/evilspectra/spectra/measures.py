"""Measures of a spectrum: pure functions of singular values σ₁ ≥ … ≥ σ_k ≥ 0 on the last axis.

All are invariant to the scale of σ. A spectrum of zeros has none of them: the result is NaN.
Source: Evil Spectra (arXiv 2606.31591), its spectral measures.

| measure | formula | one direction | flat |
|---|---|---|---|
| stable rank | Σσ²/σ₁² | 1 | k |
| spectral entropy | −Σ p ln p, p = σ/Σσ | 0 | ln k |
| condition number | σ₁/σ_k | ∞ | 1 |
| Frobenius/nuclear ratio | √Σσ²/Σσ | 1 | 1/√k |
| effective rank | exp(spectral entropy) | 1 | k |
| participation ratio | (Σσ²)²/Σσ⁴ | 1 | k |
| energy share | Σ_{i≤t} σᵢ²/Σσ² | 1 | t/k |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
#: How many of the largest values `energy_share` counts by default.
TOP = 4


def _scaled(sigma: ArrayLike) -> Values:
    """σ/σ₁, so that no square over- or underflows; NaN if σ₁ = 0."""
    values = np.asarray(sigma, dtype=np.float64)
    largest = values.max(axis=-1, keepdims=True)
    return values / np.where(largest > 0, largest, np.nan)


def frobenius(sigma: ArrayLike) -> Values:
    """√Σσ², the Frobenius norm; shape (..., k) → (...).

    >>> float(frobenius([3.0, 4.0]))
    5.0
    """
    return np.linalg.norm(np.asarray(sigma, dtype=np.float64), axis=-1)


def stable_rank(sigma: ArrayLike) -> Values:
    """Σσ²/σ₁², between 1 and k; shape (..., k) → (...).

    >>> float(stable_rank([2.0, 2.0, 2.0]))
    3.0
    """
    return np.square(_scaled(sigma)).sum(axis=-1)


def spectral_entropy(sigma: ArrayLike) -> Values:
    """−Σ p ln p with p = σ/Σσ, between 0 and ln k, in nats; shape (..., k) → (...).

    >>> round(float(spectral_entropy([1.0, 1.0])), 6)
    0.693147
    """
    scaled = _scaled(sigma)
    share = scaled / scaled.sum(axis=-1, keepdims=True)
    return -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1) + 0.0


def condition_number(sigma: ArrayLike) -> Values:
    """σ₁/σ_k, at least 1, infinite where σ_k = 0; shape (..., k) → (...).

    >>> float(condition_number([4.0, 2.0]))
    2.0
    """
    with np.errstate(divide="ignore", over="ignore"):
        return 1.0 / _scaled(sigma).min(axis=-1)


def frobenius_nuclear(sigma: ArrayLike) -> Values:
    """√Σσ²/Σσ, between 1/√k (flat) and 1 (one direction); shape (..., k) → (...).

    >>> float(frobenius_nuclear([1.0, 1.0, 1.0, 1.0]))
    0.5
    """
    scaled = _scaled(sigma)
    return np.linalg.norm(scaled, axis=-1) / scaled.sum(axis=-1)


def effective_rank(sigma: ArrayLike) -> Values:
    """exp of the spectral entropy, between 1 and k; shape (..., k) → (...).

    Source: Roy and Vetterli, The effective rank (EUSIPCO 2007).

    >>> round(float(effective_rank([1.0, 1.0, 0.0])), 6)
    2.0
    """
    return np.exp(spectral_entropy(sigma))


def participation_ratio(sigma: ArrayLike) -> Values:
    """(Σσ²)²/Σσ⁴, between 1 and k, how many directions carry the energy; shape (..., k) → (...).

    >>> float(participation_ratio([2.0, 2.0, 0.0]))
    2.0
    """
    squares = np.square(_scaled(sigma))
    return np.square(squares.sum(axis=-1)) / np.square(squares).sum(axis=-1)


def energy_share(sigma: ArrayLike, top: int = TOP) -> Values:
    """Share of the energy Σσ² in the `top` largest values; shape (..., k) → (...).

    It lies between min(top, k)/k and 1.

    Raises:
        ValueError: `top` is less than 1.

    >>> float(energy_share([2.0, 1.0, 1.0, 1.0, 1.0], top=1))
    0.5
    """
    if top < 1:
        raise ValueError(f"top = {top}: at least one value must be counted")
    squares = np.square(_scaled(sigma))
    return squares[..., :top].sum(axis=-1) / squares.sum(axis=-1)
