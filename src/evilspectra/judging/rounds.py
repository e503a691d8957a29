"""Judging several places one after the other: what it will take is said first, and refused if it is more than allowed. No torch here."""

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
    """One step of one place, judged in this call or before."""

    answers: AnswerSet
    step: int
    verdicts: Verdicts

    @property
    def failed(self) -> int:
        return self.verdicts.counts.get("failed", 0)

    def flat(self) -> dict[str, Any]:
        """Of JSON's types."""
        found = self.verdicts
        return {
            "target": self.answers.label,
            "folder": str(self.answers.results.folder),
            "step": self.step,
            "judge": found.instrument.source,
            "verdicts": found.instrument.id,
            "counts": dict(found.counts),
            "reason": found.reason,
        }


def judge_answer_sets(
    places: Sequence[AnswerSet],
    judge: Judge,
    questions: str | None,
    metrics: Sequence[str],
    note: Callable[[str], object] = lambda text: None,
    most: int | None = None,
    base: bool = True,
) -> list[Round]:
    """Judges every step of the places, the base's answers only with `base`; `most`: requests that may be needed at all.

    Raises:
        BadInput: more requests are needed than allowed, or there is no prompt for a metric.
        EvilspectraError: the judge cannot go on; what it said before is kept.
    """
    plan = [
        (place, step, prompts_for(place, questions, metrics))
        for place in places
        for step in place.steps
        if base or step or place.results.alone
    ]
    words, count = _needed(plan, judge, metrics)
    sources = sorted({prompts.source for _, _, prompts in plan})
    note(f"{judge.name}, prompts: {', '.join(sources)}: {words}")
    if most is not None and count > most:
        raise BadInput(
            f"{words} are needed, and --max-requests allows {most:,}: raise it, or judge fewer "
            "answers"
        )
    done = []
    for place, step, prompts in plan:
        label = f"{place.label}  step {step}"
        done.append(
            Round(
                place,
                step,
                judge_answers(
                    place.results,
                    place.answers,
                    step,
                    judge,
                    prompts,
                    metrics,
                    note,
                    label,
                    place.shared,
                ),
            )
        )
    return done


def raise_if_failed(rounds: Sequence[Round]) -> None:
    """Says how many requests failed, and why one did.

    Raises:
        EvilspectraError: some failed.
    """
    failed = sum(one.failed for one in rounds)
    if failed:
        reason = next(one.verdicts.reason for one in rounds if one.failed)
        raise EvilspectraError(
            f"{failed} requests failed (such as: {reason}), and these answers have no verdict: "
            "run the same command again to ask for them alone"
        )


def _needed(
    plan: Sequence[tuple[AnswerSet, int, JudgePrompts]], judge: Judge, metrics: Sequence[str]
) -> tuple[str, int]:
    """What is to be asked, in words and as a number; a base's answers count once, however many places have them."""
    counts: list[int] = []
    seen = set()
    for place, step, prompts in plan:
        instrument = verdict_instrument(judge, prompts, metrics, place.answers)
        if step == 0 and place.shared:
            if (place.shared.folder, instrument.id) in seen or place.shared.has(instrument, 0):
                continue
            seen.add((place.shared.folder, instrument.id))
        counts += [
            len(request.prompt)
            for request in missing(place.results, place.answers, step, judge, prompts, metrics)
        ]
    return estimate(counts), len(counts)
