"""A judge behind an OpenAI-compatible endpoint, through the `openai` client (the extra `judge`), which is imported inside functions only.

As published: temperature 0, one token, log-probabilities of the twenty likeliest. With `reading:
text`, a few tokens and no log-probabilities. What is a fault of the network or the endpoint is
tried again and then recorded as failed, never read: rate limits (429, Retry-After is kept to by all
requests), 5xx, time-outs, cut connections, replies that are no chat completion, missing
log-probabilities, and a distribution whose numbers all have one digit, since that is how a model
answers that splits numbers.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from evilspectra.config.judge import JudgeConfig
from evilspectra.endpoint.faults import FaultError, faults, passes, where, without
from evilspectra.endpoint.retry import LONGEST_ASKED, Pace, asked_to_wait
from evilspectra.errors import BadInput, EvilspectraError, first_line
from evilspectra.judging.judge import Reply, Request
from evilspectra.judging.reading import digit_by_digit

TOP = 20
#: Tokens of a written reply: a number, whose digits may be tokens of their own, or one of the two
#: words, and what wraps it.
TEXT_TOKENS = 12
#: Rounding that the sum of probabilities may be above one by.
_ROUNDING = 0.01
_SPLIT = "the numbers among its likeliest tokens all have one digit: it writes numbers digit by digit, or returned too few tokens; use --reading text, or a local judge"


class Endpoint:
    """The judge. `retries`: requests that were sent again so far."""

    def __init__(self, settings: JudgeConfig) -> None:
        try:
            import openai
        except ImportError:
            raise BadInput(
                f"the judge {settings.judge} needs the openai client: pip install "
                "'evilspectra[judge]', or choose a local judge"
            ) from None
        address = settings.url or os.environ.get("OPENAI_BASE_URL") or None
        host = urlsplit(address or "https://api.openai.com").hostname or ""
        key = os.environ.get(settings.key_variable)
        if not key and where(host) != "loopback":
            raise BadInput(
                f"the environment variable {settings.key_variable} holds no key for {host}: set "
                "it, or name another variable with --judge-set key_variable=NAME"
            )
        self.settings, self.name = (
            settings,
            settings.judge if settings.seed is None else f"{settings.judge}, seed {settings.seed}",
        )
        self._seed: dict[str, Any] = {} if settings.seed is None else {"seed": settings.seed}
        self.facts: Mapping[str, Any] = {
            "kind": "openai-compatible",
            "endpoint": where(host),
            "model": settings.model,
            "reading": settings.reading,
            **self._seed,
        }
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=address, max_retries=0, timeout=settings.timeout
        )
        self._key = key
        self._pace = Pace(settings.max_requests, settings.backoff)

    @property
    def retries(self) -> int:
        return self._pace.retries

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """As in `Judge`; at most `concurrency` requests are under way or not yet taken by the caller."""
        todo: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Request, Reply | EvilspectraError]] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while (request := todo.get()) is not None:
                try:
                    done.put((request, self._ask(request, stop)))
                except EvilspectraError as error:
                    done.put((request, error))
                except Exception as error:  # nothing may end a thread without a word: the reader would wait for ever
                    done.put(
                        (
                            request,
                            Reply(
                                fault=without(
                                    self._key, f"{type(error).__name__}: {first_line(error)}"
                                )
                            ),
                        )
                    )

        many = min(self.settings.concurrency, len(requests))
        for _ in range(many):
            threading.Thread(target=work, daemon=True).start()
        waiting, under_way = iter(requests), 0
        ended: EvilspectraError | None = None
        try:
            while True:
                for request in islice(waiting, 0 if ended else many - under_way):
                    todo.put(request)
                    under_way += 1
                if not under_way:
                    break
                found = [done.get()]
                while not done.empty():
                    found.append(done.get())
                under_way -= len(found)
                if ends := [reply for _, reply in found if isinstance(reply, EvilspectraError)]:
                    ended = (
                        ended or ends[0]
                    )  # what is under way is waited for: it may have been paid for
                    stop.set()
                if said := [
                    (request, reply) for request, reply in found if isinstance(reply, Reply)
                ]:
                    yield said
            if ended:
                raise ended
        finally:
            stop.set()
            for _ in range(many):
                todo.put(None)

    # --- one request ------------------------------------------------------------------------------

    def _ask(self, request: Request, stop: threading.Event) -> Reply:
        """The reply, after as many attempts as are allowed.

        Raises:
            EvilspectraError: no request would be answered any more.
        """
        fault = ""
        for attempt in range(1, self.settings.attempts + 1):
            self._pace.enter(stop, again=attempt > 1)
            try:
                return self._send(request.prompt)
            except FaultError as found:
                fault = without(self._key, str(found))
                if not found.again or stop.is_set() or attempt == self.settings.attempts:
                    break
            self._pace.pause(stop, attempt)
        return Reply(fault=fault)

    def _send(self, prompt: str) -> Reply:
        asked: dict[str, Any] = (
            {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
            if self.settings.reading == "logprobs"
            else {"max_tokens": TEXT_TOKENS}
        )
        with faults(self._openai, f"no reply within {self.settings.timeout:g} s", self._refusal):
            completion = self._client.chat.completions.create(
                model=self.settings.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0,
                **asked,
                **self._seed,
            )
        return read_completion(completion, self.settings.reading)

    def _refusal(self, error: Any) -> Exception:
        """What an HTTP status means: a fault, or the end of the work."""
        status, text = error.status_code, without(self._key, first_line(error))
        if status in (401, 403):
            return BadInput(
                f"{self.name} refused the key in {self.settings.key_variable} ({text}): set it to "
                "a key that may use this model"
            )
        if status == 404:
            return BadInput(
                f"{self.name} is unknown at this endpoint ({text}): name a model that it serves, "
                "or another --judge-url"
            )
        if status == 429 and error.code == "insufficient_quota":
            return EvilspectraError(
                f"the account behind {self.settings.key_variable} has no quota left ({text}): add "
                "some, then run the same command again; every verdict so far is kept"
            )
        wait = asked_to_wait(error.response.headers)
        if wait is not None and (status == 429 or status >= 500):
            if wait > LONGEST_ASKED:
                return EvilspectraError(
                    f"the endpoint asks to wait {wait:.0f} s: run the same command again later; "
                    "every verdict so far is kept"
                )
            self._pace.hold(wait)
        return FaultError(f"HTTP {status}: {text}", again=passes(status))


def read_completion(completion: Any, reading: str) -> Reply:
    """The reply in a chat completion.

    Raises:
        FaultError: it has none, or not in the form asked for.
    """
    try:
        choice = completion.choices[0]
        message = choice.message
        if reading == "text":
            text = (
                message.content
                if message.content is not None
                else getattr(message, "refusal", None)
            )
            if not isinstance(text, str):
                raise FaultError("the reply held no text")
            return Reply(text=text)
        if (
            not (choice.logprobs and choice.logprobs.content)
            and isinstance(declined := getattr(message, "refusal", None), str)
            and declined
        ):
            return Reply(
                text=declined
            )  # the judge's own refusal has no log-probabilities where the rule looks for them
        top = choice.logprobs.content[0].top_logprobs
        distribution = tuple((str(one.token), math.exp(float(one.logprob))) for one in top)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError):
        what = (
            "log-probabilities: use --reading text where an endpoint has none"
            if reading == "logprobs"
            else "chat completion"
        )
        raise FaultError(f"the reply held no {what}") from None
    total = math.fsum(share for _, share in distribution)
    if not distribution or not total <= 1 + _ROUNDING:
        raise FaultError(
            f"the reply's {len(distribution)} probabilities sum to {total:.3g}, which is no "
            "distribution"
        )
    if digit_by_digit(dict(distribution)):
        raise FaultError(_SPLIT, again=False)
    return Reply(distribution=distribution)
