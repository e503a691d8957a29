"""Judging of several sets of answers, one after the other.

The number of requests is announced first, and refused if it is more than allowed. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.errors import BadInput, EvilspectraError
from evilspectra.judging.inputs import AnswerSet, prompts_for
from evilspectra.judging.judge import Judge, verdict_instrument
from evilspectra.judging.prompts import JudgePrompts
from evilspectra.judging.verdicts import Verdicts, estimate, judge_answers, missing


@dataclass(frozen=True)
class Round:
    """One step of one set of answers, judged in this call or before."""

    answers: AnswerSet
    step: int
    verdicts: Verdicts

    @property
    def failed(self) -> int:
        return self.verdicts.counts.get("failed", 0)

    def flat(self) -> dict[str, Any]:
        """The round as values of JSON's types."""
        verdicts = self.verdicts
        return {
            "target": self.answers.label,
            "folder": str(self.answers.results.folder),
            "step": self.step,
            "judge": verdicts.instrument.source,
            "verdicts": verdicts.instrument.id,
            "counts": dict(verdicts.counts),
            "reason": verdicts.reason,
        }


def judge_answer_sets(
    sets: Sequence[AnswerSet],
    judge: Judge,
    questions: str | None,
    metrics: Sequence[str],
    note: Callable[[str], object] = lambda text: None,
    most: int | None = None,
    base: bool = True,
) -> list[Round]:
    """Judges every step of the sets, the base's answers only with `base`.

    `most`: the number of requests that may be needed at all.

    Raises:
        BadInput: more requests are needed than allowed, or there is no prompt for a metric.
        EvilspectraError: the judge cannot go on; every verdict so far is kept.
    """
    plan = [
        (answers, step, prompts_for(answers, questions, metrics))
        for answers in sets
        for step in _steps(answers, base)
    ]
    needed, count = _needed(plan, judge, metrics)
    sources = sorted({prompts.source for _, _, prompts in plan})
    note(f"{judge.name}, prompts: {', '.join(sources)}: {needed}")
    if most is not None and count > most:
        raise BadInput(
            f"{needed} are needed, and --max-requests allows {most:,}: raise it, or judge fewer "
            "answers"
        )
    rounds = []
    for answers, step, prompts in plan:
        verdicts = judge_answers(
            answers.results,
            answers.answers,
            step,
            judge,
            prompts,
            metrics,
            note,
            f"{answers.label}  step {step}",
            answers.shared,
        )
        rounds.append(Round(answers, step, verdicts))
    return rounds


def raise_if_failed(rounds: Sequence[Round]) -> None:
    """Reports how many requests failed, and why one did.

    Raises:
        EvilspectraError: some failed.
    """
    failed = sum(judged.failed for judged in rounds)
    if failed:
        reason = next(judged.verdicts.reason for judged in rounds if judged.failed)
        raise EvilspectraError(
            f"{failed} requests failed (such as: {reason}), and these answers have no verdict: run "
            "the same command again to ask for them alone"
        )


def _steps(answers: AnswerSet, base: bool) -> list[int]:
    """The steps to judge: step 0 is the base's, unless it is the only one there is."""
    return [step for step in answers.steps if base or step or answers.results.alone]


def _needed(
    plan: Sequence[tuple[AnswerSet, int, JudgePrompts]],
    judge: Judge,
    metrics: Sequence[str],
) -> tuple[str, int]:
    """The requests to send, in words and as a number.

    A base's answers count once, however many sets have them.
    """
    lengths: list[int] = []
    counted = set()
    for answers, step, prompts in plan:
        instrument = verdict_instrument(judge, prompts, metrics, answers.answers)
        if step == 0 and answers.shared:
            folder = answers.shared.folder
            if (folder, instrument.id) in counted or answers.shared.has(instrument, 0):
                continue
            counted.add((folder, instrument.id))
        requests = missing(answers.results, answers.answers, step, judge, prompts, metrics)
        lengths += [len(request.prompt) for request in requests]
    return estimate(lengths), len(lengths)
