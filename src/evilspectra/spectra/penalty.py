"""A penalty on spectra that are not flat, and its gradient in closed form.

B·A has k = min(r, d_in, d_out) singular values σ. With F = √Σσ², N = Σσ, p = σ/N, S = −Σ p ln p
and P = (Σσ²)²/Σσ⁴, each R is 0 where all σ are equal:

| measure | R | its derivative g = ∂R/∂σ | one direction |
|---|---|---|---|
| frobenius_nuclear | F/N − 1/√k | σ/(F·N) − F/N² | 1 − 1/√k |
| entropy | ln k − S | (ln p + S)/N | ln k |
| participation | 1 − P/k | (4/k)·Σσ²/Σσ⁴·(σ³·Σσ²/Σσ⁴ − σ) | 1 − 1/k |

With G_A = A·Aᵀ = L·Lᵀ, G_B = Bᵀ·B, H = Lᵀ·G_B·L = Q·σ²·Qᵀ, and U, V the singular vectors of B·A:

    ∇_B R = U·g·Vᵀ·Aᵀ = B·K_B,   K_B = L·Q·(g/σ)·Qᵀ·Lᵀ
    ∇_A R = Bᵀ·U·g·Vᵀ = K_A·A,   K_A = L^{-T}·Q·(g·σ)·Qᵀ·L^{-1}

with r × r matrices K. It needs no data, hence no backward pass: it is added to `.grad` once per
optimiser step, whatever accumulation, data-parallel size and loss scaling are, or subtracted from
the factors in a separate step, like decoupled weight decay.

Every singular value has the same weight in ∇N however small it is, so the r × r algebra is in
float64, the Grams too wherever float32 would matter, and where the Grams are too ill-conditioned
for the smallest values the factors go through QR: with B = Q_B·R_B, Aᵀ = Q_A·R_A and R_B·R_Aᵀ =
U·σ·Vᵀ,

    ∇_B R = Q_B·U·g·Vᵀ·R_A        ∇_A R = R_Bᵀ·U·g·Vᵀ·Q_Aᵀ

Source of R: Evil Spectra (arXiv 2606.31591), spectral regularisation (frobenius_nuclear).
Differences from the paper's recipe (`recipe="paper"`, in `paper.py`): no jitter, no inversion of
the Gram of the singular factor B, float64. At B·A = 0 both value and gradient are defined as 0; a
direction in which B·A vanishes to float64 precision has no gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from evilspectra.spectra.grams import Grams, enqueue
from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.penalty_terms import Measure, Recipe, Term, penalty_terms

Products = Literal["float64", "float32"]


@dataclass(frozen=True)
class Flatness:
    """The penalty at one point.

    `value`: mean over modules of R; `std` (population), `smallest`, `largest`: its spread over
    them; `penalty`: weight × mean of soft start × R; `routes`: how many modules went which way
    (gram, qr, zero; under the paper's recipe: plain, jitter, skipped).
    """

    value: float
    penalty: float
    std: float = 0.0
    smallest: float = 0.0
    largest: float = 0.0
    routes: Mapping[str, int] = field(default_factory=dict)


@torch.no_grad()
def add_flatness_gradient(
    pairs: Sequence[LoraPair],
    weight: float,
    soft_start: float = 0.0,
    *,
    measure: Measure = "frobenius_nuclear",
    recipe: Recipe = "exact",
    products: Products = "float32",
    grams: Grams | None = None,
) -> Flatness:
    """Adds weight·∇(mean over pairs of c·R) to `.grad` of every factor that requires one.

    c = min(1, ‖BA‖_F/soft_start), held constant. Call it once per optimiser step, after the data
    gradient is complete (and clipped, if it is).

    Args:
        pairs: A: r × d_in and B: d_out × r, any mix of shapes and ranks; a missing `.grad` is
            created; a factor that belongs to several pairs gets the sum.
        weight: λ ≥ 0.
        soft_start: τ ≥ 0 in units of ‖BA‖_F (without the LoRA scale); 0 for none.
        measure: what R is.
        recipe: exact, or the paper's (frobenius_nuclear only).
        products: number type of the Grams of float32 factors on a CPU; float32 costs at most 1e-5
            of the gradient, and gives way to float64 beyond κ* = FLOAT32_GRAM_LIMIT.
        grams: what `enqueue(pairs)` returned, where the products were started earlier in the step;
            the factors must be the same since.

    Returns:
        The penalty at this point: mean, spread and weighted value of R over the pairs.

    Raises:
        BadInput: a factor is not finite; another measure than frobenius_nuclear with the paper's
            recipe.

    Source: Evil Spectra (arXiv 2606.31591), spectral regularisation.

    >>> A = torch.nn.Parameter(torch.eye(2, 3))
    >>> B = torch.nn.Parameter(torch.diag(torch.tensor([3.0, 1.0])))
    >>> round(add_flatness_gradient([LoraPair("m", A, B, 1.0)], weight=1.0).value, 6)
    0.083463
    """
    if grams is None and recipe == "exact":
        grams = enqueue(pairs, products == "float32")
    terms = penalty_terms(pairs, measure, recipe, grams)
    targets: dict[int, Tensor] = {}
    for factor in _trainable(pairs) if weight else ():
        if factor.grad is None:
            factor.grad = torch.zeros_like(factor)
        targets[id(factor)] = factor.grad
    _accumulate(targets, pairs, terms, weight, soft_start)
    return _summary(terms, weight, soft_start)


@torch.no_grad()
def decay_flatness(
    pairs: Sequence[LoraPair],
    weight: float,
    lr: float,
    soft_start: float = 0.0,
    *,
    measure: Measure = "frobenius_nuclear",
    recipe: Recipe = "exact",
    products: Products = "float32",
) -> Flatness:
    """The decoupled penalty: factor −= lr·weight·∇(mean over pairs of c·R).

    It moves every factor that requires a gradient, and leaves the others alone.
    Call it after the optimiser's step: the penalty then passes neither through its moments nor
    through its preconditioner, as decoupled weight decay does not. Arguments, result and errors as
    for `add_flatness_gradient`; `lr` is the learning rate of the step.

    >>> A = torch.nn.Parameter(torch.eye(2, 3))
    >>> B = torch.nn.Parameter(torch.diag(torch.tensor([3.0, 1.0])))
    >>> before = decay_flatness([LoraPair("m", A, B, 1.0)], weight=1.0, lr=0.5).value
    >>> float(flatness([LoraPair("m", A, B, 1.0)])) < before
    True
    """
    grams = enqueue(pairs, products == "float32") if recipe == "exact" else None
    terms = penalty_terms(pairs, measure, recipe, grams)
    factors = {id(factor): factor for factor in _trainable(pairs)}
    targets = {
        key: torch.zeros_like(factor, dtype=torch.promote_types(factor.dtype, torch.float32))
        for key, factor in factors.items()
    }
    _accumulate(targets, pairs, terms, weight, soft_start)
    for key, factor in factors.items():
        factor.sub_(targets[key], alpha=lr)
    return _summary(terms, weight, soft_start)


@torch.no_grad()
def flatness(pairs: Sequence[LoraPair], measure: Measure = "frobenius_nuclear") -> Tensor:
    """R of each pair, float64 of shape (n,) on the CPU, in the order given.

    It lies between 0 and its value for one direction.

    >>> pair = LoraPair("m", torch.eye(2, 3), 5 * torch.eye(4, 2), scale=1.0)
    >>> flatness([pair]).abs().max() < 1e-12
    tensor(True)
    """
    return torch.tensor(
        [term.value for term in penalty_terms(pairs, measure, "exact")], dtype=torch.float64
    )


def weight_at(weight: float, warmup_steps: int, step: int) -> float:
    """λ for the step after `step` finished ones.

    It is constant, or rises from 0 in equal parts to `weight` after `warmup_steps`, as the learning
    rate does in its warm-up.

    >>> [weight_at(2.0, 4, step) for step in (0, 1, 4, 9)]
    [0.0, 0.5, 2.0, 2.0]
    """
    return weight * min(1.0, step / warmup_steps) if warmup_steps else weight


def _trainable(pairs: Sequence[LoraPair]) -> list[Tensor]:
    factors = [factor for pair in pairs for factor in (pair.A, pair.B)]
    return [factor for factor in factors if factor.requires_grad]


def _soft(term: Term, soft_start: float) -> float:
    return min(1.0, term.frobenius / soft_start) if soft_start > 0 else 1.0


def _summary(terms: Sequence[Term], weight: float, soft_start: float) -> Flatness:
    values = torch.tensor([term.value for term in terms], dtype=torch.float64)
    mean = float(values.mean())
    penalty = weight * sum(_soft(term, soft_start) * term.value for term in terms) / len(terms)
    return Flatness(
        mean,
        penalty,
        float(values.std(correction=0)),
        float(values.min()),
        float(values.max()),
        dict(Counter(term.route for term in terms)),
    )


def _accumulate(
    targets: Mapping[int, Tensor],
    pairs: Sequence[LoraPair],
    terms: Sequence[Term],
    weight: float,
    soft_start: float,
) -> None:
    """Adds (weight/n)·c·∇R of each pair to the targets, by the factors' identity.

    Factors without a target are left out.
    """
    for pair, term in zip(pairs, terms, strict=True):
        # The small matrices keep their values: the product takes the scale.
        scale = weight / len(pairs) * _soft(term, soft_start)
        for side, factor in enumerate((pair.B, pair.A)):
            target = targets.get(id(factor))
            if target is None:
                continue
            if term.gradients is not None:
                _add(target, term.gradients[side].mul(scale).to(target.device))
            elif term.inner is not None:
                _add_product(target, factor, term.inner[side], scale, left=side == 1)


def _add_product(
    target: Tensor,
    factor: Tensor,
    inner: Tensor,
    scale: float,
    left: bool,
) -> None:
    """target += scale·inner·factor (left) or scale·factor·inner, in the number type of `inner`."""
    if factor.dtype == inner.dtype == target.dtype:
        inner = inner.to(factor.device, non_blocking=True)
        target.addmm_(*((inner, factor) if left else (factor, inner)), alpha=scale)
        return
    device = torch.device("cpu") if factor.device.type == "mps" else factor.device
    wide, inner = factor.to(device).to(inner.dtype), inner.to(device, non_blocking=True)
    _add(target, ((inner @ wide) if left else (wide @ inner)).mul_(scale).to(target.device))


def _add(target: Tensor, gradient: Tensor) -> None:
    """target += gradient, rounded once, to a finite number."""
    if (most := torch.finfo(target.dtype).max) < torch.finfo(gradient.dtype).max:
        gradient = gradient.clamp(-most, most)
    target.add_(gradient)
