"""The terms of the penalty: R, ‖BA‖_F and the gradient of every pair; formulas in `penalty.py`."""

from __future__ import annotations

from collections.abc import Sequence
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
#: κ* up to which the products B·K_B and K_A·A of float32 factors are made in float32: they lose
#: some ε₃₂·κ* of a gradient whose entries are rounded to ε₃₂ anyway. The Grams, which would lose
#: ε₃₂·κ*², never are.
FLOAT32_LIMIT = 64.0
#: κ* up to which the Grams may be float32 products too (`products="float32"`): they lose some
#: ε₃₂·κ*² of the gradient, at most the 1e-5 that the tests hold. Beyond it they are made again in
#: float64.
FLOAT32_GRAM_LIMIT = 16.0
#: Size of K up to which it is safe in float32; beyond it, B is so small that the product goes
#: through float64.
FLOAT32_LARGEST = 1e30
#: Singular values below this share of the largest are rounding: they count as 0 and have no
#: direction, hence no gradient.
ROUNDING = torch.finfo(torch.float64).eps
Measure = Literal["frobenius_nuclear", "entropy", "participation"]
Recipe = Literal["exact", "paper"]


class Term(NamedTuple):
    """R and ‖BA‖_F of one pair, and its route.

    Its gradient comes from (K_B, K_A) in `inner`, or is (∇_B, ∇_A) in `gradients`, or is zero.
    """

    value: float
    frobenius: float
    route: str
    inner: tuple[Tensor, Tensor] | None = None
    gradients: tuple[Tensor, Tensor] | None = None


def penalty_terms(
    pairs: Sequence[LoraPair],
    measure: Measure,
    recipe: Recipe,
    grams: Grams | None = None,
) -> list[Term]:
    """Computes the term of each pair, in the order given.

    Args:
        grams: of these pairs, where the products were started earlier; the exact recipe's only.

    Raises:
        BadInput: a factor is not finite; another measure than frobenius_nuclear with the paper's
            recipe.
    """
    if recipe == "paper":
        if measure != "frobenius_nuclear":
            raise BadInput(
                f"the paper's recipe has no measure '{measure}': "
                "use frobenius_nuclear with it, or recipe exact"
            )
        return [
            Term(term.value, term.frobenius, term.route, gradients=term.gradients)
            for term in map(paper_flatness, pairs)
        ]
    terms: dict[int, Term] = {}
    for group in (grams or enqueue(pairs)).result():
        terms.update(_by_gram(group, measure, pairs))
    # The pairs for which float32 Grams are not exact enough.
    rest = [index for index in range(len(pairs)) if index not in terms]
    if rest:
        for group in enqueue([pairs[index] for index in rest]).result():
            positions = [rest[index] for index in group.positions]
            terms.update(_by_gram(group._replace(positions=positions), measure, pairs))
    return [terms[index] for index in range(len(pairs))]


def _by_gram(group: Group, measure: Measure, pairs: Sequence[LoraPair]) -> dict[int, Term]:
    """The terms of a group, less those for which float32 Grams are not exact enough."""
    lower, exists = root(group.down)
    squares, basis = torch.linalg.eigh(lower.mT @ group.up @ lower)
    lost = cancellation(group.down, group.up, squares[:, 0])
    easy = ((lost <= GRAM_LIMIT) & exists & ~group.extreme).tolist()
    sigma = squares.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    value, slope = measured(sigma, measure)
    left, right = lower @ basis, torch.linalg.solve_triangular(lower.mT, basis, upper=True)
    inner_up = (left * (slope / sigma).unsqueeze(-2)) @ left.mT
    inner_down = (right * (slope * sigma).unsqueeze(-2)) @ right.mT
    largest = torch.maximum(inner_up.abs().amax((1, 2)), inner_down.abs().amax((1, 2)))
    harmless = (lost <= FLOAT32_LIMIT) & (largest <= FLOAT32_LARGEST)
    single = (harmless & float32_is_exact()).tolist()
    values, norms = value.tolist(), torch.linalg.vector_norm(sigma, dim=-1).tolist()
    double = list(zip(inner_up.unbind(), inner_down.unbind(), strict=True))
    narrow = list(zip(inner_up.float().unbind(), inner_down.float().unbind(), strict=True))
    doubtful = (~(lost <= FLOAT32_GRAM_LIMIT) & group.single).tolist()
    terms: dict[int, Term] = {}
    for slot, index in enumerate(group.positions):
        pair = pairs[index]
        if doubtful[slot]:
            continue
        rank, *sides = pair.shape
        if not easy[slot] or rank > min(sides):
            terms[index] = Term(0.0, 0.0, "zero") if is_zero(pair) else _by_qr(pair, measure)
        else:
            short = single[slot] and _is_narrow_on_cpu(pair)
            inner = (narrow if short else double)[slot]
            terms[index] = Term(values[slot], norms[slot], "gram", inner)
    return terms


def _is_narrow_on_cpu(pair: LoraPair) -> bool:
    return pair.A.device.type == "cpu" and torch.float64 not in (pair.A.dtype, pair.B.dtype)


def _by_qr(pair: LoraPair, measure: Measure) -> Term:
    (down, a), (up, b) = unit(pair.A), unit(pair.B)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.mT)
    u, sigma, vh = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    if not bool(sigma[0] > 0):
        return Term(0.0, 0.0, "zero")
    value, slope = measured(sigma[None], measure)
    inner = (u * slope) @ vh
    gradients = (q_up @ (inner @ r_down) / b, (r_up.mT @ inner) @ q_down.mT / a)
    return Term(
        float(value), float(torch.linalg.vector_norm(sigma) * a * b), "qr", gradients=gradients
    )


def measured(sigma: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """R and g = ∂R/∂σ of n × k singular values, float64; shapes n and n × k.

    Each row must have a σ > 0; g is 0 where σ counts as 0.

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
