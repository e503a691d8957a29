"""An OpenAI-compatible endpoint: chat completions, and, where it is a vLLM server, LoRA adapters loaded and unloaded over HTTP.

The `openai` client (the extra `judge`) is imported when an endpoint is opened. What is a fault of
the network or of the server is tried again with growing waits: rate limits (429; Retry-After holds
every request back), 408, 409, 425, 5xx, time-outs, cut connections, replies that are no chat
completion. The key comes from the environment, and no message ever shows it. No torch.

Adapters: https://docs.vllm.ai/en/latest/features/lora/ ; the server is started with `--enable-lora`
and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from evilspectra.config.endpoint import EndpointConfig
from evilspectra.endpoint.faults import FaultError, faults, passes, where, without
from evilspectra.endpoint.retry import LONGEST_ASKED, asked_to_wait, delay
from evilspectra.errors import BadInput, EvilspectraError, first_line

T = TypeVar("T")
_LORA = "it must see that folder under the same path, allow the adapter's rank (--max-lora-rank), and be started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


@dataclass(frozen=True, slots=True)
class Said:
    """An answer.

    `tokens`: how many were sampled, 0 where the endpoint does not say; `finish`: stop, length, or
    the endpoint's own word.

    `likeliest`: per sampled token the likeliest ones and their log-probabilities, where they were
    asked for; empty where there are none.
    """

    text: str
    tokens: int
    finish: str
    likeliest: tuple[Mapping[str, float], ...] = ()


class Refused(EvilspectraError):
    """The endpoint refused a request for good, with a status of 4xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def require_client(settings: EndpointConfig) -> Any:
    """The `openai` package.

    Raises:
        BadInput: it is not installed, or the environment holds no key for an endpoint elsewhere.
    """
    try:
        import openai
    except ImportError:
        raise BadInput(
            "answers from an endpoint need the openai client: pip install 'evilspectra[judge]', "
            "or leave --endpoint out"
        ) from None
    if place(settings) != "loopback" and not os.environ.get(settings.key_variable):
        raise BadInput(
            f"the environment variable {settings.key_variable} holds no key for "
            f"{place(settings)}: set it, or name another variable with --set "
            "endpoint.key_variable=NAME"
        )
    return openai


def place(settings: EndpointConfig) -> str:
    """The endpoint's host; "loopback" for one on this machine, whatever it is called.

    >>> place(EndpointConfig(url="http://127.0.0.1:8000/v1", model="m")), place(EndpointConfig(url="https://example.org", model="m"))
    ('loopback', 'example.org')
    """
    return where(urlsplit(settings.url).hostname or "")


class Endpoint:
    """An endpoint while it is open: `async with Endpoint(settings) as endpoint`.

    `retries`: requests that were sent again so far.
    """

    def __init__(self, settings: EndpointConfig) -> None:
        self._openai = require_client(settings)
        self.settings, self.label = settings, f"the endpoint {settings.url}"
        self._key = os.environ.get(settings.key_variable)
        address = settings.url.rstrip("/")
        self._client = self._openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=address if urlsplit(address).path else f"{address}/v1",
            max_retries=0,
            timeout=settings.timeout,
        )
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._until = -math.inf
        self._left_out: set[str] = set()
        self._extra: Mapping[str, Any] = {}
        self.retries = 0
        self.clock, self.sleep = time.monotonic, asyncio.sleep

    async def __aenter__(self) -> Self:
        """Asks what kind of server it is: a vLLM one takes what a request leaves out from the model's own generation config, so it is told all."""
        try:
            listed = await self._again(self._client.models.list, "the list of models")
        except Refused:  # no such list: some other server
            return self
        except BaseException:
            await self._client.close()
            raise
        if "vllm" in {
            getattr(one, "owned_by", None) for one in getattr(listed, "data", None) or ()
        }:
            self._extra = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    # --- answers ----------------------------------------------------------------------------------

    async def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        who: str,
        thinking: bool = False,
        **asked: Any,
    ) -> Said:
        """One answer; `asked` as in the API: temperature, top_p, max_tokens, seed, logprobs, top_logprobs. `who` names it in messages.

        A `seed` that the endpoint does not take is left out from then on, and `max_tokens` is
        called `max_completion_tokens` where that is wanted.

        Raises:
            BadInput: a key or a model that the endpoint does not know.
            Refused: another refusal for good.
            EvilspectraError: no answer in as many attempts as are allowed, no quota, or a wait that
                is too long.
        """
        async with self._slots:
            while True:
                body = {name: value for name, value in asked.items() if name not in self._left_out}
                if "max_tokens" in self._left_out and "max_tokens" in asked:
                    body["max_completion_tokens"] = asked["max_tokens"]
                if self._extra:
                    body["extra_body"] = {
                        **self._extra,
                        "chat_template_kwargs": {"enable_thinking": thinking},
                    }
                try:
                    return await self._again(
                        lambda body=body: self._chat(model, messages, body), who
                    )
                except Refused as error:
                    named = [
                        name
                        for name in ("seed", "max_tokens")
                        if name in body and re.search(rf"\b{name}\b", str(error))
                    ]
                    if error.status == 404:
                        raise BadInput(
                            f"{self.label} serves no model {model} ({error}): name one that it "
                            "serves with --endpoint-model"
                        ) from None
                    if not named or error.status not in (400, 422):
                        raise
                    self._left_out.update(named[:1])

    async def _chat(
        self, model: str, messages: Sequence[Mapping[str, str]], body: Mapping[str, Any]
    ) -> Said:
        return read_completion(
            await self._client.chat.completions.create(model=model, messages=list(messages), **body)
        )

    @property
    def without_seed(self) -> bool:
        """Whether the endpoint has refused a seed."""
        return "seed" in self._left_out

    # --- adapters ---------------------------------------------------------------------------------

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Has a vLLM server load the adapter in a folder, which it must see too; one of that name that is there is replaced.

        Raises:
            BadInput: the server does not.
        """
        for leftover in (True, False):
            try:
                await self._again(
                    lambda: self._post(
                        "/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}
                    ),
                    f"loading the adapter in {folder}",
                )
            except Refused as error:
                if leftover and "already" in str(error):  # of a process that was killed
                    await self.unload_adapter(name)
                    continue
                raise BadInput(
                    f"{self.label} did not load the adapter in {folder} ({error}): {_LORA}"
                ) from None
            return

    async def unload_adapter(self, name: str) -> None:
        """Has the server forget an adapter.

        Raises:
            EvilspectraError: it does not.
        """
        await self._again(
            lambda: self._post("/unload_lora_adapter", {"lora_name": name}), f"unloading {name}"
        )

    async def _post(self, path: str, body: Mapping[str, Any]) -> str:
        return await self._client.post(path, cast_to=str, body=body)

    # --- attempts ---------------------------------------------------------------------------------

    async def _again(self, send: Callable[[], Awaitable[T]], who: str) -> T:
        fault = ""
        for attempt in range(1, self.settings.attempts + 1):
            while (wait := self._until - self.clock()) > 0:
                await self.sleep(wait)
            self.retries += attempt > 1
            try:
                return await self._once(send)
            except FaultError as error:
                fault = without(self._key, str(error))
            if attempt < self.settings.attempts:
                await self.sleep(delay(self.settings.backoff, attempt, random.random()))
        raise EvilspectraError(
            f"{self.label} gave no answer to {who} in {self.settings.attempts} attempts "
            f"({fault}): run the same command again to go on, what was sampled is kept"
        )

    async def _once(self, send: Callable[[], Awaitable[T]]) -> T:
        with faults(self._openai, f"nothing within {self.settings.timeout:g} s", self._meaning):
            return await send()

    def _meaning(self, error: Any) -> Exception:
        """What an HTTP status means: a fault, a refusal, or the end of the work."""
        status, text = error.status_code, without(self._key, first_line(error))
        if status in (401, 403):
            return BadInput(
                f"{self.label} refused the key in {self.settings.key_variable} ({text}): set it "
                "to one that may use this model"
            )
        if status == 429 and error.code == "insufficient_quota":
            return EvilspectraError(
                f"the account behind {self.settings.key_variable} has no quota left ({text}): add "
                "some, then run the same command again; what was sampled is kept"
            )
        if not passes(status):
            return Refused(status, text)
        wait = asked_to_wait(error.response.headers)
        if wait is not None and wait > LONGEST_ASKED:
            return EvilspectraError(
                f"{self.label} asks to wait {wait:.0f} s: run the same command again later; what "
                "was sampled is kept"
            )
        self._until = max(self._until, self.clock() + (wait or 0.0))
        return FaultError(f"{status}: {text}")


def read_completion(completion: Any) -> Said:
    """The answer in a chat completion.

    Raises:
        FaultError: it holds none.
    """
    try:
        choice = completion.choices[0]
        text = choice.message.content
        finish = choice.finish_reason
        if not isinstance(text, str | None) or not isinstance(finish, str):
            raise TypeError
        tokens = int(getattr(completion.usage, "completion_tokens", 0) or 0)
        given = choice.logprobs.content if getattr(choice, "logprobs", None) else None
        likeliest = tuple(
            {str(one.token): float(one.logprob) for one in (*at.top_logprobs, at)}
            for at in given or ()
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise FaultError("the reply held no chat completion") from None
    return Said(text or "", tokens, finish, likeliest)
