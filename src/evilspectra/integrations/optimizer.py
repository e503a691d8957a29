"""This package's optimisers for Hugging Face's trainers.

A trainer builds an optimizer from nameless tensors in two groups, and sets its own weight decay.
The optimizers here are built from the model instead: they know the parameters' names, which
`b_only` and LoRA-RITE need, put everything that is trained into one group, and keep their own
decay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evilspectra.config.loading import build
from evilspectra.config.optimizers import OptimizerConfig
from evilspectra.errors import BadInput
from evilspectra.integrations._factors import COMPILED, unwrapped
from evilspectra.optim.build import build_optimizer
from evilspectra.spectra.pairs import find_pairs


def lora_optimizer(name: str, **settings: Any) -> tuple[type[LoraOptimizer], dict[str, Any]]:
    """Makes the argument of `Trainer(..., optimizer_cls_and_kwargs=lora_optimizer("muon", ...))`.

    For a trainer without that argument (TRL's DPOTrainer, GRPOTrainer), set the attribute before
    training: `trainer.optimizer_cls_and_kwargs = lora_optimizer(...)`.

    Args:
        name: sgd, adam, adamw, lion, muon, soap, scion, lora-rite or adafactor.
        settings: fields of that optimizer's section of a config (`evilspectra config schema`). They
            alone count: the trainer's learning_rate, weight_decay, optim and so on are ignored; its
            schedule is used.

    Raises:
        BadInput: an unknown name or field, or a value out of bounds.

    >>> lora_optimizer("muon", lr=1e-3)[1]["config"].lr_rule
    'match_rms_adamw'
    """
    return LoraOptimizer, {"config": _block("lora_optimizer", name, settings)}


def build_for(model: nn.Module, name: str, **settings: Any) -> torch.optim.Optimizer:
    """The optimizer itself, for a trainer's argument `optimizers`.

    For example `Trainer(..., optimizers=(build_for(model, "muon", lr=1e-3), None))`.

    Args:
        model: with its adapter, that is, after `get_peft_model`.
        name, settings: as for `lora_optimizer`.

    Raises:
        BadInput: as for `lora_optimizer`; a model without LoRA, or whose parameters the optimizer
            cannot train.
    """
    return _built(model, _block("build_for", name, settings), "build_for")


class LoraOptimizer:
    """The factory that Hugging Face's trainer calls with the model when it needs the optimizer.

    Axolotl passes further arguments, which are ignored.
    """

    def __init__(self, *groups: Any, **settings: Any) -> None:
        if groups or settings:
            raise BadInput(
                "lora_optimizer: this version of transformers takes optimizer classes only: pass "
                "optimizers=(build_for(model, ...), None) instead"
            )

    def __call__(
        self, model: nn.Module, *arguments: Any, config: OptimizerConfig
    ) -> torch.optim.Optimizer:
        return _built(model, config, "lora_optimizer")


def _block(who: str, name: str, settings: dict[str, Any]) -> OptimizerConfig:
    return build({"optimizer": {**settings, "name": name}}, who).optimizer


def _built(model: nn.Module, config: OptimizerConfig, who: str) -> torch.optim.Optimizer:
    model = unwrapped(model)
    try:
        find_pairs(model)
    except BadInput as error:
        raise BadInput(
            f"{who}: {error}; adapt the model first (get_peft_model, or the trainer's peft_config "
            "with lora_optimizer)"
        ) from None
    trained = [
        (name.replace(f"{COMPILED}.", ""), parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    return build_optimizer(config, trained)
