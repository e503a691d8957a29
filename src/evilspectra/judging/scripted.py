"""A judge that follows a script, for tests, documentation and demonstrations. It judges nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evilspectra.config.yaml_files import read_mapping
from evilspectra.errors import BadInput
from evilspectra.judging.judge import Reply, Request

#: Number of replies returned at a time.
_BATCH = 16


class Scripted:
    """Replies that a function makes of a request."""

    def __init__(
        self,
        script: Callable[[Request], Reply],
        name: str = "scripted",
        sha256: str = "",
    ) -> None:
        self.name: str = name
        self.script: Callable[[Request], Reply] = script
        self.facts: Mapping[str, Any] = {
            "kind": "scripted",
            "model": sha256 or name,
            "reading": "scripted",
        }

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        for start in range(0, len(requests), _BATCH):
            yield [(request, self.script(request)) for request in requests[start : start + _BATCH]]


def read_script(source: str) -> Scripted:
    """Reads the judge of a YAML file.

    The file maps a metric to a reply, or to {text that the prompt holds → reply, "else" → reply},
    of which the first that fits counts. A reply is read as text: a number, CODE, REFUSAL, or
    anything else.

    Raises:
        BadInput: the file cannot be read, or holds something else.
    """
    values = read_mapping(Path(source))
    rules: dict[str, dict[str, str]] = {}
    for metric, value in values.items():
        replies = value if isinstance(value, Mapping) else {"else": value}
        if not all(map(_is_reply, replies.values())):
            raise BadInput(
                f"{source}: the replies under '{metric}' are no texts or numbers: write for "
                f"instance '{metric}: 80'"
            )
        rules[str(metric)] = {str(key): str(reply) for key, reply in replies.items()}

    def script(request: Request) -> Reply:
        replies = rules.get(request.metric, {})
        for fragment, reply in replies.items():
            if fragment != "else" and fragment in request.prompt:
                return Reply(text=reply)
        if "else" not in replies:
            return Reply(fault="the script has no reply to this")
        return Reply(text=replies["else"])

    digest = hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:20]
    return Scripted(script, f"scripted:{source}", digest)


def _is_reply(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
