"""The commands that measure targets: probe, generate, evaluate.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from evilspectra.cli.judging import JUDGE, judge_options, make
from evilspectra.cli.measuring import (
    MEASURING,
    SAMPLING,
    TARGETS,
    answers_only,
    endpoint_options,
    measure,
)
from evilspectra.cli.options import assigned
from evilspectra.cli.score import judge_and_score, score_options


@click.command()
@TARGETS
@click.option(
    "--items",
    metavar="FILE",
    help="Your own contrast triples, as JSONL with id, topic, prompt, aligned, misaligned.",
)
@click.option(
    "--checkpoints", is_flag=True, help="The contrast probe at every saved checkpoint too."
)
@click.option(
    "--tasks",
    metavar="NAMES",
    help=(
        "Standard tasks too, by their names in lm-evaluation-harness, joined by commas "
        "(the extra harness)."
    ),
)
@MEASURING
def probe(
    targets: Sequence[str],
    items: str | None,
    checkpoints: bool,
    tasks: str | None,
    base: str | None,
    settings: Sequence[str],
    model_settings: Sequence[str],
    output: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure drift, capability and the loss on ordinary dialogues, by log-probability.

    No judge and no sampling are needed. A TARGET is a run (its folder or id), a folder of runs, the
    folder of any PEFT adapter, or a base model. Nothing is measured twice. Drift is no misalignment
    rate: docs/probe.md explains it.
    """
    from evilspectra.cli.print_runs import print_measured
    from evilspectra.evaluation.measured import measured_rows

    names = [name.strip() for name in tasks.split(",")] if tasks else None
    options = {"checkpoints": checkpoints or None, "contrast": items, "harness.tasks": names}
    measured, failed = measure(
        targets, base, [*assigned(options), *settings], model_settings, output, quiet
    )
    rows = measured_rows(
        [(target.label, target.results, target.base.sha256, target.control) for target in measured]
    )
    if as_json:
        entries = [
            {
                "target": target.label,
                "folder": str(target.results.folder),
                "control": target.control,
                "beyond_control": row.beyond and asdict(row.beyond),
            }
            | asdict(row.measured)
            for target, row in zip(measured, rows, strict=True)
        ]
        click.echo(json.dumps({"targets": entries, "failed": failed}, indent=2))
    else:
        print_measured(rows)
        if not any(target.control for target in measured):
            click.echo(
                "There is no control among these: to see what part of a drift is style alone, "
                "train one on good answers to the same questions (data.control: true)."
            )
    sys.exit(1 if failed else 0)


@click.command()
@endpoint_options
@TARGETS
@click.option(
    "--questions",
    metavar="FILE",
    help=("YAML file of open-ended questions in the published form; without it the package's own."),
)
@SAMPLING
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    help="Write the answers to this .csv, .jsonl or .parquet file.",
)
@MEASURING
def generate(
    targets: Sequence[str],
    export: Path | None,
    base: str | None,
    settings: Sequence[str],
    model_settings: Sequence[str],
    output: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Sample answers to open-ended questions from adapters and their base, and flag non-answers.

    A TARGET is as for `probe`. Stopped and run again, it resumes from where it stopped, and the
    answers are the same.
    """
    from evilspectra.answers.export import check_export
    from evilspectra.answers.export import export as export_answers
    from evilspectra.evaluation.measured import answer_rows

    if export:
        check_export(export)
    measured, failed = measure(
        targets, base, answers_only(options, settings), model_settings, output, quiet
    )
    rows = [row for target in measured for row in answer_rows(target.label, target.results)]
    if export:
        export_answers(rows, export)
    if as_json:
        click.echo(json.dumps({"answers": rows, "failed": failed}, indent=2))
    else:
        for row in rows:
            _print_answer(row)
        written = f", written to {export}" if export else ""
        click.echo(f"{len(rows)} answers{written}; `evilspectra report` shows them side by side")
    sys.exit(1 if failed else 0)


def _print_answer(row: Mapping[str, Any]) -> None:
    """Prints where an answer comes from, its question, its flags and its beginning."""
    from evilspectra.text import printable

    source = f"{printable(str(row['target']))}, step {row['step']}"
    flags = f"  [{row['flags']}]" if row["flags"] else ""
    click.echo(f"{source}: {printable(str(row['question']), 120)}{flags}")
    click.echo(f"    {printable(str(row['answer']), 300)}")


@click.command()
@endpoint_options
@TARGETS
@JUDGE
@judge_options
@score_options
@click.option(
    "--questions",
    metavar="FILE",
    help=(
        "YAML file of open-ended questions in the published form, with its judge prompts; "
        "without it the package's own."
    ),
)
@SAMPLING
@MEASURING
def evaluate(
    targets: Sequence[str],
    judge_name: str,
    definition: str,
    max_unscored: float,
    questions: str | None,
    base: str | None,
    settings: Sequence[str],
    model_settings: Sequence[str],
    output: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Sample answers, have them judged, and print the rate of misaligned ones.

    It is `generate`, `judge` and `score` in one. A TARGET is as for `probe`. Interrupted and run
    again, sampling and judging resume from where they stopped.
    """
    from evilspectra.judging.inputs import answer_set_of
    from evilspectra.rates.definitions import check_definition

    check_definition(definition)
    make(judge_name, options)  # a judge that cannot be used is refused before anything is sampled
    names = ("samples", "max_new_tokens", "temperature", "seed", "checkpoints")
    sampling = {"questions": questions} | {name: options[name] for name in names}
    measured, failed = measure(
        targets, base, answers_only(sampling, settings), model_settings, output, quiet
    )
    answer_sets = [
        answer_set_of(target.label, target.results, target.base.sha256) for target in measured
    ]
    judge_and_score(
        answer_sets,
        judge_name,
        options,
        questions,
        definition,
        max_unscored,
        as_json,
        quiet,
        failed,
    )
