"""The interface of executors: tasks in, a report for each out, in any order.

Scheduling is left to the engine underneath.

The store makes it safe to do anything twice: a run that is done is skipped, one that another
process holds is left alone, one that was stopped resumes. So an executor keeps no queue and no
state that must survive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from evilspectra.executors.stages import Report, Task


class Executor(Protocol):
    """Executes tasks. `location` says where, for messages."""

    @property
    def location(self) -> str: ...

    def run(self, tasks: Sequence[Task], started: Callable[[Task], object]) -> Iterator[Report]:
        """Yields one report for each task as they come in.

        `started` is called with each task that is known to have begun. A task whose worker ended
        without a report is reported as lost, not tried again.

        Raises:
            Interrupted: a signal arrived; completed work is kept.
        """
        ...
