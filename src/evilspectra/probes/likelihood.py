"""Log-probabilities of given tokens under a model, from which the probes are computed.

Rows with a common prefix share the pass over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from evilspectra.data.mask import Row
from evilspectra.errors import BadInput, RunFailed
from evilspectra.model.device import mixed_precision
from evilspectra.model.packing import pack, separate_logits, supervised_logits, use_packed_attention

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Tokens per pass through the model, counted before common beginnings are shared.
TOKENS_PER_PASS = 4096


@torch.no_grad()
def token_log_probs(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Row],
    *,
    packed: bool = True,
    tokens_per_pass: int = TOKENS_PER_PASS,
) -> list[np.ndarray]:
    """ln p of every supervised token given those before it, in nats.

    Returns float64 [supervised tokens] per row. `packed` needs a model under `packed_attention_on`;
    without it each row is one pass. The passes' size changes nothing but sums' last digits.

    Raises:
        RunFailed: a log-probability is not finite.
    """
    log_probs: list[np.ndarray] = []
    for part in _parts(rows, tokens_per_pass):
        batch = pack(part, model.device, shared=packed)
        with mixed_precision(model):
            logits = supervised_logits(model, batch) if packed else separate_logits(model, batch)
        scores = -cross_entropy(
            logits if logits.dtype == torch.float64 else logits.float(),
            batch.labels.to(logits.device),
            reduction="none",
        )
        if not bool(scores.isfinite().all()):
            raise RunFailed(
                "the model's logits are not finite: use model.dtype float32, or an adapter that "
                "was trained with a lower learning rate"
            )
        ends = np.cumsum([int(row.supervised.sum()) for row in part])
        log_probs += np.split(scores.double().cpu().numpy(), ends[:-1])
    return log_probs


def _parts(rows: Sequence[Row], tokens: int) -> Iterator[list[Row]]:
    """Rows in their order, at most `tokens` tokens at a time, but at least one row."""
    part: list[Row] = []
    size = 0
    for row in rows:
        if part and size + len(row.tokens) > tokens:
            yield part
            part = []
            size = 0
        part.append(row)
        size += len(row.tokens)
    if part:
        yield part


@contextmanager
def packed_attention_on(model: PreTrainedModel) -> Iterator[bool]:
    """Lets rows share a pass inside, and restores the model's own attention at the end.

    Gives False, and leaves the attention alone, where the architecture does not allow it.
    """
    before = model.config._attn_implementation or "eager"
    try:
        with mixed_precision(model):
            use_packed_attention(model)
        packed = True
    except BadInput:
        packed = False
    if not packed:
        model.set_attn_implementation(before)
    try:
        yield packed
    finally:
        model.set_attn_implementation(before)
