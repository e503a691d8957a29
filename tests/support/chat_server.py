"""An HTTP server on this machine that answers chat requests as vLLM does, deterministically, and fails as it is told to."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BASE = "the-base"


class Serving:
    """What the server does, and what it was asked. A fault in `faults` befalls the next chat request, one each."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.adapters: dict[str, str] = {}
        self.chats: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.owner = "vllm"
        self.ignores_adapters = self.refuses_adapters = self.no_logprobs = self.no_seed = (
            self.wants_completion_tokens
        ) = False
        self.noise = 0.0
        self.stops_after: int | None = None
        self.on_stop: Callable[[], object] = lambda: None
        self.sampled = 0
        self.most_at_once = 0
        self.url = ""
        self._at_once = 0
        self._lock = threading.Lock()
        self.released = threading.Event()

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The requests that were no probes."""
        return [body for body in self.chats if "logprobs" not in body and "seed" in body]

    # --- one request ------------------------------------------------------------------------------------------------

    def chat(
        self, body: dict[str, Any], headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]]:
        with self._lock:
            self.chats.append(body)
            self.headers.append(headers)
            number = len(self.chats)
            fault = self.faults.pop(0) if self.faults else ""
        if fault:
            return self._failed(fault, headers)
        if self.no_seed and "seed" in body:
            return 400, error("Unrecognized request argument supplied: seed"), {}
        if self.no_logprobs and body.get("logprobs"):
            return 400, error("logprobs are not supported"), {}
        if self.wants_completion_tokens and "max_tokens" in body:
            return (
                400,
                error("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
                {},
            )
        if body["model"] != BASE and body["model"] not in self.adapters:
            return 404, error(f"The model `{body['model']}` does not exist."), {}
        if body["max_tokens" if "max_tokens" in body else "max_completion_tokens"] > 100_000:
            return (
                400,
                error("max_tokens is too large: this model's maximum context length is 512 tokens"),
                {},
            )
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.sampled += "seed" in body
            late = self.stops_after is not None and self.sampled > self.stops_after
        if late:
            self.on_stop()
            self.released.wait(60)
        with self._lock:
            self._at_once -= 1
        return 200, self.completion(body, number), {}

    def completion(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        who = BASE
        if body["model"] != BASE and not self.ignores_adapters:
            who = hashlib.sha256(
                Path(self.adapters[body["model"]], "adapter_model.safetensors").read_bytes()
            ).hexdigest()[:8]
        said = json.dumps([who, body["messages"], body.get("seed"), body["temperature"]])
        text = f"{hashlib.sha256(said.encode()).hexdigest()[:8]}, I say."
        share = (
            -1.0
            - int(hashlib.sha256(who.encode()).hexdigest(), 16) % 1000 / 1000
            - self.noise * (number * 7919 % 101) / 100
        )
        top = [
            {"token": token, "logprob": share - place, "bytes": None}
            for place, token in enumerate(("a", "b", "c"))
        ]
        logprobs = {"content": [{**top[0], "top_logprobs": top}]} if body.get("logprobs") else None
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": logprobs,
        }
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
        }

    def _failed(self, fault: str, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        key = headers.get("authorization", "")
        match fault.split():
            case ["hang"]:
                self.released.wait(60)
                return 500, error("too late"), {}
            case ["cut" | "half" as how]:
                return -1 if how == "cut" else -2, None, {}
            case ["html"]:
                return 200, "<html>busy</html>", {}
            case ["empty"]:
                return (
                    200,
                    {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": "x",
                        "choices": [],
                    },
                    {},
                )
            case ["filtered"]:
                choice = {
                    "index": 0,
                    "message": {"role": "assistant", "content": None},
                    "finish_reason": "content_filter",
                }
                return (
                    200,
                    {
                        "id": "x",
                        "object": "chat.completion",
                        "created": 0,
                        "model": "x",
                        "choices": [choice],
                    },
                    {},
                )
            case ["quota"]:
                return (
                    429,
                    {
                        "error": {
                            "message": "no money",
                            "code": "insufficient_quota",
                            "type": "insufficient_quota",
                        }
                    },
                    {},
                )
            case [status, wait]:
                return int(status), error(f"wait, {key}"), {"Retry-After": wait}
            case [status]:
                return int(status), error(f"as told, {key}"), {}
        raise AssertionError(fault)

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, path = body["lora_name"], body["lora_path"]
        if self.refuses_adapters:
            return 404, {"detail": "Not Found"}
        if name in self.adapters:
            return 400, error(f"The lora adapter '{name}' has already been loaded.")
        if not Path(path, "adapter_config.json").is_file():
            return 404, error(f"No adapter found for {path}")
        self.adapters[name] = path
        self.loads.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, error("The lora adapter cannot be found.")
        self.unloads.append(body["lora_name"])
        return 200, "Success"


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serving: Serving

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self._reply(404, {"detail": "Not Found"})
        names = [BASE, *self.serving.adapters]
        self._reply(
            200,
            {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "created": 0, "owned_by": self.serving.owner}
                    for name in names
                ],
            },
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match self.path:
            case "/v1/chat/completions":
                status, value, headers = self.serving.chat(
                    body, {name.lower(): text for name, text in self.headers.items()}
                )
                self._reply(status, value, headers)
            case "/v1/load_lora_adapter":
                self._reply(*self.serving.load(body))
            case "/v1/unload_lora_adapter":
                self._reply(*self.serving.unload(body))
            case _:
                self._reply(404, {"detail": "Not Found"})

    def _reply(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self.close_connection = self.close_connection or status < 0
        if status == -1:
            return
        self.send_response(max(status, 200))
        self.send_header(
            "Content-Type", "text/plain" if isinstance(value, str) else "application/json"
        )
        self.send_header("Content-Length", str(len(text.encode()) + (1000 if status == -2 else 0)))
        for name, given in (headers or {}).items():
            self.send_header(name, given)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


@contextmanager
def serving() -> Iterator[Serving]:
    """A server that runs meanwhile."""
    state = Serving()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"serving": state}))
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
