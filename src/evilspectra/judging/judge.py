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
from evilspectra.judging.reading import FAILED, VERSION, read_distribution, read_score, read_text
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
    question: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's reply.

    One of four: a distribution of (token, probability), a text, a score, or a fault in words.
    """

    distribution: tuple[tuple[str, float], ...] | None = None
    text: str | None = None
    fault: str | None = None
    score: float | None = None

    def reading(self) -> Reading:
        """The outcome of the reply, and its score.

        >>> Reply(text="40").reading(), Reply(fault="timed out").reading()
        (Reading(outcome='scored', score=40.0), Reading(outcome='failed', score=None))
        """
        if self.fault is not None:
            return FAILED
        if self.distribution is not None:
            return read_distribution(dict(self.distribution))
        if self.score is not None:
            return read_score(self.score)
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


class OwnJudge(Protocol):
    """The methods of a judge of the user's own, `--judge class:package.module:Class`.

    It is made with the settings of `--judge-set settings.NAME=VALUE` when it is first asked. An
    attribute `batch` says how many requests it gets at a time, 16 without one.
    """

    def scores(self, requests: Sequence[Request]) -> Sequence[float | str | None]:
        """A score per request, in their order.

        A score is a number from 0 to 100, or "CODE", "REFUSAL", or None for no verdict. Anything
        else, and an exception, is a fault: the request counts as failed, and is sent again by the
        next call. An error of `evilspectra.errors` ends the judging.
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
    if reply.score is not None:
        raw = repr(reply.score)
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
