"""The judging stage: every answer that lacks a verdict goes to the judge.

Every verdict is written to disk before the next request. A verdict is final unless it failed. When
run again, the stage judges the answers without a final verdict; when all have one, the journal
becomes a Parquet table that is never rewritten. So a killed process loses at most the requests in
flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.errors import RunFailed
from evilspectra.judging.journal import opened, read_journal
from evilspectra.judging.judge import Judge, Key, Request, verdict, verdict_instrument
from evilspectra.judging.prompts import JudgePrompts
from evilspectra.numbers import clock
from evilspectra.rates.definitions import Judged
from evilspectra.rates.outcome import Reading
from evilspectra.store.records import VerdictRecord
from evilspectra.store.results import Instrument, Results

#: Judging stops when the first replies of a call, this many, are failures without exception: the
#: rest would fail too.
STOP_AFTER = 20
#: Characters of English per token, for an estimate.
CHARACTERS_PER_TOKEN = 4.2
#: Seconds between lines of progress.
_EVERY = 10.0


@dataclass(frozen=True)
class Verdicts:
    """The instrument of a step's verdicts, and the outcomes of this call.

    `counts`: outcome → requests of this call; `reason`: why one of them failed.
    """

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
    """The requests about a step's answers that have no final verdict."""
    instrument = verdict_instrument(judge, prompts, metrics, answers)
    if results.has(instrument, step):
        return []
    final = _final(read_journal(results.journal(instrument, step)))
    rows = results.read(answers, step).to_dict("records")
    pairs = [(row, metric) for row in rows for metric in metrics]
    return [
        Request(
            _key(row),
            metric,
            prompts.fill(metric, row["question_id"], row["question"], row["answer"]),
            row["question"],
            row["answer"],
        )
        for row, metric in pairs
        if (_key(row), metric) not in final
    ]


def _final(verdicts: Iterable[VerdictRecord]) -> dict[tuple[Key, str], VerdictRecord]:
    """Answer and metric → the last verdict that did not fail."""
    return {
        position: record
        for position, record in settled(verdicts).items()
        if record.outcome != "failed"
    }


def estimate(characters: Sequence[int]) -> str:
    """The number of requests, and about how many tokens they have, in words.

    `characters`: the lengths of the prompts. Retries are not included.

    >>> estimate([4200])
    '1 request, about 1,000 tokens to read'
    """
    tokens = round(sum(characters) / CHARACTERS_PER_TOKEN)
    plural = "" if len(characters) == 1 else "s"
    return f"{len(characters):,} request{plural}, about {tokens:,} tokens to read"


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
    """Judges those of a step's answers that have no verdict.

    `note` gets lines of progress. `shared`: where the base's verdicts are stored for all its
    adapters.

    Raises:
        RunFailed: the first replies were faults without exception.
        EvilspectraError: the judge cannot go on; every verdict so far is kept.
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
        progress = _Progress(label or "answers", len(requests), judge, note)
        for replies in judge.replies(requests) if requests else ():
            verdicts = [verdict(step, request, reply) for request, reply in replies]
            journal.append(verdicts)
            for record in verdicts:
                counts[record.outcome] = counts.get(record.outcome, 0) + 1
            reason = reason or next((record.reason for record in verdicts if record.reason), None)
            progress.report(counts)
            done = sum(counts.values())
            if len(requests) == len(order) and counts.get("failed", 0) == done >= STOP_AFTER:
                raise RunFailed(
                    f"the first {done} requests to {judge.name} all failed ({reason}): correct "
                    "that, then run the same command again"
                )
        final = _final(read_journal(file))
        if set(order) <= final.keys():
            results.write(instrument, step, [final[position] for position in order])
            journal.remove()
            if shared and step == 0 and not shared.has(instrument, 0):
                shared.copy(results, instrument, 0)
    return Verdicts(instrument, counts, reason)


def read_verdicts(
    results: Results,
    instrument: Instrument,
    step: int,
) -> dict[tuple[Key, str], Reading]:
    """Answer and metric → the judge's reading; a failure only where nothing better came later."""
    return {
        position: Reading(record.outcome, record.score)  # type: ignore[arg-type]
        for position, record in settled(verdict_records(results, instrument, step)).items()
    }


def settled(verdicts: Iterable[VerdictRecord]) -> dict[tuple[Key, str], VerdictRecord]:
    """Answer and metric → the last verdict; a failure only where nothing better came later."""
    records: dict[tuple[Key, str], VerdictRecord] = {}
    for record in verdicts:
        position = (key(record), record.metric)
        if record.outcome != "failed" or position not in records:
            records[position] = record
    return records


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
    readings = read_verdicts(results, instrument, step)
    pairs = []
    for row in results.read(answers, step).to_dict("records"):
        aligned, coherent = (readings.get((_key(row), name)) for name in ("aligned", "coherent"))
        pairs.append((row, Judged(row["question_id"], aligned, coherent)))
    return pairs


def key(record: VerdictRecord) -> Key:
    """The answer that a verdict is about."""
    return record.question_id, record.paraphrase, record.sample


def _key(row: Mapping[str, Any]) -> Key:
    return str(row["question_id"]), int(row["paraphrase"]), int(row["sample"])


class _Progress:
    """A line every ten seconds: verdicts, their rate, retries, time left."""

    def __init__(
        self,
        label: str,
        total: int,
        judge: Judge,
        note: Callable[[str], object],
    ) -> None:
        self.label, self.total, self.judge, self.note = label, total, judge, note
        self.began = self.reported = time.monotonic()

    def report(self, counts: Mapping[str, int]) -> None:
        now, done = time.monotonic(), sum(counts.values())
        if done < self.total and now - self.reported < _EVERY:
            return
        self.reported = now
        rate = done / max(now - self.began, 1e-9)
        left = clock((self.total - done) / rate)
        retries, failed = getattr(self.judge, "retries", 0), counts.get("failed", 0)
        extra = f", {retries} retries" if retries else ""
        if failed:
            extra += f", {failed} failed"
        self.note(f"{self.label}  judged {done} of {self.total}, {rate:.1f}/s{extra}, left {left}")
