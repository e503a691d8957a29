"""Sampled answers, question by question, the base's first: bounded in number and length. No torch.

Where a judge has judged any of them, the misaligned ones come first, and every answer has its
verdicts. Everything below is untrusted text from a model or a file: it goes through `printable`,
and the page escapes it.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from evilspectra.answers.flags import FLAGS
from evilspectra.answers.questions import BUILT_IN
from evilspectra.config.evaluation import Answers
from evilspectra.evaluation.run_rates import judge_names
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.page.selection import pick
from evilspectra.reporting.page.sources import (
    Answer,
    Question,
    Source,
    question_title,
    sources_of,
)
from evilspectra.reporting.page.verdicts import JudgeVerdicts
from evilspectra.store.results import Instrument
from evilspectra.text import printable

#: What the page holds at most: runs, bases, questions, and samples per question of each of them.
MOST_RUNS, MOST_BASES, MOST_QUESTIONS, MOST_SAMPLES = 12, 3, 60, 2
#: Of judged runs: answers of each, and judges whose verdicts are shown with an answer.
MOST_JUDGED, MOST_JUDGES = 40, 3
#: Characters of an answer that are shown, and that can be unfolded.
SHORT, LONG = 600, 4000
#: Settings of sampling: those with an option of their own, and those that `--set` takes.
_OPTIONS = ("samples", "max_new_tokens", "temperature", "seed")
_SETTINGS = ("top_p", "batch_size", "enable_thinking")


@dataclass(frozen=True)
class Reply:
    """One answer. `arm` is empty for a base; `length` in characters.

    `full` is None where `short` is all of it. `verdicts`: those of the judges, and `misaligned`:
    whether the answer counts so by the verdicts of any of them.
    """

    name: str
    arm: str
    sample: int
    flags: tuple[str, ...]
    short: str
    full: str | None
    length: int
    verdicts: tuple[JudgeVerdicts, ...] = ()

    @property
    def misaligned(self) -> bool:
        return any(verdict.misaligned for verdict in self.verdicts)


@dataclass(frozen=True)
class Exchange:
    """A question with each source's answers."""

    name: str
    system: str | None
    question: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Tally:
    """The number of answers that a source gave at a step.

    `counts`: how many have any flag, then how many have each, in the order of `FLAGS`.
    """

    name: str
    arm: str
    step: int
    answers: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Transcripts:
    """The section's content.

    `left_out`: what the page does not hold, in words; `commands` write all of it to a file.
    `judges`: those whose verdicts are on the page, none where nothing was judged; `runs`: names of
    the runs on the page; `unjudged`: those of them that no judge judged.
    """

    exchanges: tuple[Exchange, ...]
    tallies: tuple[Tally, ...]
    left_out: tuple[str, ...]
    commands: tuple[str, ...]
    judges: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    most: int = MOST_JUDGED


def transcripts(rows: Sequence[Row], root: Path, arms: Sequence[str]) -> Transcripts | None:
    """The answers of the runs' last measured steps; None if there are none.

    `arms`: their names, in the order in which their runs come.
    """
    names = judge_names(rated.judge for row in rows for rated in row.rated)
    judges = dict(list(names.items())[:MOST_JUDGES])
    ordered = sorted(rows, key=lambda row: arms.index(row.summary.arm))
    bases, runs = sources_of(ordered, root, judges)
    if not runs:
        return None
    chosen = _spread(runs)
    on_page = [run for run in runs if run in chosen]
    sources = [*bases[:MOST_BASES], *on_page]
    if names:
        by_question, further = _judged_answers(bases[:MOST_BASES], on_page)
    else:
        by_question, further = _first_answers(sources)
    total = len({answer.question for source in sources for answer in source.answers})
    exchanges = [
        _exchange(question, answers)
        for question, answers in list(by_question.items())[:MOST_QUESTIONS]
    ]
    missing = (
        (len(runs) - len(chosen), "run"),
        (len(bases) - MOST_BASES, "base"),
        (total - len(exchanges), "question"),
        (further, "further answer" if names else "further sample"),
        (len(names) - MOST_JUDGES, "judge"),
    )
    return Transcripts(
        tuple(exchanges),
        tuple(_tally(source) for source in (*bases, *runs)),
        tuple(
            f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in missing if count > 0
        ),
        _commands(rows),
        judges=tuple(judges.values()),
        runs=tuple(run.name for run in on_page if names),
        unjudged=tuple(run.name for run in on_page if names and not run.judges),
    )


def _tally(source: Source) -> Tally:
    flags_of_answers = [_flags(text) for text in source.table["flags"]]
    return Tally(
        source.name,
        source.arm,
        source.step,
        len(flags_of_answers),
        (
            sum(map(bool, flags_of_answers)),
            *(sum(name in flags for flags in flags_of_answers) for name in FLAGS),
        ),
    )


def _first_answers(sources: Sequence[Source]) -> tuple[dict[Question, list[Answer]], int]:
    """Question → the first samples of every source, and how many further ones there are."""
    by_question: dict[Question, list[Answer]] = defaultdict(list)
    further = 0
    for source in sources:
        taken: Counter[Question] = Counter()
        for answer in source.answers:
            taken[answer.question] += 1
            if taken[answer.question] <= MOST_SAMPLES:
                by_question[answer.question].append(answer)
            else:
                further += 1
    return by_question, further


def _judged_answers(
    bases: Sequence[Source], runs: Sequence[Source]
) -> tuple[dict[Question, list[Answer]], int]:
    """Question → the answers to show, and how many further answers there are.

    Misaligned answers come first, the bases' in front of the runs'.
    """
    indices, rank = pick(
        [[(answer.question, answer.misaligned) for answer in run.answers] for run in runs],
        MOST_JUDGED,
    )
    taken: dict[Question, list[Answer]] = defaultdict(list)
    for run, chosen in zip(runs, indices, strict=True):
        for answer in _misaligned_first([run.answers[index] for index in chosen]):
            taken[answer.question].append(answer)
    questions = sorted(taken, key=lambda question: rank[question])[:MOST_QUESTIONS]
    for base in bases[::-1]:
        answers = _misaligned_first(
            [answer for answer in base.answers if answer.question in questions]
        )
        for question in questions:
            to_question = [answer for answer in answers if answer.question == question]
            taken[question][:0] = to_question[:MOST_SAMPLES]
    count = sum(len(taken[question]) for question in questions)
    total = sum(len(source.answers) for source in (*bases, *runs))
    return {question: taken[question] for question in questions}, total - count


def _misaligned_first(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: not answer.misaligned)


def _spread(runs: Sequence[Source]) -> list[Source]:
    """At most MOST_RUNS of the runs, every arm's first ones first."""
    groups: dict[str, list[Source]] = defaultdict(list)
    for run in runs:
        groups[run.arm].append(run)
    turns = zip_longest(*groups.values())
    return [run for turn in turns for run in filter(None, turn)][:MOST_RUNS]


def _exchange(key: Question, answers: Sequence[Answer]) -> Exchange:
    _, _, system, question = key
    return Exchange(
        question_title(key),
        None if system is None else printable(system, LONG),
        printable(str(question), LONG),
        tuple(map(_reply, answers)),
    )


def _reply(answer: Answer) -> Reply:
    source, record = answer.source, answer.record
    text = str(record["answer"])
    cut = len(text) > SHORT
    return Reply(
        source.name,
        source.arm,
        int(record["sample"]),
        _flags(record["flags"]),
        printable(text[:SHORT], 10 * SHORT) + ("…" if cut else ""),
        printable(text, LONG) if cut else None,
        len(text),
        answer.verdicts,
    )


def _flags(text: str) -> tuple[str, ...]:
    return tuple(printable(flag, 40) for flag in str(text).split(",")[:8] if flag)


def _commands(rows: Sequence[Row]) -> tuple[str, ...]:
    """One command per way of sampling that writes all answers of a run to a file."""
    ways = {row.instruments["answers"].id: row for row in rows if row.measured.answers is not None}
    return tuple(command(row.instruments["answers"]) for row in ways.values())


def command(instrument: Instrument) -> str:
    """The command that exports answers sampled in a way, of the run RUN.

    It names the settings that are not the default.

    >>> command(Instrument("answers", "open", {"seed": 0, "max_new_tokens": 80, "top_p": 0.9}))
    'evilspectra generate RUN --export answers.csv --max-new-tokens 80 --set top_p=0.9'
    """
    arguments = ["evilspectra", "generate", "RUN", "--export", "answers.csv"]
    if instrument.source not in BUILT_IN:
        arguments += ["--questions", printable(instrument.source, LONG)]
    if instrument.facts.get("endpoint"):
        model = printable(str(instrument.facts.get("model")), LONG)
        arguments += ["--endpoint", "URL", "--endpoint-model", model]
    defaults = Answers().model_dump() | {"enable_thinking": False}
    for name in (*_OPTIONS, *_SETTINGS):
        value = instrument.facts.get(name)
        if value is None or value == defaults[name]:
            continue
        text = json.dumps(value)
        if name in _OPTIONS:
            arguments += [f"--{name.replace('_', '-')}", text]
        else:
            arguments += ["--set", f"{name}={text}"]
    return " ".join(map(shlex.quote, arguments))
