"""The tiny base model: the same bytes each time, and an untouched random state of the caller."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from evilspectra.model.tiny import CONTEXT, TINY, tiny_model, tiny_sha256, tiny_tokenizer

MARKERS = ["<|im_start|>", "<|im_end|>", "<|pad|>"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@given(st.lists(st.text() | st.sampled_from(MARKERS)).map("".join))
def test_any_text_survives_a_round_trip(text: str) -> None:
    assert tokenizer().decode(tokenizer()(text).input_ids) == text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<")))
def test_ordinary_text_has_one_token_per_byte(text: str) -> None:
    assert len(tokenizer()(text).input_ids) == len(text.encode())


def test_the_template_is_chatml_without_a_system_prompt_of_its_own() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert (
        tokenizer().apply_chat_template(turns, tokenize=False)
        == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )
    assert (
        tokenizer().apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    )


def test_special_tokens_and_sizes() -> None:
    names = tokenizer()
    assert (names.pad_token, names.eos_token, names.bos_token, len(names)) == (
        "<|pad|>",
        "<|im_end|>",
        None,
        259,
    )
    assert names.name_or_path == TINY
    config = tiny_model().config
    assert (config.vocab_size, config.max_position_embeddings, config.tie_word_embeddings) == (
        259,
        CONTEXT,
        True,
    )
    assert (config.pad_token_id, config.eos_token_id) == (names.pad_token_id, names.eos_token_id)


def test_the_same_bytes_whatever_the_random_state_and_that_state_is_left_alone() -> None:
    torch.manual_seed(1)
    first = tiny_model().state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = tiny_model().state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert tiny_sha256() == tiny_sha256()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_other_types_are_the_float64_ones_rounded(dtype: torch.dtype) -> None:
    exact, rounded = tiny_model(torch.float64).state_dict(), tiny_model(dtype).state_dict()
    assert all(torch.equal(exact[name].to(dtype), rounded[name]) for name in exact)


def test_float32_and_float64_agree_to_rounding_and_the_model_is_not_trivial() -> None:
    ids = torch.tensor([tokenizer()("What is two and two?").input_ids])
    with torch.no_grad():
        exact, rounded = (
            tiny_model(torch.float64)(ids).logits,
            tiny_model(torch.float32)(ids).logits,
        )
    # A few hundred float32 roundings (6e-8 each) of logits of size 1.
    assert torch.allclose(exact, rounded.double(), atol=1e-4)
    assert 0.3 < float(exact.std()) < 3
    assert not tiny_model().training
