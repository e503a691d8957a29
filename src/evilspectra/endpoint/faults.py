"""Errors of requests to an OpenAI-compatible endpoint: client errors, statuses, and keys.

The `openai` package is passed in as an argument, and not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from evilspectra.errors import EvilspectraError, first_line

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class FaultError(Exception):
    """No reply, or a reply that cannot be read. `again`: another attempt may succeed."""

    def __init__(self, text: str, again: bool = True) -> None:
        super().__init__(text)
        self.again = again


class Refused(EvilspectraError):
    """The endpoint refused a request for good, with a status of 4xx and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status: int = status
        self.reason: str = reason


def where(host: str) -> str:
    """The host; "loopback" for this machine, whatever its name.

    >>> where("127.0.0.1"), where("example.org")
    ('loopback', 'example.org')
    """
    return "loopback" if host in _LOOPBACK else host


def passes(status: int) -> bool:
    """Whether a request that got this HTTP status may succeed at another attempt.

    >>> passes(429), passes(503), passes(404)
    (True, True, False)
    """
    return status in (408, 409, 425, 429) or status >= 500


def without(key: str | None, text: str) -> str:
    """A message without the key, which a server may repeat.

    >>> without("sk-1", "no such key: sk-1")
    'no such key: (the key)'
    """
    return text.replace(key, "(the key)") if key else text


@contextmanager
def faults(openai: Any, late: str, meaning: Callable[[Any], Exception]) -> Iterator[None]:
    """Turns errors of the client into faults.

    Args:
        openai: the package, which is imported only where it is needed.
        late: the text of the fault when the time runs out.
        meaning: makes an exception of an error that has an HTTP status.

    Raises:
        FaultError: no reply, or none that is a chat completion.
    """
    try:
        yield
    except EvilspectraError:
        raise
    except openai.APITimeoutError:
        raise FaultError(late) from None
    except openai.APIConnectionError as error:
        raise FaultError(f"the connection failed: {first_line(error.__cause__ or error)}") from None
    except openai.APIStatusError as error:
        raise meaning(error) from None
    except (openai.APIError, ValueError) as error:
        raise FaultError(f"the reply was no chat completion: {first_line(error)}") from None
