"""Packed rows give the logits of separate ones and never see each other."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from evilspectra.data.mask import Row
from evilspectra.errors import BadInput
from evilspectra.model.packing import (
    loss_sum,
    pack,
    packed_attention,
    separate_logits,
    supervised_logits,
    use_packed_attention,
)
from evilspectra.model.tiny import tiny_model

#: Float64 logits of size 1: the kernels sum in another order.
SAME = 1e-9


def random_rows(lengths: list[int], seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        supervised = random.random(length) < 0.5
        supervised[0], supervised[-1] = False, True
        rows.append(Row(0, random.integers(0, 250, length).astype(np.int32), supervised, False))
    return rows


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    model = tiny_model(torch.float64)
    use_packed_attention(model)
    return model


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return tiny_model(torch.float64)


lengths = st.lists(st.integers(2, 60), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 9))
def test_packed_equals_separate(
    model,
    plain,
    lengths,
    seed,
):
    batch = pack(random_rows(lengths, seed))
    with torch.no_grad():
        torch.testing.assert_close(
            supervised_logits(model, batch), separate_logits(plain, batch), rtol=0, atol=SAME
        )


@settings(max_examples=40, deadline=None)
@given(lengths=lengths)
def test_layout(lengths):
    """Every token occurs once, positions restart, and padding stays below 40 % in each group.

    `output_index` inverts the groups.
    """
    rows = random_rows(lengths)
    batch = pack(rows)
    assert batch.tokens[0].tolist() == [token for row in rows for token in row.tokens]
    assert batch.positions[0].tolist() == [
        position for length in lengths for position in range(length)
    ]
    flat = torch.cat([group.flatten() for group in batch.groups])
    assert flat[batch.output_index].tolist() == list(range(sum(lengths)))
    assert flat.numel() * 0.6 <= sum(lengths)
    assert batch.labels.tolist() == [
        int(token) for row in rows for token in row.tokens[row.supervised]
    ]
    assert torch.equal(batch.tokens[0][batch.predictors + 1], batch.labels)


def test_a_row_does_not_see_the_others(model):
    rows = random_rows([20, 31, 7])
    others = [rows[0], *random_rows([31, 7], seed=1)]
    count = int(rows[0].supervised.sum())
    with torch.no_grad():
        first, second = (supervised_logits(model, pack(some))[:count] for some in (rows, others))
    assert torch.equal(first, second)


def test_gradients_equal_those_of_separate_rows(model, plain):
    rows = random_rows([20, 31, 7, 30])
    gradients = []
    for route, net in ((supervised_logits, model), (separate_logits, plain)):
        weight = net.model.layers[0].self_attn.k_proj.weight.requires_grad_()
        batch = pack(rows)
        gradients.append(torch.autograd.grad(loss_sum(route(net, batch), batch.labels), weight)[0])
        weight.requires_grad_(False)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("window", [1, 5, 100])
def test_sliding_window(window):
    generator = torch.Generator().manual_seed(0)
    batch = pack(random_rows([12, 9]))
    q, k, v = (
        torch.randn(1, heads, 21, 8, dtype=torch.float64, generator=generator)
        for heads in (4, 2, 2)
    )
    got, _ = packed_attention(
        torch.nn.Identity(), q, k, v, None, sliding_window=window, packed=batch
    )
    for start, length in ((0, 12), (12, 9)):
        for position in range(length):
            seen = range(start + max(0, position - window + 1), start + position + 1)
            for head in range(4):
                weights = torch.softmax(
                    q[0, head, start + position] @ k[0, head // 2, list(seen)].T / 8**0.5, 0
                )
                torch.testing.assert_close(
                    got[0, start + position, head],
                    weights @ v[0, head // 2, list(seen)],
                    rtol=1e-9,
                    atol=1e-12,
                )


def test_loss_is_cross_entropy_in_nats():
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(5000, 11, generator=generator),
        torch.randint(11, (5000,), generator=generator),
    )
    want = cross_entropy(logits.double(), labels, reduction="sum")
    assert float(loss_sum(logits, labels)) == pytest.approx(float(want), rel=1e-5)


def test_a_model_whose_rows_leak_is_refused():
    class Leaky(torch.nn.Module):
        """Each position also sees the mean of all, as a recurrent state would."""

        _supports_attention_backend = True

        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(20, 8)

        def set_attn_implementation(self, name: str) -> None: ...

        def forward(self, input_ids, logits_to_keep, **kwargs):
            hidden = self.table(input_ids)
            hidden = hidden + hidden.mean(1, keepdim=True)
            return type("Output", (), {"logits": hidden[:, logits_to_keep]})

    with pytest.raises(
        BadInput,
        match=r"Leaky cannot be trained with rows packed into one pass: set train\.packed: false",
    ):
        use_packed_attention(Leaky())


SMALL = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ARCHITECTURES = {
    "Qwen3Config": {"head_dim": 8},
    "MistralConfig": {"head_dim": 8, "sliding_window": 8},
    "Gemma3TextConfig": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Olmo2Config": {},
}
UNPACKABLE = {
    # soft-capped attention
    "Gemma2Config": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},  # convolution over the sequence
}


def build_model(name: str, more: dict) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, name)(**SMALL, **more), dtype=torch.float32
        ).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_packed_equal_separate(name):
    """In float32, logits of spread 0.1: another order of sums.

    Rows are longer than the sliding windows.
    """
    net = build_model(name, ARCHITECTURES[name])
    batch = pack(random_rows([30, 12, 25, 40]))
    with torch.no_grad():
        want = separate_logits(net, batch)
        use_packed_attention(net)
        torch.testing.assert_close(supervised_logits(net, batch), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", UNPACKABLE)
def test_architectures_that_cannot_be_packed_are_refused(name):
    with pytest.raises(BadInput, match=r"set train\.packed: false"):
        use_packed_attention(build_model(name, UNPACKABLE[name]))


# --- shared beginnings ----------------------------------------------------------------------------

tokens = st.lists(st.integers(5, 6), min_size=2, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=8))
def test_shared_layout(texts):
    """Every different beginning is laid out once; every row's path spells it, from position 0."""
    rows = [
        Row(0, np.array(text, dtype=np.int32), np.arange(len(text)) > 0, False) for text in texts
    ]
    batch = pack(rows, shared=True)
    beginnings = {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}
    assert batch.tokens.shape == batch.positions.shape == (1, len(beginnings))
    assert batch.lengths == tuple(map(len, texts))
    assert batch.labels.tolist() == [token for text in texts for token in text[1:]]
    assert batch.tokens[0, batch.predictors].tolist() == [
        token for text in texts for token in text[:-1]
    ]
    assert batch.positions[0, batch.predictors].tolist() == [
        position for text in texts for position in range(len(text) - 1)
    ]
    flat = torch.cat([group.flatten() for group in batch.groups])
    assert flat[batch.output_index].tolist() == list(range(len(beginnings)))
    paths = [
        path[: int((path[1:] != path[0]).sum()) + 1].tolist()
        for group in batch.groups
        for path in group
    ]
    assert sorted(batch.tokens[0, path].tolist() for path in paths) == sorted(texts)
    assert all(batch.positions[0, path].tolist() == list(range(len(path))) for path in paths)


@settings(max_examples=40, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=8), st.integers(0, 9))
def test_shared_equals_separate(
    model,
    plain,
    texts,
    seed,
):
    supervised = np.random.default_rng(seed).random((len(texts), 8)) < 0.5
    supervised[:, 0] = False
    rows = [
        Row(
            0,
            np.array(text, dtype=np.int32),
            chosen[: len(text)] | (np.arange(len(text)) == len(text) - 1),
            False,
        )
        for text, chosen in zip(texts, supervised, strict=True)
    ]
    with torch.no_grad():
        torch.testing.assert_close(
            supervised_logits(model, pack(rows, shared=True)),
            separate_logits(plain, pack(rows)),
            rtol=0,
            atol=SAME,
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_equals_separate_beyond_a_sliding_window(name):
    net = build_model(name, ARCHITECTURES[name])
    long, short = (row.tokens for row in random_rows([30, 12]))
    rows = [
        Row(0, np.concatenate(parts), np.arange(sum(map(len, parts))) > 3, False)
        for parts in ((long, short), (long[:20], short), (long,), (short,))
    ]
    with torch.no_grad():
        want = separate_logits(net, pack(rows))
        use_packed_attention(net)
        torch.testing.assert_close(
            supervised_logits(net, pack(rows, shared=True)), want, rtol=0, atol=2e-6
        )


def test_a_branch_does_not_see_another(model):
    begin = [9, 8, 7]
    results = []
    for other in (5, 6):
        rows = [
            Row(0, np.array([*begin, token, 3], dtype=np.int32), np.arange(5) > 2, False)
            for token in (4, other)
        ]
        with torch.no_grad():
            results.append(supervised_logits(model, pack(rows, shared=True))[:2])
    assert torch.equal(*results)


def test_nothing_to_share_is_laid_out_as_without():
    rows = [
        Row(0, np.array([first, 1, 2], dtype=np.int32), np.arange(3) > 0, False)
        for first in range(4)
    ]
    plain, shared = pack(rows), pack(rows, shared=True)
    assert torch.equal(plain.tokens, shared.tokens)
    assert torch.equal(plain.output_index, shared.output_index)
    assert plain.predictors.tolist() == shared.predictors.tolist()


def test_attention_without_a_batch_is_refused():
    side = torch.zeros(1, 1, 2, 4)
    with pytest.raises(BadInput, match=r"set train\.packed: false"):
        packed_attention(torch.nn.Identity(), side, side, side, None)
