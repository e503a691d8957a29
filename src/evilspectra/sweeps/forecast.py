"""A forecast of the cost of judging a sweep, before there are answers. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from evilspectra.answers.questions import Questions, read_questions
from evilspectra.config.judge import Judging
from evilspectra.data.published import QUESTIONS
from evilspectra.errors import BadInput
from evilspectra.judging.prompts import judge_prompts
from evilspectra.judging.verdicts import CHARACTERS_PER_TOKEN
from evilspectra.store.built_in import PAPER
from evilspectra.sweeps.file import Sweep


@dataclass(frozen=True)
class JudgeForecast:
    """Sampled answers, requests to a judge, and upper bounds on their tokens and cost.

    None where a number is not known. `missing`: (what, name, why); `assumptions`: the assumptions
    behind the numbers.
    """

    answers: int | None = 0
    requests: int | None = 0
    tokens: int | None = 0
    cost: float | None = 0.0
    missing: tuple[tuple[str, str, str], ...] = ()
    assumptions: tuple[str, ...] = ()


def forecast(sweep: Sweep, adapters: Sequence[int | None], bases: Sequence[str]) -> JudgeForecast:
    """Forecasts what judging takes.

    `adapters`: at how many steps every run has an adapter; `bases`: the content of every run's
    base, whose answers are judged once.
    """
    if sweep.evaluation is None or (settings := sweep.evaluation.answers) is None:
        return JudgeForecast()
    missing: list[tuple[str, str, str]] = []
    assumptions: list[str] = []
    questions, per_step = None, None
    try:
        questions = read_questions(settings.questions)
        per_step = sum(settings.samples or question.samples for question in questions.questions)
    except BadInput as error:
        missing.append(("questions", settings.questions, str(error)))
        if settings.questions == PAPER and settings.samples:
            per_step = sum(QUESTIONS.values()) * settings.samples
            assumptions.append(
                "the published question files are not here; their published number, "
                f"{sum(QUESTIONS.values())}, is assumed"
            )
    steps = [count if settings.checkpoints else 1 for count in adapters]
    of_runs, answers = None, None
    if per_step is not None and None not in steps:
        of_runs = per_step * sum(count or 0 for count in steps)
        answers = of_runs + per_step * len(set(bases))
    judging = sweep.judging
    if judging is None:
        return JudgeForecast(answers, missing=tuple(missing), assumptions=tuple(assumptions))
    missing += _key(judging)
    counted = answers if judging.base else of_runs
    requests = counted * len(judging.metrics) if counted is not None else None
    tokens = _tokens(
        judging,
        questions,
        settings.samples,
        settings.max_new_tokens,
        counted,
        per_step,
        missing,
    )
    if tokens is not None:
        assumptions.append(
            "the number of tokens sent to a judge is an upper bound: every answer as long as "
            f"evaluate.answers.max_new_tokens allows ({settings.max_new_tokens}), at "
            f"{CHARACTERS_PER_TOKEN} characters per token"
        )
    assumptions.append(
        "every answer is judged once under every metric, a base's answers once for all its runs; "
        "neither repeated requests nor existing verdicts are taken into account"
    )
    cost = _cost(judging, tokens, assumptions)
    return JudgeForecast(
        answers,
        requests,
        tokens,
        cost,
        tuple(missing),
        tuple(assumptions),
    )


def _tokens(
    judging: Judging,
    questions: Questions | None,
    samples: int | None,
    longest: int,
    answers: int | None,
    per_step: int | None,
    missing: list[tuple[str, str, str]],
) -> int | None:
    """The most tokens that requests about `answers` answers can hold.

    Computed from the judge prompts and questions as they are; `per_step`: answers at one step of
    one run; `longest`: the most tokens of an answer.
    """
    if questions is None or not per_step:
        return None
    try:
        prompts = judge_prompts(
            questions if judging.questions is None else read_questions(judging.questions),
            judging.metrics,
        )
    except BadInput as error:
        missing.append(("questions", judging.questions or questions.source, str(error)))
        return None
    if answers is None:
        return None
    characters = sum(
        (samples or question.samples) * len(prompts.fill(metric, question.id, question.text, ""))
        for question in questions.questions
        for metric in judging.metrics
    )
    prompt_tokens = characters / CHARACTERS_PER_TOKEN
    answer_tokens = per_step * len(judging.metrics) * longest
    return round(answers / per_step * (prompt_tokens + answer_tokens))


def _cost(judging: Judging, tokens: int | None, assumptions: list[str]) -> float | None:
    """Tokens times price, explained in `assumptions`; a judge on this machine costs nothing."""
    if judging.settings.kind != "openai":
        assumptions.append("a judge on this machine costs nothing per request")
        return 0.0
    if judging.price is None:
        assumptions.append(
            "the price of the judge is not known: set judge.price, per million tokens sent"
        )
        return None
    if tokens is None:
        return None
    assumptions.append(
        f"the cost is at {judging.price:g} per million tokens sent; the tokens of replies are not "
        "counted"
    )
    return tokens * judging.price / 1e6


def _key(judging: Judging) -> list[tuple[str, str, str]]:
    """The key that the judge needs and that is not set, as an entry of `missing`."""
    settings = judging.settings
    if (
        settings.kind != "openai"
        or settings.url
        or os.environ.get("OPENAI_BASE_URL")
        or os.environ.get(settings.key_variable)
    ):
        return []
    return [
        (
            "key",
            settings.key_variable,
            (
                f"the environment variable {settings.key_variable} holds no key for the judge "
                f"{settings.judge}: set it before judging"
            ),
        )
    ]
