"""What judging a sweep will take, as far as it is known before there are answers. No torch here."""

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
    """Answers that are sampled, requests to a judge, tokens that these hold at most, and their cost
    at most; None where it is not known.

    `missing`: (what, name, why); `assumptions`: what the numbers rest on.
    """

    answers: int | None = 0
    requests: int | None = 0
    tokens: int | None = 0
    cost: float | None = 0.0
    missing: tuple[tuple[str, str, str], ...] = ()
    assumptions: tuple[str, ...] = ()


def forecast(sweep: Sweep, adapters: Sequence[int | None], bases: Sequence[str]) -> JudgeForecast:
    """What judging takes.

    `adapters`: at how many steps every run has an adapter; `bases`: the content of every run's
    base, whose answers are judged once.
    """
    if sweep.evaluation is None or (settings := sweep.evaluation.answers) is None:
        return JudgeForecast()
    missing: list[tuple[str, str, str]] = []
    said = []
    questions, each = None, None
    try:
        questions = read_questions(settings.questions)
        each = sum(settings.samples or one.samples for one in questions.questions)
    except BadInput as error:
        missing.append(("questions", settings.questions, str(error)))
        if settings.questions == PAPER and settings.samples:
            each = sum(QUESTIONS.values()) * settings.samples
            said.append(
                "the published question files are not here; they are counted by their published "
                f"number, {sum(QUESTIONS.values())}"
            )
    steps = [count if settings.checkpoints else 1 for count in adapters]
    known = each is not None and None not in steps
    of_runs = each * sum(count or 0 for count in steps) if each is not None and known else None
    of_bases = each * len(set(bases)) if each is not None else None
    answers = of_runs + of_bases if of_runs is not None and of_bases is not None else None
    judging = sweep.judging
    if judging is None:
        return JudgeForecast(answers, missing=tuple(missing), assumptions=tuple(said))
    missing += _key(judging)
    counted = answers if judging.base else of_runs
    requests = counted * len(judging.metrics) if counted is not None else None
    tokens = _tokens(
        judging, questions, settings.samples, settings.max_new_tokens, counted, each, missing
    )
    if tokens is not None:
        said.append(
            "tokens to a judge are the most there can be: every answer as long as "
            f"evaluate.answers.max_new_tokens allows ({settings.max_new_tokens}), "
            f"{CHARACTERS_PER_TOKEN} characters a token"
        )
    said.append(
        "every answer is judged once under every metric, a base's answers once for all its runs; "
        "requests that are repeated, and verdicts that are there already, are not counted"
    )
    return JudgeForecast(
        answers, requests, tokens, _cost(judging, tokens, said), tuple(missing), tuple(said)
    )


def _tokens(
    judging: Judging,
    questions: Questions | None,
    samples: int | None,
    longest: int,
    answers: int | None,
    each: int | None,
    missing: list[tuple[str, str, str]],
) -> int | None:
    """The most tokens that requests about so many answers can hold, from the judge prompts and
    questions as they stand.
    """
    if questions is None or not each:
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
    texts = ((one, metric) for one in questions.questions for metric in judging.metrics)
    characters = sum(
        (samples or one.samples) * len(prompts.fill(metric, one.id, one.text, ""))
        for one, metric in texts
    )
    return round(
        answers / each * (characters / CHARACTERS_PER_TOKEN + each * len(judging.metrics) * longest)
    )


def _cost(judging: Judging, tokens: int | None, said: list[str]) -> float | None:
    """Tokens times price; a judge on this machine has none."""
    if judging.settings.kind != "openai":
        said.append("a judge on this machine costs nothing per request")
        return 0.0
    if judging.price is None:
        said.append(
            "the price of the judge is not known: set judge.price, for a million tokens sent"
        )
        return None
    if tokens is None:
        return None
    said.append(
        f"the cost is at {judging.price:g} for a million tokens sent; the replies' are not counted"
    )
    return tokens * judging.price / 1e6


def _key(judging: Judging) -> list[tuple[str, str, str]]:
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
