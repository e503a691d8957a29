"""The LoRA factors that a trainer trains, and all reasons why the penalty cannot affect them.

Everything is checked before the first step. The penalty is added to gradients that are complete,
not sharded, and about to be used. A trainer that steps inside the backward pass, or shards or
quantises a factor, is refused by name, because the penalty would have no effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from evilspectra.errors import BadInput, listing
from evilspectra.spectra.pairs import LoraPair, find_pairs

#: The part of a module's path that torch.compile adds.
COMPILED = "_orig_mod"
#: Optimisers of Hugging Face's trainer that move weights in hooks of the backward pass.
IN_BACKWARD = ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo")
#: accelerate's kinds of distribution under which gradients are missing or incomplete when callbacks
#: are called.
_ENGINES = {
    "DEEPSPEED": "under DeepSpeed the backward pass already steps the engine",
    "MEGATRON_LM": "under Megatron-LM the engine steps by itself",
}
_REMEDY = "train on one device or under plain data parallelism (DDP)"


def trained_pairs(
    model: nn.Module,
    optimizer: Any,
    adapter: str | None,
    who: str,
) -> list[LoraPair]:
    """The pairs of a model in training, in module order; A and B are the live parameters.

    Args:
        model: as callbacks receive it; wrappers of torch.compile and of data parallelism are
            removed.
        optimizer: the trainer's, bare or as accelerate wraps it.
        adapter: PEFT's name of the adapter; by default the only active one.
        who: the beginning of every message.

    Raises:
        BadInput: no LoRA on linear layers, no such adapter, several active ones; factors that are
            sharded, offloaded, quantised, frozen, or unknown to the optimizer; an engine or
            optimizer that steps by itself.
    """
    pairs = observed_pairs(model, optimizer, adapter, who)
    factors = [factor for pair in pairs for factor in (pair.A, pair.B)]
    named = f"adapter '{adapter}'" if adapter else "the active adapter"
    if not any(factor.requires_grad for factor in factors):
        raise BadInput(
            f"{who}: no factor of {named} requires a gradient, so it is not being trained: load it "
            "with is_trainable=True, or name the one that is trained with adapter=..."
        )
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not any(id(factor) in held for factor in factors):
        raise BadInput(
            f"{who}: the optimizer holds no factor of {named}, so a gradient added to them would "
            "have no effect: build the optimizer after the adapter, or name the one that is "
            "trained with adapter=..."
        )
    return pairs


def observed_pairs(
    model: nn.Module,
    optimizer: Any,
    adapter: str | None,
    who: str,
) -> list[LoraPair]:
    """The same for a monitor, which only reads: frozen factors are included.

    Raises:
        BadInput: as `trained_pairs`, except for frozen factors and those unknown to the optimizer.
    """
    model = unwrapped(model)
    _refuse_engines(model, optimizer, who)
    for name, factor in _factors(model):
        _refuse_kind(name, factor, who)
    if adapter is None and len(active := _active(model)) > 1:
        raise BadInput(
            f"{who}: {len(active)} adapters are active ({listing(active)}), and the mean over "
            "modules would mix them: name one with adapter=..."
        )
    try:
        pairs = find_pairs(model, adapter)
    except BadInput as error:
        raise BadInput(f"{who}: {error}") from None
    return [replace(pair, name=pair.name.replace(f"{COMPILED}.", "")) for pair in pairs]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and data parallelism's wrappers.

    >>> unwrapped(nn.DataParallel(inner := nn.Linear(1, 1))) is inner
    True
    """
    while True:
        inner = (
            model.module
            if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
            else model._modules.get(COMPILED)
        )
        if inner is None:
            return model
        model = inner


def learning_rates(optimizer: Any, pairs: Sequence[LoraPair]) -> list[float]:
    """The learning rates at which the optimizer moves the pairs' factors now, each once."""
    factors = {id(factor) for pair in pairs for factor in (pair.A, pair.B)}
    rates = [
        float(group["lr"])
        for group in optimizer.param_groups
        if any(id(weight) in factors for weight in group["params"])
    ]
    return list(dict.fromkeys(rates))


def _refuse_engines(model: nn.Module, optimizer: Any, who: str) -> None:
    kind = getattr(getattr(optimizer, "accelerator_state", None), "distributed_type", None)
    name = str(getattr(kind, "value", kind))
    if name in _ENGINES:
        raise BadInput(f"{who}: {_ENGINES[name]}, before a callback can add a gradient: {_REMEDY}")
    if name == "FSDP" or any(
        "FullyShardedDataParallel" in _kinds(module) for module in model.modules()
    ):
        raise BadInput(
            f"{who}: under FSDP a process holds only a part of every factor, and a spectrum needs "
            f"the whole: {_REMEDY}"
        )
    inner = getattr(optimizer, "optimizer", optimizer)
    if in_backward := [name for name in IN_BACKWARD if name in _kinds(inner)]:
        raise BadInput(
            f"{who}: {in_backward[0]} moves the weights during the backward pass, before a "
            "callback can add a gradient: choose an optim that steps once per step, such as "
            "adamw_torch"
        )
    if hasattr(inner, "_amp_stash"):
        raise BadInput(
            f"{who}: Apex's amp keeps gradients scaled until its own step: use the trainer's bf16 "
            "or fp16 instead"
        )
    if any(getattr(weight, "_in_backward_optimizers", None) for weight in model.parameters()):
        raise BadInput(
            f"{who}: an optimizer is applied in the backward pass, before a callback can add a "
            "gradient: choose one that steps once per step"
        )


def _refuse_kind(name: str, factor: Tensor, who: str) -> None:
    if "DTensor" in _kinds(factor):
        raise BadInput(
            f"{who}: {name} is sharded over processes (a DTensor), and a spectrum needs the whole "
            f"factor: {_REMEDY}"
        )
    if factor.device.type == "meta":
        raise BadInput(
            f"{who}: {name} is offloaded and has no values when a callback is called: keep the "
            "adapter in memory"
        )
    if (
        not factor.is_floating_point()
        or factor.element_size() < 2
        or type(factor) not in (Tensor, nn.Parameter)
    ):
        raise BadInput(
            f"{who}: {name} is quantised ({type(factor).__name__}, {factor.dtype}): keep the "
            "adapter in float32, bfloat16 or float16; the base may be quantised"
        )


def _kinds(instance: object) -> set[str]:
    """Names of an instance's class and of all its bases."""
    return {kind.__name__ for kind in type(instance).__mro__}


def _factors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        for side in ("lora_A", "lora_B"):
            layers = getattr(module, side, None)
            by_adapter = layers if isinstance(layers, nn.ModuleDict) else {"": layers}
            for key, layer in by_adapter.items():
                weight = getattr(layer, "weight", layer)
                if isinstance(weight, Tensor):
                    yield ".".join(filter(None, (path, side, key))), weight


def _active(model: nn.Module) -> list[str]:
    """Names of the active LoRA adapters, in the order in which the modules have them."""
    names: dict[str, None] = {}
    for module in model.modules():
        down = getattr(module, "lora_A", None)
        if isinstance(down, nn.ModuleDict) and hasattr(module, "scaling"):
            active = getattr(module, "active_adapters", ())
            names |= dict.fromkeys(name for name in active if name in down)
    return list(names)
