"""A penalty on spectra that are not flat, and its gradient in closed form (k = min(r, d_in, d_out) singular values σ of B·A).

With F = √Σσ², N = Σσ, p = σ/N, S = −Σ p ln p and P = (Σσ²)²/Σσ⁴, each is 0 where all σ are equal:

| measure | R | its derivative g = ∂R/∂σ | one direction |
|---|---|---|---|
| frobenius_nuclear | F/N − 1/√k | σ/(F·N) − F/N² | 1 − 1/√k |
| entropy | ln k − S | (ln p + S)/N | ln k |
| participation | 1 − P/k | (4/k)·Σσ²/Σσ⁴·(σ³·Σσ²/Σσ⁴ − σ) | 1 − 1/k |

With G_A = A·Aᵀ = L·Lᵀ, G_B = Bᵀ·B, H = Lᵀ·G_B·L = Q·σ²·Qᵀ, and U, V the singular vectors of B·A:

    ∇_B R = U·g·Vᵀ·Aᵀ = B·K_B,   K_B = L·Q·(g/σ)·Qᵀ·Lᵀ
    ∇_A R = Bᵀ·U·g·Vᵀ = K_A·A,   K_A = L^{-T}·Q·(g·σ)·Qᵀ·L^{-1}

with r × r matrices K. It needs no data, hence no backward pass: it is added to `.grad` once per optimiser step, whatever
accumulation, data-parallel size and loss scaling are, or taken off the factors in a step of its own, as decoupled weight decay is.

Every singular value has the same weight in ∇N however small it is, so the r × r algebra is float64, the Grams are wherever float32
would be felt, and where the Grams are too ill-conditioned for the smallest values the factors go through QR: with B = Q_B·R_B, Aᵀ = Q_A·R_A and
R_B·R_Aᵀ = U·σ·Vᵀ,

    ∇_B R = Q_B·U·g·Vᵀ·R_A        ∇_A R = R_Bᵀ·U·g·Vᵀ·Q_Aᵀ

Source of R: Evil Spectra (arXiv 2606.31591), spectral regularisation (frobenius_nuclear). Differences from the paper's recipe
(which `recipe="paper"` is, in `paper.py`): no jitter, no Gram of the singular factor B is inverted, float64. At B·A = 0 both
value and gradient are defined as 0; a direction in which B·A vanishes to float64 precision has no gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from evilspectra.errors import BadInput
from evilspectra.spectra.grams import (
    Grams,
    Group,
    cancellation,
    enqueue,
    float32_is_exact,
    is_zero,
    root,
)
from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.paper import paper_flatness
from evilspectra.spectra.values import unit

#: κ* = ‖A‖·‖B‖/σ_r beyond which the Gram route loses more than about 1e-9 (ε·κ*²) of the gradient.
GRAM_LIMIT = 3e3
#: κ* up to which the products B·K_B and K_A·A of float32 factors are made in float32: they lose some ε₃₂·κ* of a gradient
#: whose entries are rounded to ε₃₂ anyway. The Grams, which would lose ε₃₂·κ*², never are.
FLOAT32_LIMIT = 64.0
#: κ* up to which the Grams may be float32 products too (`products="float32"`): they lose some ε₃₂·κ*² of the gradient, at most
#: the 1e-5 that the tests hold. Beyond it they are made again in float64.
FLOAT32_GRAM_LIMIT = 16.0
#: Size of K up to which it is safe in float32; beyond it, B is so small that the product goes through float64.
FLOAT32_LARGEST = 1e30
#: Singular values below this share of the largest are rounding: they count as 0 and have no direction, hence no gradient.
ROUNDING = torch.finfo(torch.float64).eps
Measure = Literal["frobenius_nuclear", "entropy", "participation"]
Recipe = Literal["exact", "paper"]
Products = Literal["float64", "float32"]


@dataclass(frozen=True)
class Flatness:
    """The penalty at one point.

    `value`: mean over modules of R; `std` (population), `smallest`, `largest`: its spread over them; `penalty`: weight × mean of
    soft start × R; `routes`: how many modules went which way (gram, qr, zero; under the paper's recipe: plain, jitter, skipped).
    """

    value: float
    penalty: float
    std: float = 0.0
    smallest: float = 0.0
    largest: float = 0.0
    routes: Mapping[str, int] = field(default_factory=dict)


class _Point(NamedTuple):
    """R and ‖BA‖_F of one pair, its route, and what gives its gradient: K_B and K_A (`inner`), or both gradients (`whole`), or nothing."""

    value: float
    frobenius: float
    route: str
    inner: tuple[Tensor, Tensor] | None = None
    whole: tuple[Tensor, Tensor] | None = None


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
    """Adds weight·∇(mean over pairs of c·R) to `.grad` of every factor that requires one; c = min(1, ‖BA‖_F/soft_start), held constant.

    Call it once per optimiser step, after the data gradient is complete (and clipped, if it is).

    Args:
        pairs: A: r × d_in and B: d_out × r, any mix of shapes and ranks; a missing `.grad` is created; a factor that belongs to several pairs gets the sum.
        weight: λ ≥ 0.
        soft_start: τ ≥ 0 in units of ‖BA‖_F (without the LoRA scale); 0 for none.
        measure: what R is.
        recipe: exact, or the paper's (frobenius_nuclear only).
        products: number type of the Grams of float32 factors on a CPU; float32 costs at most 1e-5 of the gradient, and gives way to float64 beyond κ* = FLOAT32_GRAM_LIMIT.
        grams: what `enqueue(pairs)` returned, where the products were started earlier in the step; the factors must be the same since.

    Raises:
        BadInput: a factor is not finite; another measure than frobenius_nuclear with the paper's recipe.

    >>> A, B = torch.nn.Parameter(torch.eye(2, 3)), torch.nn.Parameter(torch.diag(torch.tensor([3.0, 1.0])))
    >>> round(add_flatness_gradient([LoraPair("m", A, B, 1.0)], weight=1.0).value, 6)
    0.083463
    """
    points = _points(
        pairs,
        measure,
        recipe,
        grams or (enqueue(pairs, products == "float32") if recipe == "exact" else None),
    )
    targets: dict[int, Tensor] = {}
    for factor in _trainable(pairs) if weight else ():
        if factor.grad is None:
            factor.grad = torch.zeros_like(factor)
        targets[id(factor)] = factor.grad
    _accumulate(targets, pairs, points, weight, soft_start)
    return _told(points, weight, soft_start)


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
    """The decoupled penalty: every factor that requires a gradient −= lr·weight·∇(mean over pairs of c·R).

    Call it after the optimiser's step: the penalty then passes neither through its moments nor through its preconditioner, as
    decoupled weight decay does not. Arguments, result and errors as for `add_flatness_gradient`; `lr` is the learning rate of the step.

    >>> A, B = torch.nn.Parameter(torch.eye(2, 3)), torch.nn.Parameter(torch.diag(torch.tensor([3.0, 1.0])))
    >>> before = decay_flatness([LoraPair("m", A, B, 1.0)], weight=1.0, lr=0.5).value
    >>> float(flatness([LoraPair("m", A, B, 1.0)])) < before
    True
    """
    points = _points(
        pairs, measure, recipe, enqueue(pairs, products == "float32") if recipe == "exact" else None
    )
    factors = {id(factor): factor for factor in _trainable(pairs)}
    targets = {
        key: torch.zeros_like(factor, dtype=torch.promote_types(factor.dtype, torch.float32))
        for key, factor in factors.items()
    }
    _accumulate(targets, pairs, points, weight, soft_start)
    for key, factor in factors.items():
        factor.sub_(targets[key], alpha=lr)
    return _told(points, weight, soft_start)


@torch.no_grad()
def flatness(pairs: Sequence[LoraPair], measure: Measure = "frobenius_nuclear") -> Tensor:
    """R of each pair, float64 of shape (n,) on the CPU, in the order given; between 0 and its value for one direction.

    >>> flatness([LoraPair("m", torch.eye(2, 3), 5 * torch.eye(4, 2), scale=1.0)]).abs().max() < 1e-12
    tensor(True)
    """
    return torch.tensor(
        [point.value for point in _points(pairs, measure, "exact")], dtype=torch.float64
    )


def weight_at(weight: float, warmup_steps: int, step: int) -> float:
    """λ for the step after `step` finished ones: constant, or from 0 in equal parts up to `weight` after `warmup_steps`, as the learning rate's warm-up.

    >>> [weight_at(2.0, 4, step) for step in (0, 1, 4, 9)]
    [0.0, 0.5, 2.0, 2.0]
    """
    return weight * min(1.0, step / warmup_steps) if warmup_steps else weight


def measured(sigma: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """R and g = ∂R/∂σ (0 where σ counts as 0) of n × k singular values, float64, with σ > 0 somewhere in each row; shapes n and n × k.

    >>> value, slope = measured(torch.tensor([[2.0, 2.0]], dtype=torch.float64), "entropy")
    >>> float(value.abs().max()) < 1e-15, float(slope.abs().max()) < 1e-15
    (True, True)
    """
    k = sigma.shape[-1]
    largest = sigma.amax(-1, keepdim=True)
    s = sigma / largest
    alive = s > ROUNDING * k
    total, squares = s.sum(-1, keepdim=True), s.square().sum(-1, keepdim=True)
    match measure:
        case "frobenius_nuclear":
            norm = squares.sqrt()
            value, slope = norm / total - k**-0.5, s / (norm * total) - norm / total**2
        case "entropy":
            share = s / total
            logs = torch.where(alive, share, 1.0).log()
            entropy = -(share * logs).sum(-1, keepdim=True)
            value, slope = torch.tensor(k, dtype=s.dtype).log() - entropy, (logs + entropy) / total
        case "participation":
            ratio = squares / s.pow(4).sum(-1, keepdim=True)
            value, slope = 1 - squares * ratio / k, (4 / k) * ratio * (s.pow(3) * ratio - s)
    return value.squeeze(-1), slope * alive / largest


# --- what every pair's value and gradient come from ----------------------------------------------------------------------


def _points(
    pairs: Sequence[LoraPair],
    measure: Measure,
    recipe: Recipe,
    grams: Grams | None = None,
) -> list[_Point]:
    if recipe == "paper":
        if measure != "frobenius_nuclear":
            raise BadInput(
                f"the paper's recipe has no measure '{measure}': use frobenius_nuclear with it, or recipe exact"
            )
        return [
            _Point(found.value, found.frobenius, found.route, whole=found.gradients)
            for found in (paper_flatness(pair) for pair in pairs)
        ]
    found: dict[int, _Point] = {}
    for group in (grams or enqueue(pairs)).result():
        found.update(_by_gram(group, measure, pairs))
    if again := [
        place for place in range(len(pairs)) if place not in found
    ]:  # float32 Grams do not do there
        for group in enqueue([pairs[place] for place in again]).result():
            found.update(
                _by_gram(
                    group._replace(places=[again[place] for place in group.places]), measure, pairs
                )
            )
    return [found[place] for place in range(len(pairs))]


def _by_gram(group: Group, measure: Measure, pairs: Sequence[LoraPair]) -> dict[int, _Point]:
    """The points of a group, less those whose float32 Grams do not do."""
    lower, there = root(group.down)
    squares, basis = torch.linalg.eigh(lower.mT @ group.up @ lower)
    lost = cancellation(group.down, group.up, squares[:, 0])
    easy = ((lost <= GRAM_LIMIT) & there & ~group.extreme).tolist()
    sigma = squares.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    value, slope = measured(sigma, measure)
    left, right = lower @ basis, torch.linalg.solve_triangular(lower.mT, basis, upper=True)
    inner_up = (left * (slope / sigma).unsqueeze(-2)) @ left.mT
    inner_down = (right * (slope * sigma).unsqueeze(-2)) @ right.mT
    largest = torch.maximum(inner_up.abs().amax((1, 2)), inner_down.abs().amax((1, 2)))
    single = (
        ((lost <= FLOAT32_LIMIT) & (largest <= FLOAT32_LARGEST)).tolist()
        if float32_is_exact()
        else [False] * len(lost)
    )
    values, norms = value.tolist(), torch.linalg.vector_norm(sigma, dim=-1).tolist()
    double, narrow = (
        [*zip(up.unbind(), down.unbind(), strict=True)]
        for up, down in ((inner_up, inner_down), (inner_up.float(), inner_down.float()))
    )
    found: dict[int, _Point] = {}
    doubtful = (~(lost <= FLOAT32_GRAM_LIMIT) & group.single).tolist()
    for slot, place in enumerate(group.places):
        pair = pairs[place]
        if doubtful[slot]:
            continue
        rank, *sides = pair.shape
        if not easy[slot] or rank > min(sides):
            found[place] = _Point(0.0, 0.0, "zero") if is_zero(pair) else _by_qr(pair, measure)
        else:
            short = (
                single[slot]
                and pair.A.device.type == "cpu"
                and torch.float64 not in (pair.A.dtype, pair.B.dtype)
            )
            found[place] = _Point(
                values[slot], norms[slot], "gram", (narrow if short else double)[slot]
            )
    return found


def _by_qr(pair: LoraPair, measure: Measure) -> _Point:
    (down, a), (up, b) = unit(pair.A), unit(pair.B)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.mT)
    u, sigma, vh = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    if not bool(sigma[0] > 0):
        return _Point(0.0, 0.0, "zero")
    value, slope = measured(sigma[None], measure)
    inner = (u * slope) @ vh
    gradients = (q_up @ (inner @ r_down) / b, (r_up.mT @ inner) @ q_down.mT / a)
    return _Point(
        float(value), float(torch.linalg.vector_norm(sigma) * a * b), "qr", whole=gradients
    )


# --- from there to the factors -------------------------------------------------------------------------------------------


def _trainable(pairs: Sequence[LoraPair]) -> list[Tensor]:
    return [factor for pair in pairs for factor in (pair.A, pair.B) if factor.requires_grad]


def _soft(point: _Point, soft_start: float) -> float:
    return min(1.0, point.frobenius / soft_start) if soft_start > 0 else 1.0


def _told(points: Sequence[_Point], weight: float, soft_start: float) -> Flatness:
    values = torch.tensor([point.value for point in points], dtype=torch.float64)
    mean = float(values.mean())
    penalty = weight * sum(_soft(point, soft_start) * point.value for point in points) / len(points)
    return Flatness(
        mean,
        penalty,
        float(values.std(correction=0)),
        float(values.min()),
        float(values.max()),
        dict(Counter(point.route for point in points)),
    )


def _accumulate(
    targets: Mapping[int, Tensor],
    pairs: Sequence[LoraPair],
    points: Sequence[_Point],
    weight: float,
    soft_start: float,
) -> None:
    """Adds (weight/n)·c·∇R of each pair to the targets, which are found by the factors' identity; factors without one are left out."""
    for pair, point in zip(pairs, points, strict=True):
        scale = (
            weight / len(pairs) * _soft(point, soft_start)
        )  # the small matrices stay as they are: the product takes the scale
        for side, factor in enumerate((pair.B, pair.A)):
            target = targets.get(id(factor))
            if target is None:
                continue
            if point.whole is not None:
                _add(target, point.whole[side].mul(scale).to(target.device))
            elif point.inner is not None:
                _add_product(target, factor, point.inner[side], scale, left=side == 1)


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
