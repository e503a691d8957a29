"""A judge of the user's own: a class with a method `scores`, by import path.

What it returns is checked: only a finite number from 0 to 100 becomes a score. A batch in which it
raises an error, or returns something of another length, is asked again request by request, so that
one answer that it cannot take costs its neighbours nothing. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Any

from evilspectra.classes import check_arguments, explained, import_class
from evilspectra.config.judge import JudgeConfig
from evilspectra.errors import BadInput, EvilspectraError
from evilspectra.judging.judge import OwnJudge, Reply, Request
from evilspectra.judging.reading import HIGHEST, LOWEST, VERDICT_WORDS
from evilspectra.text import printable, short_repr

#: Requests at a time, where the class does not say.
_BATCH = 16
_MOST = 10_000


class ClassJudge:
    """The judge; the class is imported now, and an instance made when it is first asked."""

    def __init__(self, settings: JudgeConfig, files: Sequence[str] = ()) -> None:
        if settings.reading != "logprobs":
            raise BadInput(f"the judge {settings.judge} gives scores: leave --reading out")
        own = import_class(settings.model, "--judge", settings.version, files)
        self._who = f"the judge class:{own.path}"
        if not callable(getattr(own.cls, "scores", None)):
            raise BadInput(
                f"{self._who} has no method scores: it takes requests, and returns a score for each"
            )
        check_arguments(own.cls, self._who, **settings.settings)
        self._cls, self._settings = own.cls, settings.settings
        self.name: str = f"class:{own.path}"
        self.facts: Mapping[str, Any] = {
            "kind": "class",
            "model": own.path,
            "reading": "scores",
            "settings": settings.settings,
            "source_sha256": own.sha256,
            "class_version": settings.version,
        }

    def replies(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Reply]]]:
        """As in `Judge`, a batch at a time.

        Raises:
            BadInput: the class cannot be made with its settings.
        """
        size = getattr(self._instance, "batch", _BATCH)
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MOST:
            raise BadInput(
                f"{self._who} has batch = {short_repr(size)}: it is a whole number from 1 to "
                f"{_MOST:,}"
            )
        for start in range(0, len(requests), size):
            part = list(requests[start : start + size])
            replies = self._ask(part)
            if replies is None:
                replies = [self._ask_alone(request) for request in part]
            yield list(zip(part, replies, strict=True))

    @cached_property
    def _instance(self) -> OwnJudge:
        try:
            return self._cls(**self._settings)
        except (EvilspectraError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise BadInput(f"{self._who} refuses its settings: {explained(error)}") from None

    def _ask(self, part: Sequence[Request]) -> list[Reply] | None:
        """A reply for each of several requests; None if they must be asked one by one."""
        if len(part) == 1:
            return None
        try:
            scores = list(self._instance.scores(list(part)))
            return [self._reply(score) for score in scores] if len(scores) == len(part) else None
        except EvilspectraError:
            raise
        except (Exception, SystemExit):
            return None

    def _ask_alone(self, request: Request) -> Reply:
        try:
            scores = list(self._instance.scores([request]))
            if len(scores) != 1:
                return Reply(fault=f"{self._who} returned {len(scores)} scores for 1 request")
            return self._reply(scores[0])
        except EvilspectraError:
            raise
        except (Exception, SystemExit) as error:
            return Reply(fault=f"{self._who} failed: {printable(explained(error), 300)}")

    def _reply(self, score: Any) -> Reply:
        if score is None:
            return Reply(text="")
        if isinstance(score, str) and score in VERDICT_WORDS:
            return Reply(text=str(score))
        number: Any = score if isinstance(score, Real) and not isinstance(score, bool) else -1
        if LOWEST <= number <= HIGHEST:  # which nothing that is not finite is
            return Reply(score=float(number))
        return Reply(
            fault=(
                f"{self._who} returned {printable(short_repr(score), 100)}, which is no number "
                f"from {LOWEST} to {HIGHEST}, CODE, REFUSAL or None"
            )
        )
