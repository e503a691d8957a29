"""The commands that measure targets: probe, generate, evaluate.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.judging import JUDGE, judge_options
from evilspectra.cli.measuring import (
    MEASURING,
    SAMPLING,
    TARGETS,
    endpoint_options,
    exits_if_nothing_measured,
    show_failure,
)
from evilspectra.cli.options import assigned, progress
from evilspectra.cli.score import REMEDY, score_options
from evilspectra.errors import EvilspectraError, Undecided

if TYPE_CHECKING:
    from evilspectra.api.scoring import TargetRate


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
@exits_if_nothing_measured
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
    from evilspectra.api.measurements import NO_CONTROL
    from evilspectra.api.measuring import probe as probe_targets
    from evilspectra.cli.print_runs import print_measured
    from evilspectra.evaluation.measured import MeasuredRow

    probed = probe_targets(
        targets,
        items=items,
        checkpoints=checkpoints,
        tasks=tasks or (),
        base=base,
        settings=settings,
        model=model_settings,
        output=output,
        note=progress(quiet),
        on_failure=show_failure,
    )
    if as_json:
        click.echo(json.dumps(probed.flat(), indent=2))
    else:
        print_measured(
            [
                MeasuredRow(target.label, target.measured, target.beyond_control)
                for target in probed.targets
            ]
        )
        if not probed.has_control:
            click.echo(NO_CONTROL)
    sys.exit(1 if probed.failed else 0)


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
@exits_if_nothing_measured
def generate(
    targets: Sequence[str],
    export: Path | None,
    endpoint: str | None,
    endpoint_model: str | None,
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
    from evilspectra.api.measurements import measure
    from evilspectra.api.measuring import answers_only
    from evilspectra.evaluation.measured import answer_rows

    if export:
        check_export(export)
    requests = assigned({"endpoint.url": endpoint, "endpoint.model": endpoint_model})
    measured, failed = measure(
        targets,
        base,
        answers_only(options, [*requests, *settings]),
        model_settings,
        output,
        progress(quiet),
        show_failure,
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
@exits_if_nothing_measured
def evaluate(
    targets: Sequence[str],
    judge_name: str,
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
    from evilspectra.api.measuring import evaluate as evaluate_targets
    from evilspectra.cli.print_scores import print_score

    rates = evaluate_targets(
        targets,
        judge=judge_name,
        judge_settings=options.pop("judge_set"),
        base=base,
        settings=settings,
        model=model_settings,
        output=output,
        note=progress(quiet),
        on_failure=show_failure,
        **options,
    )
    if as_json:
        values = {"scores": [_flat(rate) for rate in rates.targets], "failed": rates.failed}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        for rate in rates.targets:
            print_score(rate.label, rate.judge, rate.score, rate.scores, rate.base)
    if rates.incomplete:
        raise EvilspectraError(rates.incomplete)
    if withheld := [rate.withheld for rate in rates.targets if rate.rate is None]:
        raise Undecided(f"the rate is withheld: {withheld[0]}; {REMEDY}")
    sys.exit(1 if rates.failed else 0)


def _flat(rate: TargetRate) -> dict[str, Any]:
    """A rate as values of JSON's types."""
    values = rate.flat() | {"folder": str(rate.folder)}
    order = (*rate.score.flat(), "target", "folder", "judge", "step", "rates", "base")
    return {name: values[name] for name in order}
