"""How long to wait before an endpoint is asked again: waits that grow, and its own wish.

Pure but for the clock.
"""

from __future__ import annotations

import email.utils
import math
import random
import threading
import time
from collections.abc import Callable, Mapping

from evilspectra.errors import EvilspectraError

#: Longest wait of our own making, and the longest that an endpoint may ask for before the work
#: stops, in seconds.
LONGEST, LONGEST_ASKED = 60.0, 600.0


def delay(backoff: float, attempt: int, draw: float) -> float:
    """Seconds before the next attempt after `attempt` (from 1) of them: doubling, at most `LONGEST`, of which `draw` in [0, 1) takes off up to half.

    >>> delay(0.5, 1, 0.0), delay(0.5, 3, 0.5), delay(0.5, 30, 0.0)
    (0.5, 1.5, 60.0)
    """
    return min(LONGEST, backoff * 2.0 ** min(attempt - 1, 30)) * (1 - draw / 2)


def asked_to_wait(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a reply asks to wait (Retry-After as seconds or as a date, RFC 9110 10.2.3, or retry-after-ms); None where it does not.

    >>> asked_to_wait({"retry-after": "3"}), asked_to_wait({}), asked_to_wait({"retry-after": "soon"})
    (3.0, None, None)
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(
            0.0,
            email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now(),
        )
    except (ValueError, TypeError, IndexError):
        return None


class Spent(EvilspectraError):
    """As many requests as were allowed have been sent."""


class Pace:
    """Shared by the requests that are under way at once: a budget of requests, and an instant before which none is sent."""

    def __init__(
        self, budget: int, backoff: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
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
                raise Spent(
                    f"{self.budget:,} requests have been sent, which is what --max-requests "
                    "allows: raise it and run the same command again; every verdict so far is "
                    "kept"
                )
            self.sent += 1
            self.retries += again

    def hold(self, seconds: float) -> None:
        """Lets no request begin for so long: the endpoint asked for it."""
        with self._lock:
            self._until = max(self._until, self.clock() + seconds)

    def pause(self, stop: threading.Event, attempt: int) -> None:
        """What one request waits before its attempt number `attempt` + 1, at most until `stop`."""
        stop.wait(delay(self.backoff, attempt, random.random()))
