"""The paper's flatness penalty, line by line as it is published: no retries, no skips, float32."""

import torch


def paper_by_autograd(A: torch.Tensor, B: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(R, ∇_A R, ∇_B R)."""
    A, B = A.detach().float().requires_grad_(), B.detach().float().requires_grad_()
    G = B.T @ B
    L = torch.linalg.cholesky(G + 1e-8 * torch.eye(G.shape[0]))
    sigma = torch.linalg.svdvals(L.T @ A)
    value = torch.sqrt((sigma**2).sum()) / sigma.sum() - 1 / G.shape[0] ** 0.5
    value.backward()
    assert A.grad is not None
    assert B.grad is not None
    return float(value.detach()), A.grad, B.grad
