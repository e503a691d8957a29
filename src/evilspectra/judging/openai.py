"""A judge behind an OpenAI-compatible endpoint: the requests, and the reading of the replies.

As published: temperature 0, one token, log-probabilities of the twenty most likely tokens. With
`reading: text`, a few tokens and no log-probabilities. After an error of the network or the
endpoint the request is retried (`endpoint.client`), and the verdict is then recorded as failed. It
also fails if the reply lacks log-probabilities, or if all numbers in its distribution have one
digit, as from a model that splits numbers.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from evilspectra.config.judge import JudgeConfig
from evilspectra.endpoint.client import Access, Client
from evilspectra.endpoint.faults import FaultError, Refused
from evilspectra.errors import BadInput, EvilspectraError, first_line
from evilspectra.judging.judge import Reply, Request
from evilspectra.judging.reading import digit_by_digit

TOP = 20
#: Tokens of a written reply: a number, whose digits may be a token each, or one of the two words,
#: and the characters that wrap it.
TEXT_TOKENS = 12
#: Rounding by which the sum of probabilities may exceed one.
_ROUNDING = 0.01
_SPLIT = (
    "the numbers among its likeliest tokens all have one digit: it writes numbers digit by digit, "
    "or returned too few tokens; use --reading text, or a local judge"
)
_Todo = queue.SimpleQueue[Request | None]
_Done = queue.SimpleQueue[tuple[Request, Reply | EvilspectraError]]


class OpenAIJudge:
    """The judge.

    Raises:
        BadInput: the client is not installed, or the environment holds no key.
    """

    def __init__(self, settings: JudgeConfig) -> None:
        self.settings: JudgeConfig = settings
        self.name: str = settings.judge
        self._seed: dict[str, Any] = {}
        if settings.seed is not None:
            self.name = f"{settings.judge}, seed {settings.seed}"
            self._seed = {"seed": settings.seed}
        self.client: Client = Client(
            Access(
                url=settings.url or os.environ.get("OPENAI_BASE_URL") or None,
                key_variable=settings.key_variable,
                timeout=settings.timeout,
                attempts=settings.attempts,
                backoff=settings.backoff,
                label=self.name,
                purpose=f"the judge {settings.judge} needs",
                otherwise="choose a local judge",
                key_option="--judge-set key_variable",
                preserved="every verdict so far is kept",
                budget=settings.max_requests,
            ),
            "OpenAI",
        )
        self.facts: Mapping[str, Any] = {
            "kind": "openai-compatible",
            "endpoint": self.client.access.host,
            "model": settings.model,
            "reading": settings.reading,
            **self._seed,
        }

    @property
    def retries(self) -> int:
        """Requests that were sent again so far."""
        return self.client.retries

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """As in `Judge`.

        At most `concurrency` requests are in flight or not yet taken by the caller.
        """
        todo: _Todo = queue.SimpleQueue()
        done: _Done = queue.SimpleQueue()
        stop = threading.Event()
        threads = min(self.settings.concurrency, len(requests))
        for _ in range(threads):
            threading.Thread(target=self._serve, args=(todo, done, stop), daemon=True).start()
        waiting, under_way = iter(requests), 0
        end: EvilspectraError | None = None
        try:
            while True:
                for request in islice(waiting, 0 if end else threads - under_way):
                    todo.put(request)
                    under_way += 1
                if not under_way:
                    break
                outcomes = [done.get()]
                while not done.empty():
                    outcomes.append(done.get())
                under_way -= len(outcomes)
                replies: list[tuple[Request, Reply]] = []
                for request, outcome in outcomes:
                    if isinstance(outcome, Reply):
                        replies.append((request, outcome))
                    else:
                        # requests under way are waited for: they may have been paid for
                        end = end or outcome
                        stop.set()
                if replies:
                    yield replies
            if end:
                raise end
        finally:
            stop.set()
            for _ in range(threads):
                todo.put(None)

    # --- one request ------------------------------------------------------------------------------

    def _serve(self, todo: _Todo, done: _Done, stop: threading.Event) -> None:
        """Replies to requests until None comes; the work of a thread."""
        while (request := todo.get()) is not None:
            try:
                done.put((request, self._reply(request, stop)))
            except EvilspectraError as error:
                done.put((request, error))
            except Exception as error:
                # nothing may end a thread without a word: the reader would wait for ever
                fault = self.client.redacted(f"{type(error).__name__}: {first_line(error)}")
                done.put((request, Reply(fault=fault)))

    def _reply(self, request: Request, stop: threading.Event) -> Reply:
        """The reply, after as many attempts as are allowed.

        Raises:
            EvilspectraError: no further request would be answered.
        """
        try:
            return self.client.call_in_thread(lambda: self._send(request.prompt), stop)
        except FaultError as fault:
            return Reply(fault=str(fault))
        except Refused as error:
            if error.status == 404:
                raise BadInput(
                    f"{self.name} is unknown at this endpoint ({error.reason}): name a model that "
                    "it serves, or another --judge-url"
                ) from None
            return Reply(fault=str(error))

    def _send(self, prompt: str) -> Reply:
        parameters: dict[str, Any] = {"max_tokens": TEXT_TOKENS}
        if self.settings.reading == "logprobs":
            parameters = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        completion = self.client.sdk.chat.completions.create(
            model=self.settings.model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            **parameters,
            **self._seed,
        )
        return read_completion(completion, self.settings.reading)


def read_completion(completion: Any, reading: str) -> Reply:
    """The reply in a chat completion.

    Raises:
        FaultError: it has none, or not in the requested form.
    """
    try:
        message = completion.choices[0].message
        refusal = getattr(message, "refusal", None)
        if reading == "text":
            text = refusal if message.content is None else message.content
            if not isinstance(text, str):
                raise FaultError("the reply held no text")
            return Reply(text=text)
        logprobs = completion.choices[0].logprobs
        if not (logprobs and logprobs.content) and isinstance(refusal, str) and refusal:
            # the judge's own refusal has no log-probabilities where the rule looks for them
            return Reply(text=refusal)
        top = logprobs.content[0].top_logprobs
        distribution = tuple((str(token.token), math.exp(float(token.logprob))) for token in top)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError):
        lacking = "chat completion"
        if reading == "logprobs":
            lacking = "log-probabilities: use --reading text where an endpoint has none"
        raise FaultError(f"the reply held no {lacking}") from None
    total = math.fsum(share for _, share in distribution)
    if not distribution or not total <= 1 + _ROUNDING:
        raise FaultError(
            f"the reply's {len(distribution)} probabilities sum to {total:.3g}, which is no "
            "distribution"
        )
    if digit_by_digit(dict(distribution)):
        raise FaultError(_SPLIT, again=False)
    return Reply(distribution=distribution)
