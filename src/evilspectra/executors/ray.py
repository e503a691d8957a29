"""On a Ray cluster (the extra `ray`): one Ray task for each run.

Ray schedules, places tasks on graphics cards, and repeats what a lost node had.

The store must be a folder that every node sees. A process of Ray's that has carried out a run keeps
the base for the next one it is given. Without an address a cluster is started on this machine
alone: it listens on 127.0.0.1, has no dashboard, reports no usage, and ends with the sweep.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evilspectra.errors import BadInput, EvilspectraError, Interrupted, first_line
from evilspectra.executors.stages import Report, Task, carry_out_elsewhere
from evilspectra.store.run import Status

if TYPE_CHECKING:
    from evilspectra.model.reuse import Loaded

#: How often Ray begins a task again whose node or process was lost.
RETRIES = 3
#: Seconds between looks at a request to stop.
_LOOK = 0.5
#: Without it Ray takes 127.0.0.1 for the machine's address in its network, listens there, and finds
#: no cluster that listens on 127.0.0.1. Read on import.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
#: The base that this process of Ray's has.
_kept: list[Loaded] = []


@dataclass(frozen=True)
class OnRay:
    """`address`: of a cluster; `cards`: graphics cards for each run, or a part of one; `at_once`:
    runs under way at most.
    """

    address: str | None = None
    cards: float = 0.0
    at_once: int | None = None
    quiet: bool = True

    def __post_init__(self) -> None:
        if self.cards > 1 and self.cards != int(self.cards):
            raise BadInput(
                f"--gpus-per-run {self.cards:g} is refused: Ray takes whole numbers, or a part of "
                "one card such as 0.5"
            )

    @property
    def location(self) -> str:
        return (
            f"on the Ray cluster {self.address}"
            if self.address
            else "on a Ray cluster of this machine"
        )

    def run(self, tasks: Sequence[Task], started: Callable[[Task], object]) -> Iterator[Report]:
        with self._connected(max(task.config.train.threads for task in tasks)) as ray:
            waiting, under_way = list(tasks), dict[Any, Task]()
            try:
                while waiting or under_way:
                    while waiting and (self.at_once is None or len(under_way) < self.at_once):
                        task = waiting.pop(0)
                        asked = ray.remote(
                            num_cpus=task.config.train.threads,
                            num_gpus=self.cards,
                            max_retries=RETRIES,
                        )(_work)
                        under_way[asked.remote(task)] = task
                        started(task)
                    done, _ = ray.wait(list(under_way), num_returns=1, timeout=_LOOK)
                    for one in done:
                        yield _report(ray, one, under_way.pop(one))
            except KeyboardInterrupt:
                _cancel(ray, list(under_way))
                raise Interrupted(
                    "interrupted; what was under way is saved, run the same command again to go on"
                ) from None

    @contextmanager
    def _connected(self, threads: int) -> Iterator[Any]:
        """Ray, connected to the cluster; one of its own has room for a run of so many threads at
        least.

        Raises:
            BadInput: it is not installed, there is no cluster at the address, or a cluster of its
                own has not the cards that a run is to get.
        """
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if self.address is None or self.address.startswith(("127.", "localhost")):
            os.environ.update(_LOOPBACK)
        try:
            import ray
        except ImportError:
            raise BadInput(
                "--executor ray needs Ray: pip install 'evilspectra[ray]', or take another executor"
            ) from None
        if ray.is_initialized():  # the caller's own connection, which stays the caller's
            yield ray
            return
        own = {
            "address": "local",
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "num_cpus": max(threads, os.cpu_count() or 1),
        }
        here: dict[str, Any] = {"address": self.address} if self.address else own
        try:
            ray.init(**here, log_to_driver=not self.quiet, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadInput(
                f"there is no Ray cluster at {self.address or '127.0.0.1'} ({first_line(error)}): "
                "name the address that `ray start --head` printed, or leave --address out"
            ) from None
        try:
            with redirect_stdout(
                sys.stderr
            ):  # Ray tells of lost nodes on standard output, where only results belong
                if self.address is None and self.cards > (
                    cards := ray.cluster_resources().get("GPU", 0)
                ):
                    raise BadInput(
                        f"--gpus-per-run {self.cards:g} is more than this machine has "
                        f"({cards:g}): lower it, or name a cluster with --address"
                    )
                yield ray
        finally:
            ray.shutdown()


def _work(task: Task) -> Report:
    """What a process of Ray's does."""
    from evilspectra.model.reuse import Loaded

    if not _kept:
        _kept.append(Loaded())
    return carry_out_elsewhere(task, _kept[0])


def _report(ray: Any, one: Any, task: Task) -> Report:
    """The report of a task that ended, whichever way."""
    try:
        return ray.get(one)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, EvilspectraError) else None
        return Report(task.number, Status("failed", str(cause or first_line(error))))
    except (
        ray.exceptions.RayError
    ) as error:  # its node or process was lost, as often as Ray begins a task
        return Report(task.number, Status("failed"), lost=f"Ray lost it ({first_line(error)})")


def _cancel(ray: Any, under_way: list[Any]) -> None:
    """A run that trains saves its state after its step."""
    for one in under_way:
        ray.cancel(one, force=False)
    ray.wait(under_way, num_returns=len(under_way), timeout=60)
