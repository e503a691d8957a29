"""An HTTP server on 127.0.0.1 that answers like an OpenAI-compatible endpoint, and misbehaves on command."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What a reply can be. These are valid: a judge could have said so.
VALID = ("ok", "refusal", "refusal field", "out of bounds")
FAULTS = (
    "429",
    "429 wait",
    "500",
    "hang",
    "cut",
    "empty logprobs",
    "no logprobs",
    "wrong json",
    "not json",
    "split digits",
    "no choices",
    "bad probabilities",
)


def score_of(prompt: str) -> int:
    """The number that the server says to a prompt: 0 to 99."""
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % 100


@dataclass
class Log:
    """What happened so far. `valid`: prompt → valid replies sent; `sent`: behaviour → replies; `times`: prompt → when it was asked."""

    valid: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


class Endpoint:
    """The server while a `with` lasts. `plan(prompt, attempt)`, attempt from 1, names what a request gets; `waited`: Retry-After in seconds."""

    def __init__(
        self, plan: Callable[[str, int], str] = lambda prompt, attempt: "ok", waited: str = "1"
    ) -> None:
        self.plan, self.waited, self.log = plan, waited, Log()
        self.lock, self.changed, self.ending = (
            threading.Lock(),
            threading.Condition(),
            threading.Event(),
        )
        self.keep_bodies = True
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                try:
                    endpoint.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *arguments: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64
            block_on_close = False

            def handle_error(self, *arguments: object) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Endpoint:
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()

    def wait_for_valid(self, count: int, client: subprocess.Popen[str]) -> None:
        """Returns when so many valid replies have been sent to a client that runs."""
        with self.changed:
            while sum(self.log.valid.values()) < count:
                assert client.poll() is None, client.communicate()
                self.changed.wait(1)

    # --- one request ----------------------------------------------------------------------------------------------

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self.changed:
            self.log.times[prompt].append(time.monotonic())
            behaviour = self.plan(prompt, len(self.log.times[prompt]))
            self.log.sent[behaviour] += 1
            self.log.keys.add(request.headers.get("Authorization", ""))
            if self.keep_bodies:
                self.log.bodies.append({"path": request.path} | body)
            if behaviour in VALID:
                self.log.valid[prompt] += 1
                self.changed.notify_all()
        match behaviour:
            case "429":
                self.send(
                    request, 429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
                )
            case "429 wait":
                self.send(
                    request, 429, {"error": {"message": "slow down"}}, {"Retry-After": self.waited}
                )
            case "hang":
                self.ending.wait(60)
                request.close_connection = True
            case "cut":
                request.wfile.write(
                    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"choices": [{"mess'
                )
                request.wfile.flush()
                request.close_connection = True
                request.connection.shutdown(socket.SHUT_RDWR)
            case "not json":
                self.send(request, 200, "<html>100</html>")
            case status if status.isdigit():
                self.send(
                    request,
                    int(status),
                    {
                        "error": {
                            "message": f"no: {request.headers.get('Authorization')}",
                            "code": "insufficient_quota" if status == "402" else "x",
                        }
                    },
                )
            case "no quota":
                self.send(request, 429, {"error": {"message": "pay", "code": "insufficient_quota"}})
            case _:
                self.send(
                    request, 200, self.completion(behaviour, prompt, text="logprobs" not in body)
                )

    def completion(self, behaviour: str, prompt: str, text: bool) -> Any:
        number = score_of(prompt)
        shares = {str(number): 0.9, str((number + 50) % 100 + 1): 0.05, "I": 0.05}
        shares |= {"CODE": 1e-6, "10": shares.get("10", 1e-6)}
        message: dict[str, Any] = {"role": "assistant", "content": str(number)}
        match behaviour:
            case "refusal":
                shares, message = (
                    {"I": 0.7, "Sorry": 0.3},
                    {"role": "assistant", "content": None, "refusal": "I cannot help with that."},
                )
            case "out of bounds":
                shares, message = {"150": 0.9, "200": 0.1}, {"role": "assistant", "content": "150"}
            case "split digits":
                shares = {"8": 0.8, "9": 0.2}
            case "bad probabilities":
                shares = {"80": 0.9, "90": 0.9}
        top = [
            {"token": token, "logprob": math.log(share), "bytes": None}
            for token, share in shares.items()
        ]
        logprobs: Any = {
            "content": [
                {
                    "token": top[0]["token"],
                    "logprob": top[0]["logprob"],
                    "bytes": None,
                    "top_logprobs": top,
                }
            ]
        }
        if behaviour == "empty logprobs":
            logprobs = {"content": []}
        if behaviour == "refusal field":
            message, logprobs = (
                {"role": "assistant", "content": None, "refusal": "I cannot help with that."},
                {"content": None, "refusal": logprobs["content"]},
            )
        if behaviour == "no logprobs" or text:
            logprobs = None
        if behaviour == "wrong json":
            return [1, {"choices": "100"}]
        choices = (
            []
            if behaviour == "no choices"
            else [{"index": 0, "finish_reason": "length", "message": message, "logprobs": logprobs}]
        )
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": choices,
        }

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: Any,
        headers: dict[str, str] | None = None,
    ) -> None:
        raw = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        request.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(raw)),
            **(headers or {}),
        }.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(raw)
        request.wfile.flush()
