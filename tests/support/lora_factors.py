"""Random LoRA factors with the properties that tests ask for."""

import torch

from evilspectra.spectra.pairs import LoraPair


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator)).Q


def graded(
    rows: int,
    columns: int,
    condition: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """rows × columns with singular values from 1 down to 1/condition, log-spaced."""
    k = min(rows, columns)
    sigma = torch.logspace(
        0, -float(torch.log10(torch.tensor(condition, dtype=torch.float64))), k, dtype=torch.float64
    )
    return orthonormal(rows, k, generator) * sigma @ orthonormal(columns, k, generator).T


def graded_pair(
    r: int,
    d_in: int,
    d_out: int,
    condition_a: float = 2.0,
    condition_b: float = 2.0,
    size: float = 1.0,
    scale: float = 1.0,
    seed: int = 0,
) -> LoraPair:
    generator = torch.Generator().manual_seed(seed)
    A, B = graded(r, d_in, condition_a, generator), size * graded(d_out, r, condition_b, generator)
    return LoraPair("layer", torch.nn.Parameter(A), torch.nn.Parameter(B), scale)


def cancelling_pair(
    r: int,
    d_in: int,
    d_out: int,
    condition: float,
    seed: int = 0,
) -> LoraPair:
    """κ(A) = κ(B) = condition, yet B·A is perfectly flat."""
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.logspace(
        0, -float(torch.log10(torch.tensor(condition, dtype=torch.float64))), r, dtype=torch.float64
    )
    inner = orthonormal(r, r, generator)
    A = inner @ torch.diag(sigma) @ orthonormal(d_in, r, generator).T
    B = orthonormal(d_out, r, generator) @ torch.diag(1 / sigma) @ inner.T
    return LoraPair("layer", torch.nn.Parameter(A), torch.nn.Parameter(B), 1.0)


def known_pair(
    r: int,
    d_in: int,
    d_out: int,
    a: torch.Tensor,
    b: torch.Tensor,
    seed: int = 0,
) -> tuple[LoraPair, torch.Tensor]:
    """A pair with known singular values, and those of B·A, descending.

    A and B have the singular values a and b (r ≤ d_in, d_out) along the same inner directions, so
    that B·A has a·b.
    """
    generator = torch.Generator().manual_seed(seed)
    inner = orthonormal(r, r, generator)
    A = inner * a @ orthonormal(d_in, r, generator).T
    B = orthonormal(d_out, r, generator) * b @ inner.T
    return LoraPair("layer", torch.nn.Parameter(A), torch.nn.Parameter(B), 1.0), (a * b).sort(
        descending=True
    ).values
