"""Base model and tokenizer into memory; LoRA adapters attached and saved."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from filelock import FileLock
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from evilspectra.config.sections import LoraConfig, ModelConfig
from evilspectra.errors import BadInput, first_line, listing, near
from evilspectra.model.base import CACHE_VARIABLE, Base, cache_folder
from evilspectra.model.device import pick_device, pick_dtype
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from evilspectra.spectra.pairs import LoraPair, find_pairs
from evilspectra.spectra.peft_files import WEIGHTS, inside
from evilspectra.spectra.safetensors_files import Mapped
from evilspectra.store.files import write_atomically, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_base(base: Base, config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen base model on its device, in evaluation mode, and its tokenizer.

    Raises:
        BadInput: the files are no causal language model that transformers can build, or its
            tokenizer has no chat template.
    """
    device = pick_device(config)
    dtype = pick_dtype(config, device)
    tokenizer = load_tokenizer(base, config)
    if base.kind == "tiny":
        model: PreTrainedModel = tiny_model(dtype).to(device)  # type: ignore[assignment]
    else:
        folder = weights_folder(base)
        placing = {"device_map": config.device_map} if config.device_map else {}
        with _quiet():
            try:
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=dtype,
                    trust_remote_code=config.trust_remote_code,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **placing,
                )
            # damaged files make the loaders raise anything; all of it means the same to the user
            except Exception as error:
                raise BadInput(
                    f"model.base '{base.public_name}' could not be loaded as a causal language "
                    f"model ({first_line(error)}): name another base"
                ) from None
        model, told = loaded
        if absent := sorted(
            {
                *told["missing_keys"],
                *(
                    str(entry[0] if isinstance(entry, tuple) else entry)
                    for entry in told["mismatched_keys"]
                ),
            }
        ):
            raise BadInput(
                f"model.base '{base.public_name}' lacks weights that its config.json asks for, or "
                f"has them in another shape ({listing(absent, 3)}): download it again, or name "
                "another base"
            )
        if not config.device_map:
            model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    model.name_or_path = base.public_name
    return model, tokenizer


def load_tokenizer(base: Base, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a chat template.

    Raises:
        BadInput: it has none, or it cannot be loaded.
    """
    if base.kind == "tiny":
        return tiny_tokenizer()
    folder = weights_folder(base)
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=config.trust_remote_code, local_files_only=True
            )
        except Exception as error:  # as in load_base
            raise BadInput(
                f"the tokenizer of '{base.public_name}' could not be loaded ({first_line(error)}): "
                "name a folder that holds tokenizer.json"
            ) from None
    tokenizer.name_or_path = base.public_name
    if not tokenizer.chat_template:
        raise BadInput(
            f"the tokenizer of '{base.public_name}' has no chat template: use the instruct version "
            "of the model, or add chat_template.jinja to its folder"
        )
    return tokenizer


def context_length(model: PreTrainedModel) -> int:
    """Tokens that the model was made for; a very large number where its config does not say."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30)


def attach(
    model: PreTrainedModel,
    config: LoraConfig,
    seed: int,
    public_name: str,
) -> PeftModel:
    """A new adapter on the base: B = 0, A uniform in ±1/√d_in (PEFT's initialisation) from a
    generator of its own.

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
    with _quiet():
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


def save_activations_sparsely(model: PeftModel) -> None:
    """Turns gradient checkpointing on: activations are computed again in the backward pass."""
    with _quiet():
        model.gradient_checkpointing_enable()
        if not getattr(
            model.get_base_model(), "_require_grads_hooks", None
        ):  # some versions of transformers have done it
            model.enable_input_require_grads()


def keep_activations(model: PreTrainedModel) -> None:
    """Turns gradient checkpointing off again, where it is on."""
    with _quiet():
        if getattr(model, "is_gradient_checkpointing", False):
            model.gradient_checkpointing_disable()
            model.disable_input_require_grads()


def _keep_input_dtype(model: nn.Module) -> None:
    """Lets LoRA layers take activations in the base's type: PEFT would cast each whole input to the
    adapter's float32.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.cast_input_dtype_enabled = False


def _targets(model: PreTrainedModel, config: LoraConfig) -> list[str] | str:
    """What PEFT is to adapt: names as given, or whole paths where the base has linear layers beside
    its text model (a vision tower).
    """
    head, text = (
        model.get_output_embeddings(),
        {id(module) for module in model.get_decoder().modules()},
    )
    everywhere = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    linear = {path: module for path, module in everywhere.items() if id(module) in text}
    chosen, targets = linear, config.targets
    if config.targets != "all-linear":
        names = [config.targets] if isinstance(config.targets, str) else list(config.targets)
        leaves = sorted({path.rsplit(".", 1)[-1] for path in linear})
        for name in names:
            if not any(_matches(path, name) for path in linear):
                raise BadInput(
                    f"lora.targets '{name}' matches no linear layer of {type(model).__name__}; "
                    f"there are: {listing(leaves, 20)}, or all-linear.{near(name, leaves)}"
                )
        chosen, targets = (
            {
                path: module
                for path, module in linear.items()
                if any(_matches(path, name) for name in names)
            },
            names,
        )
    if not chosen:
        raise BadInput(
            f"{type(model).__name__} has no linear layers (torch.nn.Linear) to adapt: name another "
            "base"
        )
    path, module = min(
        chosen.items(), key=lambda item: min(item[1].in_features, item[1].out_features)
    )
    if config.rank > (smallest := min(module.in_features, module.out_features)):
        raise BadInput(
            f"lora.rank {config.rank} is larger than {path} ({module.out_features} × "
            f"{module.in_features}): set lora.rank to {smallest} or less, or leave that layer out "
            "of lora.targets"
        )
    if len(linear) < len(everywhere):
        return list(chosen)
    return targets if isinstance(targets, str) else list(targets)


def _matches(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def save_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    finish: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Writes an adapter in PEFT's form (safetensors, config, tokenizer) as a whole; `finish` may
    put more into the folder. Replaces what was there.
    """

    def write(place: Path) -> None:
        place.mkdir()
        model.save_pretrained(str(place), save_embedding_layers=False)
        settings = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        settings = {
            key: sorted(value) if key == "target_modules" and isinstance(value, list) else value
            for key, value in settings.items()
        }
        (place / "adapter_config.json").write_text(
            json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        tokenizer.save_pretrained(str(place))
        finish(place)

    write_atomically(folder, write)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with a saved adapter on it, in evaluation mode, its weights apart from the base's
    (never merged).

    `detach` gives the base back.

    Raises:
        BadInput: the folder holds no PEFT adapter in safetensors, or one for another model.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise BadInput(
                f"{folder} holds no {name}: name the folder of a PEFT adapter saved as safetensors"
            )
    Mapped(
        inside(folder, WEIGHTS)
    )  # what is damaged, or means harm, is refused before the libraries read it
    with warnings.catch_warnings(record=True) as told, redirect_stderr(io.StringIO()):
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
    if extra:  # of a deeper model, say: PEFT would pass over them
        raise BadInput(
            f"the adapter in {folder} has weights that {model.name_or_path} has no place for "
            f"({listing(sorted(extra), 2)}): name the base that it was trained on"
        )
    if absent := [
        str(warning.message) for warning in told if "missing adapter keys" in str(warning.message)
    ]:
        raise BadInput(
            f"the adapter in {folder} lacks weights that it should have on {model.name_or_path} "
            f"({absent[0][:160]}): name the base that it was trained on"
        )
    _keep_input_dtype(adapted)
    return adapted.eval()


def detach(adapted: PeftModel) -> None:
    """Takes an adapter off its base again."""
    with _quiet():
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


def weights_folder(base: Base) -> Path:
    """Where the safetensors files of a base lie; those of a GGUF file are made once, in the user's
    cache.
    """
    return _dequantised(base) if base.kind == "gguf" else base.path


def _dequantised(base: Base) -> Path:
    """The safetensors folder made from a GGUF file, in the user's cache; made once, however many
    processes ask.
    """
    folder = cache_folder() / "models" / base.sha256[:20]
    if (folder / "config.json").is_file():
        return folder
    with writing(folder, CACHE_VARIABLE), FileLock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            print(
                f"dequantising {base.path.name} into {folder.parent}, once",
                file=sys.stderr,
                flush=True,
            )
            write_atomically(folder, lambda place: _dequantise(base, place), CACHE_VARIABLE)
    return folder


def _dequantise(base: Base, place: Path) -> None:
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(base.path.parent, gguf_file=base.path.name)
            quantised = AutoModelForCausalLM.from_pretrained(
                base.path.parent, gguf_file=base.path.name, dtype=torch.float32
            )
        # a damaged file makes the reader raise anything; all of it means the same to the user
        except Exception as error:
            raise BadInput(
                f"'{base.path}' could not be read as a model ({first_line(error)}): name a GGUF "
                "file of an architecture that transformers knows"
            ) from None
        config: Any = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.generation_config = quantised.generation_config
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from the libraries while loading: errors are exceptions, and
    the caller says what matters.
    """
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
