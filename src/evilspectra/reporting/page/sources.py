"""Bases and runs that answered questions, with the verdicts on every answer. No torch.

Names are safe to show; questions and answers are still as the store has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from evilspectra.evaluation.run_rates import counting
from evilspectra.judging.judge import Key
from evilspectra.reporting.comparison import Row, value_at
from evilspectra.reporting.page.verdicts import JudgeVerdicts, verdicts_by_answer
from evilspectra.store.results import Instrument, Results, last
from evilspectra.text import printable

#: What makes two answers answers to one question: its id, paraphrase, system prompt and text.
Question: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Source:
    """A base (`arm` empty) or a run: its table of answers, and the judges with verdicts on them."""

    name: str
    arm: str
    table: Any
    results: Results
    judges: Mapping[str, Instrument]

    @property
    def step(self) -> int:
        return int(self.table["step"].iloc[0])

    @cached_property
    def answers(self) -> list[Answer]:
        """Every answer with the verdicts on it."""
        verdicts = verdicts_by_answer(self.results, self.judges, self.step)
        return [
            Answer(self, record, verdicts.get(_key(record), ()))
            for record in self.table.to_dict("records")
        ]


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer as the store has it, its source, and the verdicts on it."""

    source: Source
    record: dict[str, Any]
    verdicts: tuple[JudgeVerdicts, ...]

    @property
    def question(self) -> Question:
        system = self.record["system"]
        return (
            self.record["question_id"],
            self.record["paraphrase"],
            system if isinstance(system, str) else None,
            self.record["question"],
        )

    @property
    def misaligned(self) -> bool:
        return any(verdict.misaligned for verdict in self.verdicts)


def sources_of(
    rows: Sequence[Row],
    root: Path,
    names: Mapping[str, str],
) -> tuple[list[Source], list[Source]]:
    """The bases and the runs that answered, in the rows' order.

    A base comes once, however many runs have a copy of its answers, and from the first run with
    the most judges' verdicts on it. `names`: identity → name of the judges that count.
    """
    bases: dict[tuple[str, str], Source] = {}
    runs = []
    answered = [row for row in rows if row.measured.answers is not None]
    several = (
        len({_base_hash(row) for row in answered}) > 1
        or len({row.instruments["answers"].id for row in answered}) > 1
    )
    run_names = [row.name for row in answered]
    for row in answered:
        results = counting(Results(root / row.folder))
        instrument = row.instruments["answers"]
        base = (_base_hash(row), instrument.id)
        if base not in bases:
            name = _base_name(row, instrument) if several else "base"
            bases[base] = Source(name, "", results.read(instrument, 0), results, {})
        base_judges = _judges(row, names, with_base=True)
        if len(base_judges) > len(bases[base].judges):
            bases[base] = replace(bases[base], results=results, judges=base_judges)
        name = row.name if run_names.count(row.name) == 1 else f"{row.name} · {row.label}"
        runs.append(
            Source(
                printable(name, 120),
                row.summary.arm,
                last(results, "answers"),
                results,
                _judges(row, names),
            )
        )
    return list(bases.values()), runs


def question_title(question: Question) -> str:
    """The question's id, and which paraphrase of it where that is not the first, safe to show."""
    name, paraphrase, *_ = question
    return printable(str(name), 120) + (f", paraphrase {paraphrase + 1}" if paraphrase else "")


def _judges(
    row: Row,
    names: Mapping[str, str],
    with_base: bool = False,
) -> dict[str, Instrument]:
    """Name → instrument of the judges that judged the run (and its base, if asked)."""
    judges = {rated.identity: rated.judge for rated in row.rated if rated.base or not with_base}
    return {names[identity]: judges[identity] for identity in names if identity in judges}


def _base_hash(row: Row) -> str:
    return str(value_at(row.provenance, "base_sha256"))


def _base_name(row: Row, instrument: Instrument) -> str:
    name = str(value_at(row.provenance, "base_name") or row.origin.base)
    return f"base {printable(name, 80)}, settings {instrument.id}"


def _key(record: Mapping[str, Any]) -> Key:
    return str(record["question_id"]), int(record["paraphrase"]), int(record["sample"])
