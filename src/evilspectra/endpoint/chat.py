"""Answers from an OpenAI-compatible endpoint: chat completions, and LoRA adapters over HTTP.

A vLLM server loads and unloads adapters; it is started with `--enable-lora` and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=True: https://docs.vllm.ai/en/latest/features/lora/

Requests are sent, and sent again, by `client`. No torch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from evilspectra.config.endpoint import EndpointConfig
from evilspectra.endpoint.client import Access, Client
from evilspectra.endpoint.faults import FaultError, Refused
from evilspectra.errors import BadInput, EvilspectraError

T = TypeVar("T")
_LORA = (
    "it must see that folder under the same path, allow the adapter's rank (--max-lora-rank), and "
    "be started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
)
_PRESERVED = "what was sampled is kept"


@dataclass(frozen=True, slots=True)
class Completion:
    """A completed answer.

    `tokens`: the number sampled, 0 if the endpoint does not report it; `finish`: stop, length, or
    the endpoint's own word; `likeliest`: per sampled token the likeliest tokens and their
    log-probabilities, if they were asked for; empty if there are none.
    """

    text: str
    tokens: int
    finish: str
    likeliest: tuple[Mapping[str, float], ...] = ()


def require_client(settings: EndpointConfig) -> Any:
    """The `openai` package.

    Raises:
        BadInput: it is not installed, or the environment holds no key for an endpoint elsewhere.
    """
    return access_to(settings).package()


def host_of(settings: EndpointConfig) -> str:
    """The endpoint's host; "loopback" for this machine, whatever its name.

    >>> host_of(EndpointConfig(url="http://127.0.0.1:8000/v1", model="m"))
    'loopback'
    >>> host_of(EndpointConfig(url="https://example.org", model="m"))
    'example.org'
    """
    return access_to(settings).host


def access_to(settings: EndpointConfig) -> Access:
    """How the endpoint of some settings is reached; an address without a path gets /v1."""
    address = settings.url.rstrip("/")
    return Access(
        url=address if urlsplit(address).path else f"{address}/v1",
        key_variable=settings.key_variable,
        timeout=settings.timeout,
        attempts=settings.attempts,
        backoff=settings.backoff,
        label=f"the endpoint {settings.url}",
        purpose="answers from an endpoint need",
        otherwise="leave --endpoint out",
        key_option="--set endpoint.key_variable",
        preserved=_PRESERVED,
    )


class Endpoint:
    """An endpoint while it is open: `async with Endpoint(settings) as endpoint`."""

    def __init__(self, settings: EndpointConfig) -> None:
        self.settings = settings
        self.client: Client = Client(access_to(settings), "AsyncOpenAI")
        self.label: str = self.client.access.label
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._left_out: set[str] = set()
        self._extra: Mapping[str, Any] = {}

    async def __aenter__(self) -> Self:
        """Finds out what kind of server it is.

        A vLLM server takes parameters that a request leaves out from the model's own generation
        config, so its requests state all of them.
        """
        try:
            models = await self._call(self.client.sdk.models.list, "the list of models")
        except Refused:  # no such list: some other server
            return self
        except BaseException:
            await self.client.sdk.close()
            raise
        owners = {getattr(model, "owned_by", None) for model in getattr(models, "data", None) or ()}
        if "vllm" in owners:
            self._extra = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.sdk.close()

    @property
    def retries(self) -> int:
        """Requests that were sent again so far."""
        return self.client.retries

    @property
    def without_seed(self) -> bool:
        """Whether the endpoint has refused a seed."""
        return "seed" in self._left_out

    # --- answers ----------------------------------------------------------------------------------

    async def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        who: str,
        thinking: bool = False,
        **parameters: Any,
    ) -> Completion:
        """One answer; `who` names it in messages.

        `parameters` are the API's: temperature, top_p, max_tokens, seed, logprobs, top_logprobs. A
        `seed` that the endpoint refuses is left out from then on, and `max_tokens` is called
        `max_completion_tokens` if the endpoint wants that name.

        Raises:
            BadInput: a key or a model that the endpoint does not know.
            Refused: another refusal for good.
            EvilspectraError: no answer in as many attempts as are allowed, no quota, or a wait that
                is too long.
        """
        async with self._slots:
            while True:
                body = self._body(parameters, thinking)
                try:
                    return await self._call(partial(self._create, model, messages, body), who)
                except Refused as error:
                    if error.status == 404:
                        raise BadInput(
                            f"{self.label} serves no model {model} ({error}): name one that it "
                            "serves with --endpoint-model"
                        ) from None
                    named = [
                        name
                        for name in ("seed", "max_tokens")
                        if name in body and re.search(rf"\b{name}\b", str(error))
                    ]
                    if not named or error.status not in (400, 422):
                        raise
                    self._left_out.update(named[:1])

    def _body(self, parameters: Mapping[str, Any], thinking: bool) -> dict[str, Any]:
        """The parameters of a request, as this endpoint takes them."""
        body = {name: value for name, value in parameters.items() if name not in self._left_out}
        if "max_tokens" in self._left_out and "max_tokens" in parameters:
            body["max_completion_tokens"] = parameters["max_tokens"]
        if self._extra:
            template = {"chat_template_kwargs": {"enable_thinking": thinking}}
            body["extra_body"] = {**self._extra, **template}
        return body

    async def _create(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        body: Mapping[str, Any],
    ) -> Completion:
        create = self.client.sdk.chat.completions.create
        return read_completion(await create(model=model, messages=list(messages), **body))

    # --- adapters ---------------------------------------------------------------------------------

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Has a vLLM server load the adapter in a folder, which the server must see too.

        An adapter of that name that is already loaded is replaced.

        Raises:
            BadInput: the server does not load it.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        for leftover in (True, False):
            try:
                await self._post("/load_lora_adapter", body, f"loading the adapter in {folder}")
            except Refused as error:
                if leftover and "already" in str(error):  # of a process that was killed
                    await self.unload_adapter(name)
                    continue
                raise BadInput(
                    f"{self.label} did not load the adapter in {folder} ({error}): {_LORA}"
                ) from None
            return

    async def unload_adapter(self, name: str) -> None:
        """Has the server unload an adapter.

        Raises:
            EvilspectraError: it does not.
        """
        await self._post("/unload_lora_adapter", {"lora_name": name}, f"unloading {name}")

    async def _post(self, path: str, body: Mapping[str, Any], who: str) -> str:
        return await self._call(partial(self.client.sdk.post, path, cast_to=str, body=body), who)

    async def _call(self, send: Callable[[], Awaitable[T]], who: str) -> T:
        try:
            return await self.client.call(send)
        except FaultError as fault:
            raise EvilspectraError(
                f"{self.label} gave no answer to {who} in {self.settings.attempts} attempts "
                f"({fault}): run the same command again to go on; {_PRESERVED}"
            ) from None


def read_completion(completion: Any) -> Completion:
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
        logprobs = choice.logprobs.content if getattr(choice, "logprobs", None) else None
        likeliest = tuple(
            {str(token.token): float(token.logprob) for token in (*sampled.top_logprobs, sampled)}
            for sampled in logprobs or ()
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise FaultError("the reply held no chat completion") from None
    return Completion(text or "", tokens, finish, likeliest)
