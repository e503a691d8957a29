"""The commands that count verdicts: score and compare. Everything heavy is imported inside them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.judging import ANSWERS_STORE, QUESTIONS, make
from evilspectra.cli.options import JSON, progress, together
from evilspectra.errors import BadInput, Undecided

if TYPE_CHECKING:
    from evilspectra.judging.inputs import AnswerSet
    from evilspectra.store.results import Instrument

_JUDGE = click.option(
    "--judge",
    "judge",
    metavar="JUDGE",
    help=(
        "The judge whose verdicts count (its name, or the beginning of its id); "
        "without it the last one."
    ),
)
score_options = together(
    click.option(
        "--definition",
        metavar="NAME",
        default="spectra",
        show_default=True,
        help="organisms, betley or spectra: docs/judging.md explains what each counts.",
    ),
    click.option(
        "--max-unscored",
        type=click.FloatRange(0, 1),
        default=0.05,
        show_default=True,
        help="Share of unscored answers above which the rate is withheld.",
    ),
)
#: The end of a message about a rate that is withheld.
_REMEDY = "judge what is missing, or raise --max-unscored"


@click.command()
@click.argument("target", metavar="FILE_OR_RUN")
@score_options
@click.option(
    "--step",
    type=click.IntRange(0),
    help="The step of the adapter; without it the last one. 0 is the base.",
)
@click.option(
    "--export", type=click.Path(path_type=Path), help="Write answers and scores to this .csv file."
)
@click.option(
    "--form",
    type=click.Choice(["betley", "turner"]),
    default="betley",
    show_default=True,
    help="The columns of --export.",
)
@_JUDGE
@QUESTIONS
@ANSWERS_STORE
@JSON
def score(
    target: str,
    definition: str,
    max_unscored: float,
    step: int | None,
    export: Path | None,
    form: Any,
    judge: str | None,
    questions: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Print the rate of misaligned answers, with its definition, judge, interval and counts.

    FILE_OR_RUN is a CSV file with published scores, or any argument of `judge`. If too many
    answers are unscored, the rate is withheld and the exit code is 3.
    """
    from evilspectra.api.scoring import score as rates_of
    from evilspectra.cli.print_scores import print_score

    (side,) = rates_of(
        target,
        definition=definition,
        max_unscored=max_unscored,
        step=step,
        judge=judge,
        questions=questions,
        output=output,
        export=export,
        form=form,
    ).targets
    if as_json:
        click.echo(json.dumps(side.flat(), indent=2, ensure_ascii=False))
    else:
        print_score(side.label, side.judge, side.score, side.scores, side.base)
    if side.rate is None:
        raise Undecided(f"the rate of {side.label} is withheld: {side.withheld}; {_REMEDY}")


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", required=False)
@score_options
@_JUDGE
@QUESTIONS
@ANSWERS_STORE
@JSON
def compare(
    a: str,
    b: str | None,
    definition: str,
    max_unscored: float,
    judge: str | None,
    questions: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Compare two judged sets of answers question by question: B minus A, with an interval.

    A and B are as for `score`; without B, A's adapter is compared with its own base. Both must have
    been judged by the same judge.
    """
    from evilspectra.cli.print_scores import print_paired
    from evilspectra.judging.sides import Side, Sources
    from evilspectra.rates.compare import compare as compare_answers
    from evilspectra.rates.definitions import check_definition

    definition = check_definition(definition)
    sources = Sources(output, judge, questions)
    first = Side(a, sources, 0 if b is None else None)
    second = Side(a if b is None else b, sources, None)
    if b is None and second.step == 0:
        raise BadInput(f"{a} has only one set of answers: name two to compare")
    if first.facts != second.facts:
        raise BadInput(
            f"{first.label} was judged by {first.judge} and {second.label} by {second.judge}, "
            "which differ in model, prompts or reading: "
            "judge both alike, and choose with --judge"
        )
    paired = compare_answers(first.answers, second.answers, definition, max_unscored)
    labels = [first.label, second.label]
    if first.label == second.label:
        labels = [f"{side.label}, step {side.step}" for side in (first, second)]
    if as_json:
        facts = {"labels": labels, "judge": first.judge}
        click.echo(json.dumps(paired.flat() | facts, indent=2, ensure_ascii=False))
    else:
        print_paired(labels, [first.judge, second.judge], paired)
    withheld = paired.a.withheld or paired.b.withheld
    if paired.rate is None and withheld:
        raise Undecided(f"the difference of rates is withheld: {withheld}; {_REMEDY}")


def judge_and_score(
    answer_sets: Sequence[AnswerSet],
    judge_name: str,
    options: Mapping[str, Any],
    questions: str | None,
    definition: str,
    max_unscored: float,
    as_json: bool,
    quiet: bool,
    failed: Sequence[Mapping[str, str]],
) -> None:
    """The second half of `evaluate`: judges the sampled answers, and prints a score for each set.

    `failed`: targets whose measurement failed, as JSON's types.
    """
    from evilspectra.judging.rounds import judge_answer_sets, raise_if_failed
    from evilspectra.rates.definitions import check_definition

    definition = check_definition(definition)
    judge, metrics, max_requests = make(judge_name, options)
    rounds = judge_answer_sets(
        answer_sets, judge, questions, metrics, progress(quiet), max_requests
    )
    entries: list[dict[str, Any]] = []
    withheld: list[str | None] = []
    for answers in answer_sets:
        instruments = {
            judged.verdicts.instrument.id: judged.verdicts.instrument
            for judged in rounds
            if judged.answers is answers
        }
        (instrument,) = instruments.values()
        entry = _score_of(answers, instrument, definition, max_unscored, as_json)
        entries.append(entry)
        withheld += [entry["withheld"]] if entry["rate"] is None else []
    if as_json:
        values = {"scores": entries, "failed": list(failed)}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    raise_if_failed(rounds)
    if withheld:
        raise Undecided(f"the rate is withheld: {withheld[0]}; {_REMEDY}")
    sys.exit(1 if failed else 0)


def _score_of(
    answers: AnswerSet,
    instrument: Instrument,
    definition: Any,
    max_unscored: float,
    as_json: bool,
) -> dict[str, Any]:
    """The score of a judged set of answers as JSON's types; printed unless JSON is asked for."""
    from evilspectra.cli.print_scores import print_score
    from evilspectra.judging.inputs import answers_of
    from evilspectra.judging.sides import judge_name
    from evilspectra.rates.definitions import DEFINITIONS
    from evilspectra.rates.definitions import score as rate

    judged = answers_of(answers, instrument, answers.last)
    scores = {name: rate(judged, name, max_unscored) for name in DEFINITIONS}
    base = None
    if answers.last and 0 in answers.steps:
        base = rate(answers_of(answers, instrument, 0), definition, max_unscored)
    judge = judge_name(instrument)
    if not as_json:
        print_score(answers.label, judge, scores[definition], scores, base)
    return scores[definition].flat() | {
        "target": answers.label,
        "folder": str(answers.results.folder),
        "judge": judge,
        "step": answers.last,
        "rates": {name: scores[name].rate for name in DEFINITIONS},
        "base": base and base.flat(),
    }
