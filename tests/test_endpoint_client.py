"""An endpoint that answers: attempts, waits, messages, the key, and adapters over HTTP."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evilspectra.config.endpoint import EndpointConfig
from evilspectra.config.loading import build_evaluation
from evilspectra.endpoint.chat import Completion, Endpoint, host_of, require_client
from evilspectra.endpoint.faults import Refused
from evilspectra.endpoint.retry import LONGEST, asked_to_wait, delay
from evilspectra.errors import BadInput, EvilspectraError
from tests.support.endpoint_server import BASE, EndpointServer

pytest.importorskip("openai")

KEY = "sk-very-secret"
MESSAGES = [{"role": "user", "content": "Why?"}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer(judges=False) as server:
        yield server


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def talk(
    server: EndpointServer, use: Callable[[Endpoint], Awaitable[Any]], **settings: Any
) -> tuple[Any, Clock, Endpoint]:
    """The result of `use` with an open endpoint, on a clock that only sleeping advances."""
    clock = Clock()

    async def run() -> tuple[Any, Clock, Endpoint]:
        async with Endpoint(
            EndpointConfig(**{"url": server.url, "model": BASE, **settings})
        ) as endpoint:
            endpoint.client.pace.clock, endpoint.client.sleep = clock, clock.sleep
            return await use(endpoint), clock, endpoint

    return asyncio.run(run())


def ask(endpoint: Endpoint, **parameters: Any) -> Awaitable[Completion]:
    return endpoint.chat(
        BASE,
        MESSAGES,
        "question 'why'",
        **{"temperature": 1.0, "max_tokens": 9, "seed": 3, **parameters},
    )


# --- waits ----------------------------------------------------------------------------------------


@given(st.floats(0, 60), st.integers(1, 200), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_at_least_half_of_what_doubling_says_and_never_longer_than_the_longest(
    backoff: float, attempt: int, draw: float
) -> None:
    full = min(LONGEST, backoff * 2.0 ** min(attempt - 1, 30))
    assert full / 2 <= delay(backoff, attempt, draw) <= full
    assert delay(backoff, attempt, draw) <= delay(backoff, attempt + 1, draw)


def test_a_date_is_as_good_as_seconds() -> None:
    later = datetime(2030, 1, 1, 12, 0, 30, tzinfo=UTC)
    assert (
        asked_to_wait(
            {"retry-after": format_datetime(later, usegmt=True)}, now=lambda: later.timestamp() - 30
        )
        == 30
    )
    assert (
        asked_to_wait(
            {"retry-after": format_datetime(later, usegmt=True)}, now=lambda: later.timestamp() + 30
        )
        == 0
    )
    assert [asked_to_wait({"retry-after": text}) for text in ("-3", "inf", "nan", "", "1.5")] == [
        0.0,
        None,
        None,
        None,
        1.5,
    ]


# --- attempts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "408", "409", "425", "cut", "half", "html", "no choices"]
)
def test_a_fault_is_tried_again_and_leaves_no_trace_in_the_answer(
    server: EndpointServer, fault: str
) -> None:
    plain, _, _ = talk(server, ask)
    server.faults = [fault, fault]
    completion, clock, endpoint = talk(server, ask, backoff=1.0)
    assert completion == plain
    assert (endpoint.retries, len(server.log.bodies)) == (2, 4)
    assert [0.5, 1.0] <= clock.waits <= [1.0, 2.0]


def test_a_server_that_hangs_is_left_after_the_time_out(server: EndpointServer) -> None:
    plain, _, _ = talk(server, ask)
    server.faults = ["hang"]
    completion, _, endpoint = talk(server, ask, timeout=1.0, backoff=0)
    assert completion == plain
    assert endpoint.retries >= 1


def test_retry_after_holds_every_request_back(server: EndpointServer) -> None:
    server.faults = ["429 40", "503 7"]

    async def two(endpoint: Endpoint) -> list[Completion]:
        return [await ask(endpoint), await ask(endpoint, seed=4)]

    _, clock, endpoint = talk(server, two, backoff=0)
    assert sum(clock.waits) == pytest.approx(47)
    assert endpoint.retries == 2


def test_after_the_last_attempt_the_sentence_says_what_went_wrong_and_how_to_go_on(
    server: EndpointServer,
) -> None:
    server.faults = ["500"] * 3
    with pytest.raises(
        EvilspectraError,
        match=(
            rf"^the endpoint {server.url} gave no answer to question 'why' in 3 attempts "
            r"\(HTTP 500: .*\): run the same command again to go on; what was sampled is kept$"
        ),
    ) as caught:
        talk(server, ask, attempts=3, backoff=0)
    assert caught.value.exit_code == 1
    assert len(server.log.bodies) == 3


def test_nobody_there() -> None:
    server = EndpointServer()
    server.url = "http://127.0.0.1:9/v1"
    with pytest.raises(
        EvilspectraError,
        match=(
            r"^the endpoint http://127.0.0.1:9/v1 gave no answer to the list of models in 2 "
            r"attempts \(the connection failed: "
        ),
    ):
        talk(server, ask, attempts=2, backoff=0)


@pytest.mark.parametrize(
    ("fault", "kind", "expected"),
    [
        ("401", BadInput, "refused the key in OPENAI_API_KEY"),
        ("403", BadInput, "set it to a key that may use this model"),
        ("no quota", EvilspectraError, "has no quota left"),
        ("429 5000", EvilspectraError, "asks to wait 5000 s: run the same command again later"),
        ("400", Refused, "HTTP 400: "),
        ("404", BadInput, f"serves no model {BASE}"),
        ("418", Refused, "HTTP 418: "),
    ],
)
def test_what_will_be_no_different_next_time_is_not_tried_again(
    server: EndpointServer,
    fault: str,
    kind: type[EvilspectraError],
    expected: str,
) -> None:
    server.faults = [fault]
    with pytest.raises(kind) as caught:
        talk(server, ask)
    assert expected in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.log.bodies) == 1


def test_at_most_so_many_requests_are_under_way(server: EndpointServer) -> None:
    async def many(endpoint: Endpoint) -> list[Completion]:
        return await asyncio.gather(*(ask(endpoint, seed=number) for number in range(24)))

    completions, _, _ = talk(server, many, concurrency=3)
    assert server.most_at_once <= 3
    assert completions == talk(server, many, concurrency=24)[0]
    assert len({completion.text for completion in completions}) == 24


# --- what is asked --------------------------------------------------------------------------------


def test_a_vllm_server_is_told_what_it_would_take_from_the_model_s_own_config(
    server: EndpointServer,
) -> None:
    talk(server, ask)
    body = server.log.bodies[0]
    assert {
        name: body[name]
        for name in ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs")
    } == {
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    server.traits.owner = "somebody"
    talk(server, ask)
    assert server.log.bodies[1].keys() == {"model", "messages", "temperature", "max_tokens", "seed"}


def test_a_seed_that_is_not_taken_is_left_out_from_then_on(server: EndpointServer) -> None:
    server.traits.no_seed = True

    async def two(endpoint: Endpoint) -> list[Completion]:
        return [await ask(endpoint), await ask(endpoint)]

    _, _, endpoint = talk(server, two)
    assert ["seed" in body for body in server.log.bodies] == [True, False, False]
    assert endpoint.without_seed


def test_the_limit_of_tokens_under_its_newer_name(server: EndpointServer) -> None:
    server.traits.wants_completion_tokens = True
    talk(server, ask)
    assert server.log.bodies[-1]["max_completion_tokens"] == 9
    with pytest.raises(Refused, match="maximum context length"):
        talk(server, lambda endpoint: ask(endpoint, max_tokens=200_000))


def test_an_address_without_a_path_gets_the_usual_one(server: EndpointServer) -> None:
    talk(server, ask, url=server.url.removesuffix("/v1"))
    talk(server, ask, url=server.url + "/")
    assert len(server.log.bodies) == 2


def test_what_an_endpoint_filters_is_an_answer_with_its_own_word(server: EndpointServer) -> None:
    server.faults = ["filtered"]
    assert talk(server, ask)[0] == Completion("", 0, "content_filter")


# --- the key --------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_and_goes_into_the_header_alone(
    server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "another")
    talk(server, ask)
    talk(server, ask, key_variable="OTHER_KEY")
    assert server.log.keys == [f"Bearer {KEY}", "Bearer another"]
    assert KEY not in str(server.log.bodies)
    server.faults = ["500"] * 2  # this server repeats the key
    with pytest.raises(EvilspectraError) as caught:
        talk(server, ask, attempts=2, backoff=0)
    assert KEY not in str(caught.value)


def test_without_a_key_only_this_machine_is_asked(
    server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    talk(server, ask)
    with pytest.raises(
        BadInput,
        match=(
            r"^the environment variable OPENAI_API_KEY holds no key for example\.org: set it, or "
            r"name another variable"
        ),
    ):
        require_client(EndpointConfig(url="https://example.org/v1", model="m"))


def test_without_the_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(
        BadInput, match=r"need the openai client: pip install 'evilspectra\[judge\]'"
    ):
        require_client(EndpointConfig(url="http://localhost/v1", model="m"))


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "http://me:key@x/v1", "http://x/v1?key=1", "x", "http://", "http://x y"]
)
def test_an_address_that_will_not_do(url: str) -> None:
    with pytest.raises(
        BadInput,
        match=(
            r"answers\.endpoint\.url = .* is refused: allowed: Address of the form "
            r"http://host:port/v1"
        ),
    ):
        build_evaluation({"answers": {"endpoint": {"url": url, "model": "m"}}})
    assert host_of(EndpointConfig(url="http://[::1]:80/v1", model="m")) == "loopback"


# --- adapters -------------------------------------------------------------------------------------


def adapter(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


def test_an_adapter_comes_and_goes(server: EndpointServer, tmp_path: Path) -> None:
    async def both(endpoint: Endpoint) -> list[Completion]:
        await endpoint.load_adapter("mine", adapter(tmp_path))
        completions = [
            await endpoint.chat("mine", MESSAGES, "it", temperature=0, max_tokens=9),
            await endpoint.chat(BASE, MESSAGES, "it", temperature=0, max_tokens=9),
        ]
        await endpoint.unload_adapter("mine")
        return completions

    first, base = talk(server, both)[0]
    assert first.text != base.text
    assert server.adapters == {}


def test_an_adapter_that_a_killed_process_left_is_replaced(
    server: EndpointServer, tmp_path: Path
) -> None:
    server.adapters["mine"] = "elsewhere"
    talk(server, lambda endpoint: endpoint.load_adapter("mine", adapter(tmp_path)))
    assert server.adapters == {"mine": str(tmp_path)}
    assert server.log.unloads == ["mine"]


def test_a_server_that_loads_no_adapter_says_what_it_needs(
    server: EndpointServer, tmp_path: Path
) -> None:
    with pytest.raises(
        BadInput,
        match=(
            r"did not load the adapter in .*nowhere \(HTTP 404: .*No adapter found.*\): "
            r"it must see "
            r"that folder under the same path"
        ),
    ):
        talk(server, lambda endpoint: endpoint.load_adapter("mine", tmp_path / "nowhere"))
    server.traits.refuses_adapters = True
    with pytest.raises(
        BadInput, match=r"started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True$"
    ):
        talk(server, lambda endpoint: endpoint.load_adapter("mine", adapter(tmp_path)))
