"""Local executors: the same bytes in one process or several, whatever is killed.

Each worker loads the base once, and none outlives its driver.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from evilspectra.errors import Interrupted
from evilspectra.executors.local import (
    InThisProcess,
    Workers,
    base_bytes,
    free_bytes,
    suitable,
    workers,
)
from evilspectra.executors.stages import Report, Task
from evilspectra.store.run import Status
from evilspectra.sweeps.file import load_sweep
from evilspectra.sweeps.run import execute
from tests.support.commands import process
from tests.support.tiny_sweeps import (
    adapters,
    alive,
    descendants,
    kill,
    runs,
    script,
    stamps,
    sweep_process,
    until,
    write_sweep,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def trained(folder: Path, steps: int, axes: dict[str, list[Any]] | None = None) -> dict[str, str]:
    """The adapters of an undisturbed sweep in this process."""
    outcomes = execute(load_sweep(str(write_sweep(folder, steps, axes))), quiet=True)
    assert all(outcome.failed is None for outcome in outcomes)
    return adapters(folder)


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)  # twenty processes are started, of which each imports torch
def test_a_sweep_whose_driver_and_workers_are_killed_ten_times_ends_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    """Kills come after random amounts of work, measured in saved states and finished runs."""
    undisturbed = trained(tmp_path / "undisturbed", 40)
    assert len(undisturbed) == 12
    folder = tmp_path / "disturbed"
    path, moments = write_sweep(folder, 40), random.Random(11)
    finished: dict[str, tuple[int, int]] = {}
    left: list[int] = []
    kills = {"driver": 0, "worker": 0}
    running = sweep_process(path, "--workers", 2)

    def work_done() -> int:
        """Grows with every saved state and every finished run."""
        return sum(
            11 if run.status().state == "done" else (run.status().step or 0) // 4
            for run in runs(folder).values()
        )

    def ours() -> list[int]:
        return [pid for pid in descendants(running.pid) if b"spawn_main" in command_line(pid)]

    for number in range(10):
        goal = work_done() + moments.randint(1, 10)
        until(
            lambda goal=goal, driver=running: work_done() >= goal or driver.poll() is not None, 240
        )
        if running.poll() is not None:
            break
        finished |= {name: stamp for name, stamp in stamps(folder).items() if name not in finished}
        victims = ours()
        if number % 2 and victims:
            kill(moments.choice(victims))
            kills["worker"] += 1
        else:
            left += descendants(running.pid)
            running.kill()
            running.communicate()
            kills["driver"] += 1
            running = sweep_process(path, "--workers", 2)
    out, err = running.communicate(timeout=600)
    assert sum(kills.values()) == 10, kills
    assert min(kills.values()) >= 3
    assert running.returncode == 0, (out, err)
    assert adapters(folder) == undisturbed
    assert {name: stamp for name, stamp in stamps(folder).items() if name in finished} == finished
    assert len(finished) >= 3, "the kills fell too early to show that nothing is trained twice"
    until(lambda: not any(alive(pid) for pid in left))


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_workers_notice_that_their_driver_was_killed_and_save_their_state(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, 100_000, {"train.seed": [0, 1]})
    running = sweep_process(
        path, "--workers", 2, "--set", "train.resume_every=1000000", "--set", "monitor.every=0"
    )
    until(
        lambda: (
            len([run for run in runs(tmp_path).values() if run.status().state == "running"]) == 2
        )
    )
    below = descendants(running.pid)
    assert len(below) >= 2
    time.sleep(0.5)
    running.kill()
    running.communicate()
    until(lambda: not any(alive(pid) for pid in below), 60)
    for run in runs(tmp_path).values():
        assert run.status().state == "interrupted"
        # which is written at the millionth step, or when it is asked to stop
        assert run.resume_file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_saves_what_its_workers_do(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = write_sweep(tmp_path, 100_000, {"train.seed": [0, 1]})
    running = sweep_process(
        path, "--workers", 2, "--set", "train.resume_every=1000000", "--set", "monitor.every=0"
    )
    until(
        lambda: (
            len([run for run in runs(tmp_path).values() if run.status().state == "running"]) == 2
        )
    )
    below = descendants(running.pid)
    time.sleep(0.5)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err == (
        "evilspectra: interrupted; the runs under way are saved: run the same command again "
        "to resume them\n"
    )
    until(lambda: not any(alive(pid) for pid in below))
    assert all(
        run.resume_file.exists() and run.status().state == "interrupted"
        for run in runs(tmp_path).values()
    )


@pytest.mark.slow
def test_two_drivers_of_one_sweep_share_its_runs_and_train_none_twice(tmp_path: Path) -> None:
    axes = {"train.seed": [0, 1, 2, 3]}
    undisturbed = trained(tmp_path / "undisturbed", 30, axes)
    path = write_sweep(tmp_path / "shared", 30, axes)
    both = [
        process("sweep", path, "--json", folder=path.parent, OMP_NUM_THREADS="1") for _ in range(2)
    ]
    outputs = [driver.communicate(timeout=240) for driver in both]
    assert [driver.returncode for driver in both] == [0, 0], outputs
    assert adapters(tmp_path / "shared") == undisturbed
    # the line with which training begins
    begun = sum(err.count("rows to train on") for _, err in outputs)
    assert begun == 4, outputs


# --- workers --------------------------------------------------------------------------------------


class Recorder:
    """Passes an executor's reports on and records them."""

    def __init__(self, executor: Any) -> None:
        self.executor, self.reports, self.location = executor, list[Report](), ""

    def run(self, *arguments: Any) -> Any:
        for report in self.executor.run(*arguments):
            self.reports.append(report)
            yield report


@pytest.mark.slow
def test_each_worker_loads_the_base_once_and_a_failed_run_stops_neither_it_nor_the_others(
    tmp_path: Path,
) -> None:
    axes: dict[str, list[Any]] = {"lora.rank": [4, 65], "train.seed": [0, 1, 2]}
    here, there = Recorder(InThisProcess()), Recorder(Workers(2))
    for name, executor in (("here", here), ("there", there)):
        outcomes = execute(
            load_sweep(str(write_sweep(tmp_path / name, 4, axes))), executor, quiet=True
        )
        assert [outcome.failed is None for outcome in outcomes] == [True] * 3 + [False] * 3
        assert all("lora.rank 65 is larger than" in str(outcome.failed) for outcome in outcomes[3:])
        assert [report.loads for report in executor.reports] == [1] * 6
    assert adapters(tmp_path / "here") == adapters(tmp_path / "there")
    assert len(adapters(tmp_path / "here")) == 3


class Mortal:
    """An executor whose workers die `deaths` times on the first run."""

    location = "nowhere"

    def __init__(self, deaths: int) -> None:
        self.deaths = deaths
        self.begun: list[int] = []

    def run(self, tasks: Any, started: Any) -> Any:
        for task in tasks:
            started(task)
            self.begun.append(task.number)
            lost = (
                "its worker was ended by signal 9"
                if task.number == 0 and self.begun.count(0) <= self.deaths
                else None
            )
            yield Report(task.number, Status("failed" if lost else "done"), lost=lost)


def test_a_run_whose_worker_dies_is_begun_three_times_and_then_failed(tmp_path: Path) -> None:
    loaded = load_sweep(str(write_sweep(tmp_path, 2, {"train.seed": [0, 1]})))
    for deaths, begun in ((0, [0, 1]), (2, [0, 1, 0, 0]), (9, [0, 1, 0, 0])):
        executor = Mortal(deaths)
        announced: list[int] = []
        outcomes = execute(
            loaded,
            executor,
            quiet=True,
            on_start=lambda number, config, announced=announced: announced.append(number),
        )
        assert executor.begun == begun
        assert announced == [0, 1]
        assert [outcome.failed for outcome in outcomes] == [
            None if deaths < 3 else "its worker was ended by signal 9",
            None,
        ]


def test_only_the_runs_that_are_meant(tmp_path: Path) -> None:
    loaded = load_sweep(str(write_sweep(tmp_path, 2, {"train.seed": [0, 1]})))
    executor = Mortal(0)
    from evilspectra.training.identity import locate

    outcomes = execute(loaded, executor, quiet=True, only={locate(loaded.configs[1])[0].name})
    assert executor.begun == [1]
    assert len(outcomes) == 1


# --- how many -------------------------------------------------------------------------------------


def test_how_many_workers_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evilspectra.executors import local

    tasks = [
        Task(number, config)
        for number, config in enumerate(
            load_sweep(str(write_sweep(tmp_path, 2, {"train.seed": list(range(8))}))).configs
        )
    ]
    # the tiny model is trained faster than a process starts
    assert isinstance(suitable(tasks), InThisProcess)
    monkeypatch.setattr(local, "base_bytes", lambda base: 1 << 30)
    monkeypatch.setattr(local, "_cards", lambda: 0)
    monkeypatch.setattr(local.os, "cpu_count", lambda: 64)
    for free, count in ((64 << 30, 8), (10 << 30, 3), (3 << 30, 1), (0, 1)):
        monkeypatch.setattr(local, "free_bytes", lambda free=free: free)
        executor = suitable(tasks)
        assert (executor.count if isinstance(executor, Workers) else 1) == count
    monkeypatch.setattr(local, "free_bytes", lambda: 64 << 30)
    monkeypatch.setattr(local.os, "cpu_count", lambda: 4)
    assert suitable(tasks) == Workers(4, 0)
    monkeypatch.setattr(local, "_cards", lambda: 2)
    assert suitable(tasks) == Workers(2, 2)


def test_as_many_workers_as_were_asked_for() -> None:
    assert workers(1) == InThisProcess()
    assert workers(3).location == "in 3 workers"


def test_memory_is_known() -> None:
    from evilspectra.config.loading import build
    from evilspectra.model.base import resolve

    assert free_bytes() > 1 << 20
    assert base_bytes(resolve(build({"model": {"base": "tiny-random"}}).model)) == 0


def test_a_stop_in_the_middle_is_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_sweep(str(write_sweep(tmp_path, 2, {"train.seed": [0, 1]})))

    def stopped(task: Task, base: object) -> Report:
        raise Interrupted("stopped here")

    monkeypatch.setattr("evilspectra.executors.local.carry_out", stopped)
    with pytest.raises(Interrupted, match="stopped here"):
        execute(loaded, quiet=True)


def test_the_package_s_executors_import_no_engine() -> None:
    done = script(
        (
            "import evilspectra.executors.ray, evilspectra.executors.slurm, evilspectra.cli.sweep, "
            "sys; sys.exit(bool({'ray', 'submitit', 'torch'} & set(sys.modules)))"
        ),
        Path.cwd(),
    )
    assert done.wait(60) == 0
