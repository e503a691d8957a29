"""What a judge is asked: a text per metric, with places for the question and the answer.

Texts come from the `judge_prompts` of the question file where it has them, and are used to the
letter; else they are the package's own, which stand beside its own questions. Places are
{question}, {answer}, and {mark}: eight hexadecimal digits made of both, which the package's texts
put into the lines around an answer, so that an answer cannot write the line that closes it. All are
filled in one pass, so what looks like a place inside an answer stays as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evilspectra.answers.questions import Questions, read_questions
from evilspectra.config.judge import METRICS
from evilspectra.errors import BadInput, listing, near

#: The name of the package's own questions, whose file has its own judge prompts.
OWN = "open"
_PLACE = re.compile(r"\{(question|answer|mark)\}")


@dataclass(frozen=True)
class JudgePrompts:
    """Metric → text: `usual` for every question, `special` by question id for those whose file says something else. `source` names them."""

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
        """What the judge is sent about an answer."""
        return fill(self.special.get(question_id, self.usual)[metric], question, answer)

    def facts(self, metrics: Sequence[str]) -> dict[str, list[str]]:
        """Metric → hashes of the texts in use: what of the prompts determines a verdict."""
        texts = {
            metric: {self.usual[metric], *(one[metric] for one in self.special.values())}
            for metric in metrics
        }
        return {
            metric: sorted(hashlib.sha256(text.encode()).hexdigest()[:20] for text in found)
            for metric, found in texts.items()
        }


def fill(template: str, question: str, answer: str) -> str:
    """The template with its places filled, in one pass.

    >>> fill("{question} -> {answer}", "Why?", "{question}")
    'Why? -> {question}'
    """
    mark = hashlib.sha256(f"{question}\0{answer}".encode("utf-8", "replace")).hexdigest()[:8]
    values = {"question": question, "answer": answer, "mark": mark}
    return _PLACE.sub(lambda found: values[found[1]], template)


def judge_prompts(questions: Questions | None, metrics: Sequence[str] = METRICS) -> JudgePrompts:
    """The texts of a question file for `metrics`, or the package's own where it has none.

    Raises:
        BadInput: a metric without a text, or a text without a place for the answer.
    """
    if not metrics or len(set(metrics)) < len(metrics):
        raise BadInput(
            f"the metrics {listing(metrics) or '(none)'} are no list of different names: give "
            f"some, such as {','.join(METRICS)}"
        )
    found = (
        {
            question.id: dict(question.judge_prompts)
            for question in questions.questions
            if question.judge_prompts
        }
        if questions
        else {}
    )
    if not questions or not found:
        return _chosen({}, _own(), metrics, f"the package's own ({OWN})")
    complete = {name: texts for name, texts in found.items() if set(metrics) <= texts.keys()}
    if len(complete) < len({question.id for question in questions.questions}):
        lacking = next(
            question.id for question in questions.questions if question.id not in complete
        )
        known = sorted({metric for texts in found.values() for metric in texts})
        missing = next(metric for metric in metrics if metric not in found.get(lacking, {}))
        raise BadInput(
            f"{questions.source} has no judge prompt '{missing}' for the question '{lacking}' (it "
            f"has {listing(known)}): add it to that entry, or ask for other "
            f"metrics.{near(missing, known)}"
        )
    return _chosen(complete, next(iter(complete.values())), metrics, questions.source)


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
                f"{listing(usual)}; name a question file that has it with "
                f"--questions.{near(metric, usual)}"
            )
    texts: dict[str, dict[str, Any]] = {
        name: {metric: one[metric] for metric in metrics} for name, one in special.items()
    }
    shared = {metric: usual[metric] for metric in metrics}
    for one in [shared, *texts.values()]:
        for metric, text in one.items():
            if "{answer}" not in text:
                raise BadInput(
                    f"the judge prompt '{metric}' of {source} has no place {{answer}}: write "
                    f"{{answer}} where the answer is to stand"
                )
    return JudgePrompts(shared, {name: one for name, one in texts.items() if one != shared}, source)


@lru_cache(maxsize=1)
def _own() -> Mapping[str, str]:
    return dict(
        read_questions(str(Path(__file__).parents[1] / "assets" / "questions.yaml"))
        .questions[0]
        .judge_prompts
    )
