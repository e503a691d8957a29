"""Waits before a retry: growing waits, the endpoint's Retry-After, and a shared pace."""

from __future__ import annotations

import email.utils
import math
import threading
import time
from collections.abc import Callable, Mapping

from evilspectra.errors import EvilspectraError

#: The longest wait between attempts, and the longest that an endpoint may ask for before the work
#: stops, in seconds.
LONGEST, LONGEST_ASKED = 60.0, 600.0


def delay(backoff: float, attempt: int, draw: float) -> float:
    """Seconds to wait after attempt number `attempt`, from 1.

    The wait doubles up to `LONGEST`; `draw` in [0, 1) takes off up to half of it.

    >>> delay(0.5, 1, 0.0), delay(0.5, 3, 0.5), delay(0.5, 30, 0.0)
    (0.5, 1.5, 60.0)
    """
    return min(LONGEST, backoff * 2.0 ** min(attempt - 1, 30)) * (1 - draw / 2)


def asked_to_wait(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a reply asks to wait; None if it does not.

    Retry-After is a number of seconds or a date (RFC 9110 10.2.3); retry-after-ms takes precedence.

    >>> [asked_to_wait({"retry-after": text}) for text in ("3", "soon")]
    [3.0, None]
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, date.timestamp() - now())
    except (ValueError, TypeError, IndexError):
        return None


class Spent(EvilspectraError):
    """As many requests as were allowed have been sent."""


class Pace:
    """The common pace of all requests: a budget, and an instant before which none is sent.

    `sent`, `retries`: all requests so far, and those of them that were further attempts.
    """

    def __init__(
        self,
        budget: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget: int | None = budget
        self.clock: Callable[[], float] = clock
        self.sent: int = 0
        self.retries: int = 0
        self._until = -math.inf
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until a request may be sent; not above 0 if it may be sent now."""
        return self._until - self.clock()

    def hold(self, seconds: float) -> None:
        """Delays all requests for this long, because the endpoint requested it."""
        with self._lock:
            self._until = max(self._until, self.clock() + seconds)

    def count(self, again: bool) -> None:
        """Counts a request that is about to be sent; `again`: it is a retry.

        Raises:
            Spent: the budget is used up.
        """
        with self._lock:
            if self.budget is not None and self.sent >= self.budget:
                raise Spent(
                    f"{self.budget:,} requests have been sent, which is what --max-requests "
                    "allows: raise it and run the same command again; every verdict so far is kept"
                )
            self.sent += 1
            self.retries += again
