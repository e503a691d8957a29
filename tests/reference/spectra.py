"""Spectra and flatness through the dense product, in float64."""

import torch


def dense_values(A: torch.Tensor, B: torch.Tensor, scale: float) -> torch.Tensor:
    """The min(r, d_in, d_out) singular values of scale·B·A, from the dense product in float64."""
    return torch.linalg.svdvals(scale * (B.double() @ A.double()))[: min(*A.shape, B.shape[0])]


def spectral_function(sigma: torch.Tensor, measure: str) -> torch.Tensor:
    """R of k singular values, as its definition reads."""
    k = len(sigma)
    if measure == "frobenius_nuclear":
        return sigma.square().sum().sqrt() / sigma.sum() - k**-0.5
    if measure == "entropy":
        share = sigma / sigma.sum()
        return torch.tensor(float(k), dtype=sigma.dtype).log() + (share * share.log()).sum()
    return 1 - sigma.square().sum() ** 2 / (k * sigma.pow(4).sum())


def flatness_by_autograd(
    A: torch.Tensor, B: torch.Tensor, measure: str = "frobenius_nuclear"
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(R, ∇_A R, ∇_B R) by autograd through a dense SVD in float64."""
    A, B = A.detach().double().requires_grad_(), B.detach().double().requires_grad_()
    sigma = torch.linalg.svdvals(B @ A)[: min(*A.shape, B.shape[0])]
    value = spectral_function(sigma, measure)
    grad_a, grad_b = torch.autograd.grad(value, (A, B))
    return float(value.detach()), grad_a, grad_b


def flatness_by_differences(
    A: torch.Tensor,
    B: torch.Tensor,
    direction: torch.Tensor,
    measure: str,
    step: float = 1e-5,
) -> float:
    """The derivative of R along a direction in B, by central differences of the dense product."""
    k = min(*A.shape, B.shape[0])
    ends = [
        spectral_function(torch.linalg.svdvals((B + sign * step * direction) @ A)[:k], measure)
        for sign in (1, -1)
    ]
    return float(ends[0] - ends[1]) / (2 * step)
