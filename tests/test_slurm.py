"""Jobs through submitit, whose local executor carries them out on this machine.

The driver is killed and the sweep submitted again, with the same bytes in the end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from evilspectra.errors import BadInput
from evilspectra.executors.slurm import Job, OnSlurm
from evilspectra.executors.stages import Report, Task
from evilspectra.store.run import Status
from evilspectra.sweeps.file import load_sweep
from evilspectra.sweeps.run import execute
from tests.support.commands import command
from tests.support.tiny_sweeps import adapters, alive, runs, script, stamps, until, write_sweep

pytest.importorskip("submitit")
FOUR: dict[str, list[Any]] = {"train.seed": [0, 1, 2, 3]}

DRIVER = """
import sys
from pathlib import Path
from evilspectra.sweeps.run import execute
from evilspectra.executors.slurm import OnSlurm
from evilspectra.sweeps.file import load_sweep

class Heard(OnSlurm):
    def run(self, *arguments):
        for report in super().run(*arguments):
            state = "trained" if report.trained and not report.busy else "skipped"
            print(state, "loads", report.loads, flush=True)
            yield report

executor = Heard(Path({jobs!r}), runs_per_job=2, cluster="local")
outcomes = execute(load_sweep({path!r}), executor, quiet=True)
sys.exit(any(outcome.failed for outcome in outcomes))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def jobs_below(folder: Path) -> list[int]:
    """The processes that submitit started for a folder."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"submitit" in line and str(folder).encode() in line:
            pids.append(int(path.parent.name))
    return pids


@pytest.mark.slow
def test_the_driver_is_killed_and_the_sweep_submitted_again(tmp_path: Path) -> None:
    """The first driver's jobs live on, as on a cluster, and the second driver leaves them alone."""
    execute(load_sweep(str(write_sweep(tmp_path / "local", 60, FOUR))), quiet=True)
    undisturbed = adapters(tmp_path / "local")
    folder = tmp_path / "slurm"
    path, jobs = write_sweep(folder, 60, FOUR), folder / "jobs"
    code = DRIVER.format(path=str(path), jobs=str(jobs))
    first = script(code, tmp_path)
    until(
        lambda: (
            any(run.resume_file.exists() for run in runs(folder).values())
            or first.poll() is not None
        )
    )
    assert first.poll() is None, first.communicate()
    first.kill()
    first.communicate()
    finished = stamps(folder)
    second = script(code, tmp_path)
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, (out, err)
    assert adapters(folder) == undisturbed
    assert len(undisturbed) == 4
    assert {name: stamp for name, stamp in stamps(folder).items() if name in finished} == finished
    # two runs of a job load the base once
    assert {line.split()[-1] for line in out.splitlines() if line.startswith("trained")} <= {"1"}
    until(lambda: not any(alive(pid) for pid in jobs_below(folder)))
    trained = sum(
        run.read("steps")["step"].tolist() == list(range(1, 61)) for run in runs(folder).values()
    )
    assert trained == 4


@pytest.mark.slow
def test_a_job_that_fails_is_a_report_and_one_that_is_killed_is_lost(tmp_path: Path) -> None:
    tasks = [
        Task(number, config)
        for number, config in enumerate(
            load_sweep(str(write_sweep(tmp_path, 4, {"lora.rank": [65]}))).configs
        )
    ]
    (report,) = OnSlurm(tmp_path / "jobs", cluster="local").run(tasks, lambda task: None)
    assert report.status.state == "failed"
    assert "lora.rank 65 is larger than" in str(report.status.reason)

    class Killed(Job):
        def __call__(self, tasks: Any) -> list[Report]:
            import os

            os._exit(9)

    import evilspectra.executors.slurm as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Job", Killed)
        (report,) = OnSlurm(tmp_path / "jobs", cluster="local").run(tasks, lambda task: None)
    assert report.lost is not None
    assert "ended without a result" in report.lost
    assert "its log is" in report.lost


def test_a_job_whose_time_is_up_is_submitted_again_with_the_same_tasks(tmp_path: Path) -> None:
    tasks = [Task(0, load_sweep(str(write_sweep(tmp_path, 2, {"train.seed": [0]}))).configs[0])]
    again = Job().checkpoint(tasks)
    assert again.args == (tasks,)
    assert isinstance(again.function, Job)
    (report,) = again.function(*again.args)
    assert report == Report(0, Status("done", None, 2, 2), trained=True, loads=1)


def test_without_slurm_or_submitit_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(tmp_path, 2, {"train.seed": [0]})
    done = command("sweep", path, "--executor", "slurm", "--partition", "x", "--quiet")
    assert done.code == 2
    assert done.sentence.startswith("submitit refuses this (")
    assert done.sentence.endswith(
        "run it where sbatch is installed, and give parameters that submitit knows"
    )
    assert runs(tmp_path) == {}
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = command("sweep", path, "--executor", "slurm", "--quiet")
    assert (done.code, done.sentence) == (
        2,
        (
            "--executor slurm needs submitit: pip install 'evilspectra[slurm]', or choose another "
            "executor"
        ),
    )


def test_whole_cards_alone(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--gpus-per-run 0\.5 is refused"):
        OnSlurm(tmp_path, cards=0.5)
