"""The client of an OpenAI-compatible endpoint: the only place that sends a request.

It uses `openai` (the extra `judge`), which is imported when a client is created. After an error of
the network or the server the request is retried, with growing waits: rate limits (429; Retry-After
delays every request), 408, 409, 425, 5xx, time-outs, lost connections, replies that are not chat
completions. The key comes from the environment, and no message ever shows it.

The retry rule is written once, in `Client.attempts`, for callers in tasks (`Client.call`) and in
threads (`Client.call_in_thread`). No torch.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from evilspectra.endpoint.faults import FaultError, Refused, faults, passes, where, without
from evilspectra.endpoint.retry import LONGEST_ASKED, Pace, asked_to_wait, delay
from evilspectra.errors import BadInput, EvilspectraError, first_line

T = TypeVar("T")
#: The address that the `openai` client takes by itself.
_DEFAULT_URL = "https://api.openai.com"


@dataclass(frozen=True, slots=True)
class Access:
    """Access to an endpoint: its address, time-outs and retries, and its name in messages.

    `url`: None for the client's default; `budget`: requests that may be sent, None for any number.
    `label` names the endpoint, `purpose` says who needs the client ("the judge x needs"), and
    `otherwise` how to do without it; `key_option` sets `key_variable`; `preserved` states the part
    of the work that an interrupted command keeps.
    """

    url: str | None
    key_variable: str
    timeout: float
    attempts: int
    backoff: float
    label: str
    purpose: str
    otherwise: str
    key_option: str
    preserved: str
    budget: int | None = None

    @property
    def host(self) -> str:
        """The endpoint's host; "loopback" for this machine, whatever its name."""
        return where(urlsplit(self.url or _DEFAULT_URL).hostname or "")

    @property
    def key(self) -> str | None:
        return os.environ.get(self.key_variable)

    def package(self) -> Any:
        """The `openai` package.

        Raises:
            BadInput: it is not installed, or the environment holds no key for another machine.
        """
        try:
            import openai
        except ImportError:
            raise BadInput(
                f"{self.purpose} the openai client: pip install 'evilspectra[judge]', or "
                f"{self.otherwise}"
            ) from None
        if not self.key and self.host != "loopback":
            raise BadInput(
                f"the environment variable {self.key_variable} holds no key for {self.host}: set "
                f"it, or name another variable with {self.key_option}=NAME"
            )
        return openai


class Client:
    """A client of an endpoint, shared by all concurrent requests.

    `sdk`: the object of the `openai` package that sends; `pace`: counts requests and holds them
    back; `sleep`: waits between attempts in tasks.

    Raises:
        BadInput: the package or a key is missing.
    """

    def __init__(self, access: Access, kind: Literal["OpenAI", "AsyncOpenAI"]) -> None:
        self.access = access
        self._openai = access.package()
        self._key = access.key
        self.sdk: Any = getattr(self._openai, kind)(
            api_key=self._key or "none",
            base_url=access.url,
            max_retries=0,
            timeout=access.timeout,
        )
        self.pace: Pace = Pace(access.budget)
        self.sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    @property
    def retries(self) -> int:
        """Requests that were sent again so far."""
        return self.pace.retries

    def redacted(self, text: str) -> str:
        """The text without the key."""
        return without(self._key, text)

    async def call(self, send: Callable[[], Awaitable[T]]) -> T:
        """Sends a request in a task, with retries by `attempts`; returns the reply."""
        return await _carried_out(self.attempts(), send, self.sleep)

    def call_in_thread(self, send: Callable[[], T], stop: threading.Event) -> T:
        """Sends a request in a thread, with retries by `attempts`; returns the reply.

        Once `stop` is set, nothing is waited for, and a fault has no further attempt.
        """

        async def reply() -> T:
            return send()

        async def wait(seconds: float) -> None:
            stop.wait(seconds)

        try:  # nothing in it is waited for by others, so its first step is its last
            _carried_out(self.attempts(stop.is_set), reply, wait).send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a request in a thread was suspended")

    def attempts(
        self,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[float | None, T, T]:
        """The attempts at one request, as steps for a caller that waits and sends.

        Yields seconds to wait, or None when the request is to be sent; then the caller sends in the
        reply, or throws in the error. Returns the reply.

        Raises:
            FaultError: no reply in as many attempts as are allowed; the text is that of the last
                fault.
            Refused: the endpoint refused this request for good.
            BadInput: it refused the key.
            EvilspectraError: no quota, a wait that is too long, or a budget that is used up.
        """
        fault = ""
        for attempt in range(1, self.access.attempts + 1):
            while not stopped() and (left := self.pace.left) > 0:
                yield left
            self.pace.count(again=attempt > 1)
            try:
                with faults(self._openai, self._late, self._meaning):
                    return (yield None)
            except FaultError as error:
                fault = self.redacted(str(error))
                if not error.again or stopped():
                    break
            if attempt < self.access.attempts:
                yield delay(self.access.backoff, attempt, random.random())
        raise FaultError(fault, again=False)

    @property
    def _late(self) -> str:
        return f"no reply within {self.access.timeout:g} s"

    def _meaning(self, error: Any) -> Exception:
        """The exception for an HTTP status: a fault, a refusal, or the end of the work."""
        status, text = error.status_code, self.redacted(first_line(error))
        access = self.access
        if status in (401, 403):
            return BadInput(
                f"{access.label} refused the key in {access.key_variable} ({text}): set it to a "
                "key that may use this model"
            )
        if status == 429 and error.code == "insufficient_quota":
            return EvilspectraError(
                f"the account behind {access.key_variable} has no quota left ({text}): add some, "
                f"then run the same command again; {access.preserved}"
            )
        if not passes(status):
            return Refused(status, text)
        seconds = asked_to_wait(error.response.headers)
        if seconds is not None:
            if seconds > LONGEST_ASKED:
                return EvilspectraError(
                    f"{access.label} asks to wait {seconds:.0f} s: run the same command again "
                    f"later; {access.preserved}"
                )
            self.pace.hold(seconds)
        return FaultError(f"HTTP {status}: {text}")


async def _carried_out(
    steps: Generator[float | None, T, T],
    send: Callable[[], Awaitable[T]],
    wait: Callable[[float], Awaitable[object]],
) -> T:
    """The reply of the `attempts` at a request, with the caller's way to send and to wait."""
    advance: Callable[[], float | None] = partial(next, steps)
    while True:
        try:
            seconds = advance()
        except StopIteration as end:
            return end.value
        if seconds is not None:
            await wait(seconds)
            advance = partial(next, steps)
            continue
        try:
            advance = partial(steps.send, await send())
        except Exception as error:
            advance = partial(steps.throw, error)
