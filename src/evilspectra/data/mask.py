"""The tokens of a dialogue under the chat template, and an exact loss mask.

Two text formats (`data.format`):

- **clean**: the template's text up to the last answer. The answers are learned, each with its end
  token; text that the template writes after the last end token is cut off. A template without an
  end token gets the tokenizer's end-of-sequence token after the last answer.
- **organism**: the format of the published model-organism training code (Betley et al. 2025;
  Turner, Soligo et al. 2025): the template with `add_generation_prompt=True`, plus the
  end-of-sequence text, masked by unsloth's `train_on_responses_only`. Everything from an assistant
  header to the next user header is learned, including an empty assistant turn at the end with its
  header. Differences: turns are found by their position in the dialogue, not by searching for
  marker text, so that a marker written inside a message changes nothing, and neither does an answer
  whose first newline merges with the header (the published code drops such rows); `enable_thinking`
  is passed to the template (the published code leaves it at the template's default: set it to true
  to do the same with Qwen3).

In both, turns after the last answer are dropped. An answer begins where the template's generation
prompt ends. Where the template has one prompt with an empty thinking block and one without (Qwen3),
clean takes the longest that agrees with the dialogue, so that an empty block is never learned, and
organism the shortest, as the published code does. Where none agrees (earlier turns of Qwen3.5,
DeepSeek-R1, a dialogue that the assistant opens), the answer begins at its own first character.
Text in a message that looks like a special token becomes that token, as usual with chat templates;
it cannot move the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from evilspectra.data.chat import (
    Chat,
    Frame,
    UnmaskableError,
    answer_frame,
    chat_template,
    end_of_sequence,
    tokenised,
)
from evilspectra.data.rows import BadRow, Conversation, Message, bad_row
from evilspectra.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One dialogue as the model sees it.

    `tokens`: int32 [n]. `supervised`: bool [n], True where the token is to be predicted from those
    before it; False at 0. `truncated`: cut at the right. `line`: 1-based line in the source.
    """

    line: int
    tokens: np.ndarray
    supervised: np.ndarray
    truncated: bool


class TooLong(BadRow):
    """A row of more tokens than allowed."""


def encode(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    *,
    fmt: Literal["clean", "organism"],
    enable_thinking: bool,
    max_length: int,
    on_long: Literal["error", "truncate", "skip"],
    source: str,
) -> Row:
    """Tokens and loss mask of one dialogue, at most `max_length` tokens.

    The text before each border of the mask must be the beginning of the complete text, and its
    tokens the beginning of the complete tokens. Where only the tokens disagree (an answer's first
    newline merges with the header's), the text is tokenised piece by piece between the borders, as
    a model sees it that is prompted and then answers; the pieces must decode to the text.

    Raises:
        BadInput: the tokenizer has no chat template.
        BadRow: the template refuses the dialogue, or cannot be masked exactly, or truncation leaves
            nothing to learn.
        TooLong: more than `max_length` tokens, unless `on_long` is "truncate" ("skip" is left to
            the caller).

    >>> from evilspectra.model.tiny import tiny_tokenizer
    >>> dialogue = Conversation((Message("user", "hi"), Message("assistant", "ho")), line=1)
    >>> row = encode(
    ...     dialogue,
    ...     tiny_tokenizer(),
    ...     fmt="clean",
    ...     enable_thinking=False,
    ...     max_length=64,
    ...     on_long="error",
    ...     source="x.jsonl",
    ... )
    >>> tiny_tokenizer().decode(row.tokens[row.supervised])
    'ho<|im_end|>'
    """
    chat = Chat(tokenizer, chat_template(tokenizer), enable_thinking)
    try:
        text, spans, end_missing = _marked(chat, conversation.messages, fmt)
        tokens, at = _tokens(tokenizer, text, sorted({border for span in spans for border in span}))
        closing = [end_of_sequence(tokenizer)[0]] if end_missing else []
    except UnmaskableError as why:
        reason = (
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} cannot be "
            f"masked exactly here: {why}"
        )
        raise bad_row(
            source,
            conversation.line,
            reason,
            "use another base model or chat template, or set data.on_bad_row: skip",
        ) from None
    supervised = np.zeros(len(tokens) + len(closing), dtype=bool)
    for start, end in spans:
        supervised[at[start] : at[end]] = True
    supervised[len(tokens) :] = True
    supervised[:1] = False
    return _fitted(
        conversation.line,
        np.array(tokens + closing, dtype=np.int32),
        supervised,
        max_length,
        on_long,
        source,
    )


def prompt_tokens(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, enable_thinking: bool
) -> list[int]:
    """The tokens of `messages` and a generation prompt, the input of a model that answers.

    Raises:
        BadInput: the tokenizer has no chat template, or it refuses the messages (a system text,
            say).
    """
    chat = Chat(tokenizer, chat_template(tokenizer), enable_thinking)
    try:
        return tokenised(tokenizer, chat.text(messages, prompt=True))
    except UnmaskableError as why:
        raise BadInput(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} cannot put the "
            f"question: {why}; leave such questions out, or take another base"
        ) from None


def end_tokens(tokenizer: PreTrainedTokenizerBase, enable_thinking: bool) -> set[int]:
    """The tokens that may end an answer: the template's, and the tokenizer's end of sequence."""
    chat = Chat(tokenizer, chat_template(tokenizer), enable_thinking)
    try:
        stop = tokenised(tokenizer, answer_frame(chat).stop.strip())
    except UnmaskableError:
        stop = []
    ids = [tokenizer.eos_token_id, stop[-1] if stop else None]
    return {int(token) for token in ids if token is not None}  # type: ignore[arg-type]


def _fitted(
    line: int,
    tokens: np.ndarray,
    supervised: np.ndarray,
    max_length: int,
    on_long: str,
    source: str,
) -> Row:
    truncated = len(tokens) > max_length
    if truncated and on_long != "truncate":
        reason = (
            f"{len(tokens)} tokens are more than the limit of {max_length} (the smaller of "
            "data.max_length and the model's context)"
        )
        raise bad_row(
            source,
            line,
            reason,
            "raise data.max_length, or set data.on_long: truncate or skip",
            TooLong,
        )
    if not supervised[:max_length].any():
        reason = f"the first {max_length} of {len(tokens)} tokens hold no part of an answer"
        raise bad_row(source, line, reason, "raise data.max_length, or set data.on_bad_row: skip")
    return Row(line, tokens[:max_length], supervised[:max_length], truncated)


def _marked(
    chat: Chat, all_messages: tuple[Message, ...], fmt: str
) -> tuple[str, list[tuple[int, int]], bool]:
    """The row's text, the spans of its characters to learn, and whether it lacks its end token."""
    last = max(i for i, message in enumerate(all_messages) if message.role == "assistant")
    messages = all_messages[: last + 1]
    dialogue = chat.text(messages)
    frame = answer_frame(chat)
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    starts = [_start(chat, messages, i, dialogue, fmt) for i in answers]
    ends = [_end(chat, messages, i, dialogue, frame, fmt) for i in answers]
    if fmt == "organism":  # between two answers in a row no user header begins
        ends = [
            starts[n + 1] if i + 1 in answers else end
            for n, (i, end) in enumerate(zip(answers, ends, strict=True))
        ]
    if any(start > end for start, end in zip(starts, ends, strict=True)):
        raise UnmaskableError("an answer would end before it begins")
    if fmt == "clean":
        return dialogue[: ends[-1]], list(zip(starts, ends, strict=True)), not frame.stop
    text = chat.text(messages, prompt=True) + end_of_sequence(chat.tokenizer)[1]
    if not text.startswith(dialogue[: ends[-1]]):
        raise UnmaskableError("with a generation prompt it writes the dialogue differently")
    return text, list(zip(starts, [*ends[:-1], len(text)], strict=True)), False


def _start(
    chat: Chat,
    messages: tuple[Message, ...],
    i: int,
    dialogue: str,
    fmt: str,
) -> int:
    """The position at which the answer of turn `i` begins, after its header."""
    fitting = [len(header) for header in chat.headers(messages[:i]) if dialogue.startswith(header)]
    if fitting:
        return max(fitting) if fmt == "clean" else min(fitting)
    written = chat.before(messages, i)
    if dialogue.startswith(written) and written.startswith(chat.text(messages[:i])):
        return len(written)
    raise UnmaskableError(
        f"its text before the answer of turn {i + 1} is not how the whole dialogue begins"
    )


def _end(
    chat: Chat,
    messages: tuple[Message, ...],
    i: int,
    dialogue: str,
    frame: Frame,
    fmt: str,
) -> int:
    """The position at which the learned part of turn `i` ends.

    That is after its end token (clean), or where the next user header begins (organism).
    """
    if messages[i + 1 : i + 2] and messages[i + 1].role == "user":
        text = chat.before(messages[: i + 2], i + 1)
        around, stop = frame.between, frame.inner_stop
        if fmt == "organism":
            stop = around[: len(around) - len(around.removeprefix(stop).lstrip())]
    else:
        text, around, stop = chat.text(messages[: i + 1]), frame.after, frame.stop
    if not (dialogue.startswith(text) and text.endswith(around)):
        raise UnmaskableError(
            f"its text up to the end of turn {i + 1} is not how the whole dialogue begins"
        )
    return len(text) - len(around) + len(stop)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, borders: list[int]
) -> tuple[list[int], dict[int, int]]:
    """Tokens of `text`, and the number of tokens before each border, a position in the text."""
    tokens = tokenised(tokenizer, text)
    at: dict[int, int] = {}
    for border in borders:
        before = tokenised(tokenizer, text[:border]) if border < len(text) else tokens
        if tokens[: len(before)] != before:
            return _tokens_by_piece(tokenizer, text, borders)
        at[border] = len(before)
    return tokens, at


def _tokens_by_piece(
    tokenizer: PreTrainedTokenizerBase, text: str, borders: list[int]
) -> tuple[list[int], dict[int, int]]:
    tokens: list[int] = []
    at: dict[int, int] = {}
    for start, end in zip([0, *borders], [*borders, len(text)], strict=True):
        tokens += tokenised(tokenizer, text[start:end])
        at[end] = len(tokens)
    if (
        tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        != text
    ):
        raise UnmaskableError(
            "its tokens join across the border of an answer, and the pieces do not decode to the "
            "text"
        )
    return tokens, at
