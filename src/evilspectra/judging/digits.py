"""Numbers from 0 to 100 as a model writes them: one token each, or digit by digit.

Turns logits into the distribution that is read; needs torch.

With a token per number, the first token's distribution is the reply. With a token per digit, p(k)
is the probability of writing k's digits and then no further one, for which the tree of digits has
eleven inner nodes: after each first digit, and after "10". A number of two digits is taken to end
there, 10 excepted, so

    p(d)   = p₁(d)·(1 − Σₑ p(e | d)),
    p(de)  = p₁(d)·p(e | d) for d ≥ 1,   p(10) also times 1 − p(0 | 10),
    p(100) = p₁(1)·p(0 | 1)·p(0 | 10).

A text with a leading zero is not a number. Any other first token (CODE, REFUSAL, prose) keeps its
own probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from evilspectra.errors import BadInput
from evilspectra.judging.reading import HIGHEST, LOWEST, begins, whole_number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Smaller probabilities are neither stored nor read: all together they move a score by less than
#: 1e-5.
_NEGLIGIBLE = 1e-9
#: Tokens that are no numbers and are stored for people to look at.
_OTHERS = 10


@dataclass(frozen=True)
class Numerals:
    """How a tokenizer writes numbers.

    `kind`: whole (a token each) or digits; `ids`: the tokens of 0 to 100, or of the ten digits;
    `texts`: every token's text.
    """

    kind: Literal["whole", "digits"]
    ids: tuple[int, ...]
    texts: tuple[str, ...]

    def paths(self) -> list[tuple[int, ...]]:
        """The continuations of the prompt behind which logits are needed; the empty one first."""
        if self.kind == "whole":
            return [()]
        return [(), *((digit,) for digit in self.ids), (self.ids[1], self.ids[0])]


def numerals(tokenizer: PreTrainedTokenizerBase) -> Numerals:
    """How a tokenizer writes the numbers from 0 to 100.

    Raises:
        BadInput: neither with one token each, nor with one token per digit.

    >>> from evilspectra.model.tiny import tiny_tokenizer
    >>> numerals(tiny_tokenizer()).kind
    'digits'
    """
    size = len(tokenizer)
    texts = tuple(
        str(tokenizer.decode([token], clean_up_tokenization_spaces=False)) for token in range(size)
    )
    special = set(tokenizer.all_special_ids)
    tokens: dict[str, int] = {}
    for token in range(size):
        text = texts[token]
        if token not in special and (text not in tokens or _plain(tokenizer, text) == token):
            tokens[text] = token
    numbers = [tokens.get(str(number)) for number in range(LOWEST, HIGHEST + 1)]
    if all(
        _plain(tokenizer, str(number)) == token is not None for number, token in enumerate(numbers)
    ):
        return Numerals("whole", tuple(token for token in numbers if token is not None), texts)
    digits = [tokens.get(str(digit)) for digit in range(10)]
    if None in digits:
        name = tokenizer.name_or_path or "the judge"
        raise BadInput(
            f"the tokenizer of {name} writes numbers neither with one token each nor digit by "
            "digit, so its log-probabilities cannot be read as scores: choose another judge model"
        )
    return Numerals("digits", tuple(token for token in digits if token is not None), texts)


def distribution(logits: Tensor, how: Numerals) -> tuple[tuple[str, float], ...]:
    """(text, probability) of the numbers and of the most likely other tokens, most likely first.

    `logits`: [len(how.paths()), vocabulary].

    >>> how = Numerals("digits", tuple(range(10)), tuple("0123456789") + ("CODE",))
    >>> logits = torch.zeros(12, 11).index_fill(1, torch.tensor([10]), 9.0)
    >>> dict(distribution(logits, how))["CODE"] > 0.99
    True
    """
    size = len(how.texts)  # padded vocabularies have more logits than tokens
    shares = torch.softmax(logits[:, :size].to("cpu").double(), dim=-1).numpy()
    first = shares[0]
    likely: dict[str, float] = {}
    if how.kind == "whole":
        for token in np.flatnonzero(first > _NEGLIGIBLE).tolist():
            text = how.texts[token]
            if whole_number(text) is not None:
                likely[text] = likely.get(text, 0.0) + float(first[token])
    else:
        likely = dict(_tree(shares[:, list(how.ids)]))
    others = [
        token
        for token in np.argsort(-first, kind="stable")[: 20 * _OTHERS].tolist()
        if whole_number(how.texts[token]) is None
    ]
    for rank, token in enumerate(others):
        text = how.texts[token]
        if rank < _OTHERS or begins("CODE", text) or begins("REFUSAL", text):
            likely[text] = likely.get(text, 0.0) + float(first[token])
    stored = [(text, share) for text, share in likely.items() if share > _NEGLIGIBLE]
    return tuple(sorted(stored, key=lambda pair: (-pair[1], pair[0])))


def _tree(shares: np.ndarray) -> Sequence[tuple[str, float]]:
    """p(k) for every k from the digits' shares [12, 10].

    The rows are at the prompt's end, after each first digit, and after "10".
    """
    first, second, third = shares[0], shares[1:11], shares[11]
    numbers = [
        (str(digit), float(first[digit] * max(0.0, 1 - second[digit].sum()))) for digit in range(10)
    ]
    for tens in range(1, 10):
        for ones in range(10):
            share = float(first[tens] * second[tens, ones])
            if (tens, ones) == (1, 0):
                numbers.append(("100", share * float(third[0])))
                share *= max(0.0, 1 - float(third[0]))
            numbers.append((f"{tens}{ones}", share))
    return numbers


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The token that a text is written with, if it is one alone."""
    encoded: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    tokens: list[int] = encoded["input_ids"]
    return tokens[0] if len(tokens) == 1 else None
