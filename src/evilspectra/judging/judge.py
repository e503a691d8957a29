"""What a judge is: something that replies to prompts.

Who it is, and what is remembered of a reply. Pure; no torch here.

A judge's identity is the hash of its model, the kind of endpoint it is reached at, the rule that
its replies are read by, and the prompts: verdicts under two identities never mix.
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
    """One thing to ask: about which answer, under which metric, in which words."""

    key: Key
    metric: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, one of three: a distribution of (token, probability), a text, or a fault in words."""

    distribution: tuple[tuple[str, float], ...] | None = None
    text: str | None = None
    fault: str | None = None

    def reading(self) -> Reading:
        """What it says.

        >>> Reply(text="40").reading(), Reply(fault="timed out").reading()
        (Reading(outcome='scored', score=40.0), Reading(outcome='failed', score=None))
        """
        if self.fault is not None:
            return FAILED
        return (
            read_distribution(dict(self.distribution))
            if self.distribution is not None
            else read_text(self.text or "")
        )


class Judge(Protocol):
    """Replies to prompts.

    `name`: what a person calls it. `facts`: kind, model and reading, of JSON's types: what
    determines its verdicts.
    """

    name: str
    facts: Mapping[str, Any]

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """Every request with its reply, some at a time, in any order; the next ones are asked for when the caller comes back.

        Raises:
            EvilspectraError: going on is of no use: the key is refused, the model is unknown, the
                allowed requests are spent.
        """
        ...


def identity(judge: Judge, prompts: JudgePrompts, metrics: Sequence[str]) -> dict[str, Any]:
    """What determines verdicts, of JSON's types."""
    return {"version": VERSION, **judge.facts, "prompts": prompts.facts(sorted(metrics))}


def verdict_instrument(
    judge: Judge,
    prompts: JudgePrompts,
    metrics: Sequence[str],
    answers: Instrument,
) -> Instrument:
    """The way of measuring that verdicts on these answers are kept under."""
    return Instrument(
        "verdicts", judge.name, {"answers": answers.id, **identity(judge, prompts, metrics)}
    )


def verdict(step: int, request: Request, reply: Reply) -> VerdictRecord:
    """The record of a reply, with what was said in full."""
    reading = reply.reading()
    raw = (
        reply.text
        if reply.distribution is None
        else json.dumps(dict(reply.distribution), ensure_ascii=False)
    )
    return VerdictRecord(
        step, *request.key, request.metric, reading.outcome, reading.score, raw, reply.fault
    )
