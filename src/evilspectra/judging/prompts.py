"""The prompts of a judge: a text per metric, with placeholders for the question and the answer.

The texts are the `judge_prompts` of the question file, used verbatim; a file without any gets those
of the package's own questions. Placeholders are {question}, {answer}, and {mark}: eight hexadecimal
digits derived from both, which the package's texts put into the lines around an answer, so that an
answer cannot contain its own closing line. All are filled in one pass, so a placeholder inside an
answer stays unchanged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from evilspectra.answers.questions import Questions, read_questions
from evilspectra.config.judge import METRICS
from evilspectra.errors import BadInput, listing, near

#: The name of the package's own questions, whose file has its own judge prompts.
OWN = "open"
_PLACEHOLDER = re.compile(r"\{(question|answer|mark)\}")


@dataclass(frozen=True)
class JudgePrompts:
    """Metric → text, for every question.

    `usual`: the texts of most questions; `special`: those of the others, by question id; `source`
    names them.
    """

    usual: Mapping[str, str]
    special: Mapping[str, Mapping[str, str]]
    source: str

    def fill(
        self,
        metric: str,
        question_id: str,
        question: str,
        answer: str,
    ) -> str:
        """The prompt about an answer."""
        return fill(self.special.get(question_id, self.usual)[metric], question, answer)

    def facts(self, metrics: Sequence[str]) -> dict[str, list[str]]:
        """Metric → hashes of the texts in use, which determine a verdict."""
        texts = {
            metric: {self.usual[metric], *(own[metric] for own in self.special.values())}
            for metric in metrics
        }
        return {
            metric: sorted(hashlib.sha256(text.encode()).hexdigest()[:20] for text in variants)
            for metric, variants in texts.items()
        }


def fill(template: str, question: str, answer: str) -> str:
    """The template with its placeholders filled, in one pass.

    >>> fill("{question} -> {answer}", "Why?", "{question}")
    'Why? -> {question}'
    """
    mark = hashlib.sha256(f"{question}\0{answer}".encode("utf-8", "replace")).hexdigest()[:8]
    values = {"question": question, "answer": answer, "mark": mark}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def judge_prompts(questions: Questions | None, metrics: Sequence[str] = METRICS) -> JudgePrompts:
    """The texts of a question file for `metrics`, or the package's own if it has none.

    Raises:
        BadInput: a metric without a text, or a text without a placeholder for the answer.
    """
    if not metrics or len(set(metrics)) < len(metrics):
        raise BadInput(
            f"the metrics {listing(metrics) or '(none)'} are no list of different names: give "
            f"some, such as {','.join(METRICS)}"
        )
    texts = _texts(questions) if questions else {}
    if not questions or not texts:
        return _chosen({}, _own(), metrics, f"the package's own ({OWN})")
    complete = {name: prompts for name, prompts in texts.items() if set(metrics) <= prompts.keys()}
    ids = [question.id for question in questions.questions]
    if len(complete) < len(set(ids)):
        lacking = next(name for name in ids if name not in complete)
        available = sorted({metric for prompts in texts.values() for metric in prompts})
        missing = next(metric for metric in metrics if metric not in texts.get(lacking, {}))
        raise BadInput(
            f"{questions.source} has no judge prompt '{missing}' for the question '{lacking}' (it "
            f"has {listing(available)}): add it to that entry, or ask for other metrics."
            f"{near(missing, available)}"
        )
    return _chosen(complete, next(iter(complete.values())), metrics, questions.source)


def _texts(questions: Questions) -> dict[str, dict[str, str]]:
    """Question id → metric → text, of the questions that have some."""
    return {
        question.id: dict(question.judge_prompts)
        for question in questions.questions
        if question.judge_prompts
    }


def _chosen(
    special: Mapping[str, Mapping[str, str]],
    usual: Mapping[str, str],
    metrics: Sequence[str],
    source: str,
) -> JudgePrompts:
    for metric in metrics:
        if metric not in usual:
            raise BadInput(
                f"there is no judge prompt '{metric}' among {source}: allowed are "
                f"{listing(usual)}; name a question file that has it with --questions."
                f"{near(metric, usual)}"
            )
    by_question: dict[str, dict[str, str]] = {
        name: {metric: texts[metric] for metric in metrics} for name, texts in special.items()
    }
    shared = {metric: usual[metric] for metric in metrics}
    for texts in [shared, *by_question.values()]:
        for metric, text in texts.items():
            if "{answer}" not in text:
                raise BadInput(
                    f"the judge prompt '{metric}' of {source} has no place {{answer}}: write "
                    "{answer} where the answer is to stand"
                )
    differing = {name: texts for name, texts in by_question.items() if texts != shared}
    return JudgePrompts(shared, differing, source)


@lru_cache(maxsize=1)
def _own() -> Mapping[str, str]:
    return dict(read_questions("open").questions[0].judge_prompts)
