"""A base model that stays in memory from run to run, as long as nothing in it has changed.

Removing an adapter undoes everything that came with it: PEFT's modules, the packed attention,
gradient checkpointing, training mode. This is checked, not assumed (`_mark`): every module and its
hooks, every weight's address and its count of writes, the config. A base that has changed is loaded
again, so a run's result never depends on the runs before it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

from evilspectra.config.sections import ModelConfig
from evilspectra.model.adapter import detach
from evilspectra.model.base import Base
from evilspectra.model.load import keep_activations, load_base

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class Loaded:
    """The base that was used last, with its tokenizer; `loads` counts how often one was loaded."""

    def __init__(self) -> None:
        self.loads: int = 0
        self._loaded: tuple[tuple[Base, ModelConfig], Pair, object] | None = None

    def holds(self, base: Base, settings: ModelConfig) -> bool:
        """Whether this base, under these settings, is in memory and unchanged since loading."""
        return (
            self._loaded is not None
            and self._loaded[0] == (base, settings)
            and _mark(self._loaded[1][0]) == self._loaded[2]
        )

    def get(
        self,
        base: Base,
        settings: ModelConfig,
        load: Callable[[Base, ModelConfig], Pair] = load_base,
    ) -> Pair:
        """The base and its tokenizer, loaded unless in memory; another base is dropped first.

        Raises:
            BadInput: as `load_base`.
        """
        if self._loaded is None or not self.holds(base, settings):
            self.drop()
            pair = load(base, settings)
            self.loads += 1
            self._loaded = (base, settings), pair, _mark(pair[0])
        return self._loaded[1]

    def drop(self) -> None:
        """Drops the base; the next one is loaded."""
        self._loaded = None


def take_off(adapted: PeftModel | None, base: PreTrainedModel, attention: str) -> None:
    """Restores the base: without adapter, under its own attention, in evaluation mode."""
    if adapted is not None:
        keep_activations(base)
        detach(adapted)
    if own_attention(base) != attention:
        base.set_attn_implementation(attention)
    base.eval()


def own_attention(model: PreTrainedModel) -> str:
    """The name of the attention that a model has now."""
    return model.config._attn_implementation or "eager"


def _mark(model: Any) -> object:
    """A value that changes with the model's structure, mode or weights; equal if it is untouched.

    A tensor's version counts the writes to it, so no weight has to be read.
    """
    tensors = [
        (name, tensor.data_ptr(), tensor._version, tensor.requires_grad)
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
    ]
    modules = [
        (
            name,
            id(module),
            module.training,
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            getattr(module, "gradient_checkpointing", None),
        )
        for name, module in model.named_modules()
    ]
    return tensors, modules, own_attention(model), model.config.to_dict()
