"""Lion, one entry of the published algorithm after the other."""

import torch


def lion_step(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    momentum: torch.Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    decay: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(new weight, new momentum)."""
    update = torch.sign(beta1 * momentum + (1 - beta1) * gradient)
    return weight - lr * (update + decay * weight), beta2 * momentum + (1 - beta2) * gradient
