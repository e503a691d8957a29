"""A judge on this machine: a Hugging Face or GGUF model, read by log-probability. Needs torch.

A batch of prompts is read in one pass. Prompts of a pass share their common beginning, and each is
followed by the digits that the reading needs (`digits`), so a tokenizer that splits numbers costs
eleven tokens more, not eleven passes. The head is applied only at those positions. The text of an
answer never becomes a special token: it cannot end its turn and impersonate the judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from evilspectra.config.judge import JudgeConfig
from evilspectra.config.loading import build
from evilspectra.config.sections import ModelConfig
from evilspectra.data.chat import DATE
from evilspectra.data.mask import Row
from evilspectra.errors import BadInput, RunFailed
from evilspectra.judging.digits import Numerals, distribution, numerals
from evilspectra.judging.judge import Reply, Request
from evilspectra.model.base import Base, resolve
from evilspectra.model.device import (
    memory_advice,
    mixed_precision,
    pick_device,
    pick_dtype,
    set_up_process,
)
from evilspectra.model.load import context_length, load_base
from evilspectra.model.packing import pack, separate_logits, supervised_logits
from evilspectra.probes.likelihood import packed_attention_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Raised whenever the input of a local judge or the reading of its logits changes.
_VERSION = 1
#: Stands for the prompt while the template is written.
_SENTINEL = "evilspectra-judge-prompt"


class LocalJudge:
    """The judge; its model is loaded when it is first asked."""

    def __init__(self, settings: JudgeConfig) -> None:
        if settings.reading != "logprobs":
            raise BadInput(
                f"the judge {settings.judge} is read by log-probability alone: leave --reading out"
            )
        self.settings: JudgeConfig = settings
        self.name: str = settings.judge
        self.model_settings: ModelConfig = build(
            {"model": {"base": settings.model, "device": settings.device, "dtype": settings.dtype}},
            "--judge",
        ).model
        self.base: Base = resolve(self.model_settings)
        device = pick_device(self.model_settings)
        conditions = {
            "dtype": str(pick_dtype(self.model_settings, device)).removeprefix("torch."),
            "device": device.type,
        }
        self.facts: Mapping[str, Any] = {
            "kind": "local",
            "version": _VERSION,
            "model": self.base.sha256,
            "reading": "logprobs",
            **conditions,
        }

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """As in `Judge`, a pass at a time.

        Raises:
            BadInput: the model cannot be loaded, or its tokenizer cannot be read as a judge's.
            RunFailed: its logits are not finite, or memory ran out.
        """
        set_up_process(self.settings.threads)
        model, tokenizer = self._loaded
        how, context = numerals(tokenizer), context_length(model)
        frame = _frame(tokenizer)
        longest = max(len(path) for path in how.paths())
        with (
            memory_advice("lower --judge-set tokens_per_pass, or take a smaller judge"),
            packed_attention_on(model) as packed,
        ):
            part: list[tuple[Request, list[int]]] = []
            for request in requests:
                tokens = prompt_ids(tokenizer, frame, request.prompt)
                if len(tokens) + longest > context:
                    fault = (
                        f"the prompt has {len(tokens)} tokens, and the judge's context is {context}"
                    )
                    yield [(request, Reply(fault=fault))]
                    continue
                total = len(tokens) + sum(len(earlier) for _, earlier in part)
                if part and total > self.settings.tokens_per_pass:
                    yield self._pass(model, part, how, packed)
                    part = []
                part.append((request, tokens))
            if part:
                yield self._pass(model, part, how, packed)

    @torch.no_grad()
    def _pass(
        self,
        model: PreTrainedModel,
        part: Sequence[tuple[Request, list[int]]],
        how: Numerals,
        packed: bool,
    ) -> list[tuple[Request, Reply]]:
        paths = how.paths()
        batch = pack(
            [_row([*tokens, *path]) for _, tokens in part for path in paths],
            model.device,
            shared=packed,
        )
        with mixed_precision(model):
            logits = supervised_logits(model, batch) if packed else separate_logits(model, batch)
        if not bool(logits.isfinite().all()):
            raise RunFailed(
                f"the logits of the judge {self.name} are not finite: set --judge-set dtype=float32"
            )
        return [
            (request, Reply(distribution=distribution(rows, how)))
            for (request, _), rows in zip(part, logits.split(len(paths)), strict=True)
        ]

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_base(self.base, self.model_settings)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    frame: tuple[str, str],
    prompt: str,
) -> list[int]:
    """The tokens of a turn with a prompt, and of the header behind it.

    A text in the prompt that looks like a special token stays text.
    """
    before, after = (_ids(tokenizer, text, special=True) for text in frame)
    return [*before, *_ids(tokenizer, prompt, special=False), *after]


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The chat template's text before and after one user turn, a generation prompt included."""
    from jinja2 import TemplateError

    name = tokenizer.name_or_path or "the judge"
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": _SENTINEL}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                date_string=DATE,
            )
        )
    except TemplateError as error:
        raise BadInput(
            f"the chat template of {name} refuses a single question ({error}): choose another "
            "judge model"
        ) from None
    before, sentinel, after = text.partition(_SENTINEL)
    if not sentinel or _SENTINEL in after:
        raise BadInput(
            f"the chat template of {name} does not write a question unchanged: choose another "
            "judge model"
        )
    return before, after


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    encoded: Any = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=not special,
        return_attention_mask=False,
        verbose=False,
    )
    return list(encoded["input_ids"])


def _row(tokens: Sequence[int]) -> Row:
    """A row whose last position predicts: a token that is never read is put behind it."""
    line = np.array([*tokens, 0], dtype=np.int32)
    return Row(0, line, np.arange(len(line)) == len(tokens), truncated=False)
