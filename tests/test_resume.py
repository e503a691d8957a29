"""A run that is killed at any moment and started again ends with the same bytes as any other."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.errors import Interrupted
from evilspectra.store.records import TABLES
from evilspectra.store.run import RunFolder
from evilspectra.training.loop import TrainingRun
from evilspectra.training.train import train
from tests.support.tiny_runs import tiny_config

SECTIONS = {
    "optimizer": {"name": "adamw", "lr": 3e-3},
    "flatness": {"weight": 0.1},
    "lora": {"dropout": 0.1},
    "monitor": {"every": 4},
    "train": {"steps": 50, "checkpoints": "log:5", "resume_every": 3},
}


def same_results(a: RunFolder, b: RunFolder) -> None:
    """Both runs have the same files, equal bytes in adapters, and equal records but for times."""
    files = [
        sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())
        for run in (a, b)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        if name.endswith((".safetensors", "adapter_config.json")):
            assert (a.path / name).read_bytes() == (b.path / name).read_bytes(), name
    for table in TABLES:
        first, second = (
            run.read(table).drop(columns=["seconds"], errors="ignore") for run in (a, b)
        )
        pd.testing.assert_frame_equal(first, second, check_exact=True)


def killed_in_child(config: sections.Config, steps: int, delay: float) -> bool:
    """Trains in a forked process, in which everything is imported; returns whether it was killed.

    It is killed `delay` seconds after its `steps`-th step began (0: after its start).
    """
    pid = os.fork()
    if pid == 0:
        begun, before = 0, TrainingRun.advance

        def counted(training):
            nonlocal begun
            begun += 1
            if begun == steps:
                signal.setitimer(signal.ITIMER_REAL, delay)
            return before(training)

        try:
            # ends the process at once, whatever it is doing; Python does not learn of it
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            TrainingRun.advance = counted
            if not steps:
                signal.setitimer(signal.ITIMER_REAL, delay)
            train(config)
        finally:
            os._exit(0)
    _, how = os.waitpid(pid, 0)
    return os.WIFSIGNALED(how) and os.WTERMSIG(how) == signal.SIGALRM


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork to start processes quickly")
def test_killed_at_ten_random_moments(tmp_path):
    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    undisturbed = train(
        tiny_config(tmp_path, **SECTIONS, output={"folder": str(tmp_path / "undisturbed")})
    )
    each = undisturbed.read("steps")["seconds"].median()
    config = tiny_config(tmp_path, **SECTIONS)
    moments, kills, steps_seen = random.Random(7), 0, set()
    folder = tmp_path / "runs" / "test" / undisturbed.name
    for number in range(10):
        after = 0 if number in (0, 5) else moments.randint(3, 7)
        if not killed_in_child(config, after, moments.uniform(0.01, 1.5) * each):
            break
        kills += 1
        if (folder / "status.json").exists():
            status = RunFolder(folder).status()
            assert status.state in ("interrupted", "done", "queued")
            steps_seen.add(status.step)
    assert kills >= 4
    assert len(steps_seen) >= 3, "the kills fell too early to test anything"
    run = train(config)
    assert run.status().state == "done"
    assert run.path == folder
    same_results(undisturbed, run)


def signal_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Sends this process a signal when the step begins."""
    before = TrainingRun.advance

    def interrupted(training):
        if training.step + 1 == step:
            os.kill(os.getpid(), number)
        return before(training)

    monkeypatch.setattr(TrainingRun, "advance", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "lion", "muon"])
def test_stopped_by_a_signal_in_the_middle(tmp_path, monkeypatch, optimizer):
    sections = configs.merge(SECTIONS, {"optimizer": {"name": optimizer}, "train": {"steps": 20}})
    undisturbed = train(
        tiny_config(tmp_path, **sections, output={"folder": str(tmp_path / "undisturbed")})
    )
    config = tiny_config(tmp_path, **sections)
    signal_in_step(monkeypatch, 8, signal.SIGINT)
    with pytest.raises(
        Interrupted,
        match=(
            "interrupted after step 8 of 20; the state is saved, run the same command again to go "
            "on"
        ),
    ):
        train(config)
    monkeypatch.undo()
    same_results(undisturbed, train(config))


def test_a_signal_in_the_last_step_stops_what_comes_after(tmp_path, monkeypatch):
    signal_in_step(monkeypatch, 5, signal.SIGTERM)
    config = tiny_config(tmp_path, train={"steps": 5})
    with pytest.raises(Interrupted, match="interrupted just as this run was done"):
        train(config)
    assert train(config).status().state == "done"


@pytest.mark.slow
def test_state_of_a_finished_step_survives_a_crash_while_saving(tmp_path, monkeypatch):
    """The resume state is replaced at once: a failure while writing it leaves the one before."""
    config = tiny_config(tmp_path, **SECTIONS)
    undisturbed = train(
        configs.build(
            config.model_dump()
            | {"output": {"folder": str(tmp_path / "undisturbed"), "experiment": "test"}}
        )
    )
    save, calls = torch.save, []

    def half_written(state, path):
        calls.append(path)
        save(state, path)
        if len(calls) == 4:
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise MemoryError

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(MemoryError):
        train(config)
    monkeypatch.undo()
    same_results(undisturbed, train(config))


@pytest.mark.slow
def test_command_killed_in_the_middle_says_so_and_goes_on(tmp_path):
    config = tiny_config(tmp_path, train={"steps": 400, "resume_every": 5})
    file = tmp_path / "config.yaml"
    file.write_text(configs.dump(config))
    command = [
        sys.executable,
        "-c",
        "from evilspectra.cli.main import main; main()",
        "train",
        str(file),
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    states = tmp_path / "runs" / "test"
    deadline = time.monotonic() + 120
    while not list(states.glob("*/resume.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    (folder,) = states.iterdir()
    assert RunFolder(folder).status().state == "interrupted"
    again = subprocess.run(
        [*command, "--set", "train.steps=400"], capture_output=True, text=True, check=True
    )
    assert "resumes after step" in again.stderr
    assert RunFolder(folder).status().state == "done"
