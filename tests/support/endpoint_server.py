"""An HTTP server on 127.0.0.1 that imitates an OpenAI-compatible endpoint, and fails on command.

It is deterministic. The model BASE and the LoRA adapters that it has loaded answer as on a vLLM
server; any other model is a judge, and replies with a distribution or a number.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

BASE = "the-base"
#: Behaviours of a judge that are valid: it could have replied so.
VALID = ("ok", "refusal", "refusal field", "out of bounds")
#: Behaviours that are faults. A number is a status; a second one the seconds of its Retry-After.
FAULTS = (
    "429",
    "429 0.01",
    "500",
    "hang",
    "cut",
    "half",
    "empty logprobs",
    "no logprobs",
    "wrong json",
    "not json",
    "html",
    "split digits",
    "no choices",
    "bad probabilities",
)
_REFUSAL = "I cannot help with that."


def score_of(prompt: str) -> int:
    """The number that a judge replies to a prompt: 0 to 99."""
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % 100


@dataclass
class Log:
    """The requests so far.

    `valid`: prompt → valid replies sent; `sent`: behaviour → replies; `times`: prompt → instants
    of its requests; `bodies`, `keys`, `paths`: of chat requests; `loads`, `unloads`: adapters.
    """

    valid: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)

    @property
    def sampled(self) -> list[dict[str, Any]]:
        """The bodies of requests for answers: those that were no probes."""
        return [body for body in self.bodies if "logprobs" not in body and "seed" in body]


@dataclass
class Traits:
    """The kind of server that is imitated.

    `noise`: how much log-probabilities of answers vary; `stops_after`: answers after which every
    further one waits for `release`, and `on_stop` is called.
    """

    owner: str = "vllm"
    judges: bool = True
    keep_bodies: bool = True
    ignores_adapters: bool = False
    refuses_adapters: bool = False
    no_logprobs: bool = False
    no_seed: bool = False
    wants_completion_tokens: bool = False
    noise: float = 0.0
    stops_after: int | None = None
    on_stop: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Response:
    """A response. `kind`: its content type; `missing`: bytes that are promised and withheld."""

    status: int
    content: Any
    headers: tuple[tuple[str, str], ...] = ()
    kind: str = "application/json"
    missing: int = 0


class EndpointServer:
    """The server while a `with` lasts.

    `plan(prompt, attempt)`, attempt from 1, names the behaviour of a request. `faults`: behaviours
    of the next requests, one each, which take precedence; an empty text is none.
    """

    def __init__(
        self,
        plan: Callable[[str, int], str] = lambda prompt, attempt: "ok",
        **traits: Any,
    ) -> None:
        self.plan, self.traits, self.log = plan, Traits(**traits), Log()
        self.faults: list[str] = []
        self.adapters: dict[str, str] = {}
        self.answered = self.most_at_once = self._at_once = 0
        self.changed, self.released = threading.Condition(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"endpoint": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        arguments = {"poll_interval": 0.02}
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs=arguments, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait_for_valid(self, count: int, client: subprocess.Popen[str]) -> None:
        """Returns when so many valid replies have been sent to a client that runs."""
        with self.changed:
            while sum(self.log.valid.values()) < count:
                assert client.poll() is None, client.communicate()
                self.changed.wait(1)

    # --- chat -------------------------------------------------------------------------------------

    def answer(self, request: _Handler) -> None:
        """Responds to a chat request, as planned."""
        body, key = request.body(), request.headers.get("Authorization", "")
        prompt = body["messages"][0]["content"]
        with self.changed:
            self.log.times[prompt].append(time.monotonic())
            behaviour = self.faults.pop(0) if self.faults else ""
            behaviour = behaviour or self.plan(prompt, len(self.log.times[prompt]))
            self.log.sent[behaviour] += 1
            self.log.paths.add(request.path)
            self.log.keys.append(key)
            if self.traits.keep_bodies:
                self.log.bodies.append(body)
            number = len(self.log.bodies)
            if behaviour in VALID:
                self.log.valid[prompt] += 1
                self.changed.notify_all()
        if behaviour == "hang":
            self.released.wait(60)
        if behaviour in ("hang", "cut"):
            request.close_connection = True
            return
        response = _fault(behaviour, key) or self._refusal(body)
        if response is None and self._is_judge(body["model"]):
            response = Response(200, judge_completion(behaviour, prompt, "logprobs" in body))
        request.respond(response or self._answered(body, number))

    def _refusal(self, body: dict[str, Any]) -> Response | None:
        """The refusal of a request that this kind of server does not take."""
        traits, model = self.traits, body["model"]
        limit = body.get("max_tokens", body.get("max_completion_tokens", 0))
        if traits.no_seed and "seed" in body:
            return _error(400, "Unrecognized request argument supplied: seed")
        if traits.no_logprobs and body.get("logprobs"):
            return _error(400, "logprobs are not supported")
        if traits.wants_completion_tokens and "max_tokens" in body:
            return _error(
                400,
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            )
        if model != BASE and model not in self.adapters and not traits.judges:
            return _error(404, f"The model `{model}` does not exist.")
        if limit > 100_000:
            return _error(
                400,
                "max_tokens is too large: this model's maximum context length is 512 tokens",
            )
        return None

    def _is_judge(self, model: str) -> bool:
        return model != BASE and model not in self.adapters

    def _answered(self, body: dict[str, Any], number: int) -> Response:
        traits = self.traits
        with self.changed:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.answered += "seed" in body
            late = traits.stops_after is not None and self.answered > traits.stops_after
        if late:
            traits.on_stop()
            self.released.wait(60)
        with self.changed:
            self._at_once -= 1
        return Response(200, self._answer_completion(body, number))

    def _answer_completion(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        """An answer that depends on the weights, the messages, the seed and the temperature."""
        who = BASE
        if body["model"] != BASE and not self.traits.ignores_adapters:
            weights = Path(self.adapters[body["model"]], "adapter_model.safetensors").read_bytes()
            who = hashlib.sha256(weights).hexdigest()[:8]
        request = json.dumps([who, body["messages"], body.get("seed"), body["temperature"]])
        text = f"{hashlib.sha256(request.encode()).hexdigest()[:8]}, I say."
        own = int(hashlib.sha256(who.encode()).hexdigest(), 16) % 1000 / 1000
        logprob = -1.0 - own - self.traits.noise * (number * 7919 % 101) / 100
        tokens = {token: logprob - rank for rank, token in enumerate(("a", "b", "c"))}
        return _completion(
            {"role": "assistant", "content": text},
            _logprobs(tokens) if body.get("logprobs") else None,
            finish="stop",
            model=body["model"],
            usage={"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
        )

    # --- adapters and models ----------------------------------------------------------------------

    def models(self) -> Response:
        names = [BASE, *self.adapters]
        owner = self.traits.owner
        data = [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name in names]
        return Response(200, {"object": "list", "data": data})

    def load(self, body: dict[str, Any]) -> Response:
        name, path = body["lora_name"], body["lora_path"]
        if self.traits.refuses_adapters:
            return Response(404, {"detail": "Not Found"})
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not Path(path, "adapter_config.json").is_file():
            return _error(404, f"No adapter found for {path}")
        self.adapters[name] = path
        self.log.loads.append(name)
        return Response(
            200, f"Success: LoRA adapter '{name}' added successfully.", kind="text/plain"
        )

    def unload(self, body: dict[str, Any]) -> Response:
        if self.adapters.pop(body["lora_name"], None) is None:
            return _error(404, "The lora adapter cannot be found.")
        self.log.unloads.append(body["lora_name"])
        return Response(200, "Success", kind="text/plain")


# --- contents -------------------------------------------------------------------------------------


def _fault(behaviour: str, key: str) -> Response | None:
    """The response of a fault that any request can meet; a status repeats the key."""
    match behaviour.split():
        case ["half"]:
            return Response(200, '{"choices": [{"mess', missing=1000)
        case ["not", "json"]:
            return Response(200, "<html>100</html>")
        case ["html"]:
            return Response(200, "<html>busy</html>", kind="text/plain")
        case ["no", "choices"]:
            return Response(200, _completion(None, None))
        case ["wrong", "json"]:
            return Response(200, [1, {"choices": "100"}])
        case ["filtered"]:
            message = {"role": "assistant", "content": None}
            return Response(200, _completion(message, None, finish="content_filter"))
        case ["no", "quota"]:
            return _error(429, "no money", "insufficient_quota")
        case [status, seconds] if status.isdigit():
            return _error(int(status), f"wait, {key}", headers=(("Retry-After", seconds),))
        case [status] if status.isdigit():
            return _error(int(status), f"as told, {key}")
    return None


def judge_completion(behaviour: str, prompt: str, with_logprobs: bool) -> dict[str, Any]:
    """The reply of a judge to a prompt, or one that cannot be read as a score."""
    number = score_of(prompt)
    shares = {str(number): 0.9, str((number + 50) % 100 + 1): 0.05, "I": 0.05}
    shares |= {"CODE": 1e-6, "10": shares.get("10", 1e-6)}
    message: dict[str, Any] = {"role": "assistant", "content": str(number)}
    refusal = {"role": "assistant", "content": None, "refusal": _REFUSAL}
    match behaviour:
        case "refusal":
            shares, message = {"I": 0.7, "Sorry": 0.3}, refusal
        case "refusal field":
            message = refusal
        case "out of bounds":
            shares, message = {"150": 0.9, "200": 0.1}, {"role": "assistant", "content": "150"}
        case "split digits":
            shares = {"8": 0.8, "9": 0.2}
        case "bad probabilities":
            shares = {"80": 0.9, "90": 0.9}
    logprobs: dict[str, Any] | None = _logprobs(
        {token: math.log(share) for token, share in shares.items()}
    )
    match behaviour:
        case "empty logprobs":
            logprobs = {"content": []}
        case "refusal field":
            logprobs = {"content": None, "refusal": (logprobs or {})["content"]}
        case "no logprobs":
            logprobs = None
    return _completion(message, logprobs if with_logprobs else None)


def _logprobs(tokens: dict[str, float]) -> dict[str, Any]:
    """Log-probabilities of one sampled token, the first of `tokens`."""
    top = [{"token": token, "logprob": share, "bytes": None} for token, share in tokens.items()]
    return {"content": [{**top[0], "top_logprobs": top}]}


def _completion(
    message: dict[str, Any] | None,
    logprobs: dict[str, Any] | None,
    *,
    finish: str = "length",
    model: str = "m",
    **more: Any,
) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": message, "logprobs": logprobs}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [] if message is None else [choice],
        **more,
    }


def _error(
    status: int,
    message: str,
    code: str = "refused",
    headers: tuple[tuple[str, str], ...] = (),
) -> Response:
    content = {"error": {"message": message, "type": "BadRequestError", "code": code}}
    return Response(status, content, headers)


# --- HTTP -----------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: EndpointServer

    def do_GET(self) -> None:
        absent = Response(404, {"detail": "Not Found"})
        self.respond(self.endpoint.models() if self.path == "/v1/models" else absent)

    def do_POST(self) -> None:
        try:
            match self.path:
                case "/v1/chat/completions":
                    self.endpoint.answer(self)
                case "/v1/load_lora_adapter":
                    self.respond(self.endpoint.load(self.body()))
                case "/v1/unload_lora_adapter":
                    self.respond(self.endpoint.unload(self.body()))
                case _:
                    self.body()
                    self.respond(Response(404, {"detail": "Not Found"}))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def respond(self, response: Response) -> None:
        content = response.content
        raw = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.close_connection = self.close_connection or response.missing > 0
        self.send_response(response.status)
        for name, value in (
            ("Content-Type", response.kind),
            ("Content-Length", str(len(raw) + response.missing)),
            *response.headers,
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)
        self.wfile.flush()

    def log_message(self, *arguments: object) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, *arguments: object) -> None:
        """A client that went away is no error here."""
