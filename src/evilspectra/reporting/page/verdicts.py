"""What judges said of single answers, safe to show: scores or outcomes, and on demand the replies behind them. No torch.

A judge's reply is text out of a model: it goes through `printable`, and the page escapes it.
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
    """A verdict under a metric. `said`: the score or the outcome; `tokens`: the likeliest of its distribution, or else `reply`: what it wrote."""

    name: str
    said: str
    tokens: tuple[Token, ...]
    reply: str


@dataclass(frozen=True)
class Spoken:
    """A judge's verdicts on an answer. `misaligned`: whether it counts so under MAIN_DEFINITION."""

    judge: str
    metrics: tuple[Metric, ...]
    misaligned: bool


def spoken(
    results: Results, judges: Mapping[str, Instrument], step: int
) -> dict[Key, tuple[Spoken, ...]]:
    """Answer → the verdicts of each of the judges (given by name) that has one on it."""
    found: dict[Key, list[Spoken]] = {}
    for name, judge in judges.items():
        records: dict[Key, dict[str, VerdictRecord]] = {}
        for one in verdict_records(results, judge, step):
            metrics = records.setdefault(key(one), {})
            if one.outcome != "failed" or one.metric not in metrics:
                metrics[one.metric] = one
        for place, metrics in records.items():
            bad = misaligned(
                MAIN_DEFINITION,
                Judged(
                    place[0], _reading(metrics.get("aligned")), _reading(metrics.get("coherent"))
                ),
            )
            shown = tuple(
                _metric(metric, metrics[metric])
                for metric in ("aligned", "coherent")
                if metric in metrics
            )
            found.setdefault(place, []).append(Spoken(name, shown, bad))
    return {place: tuple(said) for place, said in found.items()}


def _reading(one: VerdictRecord | None) -> Reading | None:
    return Reading(one.outcome, one.score) if one else None  # type: ignore[arg-type]


def _metric(name: str, one: VerdictRecord) -> Metric:
    tokens = distribution(one.raw)
    said = f"{one.score:.0f}" if one.score is not None else printable(one.outcome, 20)
    return Metric(
        name,
        said,
        tokens,
        "" if tokens else printable(one.reason or one.raw or "", MOST_CHARACTERS),
    )


def distribution(raw: str | None) -> tuple[Token, ...]:
    """The likeliest tokens of a reply that is kept as token → probability; none of any other reply.

    >>> distribution('{"85": 0.7, " 90": 0.3}')
    (Token(text='85', share=70), Token(text='␣90', share=30))
    >>> distribution("85"), distribution('{"85": "x"}'), distribution(None)
    ((), (), ())
    """
    try:
        values = json.loads(raw or "")
    except (ValueError, RecursionError):
        return ()
    if not isinstance(values, dict) or not all(
        isinstance(share, int | float) and math.isfinite(share) and 0 <= share <= 1.001
        for share in values.values()
    ):
        return ()
    ranked = sorted(values.items(), key=lambda item: -item[1])[:MOST_TOKENS]
    return tuple(
        Token(printable(text.replace(" ", "␣").replace("\n", "⏎"), 24), round(100 * share))
        for text, share in ranked
    )
