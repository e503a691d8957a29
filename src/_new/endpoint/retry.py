"""How long to wait before an endpoint is asked again: waits that grow, and its own wish. Pure but for the clock."""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Callable, Mapping

#: Longest wait of our own making, and the longest that an endpoint may ask for before the work stops, in seconds.
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
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now())
    except (ValueError, TypeError, IndexError):
        return None
