"""A request to stop, by signal: the work ends at its next good place."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: What asks for a stop.
_HEARD = [signal.SIGINT, signal.SIGTERM]


def obey_the_driver() -> None:
    """For a worker: ^C at a terminal reaches it as well as its driver, and what comes of that the
    driver decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _HEARD[:] = [signal.SIGTERM]


@dataclass
class Stop:
    """Whether somebody asked for it."""

    wanted: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for a stop; a second one stops at once.

    Outside the main thread, where Python takes no signals, nothing is asked.

    Raises:
        KeyboardInterrupt: the second signal.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.wanted:
            raise KeyboardInterrupt
        stop.wanted = True

    before = {number: signal.signal(number, ask) for number in _HEARD}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
