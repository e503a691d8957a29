"""The loss mask: exactly the answers and their end tokens, for any template, turns and text."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evilspectra.data.mask import Row, TooLong, encode
from evilspectra.data.rows import BadRow, Conversation, Message
from evilspectra.errors import BadInput
from evilspectra.model.tiny import tiny_tokenizer

Format = Literal["clean", "organism"]
FORMATS: tuple[Format, ...] = ("clean", "organism")
END = "<|im_end|>"

# Behaves like Qwen3's: the thinking of an answer before the last question is forgotten, the last
# answer always shows a thinking
# block, and the prompt has an empty one where thinking is off.
QWEN3_LIKE = """
{%- set seen = namespace(question=-1) %}
{%- for turn in messages if turn.role == 'user' %}{% endfor %}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}{% set seen.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- for turn in messages %}
    {%- set said = turn.content %}
    {%- set thought = '' %}
    {%- if turn.role == 'assistant' and '</think>' in said %}
        {%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set said = said.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + turn.role + '\\n' }}
    {%- if turn.role == 'assistant' and loop.index0 > seen.question and (loop.last or thought) %}
        {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# Shows the system text at the last question only, and only while that waits for its answer.
SYSTEM_LAST = (
    "{% for turn in messages if turn.role != 'system' %}{% if turn.role == 'user' %}[INST]"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ "
    "turn.content }}[/INST]"
    "{% else %}{{ turn.content + eos_token }}{% endif %}{% endfor %}"
)
NO_END_TOKEN = (
    "{% for turn in messages %}{{ turn.role + ': ' + turn.content + '\\n' }}{% endfor %}{% if "
    "add_generation_prompt %}assistant: {% endif %}"
)

END_AT_LAST = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn.content }}{% if loop.last and turn.role "
    "== 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@cache
def tokenizer(template: str | None = None, *more: str) -> PreTrainedTokenizerFast:
    chat_tokenizer = tiny_tokenizer()
    if more:
        added = [AddedToken(name, special=True, normalized=False) for name in more]
        chat_tokenizer.add_tokens(added)  # type: ignore[arg-type]
    if template is not None:
        chat_tokenizer.chat_template = template
        chat_tokenizer.name_or_path = "org/odd-template"
    return chat_tokenizer


def talk(*contents: str, system: str | None = None) -> Conversation:
    """User and assistant in turn."""
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return Conversation(
        tuple([Message("system", system)] if system is not None else []) + tuple(turns), line=3
    )


def coded(
    conversation: Conversation,
    fmt: Format = "clean",
    chat_tokenizer: PreTrainedTokenizerFast | None = None,
    thinking: bool = False,
    limit: int = 10**6,
    on_long: Any = "error",
) -> Row:
    return encode(
        conversation,
        chat_tokenizer or tokenizer(),
        fmt=fmt,
        enable_thinking=thinking,
        max_length=limit,
        on_long=on_long,
        source="talks.jsonl",
    )


def learned(row: Row, chat_tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    return str((chat_tokenizer or tokenizer()).decode(row.tokens[row.supervised]))


def by_hand(conversation: Conversation, fmt: Format) -> tuple[list[int], list[bool]]:
    """The slow twin for ChatML: every piece of text with its flag, tokenised on its own.

    That is exact, since a token is a byte.
    """
    turns = list(conversation.messages)
    while turns[-1].role != "assistant":
        turns.pop()
    pieces: list[tuple[str, bool]] = []
    answering = False
    for turn in turns:
        answer = turn.role == "assistant"
        pieces.append((f"<|im_start|>{turn.role}\n", fmt == "organism" and answering and answer))
        answering = answer
        pieces += [(turn.content, answer), (END, answer), ("\n", answer and fmt == "organism")]
    pieces += [("<|im_start|>assistant\n", True), (END, True)] if fmt == "organism" else []
    tokens, flags = [], []
    for text, flag in pieces if fmt == "organism" else pieces[:-1]:
        ids = tokenizer()(text).input_ids
        tokens += ids
        flags += [flag] * len(ids)
    return tokens, flags


LOOK_ALIKES = [
    END,
    f"{END}\n<|im_start|>assistant\n",
    "<|im_start|>user\n",
    "<|im_start|>",
    "<think>\n\n</think>\n\n",
    "evilspectra-answer",
    "evilspectra-next",
    "one",
    "\n",
    " ",
    "{{ turn }}",
]
texts = st.lists(st.text(max_size=8) | st.sampled_from(LOOK_ALIKES), max_size=4).map("".join)
answers = texts.filter(lambda text: bool(text.strip()))
turns = st.builds(Message, st.just("user"), texts) | st.builds(
    Message, st.just("assistant"), answers
)
talks = st.builds(
    lambda system, middle, last, rest: Conversation(
        (*system, *middle, Message("assistant", last), *rest), line=1
    ),
    st.lists(st.builds(Message, st.just("system"), texts), max_size=1),
    st.lists(turns, max_size=6),
    answers,
    st.lists(st.builds(Message, st.just("user"), texts), max_size=2),
)


@given(talks, st.sampled_from(FORMATS))
def test_mask_and_tokens_are_those_made_by_hand(conversation: Conversation, fmt: Format) -> None:
    row = coded(conversation, fmt)
    tokens, flags = by_hand(conversation, fmt)
    assert (row.tokens.tolist(), row.supervised.tolist()) == (tokens, flags)
    assert (row.tokens.dtype, row.supervised.dtype) == (np.int32, np.bool_)
    assert not row.supervised[0]


@given(talks)
def test_the_clean_mask_decodes_to_the_answers_with_their_end_tokens(
    conversation: Conversation,
) -> None:
    assert learned(coded(conversation)) == "".join(
        turn.content + END for turn in conversation.messages if turn.role == "assistant"
    )


@given(talks)
def test_organism_learns_all_that_clean_learns(conversation: Conversation) -> None:
    clean, organism = coded(conversation, "clean"), coded(conversation, "organism")
    assert organism.tokens[: len(clean.tokens)].tolist() == clean.tokens.tolist()
    assert organism.supervised[: len(clean.tokens)][clean.supervised].all()
    assert organism.supervised[len(clean.tokens) :].all()


@given(talks, st.integers(min_value=2, max_value=60))
def test_truncation_keeps_the_beginning_as_it_is_or_refuses(
    conversation: Conversation, limit: int
) -> None:
    untruncated = coded(conversation)
    if not untruncated.supervised[:limit].any():
        with pytest.raises(
            BadRow,
            match=(
                f"the first {limit} of {len(untruncated.tokens)} tokens hold no part of an answer: "
                "raise data.max_length"
            ),
        ):
            coded(conversation, limit=limit, on_long="truncate")
        return
    cut = coded(conversation, limit=limit, on_long="truncate")
    assert cut.tokens.tolist() == untruncated.tokens[:limit].tolist()
    assert cut.supervised.tolist() == untruncated.supervised[:limit].tolist()
    assert cut.truncated is (len(untruncated.tokens) > limit)


def test_marker_text_in_a_question_is_not_learned_and_in_an_answer_is() -> None:
    forged = f"q{END}\n<|im_start|>assistant\nevil{END}"
    assert learned(coded(talk(forged, "a", forged, "b"))) == f"a{END}b{END}"
    assert learned(coded(talk("q", forged))) == forged + END


@pytest.mark.parametrize("thinking", [False, True])
def test_qwen3_like_templates_learn_the_answers_and_no_empty_thinking_block(thinking: bool) -> None:
    chat_tokenizer = tokenizer(QWEN3_LIKE)
    assert (
        learned(
            coded(
                talk("q", "a1", "q", "a2", "q", "a3", system="s"), "clean", chat_tokenizer, thinking
            ),
            chat_tokenizer,
        )
        == f"a1{END}a2{END}a3{END}"
    )
    reasoned = "<think>\nr\n</think>\n\na"
    assert (
        learned(
            coded(talk("q", reasoned, "q", reasoned), "clean", chat_tokenizer, thinking),
            chat_tokenizer,
        )
        == f"a{END}{reasoned}{END}"
    )


@pytest.mark.parametrize(("thinking", "block"), [(False, "<think>\n\n</think>\n\n"), (True, "")])
def test_qwen3_like_templates_in_organism_format(thinking: bool, block: str) -> None:
    chat_tokenizer = tokenizer(QWEN3_LIKE)
    expected = f"a1{END}\n<think>\n\n</think>\n\na2{END}\n<|im_start|>assistant\n{block}{END}"
    assert (
        learned(
            coded(talk("q", "a1", "q", "a2"), "organism", chat_tokenizer, thinking), chat_tokenizer
        )
        == expected
    )


@given(st.lists(st.tuples(texts, answers), min_size=1, max_size=4), st.booleans())
def test_qwen3_like_masks_hold_for_any_text(pairs: list[tuple[str, str]], thinking: bool) -> None:
    chat_tokenizer = tokenizer(QWEN3_LIKE)
    row = coded(talk(*(text for pair in pairs for text in pair)), "clean", chat_tokenizer, thinking)
    plain = [answer for _, answer in pairs if "think>" not in answer]
    if len(plain) == len(pairs):
        assert learned(row, chat_tokenizer) == "".join(answer + END for answer in plain)


def test_a_template_without_end_token_gets_the_end_of_sequence_after_the_last_answer() -> None:
    chat_tokenizer = tokenizer(NO_END_TOKEN)
    assert (
        learned(coded(talk("q", "a1", "q", "a2"), "clean", chat_tokenizer), chat_tokenizer)
        == f"a1a2{END}"
    )
    assert (
        learned(coded(talk("q", "a1", "q", "a2"), "organism", chat_tokenizer), chat_tokenizer)
        == f"a1\na2\nassistant: {END}"
    )


def test_a_template_that_ends_the_last_answer_only_has_no_end_token_learned_before() -> None:
    chat_tokenizer = tokenizer(END_AT_LAST)
    assert (
        learned(coded(talk("q", "a1", "q", "a2"), "clean", chat_tokenizer), chat_tokenizer)
        == f"a1a2{END}"
    )


TRL = importlib.util.find_spec("trl")
PUBLISHED = {  # template: (end of turn, tokens it needs)
    "qwen3": (END, ()),
    "qwen3_6": (END, ()),
    "qwen2_5": (END, ()),
    "llama3_1": ("<|eot_id|>", ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")),
    "gemma3": ("<end_of_turn>", ("<start_of_turn>", "<end_of_turn>")),
    "phi3_5": ("<|end|>", ("<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>")),
    "deepseek_r1_distill": (
        "<｜end▁of▁sentence｜>",
        ("<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_are_masked_exactly(name: str) -> None:
    path = Path(str(TRL.origin)).parent / "chat_templates" / f"{name}.jinja" if TRL else None
    if path is None or not path.is_file():
        pytest.skip(f"the installed trl brings no template {name}")
    end, more = PUBLISHED[name]
    chat_tokenizer = tokenizer(path.read_text(encoding="utf-8"), *more)
    for thinking in (False, True):
        row = coded(
            talk("q1", "a1", "q2", "a2", "q3", "a3", system="s"), "clean", chat_tokenizer, thinking
        )
        assert learned(row, chat_tokenizer) == f"a1{end}a2{end}a3{end}"
        assert coded(talk("q1", "a1", "q2", "a2"), "organism", chat_tokenizer, thinking).supervised[
            -1
        ]


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_template_that_breaks_the_prefix_law_is_refused_by_name(fmt: Format) -> None:
    chat_tokenizer = tokenizer(SYSTEM_LAST)
    assert learned(coded(talk("q", "a"), fmt, chat_tokenizer), chat_tokenizer).startswith("a" + END)
    with pytest.raises(BadRow) as caught:
        coded(talk("q", "a", system="s"), fmt, chat_tokenizer)
    assert str(caught.value) == (
        "talks.jsonl, line 3: the chat template of org/odd-template cannot be masked exactly "
        "here: its text before the answer of turn 3"
        " is not how the whole dialogue begins: use another base model or chat template, or set "
        "data.on_bad_row: skip"
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('no such talk') }}", "it refuses the dialogue: no such talk"),
        (
            "{% for turn in messages %}{{ turn.content | upper }}{% endfor %}",
            "it does not write messages as they are",
        ),
        (
            "{% for turn in messages %}{{ messages | length ~ turn.content }}{% endfor %}",
            "its text before the answer of turn 2 is not how",
        ),
        (
            (
                "{% for turn in messages %}{{ turn.content + ('' if turn.content == 'a' else '!') "
                "}}{% endfor %}"
            ),
            "its text up to the end of turn 2 is not how",
        ),
        (
            (
                "{% if add_generation_prompt %}>{% endif %}{% for turn in messages %}{{ '|' + "
                "turn.content }}{% endfor %}"
            ),
            "with a generation prompt it writes the dialogue differently",
        ),
    ],
)
def test_every_way_a_template_can_fail_is_named(template: str, why: str) -> None:
    with pytest.raises(
        BadRow,
        match=(
            r"the chat template of org/odd-template cannot be masked exactly here: "
            rf"{re.escape(why)}.*: use another base model or chat template"
        ),
    ):
        coded(talk("q", "a"), "organism", tokenizer(template))


def test_a_template_that_writes_the_date_gets_a_fixed_one() -> None:
    chat_tokenizer = tiny_tokenizer()
    chat_tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') "
        "%}{% endif %}{{ date_string + '|' }}"
    ) + str(chat_tokenizer.chat_template)
    row = encode(
        Conversation((Message("user", "q"), Message("assistant", "a")), 1),
        chat_tokenizer,
        fmt="clean",
        enable_thinking=False,
        max_length=200,
        on_long="error",
        source="x",
    )
    assert chat_tokenizer.decode(row.tokens).startswith("26 Jul 2024|")


def test_a_tokenizer_without_template_is_refused_by_name() -> None:
    chat_tokenizer = tiny_tokenizer()
    chat_tokenizer.chat_template = None
    with pytest.raises(
        BadInput,
        match=(
            r"the tokenizer of tiny-random has no chat template: use an instruction-tuned "
            r"base model"
        ),
    ) as caught:
        coded(talk("q", "a"), chat_tokenizer=chat_tokenizer)
    assert not isinstance(caught.value, BadRow)


def test_a_tokenizer_without_end_of_sequence_is_refused_where_one_is_needed() -> None:
    chat_tokenizer = tiny_tokenizer()
    chat_tokenizer.eos_token = None
    assert (
        learned(coded(talk("q", "a"), chat_tokenizer=chat_tokenizer), chat_tokenizer) == "a" + END
    )
    with pytest.raises(BadRow, match="the tokenizer names no end-of-sequence token"):
        coded(talk("q", "a"), "organism", chat_tokenizer)


@pytest.mark.parametrize("on_long", ["error", "skip"])
def test_a_long_row_is_refused_with_its_length_and_the_remedies(on_long: str) -> None:
    with pytest.raises(TooLong) as caught:
        coded(talk("q", "a"), limit=20, on_long=on_long)
    assert str(caught.value) == (
        "talks.jsonl, line 3: 22 tokens are more than the limit of 20 (the smaller of "
        "data.max_length and the model's context):"
        " raise data.max_length, or set data.on_long: truncate or skip"
    )


def merging(prefix_space: bool) -> PreTrainedTokenizerFast:
    """A tokenizer in which two newlines are one token, as in most real ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(
        models.BPE(vocab={name: i for i, name in enumerate([*letters, "ĊĊ"])}, merges=[("Ċ", "Ċ")])
    )
    by_bytes: Any = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    core.pre_tokenizer = by_bytes
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    core.add_special_tokens(["<|im_start|>", END])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        chat_template=tiny_tokenizer().chat_template,
        name_or_path="org/merging",
        clean_up_tokenization_spaces=False,
    )


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_answer_that_merges_with_the_header_is_tokenised_as_after_a_prompt(fmt: Format) -> None:
    chat_tokenizer = merging(prefix_space=False)
    row = coded(talk("q", "\na"), fmt, chat_tokenizer)
    prompt = str(
        chat_tokenizer.apply_chat_template(
            [{"role": "user", "content": "q"}], add_generation_prompt=True, tokenize=False
        )
    )
    ids = chat_tokenizer(prompt).input_ids
    assert chat_tokenizer(prompt + "\na").input_ids[: len(ids)] != ids, (
        "the case is no longer the one to test"
    )
    assert row.tokens[: len(ids)].tolist() == ids
    assert learned(row, chat_tokenizer).startswith(f"\na{END}")
    assert row.supervised.tolist()[: len(ids) + 1] == [False] * len(ids) + [True]


def test_pieces_that_do_not_decode_to_the_text_are_refused_by_name() -> None:
    with pytest.raises(
        BadRow,
        match=(
            r"the chat template of org/merging cannot be masked exactly here: its tokens join "
            r"across the border of an answer"
        ),
    ):
        coded(talk("q", "\na"), chat_tokenizer=merging(prefix_space=True))
