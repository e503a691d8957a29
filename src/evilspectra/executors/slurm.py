"""On a Slurm cluster, through submitit (the extra `slurm`): arrays of jobs, each of which carries
out a run, or several one after the other.

The store must be a folder that every node sees, on a file system whose locks hold between nodes.
Jobs outlive the command that submitted them: the same command, given again, finds what they have
done and leaves alone what they are at. A job that reaches its time limit, or is preempted, is put
into the queue again and goes on from its last saved state.
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

#: Jobs in one array at most: Slurm's own limit where a cluster sets no other.
_ARRAY = 1000
#: Seconds between looks at the jobs.
_LOOK = {"slurm": 5.0, "local": 0.2}


class Job:
    """What a job does: its tasks, one after the other, with the base kept."""

    def __call__(self, tasks: Sequence[Task]) -> list[Report]:
        from evilspectra.model.reuse import Loaded

        loaded = Loaded()
        return [carry_out_elsewhere(task, loaded) for task in tasks]

    def checkpoint(self, tasks: Sequence[Task]) -> Any:
        """Before its time is up: the same again, which skips what is done."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, tasks)


@dataclass(frozen=True)
class OnSlurm:
    """`folder`: where submitit keeps what it sends and the jobs' logs; `at_once`: jobs under way at
    most.

    `cluster`: "local" carries the jobs out on this machine, in processes of submitit's, all at
    once.
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
                f"--gpus-per-run {self.cards:g} is refused: Slurm gives whole cards; Ray can "
                "share one"
            )

    @property
    def location(self) -> str:
        return (
            "on the Slurm cluster"
            if self.cluster == "slurm"
            else "through submitit on this machine"
        )

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
                under_way = [one for one in under_way if one not in ended]
                for job, group in ended:
                    yield from _reports(job, group)
                if under_way and not ended:
                    time.sleep(_LOOK[self.cluster])
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {len(under_way)} jobs are left to the cluster (scancel ends them): "
                "the same command, given again, takes up what they did"
            ) from None

    def _executor(self, threads: int) -> Any:
        """submitit's executor, told what a job needs.

        Raises:
            BadInput: submitit is not installed, there is no Slurm here, or a parameter that
                submitit does not know.
        """
        try:
            import submitit
        except ImportError:
            raise BadInput(
                "--executor slurm needs submitit: pip install 'evilspectra[slurm]', or take "
                "another executor"
            ) from None
        self.folder.mkdir(parents=True, exist_ok=True)
        asked: dict[str, Any] = {"timeout_min": round(60 * self.hours), "name": "evilspectra"}
        if self.cluster == "slurm":
            at_once = {"slurm_array_parallelism": self.at_once} if self.at_once else {}
            asked |= {
                "cpus_per_task": threads,
                "gpus_per_node": int(self.cards),
                **at_once,
                **{f"slurm_{name}": value for name, value in self.settings.items()},
            }
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(**asked)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise BadInput(
                f"submitit refuses this ({first_line(error)}): run it where sbatch is, and give "
                "parameters that submitit knows"
            ) from None
        return executor


def slurm_settings(given: Sequence[str]) -> dict[str, Any]:
    """Further parameters of submitit's Slurm executor, from `NAME=VALUE`.

    >>> slurm_settings(["account=x", "mem_gb=64"])
    {'account': 'x', 'mem_gb': 64}
    """
    return assignments(given)


def _reports(job: Any, group: Sequence[Task]) -> list[Report]:
    """A report for each task of a job that ended, whichever way."""
    try:
        return job.results()[0]
    except EvilspectraError as error:
        return [Report(task.number, Status("failed", str(error))) for task in group]
    except (
        Exception
    ) as error:  # submitit raises a kind of its own for each way in which a job can end
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
