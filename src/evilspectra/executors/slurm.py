"""Runs on a Slurm cluster, as arrays of jobs through submitit (the extra `slurm`).

A job executes one run, or several one after the other.

The store must be a folder that every node sees, on a file system whose locks work across nodes.
Jobs outlive the command that submitted them: the same command, given again, finds what they have
done and leaves alone the runs that they hold. A job that reaches its time limit, or is preempted,
returns to the queue and resumes from its last saved state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evilspectra.config.yaml_files import assignments
from evilspectra.errors import BadInput, EvilspectraError, Interrupted, first_line
from evilspectra.executors.stages import Report, Task, carry_out_elsewhere
from evilspectra.store.run import Status

#: The most jobs in one array: Slurm's default limit.
_ARRAY = 1000
#: Seconds between checks of the jobs.
_LOOK = {"slurm": 5.0, "local": 0.2}


class Job:
    """The function of a job: carries its tasks out one after the other, keeping the base."""

    def __call__(self, tasks: Sequence[Task]) -> list[Report]:
        from evilspectra.model.reuse import Loaded

        loaded = Loaded()
        return [carry_out_elsewhere(task, loaded) for task in tasks]

    def checkpoint(self, tasks: Sequence[Task]) -> Any:
        """Submits the same tasks again before the time is up; what is done is skipped."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, tasks)


@dataclass(frozen=True)
class OnSlurm:
    """Carries runs out in Slurm jobs.

    `folder`: where submitit keeps what it sends and the jobs' logs; `at_once`: the most jobs under
    way.

    `cluster`: "local" carries the jobs out on this machine, in processes that submitit starts, all
    at once.
    """

    folder: Path
    cards: float = 0.0
    at_once: int | None = None
    runs_per_job: int = 1
    hours: float = 24.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        if self.cards != int(self.cards):
            raise BadInput(
                f"--gpus-per-run {self.cards:g} is refused: Slurm assigns whole cards; give a "
                "whole number, or share a card with --executor ray"
            )

    @property
    def location(self) -> str:
        if self.cluster == "slurm":
            return "on the Slurm cluster"
        return "through submitit on this machine"

    def run(self, tasks: Sequence[Task], started: Callable[[Task], object]) -> Iterator[Report]:
        executor = self._executor(max(task.config.train.threads for task in tasks))
        groups = [
            list(tasks[start : start + self.runs_per_job])
            for start in range(0, len(tasks), self.runs_per_job)
        ]
        under_way: list[tuple[Any, list[Task]]] = []
        try:
            for start in range(0, len(groups), _ARRAY):
                part = groups[start : start + _ARRAY]
                under_way += zip(executor.map_array(Job(), part), part, strict=True)
            for task in tasks:
                started(task)
            while under_way:
                ended = [(job, group) for job, group in under_way if job.done()]
                under_way = [pair for pair in under_way if pair not in ended]
                for job, group in ended:
                    yield from _reports(job, group)
                if under_way and not ended:
                    time.sleep(_LOOK[self.cluster])
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {len(under_way)} jobs are left to the cluster (scancel ends them): "
                "run the same command again to take up their results"
            ) from None

    def _executor(self, threads: int) -> Any:
        """Builds submitit's executor with the resources that a job needs.

        Raises:
            BadInput: submitit is not installed, there is no Slurm here, or submitit does not know a
                parameter.
        """
        try:
            import submitit
        except ImportError:
            raise BadInput(
                "--executor slurm needs submitit: pip install 'evilspectra[slurm]', or choose "
                "another executor"
            ) from None
        self.folder.mkdir(parents=True, exist_ok=True)
        parameters: dict[str, Any] = {"timeout_min": round(60 * self.hours), "name": "evilspectra"}
        if self.cluster == "slurm":
            at_once = {"slurm_array_parallelism": self.at_once} if self.at_once else {}
            parameters |= {
                "cpus_per_task": threads,
                "gpus_per_node": int(self.cards),
                **at_once,
                **{f"slurm_{name}": value for name, value in self.settings.items()},
            }
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(**parameters)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise BadInput(
                f"submitit refuses this ({first_line(error)}): run it where sbatch is installed, "
                "and give parameters that submitit knows"
            ) from None
        return executor


def slurm_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Parses further parameters of submitit's Slurm executor from `NAME=VALUE`.

    >>> slurm_settings(["account=x", "mem_gb=64"])
    {'account': 'x', 'mem_gb': 64}
    """
    return assignments(texts)


def _reports(job: Any, group: Sequence[Task]) -> list[Report]:
    """The reports of the tasks of a job that ended, however it ended."""
    try:
        return job.results()[0]
    except EvilspectraError as error:
        return [Report(task.number, Status("failed", str(error))) for task in group]
    except Exception as error:  # submitit has a class for each way in which a job can end
        return [
            Report(
                task.number,
                Status("failed"),
                lost=(
                    f"job {job.job_id} ended without a result ({first_line(error)}): its log is "
                    f"{job.paths.stderr}"
                ),
            )
            for task in group
        ]
