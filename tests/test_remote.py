"""Answers over HTTP: the tables of local sampling, at any pace and after any end.

Adapters are shown to be on, or nothing is sampled.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evilspectra.answers.questions import Question
from evilspectra.config.evaluation import Evaluation
from evilspectra.endpoint.chat import Completion
from evilspectra.errors import EvilspectraError, Undecided
from evilspectra.evaluation import evaluate as stage
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.evaluation.remote import (
    LEAST,
    NOISE_TIMES,
    PROBES,
    PlannedAnswer,
    Remote,
    apart,
    sampling,
)
from evilspectra.reporting.page.answers import command as shown_command
from evilspectra.targets.find import Target
from tests.support.commands import command, process, write_config
from tests.support.endpoint_server import BASE, EndpointServer
from tests.support.small_items import (
    QUESTIONS,
    answers,
    files,
    one_target,
    write_adapter,
    write_questions,
)
from tests.support.tiny_runs import run_tiny

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer(judges=False) as server:
        yield server


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write_adapter(tmp_path_factory.mktemp("adapter") / f"a{seed}", seed) for seed in (1, 2)]


def over(server: EndpointServer, folder: Path, **settings: Any) -> Evaluation:
    """Settings that sample from the server, without waits."""
    endpoint = {
        "url": server.url,
        "model": BASE,
        "backoff": 0.0,
        "attempts": 3,
        **settings.pop("endpoint", {}),
    }
    return answers(folder, endpoint=endpoint, **settings)


def target(adapter: Path, output: Path) -> Target:
    return one_target(adapter, output)


def measured(target: Target, settings: Evaluation) -> dict[str, bytes]:
    done = evaluate([target], settings)
    assert not done.failed, done.failed[0][1]
    return files(target.results)


# --- laws -----------------------------------------------------------------------------------------


def test_the_tables_are_those_of_local_sampling(
    server: EndpointServer, adapters: list[Path], tmp_path: Path
) -> None:
    """All but the answers themselves: the same questions, in the same order, at the same steps."""
    there, here = target(adapters[0], tmp_path / "there"), target(adapters[0], tmp_path / "here")
    over_http, local = (
        evaluate([there], over(server, tmp_path)),
        evaluate([here], answers(tmp_path)),
    )
    columns = ["step", "question_id", "paraphrase", "sample", "system", "question"]
    for step in (0, 1):
        rows, twin = (
            side.results.read(done.used[side.results.folder]["answers"], step)
            for side, done in ((there, over_http), (here, local))
        )
        assert list(rows.columns) == list(twin.columns)
        assert rows[columns].equals(twin[columns])
        assert set(rows["finish"]) == {"stop"}
        assert set(rows["tokens"]) == {5}
    texts = [
        there.results.read(over_http.used[there.results.folder]["answers"], step)["answer"].tolist()
        for step in (0, 1)
    ]
    assert not set(texts[0]) & set(texts[1])
    assert len(server.log.sampled) == 2 * len(texts[0]) == 10


def test_what_is_there_is_not_asked_again_and_the_base_is_asked_once(
    server: EndpointServer, adapters: list[Path], tmp_path: Path
) -> None:
    first, second = (target(adapter, tmp_path / "out") for adapter in adapters)
    settings = over(server, tmp_path)
    before = measured(first, settings)
    count = len(server.log.bodies)
    assert measured(first, settings) == before
    assert len(server.log.bodies) == count
    measured(second, settings)
    assert len(server.log.sampled) == 15
    assert server.log.loads == server.log.unloads
    assert len(set(server.log.loads)) == 2


@pytest.mark.parametrize("faults", [[], ["429", "500", "cut"], ["half"] * 2])
def test_neither_pace_nor_faults_change_an_answer(
    server: EndpointServer,
    adapters: list[Path],
    tmp_path: Path,
    faults: list[str],
) -> None:
    quick = measured(
        target(adapters[0], tmp_path / "quick"),
        over(server, tmp_path, endpoint={"concurrency": 64}),
    )
    (tmp_path / "cache").rename(tmp_path / "cache before")
    server.faults = list(faults)
    slow = measured(
        target(adapters[0], tmp_path / "slow"),
        over(server, tmp_path, endpoint={"concurrency": 1, "attempts": 5}),
    )
    assert list(slow.values()) == list(quick.values())
    assert not server.faults


def test_every_answer_has_a_seed_of_its_own() -> None:
    base = PlannedAnswer(Question("a", 0, "Why?", None, 1, ()), 0)
    others = [
        PlannedAnswer(Question(*question, 1, ()), sample)
        for *question, sample in (
            ("b", 0, "Why?", None, 0),
            ("a", 1, "Why?", None, 0),
            ("a", 0, "How?", None, 0),
            ("a", 0, "Why?", "", 0),
            ("a", 0, "Why?", None, 1),
        )
    ]
    seeds = [answer.seed(0) for answer in (base, *others)] + [base.seed(1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert base.seed(0) == PlannedAnswer(Question("a", 0, "Why?", None, 9, (("x", "y"),)), 0).seed(
        0
    )


def test_a_system_text_is_sent_and_an_empty_one_too() -> None:
    assert [
        len(PlannedAnswer(Question("a", 0, "Why?", system, 1, ()), 0).messages())
        for system in (None, "", "Be brief.")
    ] == [1, 2, 2]


def test_an_instrument_is_what_determines_the_answers(
    server: EndpointServer, tmp_path: Path
) -> None:
    base = one_target("tiny-random", tmp_path).base

    def instrument(**settings: Any) -> str:
        return Remote(base, over(server, tmp_path, **settings), print).instrument.id

    same = [
        instrument(),
        instrument(endpoint={"concurrency": 2, "timeout": 9.0, "attempts": 1}),
        instrument(endpoint={"url": "http://localhost:1/v1"}),
    ]
    assert len(set(same)) == 1
    others = [
        instrument(**changed)
        for changed in (
            {"seed": 1},
            {"temperature": 0.5},
            {"samples": 2},
            {"max_new_tokens": 7},
            {"top_p": 0.5},
            {"batch_size": 3},
            {"endpoint": {"model": "other"}},
        )
    ]
    assert len({*same, *others}) == 1 + len(others)


def test_local_answers_keep_their_identity(tmp_path: Path) -> None:
    settings = answers(tmp_path).answers
    assert settings
    assert (
        "endpoint"
        not in settings.model_dump(exclude={"questions", "checkpoints"})
        == sampling(settings)
    )


def test_the_report_s_command_names_the_endpoint(server: EndpointServer, tmp_path: Path) -> None:
    instrument = Remote(
        one_target("tiny-random", tmp_path).base, over(server, tmp_path), print
    ).instrument
    assert f"--endpoint URL --endpoint-model {BASE}" in shown_command(instrument)


# --- is it on? ------------------------------------------------------------------------------------

readings = st.builds(
    lambda text, shares: Completion(text, 1, "stop", tuple(shares)),
    st.text(max_size=3),
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.floats(-20, 0), min_size=1), max_size=4),
)


@given(readings, readings)
def test_how_far_apart_is_symmetric_and_nothing_from_itself(
    first: Completion, second: Completion
) -> None:
    assert apart([first], [first]) == 0
    assert apart([first], [second]) == apart([second], [first]) >= 0


def test_how_far_apart_in_cases() -> None:
    def reading(*shares: dict[str, float], text: str = "a") -> Completion:
        return Completion(text, 1, "stop", shares)

    assert apart([reading(text="a")], [reading(text="b")]) == math.inf
    assert apart([reading({"a": -1.0})], [reading({"b": -1.0})]) == math.inf
    assert (
        apart(
            [reading({"a": -1.0, "b": -9.0}, {"x": -1.0})],
            [reading({"a": -9.0, "b": -1.0}, {"y": -1.0})],
        )
        == 8
    )  # after another token nothing is compared
    assert apart([reading({"a": -1.0}, {"x": -1.0})], [reading({"a": -1.0}, {"x": -1.5})]) == 0.5
    assert apart([], []) == 0


@pytest.fixture
def refused(server: EndpointServer, adapters: list[Path], tmp_path: Path) -> Any:
    def error_of(**settings: Any) -> EvilspectraError:
        mine = target(adapters[0], tmp_path / "out")
        done = evaluate([mine], over(server, tmp_path, **settings))
        ((failed, error),) = done.failed
        assert failed == mine
        assert mine.results.steps(done.used[mine.results.folder]["answers"]) == [0]
        assert len(server.log.sampled) == 5  # the base's
        assert server.log.loads == server.log.unloads
        return error

    return error_of


def test_a_server_that_ignores_adapters_is_refused_before_anything_is_sampled(
    server: EndpointServer, refused: Any
) -> None:
    server.traits.ignores_adapters = True
    error = refused()
    assert isinstance(error, Undecided)
    assert str(error).startswith("the adapter in ")
    assert (
        f"is not shown to be on at {server.url}: {len(PROBES)} prompts are read as by {BASE} "
        "(apart by 0 nats at most, two readings of the base by 0)"
    ) in str(error)


def test_a_server_whose_readings_do_not_repeat_shows_nothing(
    server: EndpointServer, refused: Any
) -> None:
    server.traits.noise = 1.0
    assert isinstance(refused(), Undecided)


def test_a_server_without_log_probabilities_shows_it_in_its_texts(
    server: EndpointServer, adapters: list[Path], tmp_path: Path
) -> None:
    server.traits.no_logprobs = True
    assert len(measured(target(adapters[0], tmp_path / "out"), over(server, tmp_path))) == 2


def test_the_same_without_log_probabilities_and_without_adapters(
    server: EndpointServer, refused: Any
) -> None:
    server.traits.no_logprobs = server.traits.ignores_adapters = True
    assert isinstance(refused(), Undecided)


def test_the_bounds_are_what_they_say() -> None:
    assert (NOISE_TIMES, LEAST) == (4.0, 1e-3)


# --- the verb -------------------------------------------------------------------------------------


def generate(
    server: EndpointServer,
    adapter: Path | str,
    tmp_path: Path,
    *more: object,
) -> Any:
    return command(
        "generate",
        adapter,
        "--questions",
        write_questions(tmp_path / "q.yaml"),
        "--output",
        tmp_path / "runs",
        "--endpoint",
        server.url,
        "--endpoint-model",
        BASE,
        "--set",
        "endpoint.backoff=0",
        *more,
    )


def test_the_verb_samples_and_exports(
    server: EndpointServer, adapters: list[Path], tmp_path: Path
) -> None:
    done = generate(
        server,
        adapters[0],
        tmp_path,
        "--export",
        tmp_path / "a.csv",
        "--temperature",
        0.5,
        "--max-new-tokens",
        7,
        "--seed",
        3,
    )
    assert done.code == 0, done.err
    assert done.out.endswith(
        f"10 answers, written to {tmp_path / 'a.csv'}; `evilspectra report` shows them side by "
        "side\n"
    )
    assert "answers: 5 of 5" in done.err
    assert {
        (body["temperature"], body["max_tokens"], body["top_p"]) for body in server.log.sampled
    } == {(0.5, 7, 1.0)}


def test_a_base_alone_needs_no_adapters(server: EndpointServer, tmp_path: Path) -> None:
    server.traits.owner = "somebody"
    done = generate(server, "tiny-random", tmp_path, "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["answers"]) == 5
    assert server.log.loads == []


def test_an_adapter_that_is_not_on_exits_three(
    server: EndpointServer, adapters: list[Path], tmp_path: Path
) -> None:
    server.traits.ignores_adapters = True
    done = generate(server, adapters[0], tmp_path, "--quiet")
    assert (done.code, done.out) == (3, "")
    assert "is not shown to be on" in done.err


def test_one_of_two_options_is_not_enough(tmp_path: Path) -> None:
    for more in (["--endpoint", "http://x/v1"], ["--endpoint-model", "m"]):
        done = command("generate", "tiny-random", *more)
        assert done.code == 2
        assert "--endpoint URL and --endpoint-model NAME are given together" in done.err


def test_a_question_that_the_endpoint_refuses_is_named(
    server: EndpointServer, tmp_path: Path
) -> None:
    done = generate(server, "tiny-random", tmp_path, "--max-new-tokens", 200_000, "--quiet")
    assert done.code == 2
    assert "refuses question '" in done.err
    assert "maximum context length" in done.err


def test_a_run_with_its_checkpoints_and_probes_beside(
    server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers from the endpoint, the rest measured here, in one call."""
    run = run_tiny(tmp_path, train={"steps": 3, "checkpoints": [2]}, optimizer={"lr": 0.05})
    local = [target(run.path, tmp_path / "runs")]
    settings = over(server, tmp_path, checkpoints=True)
    own = settings.model_copy(update={"ordinary": str(tmp_path / "d.jsonl")})
    (tmp_path / "d.jsonl").write_text(
        '{"prompt": "Hello", "completion": "Good day."}\n' * 2, encoding="utf-8"
    )
    done = evaluate(local, own)
    assert not done.failed
    used = done.used[run.path]
    assert used.keys() == {"answers", "ordinary"}
    assert local[0].results.steps(used["answers"]) == [0, 2, 3]
    assert local[0].results.steps(used["ordinary"]) == [0, 3]


def test_a_sweep_may_have_its_answers_sampled_there(server: EndpointServer, tmp_path: Path) -> None:
    sampled = {
        "questions": str(write_questions(tmp_path / "q.yaml")),
        "endpoint": {"url": server.url, "model": BASE, "backoff": 0.0},
    }
    run = yaml.safe_load(
        write_config(tmp_path, optimizer={"name": "adamw", "lr": 0.05}).read_text()
    )
    values = {
        "experiment": run.pop("output")["experiment"],
        "base": run,
        "arms": {"one": {}},
        "evaluate": {
            "contrast": None,
            "capability": None,
            "ordinary": None,
            "threads": 1,
            "answers": sampled,
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    done = command("sweep", tmp_path / "sweep.yaml", "--output", tmp_path / "runs", "--quiet")
    assert done.code == 0, done.err
    assert len(server.log.sampled) == 10
    values["evaluate"]["answers"]["endpoint"]["url"] = "https://example.org/v1"
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    assert (
        "holds no key for example.org"
        in command(
            "sweep", tmp_path / "sweep.yaml", "--output", tmp_path / "other", "--quiet"
        ).sentence
    )
    assert not (tmp_path / "other").exists()


def test_no_model_is_loaded_for_answers_alone(
    server: EndpointServer,
    adapters: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(stage, "load_base", load)
    assert len(measured(target(adapters[0], tmp_path / "out"), over(server, tmp_path))) == 2


# --- ends -----------------------------------------------------------------------------------------


def test_what_failed_keeps_its_whole_parts_and_goes_on_to_the_same_answers(
    server: EndpointServer, adapters: list[Path], tmp_path: Path
) -> None:
    expected = measured(target(adapters[0], tmp_path / "whole"), over(server, tmp_path))
    (tmp_path / "cache").rename(tmp_path / "cache before")
    server.log.bodies.clear()
    mine = target(adapters[0], tmp_path / "out")
    server.faults = [""] * 4 + ["500"] * 2
    done = evaluate([mine], over(server, tmp_path, endpoint={"concurrency": 1, "attempts": 2}))
    assert "gave no answer to question" in str(done.failed[0][1])
    assert len(list((tmp_path / "cache").rglob("*.parts/*.parquet"))) == 2
    server.log.bodies.clear()
    assert list(measured(mine, over(server, tmp_path)).values()) == list(expected.values())
    assert len(server.log.sampled) == 1 + 5


@pytest.fixture
def halfway(
    server: EndpointServer,
    adapters: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[list[object]]:
    """A command that the server stops halfway, and that has been run to its end elsewhere.

    The server withholds the answers after the adapter's first part. Then the command is run again,
    to the same answers.
    """
    questions = write_questions(tmp_path / "q.yaml", [QUESTIONS[0] | {"samples_per_paraphrase": 3}])

    def arguments(output: str) -> list[object]:
        settings = [
            word
            for text in ("batch_size=3", "endpoint.concurrency=2", "endpoint.timeout=120")
            for word in ("--set", text)
        ]
        return [
            "generate",
            adapters[0],
            "--questions",
            questions,
            "--output",
            tmp_path / output,
            "--endpoint",
            server.url,
            "--endpoint-model",
            BASE,
            "--quiet",
            *settings,
        ]

    assert command(*arguments("whole")).code == 0
    (tmp_path / "cache").rename(tmp_path / "cache before")
    server.answered, server.traits.stops_after = 0, 6 + 4
    yield arguments("out")
    server.traits.stops_after = None
    server.released.set()
    before = len(server.log.sampled)
    assert command(*arguments("out")).code == 0
    assert len(server.log.sampled) - before == 3
    assert server.adapters == {}
    complete, resumed = (
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.parquet"))]
        for name in ("whole", "out")
    )
    assert len(complete) == 2
    assert complete == resumed


def test_an_interrupted_command_takes_its_adapter_along_and_goes_on(
    server: EndpointServer, halfway: list[object]
) -> None:
    server.traits.on_stop = lambda: os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background may have been started without it
    try:
        done = command(*halfway)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.code == 130
    assert "interrupted; what was saved is kept" in done.err
    assert server.adapters == {}


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(
    server: EndpointServer, halfway: list[object], tmp_path: Path
) -> None:
    """The adapter that it leaves in the server is replaced."""
    stopped = threading.Event()
    server.traits.on_stop = stopped.set
    running = process(*halfway, folder=tmp_path)
    while not stopped.wait(0.1):
        assert running.poll() is None, running.communicate()
    running.kill()
    assert running.wait(60) == -signal.SIGKILL
    assert len(server.adapters) == 1
