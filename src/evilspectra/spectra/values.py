"""Singular values of scale·B·A without the d × d product.

With the Grams G_A = A·Aᵀ and G_B = Bᵀ·B (r × r) and the Cholesky factor L·Lᵀ = G_A, the singular
values of B·A are the square roots of the eigenvalues of H = Lᵀ·G_B·L: 2r²(d_in + d_out) flops and
an r × r eigenproblem, in float64. A is factored rather than B: it is drawn with full rank, while B
starts at zero. A Gram squares condition numbers: where κ* = ‖A‖·‖B‖/σ_r(BA), which is at least
max(κ(A), κ(B), κ(BA)), exceeds `GRAM_LIMIT`, the factors go through QR instead (B = Q_B·R_B, Aᵀ =
Q_A·R_A: the values are those of R_B·R_Aᵀ), and the result says so.

Eigenvalues of all pairs of one rank are found in one batched call. Either route has an absolute
error of about ε·‖A‖·‖B‖, the Gram route its square root at worst; a value below that is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evilspectra.spectra.grams import Grams, Group, cancellation, enqueue, is_zero, root, wide
from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.peft_files import Part

#: κ* beyond which Grams in float64 lose more than about 3e-7 (ε·κ*²/2) of the smallest value.
GRAM_LIMIT = 5e4
Route = Literal["gram", "qr", "zero"]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one pair: float64 on the CPU, descending, min(r, d_in, d_out) of them.

    `route`: gram, qr or zero. `part`: whether they are ΔW's ("delta") or those of scale·B·A alone
    ("BA only").
    """

    name: str
    values: Tensor
    route: Route
    part: Part = "delta"


@torch.no_grad()
def singular_values(pairs: Sequence[LoraPair], grams: Grams | None = None) -> list[Spectrum]:
    """Computes the singular values of scale·B·A of each pair, in the order given.

    Args:
        pairs: A: r × d_in and B: d_out × r, any mix of shapes, ranks, number types and devices.
        grams: what `enqueue(pairs)` returned, where the products were started earlier.

    Returns:
        A `Spectrum` per pair: min(r, d_in, d_out) values in float64 on the CPU, descending, in the
        units of ΔW, with an absolute error of about ε·‖A‖·‖B‖ (√ε at worst for the smallest ones).

    Raises:
        BadInput: a factor holds a value that is not finite; the message names the module.

    Source of what is measured: Evil Spectra (arXiv 2606.31591).

    >>> pair = LoraPair("m", torch.eye(2, 3), 2 * torch.eye(4, 2), scale=0.5)
    >>> singular_values([pair])[0].values
    tensor([1., 1.], dtype=torch.float64)
    """
    spectra: dict[int, Spectrum] = {}
    for group in (grams or enqueue(pairs)).result():
        values, easy = by_gram(group)
        for index, sigma, gram, extreme in zip(
            group.positions, values.unbind(0), easy.tolist(), group.extreme.tolist(), strict=True
        ):
            pair = pairs[index]
            k, route = min(pair.shape), "gram"
            if extreme and is_zero(pair):
                sigma, route = torch.zeros(k, dtype=torch.float64), "zero"
            elif not gram or k < len(sigma):
                sigma, route = by_qr(pair), "qr"
            spectra[index] = Spectrum(pair.name, abs(pair.scale) * sigma, route, pair.part)
    return [spectra[index] for index in range(len(pairs))]


def by_gram(group: Group) -> tuple[Tensor, Tensor]:
    """(n × r values, descending; n: whether they are exact enough)."""
    lower, there = root(group.down)
    squares = torch.linalg.eigvalsh(lower.mT @ group.up @ lower)
    easy = (
        (cancellation(group.down, group.up, squares[:, 0]) <= GRAM_LIMIT) & there & ~group.extreme
    )
    return squares.clamp_min(0).sqrt().flip(-1), easy


def by_qr(pair: LoraPair) -> Tensor:
    """The min(r, d_in, d_out) values of B·A (no scale) through QR of both factors, on the CPU.

    Each factor is scaled to a largest entry of 1 meanwhile.
    """
    (down, a), (up, b) = unit(pair.A), unit(pair.B)
    core = torch.linalg.qr(up, mode="r").R @ torch.linalg.qr(down.mT, mode="r").R.mT
    return (torch.linalg.svdvals(core)[: min(pair.shape)] * a * b).cpu()


def unit(factor: Tensor) -> tuple[Tensor, Tensor]:
    """A factor in float64 divided by its largest entry (by 1 where it is 0), and that entry."""
    factor = wide(factor)
    size = factor.abs().amax()
    size = torch.where(size > 0, size, 1.0)
    return factor / size, size
