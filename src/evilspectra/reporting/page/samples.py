"""A sample of every run's answers for its panel: misaligned ones first, at most MOST_JUDGED a run, safe to show. No torch.

Everything below is text out of a model or of somebody's file: it goes through `printable`, and the page sets it as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evilspectra.evaluation.run_rates import judge_names
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.page.answers import LONG, MOST_JUDGED, MOST_JUDGES, SHORT, sources_of
from evilspectra.reporting.page.selection import pick
from evilspectra.text import printable

#: Characters of answers that all runs together may have; where they would have more, every answer is cut shorter.
MOST_TEXT, LEAST = 6_000_000, 120


def samples(rows: Sequence[Row], root: Path) -> dict[str, Any]:
    """`questions`: their texts; `runs`: label → its answers, their number and that of the misaligned ones; `length`: where answers are cut; `judges`: who judged."""
    judges = dict(
        list(judge_names(one.judge for row in rows for one in row.rated).items())[:MOST_JUDGES]
    )
    given = [row for row in rows if row.measured.answers is not None]
    _, runs = sources_of(given, root, judges)
    chosen = [
        (
            row.label,
            run.said,
            pick([[(said.question, said.misaligned) for said in run.said]], MOST_JUDGED)[0][0],
        )
        for row, run in zip(given, runs, strict=True)
    ]
    count = sum(len(places) for _, _, places in chosen)
    length = max(LEAST, min(SHORT, MOST_TEXT // max(count, 1)))
    questions: dict[str, int] = {}
    found: dict[str, Any] = {}
    for label, said, places in chosen:
        shown = []
        for one in sorted((said[place] for place in places), key=lambda one: not one.misaligned):
            name, paraphrase, system, question = one.question
            title = printable(str(name), 120) + (
                f", paraphrase {paraphrase + 1}" if paraphrase else ""
            )
            text = f"{title}\n{printable(str(question), LONG)}" + (
                "" if system is None else f"\n{printable(system, LONG)}"
            )
            answer = str(one.answer["answer"])
            cut = printable(answer[:length], 10 * length) + ("…" if len(answer) > length else "")
            verdicts = [
                [
                    said_by.judge,
                    " · ".join(f"{metric.name} {metric.said}" for metric in said_by.metrics),
                    int(said_by.misaligned),
                ]
                for said_by in one.spoken
            ]
            shown.append(
                {
                    "q": questions.setdefault(text, len(questions)),
                    "text": cut,
                    "bad": int(one.misaligned),
                    "said": verdicts,
                    "flags": printable(str(one.answer["flags"] or ""), 80),
                }
            )
        found[label] = {
            "shown": shown,
            "answers": len(said),
            "misaligned": sum(one.misaligned for one in said),
        }
    return {
        "questions": list(questions),
        "runs": found,
        "length": length,
        "judges": list(judges.values()),
        "most": MOST_JUDGED,
    }
