"""Lion: the sign of an interpolated momentum.

    update = sign(β₁·m + (1 − β₁)·g)    m ← β₂·m + (1 − β₂)·g    w ← w − lr·(update + decay·w)

Every entry moves by exactly lr, so lr is a third to a tenth of AdamW's. A zero gradient with zero
momentum moves nothing. A NaN in a gradient stays in that entry's momentum, and because torch
evaluates sign(NaN) to 0, the entry never moves again: the caller must check the gradient's norm
before the step. Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms",
algorithm 2. Differences from the published code: lists of tensors are updated at once, weight decay
is 0 by default, and a tensor that is passed twice is refused. The momentum has the parameter's
number type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evilspectra.errors import BadInput
from evilspectra.optim.parameters import listed, loss_of, with_list


class Lion(Optimizer):
    """Lion with decoupled weight decay, over lists of tensors at once.

    Args:
        params: tensors, (name, tensor) pairs, or parameter groups.
        lr: step of every entry, > 0.
        betas: (β₁ of the update, β₂ of the momentum), each in [0, 1).
        weight_decay: decoupled, multiplied by lr.

    Raises:
        BadInput: a setting out of range, a tensor passed twice, or an empty group.

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675),
    algorithm 2.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.0]))
    >>> w.grad = torch.tensor([5.0, -0.1, 0.0])
    >>> Lion([w], lr=0.1).step(); w.data
    tensor([ 0.9000, -0.9000,  0.0000])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0:
            raise BadInput(f"Lion: lr {lr} is not positive")
        if not all(0 <= beta < 1 for beta in betas):
            raise BadInput(f"Lion: betas {betas} are not both in [0, 1)")
        if weight_decay < 0:
            raise BadInput(f"Lion: weight_decay {weight_decay} is negative")
        super().__init__(
            listed(params, "Lion"), {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; refuses a tensor that is passed twice, and an empty group."""
        super().add_param_group(with_list(param_group, "Lion"))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all parameters that have a gradient; returns what `closure` returns."""
        loss = loss_of(closure)
        for group in self.param_groups:
            weights: list[Tensor] = [
                weight for weight in group["params"] if weight.grad is not None
            ]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            momenta = [self.state[weight]["momentum"] for weight in weights]
            beta1, beta2 = group["betas"]
            updates = torch._foreach_lerp(momenta, gradients, 1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
        return loss
