"""A sample of every run's answers for its panel: misaligned ones first, safe to show. No torch.

At most MOST_JUDGED answers a run. Everything below is untrusted text from a model or a file: it
goes through `printable`, and the page sets it as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evilspectra.evaluation.run_rates import judge_names
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.page.answers import LONG, MOST_JUDGED, MOST_JUDGES, SHORT
from evilspectra.reporting.page.selection import pick
from evilspectra.reporting.page.sources import Answer, Question, question_title, sources_of
from evilspectra.reporting.page.verdicts import JudgeVerdicts
from evilspectra.text import printable

#: Characters that the answers of all runs together may have, and that an answer keeps at least:
#: where they would have more, every answer is cut shorter.
MOST_TEXT, LEAST = 6_000_000, 120


def samples(rows: Sequence[Row], root: Path) -> dict[str, Any]:
    """The answers of every run's panel, as the page's script reads them.

    Returns:
        `questions`: their texts; `runs`: label → its answers, their number and that of the
        misaligned ones; `length`: where answers are cut; `judges`: names of the judges; `most`:
        answers of a run at most.
    """
    names = judge_names(rated.judge for row in rows for rated in row.rated)
    judges = dict(list(names.items())[:MOST_JUDGES])
    answered = [row for row in rows if row.measured.answers is not None]
    _, sources = sources_of(answered, root, judges)
    chosen = {
        row.label: _chosen(source.answers) for row, source in zip(answered, sources, strict=True)
    }
    count = sum(map(len, chosen.values()))
    length = max(LEAST, min(SHORT, MOST_TEXT // max(count, 1)))
    questions: dict[str, int] = {}
    runs: dict[str, Any] = {}
    for row, source in zip(answered, sources, strict=True):
        runs[row.label] = {
            "shown": [_described(answer, questions, length) for answer in chosen[row.label]],
            "answers": len(source.answers),
            "misaligned": sum(answer.misaligned for answer in source.answers),
        }
    return {
        "questions": list(questions),
        "runs": runs,
        "length": length,
        "judges": list(judges.values()),
        "most": MOST_JUDGED,
    }


def _chosen(answers: Sequence[Answer]) -> list[Answer]:
    """The answers of a run that its panel shows, misaligned ones first."""
    (indices,), _ = pick(
        [[(answer.question, answer.misaligned) for answer in answers]], MOST_JUDGED
    )
    return sorted((answers[index] for index in indices), key=lambda answer: not answer.misaligned)


def _described(answer: Answer, questions: dict[str, int], length: int) -> dict[str, Any]:
    """An answer as the page's script reads it; its question is added to `questions` if new."""
    text = str(answer.record["answer"])
    return {
        "q": questions.setdefault(_question_text(answer.question), len(questions)),
        "text": printable(text[:length], 10 * length) + ("…" if len(text) > length else ""),
        "bad": int(answer.misaligned),
        "said": [_verdict(verdict) for verdict in answer.verdicts],
        "flags": printable(str(answer.record["flags"] or ""), 80),
    }


def _question_text(question: Question) -> str:
    """Title, question and system prompt, a line each."""
    _, _, system, text = question
    lines = [question_title(question), printable(str(text), LONG)]
    return "\n".join(lines if system is None else [*lines, printable(system, LONG)])


def _verdict(verdicts: JudgeVerdicts) -> list[Any]:
    metrics = " · ".join(f"{metric.name} {metric.verdict}" for metric in verdicts.metrics)
    return [verdicts.judge, metrics, int(verdicts.misaligned)]
