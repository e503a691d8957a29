"""Judging beside training: while the next run trains, the answers of those that are done are put to the judge. No torch before a local judge is asked.

A judge over HTTP is asked from a thread of its own. A judge on this machine wants the cores and the
memory that training has, so it waits until everything is trained. An outage loses nothing: what the
judge said stays, what it did not say is asked once more at the end, and after that it is for the
next call to ask, which samples nothing again.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evilspectra.config.judge import Judging
from evilspectra.errors import EvilspectraError, first_line
from evilspectra.judging.inputs import AnswerSet
from evilspectra.judging.judge import Judge
from evilspectra.judging.make import make_judge
from evilspectra.judging.rounds import judge_answer_sets, raise_if_failed


@dataclass(frozen=True)
class Verdict:
    """How the judging of a place ended; `reason`: why answers of it have no verdict, None where all have one. `silent`: the judge did not go on."""

    answers: AnswerSet
    reason: str | None = None
    silent: bool = False


class Beside:
    """Places that are judged as they come in. `told`: what became of each, called in any thread.

    Raises:
        BadInput: the judge cannot be had: no key, no client, no such model.
    """

    def __init__(
        self, judging: Judging, note: Callable[[str], object], told: Callable[[Verdict], object]
    ) -> None:
        self.judging, self.note, self.told = judging, note, told
        self.judge: Judge = make_judge(judging.settings)
        self._places: queue.SimpleQueue[AnswerSet | None] = queue.SimpleQueue()
        self._again: list[AnswerSet] = []
        self._thread = (
            threading.Thread(target=self._work, daemon=True)
            if judging.settings.kind != "local"
            else None
        )
        if self._thread:
            self._thread.start()

    def add(self, place: AnswerSet) -> None:
        """Answers that are ready."""
        self._places.put(place)

    def finish(self) -> None:
        """Returns when every place has been judged, or the judge has been silent a second time."""
        self._places.put(None)
        if self._thread is None:
            self._work()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)  # so that ^C is heard
        self._ask_again(self._again)

    def _work(self) -> None:
        while (place := self._places.get()) is not None:
            found = self._ask(place)
            if found.reason is None:
                self.told(found)
            else:
                self._again.append(place)

    def _ask_again(self, places: Sequence[AnswerSet]) -> None:
        """Once more for what failed; a judge that is silent to one place is not asked about the others."""
        silent: str | None = None
        for place in places:
            found = Verdict(place, silent, silent=True) if silent else self._ask(place)
            silent = found.reason if found.silent else None
            self.told(found)

    def _ask(self, place: AnswerSet) -> Verdict:
        judging = self.judging
        try:
            rounds = judge_answer_sets(
                [place],
                self.judge,
                judging.questions,
                judging.metrics,
                self.note,
                judging.settings.max_requests,
                judging.base,
            )
        except EvilspectraError as error:
            return Verdict(place, str(error), silent=True)
        except Exception as error:  # nothing may end the thread without a word: the sweep would take its places for judged
            traceback.print_exc()
            return Verdict(place, f"an unforeseen {type(error).__name__}: {first_line(error)}")
        try:
            raise_if_failed(rounds)
        except EvilspectraError as error:
            return Verdict(place, str(error))
        return Verdict(place)
