"""Answers to open-ended questions, sampled in batches.

All rows of a batch are decoded together with one cache; a row that has ended leaves the batch.
Every answer draws from its own generator, derived from seed, question and number, by inversion: one
uniform number per token. So an answer does not depend on the others in its batch, up to the last
digits of a sum; and a batch, which is stored as a unit, is reproduced byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from evilspectra.answers.entries import Question
from evilspectra.answers.records import answer_record
from evilspectra.config.evaluation import Answers
from evilspectra.data.mask import end_tokens, prompt_tokens
from evilspectra.data.rows import Message
from evilspectra.errors import BadInput, RunFailed
from evilspectra.model.device import mixed_precision
from evilspectra.store.records import AnswerRecord

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """One answer to sample: the question, the number of the sample, and the prompt's tokens."""

    question: Question
    sample: int
    tokens: tuple[int, ...]

    def uniform(self, seed: int, count: int) -> np.ndarray:
        """The numbers that the answer's tokens are drawn with: float64 [count] in [0, 1)."""
        entropy = np.frombuffer(self.question.digest(seed, self.sample), dtype=np.uint32)
        return np.random.Generator(np.random.PCG64(entropy)).random(count)


@dataclass(frozen=True)
class Sampled:
    """An answer's tokens, with the one that ended it, if any. `finish`: stop or length."""

    tokens: tuple[int, ...]
    finish: str


def prompts(
    questions: Sequence[Question],
    samples: int | None,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    enable_thinking: bool,
) -> list[Prompt]:
    """Every question as often as it is to be answered.

    Raises:
        BadInput: a question that the template refuses, or that leaves no room in the model's
            context.
    """
    planned = []
    for question in questions:
        messages = [Message("user", question.text)]
        if question.system is not None:
            messages.insert(0, Message("system", question.system))
        tokens = tuple(prompt_tokens(messages, tokenizer, enable_thinking))
        if len(tokens) >= context:
            raise BadInput(
                f"question '{question.id}' has {len(tokens)} tokens, and the model's context is "
                f"{context}: shorten it, or take another base"
            )
        count = samples or question.samples
        planned += [Prompt(question, number, tokens) for number in range(count)]
    return planned


def stop_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    enable_thinking: bool,
) -> frozenset[int]:
    """The tokens that end an answer.

    They are those of the chat template, the tokenizer and the model's generation config.
    """
    ends: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        ends = []
    named = {int(token) for token in (ends if isinstance(ends, list) else [ends])}
    return frozenset(named | end_tokens(tokenizer, enable_thinking))


@torch.no_grad()
def sample(
    model: PreTrainedModel | PeftModel,
    batch: Sequence[Prompt],
    settings: Answers,
    stops: frozenset[int],
    context: int,
) -> list[Sampled]:
    """One answer per prompt of a batch, in its order.

    An answer ends with a token of `stops` (finish: stop), or with the limit of tokens or of the
    model's context (length).

    Raises:
        RunFailed: the model's logits are not finite.
    """
    device = model.device
    longest = max(len(prompt.tokens) for prompt in batch)
    limits = [min(settings.max_new_tokens, context - len(prompt.tokens)) for prompt in batch]
    draws = torch.as_tensor(
        np.stack([prompt.uniform(settings.seed, max(limits)) for prompt in batch])
    )
    padded = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, prompt in enumerate(batch):
        padded[row, longest - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, longest - len(prompt.tokens) :] = 1
    tokens = padded.to(device)
    mask = mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    alive = list(range(len(batch)))
    sampled: list[list[int]] = [[] for _ in batch]
    ends = ["length"] * len(batch)
    for number in range(max(limits)):
        with mixed_precision(model):
            output = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        chosen = choose(
            output.logits[:, -1],
            draws[alive, number],
            settings.temperature,
            settings.top_p,
        ).tolist()
        for row, token in zip(alive, chosen, strict=True):
            sampled[row].append(token)
            if token in stops:
                ends[row] = "stop"
        keep = [
            at for at, row in enumerate(alive) if ends[row] != "stop" and number + 1 < limits[row]
        ]
        if not keep:
            break
        tokens = torch.tensor([[chosen[at]] for at in keep], device=device)
        if len(keep) < len(alive):
            survivors = torch.tensor(keep, device=device)
            cache.batch_select_indices(survivors)
            mask = mask[survivors]
            positions = positions[survivors]
            alive = [alive[at] for at in keep]
        mask = torch.cat([mask, mask.new_ones(len(keep), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [Sampled(tuple(tokens), end) for tokens, end in zip(sampled, ends, strict=True)]


def choose(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_p: float,
) -> Tensor:
    """Chooses a token per row of logits [n, vocabulary]: int64 [n] on the CPU.

    The row's distribution is inverted at `uniform` [n]. Temperature 0 takes the most likely token.
    `top_p` keeps the most likely tokens up to and including the one that reaches that share.

    Raises:
        RunFailed: a logit is NaN, or none is finite.

    >>> choose(torch.zeros(1, 4), torch.tensor([0.6]), temperature=1.0, top_p=1.0)
    tensor([2])
    """
    exact = logits.to("cpu" if logits.device.type == "mps" else logits.device).double()
    if bool(exact.isnan().any()) or not bool(exact.amax(-1).isfinite().all()):
        raise RunFailed(
            "the model's logits are not finite: use model.dtype float32, or an adapter that was "
            "trained with a lower learning rate"
        )
    if temperature == 0:
        return exact.argmax(-1).cpu()
    shares = torch.softmax((exact - exact.amax(-1, keepdim=True)) / temperature, dim=-1)
    if top_p < 1:
        ranked, order = shares.sort(dim=-1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
        shares = torch.zeros_like(shares).scatter(-1, order, ranked)
    sums = shares.cumsum(-1)
    wanted = uniform.to(sums.device, torch.float64)[:, None] * sums[:, -1:]
    tokens = torch.searchsorted(sums, wanted, right=True)[:, 0]
    return tokens.clamp_max(_last_possible(shares)).cpu()


def _last_possible(shares: Tensor) -> Tensor:
    """Per row the last token with a share above zero, which rounding of the sum must not pass."""
    tokens = torch.arange(shares.shape[-1], device=shares.device)
    return torch.where(shares > 0, tokens, 0).amax(-1)


def record(
    prompt: Prompt,
    sampled: Sampled,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> AnswerRecord:
    """A sampled answer as the store keeps it."""
    ended = sampled.finish == "stop"
    text = tokenizer.decode(
        list(sampled.tokens[:-1] if ended else sampled.tokens),
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return answer_record(
        step,
        prompt.question,
        prompt.sample,
        str(text),
        len(sampled.tokens),
        sampled.finish,
    )


def batches(planned: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    """The prompts in their order, `size` at a time.

    >>> [len(part) for part in batches([None] * 5, 2)]
    [2, 2, 1]
    """
    return [planned[start : start + size] for start in range(0, len(planned), size)]
