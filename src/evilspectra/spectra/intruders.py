"""ΔW against the base weight W: its size, and the directions that it adds to those of W.

Intruder dimensions (Shuttleworth et al. 2024, LoRA vs Full Fine-tuning: An Illusion of Equivalence,
arXiv 2410.21228): a leading left singular vector u of W + ΔW is an intruder where max over all left
singular vectors w of W of |uᵀw| is below a threshold. Here the `k` leading ones are examined, 10 by
default, with a threshold of 0.5; the number of intruders depends on both settings, so it is not a
property of the adapter alone.

Needs all of W, and its dense SVD in float64, module by module; no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evilspectra.errors import BadInput
from evilspectra.spectra.values_numpy import Matrix

LEADING = 10
THRESHOLD = 0.5


@dataclass(frozen=True)
class BaseComparison:
    """One module's update against its base weight.

    `frobenius`: ‖ΔW‖_F/‖W‖_F; `spectral`: σ₁(ΔW)/σ₁(W); `intruders`: how many of the `k` leading
    left singular vectors of W + ΔW are intruders; `similarities`: for each of those k, its largest
    |cosine| with a singular vector of W.
    """

    module: str
    frobenius: float
    spectral: float
    intruders: int
    k: int
    threshold: float
    similarities: tuple[float, ...]


def compare_with_base(
    name: str,
    base: Matrix,
    change: Matrix,
    k: int = LEADING,
    threshold: float = THRESHOLD,
) -> BaseComparison:
    """Compares a change with the weight that it is added to.

    Args:
        name: of the module.
        base: W, d_out × d_in, float64.
        change: ΔW, of the same shape.
        k: leading directions of W + ΔW to look at.
        threshold: |cosine| below which a direction is an intruder.

    Raises:
        BadInput: W holds a value that is not finite, or is zero.

    >>> compare_with_base("m", np.diag([2.0, 1.0]), np.diag([0.0, 3.0]), k=1).similarities
    (1.0,)
    """
    if not np.isfinite(base).all() or not base.any():
        raise BadInput(
            f"the base weight of {name} is zero, or holds a value that is not finite: "
            "the base is damaged; download or save it again"
        )
    left, values, _ = np.linalg.svd(base, full_matrices=False)
    k = min(k, len(values))
    similarities = np.abs(left.T @ leading_left(base + change, k)).max(axis=0)
    size = np.linalg.norm(change, 2) if change.any() else 0.0
    return BaseComparison(
        name,
        float(np.linalg.norm(change) / np.linalg.norm(base)),
        float(size / values[0]),
        int((similarities < threshold).sum()),
        k,
        threshold,
        tuple(min(1.0, float(similarity)) for similarity in similarities),
    )


def leading_left(matrix: Matrix, k: int) -> Matrix:
    """The k leading left singular vectors, d_out × k."""
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :k]
