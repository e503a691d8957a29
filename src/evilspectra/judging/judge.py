"""The interface of a judge, which replies to prompts; its identity, and the record of a reply.

A judge's identity is the hash of its model, its kind of endpoint, the rule for reading its replies,
and the prompts: verdicts under two identities never mix. Pure; no torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from evilspectra.judging.prompts import JudgePrompts
from evilspectra.judging.reading import FAILED, VERSION, read_distribution, read_text
from evilspectra.rates.outcome import Reading
from evilspectra.store.records import VerdictRecord
from evilspectra.store.results import Instrument

#: An answer's place among those of a step: question id, paraphrase, sample.
Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to a judge, about one answer and under one metric."""

    key: Key
    metric: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's reply.

    One of three: a distribution of (token, probability), a text, or a fault in words.
    """

    distribution: tuple[tuple[str, float], ...] | None = None
    text: str | None = None
    fault: str | None = None

    def reading(self) -> Reading:
        """The outcome of the reply, and its score.

        >>> Reply(text="40").reading(), Reply(fault="timed out").reading()
        (Reading(outcome='scored', score=40.0), Reading(outcome='failed', score=None))
        """
        if self.fault is not None:
            return FAILED
        if self.distribution is not None:
            return read_distribution(dict(self.distribution))
        return read_text(self.text or "")


class Judge(Protocol):
    """Replies to prompts.

    `name`: the name for people; `facts`: kind, model and reading, of JSON's types, which determine
    its verdicts.
    """

    name: str
    facts: Mapping[str, Any]

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Every request with its reply, some at a time, in any order.

        Further requests are sent when the caller asks for the next replies.

        Raises:
            EvilspectraError: going on is of no use: the key is refused, the model is unknown, the
                allowed requests are spent.
        """
        ...


def identity(judge: Judge, prompts: JudgePrompts, metrics: Sequence[str]) -> dict[str, Any]:
    """The facts that determine verdicts, of JSON's types."""
    return {"version": VERSION, **judge.facts, "prompts": prompts.facts(sorted(metrics))}


def verdict_instrument(
    judge: Judge,
    prompts: JudgePrompts,
    metrics: Sequence[str],
    answers: Instrument,
) -> Instrument:
    """The instrument under which verdicts on these answers are stored."""
    return Instrument(
        "verdicts", judge.name, {"answers": answers.id, **identity(judge, prompts, metrics)}
    )


def verdict(step: int, request: Request, reply: Reply) -> VerdictRecord:
    """The record of a reply, with the reply in full."""
    reading = reply.reading()
    raw = reply.text
    if reply.distribution is not None:
        raw = json.dumps(dict(reply.distribution), ensure_ascii=False)
    return VerdictRecord(
        step,
        *request.key,
        request.metric,
        reading.outcome,
        reading.score,
        raw,
        reply.fault,
    )
