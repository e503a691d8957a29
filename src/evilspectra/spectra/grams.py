"""Gram matrices G_A = A·Aᵀ, G_B = Bᵀ·B (r × r, float64) of many pairs; never waits for the device.

Spectra and the penalty need only r × r matrices from the long factors. `enqueue` starts the
products on the factors' device and a copy of the small results to the host; `Grams.result` waits
only for that copy. If they are enqueued at the start of a training step, the results are available
long before the backward pass ends, the eigenproblems are solved on the host meanwhile, and the
device never waits. One factor at a time is held in float64, so the extra memory is that of the
largest factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evilspectra.errors import BadInput
from evilspectra.spectra.pairs import LoraPair

#: Traces outside of this range come from factors that are zero, or so small or large that their
#: squares lose digits in float64.
SMALLEST, LARGEST = 1e-200, 1e200
#: Starts a copy to the host, and returns what waits for it.
Copy = Callable[[Tensor], Callable[[], Tensor]]


class Group(NamedTuple):
    """Pairs of one rank: their positions in the list of pairs, and their Grams, on the host.

    `down`, `up`: G_A and G_B, n × r × r each.
    Where `extreme` is set, a factor is zero or its Gram is out of float64's comfortable range; both
    Grams are the identity there. `single`: the products were made in float32.
    """

    positions: list[int]
    down: Tensor
    up: Tensor
    extreme: Tensor
    single: bool


class Grams:
    """Grams being computed, and the `pairs` that they belong to."""

    def __init__(
        self, pairs: Sequence[LoraPair], waiting: list[tuple[list[int], bool, Callable[[], Tensor]]]
    ) -> None:
        self.pairs = pairs
        self._waiting = waiting

    def result(self) -> list[Group]:
        """Waits, and gives the Grams by rank.

        Raises:
            BadInput: a factor holds a value that is not finite; the message names the module.
        """
        return [
            self._group(positions, single, wait().double())
            for positions, single, wait in self._waiting
        ]

    def _group(self, positions: list[int], single: bool, stack: Tensor) -> Group:
        traces = stack.diagonal(dim1=-2, dim2=-1).sum(-1)
        for slot in (~torch.isfinite(stack).flatten(2).all(2).all(0)).nonzero().flatten().tolist():
            refuse_non_finite(self.pairs[positions[slot]])
        extreme = (~((traces > SMALLEST) & (traces < LARGEST))).any(0)
        stack = torch.where(
            extreme[:, None, None], torch.eye(stack.shape[-1], dtype=stack.dtype), stack
        )
        return Group(positions, stack[0], stack[1], extreme, single)


@torch.no_grad()
def enqueue(pairs: Sequence[LoraPair], single: bool = False, copy: Copy | None = None) -> Grams:
    """Starts the Grams of the pairs, whatever their shapes.

    Args:
        single: make the products in float32 where factors are no wider, on the CPU, and float32 is
            not set to mean less; spectra need float64.
        copy: starts the copy to the host; by default `copy_to_host`.

    >>> group, = enqueue([LoraPair("m", torch.eye(2, 3), 2 * torch.eye(4, 2), 1.0)]).result()
    >>> group.up[0].tolist()
    [[4.0, 0.0], [0.0, 4.0]]
    """
    single = single and float32_is_exact()
    groups: dict[tuple[int, torch.device, bool], list[int]] = {}
    for index, pair in enumerate(pairs):
        A, B = pair.A, pair.B
        narrow = single and A.device.type == "cpu" and torch.float64 not in (A.dtype, B.dtype)
        groups.setdefault((A.shape[0], A.device, narrow), []).append(index)
    waiting = []
    for (_, device, narrow), positions in groups.items():
        scratch = None if narrow else _scratch([pairs[index] for index in positions], device)
        grams = []
        for index in positions:
            down = pairs[index].A.float() if narrow else wide(pairs[index].A, scratch)
            grams.append(torch.mm(down, down.t()))
            up = pairs[index].B.float() if narrow else wide(pairs[index].B, scratch)
            grams.append(torch.mm(up.t(), up))
        stack = torch.stack(grams).unflatten(0, (-1, 2)).transpose(0, 1)
        waiting.append((positions, narrow, (copy or copy_to_host)(stack)))
    return Grams(pairs, waiting)


def wide(factor: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Widens a factor to float64 on its device, or on the host where the device has no float64.

    Args:
        scratch: memory to use for it, of at least as many numbers.
    """
    factor = factor.detach()
    if scratch is not None and factor.dtype != torch.float64:
        return scratch[: factor.numel()].view(factor.shape).copy_(factor)
    return (factor.cpu() if factor.device.type == "mps" else factor).double()


def _scratch(pairs: Sequence[LoraPair], device: torch.device) -> Tensor:
    """Memory for the largest factor in float64.

    Fresh memory for each factor would cost more than its product.
    """
    return torch.empty(
        max(max(pair.A.numel(), pair.B.numel()) for pair in pairs),
        dtype=torch.float64,
        device="cpu" if device.type == "mps" else device,
    )


def float32_is_exact() -> bool:
    """Whether products are made in float32, not in TF32 or bfloat16, which a user may allow."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the user has set the precision backend by backend
        return False


def copy_to_host(stack: Tensor) -> Callable[[], Tensor]:
    """Starts a copy to pinned memory on CUDA.

    The function returned waits for that copy, and for nothing enqueued later.
    """
    if stack.device.type != "cuda":
        return lambda: stack
    host = torch.empty(stack.shape, dtype=stack.dtype, pin_memory=True)
    host.copy_(stack, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(stack.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return host

    return wait


def refuse_non_finite(pair: LoraPair) -> None:
    """Raises BadInput where a factor holds a value that is not finite."""
    for factor, values in (("A", pair.A), ("B", pair.B)):
        if not bool(torch.isfinite(values.detach()).all()):
            raise BadInput(
                f"factor {factor} of {pair.name} holds a value that is not finite: the adapter is "
                "damaged or training diverged; use an earlier checkpoint"
            )


def is_zero(pair: LoraPair) -> bool:
    """Whether a factor is entirely zero, so that B·A is too."""
    return not bool(pair.B.detach().any()) or not bool(pair.A.detach().any())


def root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factors L·Lᵀ = G of n × r × r Grams, and for which there is one (n).

    A Gram without one (A is rank-deficient) gets the identity.
    """
    lower, failed = torch.linalg.cholesky_ex(gram)
    exists = failed == 0
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype)
    return torch.where(exists[:, None, None], lower, identity), exists


def cancellation(down: Tensor, up: Tensor, squares: Tensor) -> Tensor:
    """An upper bound on κ* = ‖A‖·‖B‖/σ_r(BA) of n pairs.

    The Gram route squares κ*, so that its relative error is ε·κ*².
    κ* is at least κ(A), κ(B) and κ(BA), for σ_r(BA) ≤ σ_r(A)·‖B‖ and so on, and it sees what none
    of them does: a product that is small against its factors. ‖G‖ is bounded by the smaller of its
    Frobenius norm and its largest row sum.

    Args:
        down, up: G_A and G_B, n × r × r.
        squares: smallest eigenvalue of H, n; where it is not positive, it is lost in rounding and
            κ* is infinite.
    """
    sizes = [
        torch.minimum(gram.square().sum((1, 2)).sqrt(), gram.abs().sum(2).amax(1))
        for gram in (down, up)
    ]
    return torch.where(squares > 0, (sizes[0] * sizes[1] / squares).sqrt(), torch.inf)
