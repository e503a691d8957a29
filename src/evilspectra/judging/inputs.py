"""What the argument of `judge`, `score` and `compare` means: answers with their place.

No torch here.

A CSV file of answers, a run, the folder of results of an adapter or a model, or anything that
`find_targets` knows. Answers of a CSV file get a folder `<output>/evaluated/<name>-<digest of its
content>/`, where verdicts on them are kept like those on any others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evilspectra.answers.flags import flags
from evilspectra.answers.questions import BUILT_IN, Questions, read_questions
from evilspectra.errors import BadInput, listing
from evilspectra.judging.csv_files import AnswerFile, read_answers
from evilspectra.judging.prompts import JudgePrompts, judge_prompts
from evilspectra.judging.verdicts import judged
from evilspectra.model.base import CACHE_VARIABLE, cache_folder
from evilspectra.rates.definitions import Judged
from evilspectra.store.files import read_json, write_json
from evilspectra.store.records import AnswerRecord
from evilspectra.store.results import Instrument, Results, chosen
from evilspectra.store.run import RunFolder, find_run, is_run
from evilspectra.targets.find import find_targets

SUFFIX = ".csv"


@dataclass(frozen=True)
class AnswerSet:
    """Answers that were found.

    `steps`: measured ones, 0 being the base (or the only one there is); `base`: content hash of the
    base, where known.
    """

    label: str
    results: Results
    answers: Instrument
    steps: tuple[int, ...]
    base: str | None = None

    @property
    def shared(self) -> Results | None:
        """Where verdicts on the base's answers are kept for all its adapters."""
        return (
            Results(cache_folder() / "measured" / self.base[:20], CACHE_VARIABLE)
            if self.base
            else None
        )

    @property
    def last(self) -> int:
        return self.steps[-1]


def find_answer_sets(
    names: Sequence[str],
    output: str,
    questions: str | None = None,
    base: str | None = None,
    *,
    done: bool = False,
) -> list[AnswerSet]:
    """The answers that arguments mean, each place once.

    Where a place has answers to several question files, those to `questions` count, else with
    `done` those that have been judged.

    Raises:
        BadInput: a name that is nothing of the kind, or something without answers.
    """
    found: dict[Path, AnswerSet] = {}
    for name in names:
        for label, results, its_base in _find(name, output, base):
            found.setdefault(
                results.folder.resolve(),
                answer_set_of(label, results, its_base, questions, done=done),
            )
    return list(found.values())


def _find(name: str, output: str, base: str | None) -> list[tuple[str, Results, str | None]]:
    """Label, results and the base's content hash of what a name means."""
    path = Path(name)
    if path.suffix.lower() == SUFFIX:
        place = imported(path, read_answers(path, ()), output)
        return [(place.label, place.results, None)]
    if name and os.path.isdir(path / "evaluations") and not is_run(path):
        facts = read_json(path / "target.json") if (path / "target.json").is_file() else {}
        return [
            (
                path.resolve().name,
                Results(path, alone=facts.get("adapter") is None),
                facts.get("base_sha256"),
            )
        ]
    if name and (is_run(path) or not path.exists()) and (run := _run(name, output)):
        return [(run.name, Results(run.path), run.provenance().get("base_sha256"))]
    return [
        (target.label, target.results, target.base.sha256)
        for target in find_targets([name], output, None, base)
    ]


def _run(name: str, output: str) -> RunFolder | None:
    try:
        return find_run(name, output)
    except BadInput:
        return None


def answer_set_of(
    label: str,
    results: Results,
    base: str | None,
    questions: str | None = None,
    *,
    done: bool = False,
) -> AnswerSet:
    """The answers in a folder of results, chosen as in `find_answer_sets`.

    Raises:
        BadInput: there are none.
    """
    answers = chosen(results, "answers")
    every = results.instruments("answers")
    if named := [one for one in every if one.source == questions]:
        answers = named[-1]
    elif done and "answers" not in results.selected:
        judged_ones = {one.facts.get("answers") for one in results.instruments("verdicts")}
        candidates = [one for one in every if one.id in judged_ones]
        if candidates and answers not in candidates:
            answers = candidates[-1]
    steps = results.steps(answers) if answers else []
    if answers is None or not steps:
        raise BadInput(
            f"{label} has no answers to judge (in {results.folder}): sample some first, with "
            "`evilspectra generate`, or do both with `evilspectra evaluate`"
        )
    return AnswerSet(label, results, answers, tuple(steps), base)


def imported(path: Path, file: AnswerFile, output: str) -> AnswerSet:
    """The answers of a CSV file, copied into a folder of their own as if they had been sampled; tokens count 0, since nobody knows them."""
    folder = (
        Path(output).expanduser()
        / "evaluated"
        / f"{path.stem[:80].lstrip('.') or 'answers'}-{file.sha256[:10]}"
    )
    results = Results(folder, alone=True)
    instrument = Instrument("answers", path.name, {"file": file.sha256})
    if not results.has(instrument, 0):
        if not (folder / "target.json").is_file():
            write_json(
                folder / "target.json",
                {
                    "adapter": None,
                    "base": None,
                    "answers": str(path.resolve()),
                    "sha256": file.sha256,
                },
            )
        texts: dict[str, dict[str, int]] = {}
        samples: Counter[tuple[str, int]] = Counter()
        records = []
        for row in file.rows:
            known = texts.setdefault(row.question_id, {})
            paraphrase = known.setdefault(row.question, len(known))
            sample = samples[row.question_id, paraphrase]
            samples[row.question_id, paraphrase] += 1
            records.append(
                AnswerRecord(
                    0,
                    row.question_id,
                    paraphrase,
                    sample,
                    None,
                    row.question,
                    row.answer,
                    0,
                    "stop",
                    ",".join(flags(row.answer, "stop")),
                )
            )
        results.write(instrument, 0, records)
    return AnswerSet(path.name, results, instrument, (0,))


def prompts_for(place: AnswerSet, questions: str | None, metrics: Sequence[str]) -> JudgePrompts:
    """The judge prompts for a place's answers: of the file named, or else of the file that its questions came from, or else the package's own.

    Raises:
        BadInput: the file cannot be read, or has no prompt for a metric.
    """
    return judge_prompts(_questions(place, questions), metrics)


def _questions(place: AnswerSet, questions: str | None) -> Questions | None:
    if questions is not None:
        return read_questions(questions)
    source = place.answers.source
    if source not in BUILT_IN and not source.endswith((".yaml", ".yml")):
        return None
    if source not in BUILT_IN and not os.path.isfile(os.path.expanduser(source)):
        raise BadInput(
            f"the questions of {place.label} came from {source}, which is not here: name a file "
            "whose judge prompts are to be used with --questions (for the package's own: "
            "--questions open)"
        )
    return read_questions(source)


def stored(place: AnswerSet, judge: str | None = None) -> Instrument:
    """What the verdicts on a place's answers are kept under: those of the judge named (its name, or the beginning of an id), else those made last.

    Raises:
        BadInput: there are none, or none of that judge.
    """
    found = [
        one
        for one in place.results.instruments("verdicts")
        if one.facts.get("answers") == place.answers.id
        and "aligned" in one.facts.get("prompts", {})
    ]
    if not found:
        raise BadInput(
            f"the answers of {place.label} have not been judged: use `evilspectra judge` first"
        )
    fitting = [
        one for one in found if judge is None or one.source == judge or one.id.startswith(judge)
    ]
    if not fitting:
        raise BadInput(
            f"the answers of {place.label} have no verdicts of '{judge}'; there are: "
            f"{listing([f'{one.source} ({one.id})' for one in found])}"
        )
    return fitting[-1]


def judged_by(instrument: Instrument) -> dict[str, Any]:
    """What of an instrument says who judged, and how: the same for the same judge whatever it judged."""
    return {name: value for name, value in instrument.facts.items() if name != "answers"}


def answers_of(place: AnswerSet, instrument: Instrument, step: int) -> list[Judged]:
    """A step's answers with their verdicts."""
    return [one for _, one in judged(place.results, place.answers, step, instrument)]
