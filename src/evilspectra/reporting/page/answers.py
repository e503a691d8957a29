"""Sampled answers for the report: question by question, the base's first, bounded in number and length, safe to show. No torch.

Where a judge has judged any of them, the misaligned ones come first, and every answer has its verdicts.
Everything below is text out of a model or of somebody's file: it goes through `printable`, and the page escapes it.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from evilspectra.answers.flags import FLAGS
from evilspectra.answers.questions import BUILT_IN
from evilspectra.config.evaluation import Answers
from evilspectra.evaluation.run_rates import counting, judge_names
from evilspectra.judging.judge import Key
from evilspectra.reporting.comparison import Row, known
from evilspectra.reporting.page.selection import pick
from evilspectra.reporting.page.verdicts import Spoken, spoken
from evilspectra.store.results import Instrument, Results, last
from evilspectra.text import printable

#: What the page holds at most: runs (and bases), questions, and samples per question of each of them.
MOST_RUNS, MOST_BASES, MOST_QUESTIONS, MOST_SAMPLES = 12, 3, 60, 2
#: Of judged runs: answers of each, and judges whose verdicts stand beside an answer.
MOST_JUDGED, MOST_JUDGES = 40, 3
#: Characters of an answer that are shown, and that can be unfolded.
SHORT, LONG = 600, 4000


@dataclass(frozen=True)
class Reply:
    """One answer. `arm` is empty for a base; `full` is None where `short` is all of it; `length` in characters.

    `spoken`: what the judges said of it, and `misaligned`: whether it counts so by the verdicts of any of them.
    """

    name: str
    arm: str
    sample: int
    flags: tuple[str, ...]
    short: str
    full: str | None
    length: int
    spoken: tuple[Spoken, ...] = ()

    @property
    def misaligned(self) -> bool:
        return any(one.misaligned for one in self.spoken)


@dataclass(frozen=True)
class Exchange:
    """A question, and what each source answered."""

    name: str
    system: str | None
    question: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Tally:
    """How many answers a source gave at a step; `counts`: with any flag, then with each in the order of `FLAGS`."""

    name: str
    arm: str
    step: int
    answers: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Transcripts:
    """The section's content. `left_out`: what the page does not hold, in words; `commands` write all of it to a file.

    `judges`: whose verdicts are on the page, none where nothing was judged; `runs`: names of the runs on the page; `unjudged`: those that no judge judged.
    """

    exchanges: tuple[Exchange, ...]
    tallies: tuple[Tally, ...]
    left_out: tuple[str, ...]
    commands: tuple[str, ...]
    judges: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    most: int = MOST_JUDGED


@dataclass(frozen=True, eq=False)
class _Source:
    """A base or a run, its answers, and where verdicts on them are."""

    name: str
    arm: str
    answers: Any
    results: Results
    judges: Mapping[str, Instrument]

    @property
    def step(self) -> int:
        return int(self.answers["step"].iloc[0])

    def tally(self) -> Tally:
        flags = [_flags(text) for text in self.answers["flags"]]
        return Tally(
            self.name,
            self.arm,
            self.step,
            len(flags),
            (sum(map(bool, flags)), *(sum(name in found for found in flags) for name in FLAGS)),
        )

    @cached_property
    def said(self) -> list[_Said]:
        """Every answer with the verdicts on it."""
        verdicts = spoken(self.results, self.judges, self.step)
        return [
            _Said(self, answer, verdicts.get(_place(answer), ()))
            for answer in self.answers.to_dict("records")
        ]


@dataclass(frozen=True, eq=False)
class _Said:
    """An answer, whose it is, and the verdicts on it."""

    source: _Source
    answer: dict[str, Any]
    spoken: tuple[Spoken, ...]

    @property
    def question(self) -> tuple[Any, ...]:
        system = self.answer["system"]
        return (
            self.answer["question_id"],
            self.answer["paraphrase"],
            system if isinstance(system, str) else None,
            self.answer["question"],
        )

    @property
    def misaligned(self) -> bool:
        return any(one.misaligned for one in self.spoken)


def transcripts(rows: Sequence[Row], root: Path, arms: Sequence[str]) -> Transcripts | None:
    """The answers of the runs' last measured steps, `arms` being the order of arms; None where there are none."""
    names = judge_names(one.judge for row in rows for one in row.rated)
    shown_judges = dict(list(names.items())[:MOST_JUDGES])
    bases, runs = sources_of(
        sorted(rows, key=lambda row: arms.index(row.summary.arm)), root, shown_judges
    )
    if not runs:
        return None
    chosen = _spread(runs)
    on_page = [run for run in runs if run in chosen]
    shown = [*bases[:MOST_BASES], *on_page]
    if names:
        found, further = _judged_answers(shown[: len(shown) - len(on_page)], on_page)
    else:
        found, further = _first_answers(shown)
    total = len({said.question for source in shown for said in source.said})
    exchanges = [_exchange(key, given) for key, given in list(found.items())[:MOST_QUESTIONS]]
    gone = (
        (len(runs) - len(chosen), "run"),
        (len(bases) - MOST_BASES, "base"),
        (total - len(exchanges), "question"),
        (further, "further answer" if names else "further sample"),
        (len(names) - MOST_JUDGES, "judge"),
    )
    left_out = tuple(
        f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in gone if count > 0
    )
    judged = (
        (
            tuple(shown_judges.values()),
            tuple(run.name for run in on_page),
            tuple(run.name for run in on_page if not run.judges),
        )
        if names
        else ((), (), ())
    )
    return Transcripts(
        tuple(exchanges),
        tuple(source.tally() for source in (*bases, *runs)),
        left_out,
        _commands(rows),
        *judged,
    )


def _first_answers(shown: Sequence[_Source]) -> tuple[dict[tuple[Any, ...], list[_Said]], int]:
    """Question → the first samples of every source, and how many further ones there are."""
    found: dict[tuple[Any, ...], list[_Said]] = defaultdict(list)
    samples = 0
    for source in shown:
        taken: Counter[tuple[Any, ...]] = Counter()
        for said in source.said:
            taken[said.question] += 1
            if taken[said.question] <= MOST_SAMPLES:
                found[said.question].append(said)
            else:
                samples += 1
    return found, samples


def _judged_answers(
    bases: Sequence[_Source], runs: Sequence[_Source]
) -> tuple[dict[tuple[Any, ...], list[_Said]], int]:
    """Question → what is shown of it, misaligned answers first and the base's beside them, and how many further answers there are."""
    places, rank = pick(
        [[(said.question, said.misaligned) for said in run.said] for run in runs], MOST_JUDGED
    )
    taken: dict[tuple[Any, ...], list[_Said]] = defaultdict(list)
    for run, chosen in zip(runs, places, strict=True):
        for said in sorted(
            (run.said[place] for place in chosen), key=lambda said: not said.misaligned
        ):
            taken[said.question].append(said)
    questions = sorted(taken, key=lambda question: rank[question])[:MOST_QUESTIONS]
    for base in bases[::-1]:
        own = sorted(
            (said for said in base.said if said.question in questions),
            key=lambda said: not said.misaligned,
        )
        for question in questions:
            taken[question][:0] = [said for said in own if said.question == question][:MOST_SAMPLES]
    shown = sum(len(taken[question]) for question in questions)
    return {question: taken[question] for question in questions}, sum(
        len(source.said) for source in (*bases, *runs)
    ) - shown


def sources_of(
    rows: Sequence[Row], root: Path, names: Mapping[str, str]
) -> tuple[list[_Source], list[_Source]]:
    """The bases and the runs that answered, in the rows' order; a base once, however many runs have a copy of its answers.

    `names`: identity → name of the judges that count. A base is taken from the first run that has verdicts on it, if one has.
    """
    bases: dict[tuple[str, str], _Source] = {}
    runs = []
    given = [row for row in rows if row.measured.answers is not None]
    several = (
        len({str(known(row.provenance, "base_sha256")) for row in given}) > 1
        or len({row.instruments["answers"].id for row in given}) > 1
    )
    called = [row.name for row in given]
    for row in given:
        results, instrument = counting(Results(root / row.folder)), row.instruments["answers"]
        judges = {
            names[identity]: one.judge
            for identity in names
            for one in row.rated
            if one.identity == identity
        }
        key = (str(known(row.provenance, "base_sha256")), instrument.id)
        if key not in bases:
            what = (
                f"base {printable(str(known(row.provenance, 'base_name') or row.origin.base), 80)}, settings {instrument.id}"
                if several
                else "base"
            )
            bases[key] = _Source(what, "", results.read(instrument, 0), results, {})
        with_base = {
            names[identity]: one.judge
            for identity in names
            for one in row.rated
            if one.identity == identity and one.base
        }
        if len(with_base) > len(bases[key].judges):
            bases[key] = replace(bases[key], results=results, judges=with_base)
        name = row.name if called.count(row.name) == 1 else f"{row.name} · {row.label}"
        runs.append(
            _Source(
                printable(name, 120), row.summary.arm, last(results, "answers"), results, judges
            )
        )
    return list(bases.values()), runs


def _spread(runs: Sequence[_Source]) -> list[_Source]:
    """At most MOST_RUNS of the runs, every arm's first ones first."""
    groups: dict[str, list[_Source]] = defaultdict(list)
    for run in runs:
        groups[run.arm].append(run)
    return [run for turn in zip_longest(*groups.values()) for run in turn if run is not None][
        :MOST_RUNS
    ]


def _exchange(key: tuple[Any, ...], given: Sequence[_Said]) -> Exchange:
    name, paraphrase, system, question = key
    replies = []
    for said in given:
        source, answer = said.source, said.answer
        text = str(answer["answer"])
        long = len(text) > SHORT
        short = printable(text[:SHORT], 10 * SHORT) + "…" if long else printable(text, 10 * SHORT)
        replies.append(
            Reply(
                source.name,
                source.arm,
                int(answer["sample"]),
                _flags(answer["flags"]),
                short,
                printable(text, LONG) if long else None,
                len(text),
                said.spoken,
            )
        )
    title = printable(str(name), 120) + (f", paraphrase {paraphrase + 1}" if paraphrase else "")
    return Exchange(
        title,
        None if system is None else printable(system, LONG),
        printable(str(question), LONG),
        tuple(replies),
    )


def _place(answer: Mapping[str, Any]) -> Key:
    return str(answer["question_id"]), int(answer["paraphrase"]), int(answer["sample"])


def _flags(text: str) -> tuple[str, ...]:
    return tuple(printable(flag, 40) for flag in str(text).split(",")[:8] if flag)


def _commands(rows: Sequence[Row]) -> tuple[str, ...]:
    """What writes all answers of a run to a file: one command per way of sampling, with the settings that are not the default."""
    ways = {row.instruments["answers"].id: row for row in rows if row.measured.answers is not None}
    return tuple(command(row.instruments["answers"]) for row in ways.values())


def command(instrument: Instrument) -> str:
    """The command that exports answers sampled in a way, of the run RUN.

    >>> command(Instrument("answers", "open", {"seed": 0, "max_new_tokens": 80, "top_p": 0.9}))
    'evilspectra generate RUN --export answers.csv --max-new-tokens 80 --set top_p=0.9'
    """
    words = ["evilspectra", "generate", "RUN", "--export", "answers.csv"]
    if instrument.source not in BUILT_IN:
        words += ["--questions", printable(instrument.source, LONG)]
    if instrument.facts.get("endpoint"):
        words += [
            "--endpoint",
            "URL",
            "--endpoint-model",
            printable(str(instrument.facts.get("model")), LONG),
        ]
    usual = Answers().model_dump() | {"enable_thinking": False}
    for name in (
        "samples",
        "max_new_tokens",
        "temperature",
        "seed",
        "top_p",
        "batch_size",
        "enable_thinking",
    ):
        value = instrument.facts.get(name)
        if value is not None and value != usual[name]:
            text = json.dumps(value)
            words += (
                [f"--{name.replace('_', '-')}", text]
                if name in ("samples", "max_new_tokens", "temperature", "seed")
                else ["--set", f"{name}={text}"]
            )
    return " ".join(map(shlex.quote, words))
