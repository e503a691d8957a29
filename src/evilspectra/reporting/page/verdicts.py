"""Judges' verdicts on single answers, safe to show: scores or outcomes, and the replies behind.

No torch. A judge's reply is untrusted text from a model: it goes through `printable`, and the page
escapes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from evilspectra.evaluation.run_rates import MAIN_DEFINITION
from evilspectra.judging.judge import Key
from evilspectra.judging.verdicts import key, verdict_records
from evilspectra.rates.definitions import Judged, misaligned
from evilspectra.rates.outcome import Reading
from evilspectra.store.records import VerdictRecord
from evilspectra.store.results import Instrument, Results
from evilspectra.text import printable

#: Tokens of a distribution that are shown, and characters of a written reply or a fault.
MOST_TOKENS, MOST_CHARACTERS = 6, 200


@dataclass(frozen=True)
class Token:
    """A token of the judge's distribution; `share` in whole per cent."""

    text: str
    share: int


@dataclass(frozen=True)
class Metric:
    """A verdict under a metric.

    `verdict`: the score or the outcome; `tokens`: the likeliest of the judge's distribution, or
    else `reply`: what it wrote.
    """

    name: str
    verdict: str
    tokens: tuple[Token, ...]
    reply: str


@dataclass(frozen=True)
class JudgeVerdicts:
    """A judge's verdicts on an answer. `misaligned`: whether it counts so under MAIN_DEFINITION."""

    judge: str
    metrics: tuple[Metric, ...]
    misaligned: bool


def verdicts_by_answer(
    results: Results,
    judges: Mapping[str, Instrument],
    step: int,
) -> dict[Key, tuple[JudgeVerdicts, ...]]:
    """Answer → the verdicts of each of the judges (given by name) that has one on it."""
    by_answer: dict[Key, list[JudgeVerdicts]] = {}
    for name, judge in judges.items():
        records: dict[Key, dict[str, VerdictRecord]] = {}
        for record in verdict_records(results, judge, step):
            by_metric = records.setdefault(key(record), {})
            if record.outcome != "failed" or record.metric not in by_metric:
                by_metric[record.metric] = record
        for answer, by_metric in records.items():
            judged = Judged(
                answer[0],
                _reading(by_metric.get("aligned")),
                _reading(by_metric.get("coherent")),
            )
            metrics = tuple(
                _metric(metric, by_metric[metric])
                for metric in ("aligned", "coherent")
                if metric in by_metric
            )
            by_answer.setdefault(answer, []).append(
                JudgeVerdicts(name, metrics, misaligned(MAIN_DEFINITION, judged))
            )
    return {answer: tuple(verdicts) for answer, verdicts in by_answer.items()}


def _reading(record: VerdictRecord | None) -> Reading | None:
    return Reading(record.outcome, record.score) if record else None  # type: ignore[arg-type]


def _metric(name: str, record: VerdictRecord) -> Metric:
    tokens = distribution(record.raw)
    verdict = f"{record.score:.0f}" if record.score is not None else printable(record.outcome, 20)
    return Metric(
        name,
        verdict,
        tokens,
        "" if tokens else printable(record.reason or record.raw or "", MOST_CHARACTERS),
    )


def distribution(raw: str | None) -> tuple[Token, ...]:
    """The most likely tokens of a reply stored as token → probability; none for any other reply.

    >>> distribution('{"85": 0.7, " 90": 0.3}')
    (Token(text='85', share=70), Token(text='␣90', share=30))
    >>> distribution("85"), distribution('{"85": "x"}'), distribution(None)
    ((), (), ())
    """
    try:
        values = json.loads(raw or "")
    except (ValueError, RecursionError):
        return ()
    if not isinstance(values, dict) or not all(map(_is_probability, values.values())):
        return ()
    ranked = sorted(values.items(), key=lambda item: -item[1])[:MOST_TOKENS]
    return tuple(
        Token(printable(text.replace(" ", "␣").replace("\n", "⏎"), 24), round(100 * share))
        for text, share in ranked
    )


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1.001
