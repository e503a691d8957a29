"""Runs on a Ray cluster (the extra `ray`), one Ray task for each.

Ray schedules, assigns GPUs, and repeats the tasks of a lost node.

The store must be a folder that every node sees. A Ray process that has executed a run keeps the
base for its next one. Without an address a cluster is started on this machine only: it listens on
127.0.0.1, has no dashboard, reports no usage, and ends with the sweep.
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

#: How often Ray restarts a task whose node or process was lost.
RETRIES = 3
#: Seconds between checks for a request to stop.
_LOOK = 0.5
#: Without it Ray replaces 127.0.0.1 by the machine's address in its network, listens there, and
#: finds no cluster that listens on 127.0.0.1. Read on import.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
#: The base that this Ray process has in memory.
_bases: list[Loaded] = []


@dataclass(frozen=True)
class OnRay:
    """Carries runs out on the Ray cluster at `address`, or on one of this machine.

    `cards`: graphics cards for each run, or a fraction of one; `at_once`: the most runs under way.
    """

    address: str | None = None
    cards: float = 0.0
    at_once: int | None = None
    quiet: bool = True

    def __post_init__(self) -> None:
        if self.cards > 1 and self.cards != int(self.cards):
            raise BadInput(
                f"--gpus-per-run {self.cards:g} is refused: give a whole number, or a fraction "
                "of one card such as 0.5"
            )

    @property
    def location(self) -> str:
        if self.address:
            return f"on the Ray cluster {self.address}"
        return "on a Ray cluster of this machine"

    def run(self, tasks: Sequence[Task], started: Callable[[Task], object]) -> Iterator[Report]:
        with self._connected(max(task.config.train.threads for task in tasks)) as ray:
            waiting = list(tasks)
            under_way: dict[Any, Task] = {}
            try:
                while waiting or under_way:
                    while waiting and (self.at_once is None or len(under_way) < self.at_once):
                        task = waiting.pop(0)
                        function = ray.remote(
                            num_cpus=task.config.train.threads,
                            num_gpus=self.cards,
                            max_retries=RETRIES,
                        )(_carry_out)
                        under_way[function.remote(task)] = task
                        started(task)
                    done, _ = ray.wait(list(under_way), num_returns=1, timeout=_LOOK)
                    for reference in done:
                        yield _report(ray, reference, under_way.pop(reference))
            except KeyboardInterrupt:
                _cancel(ray, list(under_way))
                raise Interrupted(
                    "interrupted; the runs under way are saved: run the same command again to "
                    "resume them"
                ) from None

    @contextmanager
    def _connected(self, threads: int) -> Iterator[Any]:
        """Connects to the cluster, or starts one with room for a run of `threads` threads.

        Raises:
            BadInput: Ray is not installed, there is no cluster at the address, or this machine has
                fewer cards than a run needs.
        """
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if self.address is None or self.address.startswith(("127.", "localhost")):
            os.environ.update(_LOOPBACK)
        try:
            import ray
        except ImportError:
            raise BadInput(
                "--executor ray needs Ray: pip install 'evilspectra[ray]', or choose another "
                "executor"
            ) from None
        if ray.is_initialized():  # the caller's connection, which the caller closes
            yield ray
            return
        local = {
            "address": "local",
            "_node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "num_cpus": max(threads, os.cpu_count() or 1),
        }
        cluster: dict[str, Any] = {"address": self.address} if self.address else local
        try:
            ray.init(**cluster, log_to_driver=not self.quiet, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadInput(
                f"there is no Ray cluster at {self.address or '127.0.0.1'} ({first_line(error)}): "
                "name the address that `ray start --head` printed, or leave --address out"
            ) from None
        try:
            # Ray reports lost nodes on standard output, where only results belong
            with redirect_stdout(sys.stderr):
                if self.address is None:
                    self._check_cards(ray.cluster_resources().get("GPU", 0))
                yield ray
        finally:
            ray.shutdown()

    def _check_cards(self, available: float) -> None:
        """Raises BadInput where a run needs more cards than this machine has."""
        if self.cards > available:
            raise BadInput(
                f"--gpus-per-run {self.cards:g} is more than this machine has "
                f"({available:g}): lower it, or name a cluster with --address"
            )


def _carry_out(task: Task) -> Report:
    """Carries a task out in a Ray process, which keeps the base for the next one."""
    from evilspectra.model.reuse import Loaded

    if not _bases:
        _bases.append(Loaded())
    return carry_out_elsewhere(task, _bases[0])


def _report(ray: Any, reference: Any, task: Task) -> Report:
    """The report of a task that ended, however it ended."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, EvilspectraError) else None
        return Report(task.number, Status("failed", str(cause or first_line(error))))
    except ray.exceptions.RayError as error:  # its node or process was lost at every attempt
        return Report(task.number, Status("failed"), lost=f"Ray lost it ({first_line(error)})")


def _cancel(ray: Any, under_way: list[Any]) -> None:
    """Cancels tasks; a run that trains saves its state after its current step."""
    for reference in under_way:
        ray.cancel(reference, force=False)
    ray.wait(under_way, num_returns=len(under_way), timeout=60)
