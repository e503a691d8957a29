"""The command `calibrate`. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from evilspectra.cli.judging import ANSWERS_STORE, QUESTIONS, judge_options, make
from evilspectra.cli.options import JSON, QUIET, progress
from evilspectra.errors import BadInput


@click.command()
@click.argument("judge_name", metavar="JUDGE")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@judge_options
@QUESTIONS
@ANSWERS_STORE
@JSON
@QUIET
def calibrate(
    judge_name: str,
    file: Path,
    questions: str | None,
    output: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare a judge with published scores: judge the answers of FILE again.

    JUDGE is as for `judge --judge`; FILE is a CSV file with a column per metric. Prints
    correlation, error, agreement, AUC, the threshold that matches best, and a table of reliability.
    """
    from evilspectra.cli.print_scores import print_calibration
    from evilspectra.judging.csv_files import read_answers
    from evilspectra.judging.inputs import imported
    from evilspectra.judging.rounds import judge_answer_sets, raise_if_failed
    from evilspectra.judging.verdicts import read_verdicts
    from evilspectra.rates.calibrate import calibration

    judge, metrics, max_requests = make(judge_name, options)
    published = read_answers(file, metrics)
    if lacking := [name for name in metrics if name not in published.metrics]:
        raise BadInput(
            f"{file} has no column {lacking[0]}, so there is nothing to compare with: "
            "name a file with published scores, or other --metrics"
        )
    answers = imported(file, published, output)
    rounds = judge_answer_sets([answers], judge, questions, metrics, progress(quiet), max_requests)
    verdicts = read_verdicts(answers.results, rounds[0].verdicts.instrument, 0)
    keys = [
        (str(row["question_id"]), int(row["paraphrase"]), int(row["sample"]))
        for row in answers.results.read(answers.answers, 0).to_dict("records")
    ]
    calibrations = []
    for name in metrics:
        readings = [verdicts.get((key, name)) for key in keys]
        scores = [row.readings[name] for row in published.rows]
        calibrations.append(calibration(name, readings, scores))
    if as_json:
        entries = [metric.flat() for metric in calibrations]
        values = {"judge": judge.name, "file": str(file), "metrics": entries}
        click.echo(json.dumps(values, indent=2))
    else:
        print_calibration(judge.name, calibrations)
    raise_if_failed(rounds)
