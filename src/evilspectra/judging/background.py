"""Judging in the background: the answers of finished runs are judged while the next run trains.

Requests to a judge over HTTP are sent from a separate thread. A judge on this machine needs the
cores and the memory that training uses, so it waits until all training is done. An outage loses
nothing: every verdict so far is kept, answers without one are judged once more at the end, and
after that by the next call, which samples nothing again. Torch is imported only for a local judge.
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
    """The outcome of judging a set of answers.

    `reason`: why some of them have no verdict, None if all have one; `silent`: the judge could not
    go on.
    """

    answers: AnswerSet
    reason: str | None = None
    silent: bool = False


class BackgroundJudging:
    """Sets of answers that are judged as they come in.

    `report` gets the outcome of each, and may be called in any thread.

    Raises:
        BadInput: the judge is not available: no key, no client, no such model.
    """

    def __init__(
        self,
        judging: Judging,
        note: Callable[[str], object],
        report: Callable[[Verdict], object],
    ) -> None:
        self.judging: Judging = judging
        self.note: Callable[[str], object] = note
        self.report: Callable[[Verdict], object] = report
        self.judge: Judge = make_judge(judging.settings)
        self._queue: queue.SimpleQueue[AnswerSet | None] = queue.SimpleQueue()
        self._again: list[AnswerSet] = []
        self._thread: threading.Thread | None = None
        if judging.settings.kind != "local":
            self._thread = threading.Thread(target=self._judge_queue, daemon=True)
            self._thread.start()

    def add(self, answers: AnswerSet) -> None:
        """Hands over answers that are ready."""
        self._queue.put(answers)

    def finish(self) -> None:
        """Returns when every set has been judged, or the judge has failed a second time."""
        self._queue.put(None)
        if self._thread is None:
            self._judge_queue()
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)  # so that ^C is heard
        self._judge_again(self._again)

    def _judge_queue(self) -> None:
        while (answers := self._queue.get()) is not None:
            verdict = self._judge(answers)
            if verdict.reason is None:
                self.report(verdict)
            else:
                self._again.append(answers)

    def _judge_again(self, sets: Sequence[AnswerSet]) -> None:
        """Judges once more what failed; after a set that ends the judge, no other is tried."""
        silent: str | None = None
        for answers in sets:
            verdict = Verdict(answers, silent, silent=True) if silent else self._judge(answers)
            silent = verdict.reason if verdict.silent else None
            self.report(verdict)

    def _judge(self, answers: AnswerSet) -> Verdict:
        judging = self.judging
        try:
            rounds = judge_answer_sets(
                [answers],
                self.judge,
                judging.questions,
                judging.metrics,
                self.note,
                judging.settings.max_requests,
                judging.base,
            )
        except EvilspectraError as error:
            return Verdict(answers, str(error), silent=True)
        except Exception as error:
            # nothing may end the thread without a word: the sweep would take its sets for judged
            traceback.print_exc()
            return Verdict(answers, f"an unforeseen {type(error).__name__}: {first_line(error)}")
        try:
            raise_if_failed(rounds)
        except EvilspectraError as error:
            return Verdict(answers, str(error))
        return Verdict(answers)
