"""When to ask again, and how often at all: an instant before which nothing is sent, a bound on requests. Pure but for the clock."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

from evilspectra.answering.waits import delay
from evilspectra.errors import EvilspectraError


class Spent(EvilspectraError):
    """As many requests as were allowed have been sent."""


class Pace:
    """Shared by the requests that are under way at once: a budget of requests, and an instant before which none is sent."""

    def __init__(self, budget: int, backoff: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.backoff, self.clock = budget, backoff, clock
        self.sent = 0
        self.retries = 0
        self._until = -math.inf
        self._lock = threading.Lock()

    def enter(self, stop: threading.Event, again: bool) -> None:
        """Waits until a request may be sent, and counts it; `stop` ends the wait.

        Raises:
            Spent: the budget is used up.
        """
        while (left := self._until - self.clock()) > 0 and not stop.wait(left):
            pass
        with self._lock:
            if self.sent >= self.budget:
                raise Spent(f"{self.budget:,} requests have been sent, which is what --max-requests allows: raise it and run the same command again; every verdict so far is kept")
            self.sent += 1
            self.retries += again

    def hold(self, seconds: float) -> None:
        """Lets no request begin for so long: the endpoint asked for it."""
        with self._lock:
            self._until = max(self._until, self.clock() + seconds)

    def pause(self, stop: threading.Event, attempt: int) -> None:
        """What one request waits before its attempt number `attempt` + 1, at most until `stop`."""
        stop.wait(delay(self.backoff, attempt, random.random()))
