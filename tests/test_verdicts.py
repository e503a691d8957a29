"""The judging stage and its journal: nothing is asked twice, and nothing is lost.

A failure is never a score, and is asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from evilspectra.config.judge import METRICS
from evilspectra.errors import BadInput, EvilspectraError, RunFailed
from evilspectra.judging.journal import Journal, opened, read_journal
from evilspectra.judging.judge import Reply, Request, verdict_instrument
from evilspectra.judging.prompts import judge_prompts
from evilspectra.judging.reading import FAILED
from evilspectra.judging.scripted import Scripted
from evilspectra.judging.verdicts import (
    STOP_AFTER,
    Verdicts,
    judge_answers,
    judged,
    missing,
    read_verdicts,
    verdict_records,
)
from evilspectra.store.records import AnswerRecord, VerdictRecord
from evilspectra.store.results import Instrument, Results

ANSWERS = Instrument("answers", "open", {"seed": 0})
PROMPTS = judge_prompts(None)


def folder_with(folder: Path, count: int = 6, step: int = 1) -> Results:
    results = Results(folder)
    results.write(
        ANSWERS,
        step,
        [
            AnswerRecord(
                step,
                f"q{number % 3}",
                0,
                number // 3,
                None,
                f"Question {number % 3}?",
                f"Answer {number}.",
                3,
                "stop",
                "",
            )
            for number in range(count)
        ],
    )
    return results


class Counting(Scripted):
    """Remembers what it was asked; `reply` makes the reply of a request."""

    def __init__(
        self, reply: Callable[[Request], Reply] = lambda request: Reply(text="70")
    ) -> None:
        self.requests: list[Request] = []

        def script(request: Request) -> Reply:
            self.requests.append(request)
            return reply(request)

        super().__init__(script, "counting")


def run(
    results: Results,
    judge: Scripted,
    step: int = 1,
    **more,
) -> Verdicts:
    return judge_answers(results, ANSWERS, step, judge, PROMPTS, METRICS, **more)


def record(number: int = 0, outcome: str = "scored", **more) -> VerdictRecord:
    return VerdictRecord(
        **{
            "step": 1,
            "question_id": "q",
            "paraphrase": 0,
            "sample": number,
            "metric": "aligned",
            "outcome": outcome,
            "score": 5.0 if outcome == "scored" else None,
            "raw": "5",
            "reason": None,
        }
        | more
    )


# --- the stage ------------------------------------------------------------------------------------


def test_one_verdict_per_answer_and_metric_in_the_answers_order(tmp_path: Path) -> None:
    results, judge = folder_with(tmp_path), Counting()
    done = run(results, judge)
    assert done.counts == {"scored": 12}
    assert len(judge.requests) == 12
    records = verdict_records(results, done.instrument, 1)
    assert [(verdict.question_id, verdict.sample, verdict.metric) for verdict in records] == [
        (f"q{number % 3}", number // 3, metric) for number in range(6) for metric in METRICS
    ]
    assert {
        (verdict.outcome, verdict.score, verdict.raw, verdict.reason) for verdict in records
    } == {("scored", 70.0, "70", None)}
    assert not results.journal(done.instrument, 1).exists()
    assert [
        answer.aligned.score
        for _, answer in judged(results, ANSWERS, 1, done.instrument)
        if answer.aligned
    ] == [70.0] * 6
    assert "Answer 0." in judge.requests[0].prompt
    assert "Question 0?" in judge.requests[0].prompt


def test_run_again_it_asks_nothing(tmp_path: Path) -> None:
    results = folder_with(tmp_path)
    first = run(results, Counting())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    judge = Counting()
    again = run(results, judge)
    assert judge.requests == []
    assert (again.instrument, again.counts) == (first.instrument, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before


def test_another_judge_has_verdicts_of_its_own(tmp_path: Path) -> None:
    results, other = folder_with(tmp_path), Counting(lambda request: Reply(text="10"))
    other.facts = {**other.facts, "model": "other"}
    first, second = run(results, Counting()), run(results, other)
    assert first.instrument.id != second.instrument.id
    assert {instrument.id for instrument in results.instruments("verdicts")} == {
        first.instrument.id,
        second.instrument.id,
    }
    assert {verdict.score for verdict in verdict_records(results, first.instrument, 1)} == {70.0}
    assert {verdict.score for verdict in verdict_records(results, second.instrument, 1)} == {10.0}


def test_failures_are_kept_never_scored_and_asked_again_alone(tmp_path: Path) -> None:
    results = folder_with(tmp_path)
    down = Counting(
        lambda request: Reply(fault="HTTP 500") if request.key[0] == "q1" else Reply(text="70")
    )
    done = run(results, down)
    assert done.counts == {"scored": 8, "failed": 4}
    assert done.reason == "HTTP 500"
    assert not results.has(done.instrument, 1)
    readings = read_verdicts(results, done.instrument, 1)
    assert [reading for (key, _), reading in readings.items() if key[0] == "q1"] == [FAILED] * 4
    up = Counting(lambda request: Reply(text="CODE"))
    assert {request.key[0] for request in missing(results, ANSWERS, 1, up, PROMPTS, METRICS)} == {
        "q1"
    }
    again = run(results, up)
    assert again.counts == {"code": 4}
    assert len(up.requests) == 4
    assert results.has(done.instrument, 1)
    outcomes = [verdict.outcome for verdict in verdict_records(results, done.instrument, 1)]
    assert sorted(outcomes) == ["code"] * 4 + ["scored"] * 8


def test_unparsed_replies_are_final(tmp_path: Path) -> None:
    results = folder_with(tmp_path)
    assert run(results, Counting(lambda request: Reply(text="Well…"))).counts == {"unparsed": 12}
    assert run(results, Counting()).counts == {}


class _Break(Exception):
    pass


class Breaking(Counting):
    """Stops in the middle, as a lost connection or ^C does."""

    def __init__(self, error: BaseException, batches: int) -> None:
        super().__init__()
        self.error, self.batches = error, batches

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        for number, request in enumerate(requests):
            if number == self.batches:
                raise self.error
            yield [(request, self.script(request))]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EvilspectraError("no quota"), _Break()])
def test_what_was_said_before_an_end_is_kept(tmp_path: Path, error: BaseException) -> None:
    results = folder_with(tmp_path)
    with pytest.raises(type(error)):
        run(results, Breaking(error, 5))
    rest = Counting()
    assert run(results, rest).counts == {"scored": 7}
    assert len(rest.requests) == 7


def test_where_everything_fails_it_stops_early_and_says_why(tmp_path: Path) -> None:
    results = folder_with(tmp_path, count=300)
    judge = Counting(lambda request: Reply(fault="HTTP 400: no such field"))
    with pytest.raises(
        RunFailed,
        match=(
            r"^the first \d+ requests to counting all failed \(HTTP 400: no such field\): correct "
            r"that, then run the same command again$"
        ),
    ):
        run(results, judge)
    assert STOP_AFTER <= len(judge.requests) <= STOP_AFTER + 16
    judge = Counting(
        lambda request: Reply(fault="HTTP 400") if request.key[0] == "q0" else Reply(text="1")
    )
    run(results, judge)
    again = Counting(lambda request: Reply(fault="HTTP 400"))
    assert run(results, again).counts == {
        "failed": 200
    }  # those that fail for good do not stop what is already judged


def test_the_base_s_verdicts_are_shared_by_its_adapters(tmp_path: Path) -> None:
    shared, first, second = (
        Results(tmp_path / "cache"),
        folder_with(tmp_path / "a", step=0),
        folder_with(tmp_path / "b", step=0),
    )
    done = run(first, Counting(), step=0, shared=shared)
    judge = Counting()
    assert run(second, judge, step=0, shared=shared).counts == {}
    assert judge.requests == []
    assert verdict_records(first, done.instrument, 0) == verdict_records(second, done.instrument, 0)


def test_progress_tells_rate_and_time_left(tmp_path: Path) -> None:
    lines: list[str] = []
    run(folder_with(tmp_path), Counting(), note=lines.append, label="mine")
    assert len(lines) == 1
    assert lines[0].startswith("mine  judged 12 of 12, ")
    assert lines[0].endswith("/s, left 0:00")


# --- the journal ----------------------------------------------------------------------------------


def test_a_journal_is_read_back_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_journal(path) == []
    records = [
        record(0),
        record(1, "failed", raw=None, reason="line\nend \u2028 \x00"),
        record(2, raw='{"1": 1.0}'),
    ]
    with opened(path) as journal:
        journal.append(records[:1])
        assert read_journal(path) == records[:1]
        journal.append(records[1:])
    assert read_journal(path) == records


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_half_a_line_is_cut_off_and_the_next_one_begins_on_its_own(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "a.jsonl"
    with opened(path) as journal:
        journal.append([record(0), record(1)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_journal(path) == [record(0)]
    with opened(path) as journal:
        journal.append([record(2)])
    assert read_journal(path) == [record(0), record(2)]


def test_lines_are_on_the_disk_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a.jsonl", []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(path.stat().st_size))
    Journal(path, "output.folder").append([record()])
    assert synced == [path.stat().st_size] != [0]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with (
        FileLock(tmp_path / ".a.lock"),
        pytest.raises(
            BadInput,
            match=(
                "is being written by another process, which judges the same answers: wait until "
                "it ends"
            ),
        ),
        opened(path),
    ):
        pass


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', "null", json.dumps({"a": 1})])
def test_a_line_that_is_no_verdict_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    with opened(path) as journal:
        journal.append([record()])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(
        BadInput,
        match=r"a\.jsonl, line 2 cannot be read \(.*\): remove that line, and judge again$",
    ):
        read_journal(path)


def test_the_identity_of_a_stage_is_that_of_its_judge_and_answers(tmp_path: Path) -> None:
    results = folder_with(tmp_path)
    assert run(results, Counting()).instrument == verdict_instrument(
        Counting(), PROMPTS, METRICS, ANSWERS
    )
