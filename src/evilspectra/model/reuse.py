"""A base model that stays in memory from run to run: loaded once, and given out again only while it
is as it was loaded.

An adapter that comes off takes everything with it: the modules that PEFT put in, the packed
attention, gradient checkpointing, training mode. Whether it did is not trusted but looked at
(`_mark`): every module and its hooks, every weight's place and its count of writes, the config. A
base that is not as it was is loaded again, so that what a run comes to never depends on the runs
before it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

from evilspectra.config.sections import ModelConfig
from evilspectra.model.base import Base
from evilspectra.model.load import detach, keep_activations, load_base

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class Loaded:
    """The base that was used last, with its tokenizer. `loads`: how often one was loaded."""

    def __init__(self) -> None:
        self.loads = 0
        self._kept: tuple[tuple[Base, ModelConfig], Pair, object] | None = None

    def holds(self, base: Base, settings: ModelConfig) -> bool:
        """Whether this base, under these settings, is at hand as it was loaded."""
        return (
            self._kept is not None
            and self._kept[0] == (base, settings)
            and _mark(self._kept[1][0]) == self._kept[2]
        )

    def get(
        self,
        base: Base,
        settings: ModelConfig,
        load: Callable[[Base, ModelConfig], Pair] = load_base,
    ) -> Pair:
        """The base and its tokenizer, loaded where it is not at hand; one that was at hand before
        is let go first.

        Raises:
            BadInput: as `load_base`.
        """
        if self._kept is None or not self.holds(base, settings):
            self.drop()
            pair = load(base, settings)
            self.loads += 1
            self._kept = (base, settings), pair, _mark(pair[0])
        return self._kept[1]

    def drop(self) -> None:
        """Lets the base go; the next one is loaded."""
        self._kept = None


def take_off(adapted: PeftModel | None, base: PreTrainedModel, attention: str) -> None:
    """Gives the base back as it was before it was trained: without adapter, under its own
    attention, in evaluation mode.
    """
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
    """What changes with the model's structure, mode or weights; equal for an untouched model.

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
