"""Progress of a run in training: a bar on a terminal, plain lines elsewhere.

Everything goes to standard error.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from evilspectra.numbers import clock
from evilspectra.store.records import StepRecord

#: Seconds between plain lines.
_EVERY = 10.0


class Watcher(Protocol):
    """The receiver of `train`'s reports."""

    def step(self, record: StepRecord, stable_rank: float | None) -> None:
        """After every optimiser step; `stable_rank` is the latest mean over modules."""
        ...

    def note(self, text: str) -> None:
        """A line that stays on the screen."""
        ...


class Silent:
    """Reports nothing."""

    def step(self, record: StepRecord, stable_rank: float | None) -> None: ...

    def note(self, text: str) -> None: ...


class Steps:
    """Passes every step's record to a function, and no lines."""

    def __init__(self, on_step: Callable[[StepRecord], object]) -> None:
        self.on_step: Callable[[StepRecord], object] = on_step

    def step(self, record: StepRecord, stable_rank: float | None) -> None:
        self.on_step(record)

    def note(self, text: str) -> None: ...


class Several:
    """Passes everything to several watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self.watchers: Sequence[Watcher] = watchers

    def step(self, record: StepRecord, stable_rank: float | None) -> None:
        for watcher in self.watchers:
            watcher.step(record, stable_rank)

    def note(self, text: str) -> None:
        for watcher in self.watchers:
            watcher.note(text)


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Lines:
    """A plain line every ten seconds, at the first step and at the last.

    `write` receives them; without it they go to standard error.
    """

    def __init__(
        self, label: str, total: int, write: Callable[[str], object] = _to_standard_error
    ) -> None:
        self.label: str = label
        self.total: int = total
        self.write: Callable[[str], object] = write
        self.last_line: float = -_EVERY
        self.tokens: int = 0
        self.seconds: float = 0.0
        self.steps: int = 0

    def step(self, record: StepRecord, stable_rank: float | None) -> None:
        self.count(record)
        now = time.monotonic()
        if now - self.last_line >= _EVERY or record.step == self.total:
            self.last_line = now
            self.note(
                f"{self.label}  step {record.step}/{self.total}  "
                f"{self.figures(record, stable_rank)}  left {self._left(record.step)}"
            )

    def count(self, record: StepRecord) -> None:
        """Adds a step to the totals."""
        self.tokens += record.tokens or 0
        self.seconds += record.seconds
        self.steps += 1

    def figures(self, record: StepRecord, stable_rank: float | None) -> str:
        rank = f"  stable rank {stable_rank:.2f}" if stable_rank is not None else ""
        return f"loss {record.loss:.3f}  {self.tokens / max(self.seconds, 1e-9):.0f} tokens/s{rank}"

    def _left(self, step: int) -> str:
        return clock(self.seconds / self.steps * (self.total - step))

    def note(self, text: str) -> None:
        self.write(text)


class Bar(Lines):
    """A bar with loss, tokens per second, time left and mean stable rank."""

    def __init__(self, label: str, total: int, bar: Progress) -> None:
        super().__init__(label, total)
        self.bar: Progress = bar
        self.task: TaskID = bar.add_task(label, total=total, figures="")

    def step(self, record: StepRecord, stable_rank: float | None) -> None:
        self.count(record)
        self.bar.update(self.task, completed=record.step, figures=self.figures(record, stable_rank))

    def note(self, text: str) -> None:
        self.bar.console.print(text, markup=False, emoji=False, highlight=False)


@contextmanager
def watching(label: str, total: int, quiet: bool = False) -> Iterator[Watcher]:
    """The watcher that fits standard error; workers, which share it, write lines."""
    if quiet:
        yield Silent()
    elif sys.stderr.isatty() and multiprocessing.parent_process() is None:
        text = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        ]
        with Progress(*text, console=Console(stderr=True)) as bar:
            yield Bar(label, total, bar)
    else:
        yield Lines(label, total)
