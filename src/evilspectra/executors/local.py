"""Runs on this machine, in this process or in worker processes.

The number of workers is limited by memory, cores and GPUs.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from evilspectra.config.sections import ModelConfig
from evilspectra.errors import Interrupted, require
from evilspectra.executors.stages import Report, Task, carry_out
from evilspectra.executors.worker import serve
from evilspectra.model.base import Base
from evilspectra.store.run import Status
from evilspectra.training.identity import locate
from evilspectra.training.signals import stop_signals

#: Bytes that a worker takes in addition to the base: Python, torch, activations of a small batch.
_OVERHEAD = 1 << 30
#: Approximate factor by which a GGUF file grows when it is dequantised to float32: from 4.5 to 8.5
#: bits a weight to 32.
_DEQUANTISED = 5
#: Bases below this many bytes are trained faster than a process starts.
_SMALL = 100 << 20
#: Seconds between checks for a request to stop.
_LOOK = 0.2


@dataclass(frozen=True)
class InThisProcess:
    """Carries out one run after the other in this process."""

    location: str = "in this process"

    def run(self, tasks: Sequence[Task], started: Callable[[Task], object]) -> Iterator[Report]:
        from evilspectra.model.reuse import Loaded

        loaded = Loaded()
        for task in tasks:
            started(task)
            yield carry_out(task, loaded)


@dataclass
class _Worker:
    """A process, the driver's end of its pipe, its task, and the base that it has in memory."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None
    holds: ModelConfig | None = None


@dataclass(frozen=True)
class Workers:
    """Carries runs out in `count` processes on this machine.

    With graphics cards each process has one to itself, or as few processes as possible share one.
    """

    count: int
    cards: int = 0

    @property
    def location(self) -> str:
        return f"in {self.count} workers"

    def run(self, tasks: Sequence[Task], started: Callable[[Task], object]) -> Iterator[Report]:
        require("torch", "transformers", "peft", extra="train")  # a worker that ends says no more
        waiting = list(tasks)
        workers: list[_Worker] = []
        with stop_signals() as stop:
            try:
                while waiting or any(worker.task for worker in workers):
                    if stop.wanted:
                        self._stop(workers)
                        raise Interrupted(
                            "interrupted; the runs under way are saved: run the same command "
                            "again to resume them"
                        )
                    while (
                        waiting
                        and len(workers) < self.count
                        and all(worker.task for worker in workers)
                    ):
                        workers.append(self._start(len(workers)))
                    for worker in [worker for worker in workers if worker.task is None and waiting]:
                        self._give(worker, waiting, started)
                    for ready in wait(
                        [worker.connection for worker in workers if worker.task], _LOOK
                    ):
                        (worker,) = [worker for worker in workers if worker.connection is ready]
                        yield self._hear(worker, workers)
            finally:
                for worker in workers:
                    self._end(worker)

    def _start(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve, args=(theirs, _card(number, self.cards)), name=f"worker {number + 1}"
        )
        process.start()
        theirs.close()  # so that the pipe ends when the worker does
        return _Worker(process, ours)

    def _give(
        self, worker: _Worker, waiting: list[Task], started: Callable[[Task], object]
    ) -> None:
        """Sends the first task that needs the worker's base, or else the first task."""
        task = next((task for task in waiting if task.config.model == worker.holds), waiting[0])
        waiting.remove(task)
        worker.task, worker.holds = task, task.config.model
        started(task)
        with suppress(OSError):  # if the worker has ended, its pipe says so next
            worker.connection.send(task)

    def _hear(self, worker: _Worker, workers: list[_Worker]) -> Report:
        """Receives a worker's report; a worker that has ended is removed."""
        task = worker.task
        if task is None:
            raise ValueError("a worker without a task has nothing to report")
        worker.task = None
        try:
            return worker.connection.recv()
        except (EOFError, OSError):
            workers.remove(worker)
            worker.process.join()
            code = worker.process.exitcode
            how = (
                f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            )
            return Report(
                task.number,
                Status("failed", None),
                lost=(
                    f"its worker was ended {how}, as happens when a system runs out of memory: "
                    "lower --workers, or run the same command again"
                ),
            )

    def _stop(self, workers: list[_Worker]) -> None:
        """Ends every worker; each run that trains saves its state after its current step."""
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()

    def _end(self, worker: _Worker) -> None:
        """Lets an idle worker end; kills one with a task, which loses nothing that was saved."""
        if worker.task is None:
            with suppress(OSError):
                worker.connection.send(None)
        else:
            worker.process.kill()
        worker.process.join()
        worker.connection.close()


def suitable(tasks: Sequence[Task]) -> InThisProcess | Workers:
    """Returns this process, or as many workers as fit, for the runs that are not done yet.

    A base as small as the test model's trains faster here than a process starts.
    """
    located = [(task, *locate(task.config)) for task in tasks]
    todo = [(task, base) for task, run, base in located if run.status().state != "done"]
    if not todo or max(base_bytes(base) for _, base in todo) < _SMALL:
        return InThisProcess()
    wanted = [task.config.model.device for task, _ in todo]
    cards = _cards() if any(device in ("auto", "cuda") for device in wanted) else 0
    if cards:
        count = min(cards, len(todo))
    else:
        cores = (os.cpu_count() or 1) // max(task.config.train.threads for task, _ in todo)
        count = min(
            cores,
            free_bytes() // max(_OVERHEAD + 2 * base_bytes(base) for _, base in todo),
            len(todo),
        )
    return Workers(count, cards) if count > 1 else InThisProcess()


def workers(count: int) -> InThisProcess | Workers:
    """Returns `count` workers; for one, this process."""
    return Workers(count, _cards()) if count > 1 else InThisProcess()


def base_bytes(base: Base) -> int:
    """Estimates from its files how many bytes a base takes in memory."""
    if base.kind == "tiny":
        return 0
    if base.kind == "gguf":
        return _DEQUANTISED * base.path.stat().st_size
    return sum(path.stat().st_size for path in base.path.glob("*.safetensors"))


def free_bytes() -> int:
    """Bytes of memory that are free: available on the system and within the container's limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(
            line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines()
        )
        free = int(lines["MemAvailable"].split()[0]) << 10
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        free = min(free, int(text))
    return free


def _cards() -> int:
    """Counts this machine's CUDA devices; imports torch only where there may be some."""
    if sys.platform == "darwin" or (
        sys.platform == "linux" and not os.path.exists("/proc/driver/nvidia")
    ):
        return 0
    import torch

    return torch.cuda.device_count()


def _card(number: int, cards: int) -> dict[str, str]:
    """The environment in which a worker sees one card.

    The cards that this process may use are handed out in turn.

    >>> _card(3, 2), _card(3, 0)
    ({'CUDA_VISIBLE_DEVICES': '1'}, {})
    """
    if not cards:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    usable = [name.strip() for name in visible.split(",") if name.strip()]
    usable = usable or [str(card) for card in range(cards)]
    return {"CUDA_VISIBLE_DEVICES": usable[number % len(usable)]}
