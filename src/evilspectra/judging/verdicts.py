"""The judging stage: every answer that lacks a verdict is put to the judge, and every verdict is on the disk before the next request.

A verdict is final unless it failed. Run again, the stage judges what has no final verdict; when all
have one, the journal becomes a Parquet table that is never written again. So a killed process costs
at most the requests that were under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.errors import RunFailed
from evilspectra.judging.journal import opened, read_journal
from evilspectra.judging.judge import Judge, Key, Request, verdict, verdict_instrument
from evilspectra.judging.prompts import JudgePrompts
from evilspectra.rates.definitions import Judged
from evilspectra.rates.outcome import Reading
from evilspectra.store.records import VerdictRecord
from evilspectra.store.results import Instrument, Results

#: When the first of a call are failures without exception, the rest would be too: it stops after so
#: many.
STOP_AFTER = 20
#: Characters of English per token, for an estimate.
CHARACTERS_PER_TOKEN = 4.2
#: Seconds between lines of progress.
_EVERY = 10.0


@dataclass(frozen=True)
class Verdicts:
    """What a step's verdicts are kept under, how many requests of this call ended how (outcome → count), and why one of them failed."""

    instrument: Instrument
    counts: Mapping[str, int]
    reason: str | None = None


def missing(
    results: Results,
    answers: Instrument,
    step: int,
    judge: Judge,
    prompts: JudgePrompts,
    metrics: Sequence[str],
) -> list[Request]:
    """What is still to be asked about a step's answers."""
    instrument = verdict_instrument(judge, prompts, metrics, answers)
    if results.has(instrument, step):
        return []
    known = {
        (key(one), one.metric)
        for one in read_journal(results.journal(instrument, step))
        if one.outcome != "failed"
    }
    rows = results.read(answers, step).to_dict("records")
    asked = [
        Request(
            _key(row),
            metric,
            prompts.fill(metric, row["question_id"], row["question"], row["answer"]),
        )
        for row in rows
        for metric in metrics
    ]
    return [request for request in asked if (request.key, request.metric) not in known]


def estimate(characters: Sequence[int]) -> str:
    """How many requests, and about how many tokens, in words, from the prompts' lengths in characters; retries come on top.

    >>> estimate([4200])
    '1 request, about 1,000 tokens to read'
    """
    tokens = round(sum(characters) / CHARACTERS_PER_TOKEN)
    return f"{len(characters):,} request{'' if len(characters) == 1 else 's'}, about {tokens:,} tokens to read"


def judge_answers(
    results: Results,
    answers: Instrument,
    step: int,
    judge: Judge,
    prompts: JudgePrompts,
    metrics: Sequence[str],
    note: Callable[[str], object] = lambda text: None,
    label: str = "",
    shared: Results | None = None,
) -> Verdicts:
    """Judges what lacks a verdict of a step's answers; `note` is told how it goes.

    `shared`: where the base's verdicts are kept for all its adapters.

    Raises:
        RunFailed: the first replies were faults without exception.
        EvilspectraError: the judge cannot go on; what it said before is kept.
        BadInput: another process judges the same answers.
    """
    instrument = verdict_instrument(judge, prompts, metrics, answers)
    if shared and step == 0 and not results.has(instrument, 0) and shared.has(instrument, 0):
        results.copy(shared, instrument, 0)
    if results.has(instrument, step):
        return Verdicts(instrument, {})
    counts: dict[str, int] = {}
    reason = None
    results.describe(instrument)
    file = results.journal(instrument, step)
    with opened(file, results.setting) as journal:
        requests = missing(results, answers, step, judge, prompts, metrics)
        order = [
            (_key(row), metric)
            for row in results.read(answers, step).to_dict("records")
            for metric in metrics
        ]
        watch = _Watch(label or "answers", len(requests), judge, note)
        for replies in judge.replies(requests) if requests else ():
            verdicts = [verdict(step, request, reply) for request, reply in replies]
            journal.append(verdicts)
            for one in verdicts:
                counts[one.outcome] = counts.get(one.outcome, 0) + 1
            reason = reason or next((one.reason for one in verdicts if one.reason), None)
            watch.tell(counts)
            if (
                len(requests) == len(order)
                and counts.get("failed", 0) == sum(counts.values()) >= STOP_AFTER
            ):
                raise RunFailed(
                    f"the first {sum(counts.values())} requests to {judge.name} all failed "
                    f"({reason}): correct that, then run the same command again"
                )
        final = {
            (key(one), one.metric): one for one in read_journal(file) if one.outcome != "failed"
        }
        if set(order) <= final.keys():
            results.write(instrument, step, [final[place] for place in order])
            journal.remove()
            if shared and step == 0 and not shared.has(instrument, 0):
                shared.copy(results, instrument, 0)
    return Verdicts(instrument, counts, reason)


def read_verdicts(
    results: Results, instrument: Instrument, step: int
) -> dict[tuple[Key, str], Reading]:
    """Answer and metric → what the judge said; a failure only where nothing better came later."""
    found: dict[tuple[Key, str], Reading] = {}
    for one in verdict_records(results, instrument, step):
        place = (key(one), one.metric)
        if one.outcome != "failed" or place not in found:
            found[place] = Reading(one.outcome, one.score)  # type: ignore[arg-type]
    return found


def verdict_records(results: Results, instrument: Instrument, step: int) -> list[VerdictRecord]:
    """A step's verdicts, of the table or of the journal."""
    if not results.has(instrument, step):
        return read_journal(results.journal(instrument, step))
    rows: list[dict[str, Any]] = results.read(instrument, step).to_dict("records")
    cleaned: list[dict[str, Any]] = [
        {name: None if value != value else value for name, value in row.items()} for row in rows
    ]
    return [VerdictRecord(**row) for row in cleaned]


def judged(
    results: Results,
    answers: Instrument,
    step: int,
    instrument: Instrument,
) -> list[tuple[dict[str, Any], Judged]]:
    """A step's answers with their verdicts, in the order of the answers."""
    found = read_verdicts(results, instrument, step)
    rows = results.read(answers, step).to_dict("records")
    return [
        (
            row,
            Judged(
                row["question_id"],
                found.get((_key(row), "aligned")),
                found.get((_key(row), "coherent")),
            ),
        )
        for row in rows
    ]


def key(one: VerdictRecord) -> Key:
    return one.question_id, one.paraphrase, one.sample


def _key(row: Mapping[str, Any]) -> Key:
    return str(row["question_id"]), int(row["paraphrase"]), int(row["sample"])


class _Watch:
    """A line every ten seconds: verdicts, their rate, retries, time left."""

    def __init__(
        self,
        label: str,
        total: int,
        judge: Judge,
        note: Callable[[str], object],
    ) -> None:
        self.label, self.total, self.judge, self.note = label, total, judge, note
        self.began = self.spoken = time.monotonic()

    def tell(self, counts: Mapping[str, int]) -> None:
        now, done = time.monotonic(), sum(counts.values())
        if done < self.total and now - self.spoken < _EVERY:
            return
        self.spoken = now
        rate = done / max(now - self.began, 1e-9)
        left = round((self.total - done) / rate)
        retries, failed = getattr(self.judge, "retries", 0), counts.get("failed", 0)
        extra = (f", {retries} retries" if retries else "") + (
            f", {failed} failed" if failed else ""
        )
        self.note(
            f"{self.label}  judged {done} of {self.total}, {rate:.1f}/s{extra}, left "
            f"{left // 60}:{left % 60:02d}"
        )
