"""Adapters that PEFT has made and saved, changed as other tools would have stored them."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from evilspectra.model.tiny import tiny_model
from tests.support.commands import command


@torch.no_grad()
def adapted(base: nn.Module | None = None, seed: int = 0, **config) -> PeftModel:
    """A model with an adapter whose B is not zero."""
    torch.manual_seed(seed)
    model = get_peft_model(
        base or tiny_model(),
        LoraConfig(**{"target_modules": "all-linear", "r": 4, "lora_alpha": 8} | config),
    )
    return moved(model)


@torch.no_grad()
def moved(model: PeftModel) -> PeftModel:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def stored(folder: Path, change) -> None:
    """Rewrites an adapter's tensors: `change` takes a name and a tensor and gives both."""
    path = folder / "adapter_model.safetensors"
    save_file(
        dict(change(name, tensor.contiguous()) for name, tensor in load_file(path).items()),
        path,
        {"format": "pt"},
    )


def settings_of(folder: Path, **changes) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def written(folder: Path, *pairs) -> Path:
    """Pairs as an adapter's folder; the scale of all is that of the first."""
    folder.mkdir(exist_ok=True, parents=True)
    save_file(
        {
            f"base_model.model.m{number}.lora_{factor}.weight": getattr(pair, factor)
            .detach()
            .contiguous()
            for number, pair in enumerate(pairs)
            for factor in "AB"
        },
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "lora_alpha": pairs[0].scale * pairs[0].shape[0], "r": None}
        )
    )
    return folder


def xrays(*arguments) -> list[dict]:
    """The adapters of `spectrum --json`."""
    done = command("spectrum", *arguments, "--json", "--quiet")
    assert done.code == 0, done.err
    return json.loads(done.out)
