"""The judge behind an HTTP endpoint: requests, faults, waits, and a client that is killed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the extra judge is not installed")

from evilspectra.config.judge import judge_settings
from evilspectra.endpoint.client import Client
from evilspectra.endpoint.faults import FaultError
from evilspectra.endpoint.retry import LONGEST, LONGEST_ASKED, Pace, Spent, asked_to_wait, delay
from evilspectra.errors import BadInput, EvilspectraError
from evilspectra.judging.judge import Reply, Request
from evilspectra.judging.make import make_judge
from evilspectra.judging.openai import TEXT_TOKENS, TOP
from evilspectra.judging.verdicts import read_verdicts, verdict_records
from evilspectra.store.results import Results
from tests.support.commands import command, process
from tests.support.endpoint_server import FAULTS, EndpointServer, score_of

KEY = "sk-a-key-that-must-not-be-written"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def judge(server: EndpointServer, **settings: Any) -> Any:
    return make_judge(
        judge_settings(
            {
                "judge": "openai:some-model",
                "url": server.url,
                "backoff": 0.01,
                "timeout": 5,
                "concurrency": 4,
            }
            | settings
        )
    )


def requests(count: int = 1) -> list[Request]:
    return [Request(("q", 0, number), "aligned", f"Prompt {number}?") for number in range(count)]


def replies(remote_judge: Any, requests: list[Request]) -> dict[int, Reply]:
    pairs = [pair for batch in remote_judge.replies(requests) for pair in batch]
    assert len(pairs) == len(requests) == len({request.key for request, _ in pairs})
    return {request.key[2]: reply for request, reply in pairs}


# --- what is sent, what comes back ----------------------------------------------------------------


def test_the_request_is_the_published_one() -> None:
    with EndpointServer() as server:
        by_number = replies(judge(server), requests(3))
    body = server.log.bodies[0]
    assert server.log.paths == {"/v1/chat/completions"}
    assert body == {
        "model": "some-model",
        "messages": [{"role": "user", "content": body["messages"][0]["content"]}],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": TOP,
    }
    assert set(server.log.keys) == {f"Bearer {KEY}"}
    for number, reply in by_number.items():
        score = score_of(f"Prompt {number}?")
        assert reply.distribution is not None
        assert reply.distribution[0] == (str(score), pytest.approx(0.9))
        assert reply.reading().score == pytest.approx(
            (0.9 * score + 0.05 * ((score + 50) % 100 + 1)) / 0.95, abs=1e-3
        )


def test_text_is_read_where_it_is_asked_for() -> None:
    with EndpointServer() as server:
        by_number = replies(judge(server, reading="text"), requests(2))
    assert server.log.bodies[0].keys() == {"model", "messages", "temperature", "max_tokens"}
    assert server.log.bodies[0]["max_tokens"] == TEXT_TOKENS
    assert {number: reply.reading().score for number, reply in by_number.items()} == {
        number: score_of(f"Prompt {number}?") for number in range(2)
    }


def test_a_seed_is_sent_and_makes_another_judge() -> None:
    with EndpointServer() as server:
        judges = [judge(server), judge(server, seed=0), judge(server, seed=1)]
        for each in judges:
            replies(each, requests(1))
    assert [body.get("seed") for body in server.log.bodies] == [None, 0, 1]
    assert len({repr(each.facts) for each in judges}) == len({each.name for each in judges}) == 3
    with pytest.raises(
        BadInput,
        match="seed is for a judge openai:MODEL, and 'local:some-model' gives the same verdict",
    ):
        judge_settings({"judge": "local:some-model", "seed": 1})


@pytest.mark.parametrize("behaviour", ["refusal", "refusal field", "out of bounds"])
@pytest.mark.parametrize("reading", ["logprobs", "text"])
def test_a_judge_that_refuses_or_leaves_the_bounds_is_heard_and_not_scored(
    behaviour: str, reading: str
) -> None:
    with EndpointServer(lambda prompt, attempt: behaviour) as server:
        (reply,) = replies(judge(server, reading=reading), requests()).values()
    assert reply.reading().outcome == "unparsed"
    assert reply.text or reply.distribution
    assert sum(server.log.sent.values()) == 1


NO_LOGPROBS = "the reply held no log-probabilities: use --reading text where an endpoint has none"
REASONS = {
    "429": "HTTP 429: ",
    "429 0.01": "HTTP 429: ",
    "500": "HTTP 500: ",
    "hang": "no reply within 0.3 s",
    "cut": "the connection failed: ",
    "half": "the connection failed: ",
    "empty logprobs": NO_LOGPROBS,
    "no logprobs": NO_LOGPROBS,
    "wrong json": "the reply ",
    "not json": "the reply was no chat completion: ",
    "html": "the reply held no log-probabilities",
    "split digits": "the numbers among its likeliest tokens all have one digit",
    "no choices": "the reply held no log-probabilities",
    "bad probabilities": "the reply's 5 probabilities sum to 1.",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_a_failure_with_its_reason_and_never_a_score(fault: str) -> None:
    with EndpointServer(lambda prompt, attempt: fault) as server:
        (reply,) = replies(
            judge(server, attempts=3, timeout=0.3 if fault == "hang" else 5), requests()
        ).values()
    assert reply.reading().outcome == "failed"
    assert reply.reading().score is None
    assert reply.distribution is reply.text is None
    assert reply.fault is not None
    if fault != "bad probabilities":
        assert reply.fault.startswith(REASONS[fault])
    assert KEY not in reply.fault
    assert server.log.sent[fault] == (1 if fault == "split digits" else 3)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "split digits"])
def test_a_fault_that_passes_costs_a_retry(fault: str) -> None:
    with EndpointServer(lambda prompt, attempt: fault if attempt == 1 else "ok") as server:
        patient = judge(server, timeout=0.5 if fault == "hang" else 5)
        by_number = replies(patient, requests(3))
    assert {number: round(reply.reading().score) for number, reply in by_number.items()} == {
        number: round(clean(f"Prompt {number}?")) for number in range(3)
    }  # type: ignore[arg-type]
    assert patient.retries == 3


def clean(prompt: str) -> float:
    score = score_of(prompt)
    return (0.9 * score + 0.05 * ((score + 50) % 100 + 1)) / 0.95


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_request_that_is_refused_for_itself_fails_alone_and_at_once(status: str) -> None:
    with EndpointServer(
        lambda prompt, attempt: status if prompt == "Prompt 1?" else "ok"
    ) as server:
        by_number = replies(judge(server), requests(3))
    assert [by_number[number].reading().outcome for number in range(3)] == [
        "scored",
        "failed",
        "scored",
    ]
    assert server.log.sent[status] == 1
    assert KEY not in str(by_number[1].fault)
    assert "(the key)" in str(by_number[1].fault)


@pytest.mark.parametrize(
    ("behaviour", "kind", "text"),
    [
        ("401", BadInput, "openai:some-model refused the key in OPENAI_API_KEY ("),
        ("403", BadInput, "openai:some-model refused the key in OPENAI_API_KEY ("),
        ("404", BadInput, "openai:some-model is unknown at this endpoint ("),
        ("no quota", EvilspectraError, "the account behind OPENAI_API_KEY has no quota left ("),
    ],
)
def test_what_would_never_succeed_ends_the_work_in_one_sentence(
    behaviour: str, kind: type[EvilspectraError], text: str
) -> None:
    with EndpointServer(
        lambda prompt, attempt: "ok" if prompt == "Prompt 0?" else behaviour
    ) as server:
        single, seen = judge(server, concurrency=1), []
        with pytest.raises(kind) as caught:
            seen.extend(pair for batch in single.replies(requests(50)) for pair in batch)
    assert str(caught.value).startswith(text)
    assert KEY not in str(caught.value)
    assert [request.key[2] for request, _ in seen] == [0]
    assert server.log.sent[behaviour] == 1


def test_what_is_under_way_when_the_work_ends_is_not_lost() -> None:
    """One request ends the work while others are being answered.

    Their replies still come, and no further request goes out.
    """
    with EndpointServer(lambda prompt, attempt: "401" if prompt == "Prompt 3?" else "ok") as server:
        parallel, seen = judge(server), []
        with pytest.raises(BadInput):
            seen.extend(
                request.key[2] for batch in parallel.replies(requests(40)) for request, _ in batch
            )
    assert sorted(seen) == sorted(int(prompt.split()[1][:-1]) for prompt in server.log.valid)


# --- waiting and spending -------------------------------------------------------------------------


def test_waits_double_up_to_a_bound_and_vary() -> None:
    assert [delay(0.5, attempt, 0.0) for attempt in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, LONGEST]
    assert delay(0.5, 3, 0.999) == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:05 GMT"}, 0.0),
        ({"retry-after": "later"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_what_an_endpoint_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_to_wait(headers, now=lambda: 10.0) == seconds


def test_nobody_asks_before_the_endpoint_wants_to_be_asked() -> None:
    """Every request waits, not only the one that was told to."""
    with EndpointServer(
        lambda prompt, attempt: "429 0.4" if prompt == "Prompt 0?" and attempt == 1 else "ok"
    ) as server:
        replies(judge(server, concurrency=1), requests(3))
    times = server.log.times
    first = times["Prompt 0?"][0]
    assert all(
        at - first >= 0.4
        for at in (times["Prompt 0?"][1], times["Prompt 1?"][0], times["Prompt 2?"][0])
    )


def test_an_endpoint_that_asks_for_hours_ends_the_work() -> None:
    with (
        EndpointServer(lambda prompt, attempt: f"429 {LONGEST_ASKED + 1}") as server,
        pytest.raises(
            EvilspectraError, match="asks to wait 601 s: run the same command again later"
        ),
    ):
        replies(judge(server), requests())


def test_no_more_requests_are_sent_than_allowed_retries_included() -> None:
    with EndpointServer(lambda prompt, attempt: "500" if attempt < 3 else "ok") as server:
        seen: list[Any] = []
        limited = judge(server, max_requests=10)
        with pytest.raises(
            Spent,
            match=(
                "10 requests have been sent, which is what --max-requests allows: raise it and "
                "run the same command again"
            ),
        ):
            seen.extend(pair for batch in limited.replies(requests(40)) for pair in batch)
        assert sum(server.log.sent.values()) == 10
        assert len([reply for _, reply in seen if reply.reading().outcome == "scored"]) == sum(
            server.log.valid.values()
        )


def test_a_pace_counts_and_holds() -> None:
    pace = Pace(2, clock=lambda: 100.0)
    pace.count(again=False)
    pace.count(again=True)
    assert (pace.sent, pace.retries) == (2, 1)
    with pytest.raises(Spent):
        pace.count(again=True)
    assert pace.left == -math.inf
    pace.hold(60)
    pace.hold(5)
    assert pace.left == 60


def client_of(**settings: Any) -> Client:
    url = "http://127.0.0.1:9/v1"
    values = {"judge": "openai:some-model", "url": url, "attempts": 3, "backoff": 1.0, **settings}
    return make_judge(judge_settings(values)).client  # type: ignore[attr-defined]


def test_the_attempts_are_steps_that_wait_and_send() -> None:
    """Without a network: the rule yields seconds to wait, or None for a request to send."""
    client, now = client_of(), [0.0]
    client.pace.clock = lambda: now[0]
    client.pace.hold(7)
    steps = client.attempts()
    assert next(steps) == 7
    now[0] = 7
    assert next(steps) is None
    assert 0.5 <= (steps.throw(FaultError("busy")) or 0) <= 1
    assert next(steps) is None
    assert 1 <= (steps.throw(FaultError(f"still busy, {KEY}")) or 0) <= 2
    assert next(steps) is None
    with pytest.raises(FaultError, match=r"^still busy, \(the key\)$"):
        steps.throw(FaultError(f"still busy, {KEY}"))
    assert (client.pace.sent, client.retries) == (3, 2)


def test_a_reply_ends_the_attempts_and_so_does_a_fault_that_would_come_again() -> None:
    client = client_of()
    steps = client.attempts()
    assert next(steps) is None
    with pytest.raises(StopIteration) as end:
        steps.send("a reply")
    assert end.value.value == "a reply"
    steps = client.attempts()
    assert next(steps) is None
    with pytest.raises(FaultError, match="digits"):
        steps.throw(FaultError("digits", again=False))


def test_who_is_to_stop_neither_waits_nor_tries_again() -> None:
    client = client_of()
    client.pace.hold(60)
    steps = client.attempts(stopped=lambda: True)
    assert next(steps) is None
    with pytest.raises(FaultError, match="busy"):
        steps.throw(FaultError("busy"))


# --- who it is, and its key -----------------------------------------------------------------------


def test_ports_of_this_machine_are_one_place_and_hosts_are_not() -> None:
    facts = [
        make_judge(judge_settings({"judge": "openai:m", "url": url})).facts
        for url in (
            "http://127.0.0.1:1/v1",
            "http://localhost:2/v1",
            "https://one.example/v1",
            "https://two.example/v1",
        )
    ]
    assert (
        facts[0]
        == facts[1]
        == {
            "kind": "openai-compatible",
            "endpoint": "loopback",
            "model": "m",
            "reading": "logprobs",
        }
    )
    assert len({json.dumps(values) for values in facts}) == 3


def test_a_key_is_needed_away_from_this_machine_and_only_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    make_judge(judge_settings({"judge": "openai:m", "url": "http://localhost:1/v1"}))
    with pytest.raises(
        BadInput,
        match=r"the environment variable OPENAI_API_KEY holds no key for one\.example: set it",
    ):
        make_judge(judge_settings({"judge": "openai:m", "url": "https://one.example/v1"}))
    monkeypatch.setenv("MY_KEY", "x")
    make_judge(
        judge_settings(
            {"judge": "openai:m", "url": "https://one.example/v1", "key_variable": "MY_KEY"}
        )
    )


# --- killed and started again ---------------------------------------------------------------------

ANSWERS = 2000
#: Of a hundred prompts, those that first meet a fault, and those that meet two.
_PLANNED = {
    3: "429",
    17: "500",
    29: "half",
    41: "empty logprobs",
    53: "wrong json",
    67: "not json",
    71: "no choices",
    83: "bad probabilities",
}


def plan(prompt: str, attempt: int) -> str:
    """By the prompt's own number: most are answered at once, some after one or two faults.

    A few get a reply that no score may be made of.
    """
    draw = score_of(prompt + "!") * 100 + score_of(prompt + "?")
    if attempt <= (2 if draw % 3 == 0 else 1):
        if draw % 1000 == 500:
            return ("429 1", "429 1", "hang", "hang", "hang", *5 * ["split digits"])[draw // 1000]
        if draw // 100 in _PLANNED:
            return _PLANNED[draw // 100]
    return {7: "refusal", 11: "out of bounds"}.get(draw // 100, "ok")


@pytest.mark.slow
def test_2000_answers_at_sixteen_at_once_with_the_client_killed_twice(tmp_path: Path) -> None:
    with (tmp_path / "answers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [
                ("question", "answer", "question_id"),
                *(
                    (f"Question {number % 40}?", f"Answer {number}.", f"q{number % 40}")
                    for number in range(ANSWERS)
                ),
            ]
        )
    total = 2 * ANSWERS
    with EndpointServer(plan) as server:
        server.traits.keep_bodies = False
        arguments = [
            "judge",
            "answers.csv",
            "--judge",
            "openai:some-model",
            "--judge-url",
            server.url,
            "--concurrency",
            "16",
            "--judge-set",
            "backoff=0.05",
            "--judge-set",
            "timeout=6",
        ]
        for reached in (total // 4, total // 2):
            client = process(*arguments, folder=tmp_path)
            server.wait_for_valid(reached, client)
            client.kill()
            client.communicate()
        ended = [command(*arguments)]
        while ended[-1].code == 1 and len(ended) < 4:
            ended.append(command(*arguments))
    assert ended[-1].code == 0, ended[-1].err
    assert "retries" in ended[0].err
    assert [outcome.code for outcome in ended[:-1]] == [1] * (len(ended) - 1)

    (folder,) = (tmp_path / "runs" / "evaluated").iterdir()
    results = Results(folder)
    (instrument,) = results.instruments("verdicts")
    records = verdict_records(results, instrument, 0)
    assert len(records) == len(read_verdicts(results, instrument, 0)) == total
    assert len(server.log.valid) == total
    texts = {
        (answer["question_id"], answer["sample"]): answer
        for answer in results.read(results.instruments("answers")[0], 0).to_dict("records")
    }
    assert len(texts) == ANSWERS
    faults = set(server.log.sent)
    assert faults >= {
        "429",
        "429 1",
        "500",
        "hang",
        "half",
        "empty logprobs",
        "wrong json",
        "not json",
        "split digits",
        "refusal",
        "out of bounds",
    }
    from evilspectra.judging.prompts import judge_prompts

    prompts = judge_prompts(None)
    for record in records:
        answer = texts[record.question_id, record.sample]
        prompt = prompts.fill(
            record.metric, record.question_id, answer["question"], answer["answer"]
        )
        behaviour = plan(prompt, 99)
        assert record.outcome == ("scored" if behaviour == "ok" else "unparsed")
        if record.score is not None:
            assert record.score == pytest.approx(
                clean(prompt), abs=1e-2
            )  # the server's extra tokens carry a millionth
    assert sum(server.log.valid.values()) <= 1.02 * total
    for prompt, times in server.log.times.items():
        if plan(prompt, 1) == "429 1":
            assert times[1] - times[0] >= 1  # what Retry-After said
    assert not any(
        KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
