"""Log-probabilities of given tokens: shared, packed and separate passes agree.

Afterwards a model has its own attention again.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evilspectra.data.mask import Row
from evilspectra.errors import RunFailed
from evilspectra.model.packing import ATTENTION
from evilspectra.model.tiny import tiny_model
from evilspectra.probes.likelihood import packed_attention_on, token_log_probs
from tests.reference.likelihood import log_probs_one_by_one
from tests.support.small_items import adapted
from tests.test_packing import ARCHITECTURES, UNPACKABLE, build_model

#: ln p near −5: sums in another order and in other shapes.
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-10}

#: bfloat16 keeps 8 bits: ln p of logits of spread 1 is off by a few hundredths.
CLOSE_BFLOAT16 = 0.1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


def row(tokens: list[int], supervised: list[bool] | None = None) -> Row:
    flags = np.array(supervised if supervised is not None else [False] + [True] * (len(tokens) - 1))
    flags[0] = False
    if not flags.any():
        flags[-1] = True
    return Row(1, np.array(tokens, dtype=np.int32), flags, False)


@st.composite
def drawn_rows(draw: st.DrawFn) -> list[Row]:
    """Rows from an alphabet of three tokens, many of which begin like earlier ones.

    Much is shared, some rows are equal, and some are the beginning of others.
    """
    rows: list[Row] = []
    for _ in range(draw(st.integers(1, 8))):
        earlier = list(draw(st.sampled_from(rows)).tokens) if rows and draw(st.booleans()) else []
        begin = [int(token) for token in earlier[: draw(st.integers(0, len(earlier)))]]
        tokens = begin + draw(
            st.lists(st.integers(5, 7), min_size=max(0, 2 - len(begin)), max_size=12)
        )
        rows.append(
            row(tokens, draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))))
        )
    return rows


def same(got: list[np.ndarray], want: list[np.ndarray], close: float) -> None:
    assert [len(scores) for scores in got] == [len(scores) for scores in want]
    assert all(scores.dtype == np.float64 for scores in got)
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(want), rtol=0, atol=close)


MODELS = {dtype: tiny_model(dtype) for dtype in CLOSE}


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@settings(max_examples=30, deadline=None)
@given(rows=drawn_rows())
def test_shared_passes_equal_separate_ones_and_the_slow_twin(
    dtype: torch.dtype, rows: list[Row]
) -> None:
    model: Any = MODELS[dtype]
    want = log_probs_one_by_one(model, rows)
    with packed_attention_on(model) as packed:
        assert packed
        same(token_log_probs(model, rows), want, CLOSE[dtype])
    same(token_log_probs(model, rows, packed=False), want, CLOSE[dtype])


@settings(max_examples=30, deadline=None)
@given(rows=drawn_rows(), size=st.integers(1, 80))
def test_the_size_of_a_pass_changes_nothing(rows: list[Row], size: int) -> None:
    model: Any = MODELS[torch.float64]
    with packed_attention_on(model):
        same(
            token_log_probs(model, rows, tokens_per_pass=size),
            token_log_probs(model, rows),
            CLOSE[torch.float64],
        )


def test_passes_hold_as_many_rows_as_fit_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are counted before sharing; a row that is too long has its own pass."""
    model: Any = MODELS[torch.float64]
    seen: list[list[int]] = []
    import evilspectra.probes.likelihood as module

    pack = module.pack

    def recorded(rows: list[Row], *rest: Any, **more: Any) -> Any:
        seen.append([len(member.tokens) for member in rows])
        return pack(rows, *rest, **more)

    monkeypatch.setattr(module, "pack", recorded)
    token_log_probs(
        model,
        [row([5] * length) for length in (4, 6, 3, 20, 2, 2)],
        packed=False,
        tokens_per_pass=10,
    )
    assert seen == [[4, 6], [3], [20], [2, 2]]


def test_shares_of_all_tokens_sum_to_one() -> None:
    model: Any = MODELS[torch.float64]
    rows = [row([9, 8, 7, token], [False, False, False, True]) for token in range(259)]
    with packed_attention_on(model):
        log_probs = token_log_probs(model, rows)
    assert np.exp(np.concatenate(log_probs)).sum() == pytest.approx(1, abs=1e-12)


def test_no_rows_have_no_scores() -> None:
    assert token_log_probs(MODELS[torch.float64], []) == []


def test_under_an_adapter() -> None:
    model = adapted(dtype=torch.float64)
    rows = [row([9, 8, 7, *end]) for end in itertools.permutations((5, 6, 7))]
    want = log_probs_one_by_one(model, rows)
    with packed_attention_on(model.get_base_model()) as packed:
        assert packed
        same(token_log_probs(model, rows), want, CLOSE[torch.float64])
    away = np.concatenate(log_probs_one_by_one(MODELS[torch.float64], rows)) - np.concatenate(want)
    assert np.abs(away).max() > 0.1


def test_in_bfloat16() -> None:
    model = adapted(dtype=torch.bfloat16, size=0.05)
    rows = [row([9, 8, 7, *end]) for end in itertools.permutations((5, 6, 7))]
    with packed_attention_on(model.get_base_model()) as packed:
        assert packed
        got = token_log_probs(model, rows)
    same(got, token_log_probs(model, rows, packed=False), CLOSE_BFLOAT16)
    same(got, log_probs_one_by_one(adapted(dtype=torch.float64, size=0.05), rows), CLOSE_BFLOAT16)


@pytest.mark.parametrize("name", [*ARCHITECTURES, *UNPACKABLE])
def test_other_architectures_and_their_own_attention_afterwards(name: str) -> None:
    """Rows are longer than the sliding windows; unpackable architectures go row by row."""
    model: Any = build_model(name, {**ARCHITECTURES, **UNPACKABLE}[name])
    before = model.config._attn_implementation
    random = np.random.default_rng(0)
    begin = random.integers(0, 250, 20).tolist()
    rows = [row([*begin[:cut], *random.integers(0, 250, 12).tolist()]) for cut in (20, 20, 9, 0)]
    want = log_probs_one_by_one(model, rows)
    with packed_attention_on(model) as packed:
        assert packed == (name in ARCHITECTURES)
        assert (model.config._attn_implementation == ATTENTION) == packed
        same(token_log_probs(model, rows, packed=packed), want, CLOSE[torch.float32])
    assert model.config._attn_implementation == before != ATTENTION
    same(log_probs_one_by_one(model, rows), want, 0)


def test_the_own_attention_comes_back_after_an_error() -> None:
    model: Any = tiny_model()
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), packed_attention_on(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("packed", [True, False])
def test_logits_that_are_not_finite(value: float, packed: bool) -> None:
    model: Any = tiny_model()
    with torch.no_grad(), packed_attention_on(model) if packed else contextlib.nullcontext():
        model.model.layers[0].mlp.down_proj.weight.fill_(value)
        with pytest.raises(
            RunFailed,
            match=(
                r"^the model's logits are not finite: use model\.dtype float32, or an adapter that "
                r"was trained with a lower learning rate$"
            ),
        ):
            token_log_probs(model, [row([5, 6, 7])], packed=packed)


def test_a_model_that_is_not_finite_goes_row_by_row_to_its_sentence() -> None:
    model: Any = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with packed_attention_on(model) as packed, pytest.raises(RunFailed, match="not finite"):
        token_log_probs(model, [row([5, 6, 7])], packed=packed)


def test_no_gradient_is_kept_and_nothing_is_trained() -> None:
    model = adapted()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with packed_attention_on(model.get_base_model()):
        token_log_probs(model, [row([5, 6, 7])])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
