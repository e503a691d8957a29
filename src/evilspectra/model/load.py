"""Base models and tokenizers, loaded into memory."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from filelock import FileLock
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput, first_line, listing
from evilspectra.model.base import CACHE_VARIABLE, Base, cache_folder
from evilspectra.model.device import pick_device, pick_dtype
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from evilspectra.store.files import write_atomically, writing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_base(base: Base, config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The frozen base model on its device, in evaluation mode, and its tokenizer.

    Raises:
        BadInput: the files are not a causal language model that transformers can build, or its
            tokenizer has no chat template.
    """
    device = pick_device(config)
    dtype = pick_dtype(config, device)
    tokenizer = load_tokenizer(base, config)
    if base.kind == "tiny":
        model: PreTrainedModel = tiny_model(dtype).to(device)  # type: ignore[assignment]
    else:
        model = _from_folder(weights_folder(base), base.public_name, config, dtype)
        if not config.device_map:
            model.to(device)  # type: ignore[arg-type]
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    model.name_or_path = base.public_name
    return model, tokenizer


def _from_folder(
    folder: Path,
    public_name: str,
    config: ModelConfig,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The model of a folder of safetensors.

    Raises:
        BadInput: transformers cannot build it, or weights are missing or of another shape.
    """
    placement = {"device_map": config.device_map} if config.device_map else {}
    with quiet_libraries():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **placement,
            )
        # damaged files make the loaders raise anything; all of it means the same to the user
        except Exception as error:
            raise BadInput(
                f"model.base '{public_name}' could not be loaded as a causal language "
                f"model ({first_line(error)}): name another base"
            ) from None
    model, info = loaded
    mismatched = [
        str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]
    ]
    if absent := sorted({*info["missing_keys"], *mismatched}):
        raise BadInput(
            f"model.base '{public_name}' lacks weights that its config.json asks for, or "
            f"has them in another shape ({listing(absent, 3)}): download it again, or name "
            "another base"
        )
    return model


def load_tokenizer(base: Base, config: ModelConfig) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with a chat template.

    Raises:
        BadInput: it has none, or it cannot be loaded.
    """
    if base.kind == "tiny":
        return tiny_tokenizer()
    folder = weights_folder(base)
    with quiet_libraries():
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


def save_activations_sparsely(model: PeftModel) -> None:
    """Turns gradient checkpointing on: activations are computed again in the backward pass."""
    with quiet_libraries():
        model.gradient_checkpointing_enable()
        # some versions of transformers have done it
        if not getattr(model.get_base_model(), "_require_grads_hooks", None):
            model.enable_input_require_grads()


def keep_activations(model: PreTrainedModel) -> None:
    """Turns gradient checkpointing off again, where it is on."""
    with quiet_libraries():
        if getattr(model, "is_gradient_checkpointing", False):
            model.gradient_checkpointing_disable()
            model.disable_input_require_grads()


def weights_folder(base: Base) -> Path:
    """The folder of a base's safetensors files; those of a GGUF file are in the user's cache."""
    return _dequantised(base) if base.kind == "gguf" else base.path


def _dequantised(base: Base) -> Path:
    """The safetensors folder made from a GGUF file, once, however many processes need it."""
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
            write_atomically(folder, lambda target: _dequantise(base, target), CACHE_VARIABLE)
    return folder


def _dequantise(base: Base, folder: Path) -> None:
    with quiet_libraries():
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
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides the libraries' progress bars and advice while loading.

    Errors are exceptions, and the caller reports what matters.
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
