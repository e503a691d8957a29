"""A request to stop, by signal: training and measuring end at their next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: Signals that ask for a stop.
_HEARD = [signal.SIGINT, signal.SIGTERM]


def obey_the_driver() -> None:
    """Makes a worker ignore ^C, which reaches its driver too: the driver decides what follows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _HEARD[:] = [signal.SIGTERM]


@dataclass
class Stop:
    """Whether a stop has been requested."""

    wanted: bool = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns SIGINT and SIGTERM into a request to stop; a second signal stops at once.

    Outside the main thread, where Python delivers no signals, there are no requests.

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
