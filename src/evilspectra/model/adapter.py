"""LoRA adapters on a base model: attaching, saving, loading and removing them."""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn

from evilspectra.config.sections import LoraConfig
from evilspectra.errors import BadInput, first_line, listing, near
from evilspectra.model.load import quiet_libraries
from evilspectra.spectra.pairs import LoraPair, find_pairs
from evilspectra.spectra.peft_files import WEIGHTS, inside
from evilspectra.spectra.safetensors_files import Mapped
from evilspectra.store.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def attach(
    model: PreTrainedModel,
    config: LoraConfig,
    seed: int,
    public_name: str,
) -> PeftModel:
    """A new adapter on the base: B = 0, A uniform in ±1/√d_in (PEFT's initialisation).

    A is drawn from its own generator, so the process's random state does not matter.

    Raises:
        BadInput: targets that match nothing (the message lists what exists), or a rank larger than
            a targeted matrix.
    """
    targets = _targets(model, config)
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        use_rslora=config.rslora,
        lora_dropout=config.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=public_name,
    )
    with quiet_libraries():
        try:
            adapted = get_peft_model(model, settings, autocast_adapter_dtype=True)
        except ValueError as error:
            raise BadInput(
                f"PEFT cannot adapt {type(model).__name__} with lora.targets {config.targets} "
                f"({first_line(error)}): name other targets"
            ) from None
    _keep_input_dtype(adapted)
    generator = torch.Generator().manual_seed(seed)
    for pair in sorted(find_pairs(adapted), key=lambda pair: pair.name):
        limit = 1 / math.sqrt(pair.A.shape[1])
        drawn = torch.empty(pair.A.shape, dtype=torch.float64).uniform_(
            -limit, limit, generator=generator
        )
        with torch.no_grad():
            pair.A.copy_(drawn)
    return adapted  # type: ignore[return-value]


def _keep_input_dtype(model: nn.Module) -> None:
    """Lets LoRA layers take activations in the base's type.

    PEFT would cast each input to the adapter's float32.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.cast_input_dtype_enabled = False


def _targets(model: PreTrainedModel, config: LoraConfig) -> list[str] | str:
    """Layers that PEFT is to adapt, by name.

    Where the base has linear layers outside its text model (a vision tower), by full path.
    """
    head = model.get_output_embeddings()
    text = {id(module) for module in model.get_decoder().modules()}
    everywhere = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    linear = {path: module for path, module in everywhere.items() if id(module) in text}
    chosen = linear
    targets = config.targets
    if config.targets != "all-linear":
        names = [config.targets] if isinstance(config.targets, str) else list(config.targets)
        leaves = sorted({path.rsplit(".", 1)[-1] for path in linear})
        for name in names:
            if not any(_matches(path, name) for path in linear):
                raise BadInput(
                    f"lora.targets '{name}' matches no linear layer of {type(model).__name__}; "
                    f"there are: {listing(leaves, 20)}, or all-linear.{near(name, leaves)}"
                )
        chosen = {
            path: module
            for path, module in linear.items()
            if any(_matches(path, name) for name in names)
        }
        targets = names
    if not chosen:
        raise BadInput(
            f"{type(model).__name__} has no linear layers (torch.nn.Linear) to adapt: name another "
            "base"
        )
    path = min(chosen, key=lambda path: _smaller_side(chosen[path]))
    module = chosen[path]
    if config.rank > (smallest := _smaller_side(module)):
        raise BadInput(
            f"lora.rank {config.rank} is larger than {path} ({module.out_features} × "
            f"{module.in_features}): set lora.rank to {smallest} or less, or leave that layer out "
            "of lora.targets"
        )
    if len(linear) < len(everywhere):
        return list(chosen)
    return targets if isinstance(targets, str) else list(targets)


def _smaller_side(layer: nn.Linear) -> int:
    return min(layer.in_features, layer.out_features)


def _matches(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def save_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    finish: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Writes an adapter in PEFT's form: safetensors, config, tokenizer.

    The folder is replaced at once, or left untouched; `finish` may put more files into the new one.
    """

    def write(target: Path) -> None:
        target.mkdir()
        model.save_pretrained(str(target), save_embedding_layers=False)
        settings = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
        settings = {
            key: sorted(value) if key == "target_modules" and isinstance(value, list) else value
            for key, value in settings.items()
        }
        (target / "adapter_config.json").write_text(
            json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        tokenizer.save_pretrained(str(target))
        finish(target)

    write_atomically(folder, write)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with a saved adapter on it, in evaluation mode, never merged into its weights.

    `detach` takes the adapter off again.

    Raises:
        BadInput: the folder holds no PEFT adapter in safetensors, or one for another model.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise BadInput(
                f"{folder} holds no {name}: name the folder of a PEFT adapter saved as safetensors"
            )
    # a damaged or malicious file is refused before the libraries read it
    Mapped(inside(folder, WEIGHTS))
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(io.StringIO()):
        warnings.simplefilter("always")
        try:
            adapted = PeftModel.from_pretrained(
                model, str(folder), is_trainable=False, local_files_only=True
            )
        except Exception as error:  # as in load_base
            raise BadInput(
                f"the adapter in {folder} does not fit {model.name_or_path} ({first_line(error)}): "
                "name the base that it was trained on"
            ) from None
    if not hasattr(adapted.base_model, "unload"):
        raise BadInput(
            f"the adapter in {folder} is a {adapted.peft_config['default'].peft_type}, which "
            "changes no weights: name a LoRA adapter, or another kind that PEFT can take off again"
        )
    with safe_open(folder / "adapter_model.safetensors", "pt") as stored:
        extra = set(stored.keys()) - {
            re.sub(r"\.default(?=\.|$)", "", name).replace(".modules_to_save", "")
            for name in adapted.state_dict()
        }
    if extra:  # of a deeper model, say: PEFT would ignore them
        raise BadInput(
            f"the adapter in {folder} has weights that {model.name_or_path} has no place for "
            f"({listing(sorted(extra), 2)}): name the base that it was trained on"
        )
    warned = [str(warning.message) for warning in caught]
    if absent := [message for message in warned if "missing adapter keys" in message]:
        raise BadInput(
            f"the adapter in {folder} lacks weights that it should have on {model.name_or_path} "
            f"({absent[0][:160]}): name the base that it was trained on"
        )
    _keep_input_dtype(adapted)
    return adapted.eval()


def detach(adapted: PeftModel) -> None:
    """Takes an adapter off its base again."""
    with quiet_libraries():
        adapted.unload()


def adapter_state(pairs: list[LoraPair]) -> dict[str, torch.Tensor]:
    """The factors by name, on the CPU, for the resume state."""
    return {
        f"{pair.name}.{factor}": getattr(pair, factor).detach().cpu().clone()
        for pair in pairs
        for factor in ("A", "B")
    }


@torch.no_grad()
def restore_adapter(pairs: list[LoraPair], state: dict[str, torch.Tensor]) -> None:
    """Puts the factors of `adapter_state` back."""
    for pair in pairs:
        for factor in ("A", "B"):
            getattr(pair, factor).copy_(state[f"{pair.name}.{factor}"])
