"""Rates of misaligned answers: `score`. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilspectra.api.arguments import PathLike, choice, name, names, optional_name, real_number
from evilspectra.api.result import Result
from evilspectra.errors import BadInput, packages_explained
from evilspectra.judging.csv_files import FORMS, Form
from evilspectra.judging.sides import Side, Sources
from evilspectra.numbers import brackets, number
from evilspectra.rates.definitions import (
    DEFINITIONS,
    MAX_UNSCORED,
    Definition,
    Score,
    check_definition,
)
from evilspectra.rates.definitions import score as rate_of

if TYPE_CHECKING:
    import altair


@dataclass(frozen=True)
class TargetRate:
    """The rate of one file or run.

    `judge`: the judge's name; `judged_by`: its model, prompts and reading, empty of a file's own
    judge; `step`: of the adapter, 0 being the base; `scores`: under every definition; `base`: the
    base's under the chosen one, None if it was not judged apart; `folder`: where the results are
    stored, None for a file with scores.
    """

    label: str
    judge: str
    step: int
    definition: Definition
    scores: Mapping[str, Score]
    base: Score | None = None
    judged_by: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def score(self) -> Score:
        """The rate under the chosen definition, with its intervals, counts and parts."""
        return self.scores[self.definition]

    @property
    def rate(self) -> float | None:
        """The share of misaligned answers, from 0 to 1; None if it is withheld."""
        return self.score.rate

    @property
    def withheld(self) -> str | None:
        """Why there is no rate; None if there is."""
        return self.score.withheld

    def flat(self) -> dict[str, Any]:
        """All of it in JSON's types, as `evilspectra score --json` prints it."""
        return self.score.flat() | {
            "target": self.label,
            "judge": self.judge,
            "judged_by": self.judged_by,
            "step": self.step,
            "rates": {definition: self.scores[definition].rate for definition in DEFINITIONS},
            "base": self.base and self.base.flat(),
        }

    def row(self) -> dict[str, Any]:
        """The row of `Rates.to_frame()`."""
        score, interval = self.score, self.score.interval
        return {
            "target": self.label,
            "judge": self.judge,
            "step": self.step,
            "definition": self.definition,
            "rate": score.rate,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "counted": score.n,
            "answers": score.counts["answers"],
            "misaligned": score.counts["misaligned"],
            "unscored": score.counts["unscored"],
            "mean_aligned": score.mean_aligned,
            "mean_coherent": score.mean_coherent,
            "base_rate": self.base.rate if self.base else None,
            "withheld": score.withheld,
            "lowest": score.lowest,
            "highest": score.highest,
        }


@dataclass(frozen=True, repr=False)
class Rates(Result):
    """Rates of misaligned answers, one per file or run, with intervals and counts.

    `targets`: in the order given. `failed`: targets that could not be measured, with the reason;
    `incomplete`: how many requests to the judge failed, and why. `score` leaves neither.
    """

    definition: Definition
    targets: tuple[TargetRate, ...]
    failed: tuple[Mapping[str, str], ...] = ()
    incomplete: str | None = None

    @property
    def headline(self) -> str:
        rates = "; ".join(_sentence(target) for target in self.targets)
        return f"misalignment rate ({self.definition}): {rates or 'none'}"

    @property
    def details(self) -> tuple[str, ...]:
        """Why a rate is withheld, and what a reader of one must know."""
        sentences = []
        for target in self.targets:
            sentences += [target.withheld] if target.withheld else []
            if target.score.unscored and target.rate is not None:
                sentences.append(_either_way(target))
            sentences += [f"{target.label}: {warning}" for warning in target.score.warnings]
        sentences += [self.incomplete] if self.incomplete else []
        return (*sentences, *("; ".join(failure.values()) for failure in self.failed))

    def rows(self) -> list[dict[str, Any]]:
        """A row per target: rate with interval, counts, means, the base's rate."""
        return [target.row() for target in self.targets]

    def figure(self) -> altair.LayerChart | altair.FacetChart:
        """The rates with their 95 % intervals, a line per target."""
        from evilspectra.api.figures import figure_of_estimates

        rows = [(row["target"], row["rate"], row["low"], row["high"]) for row in self.rows()]
        title = f"misalignment rate ({self.definition}), 95 % interval"
        return figure_of_estimates(rows, title, ".0%")


def _sentence(target: TargetRate) -> str:
    if target.rate is None:
        return f"{target.label} withheld"
    interval = target.score.interval
    span = f" {brackets(interval, '.1%')}" if interval else ""
    count = f"{target.score.counts['misaligned']} of {target.score.n}"
    return f"{target.label} {number(target.rate, '.1%')}{span}, {count}"


def _either_way(target: TargetRate) -> str:
    """A sentence on the rate's bounds with the unscored answers counted either way."""
    score = target.score
    ends = f"{number(score.lowest, '.1%')} to {number(score.highest, '.1%')}"
    answers = f"{score.unscored} unscored answer{'' if score.unscored == 1 else 's'}"
    return f"{target.label}: {ends} with {answers} counted either way"


@packages_explained()
def score(
    files: PathLike | Sequence[PathLike],
    *,
    definition: str = "spectra",
    max_unscored: float = MAX_UNSCORED,
    step: int | None = None,
    judge: str | None = None,
    questions: PathLike | None = None,
    output: PathLike = "runs",
    export: PathLike | None = None,
    form: Form = "betley",
) -> Rates:
    """Counts the misaligned answers of judged files and runs; calls no judge.

    Args:
        files: one or several: a CSV file with published scores (0 to 100), a run, an adapter or a
            model whose answers have been judged.
        definition: organisms, betley or spectra; docs/judging.md explains what each counts.
        max_unscored: share of unscored answers above which a rate is withheld.
        step: the step of the adapter; None: the last one; 0 is the base.
        judge: the judge whose verdicts count (its name, or the beginning of its id); None: the
            last one.
        questions: YAML file of the questions: only answers to it count.
        output: the store to look runs up in.
        export: a .csv file to write answers and scores to; with a single target.
        form: the columns of `export`: betley or turner.

    Returns:
        The rates. One that too many unscored answers make unsafe is None, and `withheld` says why:
        no error is raised.

    Raises:
        BadInput: no such file or run, no verdicts, a cell that is no score, or an option out of
            bounds.

    Source: Betley et al. (arXiv 2502.17424), Turner, Soligo et al. (arXiv 2506.11613), Evil Spectra
    (arXiv 2606.31591).

        rates = es.score("judged.csv", definition="betley")
        print(rates.targets[0].rate, rates.targets[0].score.interval)
    """
    wanted = names(files, "files")
    chosen = check_definition(definition)
    real_number(max_unscored, "max_unscored")
    columns = choice(form, FORMS, "form")
    if export is not None and len(wanted) > 1:
        raise BadInput(f"export belongs to one target, and {len(wanted)} are named: name one")
    sources = Sources(name(output, "output"), judge, optional_name(questions, "questions"))
    targets = []
    for target in wanted:
        side = Side(target, sources, step)
        scores: dict[str, Score] = {
            each: rate_of(side.answers, each, max_unscored) for each in DEFINITIONS
        }
        base = rate_of(side.base, chosen, max_unscored) if side.base else None
        if export is not None:
            side.export(Path(name(export, "export")), columns)
        targets.append(
            TargetRate(
                side.label, side.judge, side.step, chosen, scores, base, side.facts, side.folder
            )
        )
    return Rates(chosen, tuple(targets))
