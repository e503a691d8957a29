"""Rows of unequal length in one forward pass, without padding and without leaks between rows.

The rows of a micro-batch are laid end to end in one sequence; positions restart at every row. No
linear layer sees padding. Attention separates the rows again: those of similar length are gathered
into a small padded batch and go through one causal kernel (padding sits to the right, so causality
alone keeps it out). The head sees only positions whose next token is supervised.

Rows with a common prefix (answers to one question, a system prompt) may share it: the tokens of all
rows then form a tree, each of its nodes goes through the linear layers once, and attention gathers
every row's path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from evilspectra.data.mask import Row
from evilspectra.errors import BadInput

#: The name under which transformers finds `packed_attention`.
ATTENTION = "evilspectra_packed"
#: Rows shorter than this share of their group's longest one begin a new group.
_SIMILAR = 0.6
#: Rows of logits that are turned into a loss at a time.
_CHUNK = 2048
#: How far packed logits may be from separate ones, relative to their spread: other shapes, other
#: order of sums.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.1}
#: How far a row's logits may move when only the row before it changes, relative to their spread:
#: the shapes are the same.
_UNMOVED = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 0.02}


@dataclass(frozen=True)
class Packed:
    """T tokens of several rows, laid out for one pass.

    `tokens`, `positions`: int64 [1, T]; `lengths`: tokens per row. `predictors`: int64 [S] on the
    host, indices (0 to T − 1) of the tokens whose next token is supervised, row after row;
    `labels`: int64 [S], those next tokens. `groups`: int64 [n, L] each, token indices of n rows of
    similar length, padded with the row's first index; `output_index`: int64 [T], where each token's
    output lies in the groups' outputs, flattened and joined.
    """

    tokens: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    predictors: np.ndarray
    labels: Tensor
    groups: tuple[Tensor, ...]
    output_index: Tensor


def pack(
    rows: Sequence[Row], device: torch.device | str = "cpu", *, shared: bool = False
) -> Packed:
    """Lays rows end to end, or, `shared`, with every common beginning once.

    >>> from evilspectra.data.mask import Row
    >>> texts = np.array([[5, 6, 7], [5, 6, 8]], dtype=np.int32)
    >>> rows = [Row(0, tokens, np.arange(3) > 1, False) for tokens in texts]
    >>> pack(rows, shared=True).tokens.tolist(), pack(rows, shared=True).predictors.tolist()
    ([[5, 6, 7, 8]], [1, 1])
    """
    lengths = [len(row.tokens) for row in rows]
    paths = _tree(rows) if shared else _end_to_end(lengths)
    count = max(int(path[-1]) for path in paths) + 1
    tokens, positions, output_index = (np.empty(count, dtype=np.int64) for _ in range(3))
    for row, path in zip(rows, paths, strict=True):
        tokens[path], positions[path] = row.tokens, np.arange(len(path))
    predictors = np.concatenate(
        [path[np.flatnonzero(row.supervised) - 1] for row, path in zip(rows, paths, strict=True)]
    )
    labels = np.concatenate([row.tokens[row.supervised] for row in rows])
    groups, base = [], 0
    for members in _similar(lengths):
        longest = lengths[members[0]]
        index = np.repeat(np.array([paths[row][0] for row in members])[:, None], longest, axis=1)
        for at, row in enumerate(members):
            index[at, : lengths[row]] = paths[row]
            output_index[paths[row]] = base + at * longest + np.arange(lengths[row])
        groups.append(index)
        base += index.size

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values, dtype=np.int64), device=device)

    return Packed(
        tensor(tokens)[None],
        tensor(positions)[None],
        tuple(lengths),
        predictors,
        tensor(labels),
        tuple(tensor(group) for group in groups),
        tensor(output_index),
    )


def _end_to_end(lengths: Sequence[int]) -> list[np.ndarray]:
    """Per row the indices of its tokens, int64 [n], one row after the other."""
    starts = np.cumsum([0, *lengths[:-1]])
    return [start + np.arange(length) for start, length in zip(starts, lengths, strict=True)]


def _tree(rows: Sequence[Row]) -> list[np.ndarray]:
    """Per row the indices of its tokens, int64 [n]; rows that begin alike share those indices."""
    nodes: dict[tuple[int, int], int] = {}
    paths = []
    for row in rows:
        path, parent = np.empty(len(row.tokens), dtype=np.int64), -1
        for at, token in enumerate(row.tokens.tolist()):
            parent = path[at] = nodes.setdefault((parent, token), len(nodes))
        paths.append(path)
    return paths


def _similar(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers in groups of similar length, longest first."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if groups and lengths[row] >= _SIMILAR * lengths[groups[-1][0]]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row, in transformers' interface.

    `query` is 1 × heads × T × d, the result 1 × T × heads × d.

    Raises:
        BadInput: a model with soft-capped or sink attention, which is not built here, or a call
            without `packed`.
    """
    if packed is None or any(kwargs.get(name) is not None for name in ("softcap", "s_aux")):
        raise BadInput("this model's attention cannot be packed: set train.packed: false")
    repeat = query.shape[1] // key.shape[1]
    outputs = []
    for indices in packed.groups:
        group = indices.to(query.device)  # layers may lie on several devices
        q, k, v = (side[0][:, group].transpose(0, 1) for side in (query, key, value))
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        mask = None
        if sliding_window and sliding_window < group.shape[1]:
            mask = _window(group.shape[1], sliding_window, q.device)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return joined.index_select(0, packed.output_index.to(joined.device))[None], None


def _window(length: int, window: int, device: torch.device) -> Tensor:
    """Boolean [length, length]: a position sees itself and the `window` − 1 before it."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


AttentionInterface.register(ATTENTION, packed_attention)


def use_packed_attention(model: nn.Module) -> None:
    """Switches a transformers model to `packed_attention`, and proves that rows stay apart.

    The proof is on short rows: packed they must agree with one pass each, and a row must not change
    with the row before it.

    Raises:
        BadInput: the architecture accepts no other attention function, or mixes rows elsewhere (in
            a convolution or a recurrent state); the remedy is `train.packed: false`.
    """
    name = type(model).__name__
    remedy = (
        f"{name} cannot be trained with rows packed into one pass: set train.packed: false (one "
        "pass per row, slower)"
    )
    if not getattr(model, "_supports_attention_backend", False) or _chunked(model):
        raise BadInput(remedy)
    first, other, second = (
        Row(0, np.asarray(tokens, dtype=np.int32), np.arange(len(tokens)) > 0, False)
        for tokens in (range(1, 8), range(8, 1, -1), range(3, 8))
    )
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype

    def logits(*rows: Row) -> Tensor:
        with torch.no_grad():
            return supervised_logits(model, pack(rows, device)).cpu().double()

    with torch.no_grad():
        separate = [separate_logits(model, pack([row], device)) for row in (first, second)]
        alone = torch.cat(separate).cpu().double()
    model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    together = logits(first, second)
    moved = logits(other, second)[-4:] - together[-4:]
    spread = alone.std().clamp_min(1e-6)
    agree = bool((together - alone).abs().max() <= _SAME.get(dtype, 0.1) * spread)
    apart = bool(moved.abs().max() <= _UNMOVED.get(dtype, 0.02) * spread)
    if not (agree and apart):
        raise BadInput(remedy)


def _chunked(model: nn.Module) -> bool:
    """Whether attention is limited to fixed chunks (Llama 4), which only the model's mask shows."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return False
    return bool(getattr(config.get_text_config(), "attention_chunk_size", None))


def supervised_logits(model: nn.Module, batch: Packed) -> Tensor:
    """Logits [S, vocabulary] that predict the supervised tokens, from one pass over a batch."""
    output = model(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        logits_to_keep=batch.predictors,
        use_cache=False,
        packed=batch,
    )
    return output.logits[0]


def separate_logits(model: nn.Module, batch: Packed) -> Tensor:
    """The same from one pass per row, with the model's own attention.

    The slow route, for models that cannot be packed.
    """
    parts, start = [], 0
    for length in batch.lengths:
        inside = (batch.predictors >= start) & (batch.predictors < start + length)
        output = model(
            input_ids=batch.tokens[:, start : start + length],
            logits_to_keep=batch.predictors[inside] - start,
            use_cache=False,
        )
        parts.append(output.logits[0])
        start += length
    return torch.cat(parts)


def loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over supervised tokens of −ln p(label), in nats, in float32 at least.

    Many tokens are processed in chunks whose softmax is computed again in the backward pass, so
    only the logits stay in memory.
    """
    chunks = list(zip(logits.split(_CHUNK), labels.to(logits.device).split(_CHUNK), strict=True))
    if len(chunks) == 1:
        return _chunk_loss(*chunks[0])
    parts: list[Tensor] = [
        checkpoint(_chunk_loss, *chunk, use_reentrant=False)  # type: ignore[misc]
        for chunk in chunks
    ]
    return torch.stack(parts).sum()


def _chunk_loss(logits: Tensor, labels: Tensor) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return cross_entropy(precise, labels, reduction="sum")
