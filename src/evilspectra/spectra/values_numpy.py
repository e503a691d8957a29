"""Singular values of scale·B·A directly from mapped files, one module after the other; no torch.

The routes and the limit between them are those of `values.py`: float64 Grams G_A = A·Aᵀ, G_B =
Bᵀ·B, eigenvalues of Lᵀ·G_B·L where κ* = ‖A‖·‖B‖/σ_r is at most `GRAM_LIMIT` (L·Lᵀ = G_A), QR of
both factors otherwise. The Grams are summed over blocks of the long sides, so a factor is never
whole in memory; QR takes both factors of one module in float64. Importing torch takes longer than
computing the spectra of most adapters, hence this second implementation; tests check that the two
agree.

`orthogonal` gives the singular vectors as well, through QR, for code that compares or rewrites
directions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from evilspectra.errors import BadInput
from evilspectra.spectra.peft_files import Factor, Module, Part

Matrix = NDArray[np.float64]
Result = TypeVar("Result")
#: As in `values.py`: κ* beyond which Grams in float64 lose more than about 3e-7 (ε·κ*²/2) of the
#: smallest value.
GRAM_LIMIT = 5e4
#: Modules under way at once. Each works on small matrices, which a BLAS with several threads of its
#: own makes slower, 40 times so beside other processes: the command line therefore asks for one
#: (`cli/adapters.py`).
MOST_WORKERS = 4
#: As in `grams.py`: traces outside of this range come from factors that are zero, or whose squares
#: lose digits in float64.
SMALLEST, LARGEST = 1e-200, 1e200


@dataclass(frozen=True)
class StreamedSpectrum:
    """Singular values of one module, descending, min(r, d_in, d_out) of them.

    `route` and `part` as in `values.Spectrum`.
    """

    module: Module
    values: Matrix
    route: Literal["gram", "qr", "zero"]
    part: Part


class Directions(NamedTuple):
    """ΔW = left·diag(values)·rightᵀ: d_out × k, k and d_in × k.

    Columns are orthonormal, values descend; |scale| is in them, its sign in `left`.
    """

    left: Matrix
    values: Matrix
    right: Matrix

    def product(self) -> Matrix:
        """Multiplies ΔW out, d_out × d_in."""
        return (self.left * self.values) @ self.right.T


def streamed_values(modules: Iterable[Module]) -> Iterator[StreamedSpectrum]:
    """Spectra of modules, in the order given; a few are computed at once.

    Raises:
        BadInput: a factor holds a value that is not finite, or its product leaves float64; the
            message names the module.
    """
    return side_by_side(streamed_spectrum, modules)


def side_by_side(
    compute: Callable[[Module], Result], modules: Iterable[Module]
) -> Iterator[Result]:
    """Yields the result of `compute` for each module, in the order given.

    A few are computed at once; the first error ends it.
    """
    pool = ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1))
    try:
        yield from pool.map(compute, modules)
    finally:
        pool.shutdown(cancel_futures=True)


def streamed_spectrum(module: Module) -> StreamedSpectrum:
    """The spectrum of one module; errors as above."""
    values, route = _values(module)
    with np.errstate(over="ignore"):
        values = abs(module.scale) * values
    if not np.isfinite(values).all():
        raise BadInput(
            f"the singular values of {module.name} are larger than float64 holds: the adapter is "
            "damaged or training diverged; use an earlier checkpoint"
        )
    return StreamedSpectrum(module, values, route, module.part)


def orthogonal(module: Module) -> Directions:
    """The singular vectors and values of scale·B·A, by QR of both factors: nothing of size d × d.

    Raises:
        BadInput: a factor holds a value that is not finite.
    """
    down, a = _unit(module.down, "A", module.name)
    up, b = _unit(module.up, "B", module.name)
    right, lower = np.linalg.qr(down.T)
    left, upper = np.linalg.qr(up)
    u, values, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
    k = min(module.shape)
    sign = -1.0 if module.scale < 0 else 1.0
    return Directions(
        sign * (left @ u[:, :k]),
        abs(module.scale) * (values[:k] * a * b),
        right @ v[:k].T,
    )


def _values(module: Module) -> tuple[Matrix, Literal["gram", "qr", "zero"]]:
    r, k = module.shape[0], min(module.shape)
    if k == r:
        with np.errstate(over="ignore", invalid="ignore"):
            down, up = _gram(module.down, axis=1), _gram(module.up, axis=0)
        for name, gram, factor in (("A", down, module.down), ("B", up, module.up)):
            if not np.isfinite(gram).all():
                _refuse_non_finite(factor, name, module.name)
        if _is_zero(down, module.down) or _is_zero(up, module.up):
            return np.zeros(k), "zero"
        if (values := _by_gram(down, up)) is not None:
            return values, "gram"
    values = _by_qr(module)
    return values, "qr" if values.any() else "zero"


def _gram(factor: Factor, axis: int) -> Matrix:
    """A·Aᵀ (axis 1) or Bᵀ·B (axis 0) in float64."""
    r = factor.entry.shape[1 - axis]
    total = np.zeros((r, r))
    for block in factor.blocks(axis):
        total += block @ block.T if axis else block.T @ block
    return total


def _is_zero(gram: Matrix, factor: Factor) -> bool:
    """Whether a factor is zero throughout; a Gram may be zero because squares underflow."""
    return not gram.any() and not factor.wide().any()


def _by_gram(down: Matrix, up: Matrix) -> Matrix | None:
    """The values of B·A, descending; None if the Grams do not resolve them."""
    if not all(SMALLEST < np.trace(gram) < LARGEST for gram in (down, up)):
        return None
    try:
        lower = np.linalg.cholesky(down)
        squares = np.linalg.eigvalsh(lower.T @ up @ lower)
    except np.linalg.LinAlgError:
        return None
    size = np.prod([min(np.linalg.norm(gram), np.abs(gram).sum(1).max()) for gram in (down, up)])
    if squares[0] <= 0 or np.sqrt(size / squares[0]) > GRAM_LIMIT:
        return None
    return np.sqrt(squares)[::-1]


def _by_qr(module: Module) -> Matrix:
    down, a = _unit(module.down, "A", module.name)
    up, b = _unit(module.up, "B", module.name)
    upper = np.asarray(np.linalg.qr(up, mode="r"))
    lower = np.asarray(np.linalg.qr(down.T, mode="r"))
    values = np.linalg.svd(upper @ lower.T, compute_uv=False)[: min(module.shape)]
    with np.errstate(over="ignore"):
        return np.asarray(values * a * b, dtype=np.float64)


def _unit(factor: Factor, name: str, module: str) -> tuple[Matrix, float]:
    """A factor in float64 divided by its largest entry (by 1 where it is 0), and that entry."""
    values = factor.wide()
    size = float(np.abs(values).max())
    if not np.isfinite(size):
        _refuse_non_finite(factor, name, module)
    size = size or 1.0
    return values / size, size


def _refuse_non_finite(factor: Factor, name: str, module: str) -> None:
    if not np.isfinite(factor.wide()).all():
        raise BadInput(
            f"factor {name} of {module} holds a value that is not finite: the adapter is damaged "
            "or training diverged; use an earlier checkpoint"
        )
