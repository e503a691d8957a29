"""@@FIX One dialogue → its tokens and which of them are learned: the chat template, and an exact loss
mask.

Two text formats (`data.format`):

- **clean**: the template's text up to the last answer. Learned are the answers, each with its end
  token; what the template writes after the last end token is cut off. A template without an end
  token gets the tokenizer's end-of-sequence token after the last answer.
- **organism**: what the published model-organism training code does (Betley et al. 2025; Turner,
  Soligo et al. 2025): the template with `add_generation_prompt=True`, plus the end-of-sequence
  text, masked by unsloth's `train_on_responses_only`. Learned is all that follows an assistant
  header until the next user header, so also an empty assistant turn at the end, its header
  included. Differences: turns are found by their place in the dialogue, not by searching for marker
  text, so a marker written inside a message changes nothing, and neither does an answer whose first
  newline merges with the header (theirs drops such rows); `enable_thinking` is passed to the
  template (theirs leaves it at the template's default: set it to true for theirs with Qwen3).

In both, turns after the last answer are dropped. An answer begins where the template's generation
prompt ends. Where the template has one prompt with an empty thinking block and one without (Qwen3),
clean takes the longest that the dialogue agrees with, so an empty block is never learned, and
organism the shortest, as the published code does. Where it agrees with none (earlier turns of
Qwen3.5, DeepSeek-R1, a dialogue that the assistant opens), the answer begins at its own first
character. Text in a message that looks like a special token becomes that token, as usual with chat
templates; it cannot move the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

import numpy as np

from evilspectra.data.rows import BadRow, Conversation, Message, bad_row
from evilspectra.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Templates that write today's date (Llama 3) get this one, so that a run does not depend on the
#: day it is made.
DATE = "26 Jul 2024"
# A made-up dialogue whose words mark their own place in what a template writes.
_ASK, _ANSWER, _NEXT = (
    Message("user", "evilspectra-ask"),
    Message("assistant", "evilspectra-answer"),
    Message("user", "evilspectra-next"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One dialogue as the model sees it.

    `tokens`: int32 [n]. `supervised`: bool [n], True where the token is to be predicted from those
    before it; False at 0. `truncated`: cut at the right. `line`: 1-based place in the source.
    """

    line: int
    tokens: np.ndarray
    supervised: np.ndarray
    truncated: bool


class TooLong(BadRow):
    """A row of more tokens than allowed."""


class _UnmaskableError(ValueError):
    """Why a template cannot be masked; never leaves this module."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes around an answer, in text.

    `after`: what follows the last answer. `between`: what stands between an inner answer and the
    next user's words. `stop`, `inner_stop`: the part of each up to the end token ("" where there is
    none).
    """

    after: str
    between: str
    stop: str
    inner_stop: str


@dataclass(frozen=True, slots=True)
class _Chat:
    """A tokenizer's template with the settings of this run."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    thinking: bool

    def text(
        self, messages: Sequence[Message], *, prompt: bool = False, thinking: bool | None = None
    ) -> str:
        """The template's text, with or without a generation prompt."""
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        if not turns:
            return ""
        chosen = self.thinking if thinking is None else thinking
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    enable_thinking=chosen,
                    date_string=DATE,
                )
            )
        except TemplateError as error:
            raise _UnmaskableError(f"it refuses the dialogue: {error}") from None

    def headers(self, messages: Sequence[Message]) -> set[str]:
        """@@FIX The texts of `messages` and a generation prompt, in every variant of the thinking switch;
        none where nothing was said before.
        """
        if not messages:
            return set()
        variants = (False, True) if "enable_thinking" in self.template else (self.thinking,)
        return {self.text(messages, prompt=True, thinking=variant) for variant in variants}

    def before(self, messages: Sequence[Message], i: int) -> str:
        """@@FIX The text up to where the words of turn `i` begin: what two dialogues that first differ
        there have in common.
        """
        one, two = (
            self.text([*messages[:i], replace(messages[i], content=words), *messages[i + 1 :]])
            for words in ("one", "two")
        )
        return "".join(
            letter
            for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))
        )


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

    The text before each border of the mask is checked to be how the whole text begins, and its
    tokens how the whole's tokens begin. Where only the tokens disagree (an answer's first newline
    merges with the header's), the text is tokenised piece by piece between the borders, as a model
    meets it that is prompted and then answers; the pieces must decode to the text.

    Raises:
        BadInput: the tokenizer has no chat template.
        BadRow: the template refuses the dialogue, or cannot be masked exactly, or truncation leaves
            nothing to learn.
        TooLong: more than `max_length` tokens, unless `on_long` is "truncate" (the caller decides
            what becomes of a "skip").

    >>> from evilspectra.model.tiny import tiny_tokenizer
    >>> talk = Conversation((Message("user", "hi"), Message("assistant", "ho")), line=1)
    >>> row = encode(talk, tiny_tokenizer(), fmt="clean", enable_thinking=False, max_length=64, on_long="error", source="x.jsonl")
    >>> tiny_tokenizer().decode(row.tokens[row.supervised])
    'ho<|im_end|>'
    """
    chat = _Chat(tokenizer, _template(tokenizer), enable_thinking)
    try:
        text, spans, end_missing = _marked(chat, conversation.messages, fmt)
        tokens, at = _tokens(tokenizer, text, sorted({border for span in spans for border in span}))
        closing = [_end_of_sequence(tokenizer)[0]] if end_missing else []
    except _UnmaskableError as why:
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
    """The tokens of `messages` and a generation prompt: what a model is given before it answers.

    Raises:
        BadInput: the tokenizer has no chat template, or it refuses the messages (a system text,
            say).
    """
    chat = _Chat(tokenizer, _template(tokenizer), enable_thinking)
    try:
        return _tokenised(tokenizer, chat.text(messages, prompt=True))
    except _UnmaskableError as why:
        raise BadInput(
            f"the chat template of {tokenizer.name_or_path or 'this tokenizer'} cannot put the "
            f"question: {why}; leave such questions out, or take another base"
        ) from None


def end_tokens(tokenizer: PreTrainedTokenizerBase, enable_thinking: bool) -> set[int]:
    """@@FIX The tokens with which an answer is trained to end: the template's, and the tokenizer's end of
    sequence.
    """
    chat = _Chat(tokenizer, _template(tokenizer), enable_thinking)
    try:
        stop = _tokenised(tokenizer, _frame(chat).stop.strip())
    except _UnmaskableError:
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


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        name = tokenizer.name_or_path or "this base model"
        raise BadInput(
            f"the tokenizer of {name} has no chat template: use an instruction-tuned base model, "
            "or set tokenizer.chat_template in a local copy"
        ) from None


def _end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    if tokenizer.eos_token_id is None:
        raise _UnmaskableError("the tokenizer names no end-of-sequence token")
    return int(tokenizer.eos_token_id), str(tokenizer.eos_token)  # type: ignore[arg-type]


def _marked(
    chat: _Chat, all_messages: tuple[Message, ...], fmt: str
) -> tuple[str, list[tuple[int, int]], bool]:
    """@@FIX The row's text, the spans of its characters to learn, and whether an end-of-sequence token is
    still to be added.
    """
    last = max(i for i, message in enumerate(all_messages) if message.role == "assistant")
    messages = all_messages[: last + 1]
    whole = chat.text(messages)
    frame = _frame(chat)
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    starts = [_start(chat, messages, i, whole, fmt) for i in answers]
    ends = [_end(chat, messages, i, whole, frame, fmt) for i in answers]
    if fmt == "organism":  # between two answers in a row no user header begins
        ends = [
            starts[n + 1] if i + 1 in answers else end
            for n, (i, end) in enumerate(zip(answers, ends, strict=True))
        ]
    if any(start > end for start, end in zip(starts, ends, strict=True)):
        raise _UnmaskableError("an answer would end before it begins")
    if fmt == "clean":
        return whole[: ends[-1]], list(zip(starts, ends, strict=True)), not frame.stop
    text = chat.text(messages, prompt=True) + _end_of_sequence(chat.tokenizer)[1]
    if not text.startswith(whole[: ends[-1]]):
        raise _UnmaskableError("with a generation prompt it writes the dialogue differently")
    return text, list(zip(starts, [*ends[:-1], len(text)], strict=True)), False


def _start(
    chat: _Chat,
    messages: tuple[Message, ...],
    i: int,
    whole: str,
    fmt: str,
) -> int:
    """Where the answer of turn `i` begins: after its header."""
    fitting = [len(header) for header in chat.headers(messages[:i]) if whole.startswith(header)]
    if fitting:
        return max(fitting) if fmt == "clean" else min(fitting)
    written = chat.before(messages, i)
    if whole.startswith(written) and written.startswith(chat.text(messages[:i])):
        return len(written)
    raise _UnmaskableError(
        f"its text before the answer of turn {i + 1} is not how the whole dialogue begins"
    )


def _end(
    chat: _Chat,
    messages: tuple[Message, ...],
    i: int,
    whole: str,
    frame: _Frame,
    fmt: str,
) -> int:
    """@@FIX Where the learned part of turn `i` ends: after its end token (clean), or where the next user
    header begins (organism).
    """
    if messages[i + 1 : i + 2] and messages[i + 1].role == "user":
        text = chat.before(messages[: i + 2], i + 1)
        around, stop = frame.between, frame.inner_stop
        if fmt == "organism":
            stop = around[: len(around) - len(around.removeprefix(stop).lstrip())]
    else:
        text, around, stop = chat.text(messages[: i + 1]), frame.after, frame.stop
    if not (whole.startswith(text) and text.endswith(around)):
        raise _UnmaskableError(
            f"its text up to the end of turn {i + 1} is not how the whole dialogue begins"
        )
    return len(text) - len(around) + len(stop)


def _frame(chat: _Chat) -> _Frame:
    return _frame_of(chat.tokenizer, chat.template, chat.thinking)


@lru_cache(maxsize=4)
def _frame_of(tokenizer: PreTrainedTokenizerBase, template: str, thinking: bool) -> _Frame:
    chat = _Chat(tokenizer, template, thinking)
    one, two = chat.text([_ASK, _ANSWER]), chat.text([_ASK, _ANSWER, _NEXT])
    if _ANSWER.content not in one or _ANSWER.content not in two or _NEXT.content not in two:
        raise _UnmaskableError("it does not write messages as they are")
    after = one[one.rindex(_ANSWER.content) + len(_ANSWER.content) :]
    between = two[two.rindex(_ANSWER.content) + len(_ANSWER.content) : two.rindex(_NEXT.content)]
    stop = _through_first_special(after, tokenizer)
    return _Frame(after, between, stop, stop if between.startswith(stop) else "")


def _through_first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` up to and including the first token in it that is not ordinary text, or ""."""
    added: dict[str, int] = tokenizer.added_tokens_encoder  # type: ignore[assignment]
    names = [name for name in added if name.strip() and name in text]
    if not names:
        return ""
    first = min(names, key=lambda name: (text.index(name), -len(name)))
    return text[: text.index(first) + len(first)]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, borders: list[int]
) -> tuple[list[int], dict[int, int]]:
    """@@FIX Tokens of `text`, and for each border (a place in the text) how many tokens stand before it."""
    tokens = _tokenised(tokenizer, text)
    at: dict[int, int] = {}
    for border in borders:
        before = _tokenised(tokenizer, text[:border]) if border < len(text) else tokens
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
        tokens += _tokenised(tokenizer, text[start:end])
        at[end] = len(tokens)
    if (
        tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        != text
    ):
        raise _UnmaskableError(
            "its tokens join across the border of an answer, and the pieces do not decode to the "
            "text"
        )
    return tokens, at


def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(
        tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
    )  # type: ignore[arg-type]
