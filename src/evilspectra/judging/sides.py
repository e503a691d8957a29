"""The two sides of a comparison, or the one of a score: answers with their verdicts.

An argument is a CSV file with scores, or anything that `find_answer_sets` knows. No torch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evilspectra.errors import BadInput

if TYPE_CHECKING:
    from evilspectra.judging.csv_files import Form
    from evilspectra.rates.definitions import Judged
    from evilspectra.store.results import Instrument


class Sources(NamedTuple):
    """The store, the judge and the questions whose verdicts count."""

    output: str
    judge: str | None
    questions: str | None

    @property
    def chosen(self) -> bool:
        """Whether the user has named a judge or questions."""
        return self.judge is not None or self.questions is not None


class Side:
    """An argument of `score` or `compare`: its answers with their verdicts.

    `base`: the base's answers, if they are another step's. `facts`: what the judge is, so that two
    sides can be compared; empty of a file's own judge. `folder`: where the results are stored.

    Raises:
        BadInput: no such answers, more than one set, or no answers at that step.
    """

    def __init__(self, name: str, sources: Sources, step: int | None) -> None:
        from evilspectra.judging.csv_files import read_answers

        self.label: str = Path(name).name
        self.judge: str = "the file's own judge"
        self.step: int = 0
        self.answers: list[Judged] = []
        self.facts: dict[str, Any] = {}
        self.folder: Path | None = None
        self.base: list[Judged] | None = None
        self._rows: list[tuple[str, str, str, Any]] = []
        if Path(name).suffix.lower() == ".csv" and not sources.chosen:
            file = read_answers(Path(name))
            if "aligned" in file.metrics:
                self.answers = [row.judged() for row in file.rows]
                self._rows = [
                    (row.question_id, row.question, row.answer, row.readings) for row in file.rows
                ]
                return
        self._read_store(name, sources, step)

    def _read_store(self, name: str, sources: Sources, step: int | None) -> None:
        from evilspectra.judging.inputs import find_answer_sets, judged_by, stored
        from evilspectra.judging.verdicts import judged

        answer_sets = find_answer_sets([name], sources.output, sources.questions, done=True)
        if len(answer_sets) > 1:
            raise BadInput(f"{name} holds {len(answer_sets)} runs: name one of them")
        (answers,) = answer_sets
        instrument = stored(answers, sources.judge)
        if step is not None and step not in answers.steps:
            steps = ", ".join(map(str, answers.steps))
            raise BadInput(
                f"{answers.label} has answers at the steps {steps}, not at {step}: "
                "name one of these with --step"
            )
        self.label = answers.label
        self.folder = answers.results.folder
        self.judge = judge_name(instrument)
        self.facts = judged_by(instrument)
        self.step = answers.last if step is None else step
        pairs = judged(answers.results, answers.answers, self.step, instrument)
        self.answers = [answer for _, answer in pairs]
        self._rows = [
            (
                row["question_id"],
                row["question"],
                row["answer"],
                {"aligned": answer.aligned, "coherent": answer.coherent},
            )
            for row, answer in pairs
        ]
        if self.step and 0 in answers.steps:
            base_pairs = judged(answers.results, answers.answers, 0, instrument)
            base = [answer for _, answer in base_pairs]
            self.base = base if any(answer.aligned for answer in base) else None

    def export(self, path: Path, form: Form) -> None:
        """Writes answers and scores to a .csv file."""
        from evilspectra.judging.csv_files import write_answers

        if path.suffix.lower() != ".csv" or path.is_dir():
            raise BadInput(f"--export {path} does not name a .csv file: choose one")
        write_answers(self._rows, path, form)


def judge_name(instrument: Instrument) -> str:
    """A judge's name with the beginning of its id."""
    return f"{instrument.source} ({instrument.id})"
