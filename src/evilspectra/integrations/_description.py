"""The facts that a callback can learn about the training that it watches.

A field has the same name as in this package's config if the setting means the same. A missing or
null field is unknown; no default of this package's training loop replaces it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainerState, TrainingArguments

from evilspectra.integrations._factors import unwrapped
from evilspectra.spectra.pairs import LoraPair

#: Keys of an optimizer's group that are not settings.
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
    checkpointing = getattr(args, "activation_checkpointing", None)
    return {
        "trainer": {
            "arguments": f"{type(args).__module__.partition('.')[0]}.{type(args).__name__}",
            "processes": args.world_size,
        },
        "model": {
            "base": _base(model),
            "dtype": str(getattr(unwrapped(model), "dtype", None)),
            "gradient_checkpointing": checkpointing
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
            "mixed_precision": _mixed_precision(args),
            "seed": args.seed,
            "data_seed": args.data_seed,
        },
    }


def _mixed_precision(args: TrainingArguments) -> str | None:
    if args.bf16:
        return "bf16"
    return "fp16" if args.fp16 else None


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
    facts: dict[str, Any] = {
        "rank": ranks.pop() if len(ranks) == 1 else None,
        "modules": len(pairs),
    }
    name = adapter or getattr(inner, "active_adapter", None)
    config = getattr(inner, "peft_config", {}).get(name) if isinstance(name, str) else None
    if config is None:
        return facts
    targets = config.target_modules
    return facts | {
        "adapter": name,
        "alpha": config.lora_alpha,
        "rslora": config.use_rslora,
        "dropout": config.lora_dropout,
        "targets": targets if isinstance(targets, str) else sorted(targets or ()),
        "dora": config.use_dora,
        "initialisation": _initialisation(config.init_lora_weights),
    }


def _initialisation(setting: bool | str) -> str:
    if isinstance(setting, str):
        return setting
    return "default" if setting else "random B"


def _optimizer(optimizer: Any) -> dict[str, Any]:
    """Name, learning rate and settings.

    A setting that differs between groups is a list; differing learning rates are `lrs`, and `lr` is
    null.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    by_name: dict[str, list[Any]] = {}
    for group in optimizer.param_groups:
        if not group["params"]:
            continue
        by_name.setdefault("lr", []).append(float(group.get("initial_lr", group["lr"])))
        for name, value in group.items():
            if name not in _NO_SETTING and isinstance(value, bool | int | float | str | tuple):
                plain = list(value) if isinstance(value, tuple) else value
                by_name.setdefault(name, []).append(plain)
    settings = {
        name: values[0] if all(value == values[0] for value in values) else values
        for name, values in by_name.items()
    }
    rate = settings.pop("lr", None)
    return {
        "name": type(inner).__name__,
        "lr": rate if isinstance(rate, float) else None,
        **({"lrs": rate} if isinstance(rate, list) else {}),
        **settings,
    }
