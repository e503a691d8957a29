"""ΔW of adapters whose change is more than scale·B·A, where what is missing is at hand.

| adapter | ΔW | needs |
|---|---|---|
| PiSSA, OLoRA, CorDA | scale·(B·A − B₀·A₀) | the initial factors: a pair of rank 2r, so all of `spectrum/` applies |
| DoRA | m ⊙ (W + scale·B·A)/‖W + scale·B·A‖ (by rows) − W | the base weight; of full rank, so a dense SVD |

Sources: PiSSA (arXiv 2404.02948), DoRA (arXiv 2402.09353), as PEFT computes them. Without what is needed the result stays "BA only".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evilspectra.errors import BadInput
from evilspectra.spectra.grams import refuse_non_finite, wide
from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.values import Spectrum


def minus_initial(pairs: Sequence[LoraPair], initial: Sequence[LoraPair]) -> list[LoraPair]:
    """ΔW = scale·(B·A − B₀·A₀) as pairs of up to twice the rank: factors [B, −B₀] and [A; A₀], detached.

    Args:
        pairs: of an adapter that took an initial product out of the base.
        initial: the same adapter before training, matched by name (PEFT: save the adapter right after `get_peft_model`, read it with `read_pairs`).

    Raises:
        BadInput: a module without initial factors, or with factors of another shape or scale; a DoRA pair.

    >>> now, then = LoraPair("m", torch.eye(1, 3), torch.ones(2, 1), 1.0, "BA only"), LoraPair("m", torch.eye(1, 3), torch.ones(2, 1), 1.0)
    >>> pair, = minus_initial([now], [then])
    >>> pair.part, float((pair.B @ pair.A).abs().max())
    ('delta', 0.0)
    """
    before = {pair.name: pair for pair in initial}
    found = []
    for pair in pairs:
        other = before.get(pair.name)
        if other is None:
            raise BadInput(
                f"{pair.name} has no initial factors: give those of the same adapter before training"
            )
        if pair.magnitude is not None:
            raise BadInput(
                f"{pair.name} is a DoRA adapter: its ΔW needs the base weight, use dora_values"
            )
        if (other.shape[1:], other.scale) != (pair.shape[1:], pair.scale):
            raise BadInput(
                f"the initial factors of {pair.name} are {other.shape} with scale {other.scale:g}, the trained ones {pair.shape} with scale {pair.scale:g}: they belong to different adapters"
            )
        down = torch.cat([pair.A.detach(), other.A.detach().to(pair.A)])
        up = torch.cat([pair.B.detach(), -other.B.detach().to(pair.B)], dim=1)
        found.append(LoraPair(pair.name, down, up, pair.scale))
    return found


@torch.no_grad()
def dora_change(pair: LoraPair, base: Tensor) -> Tensor:
    """ΔW = m ⊙ (W + scale·B·A)/‖W + scale·B·A‖ − W of a DoRA pair, float64, d_out × d_in; norms are those of rows.

    Args:
        pair: with its `magnitude`, d_out.
        base: W, d_out × d_in.

    Raises:
        BadInput: a pair without magnitude, a base of another shape, or a factor that is not finite.
    """
    _, d_in, d_out = pair.shape
    if pair.magnitude is None:
        raise BadInput(
            f"{pair.name} is no DoRA adapter: its ΔW is scale·B·A, or less an initial product"
        )
    if tuple(base.shape) != (d_out, d_in) or pair.magnitude.numel() != d_out:
        raise BadInput(
            f"the base weight of {pair.name} is {tuple(base.shape)} and its magnitude has {pair.magnitude.numel()} entries: they must be {(d_out, d_in)} and {d_out}"
        )
    refuse_non_finite(pair)
    weight = wide(base)
    moved = weight + pair.scale * (wide(pair.B) @ wide(pair.A))
    return (
        wide(pair.magnitude).flatten()[:, None]
        * moved
        / torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        - weight
    )


def dora_values(pair: LoraPair, base: Tensor) -> Spectrum:
    """The min(d_in, d_out) singular values of a DoRA pair's ΔW, by dense SVD in float64; arguments and errors as for `dora_change`."""
    return Spectrum(pair.name, torch.linalg.svdvals(dora_change(pair, base)).cpu(), "dense")
