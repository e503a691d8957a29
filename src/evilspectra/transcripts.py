"""Sampled answers for the report: question by question, the base's first, bounded in number and length, safe to show. No torch.

Everything below is text out of a model or of somebody's file: it goes through `printable`, and the page escapes it.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from evilspectra.answers import printable
from evilspectra.comparison import Row, known
from evilspectra.config import Answers
from evilspectra.flags import FLAGS
from evilspectra.measured import last
from evilspectra.questions import BUILT_IN
from evilspectra.results import Instrument, Results

#: What the page holds at most: runs (and bases), questions, and samples per question of each of them.
MOST_RUNS, MOST_BASES, MOST_QUESTIONS, MOST_SAMPLES = 12, 3, 60, 2
#: Characters of an answer that are shown, and that can be unfolded.
SHORT, LONG = 600, 4000


@dataclass(frozen=True)
class Reply:
    """One answer. `arm` is empty for a base; `full` is None where `short` is all of it; `length` in characters."""

    name: str
    arm: str
    sample: int
    flags: tuple[str, ...]
    short: str
    full: str | None
    length: int


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
    """The section's content. `left_out`: what the page does not hold, in words; `commands` write all of it to a file."""

    exchanges: tuple[Exchange, ...]
    tallies: tuple[Tally, ...]
    left_out: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Source:
    """A base or a run, and its answers."""

    name: str
    arm: str
    answers: Any

    def tally(self) -> Tally:
        flags = [_flags(text) for text in self.answers["flags"]]
        return Tally(self.name, self.arm, int(self.answers["step"].iloc[0]), len(flags), (sum(map(bool, flags)), *(sum(name in found for found in flags) for name in FLAGS)))


def transcripts(rows: Sequence[Row], root: Path, arms: Sequence[str]) -> Transcripts | None:
    """The answers of the runs' last measured steps, `arms` being the order of arms; None where there are none."""
    bases, runs = _sources(sorted(rows, key=lambda row: arms.index(row.summary.arm)), root)
    if not runs:
        return None
    chosen = _spread(runs)
    shown = [*bases[:MOST_BASES], *(run for run in runs if run in chosen)]
    found: dict[tuple[Any, ...], list[tuple[_Source, dict[str, Any]]]] = defaultdict(list)
    samples = 0
    for source in shown:
        taken: dict[tuple[Any, ...], int] = defaultdict(int)
        for answer in source.answers.to_dict("records"):
            key = (answer["question_id"], answer["paraphrase"], answer["system"] if isinstance(answer["system"], str) else None, answer["question"])
            taken[key] += 1
            if taken[key] <= MOST_SAMPLES:
                found[key].append((source, answer))
            else:
                samples += 1
    exchanges = [_exchange(key, given) for key, given in list(found.items())[:MOST_QUESTIONS]]
    gone = ((len(runs) - len(chosen), "run"), (len(bases) - MOST_BASES, "base"), (len(found) - MOST_QUESTIONS, "question"), (samples, "further sample"))
    left_out = tuple(f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in gone if count > 0)
    return Transcripts(tuple(exchanges), tuple(source.tally() for source in (*bases, *runs)), left_out, _commands(rows))


def _sources(rows: Sequence[Row], root: Path) -> tuple[list[_Source], list[_Source]]:
    """The bases and the runs that answered, in the rows' order; a base once, however many runs have a copy of its answers."""
    bases: dict[tuple[str, str], _Source] = {}
    runs = []
    given = [row for row in rows if row.measured.answers is not None]
    several = len({str(known(row.provenance, "base_sha256")) for row in given}) > 1 or len({row.instruments["answers"].id for row in given}) > 1
    names = [row.name for row in given]
    for row in given:
        results, instrument = Results(root / row.folder), row.instruments["answers"]
        key = (str(known(row.provenance, "base_sha256")), instrument.id)
        if key not in bases:
            what = f"base {printable(str(known(row.provenance, 'base_name') or row.origin.base), 80)}, settings {instrument.id}" if several else "base"
            bases[key] = _Source(what, "", results.read(instrument, 0))
        name = row.name if names.count(row.name) == 1 else f"{row.name} · {row.label}"
        runs.append(_Source(printable(name, 120), row.summary.arm, last(results, "answers")))
    return list(bases.values()), runs


def _spread(runs: Sequence[_Source]) -> list[_Source]:
    """At most MOST_RUNS of the runs, every arm's first ones first."""
    groups: dict[str, list[_Source]] = defaultdict(list)
    for run in runs:
        groups[run.arm].append(run)
    return [run for turn in zip_longest(*groups.values()) for run in turn if run is not None][:MOST_RUNS]


def _exchange(key: tuple[Any, ...], given: Sequence[tuple[_Source, dict[str, Any]]]) -> Exchange:
    name, paraphrase, system, question = key
    replies = []
    for source, answer in given:
        text = str(answer["answer"])
        long = len(text) > SHORT
        short = printable(text[:SHORT], 10 * SHORT) + "…" if long else printable(text, 10 * SHORT)
        replies.append(Reply(source.name, source.arm, int(answer["sample"]), _flags(answer["flags"]), short, printable(text, LONG) if long else None, len(text)))
    title = printable(str(name), 120) + (f", paraphrase {paraphrase + 1}" if paraphrase else "")
    return Exchange(title, None if system is None else printable(system, LONG), printable(str(question), LONG), tuple(replies))


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
        words += ["--endpoint", "URL", "--endpoint-model", printable(str(instrument.facts.get("model")), LONG)]
    usual = Answers().model_dump() | {"enable_thinking": False}
    for name in ("samples", "max_new_tokens", "temperature", "seed", "top_p", "batch_size", "enable_thinking"):
        value = instrument.facts.get(name)
        if value is not None and value != usual[name]:
            text = json.dumps(value)
            words += [f"--{name.replace('_', '-')}", text] if name in ("samples", "max_new_tokens", "temperature", "seed") else ["--set", f"{name}={text}"]
    return " ".join(map(shlex.quote, words))
