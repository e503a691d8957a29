"""The answers to which an argument of `judge`, `score` and `compare` refers. No torch here.

The argument is a CSV file of answers, a run, the folder of results of an adapter or a model, or
anything that `find_targets` knows. Answers of a CSV file get a folder
`<output>/evaluated/<name>-<digest of its content>/`, in which verdicts on them are stored like
those on any others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evilspectra.answers.entries import Question
from evilspectra.answers.questions import BUILT_IN, Questions, read_questions
from evilspectra.answers.records import answer_record
from evilspectra.errors import BadInput, listing
from evilspectra.judging.csv_files import AnswerFile, read_answers
from evilspectra.judging.prompts import JudgePrompts, judge_prompts
from evilspectra.judging.verdicts import judged
from evilspectra.model.base import CACHE_VARIABLE, cache_folder
from evilspectra.rates.definitions import Judged
from evilspectra.store.files import read_json
from evilspectra.store.records import AnswerRecord
from evilspectra.store.results import Instrument, Results, chosen, verdicts_on
from evilspectra.store.run import is_run
from evilspectra.targets.find import describe_outside, find_targets, outside_folder
from evilspectra.targets.names import TARGETS, meaning_of

SUFFIX = ".csv"


@dataclass(frozen=True)
class AnswerSet:
    """Answers that exist, in one folder of results.

    `steps`: measured ones, 0 being the base (or the only one there is); `base`: content hash of the
    base, if known.
    """

    label: str
    results: Results
    answers: Instrument
    steps: tuple[int, ...]
    base: str | None = None

    @property
    def shared(self) -> Results | None:
        """Where verdicts on the base's answers are stored for all its adapters."""
        if not self.base:
            return None
        return Results(cache_folder() / "measured" / self.base[:20], CACHE_VARIABLE)

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
    """The answers that arguments mean, each folder once.

    If a folder has answers to several question files, those to `questions` count, else with `done`
    those that have been judged.

    Raises:
        BadInput: a name that is nothing of the kind, or something without answers.
    """
    sets: dict[Path, AnswerSet] = {}
    for name in names:
        for label, results, its_base in _find(name, output, base):
            sets.setdefault(
                results.folder.resolve(),
                answer_set_of(label, results, its_base, questions, done=done),
            )
    return list(sets.values())


def _find(name: str, output: str, base: str | None) -> list[tuple[str, Results, str | None]]:
    """Label, results and the base's content hash of what a name means."""
    path = Path(name)
    if path.suffix.lower() == SUFFIX:
        answers = imported(path, read_answers(path, ()), output)
        return [(answers.label, answers.results, None)]
    if name and os.path.isdir(path / "evaluations") and not is_run(path):
        facts = read_json(path / "target.json") if (path / "target.json").is_file() else {}
        results = Results(path, alone=facts.get("adapter") is None)
        return [(path.resolve().name, results, facts.get("base_sha256"))]
    meaning = meaning_of(name, output, TARGETS)
    if meaning.kind == "run":
        (run,) = meaning.runs
        return [(run.name, Results(run.path), run.provenance().get("base_sha256"))]
    return [
        (target.label, target.results, target.base.sha256)
        for target in find_targets([name], output, None, base)
    ]


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
    instruments = results.instruments("answers")
    if named := [instrument for instrument in instruments if instrument.source == questions]:
        answers = named[-1]
    elif done and "answers" not in results.selected:
        judged_ids = {
            instrument.facts.get("answers") for instrument in results.instruments("verdicts")
        }
        candidates = [instrument for instrument in instruments if instrument.id in judged_ids]
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
    """The answers of a CSV file, copied into a separate folder as if they had been sampled.

    Their numbers of tokens are 0, since nobody knows them.
    """
    name = path.stem[:80].lstrip(".") or "answers"
    folder = outside_folder(output, name, file.sha256)
    results = Results(folder, alone=True)
    instrument = Instrument("answers", path.name, {"file": file.sha256})
    if not results.has(instrument, 0):
        facts = {"answers": str(path.resolve()), "sha256": file.sha256}
        describe_outside(folder, {"adapter": None, "base": None, **facts})
        results.write(instrument, 0, _records(file))
    return AnswerSet(path.name, results, instrument, (0,))


def _records(file: AnswerFile) -> list[AnswerRecord]:
    """Every row as an answer; the texts of a question id are its paraphrases, in file order."""
    paraphrases: dict[str, dict[str, int]] = {}
    samples: Counter[tuple[str, int]] = Counter()
    records = []
    for row in file.rows:
        texts = paraphrases.setdefault(row.question_id, {})
        paraphrase = texts.setdefault(row.question, len(texts))
        question = Question(row.question_id, paraphrase, row.question, None, 1, ())
        sample = samples[row.question_id, paraphrase]
        samples[row.question_id, paraphrase] += 1
        records.append(answer_record(0, question, sample, row.answer, 0, "stop"))
    return records


def prompts_for(
    answer_set: AnswerSet,
    questions: str | None,
    metrics: Sequence[str],
) -> JudgePrompts:
    """The judge prompts for a set of answers.

    They are those of the file named, or else of the file that its questions came from, or else the
    package's own.

    Raises:
        BadInput: the file cannot be read, or has no prompt for a metric.
    """
    return judge_prompts(_questions(answer_set, questions), metrics)


def _questions(answer_set: AnswerSet, questions: str | None) -> Questions | None:
    if questions is not None:
        return read_questions(questions)
    source = answer_set.answers.source
    if source not in BUILT_IN and not source.endswith((".yaml", ".yml")):
        return None
    if source not in BUILT_IN and not os.path.isfile(os.path.expanduser(source)):
        raise BadInput(
            f"the questions of {answer_set.label} came from {source}, which is not here: name a "
            "file whose judge prompts are to be used with --questions (for the package's own: "
            "--questions open)"
        )
    return read_questions(source)


def stored(answer_set: AnswerSet, judge: str | None = None) -> Instrument:
    """The instrument of the stored verdicts on a set of answers.

    It is that of the judge named (its name, or the beginning of an id), else the last one.

    Raises:
        BadInput: there are none, or none of that judge.
    """
    instruments = [
        instrument
        for instrument in verdicts_on(
            answer_set.answers, answer_set.results.instruments("verdicts")
        )
        if "aligned" in instrument.facts.get("prompts", {})
    ]
    if not instruments:
        raise BadInput(
            f"the answers of {answer_set.label} have not been judged: use `evilspectra judge` first"
        )
    fitting = [
        instrument
        for instrument in instruments
        if judge is None or instrument.source == judge or instrument.id.startswith(judge)
    ]
    if not fitting:
        names = listing([f"{instrument.source} ({instrument.id})" for instrument in instruments])
        raise BadInput(
            f"the answers of {answer_set.label} have no verdicts of '{judge}'; there are: {names}"
        )
    return fitting[-1]


def judged_by(instrument: Instrument) -> dict[str, Any]:
    """The facts that identify a judge: the same for the same judge, whatever it judged."""
    return {name: value for name, value in instrument.facts.items() if name != "answers"}


def answers_of(answer_set: AnswerSet, instrument: Instrument, step: int) -> list[Judged]:
    """A step's answers with their verdicts."""
    pairs = judged(answer_set.results, answer_set.answers, step, instrument)
    return [judged_answer for _, judged_answer in pairs]
