"""Muon on one matrix, with the published iterations literally, and the decomposition itself."""

import torch

A, B, C = 3.4445, -4.7750, 2.0315

# arXiv 2505.16932, listing 1
POLAR = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def newton_schulz(gradient: torch.Tensor, steps: int = 5) -> torch.Tensor:
    x = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
    norm = x.norm()
    x = x / norm if norm > 0 else x
    for _ in range(steps):
        s = x @ x.T
        x = A * x + B * s @ x + C * s @ s @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


def polar_express(gradient: torch.Tensor) -> torch.Tensor:
    x = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
    norm = 1.01 * x.norm()
    x = x / norm if norm > 0 else x
    for step, (a, b, c) in enumerate(POLAR):
        safety = 1.01 if step < 7 else 1.0
        s = x @ x.T
        x = a / safety * x + b / safety**3 * s @ x + c / safety**5 * s @ s @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


def exact(gradient: torch.Tensor) -> torch.Tensor:
    u, sigma, vh = torch.linalg.svd(gradient, full_matrices=False)
    resolved = sigma > 32 * torch.finfo(gradient.dtype).eps * sigma[0]
    return u[:, resolved] @ vh[resolved]


def muon_step(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    momentum: torch.Tensor,
    lr: float,
    rule: str,
    beta: float,
    nesterov: bool,
    decay: float,
    method: str = "newton_schulz",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(new weight, new momentum)."""
    momentum = beta * momentum + (1 - beta) * gradient
    direction = beta * momentum + (1 - beta) * gradient if nesterov else momentum
    update = {"newton_schulz": newton_schulz, "polar_express": polar_express, "exact": exact}[
        method
    ](direction)
    rows, columns = weight.shape
    factor = {
        "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
        "original": max(1.0, rows / columns) ** 0.5,
        "spectral_unclamped": (rows / columns) ** 0.5,
    }[rule]
    return weight * (1 - lr * decay) - lr * factor * update, momentum
