"""The orthogonal factor U·Vᵀ of a matrix X = U·Σ·Vᵀ, for stacks of small-sided matrices.

Muon replaces its momentum with it. There are three methods. They differ in how close to 1 the
singular values come, so the method is a setting, not a detail:

    newton_schulz  X ← a·X + b·S·X + c·S²·X with S = X·Xᵀ, five times, from X/‖X‖_F (Jordan et al.
                   2024, https://kellerjordan.github.io/posts/muon/): values between 0.68 and 1.2,
                   on purpose, from 5·10⁻³ of ‖X‖_F upwards
    polar_express  the same form, eight steps, other coefficients at each (Amsel et al. 2025,
                   https://arxiv.org/abs/2505.16932, the published list for singular values from
                   10⁻³ of ‖X‖_F upwards): values 1
    exact          by QR and the singular value decomposition of the small triangle: values 1 down
                   to rounding, 0 below

Only polynomials in S multiply X, and they commute. So with m the smaller side all steps are done on
m × m matrices,

    Z = a·I + b·S + c·S²        Q ← Z·Q        S ← Z·S·Z        and at the end X ← Q·X

which is 4m²d + O(m³) flops instead of 20m²d. Differences from the published loops: float32 or
float64 instead of bfloat16; ‖X‖_F is the root of S's trace, and enters Q, so that X is never
copied; a zero matrix gives zero, with no ε in the norm; Polar Express takes S anew from X after
four steps, because float32 products lose singular values below 3·10⁻⁴.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from evilspectra.errors import BadInput, listing

Method = Literal["newton_schulz", "polar_express", "exact"]
METHODS: tuple[str, ...] = ("newton_schulz", "polar_express", "exact")
#: One step's coefficients (a, b, c).
Quintic = tuple[float, float, float]
#: Of the reference implementation, the same at every step.
NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)
#: Of the paper's listing, step by step.
POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
#: The paper's safety factor: X starts that much smaller, and every polynomial but the last takes
#: its argument that much smaller.
SAFETY = 1.01
#: Polar Express takes the Gram matrix anew before this step, when the smallest values have grown
#: 430-fold.
RESTART = 4
#: `exact` drops singular values below this many rounding errors of the largest: their vectors are
#: noise.
RANK_TOLERANCE = 32


def orthogonalise(stack: Tensor, method: Method = "newton_schulz", steps: int = 5) -> Tensor:
    """Orthogonal factor of each matrix of a stack: n × p × q → n × p × q, singular values near 1.

    A zero matrix stays zero. A matrix with a NaN or an infinity becomes all NaN, and no other of
    the stack is touched. Norms may lie between 10⁻¹⁵ and 10¹⁸ in float32, where their squares can
    be written.

    Args:
        stack: n × p × q, float32 or float64.
        method: see the module's text.
        steps: of Newton-Schulz; Polar Express has eight.

    Raises:
        BadInput: an unknown method.

    >>> stack = torch.diag(torch.tensor([5.0, 1.0]))[None]
    >>> torch.linalg.svdvals(orthogonalise(stack)).sub(1).abs().max() < 0.4
    tensor(True)
    >>> orthogonalise(torch.tensor([[[3.0, 0.0, 4.0]]]), "exact").round(decimals=4)
    tensor([[[0.6000, 0.0000, 0.8000]]])
    """
    return next(orthogonalise_all([stack], method, steps, [1.0]))


def orthogonalise_all(
    stacks: Sequence[Tensor],
    method: Method,
    steps: int,
    scales: Sequence[float],
) -> Iterator[Tensor]:
    """`orthogonalise` of several stacks, each times its scale, one after the other.

    The m × m steps of all of them are one batch.
    """
    match method:
        case "newton_schulz":
            return _iterated(stacks, [NEWTON_SCHULZ] * steps, scales)
        case "polar_express":
            safe = _safe(POLAR_EXPRESS)
            halfway = _iterated(stacks, safe[:RESTART], [1.0] * len(stacks), SAFETY)
            return _iterated(list(halfway), safe[RESTART:], scales, None)
        case "exact":
            return map(_exact, stacks, scales)
        case _:
            raise BadInput(
                f"Muon: orthogonalisation '{method}' is unknown; allowed: {listing(METHODS)}"
            )


def _iterated(
    stacks: Sequence[Tensor],
    coefficients: Sequence[Quintic],
    scales: Sequence[float],
    start: float | None = 1.0,
) -> Iterator[Tensor]:
    """X/(start·‖X‖_F) of each stack through the steps, times its scale; `start` None: X itself."""
    batches: dict[object, list[int]] = {}
    grams = [_gram(stack) for stack in stacks]
    for index, gram in enumerate(grams):
        batches.setdefault((gram.shape[-1], gram.device, gram.dtype), []).append(index)
    factors: dict[int, Tensor] = {}
    for positions in batches.values():
        factor = _factor(torch.cat([grams[index] for index in positions]), coefficients, start)
        parts = factor.split([len(stacks[index]) for index in positions])
        factors.update(zip(positions, parts, strict=True))
    return (
        _apply(factors[index] * scale, stack)
        for index, (stack, scale) in enumerate(zip(stacks, scales, strict=True))
    )


def _factor(gram: Tensor, coefficients: Sequence[Quintic], start: float | None) -> Tensor:
    """Q, n × m × m, with the division by the norm in it."""
    if start is None:
        return _polynomial(gram, coefficients)
    size = start * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].sqrt()
    inverse = torch.where(size > 0, 1 / size, 0.0)
    return _polynomial(gram * inverse**2, coefficients) * inverse


def _polynomial(gram: Tensor, coefficients: Sequence[Quintic]) -> Tensor:
    """Q, m × m, of which Q·X is X after the steps, from S = X·Xᵀ."""
    z = total = _quintic(gram, coefficients[0])
    for following in coefficients[1:]:
        gram = z @ gram @ z
        z = _quintic(gram, following)
        total = z @ total
    return total


def _quintic(gram: Tensor, coefficients: Quintic) -> Tensor:
    """Z = a·I + b·S + c·S²."""
    a, b, c = coefficients
    z = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    z.diagonal(dim1=-2, dim2=-1).add_(a)
    return z


def _exact(stack: Tensor, scale: float) -> Tensor:
    """U·Vᵀ over the singular values above the rank tolerance.

    A decomposition refuses numbers that are not finite, so such matrices are set aside.
    """
    finite = stack.isfinite().all(-1).all(-1)[:, None, None]
    tall = stack.shape[-2] > stack.shape[-1]
    safe = torch.where(finite, stack, 0.0)
    basis, triangle = torch.linalg.qr(safe if tall else safe.mT)
    u, sigma, vh = torch.linalg.svd(triangle)
    resolved = sigma > RANK_TOLERANCE * torch.finfo(stack.dtype).eps * sigma[:, :1]
    core = (u * (scale * resolved.to(u.dtype))[:, None, :]) @ vh
    result = basis @ core if tall else core.mT @ basis.mT
    return torch.where(finite, result, torch.nan)


def _safe(coefficients: Sequence[Quintic]) -> list[Quintic]:
    *smaller, last = coefficients
    return [*((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in smaller), last]


def _gram(stack: Tensor) -> Tensor:
    """X·Xᵀ, or Xᵀ·X where X is tall: n × m × m."""
    return stack.mT @ stack if stack.shape[-2] > stack.shape[-1] else stack @ stack.mT


def _apply(factor: Tensor, stack: Tensor) -> Tensor:
    return stack @ factor.mT if stack.shape[-2] > stack.shape[-1] else factor @ stack
