"""SOAP, SCION, LoRA-RITE and AdaFactor of pytorch-optimizer (the extra `optimizers`), for LoRA.

These settings are fixed here instead of in a config, because the package's own defaults do not suit
factors of shape r × d:

    SOAP       preconditioners up to the largest smaller side only, so r × r and never d × d;
               dimensions are not merged
    SCION      the spectral norm's oracle for matrices, the RMS norm's for vectors; unconstrained,
               so no pull towards zero
    LoRA-RITE  needs A and B of each layer in turn: they are brought into that order by name, and
               anything else is refused
    AdaFactor  lr as configured: the package's relative step ignores it, and its scaling by the
               parameter's RMS would all but stop B, which starts at zero; momentum, where there is
               any, in float32 instead of bfloat16
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from evilspectra.config import optimizers as c
from evilspectra.errors import BadInput, listing
from evilspectra.optim.parameters import Parameters

PACKAGE, MODULE = "pytorch-optimizer", "pytorch_optimizer"
#: The package's number for "spectral norm for matrices, RMS norm for vectors"; a plain int, which a
#: resume state can hold.
SCION_AUTO = 1
#: PEFT's names of the two factors of a layer.
A_MARK, B_MARK = "lora_A", "lora_B"
Extra = c.SOAP | c.Scion | c.LoraRite | c.Adafactor


def require(config: c.OptimizerConfig) -> None:
    """Checks that the package that an optimiser comes from is installed, without importing it.

    Raises:
        BadInput: it is missing.
    """
    if isinstance(config, Extra) and find_spec(MODULE) is None:
        raise BadInput(
            f"optimizer.name '{config.name}' needs the package {PACKAGE}, which is not installed: "
            f"pip install --no-deps {PACKAGE}, or name another optimiser"
        )


def build_extra(config: Extra, parameters: Parameters) -> torch.optim.Optimizer:
    """Builds the package's optimiser over tensors or (name, tensor) pairs.

    Raises:
        BadInput: the package is missing, or LoRA-RITE gets tensors that are not pairs of factors.
    """
    require(config)
    package: Any = import_module(MODULE)
    match config:
        case c.SOAP():
            return package.SOAP(
                parameters,
                lr=config.lr,
                betas=config.betas,
                weight_decay=config.weight_decay,
                precondition_frequency=config.precondition_every,
                max_precondition_dim=_largest_smaller_side(parameters),
                merge_dims=False,
                precondition_1d=False,
                eps=config.eps,
            )
        case c.Scion():
            return package.SCION(
                parameters,
                lr=config.lr,
                momentum=1 - config.momentum,
                constraint=False,
                norm_type=SCION_AUTO,
                foreach=True,
            )
        case c.LoraRite():
            return package.LoRARite(
                in_pairs(parameters),
                lr=config.lr,
                betas=config.betas,
                eps=config.eps,
                clip_unmagnified_grad=config.clip,
                update_skipping=config.skip,
                weight_decay=config.weight_decay,
            )
        case c.Adafactor():
            return package.AdaFactor(
                parameters,
                lr=config.lr,
                betas=(config.momentum or None, config.beta2_cap),
                decay_rate=-config.decay,
                clip_threshold=config.clip,
                weight_decay=config.weight_decay,
                scale_parameter=False,
                relative_step=False,
                momentum_dtype=torch.float32,
                foreach=True,
            )


def in_pairs(parameters: Parameters) -> Parameters:
    """Orders named factors as A₁, B₁, A₂, B₂, …; unnamed ones must be in this order already.

    Raises:
        BadInput: some parameter is not a factor, or lacks its partner.

    >>> A, B = torch.zeros(2, 3), torch.zeros(4, 2)
    >>> [name for name, _ in in_pairs([("q.lora_B.weight", B), ("q.lora_A.weight", A)])]
    ['q.lora_A.weight', 'q.lora_B.weight']
    """
    named: dict[str, Tensor] = dict(pair for pair in parameters if isinstance(pair, tuple))
    if named:
        ordered = []
        for name in named:
            if A_MARK in name:
                ordered += [name, name.replace(A_MARK, B_MARK)]
        alone = sorted(set(ordered) ^ named.keys())
        if alone:
            verb = "has" if len(alone) == 1 else "have"
            raise BadInput(
                f"optimizer.name 'lora-rite' trains pairs of LoRA factors; {listing(alone, 3)} "
                f"{verb} no partner: train nothing else, or name another optimiser"
            )
        parameters = [(name, named[name]) for name in ordered]
    tensors = _tensors(parameters)
    matching = len(tensors) % 2 == 0 and all(
        a.ndim == b.ndim == 2 and a.shape[0] == b.shape[1]
        for a, b in zip(tensors[::2], tensors[1::2], strict=False)
    )
    if not matching:
        raise BadInput(
            "optimizer.name 'lora-rite' trains pairs of LoRA factors, A (r × d_in) before B "
            "(d_out × r) of each layer: pass them in this order, or as (name, tensor) pairs"
        )
    return parameters


def _largest_smaller_side(parameters: Parameters) -> int:
    return max(
        (min(tensor.shape) for tensor in _tensors(parameters) if tensor.ndim == 2), default=1
    )


def _tensors(parameters: Parameters) -> list[Tensor]:
    return [pair[1] if isinstance(pair, tuple) else pair for pair in parameters]
