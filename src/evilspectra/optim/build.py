"""The optimiser that a config names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from evilspectra.config import optimizers as c
from evilspectra.optim.extra import build_extra
from evilspectra.optim.lion import Lion
from evilspectra.optim.muon import Muon
from evilspectra.optim.own import build_own
from evilspectra.optim.parameters import listed


def build_optimizer(
    config: c.OptimizerConfig, parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]]
) -> torch.optim.Optimizer:
    """Builds the optimiser of a config block over the trainable tensors.

    Adam and AdamW differ in nothing but the decay.

    Args:
        config: one of the optimiser blocks.
        parameters: tensors, or (name, tensor) pairs, which `muon` with `factors: b_only` needs and
            `lora-rite` sorts by.

    Raises:
        BadInput: no parameters, a tensor passed twice, parameters that the optimiser cannot train,
            a package that is missing, or a class of the user's own that cannot be used.

    >>> build_optimizer(c.SGD(lr=0.1), [torch.nn.Parameter(torch.zeros(2))]).defaults["lr"]
    0.1
    """
    trainable: Any = listed(parameters, f"optimizer.name '{config.name}'")
    match config:
        case c.SGD():
            return torch.optim.SGD(
                trainable,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                foreach=True,
            )
        case c.Adam() | c.AdamW():
            decay = config.weight_decay if isinstance(config, c.AdamW) else 0.0
            return torch.optim.AdamW(
                trainable,
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                weight_decay=decay,
                foreach=True,
            )
        case c.Lion():
            return Lion(
                trainable, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
            )
        case c.Muon():
            return Muon(trainable, **config.model_dump(exclude={"name"}))
        case c.SOAP() | c.Scion() | c.LoraRite() | c.Adafactor():
            return build_extra(config, trainable)
        case c.Custom():
            return build_own(config, trainable)
