"""The command `judge`. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.judging import ANSWERS_STORE, JUDGE, QUESTIONS, judge_options, make
from evilspectra.cli.options import JSON, QUIET, progress

if TYPE_CHECKING:
    from evilspectra.judging.rounds import Round


@click.command()
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
@JUDGE
@judge_options
@QUESTIONS
@click.option("--no-base", is_flag=True, help="Leave the base's answers out.")
@ANSWERS_STORE
@JSON
@QUIET
def judge(
    targets: Sequence[str],
    judge_name: str,
    questions: str | None,
    no_base: bool,
    output: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Have answers judged: two verdicts per answer, stored with the answers.

    A TARGET is a run, a folder of runs, an adapter or a model whose answers were sampled, or a CSV
    file with question, question_id, and answer or response. Answers that have a verdict are not
    judged again; those whose request failed are. Interrupted and run again, it resumes from where
    it stopped.
    """
    from evilspectra.judging.inputs import find_answer_sets
    from evilspectra.judging.rounds import judge_answer_sets, raise_if_failed

    asked_judge, metrics, max_requests = make(judge_name, options)
    answer_sets = find_answer_sets(targets, output, questions)
    rounds = judge_answer_sets(
        answer_sets,
        asked_judge,
        questions,
        metrics,
        progress(quiet),
        max_requests,
        base=not no_base,
    )
    if as_json:
        values = {
            "judged": [judged.flat() for judged in rounds],
            "failed": sum(judged.failed for judged in rounds),
        }
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        for judged in rounds:
            _print_round(judged)
    raise_if_failed(rounds)


def _print_round(judged: Round) -> None:
    """Prints the counts of a round's verdicts, and where they are kept."""
    counts = judged.verdicts.counts.items()
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in counts) or "judged before"
    folder = judged.answers.results.folder
    click.echo(
        f"{judged.answers.label}, step {judged.step}: {outcomes}; "
        f"verdicts {judged.verdicts.instrument.id} in {folder}"
    )
