"""Sampled answers: equal to those of a slow twin without batches or cache, in any batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evilspectra.answers.questions import Question
from evilspectra.answers.sample import (
    Prompt,
    Sampled,
    batches,
    choose,
    prompts,
    record,
    sample,
    stop_tokens,
)
from evilspectra.config.evaluation import Answers
from evilspectra.errors import BadInput, RunFailed
from evilspectra.model.tiny import CONTEXT, tiny_model, tiny_tokenizer
from tests.reference.sampling import choose_by_walking, exact_shares, sample_one_by_one
from tests.support.small_items import adapted
from tests.test_packing import ARCHITECTURES, SMALL, UNPACKABLE, build_model

END = 258
#: The largest number below 1 that is drawn.
LAST = 1 - 2**-53


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


def question(
    name: str,
    text: str = "Why?",
    system: str | None = None,
    samples: int = 1,
) -> Question:
    return Question(name, 0, text, system, samples, ())


def planned(*lengths: int, vocabulary: int = 256) -> list[Prompt]:
    random = np.random.default_rng(0)
    return [
        Prompt(
            question(f"q{number}"), number, tuple(random.integers(0, vocabulary, length).tolist())
        )
        for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(torch.float64)


#: A fifth of the vocabulary ends an answer, so that answers of a batch end one after the other.
STOPS = frozenset(range(0, 259, 5))


# --- against the twin -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0},
        {"temperature": 1},
        {"temperature": 1, "top_p": 0.9},
        {"temperature": 0.7, "top_p": 0.3, "seed": 5},
    ],
    ids=str,
)
def test_equal_to_the_slow_twin(model: Any, settings: dict[str, Any]) -> None:
    options = Answers(max_new_tokens=12, **settings)
    batch = planned(5, 31, 2, 17, 5, 1)
    answers = sample(model, batch, options, STOPS, CONTEXT)
    assert answers == [
        sample_one_by_one(model, prompt, options, STOPS, CONTEXT) for prompt in batch
    ]
    assert len({len(answer.tokens) for answer in answers}) > 1
    assert {answer.finish for answer in answers} >= {"stop"}


def test_equal_to_the_slow_twin_under_an_adapter() -> None:
    model = adapted(dtype=torch.float64)
    options, batch = Answers(max_new_tokens=8), planned(5, 31, 2)
    answers = sample(model, batch, options, STOPS, CONTEXT)
    assert answers == [
        sample_one_by_one(model, prompt, options, STOPS, CONTEXT) for prompt in batch
    ]
    assert answers != sample(tiny_model(torch.float64), batch, options, STOPS, CONTEXT)


#: Architectures whose layers keep other things than keys and values, or fewer of them.
OTHERS = {
    **ARCHITECTURES,
    **UNPACKABLE,
    "Qwen3NextConfig": {
        "head_dim": 8,
        "num_experts": 0,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "Phi3Config": {"pad_token_id": 0, "sliding_window": 8},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_answer_as_the_twin_does(name: str) -> None:
    """Prompts of unequal length, some longer than the sliding windows; greedy.

    In float32: the eager softmax of transformers has no higher precision.
    """
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    net: Any = build_model(name, OTHERS[name])
    options, batch = Answers(max_new_tokens=10, temperature=0), planned(5, 20, 2, 11)
    assert sample(net, batch, options, frozenset(), 128) == [
        sample_one_by_one(net, prompt, options, frozenset(), 128) for prompt in batch
    ]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=7), st.integers(0, 3))
def test_what_is_sampled_beside_it_changes_no_answer(
    model: Any, lengths: list[int], seed: int
) -> None:
    options, batch = Answers(max_new_tokens=6, seed=seed), planned(*lengths)
    together = sample(model, batch, options, STOPS, CONTEXT)
    assert together == [
        answer for prompt in batch for answer in sample(model, [prompt], options, STOPS, CONTEXT)
    ]
    assert together == [
        answer
        for part in batches(batch, 3)
        for answer in sample(model, part, options, STOPS, CONTEXT)
    ]
    assert together[::-1] == sample(model, batch[::-1], options, STOPS, CONTEXT)


def test_a_batch_repeats_and_another_seed_says_something_else(model: Any) -> None:
    batch = planned(4, 9, 9)
    first, again, other = (
        sample(model, batch, Answers(max_new_tokens=10, seed=seed), frozenset(), CONTEXT)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert all(a.tokens != b.tokens for a, b in zip(first, other, strict=True))


def test_more_tokens_begin_with_the_same_ones(model: Any) -> None:
    batch = planned(4, 9)
    short, long = (
        sample(model, batch, Answers(max_new_tokens=count), frozenset(), CONTEXT)
        for count in (5, 12)
    )
    assert [answer.tokens for answer in short] == [answer.tokens[:5] for answer in long]


def test_the_caller_s_random_state_is_left_alone(model: Any) -> None:
    before = torch.get_rng_state()
    sample(model, planned(4), Answers(max_new_tokens=3), frozenset(), CONTEXT)
    assert torch.equal(torch.get_rng_state(), before)


# --- ends -----------------------------------------------------------------------------------------


def test_rows_that_ended_leave_the_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens through the model: the padded prompts once, then one for every open row."""
    options, batch = Answers(max_new_tokens=12), planned(5, 31, 2, 17, 5, 1)
    seen: list[tuple[int, ...]] = []
    forward = model.forward
    monkeypatch.setattr(
        model,
        "forward",
        lambda *rest, **more: (seen.append(tuple(more["input_ids"].shape)), forward(*rest, **more))[
            1
        ],
    )
    answers = sample(model, batch, options, STOPS, CONTEXT)
    lengths = [len(answer.tokens) for answer in answers]
    assert seen[0] == (6, 31)
    assert seen[1:] == [
        (sum(length > number for length in lengths), 1) for number in range(1, max(lengths))
    ]
    assert min(lengths) < max(lengths)


def test_a_stop_token_ends_an_answer_and_is_counted(model: Any) -> None:
    batch = planned(5, 31, 2, 17)
    free = sample(model, batch, Answers(max_new_tokens=30), frozenset(), CONTEXT)
    assert all(answer.finish == "length" and len(answer.tokens) == 30 for answer in free)
    for unlimited, ended in zip(
        free, sample(model, batch, Answers(max_new_tokens=30), STOPS, CONTEXT), strict=True
    ):
        end = next(number for number, token in enumerate(unlimited.tokens) if token in STOPS)
        assert ended == Sampled(unlimited.tokens[: end + 1], "stop")


def test_the_limit_of_tokens_and_of_the_context(model: Any) -> None:
    options = Answers(max_new_tokens=6)
    answers = sample(model, planned(5, 14, 19), options, frozenset(), 20)
    assert [(len(answer.tokens), answer.finish) for answer in answers] == [
        (6, "length"),
        (6, "length"),
        (1, "length"),
    ]
    assert [answer.tokens[:1] for answer in answers] == [
        answer.tokens
        for answer in sample(model, planned(5, 14, 19), Answers(max_new_tokens=1), frozenset(), 20)
    ]


def test_a_stop_token_at_the_limit_is_a_stop(model: Any) -> None:
    (free,) = sample(model, planned(5), Answers(max_new_tokens=4), frozenset(), CONTEXT)
    assert sample(
        model,
        planned(5),
        Answers(max_new_tokens=4),
        frozenset(free.tokens[3:]) - set(free.tokens[:3]),
        CONTEXT,
    ) == [Sampled(free.tokens, "stop")]


def test_a_huge_limit_of_tokens_costs_no_memory_beyond_the_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []
    uniform = Prompt.uniform
    monkeypatch.setattr(
        Prompt,
        "uniform",
        lambda self, seed, count: (counts.append(count), uniform(self, seed, count))[1],
    )
    sample(tiny_model(), planned(3), Answers(max_new_tokens=1_048_576), STOPS, 30)
    assert max(counts) <= 30


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(value: float) -> None:
    model: Any = tiny_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(value)
    with pytest.raises(
        RunFailed,
        match=(
            r"^the model's logits are not finite: use model\.dtype float32, or an adapter that "
            r"was trained with a lower learning rate$"
        ),
    ):
        sample(model, planned(3), Answers(max_new_tokens=3), STOPS, CONTEXT)


# --- one token ------------------------------------------------------------------------------------


def one_token(
    logits: list[float],
    uniform: float,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> int:
    return int(
        choose(
            torch.tensor([logits], dtype=torch.float64),
            torch.tensor([uniform], dtype=torch.float64),
            temperature,
            top_p,
        )
    )


uniforms = st.floats(0, LAST) | st.sampled_from([0.0, LAST, 2**-53])
logit = st.floats(-30, 30) | st.just(float("-inf"))


@settings(max_examples=300, deadline=None)
@given(st.lists(logit, min_size=1, max_size=12), uniforms, st.floats(0.05, 5), st.floats(0.01, 1))
def test_a_token_is_the_twin_s(
    logits: list[float],
    uniform: float,
    temperature: float,
    top_p: float,
) -> None:
    """Except where the draw falls on an edge, to the last digits."""
    assume(max(logits) > float("-inf"))
    sums = np.cumsum(exact_shares(logits, temperature, 1.0))
    ranked = np.cumsum(sorted(exact_shares(logits, temperature, 1.0), reverse=True))
    assume(np.abs(ranked - top_p).min() > 1e-9)
    assume(
        np.abs(np.cumsum(exact_shares(logits, temperature, top_p)) - uniform)[:-1].min(initial=1)
        > 1e-9
    )
    assert sums[-1] == pytest.approx(1)
    assert one_token(logits, uniform, temperature, top_p) == choose_by_walking(
        np.array(logits), uniform, temperature, top_p
    )


@settings(max_examples=300, deadline=None)
@given(
    st.lists(logit, min_size=1, max_size=300),
    uniforms,
    st.floats(1e-320, 100),
    st.floats(1e-300, 1),
)
def test_no_impossible_token_is_ever_taken(
    logits: list[float],
    uniform: float,
    temperature: float,
    top_p: float,
) -> None:
    assume(max(logits) > float("-inf"))
    token = one_token(logits, uniform, temperature, top_p)
    assert logits[token] > float("-inf")
    if temperature < 1e-12:
        assert logits[token] >= max(logits) - 1e-9


def test_the_shares_are_those_of_the_softmax() -> None:
    """Chi-square of 20,000 draws from 40 tokens, with 39 degrees of freedom.

    It exceeds 74 once in 1,500 seeds, and the seed is fixed.
    """
    random = np.random.default_rng(3)
    logits = random.normal(0, 1.5, 40)
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.3, 0.8)):
        shares = exact_shares(logits, temperature, top_p)
        draws = torch.from_numpy(random.random(20_000))
        counts = np.bincount(
            choose(torch.from_numpy(logits).expand(20_000, 40), draws, temperature, top_p),
            minlength=40,
        )
        assert counts[shares == 0].sum() == 0
        expected = 20_000 * shares[shares > 0]
        assert ((counts[shares > 0] - expected) ** 2 / expected).sum() < 74


def test_the_ends_of_the_draw() -> None:
    inf = float("inf")
    assert one_token([-inf, 0.0, -inf, 0.0, -inf], 0.0) == 1
    assert one_token([-inf, 0.0, -inf, 0.0, -inf], 0.5) == 3
    assert one_token([-inf, 0.0, -inf, 0.0, -inf], LAST) == 3
    assert one_token([0.0] * 3 + [-800.0] * 3, LAST) == 2  # e^-800 is 0
    assert one_token([0.0], LAST) == 0


def test_top_p_keeps_up_to_and_including_the_one_that_reaches_it() -> None:
    logits = np.log([0.5, 0.125, 0.25, 0.125]).tolist()
    assert {one_token(logits, uniform, top_p=0.5) for uniform in (0.0, 0.5, LAST)} == {0}
    assert [one_token(logits, uniform, top_p=0.51) for uniform in (0.0, 0.66, 0.67, LAST)] == [
        0,
        0,
        2,
        2,
    ]
    assert {one_token(logits, uniform, top_p=1e-300) for uniform in (0.0, LAST)} == {0}
    assert [one_token(logits, uniform, top_p=0.76) for uniform in (0.6, LAST)] == [
        1,
        2,
    ]  # of equals the first
    assert one_token([0.0] * 4, LAST, top_p=LAST) == 3


def test_temperature_zero_takes_the_likeliest_and_of_equals_the_first() -> None:
    assert one_token([1.0, 3.0, 3.0, 2.0], LAST, temperature=0) == 1
    assert one_token([1.0, 3.0, 3.0, 2.0], LAST, temperature=0, top_p=0.1) == 1
    assert one_token([1.0, 2.0, float("-inf")], 0.0, temperature=1e-308) == 1


@pytest.mark.parametrize("logits", [[float("nan"), 1.0], [float("-inf")] * 2, [float("inf"), 0.0]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_row_that_is_not_finite(logits: list[float], temperature: float) -> None:
    with pytest.raises(RunFailed, match="the model's logits are not finite"):
        choose(torch.tensor([[1.0, 2.0], logits]), torch.tensor([0.5, 0.5]), temperature, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_sampled_from_in_float64(dtype: torch.dtype) -> None:
    logits = torch.tensor([[0.5, 1.25, -2.0]], dtype=dtype)
    draws = torch.linspace(0, LAST, 99, dtype=torch.float64)
    assert (
        choose(logits.expand(99, 3), draws, 1.0, 1.0).tolist()
        == choose(logits.double().expand(99, 3), draws, 1.0, 1.0).tolist()
    )


# --- draws ----------------------------------------------------------------------------------------


def test_every_question_and_sample_has_draws_of_its_own() -> None:
    base = Prompt(question("a", "Why?"), 0, (1,))
    others = [
        Prompt(question("b", "Why?"), 0, (1,)),
        Prompt(question("a", "How?"), 0, (1,)),
        Prompt(question("a", "Why?", "s"), 0, (1,)),
        Prompt(question("a", "Why?", ""), 0, (1,)),
        Prompt(question("a", "Why?"), 1, (1,)),
    ]
    drawn = [tuple(prompt.uniform(0, 4)) for prompt in [base, *others]] + [
        tuple(base.uniform(1, 4))
    ]
    assert len(set(drawn)) == len(drawn)
    assert tuple(Prompt(base.question, 0, (9, 9)).uniform(0, 4)) == drawn[0]
    assert base.uniform(0, 9)[:4].tolist() == list(drawn[0])
    assert all(0 <= number < 1 for numbers in drawn for number in numbers)


def test_a_paraphrase_given_twice_is_asked_twice() -> None:
    """Two entries of the same text are two draws: equal answers would count twice."""
    twice = [
        Prompt(Question("a", paraphrase, "Why?", None, 1, ()), 0, (1,)) for paraphrase in range(2)
    ]
    assert twice[0].uniform(0, 4).tolist() != twice[1].uniform(0, 4).tolist()


def test_draws_are_uniform() -> None:
    numbers = np.concatenate(
        [Prompt(question(f"q{number}"), 0, (1,)).uniform(0, 200) for number in range(50)]
    )
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / numbers.size) ** 0.5
    assert np.histogram(numbers, 10, (0, 1))[0].min() > 880


# --- prompts and records --------------------------------------------------------------------------


def texts(
    *questions: Question,
    samples: int | None = None,
    tokenizer: Any = None,
    thinking: bool = False,
) -> list[str]:
    tokenizer = tokenizer or tiny_tokenizer()
    return [
        tokenizer.decode(list(prompt.tokens))
        for prompt in prompts(questions, samples, tokenizer, CONTEXT, thinking)
    ]


def test_the_question_and_its_system_text_reach_the_model() -> None:
    assert texts(question("a", "Why?")) == [
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert texts(question("a", "Why?", "Be brief.")) == [
        (
            "<|im_start|>system\nBe "
            "brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
        )
    ]


def test_an_empty_system_text_is_one() -> None:
    """Many templates write a default text where there is none; `questions` keeps the difference."""
    assert texts(question("a", "Why?", "")) == [
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ]


def test_as_many_samples_as_asked_for() -> None:
    two = [question("a", samples=3), question("b")]
    assert [
        (prompt.question.id, prompt.sample)
        for prompt in prompts(two, None, tiny_tokenizer(), CONTEXT, False)
    ] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert [
        (prompt.question.id, prompt.sample)
        for prompt in prompts(two, 2, tiny_tokenizer(), CONTEXT, False)
    ] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_thinking_is_passed_to_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0].content }}{% if enable_thinking %}!{% else %}?{% endif %}"
    )
    assert (
        texts(question("a", "x"), tokenizer=tokenizer),
        texts(question("a", "x"), tokenizer=tokenizer, thinking=True),
    ) == (["x?"], ["x!"])


def test_a_template_that_refuses_a_system_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') "
        "}}{% endif %}"
    ) + str(tokenizer.chat_template)
    assert texts(question("a", "Why?"), tokenizer=tokenizer)
    with pytest.raises(BadInput) as caught:
        texts(question("a", "Why?", "Be brief."), tokenizer=tokenizer)
    assert str(caught.value) == (
        "the chat template of tiny-random cannot put the question: it refuses the dialogue: "
        "System role not supported; leave such questions out, or take another base"
    )


def test_no_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="the tokenizer of tiny-random has no chat template"):
        texts(question("a"), tokenizer=tokenizer)


def test_a_question_that_leaves_no_room() -> None:
    tokens = len(prompts([question("a", "x")], None, tiny_tokenizer(), CONTEXT, False)[0].tokens)
    long = question("long", "x" * (CONTEXT - tokens + 1))
    with pytest.raises(
        BadInput,
        match=(
            rf"^question 'long' has {CONTEXT} tokens, and the model's context is {CONTEXT}: "
            r"shorten it, or take another base$"
        ),
    ):
        texts(long)
    assert texts(question("short", long.text[1:]))


def test_what_ends_an_answer() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    assert stop_tokens(model, tokenizer, False) == {END}
    generation: Any = model.generation_config
    for ends, want in (([3, 4], {3, 4, END}), (7, {7, END}), (None, {END})):
        generation.eos_token_id = ends
        assert stop_tokens(model, tokenizer, False) == want
    tokenizer.eos_token = "<|pad|>"
    assert stop_tokens(model, tokenizer, False) == {256, END}  # the template's own end too


def test_a_record_holds_the_text_without_its_end() -> None:
    tokenizer, prompt = tiny_tokenizer(), Prompt(question("a", "Why?", "s"), 2, (1,))
    tokens = tuple(tokenizer("Fine, thanks. ½").input_ids)
    answer = record(prompt, Sampled((*tokens, END), "stop"), tokenizer, 7)
    assert (
        answer.step,
        answer.question_id,
        answer.paraphrase,
        answer.sample,
        answer.system,
        answer.question,
    ) == (7, "a", 0, 2, "s", "Why?")
    assert (answer.answer, answer.tokens, answer.finish, answer.flags) == (
        "Fine, thanks. ½",
        len(tokens) + 1,
        "stop",
        "",
    )
    assert record(prompt, Sampled(tokens, "length"), tokenizer, 7).flags == "truncated"
    assert record(prompt, Sampled((END,), "stop"), tokenizer, 7).flags == "empty"


def test_an_end_that_is_an_ordinary_token_is_not_in_the_text() -> None:
    """A generation config may name any token."""
    tokenizer = tiny_tokenizer()
    tokens = tuple(tokenizer("Fine.#").input_ids)
    assert (
        record(Prompt(question("a"), 0, (1,)), Sampled(tokens, "stop"), tokenizer, 0).answer
        == "Fine."
    )
    assert (
        record(Prompt(question("a"), 0, (1,)), Sampled(tokens, "length"), tokenizer, 0).answer
        == "Fine.#"
    )


def test_a_record_of_any_bytes_can_be_stored() -> None:
    tokenizer = tiny_tokenizer()
    answer = record(
        Prompt(question("a"), 0, (1,)), Sampled(tuple(range(256)), "length"), tokenizer, 0
    )
    json.dumps(answer.answer).encode()
    assert "\ufffd" in answer.answer


def test_architectures_of_this_file_are_small() -> None:
    assert SMALL["hidden_size"] <= 32
