"""ΔW beside the base weight W: how large it is, and whether it brings directions in that W does not have.

Intruder dimensions (Shuttleworth et al. 2024, LoRA vs Full Fine-tuning: An Illusion of Equivalence, arXiv 2410.21228): a leading
left singular vector u of W + ΔW is an intruder where max over all left singular vectors w of W of |uᵀw| is below a threshold. Here
the `k` leading ones are looked at, 10 unless told otherwise, with a threshold of 0.5; the number depends on both, so neither is a fact about the adapter alone.

Needs W whole, and its dense SVD in float64, module by module; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evilspectra.errors import BadInput
from evilspectra.spectra.values_numpy import Directions, Matrix

LEADING = 10
THRESHOLD = 0.5


@dataclass(frozen=True)
class Beside:
    """One module beside its base weight: ‖ΔW‖_F/‖W‖_F, σ₁(ΔW)/σ₁(W), and how many of the `k` leading left singular vectors of W + ΔW are intruders.

    `similarities`: for each of those k, its largest |cosine| with a singular vector of W.
    """

    module: str
    frobenius: float
    spectral: float
    intruders: int
    k: int
    threshold: float
    similarities: tuple[float, ...]


def beside(
    name: str,
    base: Matrix,
    change: Matrix,
    k: int = LEADING,
    threshold: float = THRESHOLD,
) -> Beside:
    """Compares a change with the weight that it is added to.

    Args:
        base, change: W and ΔW, d_out × d_in, float64.

    Raises:
        BadInput: the shapes differ, or W holds a value that is not finite or is zero.

    >>> beside("m", np.diag([2.0, 1.0]), np.diag([0.0, 3.0]), k=1).similarities
    (1.0,)
    """
    if base.shape != change.shape:
        raise BadInput(
            f"the base weight of {name} is {base.shape[0]} × {base.shape[1]}, its update {change.shape[0]} × {change.shape[1]}: name the base that the adapter was trained on"
        )
    if not np.isfinite(base).all() or not base.any():
        raise BadInput(
            f"the base weight of {name} is zero, or holds a value that is not finite: the base is damaged"
        )
    known, values, _ = np.linalg.svd(base, full_matrices=False)
    k = min(k, len(values))
    leading = leading_left(base + change, k)
    similarities = np.abs(known.T @ leading).max(axis=0)
    size = np.linalg.norm(change, 2) if change.any() else 0.0
    return Beside(
        name,
        float(np.linalg.norm(change) / np.linalg.norm(base)),
        float(size / values[0]),
        int((similarities < threshold).sum()),
        k,
        threshold,
        tuple(min(1.0, float(one)) for one in similarities),
    )


def leading_left(matrix: Matrix, k: int) -> Matrix:
    """The k leading left singular vectors, d_out × k."""
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :k]


def product(found: Directions) -> Matrix:
    """ΔW whole, d_out × d_in."""
    return (found.left * found.values) @ found.right.T


def dora_change(found: Directions, magnitude: Matrix, base: Matrix) -> Matrix:
    """ΔW = m ⊙ (W + scale·B·A)/‖W + scale·B·A‖ − W of a DoRA module; norms are those of rows. Source: arXiv 2402.09353, as PEFT computes it."""
    moved = base + product(found)
    return magnitude.reshape(-1, 1) * moved / np.linalg.norm(moved, axis=1, keepdims=True) - base
