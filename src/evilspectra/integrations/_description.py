"""What a callback can know of the run that it watches, under the names of the own config where a
setting means the same.

A field that is missing, or null, is not known. Nothing is filled in from the own loop's defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainerState, TrainingArguments

from evilspectra.integrations._factors import unwrapped
from evilspectra.spectra.pairs import LoraPair

#: Keys of an optimizer's group that are no settings.
_NO_SETTING = ("params", "param_names", "lr", "initial_lr")


def described(
    args: TrainingArguments,
    state: TrainerState,
    model: nn.Module,
    optimizer: Any,
    loader: Any,
    pairs: Sequence[LoraPair],
    adapter: str | None,
) -> dict[str, dict[str, Any]]:
    """Section → field → value, of JSON's types."""
    rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    kind = args.lr_scheduler_type
    return {
        "trainer": {
            "arguments": f"{type(args).__module__.partition('.')[0]}.{type(args).__name__}",
            "processes": args.world_size,
        },
        "model": {
            "base": _base(model),
            "dtype": str(getattr(unwrapped(model), "dtype", None)),
            "gradient_checkpointing": getattr(args, "activation_checkpointing", None)
            or getattr(args, "gradient_checkpointing", None),
        },
        "data": _data(loader),
        "lora": _lora(model, pairs, adapter),
        "optimizer": _optimizer(optimizer),
        "schedule": {
            "name": str(getattr(kind, "value", kind)),
            "warmup_steps": args.get_warmup_steps(state.max_steps),
        },
        "train": {
            "batch_size": rows,
            "accumulation": args.gradient_accumulation_steps,
            "steps": state.max_steps,
            "clip_norm": args.max_grad_norm or None,
            "mixed_precision": "bf16" if args.bf16 else "fp16" if args.fp16 else None,
            "seed": args.seed,
            "data_seed": args.data_seed,
        },
    }


def _base(model: nn.Module) -> str | None:
    inner = unwrapped(model)
    for config in (*getattr(inner, "peft_config", {}).values(), getattr(inner, "config", None)):
        name = getattr(config, "base_model_name_or_path", None) or getattr(
            config, "_name_or_path", None
        )
        if name:
            return str(name)
    return None


def _data(loader: Any) -> dict[str, Any]:
    data = getattr(loader, "dataset", None)
    try:
        rows = len(data)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # a stream
        rows = None
    return {"rows": rows}


def _lora(model: nn.Module, pairs: Sequence[LoraPair], adapter: str | None) -> dict[str, Any]:
    inner = unwrapped(model)
    ranks = {pair.shape[0] for pair in pairs}
    found: dict[str, Any] = {
        "rank": ranks.pop() if len(ranks) == 1 else None,
        "modules": len(pairs),
    }
    name = adapter or getattr(inner, "active_adapter", None)
    config = getattr(inner, "peft_config", {}).get(name) if isinstance(name, str) else None
    if config is None:
        return found
    targets = config.target_modules
    found |= {
        "adapter": name,
        "alpha": config.lora_alpha,
        "rslora": config.use_rslora,
        "dropout": config.lora_dropout,
        "targets": targets if isinstance(targets, str) else sorted(targets or ()),
    }
    return found | {
        "dora": config.use_dora,
        "initialisation": config.init_lora_weights
        if isinstance(config.init_lora_weights, str)
        else "default"
        if config.init_lora_weights
        else "random B",
    }


def _optimizer(optimizer: Any) -> dict[str, Any]:
    """Name, learning rate and settings; one that differs between groups is a list, and such a
    learning rate is none.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    found: dict[str, list[Any]] = {}
    for group in optimizer.param_groups:
        if not group["params"]:
            continue
        found.setdefault("lr", []).append(float(group.get("initial_lr", group["lr"])))
        for name, value in group.items():
            if name not in _NO_SETTING and isinstance(value, bool | int | float | str | tuple):
                found.setdefault(name, []).append(
                    list(value) if isinstance(value, tuple) else value
                )
    settings = {
        name: values[0] if all(value == values[0] for value in values) else values
        for name, values in found.items()
    }
    rate = settings.pop("lr", None)
    return {
        "name": type(inner).__name__,
        "lr": rate if isinstance(rate, float) else None,
        **({"lrs": rate} if isinstance(rate, list) else {}),
        **settings,
    }
