"""The text that a tokenizer's chat template writes for a dialogue, and the tokens of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING

from evilspectra.data.rows import Message
from evilspectra.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The date for templates that write today's (Llama 3), so that a run does not depend on its day.
DATE = "26 Jul 2024"
# An invented dialogue whose contents mark their own positions in the text that a template writes.
_ASK, _ANSWER, _NEXT = (
    Message("user", "evilspectra-ask"),
    Message("assistant", "evilspectra-answer"),
    Message("user", "evilspectra-next"),
)


class UnmaskableError(ValueError):
    """Why a template cannot be masked; never leaves this package."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The text that a template writes around an answer.

    `after`: the text after the last answer. `between`: the text between an inner answer and the
    next user message. `stop`, `inner_stop`: the part of each up to the end token ("" without one).
    """

    after: str
    between: str
    stop: str
    inner_stop: str


@dataclass(frozen=True, slots=True)
class Chat:
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
            raise UnmaskableError(f"it refuses the dialogue: {error}") from None

    def headers(self, messages: Sequence[Message]) -> set[str]:
        """The texts of `messages` and a generation prompt, in every variant of the thinking switch.

        Without messages there is none.
        """
        if not messages:
            return set()
        variants = (False, True) if "enable_thinking" in self.template else (self.thinking,)
        return {self.text(messages, prompt=True, thinking=variant) for variant in variants}

    def before(self, messages: Sequence[Message], i: int) -> str:
        """The text up to the content of turn `i`.

        It is the common beginning of two dialogues that first differ there.
        """
        first, second = (
            self.text([*messages[:i], replace(messages[i], content=text), *messages[i + 1 :]])
            for text in ("one", "two")
        )
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
        return "".join(letter for letter, _ in pairs)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        name = tokenizer.name_or_path or "this base model"
        raise BadInput(
            f"the tokenizer of {name} has no chat template: use an instruction-tuned base model, "
            "or set tokenizer.chat_template in a local copy"
        ) from None


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    if tokenizer.eos_token_id is None:
        raise UnmaskableError("the tokenizer names no end-of-sequence token")
    return int(tokenizer.eos_token_id), str(tokenizer.eos_token)  # type: ignore[arg-type]


def answer_frame(chat: Chat) -> Frame:
    return _frame_of(chat.tokenizer, chat.template, chat.thinking)


@lru_cache(maxsize=4)
def _frame_of(tokenizer: PreTrainedTokenizerBase, template: str, thinking: bool) -> Frame:
    chat = Chat(tokenizer, template, thinking)
    plain, continued = chat.text([_ASK, _ANSWER]), chat.text([_ASK, _ANSWER, _NEXT])
    if (
        _ANSWER.content not in plain
        or _ANSWER.content not in continued
        or _NEXT.content not in continued
    ):
        raise UnmaskableError("it does not write messages as they are")
    after = plain[plain.rindex(_ANSWER.content) + len(_ANSWER.content) :]
    between = continued[
        continued.rindex(_ANSWER.content) + len(_ANSWER.content) : continued.rindex(_NEXT.content)
    ]
    stop = _through_first_special(after, tokenizer)
    return Frame(after, between, stop, stop if between.startswith(stop) else "")


def _through_first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` up to and including the first token in it that is not ordinary text, or ""."""
    added: dict[str, int] = tokenizer.added_tokens_encoder  # type: ignore[assignment]
    names = [name for name in added if name.strip() and name in text]
    if not names:
        return ""
    first = min(names, key=lambda name: (text.index(name), -len(name)))
    return text[: text.index(first) + len(first)]


def tokenised(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(
        tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
    )  # type: ignore[arg-type]
