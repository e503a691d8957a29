"""The flatness penalty as the paper computes it: float32, jittered Cholesky, autograd.

    G = BᵀB     L = chol(G + 1e-8·I)     σ = svdvals(Lᵀ·A)     R = √Σσ²/Σσ − 1/√r

Source: Evil Spectra (arXiv 2606.31591), spectral regularisation. It is followed exactly, as a
reference for `penalty.py`: float32 whatever the factors are, and matrices with ‖B‖ < 1e-12 skipped.
Where the recipe is silent, these choices are made here: a Cholesky factorisation that fails
(float32, from κ(B) of about 1e4 on) is retried with ten times the jitter, and that is reported; a
skipped matrix counts as R = 0 in the mean over modules; a B whose Gram overflows, or an A of zeros,
is skipped as well; 1/√r is 1/√min(r, d_in, d_out), which is another constant only where r is larger
than a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evilspectra.spectra.grams import refuse_non_finite
from evilspectra.spectra.pairs import LoraPair

#: Added to the diagonal of BᵀB. It floors σ at about 1e-4·‖A‖: a soft start of sorts.
JITTER = 1e-8
#: ‖B‖_F under which a matrix is skipped.
SKIP = 1e-12


@dataclass(frozen=True)
class PaperTerm:
    """The penalty at one point.

    `value`: R; `frobenius`: ‖L·A‖_F, which is ‖B·A‖_F but for the jitter; `gradients`: (∇_B, ∇_A)
    in the number type of the computation; `route`: plain, jitter (raised to `jitter`) or skipped.
    """

    value: float
    frobenius: float
    gradients: tuple[Tensor, Tensor] | None
    route: str
    jitter: float


def paper_flatness(pair: LoraPair, dtype: torch.dtype = torch.float32) -> PaperTerm:
    """The recipe on one pair; `dtype` is another one than float32 only to be compared with.

    Raises:
        BadInput: a factor is not finite.

    >>> pair = LoraPair("m", torch.eye(2, 3), torch.diag(torch.tensor([3.0, 1.0])), 1.0)
    >>> round(paper_flatness(pair).value, 4)
    0.0835
    """
    down, up = pair.A.detach().to(dtype), pair.B.detach().to(dtype)
    refuse_non_finite(pair)
    norm = float(torch.linalg.vector_norm(up))
    if norm < SKIP or not norm < torch.finfo(dtype).max ** 0.5 or not bool(down.any()):
        return PaperTerm(0.0, 0.0, None, "skipped", JITTER)
    with torch.enable_grad():
        down.requires_grad_()
        up.requires_grad_()
        gram = up.mT @ up
        eye = torch.eye(len(gram), dtype=dtype, device=gram.device)
        jitter = JITTER
        while True:
            root, failed = torch.linalg.cholesky_ex(gram + jitter * eye)
            if not int(failed):
                break
            jitter *= 10
        sigma = torch.linalg.svdvals(root.mT @ down)
        frobenius = sigma.square().sum().sqrt()
        value = frobenius / sigma.sum() - min(pair.shape) ** -0.5
        grad_up, grad_down = torch.autograd.grad(value, (up, down))
    return PaperTerm(
        float(value.detach()),
        float(frobenius.detach()),
        (grad_up, grad_down),
        "plain" if jitter == JITTER else "jitter",
        jitter,
    )
