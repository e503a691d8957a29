"""The stages of a run of a sweep: each is done once, and skipped when done.

Judges are asked while runs train, their outages lose nothing, and states are true.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evilspectra.config.judge import Judging, judge_settings
from evilspectra.errors import Undecided
from evilspectra.evaluation import evaluate as stage
from evilspectra.store.run import RunFolder
from evilspectra.sweeps.file import Sweep, load_sweep
from evilspectra.sweeps.ledger import Event, Ledger, Writer, ledgers
from evilspectra.sweeps.run import Outcome, execute, ledger_of
from evilspectra.sweeps.status import of_store, of_sweep
from evilspectra.training import train as training
from evilspectra.training.identity import locate
from tests.support.commands import Result, command, left_in
from tests.support.endpoint_server import EndpointServer
from tests.support.small_items import write_questions
from tests.support.tiny_sweeps import adapters, runs, stamps, until, write_sweep
from tests.test_loaded import EXPLODES

#: Two paraphrases twice and one once, about the base and about an adapter, under two metrics.
PER_RUN, OF_BASE = 10, 10


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as endpoint:
        yield endpoint


def sampled(folder: Path, seeds: int = 3, **values: Any) -> Path:
    """A sweep whose runs answer five prompts each."""
    answers = {
        "questions": str(write_questions(folder / "q.yaml")),
        "max_new_tokens": 4,
        "batch_size": 5,
    }
    section = {
        "contrast": None,
        "capability": None,
        "ordinary": None,
        "threads": 1,
        "answers": answers,
    }
    return write_sweep(folder, 2, {"train.seed": list(range(seeds))}, evaluate=section, **values)


def judged(path: Path, endpoint: EndpointServer, **settings: Any) -> Sweep:
    """The sweep with its answers judged at an endpoint."""
    values = {
        "judge": "openai:judge-1",
        "url": endpoint.url,
        "attempts": 1,
        "backoff": 0,
        "concurrency": 2,
    } | settings
    return replace(load_sweep(str(path)), judging=Judging(judge_settings(values)))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes loading, training and sampling fail from here on."""

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("this was done before")

    for module, name in (
        (training, "load_base"),
        (training, "_train"),
        (stage, "load_base"),
        (stage, "sample"),
    ):
        monkeypatch.setattr(module, name, refuse)


def fine(outcomes: list[Outcome]) -> bool:
    return not any(outcome.failed or outcome.unjudged for outcome in outcomes)


# --- judging --------------------------------------------------------------------------------------


def test_every_stage_is_done_once(
    tmp_path: Path, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = judged(sampled(tmp_path), server)
    assert fine(execute(loaded, quiet=True))
    # the base's answers are judged once
    assert sum(server.log.valid.values()) == 3 * PER_RUN + OF_BASE
    before, files = stamps(tmp_path), left_in(tmp_path / "runs")
    forbid(monkeypatch)
    assert fine(execute(loaded, quiet=True))
    assert sum(server.log.valid.values()) == 3 * PER_RUN + OF_BASE
    assert (stamps(tmp_path), left_in(tmp_path / "runs")) == (before, files)


def test_answers_are_judged_while_the_next_run_trains_and_training_does_not_wait_for_a_judge(
    tmp_path: Path,
) -> None:
    """The judge is asked after the first run, and replies only once the last one is trained."""
    asked_when: list[int] = []

    def plan(prompt: str, attempt: int) -> str:
        asked_when.append(len(adapters(tmp_path)))
        return "ok"

    with EndpointServer(plan) as server:
        answer = server.answer

        def late(request: Any) -> None:
            until(lambda: len(adapters(tmp_path)) == 3)
            answer(request)

        server.answer = late  # type: ignore[method-assign]
        assert fine(execute(judged(sampled(tmp_path), server), quiet=True))
    assert asked_when[0] == 3


def test_the_judge_is_asked_before_everything_is_trained(tmp_path: Path) -> None:
    asked_when: list[int] = []
    with EndpointServer(
        lambda prompt, attempt: (asked_when.append(len(adapters(tmp_path))), "ok")[1]
    ) as server:
        begun = training.train

        def second_waits(config: Any, *more: Any) -> RunFolder:
            until(lambda: config.train.seed != 1 or asked_when)
            return begun(config, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "train", second_waits)
            assert fine(execute(judged(sampled(tmp_path), server), quiet=True))
    assert asked_when[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["500", "401"])
def test_an_outage_loses_nothing_and_needs_no_new_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outage: str
) -> None:
    """After seven valid replies the judge is down for the rest of the sweep and one more call.

    Then it is back.
    """
    down = [False]

    def plan(prompt: str, attempt: int) -> str:
        down[0] = down[0] or sum(server.log.valid.values()) >= 7
        return outage if down[0] else "ok"

    with EndpointServer(plan) as server:
        loaded = judged(sampled(tmp_path), server)
        outcomes = execute(loaded, quiet=True)
        assert [outcome.failed for outcome in outcomes] == [None] * 3
        assert all(outcome.unjudged for outcome in outcomes)
        assert len(adapters(tmp_path)) == 3
        verdicts = sum(server.log.valid.values())
        assert 7 <= verdicts < 3 * PER_RUN
        answers = {
            name: (tmp_path / "runs" / name).stat().st_mtime_ns
            for name in left_in(tmp_path / "runs")
            if "/answers/" in name
        }
        forbid(monkeypatch)
        assert all(outcome.unjudged for outcome in execute(loaded, quiet=True))
        rows = of_sweep(ledger_of(loaded, [locate(config)[0] for config in loaded.configs]))
        assert [
            (row.stages["train"], row.stages["measure"], row.stages["judge"], row.state)
            for row in rows
        ] == [("done", "done", "failed", "failed")] * 3
        assert all(row.reason for row in rows)
        server.plan = lambda prompt, attempt: "ok"
        assert fine(execute(loaded, quiet=True))
        # verdicts from before the outage were not asked for again
        assert sum(server.log.valid.values()) == 3 * PER_RUN + OF_BASE
        assert {name: (tmp_path / "runs" / name).stat().st_mtime_ns for name in answers} == answers


def test_a_silent_judge_is_not_asked_about_every_run_again(tmp_path: Path) -> None:
    """Forty runs and a judge that is gone must not take forty times its patience at the end."""
    with EndpointServer(lambda prompt, attempt: "401") as server:
        outcomes = execute(judged(sampled(tmp_path, seeds=4), server), quiet=True)
        assert all("refused the key" in str(outcome.unjudged) for outcome in outcomes)
        # two at once: each run once, and one of them once more
        assert server.log.sent["401"] <= 2 * (4 + 1)


def test_another_judge_makes_new_verdicts_and_nothing_else(
    tmp_path: Path, server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sampled(tmp_path, seeds=1)
    assert fine(execute(judged(path, server), quiet=True))
    forbid(monkeypatch)
    assert fine(execute(judged(path, server, judge="openai:judge-2"), quiet=True))
    assert sum(server.log.valid.values()) == 2 * (PER_RUN + OF_BASE)


def test_a_local_judge_waits_until_everything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evilspectra.judging import background as background
    from evilspectra.judging.judge import Reply
    from evilspectra.judging.scripted import Scripted

    asked_when: list[int] = []
    monkeypatch.setattr(
        background,
        "make_judge",
        lambda settings, files=(): Scripted(
            lambda request: (asked_when.append(len(adapters(tmp_path))), Reply(text="50"))[1]
        ),
    )
    monkeypatch.setattr("evilspectra.sweeps.run.make_judge", lambda settings, files=(): None)
    loaded = replace(
        load_sweep(str(sampled(tmp_path, seeds=2))),
        judging=Judging(judge_settings({"judge": "local:some-model"})),
    )
    assert fine(execute(loaded, quiet=True))
    assert set(asked_when) == {2}


def test_the_command_says_that_verdicts_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EndpointServer(lambda prompt, attempt: "401") as server:
        loaded = judged(sampled(tmp_path, seeds=2), server)
        monkeypatch.setattr("evilspectra.sweeps.file.load_sweep", lambda file, settings: loaded)
        done = command("sweep", tmp_path / "sweep.yaml", "--quiet")
        assert done.code == Undecided.exit_code == 3
        assert "2 runs: 2 trained, 0 done before, 0 failed, 2 without all verdicts" in done.out
        assert "2 of 2 runs lack verdicts (openai:judge-1 refused the key" in done.sentence
        assert done.sentence.endswith(
            "everything else is done and kept: the same command will ask for the verdicts alone"
        )
        server.plan = lambda prompt, attempt: "ok"
        again = command("sweep", tmp_path / "sweep.yaml", "--quiet", "--json")
        assert (again.code, json.loads(again.out)["unjudged"]) == (0, 0)


# --- what was done elsewhere ----------------------------------------------------------------------


def test_a_run_that_another_process_holds_is_waited_for_and_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_sweep(str(write_sweep(tmp_path, 2, {"train.seed": [0, 1]})))
    run, _ = locate(loaded.configs[0])
    held = threading.Event()

    def other() -> None:
        with run.locked():
            held.set()
            while len(adapters(tmp_path)) < 1:  # until the other run is done
                time.sleep(0.02)
            time.sleep(0.3)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    outcomes = execute(loaded)
    thread.join()
    assert fine(outcomes)
    assert len(adapters(tmp_path)) == 2
    assert f"another process works on {run.name}: waiting for it" in capsys.readouterr().err


# --- status ---------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, Path, Result]:
    """A sweep in which one run explodes, one is refused and two are done."""
    arms = {
        "a": {},
        "explodes": EXPLODES,
        "wide": {"lora": {"rank": 65}},
        "b": {"optimizer": {"name": "sgd"}},
    }
    path = write_sweep(tmp_path, 4, {}, arms=arms)
    return tmp_path, path, command("sweep", path, "--quiet")


def table(text: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in text.splitlines()[1:] if "-b4-s0-" in line}


def test_status_of_a_file_and_of_a_store(mixed: tuple[Path, Path, Result]) -> None:
    folder, path, first = mixed
    assert first.code == 1
    document = json.loads(command("sweep", "status", path, "--json").out)
    assert document["counts"] == {"failed": 2, "done": 2}
    assert [run["state"] for run in document["runs"]] == ["done", "failed", "failed", "done"]
    reasons = [run["reason"] for run in document["runs"]]
    assert (reasons[0], reasons[3]) == (None, None)
    assert "are not finite" in reasons[1]
    assert "lora.rank 65 is larger than" in reasons[2]
    for store in (folder / "runs", folder / "runs" / "x"):
        below = json.loads(command("sweep", "status", store, "--json").out)
        assert below["counts"] == document["counts"]
        assert {run["run"]: run for run in below["runs"]} == {
            run["run"]: run for run in document["runs"]
        }
    text = command("sweep", "status", path).out
    assert sorted(table(text).values()) == ["done", "done", "failed", "failed"]
    assert "4 runs: 2 failed, 2 done" in text
    assert "lora.rank 65 is larger than" in text
    watched = command("sweep", "status", path, "--watch")
    assert watched.code == 0
    assert "4 runs: 2 failed, 2 done" in watched.out


def test_what_is_not_begun_is_queued(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, 2, {"train.seed": [0, 1]})
    document = json.loads(command("sweep", "status", path, "--json").out)
    assert document["counts"] == {"queued": 2}
    assert not (tmp_path / "runs").exists()  # looking writes nothing


def test_a_run_under_way_is_running_and_a_killed_one_interrupted(tmp_path: Path) -> None:
    loaded = load_sweep(str(write_sweep(tmp_path, 2, {"train.seed": [0]})))
    run, _ = locate(loaded.configs[0])
    execute(loaded, quiet=True)
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert [row.state for row in of_store(tmp_path / "runs")] == ["interrupted"]
    with run.locked():
        assert [row.state for row in of_store(tmp_path / "runs")] == ["running"]


def test_retry_tries_what_failed_and_leaves_the_rest(
    mixed: tuple[Path, Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path, _ = mixed
    before, tried = stamps(folder), []
    begun = training.train
    monkeypatch.setattr(
        training,
        "train",
        lambda config, *more: (tried.append(config.optimizer.name), begun(config, *more))[1],
    )
    done = command("sweep", "retry", path, "--failed", "--quiet")
    assert done.code == 1
    assert sorted(tried) == ["adamw", "sgd"]  # the wide one and the one that explodes
    assert "2 runs: 0 trained, 0 done before, 2 failed" in done.out
    assert stamps(folder) == before
    values = yaml.safe_load(path.read_text())
    values["arms"].pop("wide")
    values["arms"].pop("explodes")
    path.write_text(yaml.safe_dump(values))
    assert "no run of" in command("sweep", "retry", path, "--failed").out


def test_retry_leaves_queued_runs_alone(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, 2, {"train.seed": [0, 1]})
    done = command("sweep", "retry", path, "--failed", "--interrupted")
    assert (done.code, runs(tmp_path)) == (0, {})
    assert "nothing to do" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nope"], "is neither a file nor a preset"),
        (["retry", "nope", "--failed"], "is neither a file nor a preset"),
        (
            ["sweep.yaml", "--address", "10.0.0.1:6379"],
            "--address is for --executor ray, and this one is local: leave it out, or choose that",
        ),
        (
            ["sweep.yaml", "--partition", "x"],
            "--partition is for --executor slurm, and this one is local",
        ),
        (
            ["sweep.yaml", "--slurm-set", "a=1", "--executor", "ray"],
            "--slurm-set is for --executor slurm, and this one is ray",
        ),
        (
            ["sweep.yaml", "--gpus-per-run", "1"],
            "--gpus-per-run is for --executor ray or slurm, and this one is local",
        ),
        (
            ["sweep.yaml", "--gpus-per-run", "0.5", "--executor", "slurm"],
            "--gpus-per-run 0.5 is refused: Slurm assigns whole cards",
        ),
        (
            ["sweep.yaml", "--gpus-per-run", "1.5", "--executor", "ray"],
            "--gpus-per-run 1.5 is refused",
        ),
        (["status", "."], "holds no run and no sweep"),
        (
            ["status", ".", "--set", "train.steps=3"],
            "is a folder, which takes no --set, --seeds or --output",
        ),
    ],
)
def test_mistakes_are_refused_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path, 2)
    done = command("sweep", *arguments)
    assert done.code == 2
    assert message in done.sentence
    assert not (tmp_path / "runs").exists()


def test_retry_wants_to_know_what(tmp_path: Path) -> None:
    done = command("sweep", "retry", write_sweep(tmp_path, 2))
    assert done.code == 2
    assert "--failed, --interrupted, or both" in done.err


# --- the ledger -----------------------------------------------------------------------------------


def test_a_ledger_outlives_half_a_line_and_two_writers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x", (), ("train", "judge"), {})
    with Writer(ledger) as first, Writer(ledger) as second:
        assert ledger.driven
        first.tell(Event("a", "train", "failed", "no \ud800 luck"))
        second.tell(Event("b", "train", "done"))
        first.tell(Event("a", "train", "failed", "no \ud800 luck"))
    assert not ledger.driven
    lines = ledger.path.with_suffix(".jsonl")
    content = lines.read_bytes()
    assert content.count(b"\n") == 2
    lines.write_bytes(content[:-5])
    assert ledgers([tmp_path / "x"]) == [ledger]
    assert set(ledger.events()) == {("a", "train")}
    with Writer(ledger) as again:
        again.tell(Event("b", "train", "done"))
    assert ledger.events()["b", "train"].state == "done"


def test_a_damaged_ledger_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, 2, {"train.seed": [0]})
    assert command("sweep", path, "--quiet").code == 0
    (file,) = (tmp_path / "runs" / "x" / "sweeps").glob("*.json")
    for text in ("{}", '{"runs": [], "stages": ["dance"], "asked": {}}', "["):
        file.write_text(text)
        done = command("sweep", "status", tmp_path / "runs")
        assert done.code == 2
        assert done.sentence.endswith("remove it, and run the sweep again")
