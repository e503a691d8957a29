"""Overlap of the directions that two adapters change: principal angles of their leading subspaces.

For U₁, U₂ (d × k, orthonormal: the k leading left, or right, singular vectors of two updates) the
singular values of U₁ᵀ·U₂ are the cosines of the principal angles θ (Björck and Golub, 1973).
`overlap` = Σcos²θ/k is 1 where the subspaces are the same, 0 where they are orthogonal, and k/d on
average for random ones. The vectors come from QR of the factors: nothing of size d × d.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evilspectra.errors import BadInput
from evilspectra.spectra.peft_files import Module
from evilspectra.spectra.values_numpy import Directions, Matrix, orthogonal


@dataclass(frozen=True)
class Overlap:
    """One module in two adapters: `k` leading directions of each compared.

    `output`, `input`: the overlap on either side; `output_angle`, `input_angle`: the smallest
    angle, in degrees; `cosine`: that of the two updates as vectors.
    `chance`: what random subspaces would have on the output and on the input side.
    """

    module: str
    k: int
    output: float
    input: float
    output_angle: float
    input_angle: float
    cosine: float
    chance: tuple[float, float]


def overlap(module: Module, other: Module, k: int) -> Overlap | None:
    """The overlap of the `k` leading directions of a module in two adapters.

    Fewer directions are compared where an update has fewer; None if an update is zero.

    Raises:
        BadInput: the two adapt matrices of different shapes, or a factor is not finite.
    """
    if module.shape[1:] != other.shape[1:]:
        raise BadInput(
            f"{module.name} is {module.shape[2]} × {module.shape[1]} in one adapter and "
            f"{other.shape[2]} × {other.shape[1]} in another: they belong to different bases; "
            "compare adapters of one base"
        )
    first, second = orthogonal(module), orthogonal(other)
    k = min(k, rank(first.values), rank(second.values))
    if k == 0:
        return None
    cosines = [
        principal_cosines(getattr(first, side)[:, :k], getattr(second, side)[:, :k])
        for side in ("left", "right")
    ]
    shares = [float(np.square(side).sum() / k) for side in cosines]
    angles = [float(np.degrees(np.arccos(min(1.0, side[0])))) for side in cosines]
    _, d_in, d_out = module.shape
    return Overlap(
        module.name,
        k,
        shares[0],
        shares[1],
        angles[0],
        angles[1],
        _cosine(first, second),
        (k / d_out, k / d_in),
    )


def principal_cosines(basis: Matrix, other: Matrix) -> Matrix:
    """Cosines of the principal angles between the columns' spans, descending.

    Both matrices are d × k with orthonormal columns.

    >>> principal_cosines(np.eye(3)[:, :2], np.eye(3)[:, 1:]).tolist()
    [1.0, 0.0]
    """
    return np.asarray(np.linalg.svd(basis.T @ other, compute_uv=False), dtype=np.float64)


def rank(values: Matrix) -> int:
    """How many singular values are more than rounding.

    >>> rank(np.array([1.0, 1e-3, 1e-17])), rank(np.zeros(2))
    (2, 0)
    """
    return int((values > len(values) * np.finfo(np.float64).eps * values[0]).sum())


def _cosine(first: Directions, second: Directions) -> float:
    """⟨ΔW₁, ΔW₂⟩/(‖ΔW₁‖·‖ΔW₂‖), Frobenius: tr(V₁·S₁·U₁ᵀ·U₂·S₂·V₂ᵀ), made of k × k matrices."""
    a, b = (side.values / np.linalg.norm(side.values) for side in (first, second))
    return float(
        np.sum((a[:, None] * (first.left.T @ second.left)) * (b * (first.right.T @ second.right)))
    )
