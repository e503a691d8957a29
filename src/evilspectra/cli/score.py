"""The commands that count verdicts: score and compare. Everything heavy is imported inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from evilspectra.cli.judging import ANSWERS_STORE, QUESTIONS
from evilspectra.cli.options import JSON, Decorator, together
from evilspectra.errors import BadInput, Undecided

_JUDGE = click.option(
    "--judge",
    "judge",
    metavar="JUDGE",
    help=(
        "The judge whose verdicts count (its name, or the beginning of its id); "
        "without it the last one."
    ),
)
score_options: Decorator = together(
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
REMEDY = "judge what is missing, or raise --max-unscored"


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
        raise Undecided(f"the rate of {side.label} is withheld: {side.withheld}; {REMEDY}")


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
        raise Undecided(f"the difference of rates is withheld: {withheld}; {REMEDY}")
