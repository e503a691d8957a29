"""Where the runs of a sweep are carried out.

An executor gets tasks and gives a report for each, in any order; scheduling is its engine's.

What makes it safe to do anything twice is the store: a run that is done is skipped, one that
another process holds is left alone, one that was stopped goes on. So an executor keeps no state
that must survive, and no queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from evilspectra.executors.stages import Report, Task


class Executor(Protocol):
    """Carries tasks out. `place`: where, in words."""

    @property
    def location(self) -> str: ...

    def run(self, tasks: Sequence[Task], started: Callable[[Task], object]) -> Iterator[Report]:
        """One report for each task, as they come in; `started` is told of tasks that are known to
        have begun.

        A task whose worker ended without a word is reported as lost, not tried again.

        Raises:
            Interrupted: a signal; what was done is kept.
        """
        ...
