"""The command line: one command per verb. Everything heavy is imported inside the commands."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import evilspectra
from evilspectra.cli.adapters import flatten, spectrum
from evilspectra.cli.analyze import analyze
from evilspectra.cli.card import card
from evilspectra.cli.data import data
from evilspectra.cli.gate import gate
from evilspectra.cli.judge import VERBS, judge_and_score, judge_options, make, score_options
from evilspectra.cli.options import JSON, OUTPUT, QUIET, SET
from evilspectra.cli.query import query_verb
from evilspectra.cli.report import report
from evilspectra.cli.sweep import run_sweep, sweep, with_output
from evilspectra.cli.tune import tune
from evilspectra.errors import EvilspectraError, RunFailed

EXIT_CODES = (
    "Exit codes: 0 done; 1 the answer is no, or a run failed; 2 usage or bad input; 3 could "
    "not be decided; 130 interrupted."
)


@click.group(
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(evilspectra.__version__, prog_name="evilspectra")
def cli() -> None:
    """Fine-tune LoRA adapters under any optimiser, watch and flatten their singular-value spectra, see
    what it does.

    Start with `evilspectra demo`: a real language model, five ways to train it, a report to open.
    """


@cli.command()
@click.argument("config", metavar="CONFIG")
@SET
@OUTPUT
@JSON
@QUIET
def train(
    config: str,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train one run.

    CONFIG is a YAML file (`evilspectra config show` prints one) or a preset's name.

    A run that was interrupted goes on where it was; a run that is done is not trained again.
    """
    from evilspectra.config.loading import load

    loaded = load(config, with_output(settings, output))
    from evilspectra.cli.print_runs import print_summaries
    from evilspectra.evaluation.summary import summarise
    from evilspectra.training.identity import locate
    from evilspectra.training.train import train as run_training

    try:
        run = run_training(loaded, quiet)
    except RunFailed:
        failed = locate(loaded)[0]
        if as_json and (failed.path / "config.yaml").is_file():
            _print_json(summarise(failed))
        raise
    summary = summarise(run)
    if as_json:
        _print_json(summary)
    else:
        print_summaries([summary])
        click.echo(f"adapter: {Path(summary.folder) / 'adapter'}")


_TARGETS = click.argument("targets", metavar="TARGET...", nargs=-1, required=True)


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order in which `--help` lists them."""
    return lambda verb: functools.reduce(
        lambda inner, option: option(inner), reversed(options), verb
    )


#: Of every verb that measures targets.
_MEASURING = _together(
    click.option(
        "--base",
        metavar="MODEL",
        help="Base of an adapter from outside a run, where its adapter_config.json names another.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="FIELD=VALUE",
        help=(
            "A setting of the measurement, for instance --set capability=null or --set "
            "threads=4. Repeatable."
        ),
    ),
    click.option(
        "--model",
        "model_settings",
        multiple=True,
        metavar="FIELD=VALUE",
        help=(
            "A setting of the base, for instance --model device=cpu or --model dtype=float32. "
            "Repeatable."
        ),
    ),
    click.option(
        "--output",
        metavar="FOLDER",
        default="runs",
        show_default=True,
        help=(
            "The store to look runs up in; results of other adapters and models go to "
            "FOLDER/evaluated."
        ),
    ),
    JSON,
    QUIET,
)
#: Of every verb that samples answers.
_SAMPLING = _together(
    click.option(
        "--samples",
        type=click.IntRange(1),
        help="Answers per question; without it what the file asks for.",
    ),
    click.option(
        "--max-new-tokens", type=click.IntRange(1), help="Tokens per answer at most; default 600."
    ),
    click.option(
        "--temperature", type=click.FloatRange(0), help="Default 1; 0 takes the likeliest token."
    ),
    click.option("--seed", type=click.IntRange(0), help="Default 0."),
    click.option(
        "--checkpoints", is_flag=True, help="At every saved checkpoint too, not at the end only."
    ),
)


@cli.command()
@_TARGETS
@click.option(
    "--items",
    metavar="FILE",
    help="Contrast triples of your own, as JSONL with id, topic, prompt, aligned, misaligned.",
)
@click.option(
    "--checkpoints", is_flag=True, help="The contrast probe at every saved checkpoint too."
)
@click.option(
    "--tasks",
    metavar="NAMES",
    help=(
        "Standard tasks too, by their names in lm-evaluation-harness, joined by commas (the "
        "extra harness)."
    ),
)
@_MEASURING
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
    """Measure drift, capability and the loss on ordinary dialogues, by log-probability: no judge, no
    sampling.

    A TARGET is a run (its folder or id), a folder of runs, the folder of any PEFT adapter, or a
    base model. What was measured before is not measured again. Drift is no misalignment rate:
    docs/probe.md says what it is.
    """
    from evilspectra.cli.print_runs import print_measured
    from evilspectra.evaluation.measured import measured_rows

    names = [name.strip() for name in tasks.split(",")] if tasks else None
    given = [
        *_assigned({"checkpoints": checkpoints or None, "contrast": items, "harness.tasks": names}),
        *settings,
    ]
    found, failed = _measure(targets, base, given, model_settings, output, quiet)
    rows = measured_rows(
        [(target.label, target.results, target.base.sha256, target.control) for target in found]
    )
    if as_json:
        shown = [
            {
                "target": target.label,
                "folder": str(target.results.folder),
                "control": target.control,
                "beyond_control": row.beyond and asdict(row.beyond),
            }
            | asdict(row.measured)
            for target, row in zip(found, rows, strict=True)
        ]
        click.echo(json.dumps({"targets": shown, "failed": failed}, indent=2))
    else:
        print_measured(rows)
        if not any(target.control for target in found):
            click.echo(
                "No control among these: to see what part of a drift is style alone, train one on "
                "good answers to the same questions (data.control: true)."
            )
    sys.exit(1 if failed else 0)


def _endpoint_options(verb: Callable[..., None]) -> Callable[..., None]:
    """--endpoint and --endpoint-model, passed on as settings."""

    @click.option(
        "--endpoint",
        metavar="URL",
        help=(
            "Sample over HTTP instead: an OpenAI-compatible endpoint such as "
            "http://127.0.0.1:8000/v1 (the extra judge); adapters need a vLLM server."
        ),
    )
    @click.option(
        "--endpoint-model", metavar="NAME", help="What the base is called at the endpoint."
    )
    @functools.wraps(verb)
    def wrapped(
        *args: Any,
        endpoint: str | None,
        endpoint_model: str | None,
        settings: Sequence[str],
        **more: Any,
    ) -> None:
        if (endpoint is None) != (endpoint_model is None):
            raise click.UsageError(
                "--endpoint URL and --endpoint-model NAME are given together: where to ask, and "
                "what the base is called there."
            )
        verb(
            *args,
            settings=[
                *_assigned({"endpoint.url": endpoint, "endpoint.model": endpoint_model}),
                *settings,
            ],
            **more,
        )

    return wrapped


@cli.command()
@_endpoint_options
@_TARGETS
@click.option(
    "--questions",
    metavar="FILE",
    help="YAML file of open-ended questions in the published form; without it the package's own.",
)
@_SAMPLING
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    help="Write the answers to this .csv, .jsonl or .parquet file.",
)
@_MEASURING
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
    """Sample answers to open-ended questions from adapters and their base, and flag what is no answer.

    A TARGET is as for `probe`. Stopped and run again, it goes on where it was, to the same answers.
    """
    from evilspectra.answers.export import check_export
    from evilspectra.answers.export import export as export_answers
    from evilspectra.evaluation.measured import answer_rows
    from evilspectra.text import printable

    if export:
        check_export(export)
    found, failed = _measure(
        targets, base, _answers_alone(options, settings), model_settings, output, quiet
    )
    rows = [row for target in found for row in answer_rows(target.label, target.results)]
    if export:
        export_answers(rows, export)
    if as_json:
        click.echo(json.dumps({"answers": rows, "failed": failed}, indent=2))
    else:
        for row in rows:
            flagged = f"  [{row['flags']}]" if row["flags"] else ""
            click.echo(
                f"{printable(str(row['target']))}, step {row['step']}: "
                f"{printable(str(row['question']), 120)}{flagged}\n    "
                f"{printable(str(row['answer']), 300)}"
            )
        click.echo(
            f"{len(rows)} answers"
            + (f", written to {export}" if export else "")
            + "; `evilspectra report` shows them side by side"
        )
    sys.exit(1 if failed else 0)


@cli.command()
@_endpoint_options
@_TARGETS
@click.option(
    "--judge",
    "judge_name",
    metavar="JUDGE",
    required=True,
    help="openai:MODEL, local:MODEL or scripted:FILE.",
)
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
@_SAMPLING
@_MEASURING
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
    """Sample answers, have them judged, and print the rate of misaligned ones: `generate`, `judge` and
    `score` in one.

    A TARGET is as for `probe`. Interrupted and run again, it goes on where it was, in sampling and
    in judging.
    """
    from evilspectra.judging.inputs import answer_set_of
    from evilspectra.rates.definitions import check_definition

    check_definition(definition)
    make(judge_name, options)  # a judge that cannot be had is refused before anything is sampled
    names = ("samples", "max_new_tokens", "temperature", "seed", "checkpoints")
    sampling = {"questions": questions} | {name: options[name] for name in names}
    found, failed = _measure(
        targets, base, _answers_alone(sampling, settings), model_settings, output, quiet
    )
    places = [answer_set_of(target.label, target.results, target.base.sha256) for target in found]
    judge_and_score(
        places, judge_name, options, questions, definition, max_unscored, as_json, quiet, failed
    )


@cli.command()
@SET
@OUTPUT
@QUIET
def demo(settings: Sequence[str], output: str | None, quiet: bool) -> None:
    """Fine-tune SmolLM2-135M under SGD, AdamW, Lion and Muon, and AdamW with the flatness penalty;
    measure; write a report.

    Takes about 20 minutes on two CPU cores. Run again, it goes on where it was.
    """
    from evilspectra.reporting.build import build_report, read_rows
    from evilspectra.reporting.sentences.headline import headline

    runs, failed = run_sweep("demo", with_output(settings, output), as_json=False, quiet=quiet)
    path = build_report(runs)
    click.echo()
    for sentence in headline(read_rows(runs)):
        click.echo(f"- {sentence}")
    click.echo(f"\nreport: {path.resolve()}")
    sys.exit(1 if failed else 0)


@cli.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--output",
    metavar="FOLDER",
    default="runs",
    show_default=True,
    help="The store to look RUN up in.",
)
@JSON
def show(run: str, output: str, as_json: bool) -> None:
    """Show one run. RUN is its folder, or its id."""
    from evilspectra.cli.print_runs import print_summaries
    from evilspectra.evaluation.summary import summarise
    from evilspectra.store.run import find_run

    found = find_run(run, output)
    summary = summarise(found)
    if as_json:
        _print_json(summary)
        return
    print_summaries([summary])
    click.echo(f"status: {summary.status}, {summary.steps} steps")
    click.echo(f"folder: {found.path}")
    if checkpoints := found.checkpoints():
        click.echo(f"checkpoints: {', '.join(map(str, checkpoints))}")


@cli.group()
def config() -> None:
    """What a run is made of."""


@config.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a config file, for editors that complete and check YAML."""
    from evilspectra.config.loading import schema

    click.echo(json.dumps(schema(), indent=2))


@config.command("show")
@click.argument("name", metavar="[CONFIG]", required=False)
@SET
def config_show(name: str | None, settings: Sequence[str]) -> None:
    """Print a config with every default filled in (of CONFIG, or of nothing but defaults)."""
    from evilspectra.config.loading import build, dump, load
    from evilspectra.config.yaml_files import assignments

    config = load(name, settings) if name is not None else build(assignments(settings), "--set")
    click.echo(dump(config), nl=False)


cli.add_command(data)
cli.add_command(report)
cli.add_command(analyze)
cli.add_command(query_verb)
cli.add_command(sweep)
cli.add_command(tune)
cli.add_command(spectrum)
cli.add_command(flatten)
cli.add_command(card)
cli.add_command(gate)


def _measure(
    names: Sequence[str],
    base: str | None,
    settings: Sequence[str],
    model_settings: Sequence[str],
    output: str,
    quiet: bool,
) -> tuple[list[Any], list[dict[str, str]]]:
    """The targets that were measured, and what became of the others."""
    from evilspectra.config.loading import build, build_evaluation
    from evilspectra.config.yaml_files import assignments
    from evilspectra.targets.find import find_targets

    evaluation = build_evaluation(assignments(settings), "--set")
    model = (
        build({"model": assignments(model_settings)}, "--model").model if model_settings else None
    )
    targets = find_targets(names, output, model, base)
    from evilspectra.evaluation.evaluate import evaluate

    done = evaluate(
        targets,
        evaluation,
        (lambda text: None) if quiet else functools.partial(click.echo, err=True),
    )
    for target, error in done.failed:
        click.echo(f"evilspectra: {target.label}: {error}", err=True)
    if len(done.failed) == len(targets):
        sys.exit(done.failed[0][1].exit_code)
    lost = [target for target, _ in done.failed]
    found = [
        target.showing(done.used[target.results.folder]) for target in targets if target not in lost
    ]
    return found, [
        {"target": target.label, "folder": str(target.results.folder), "reason": str(error)}
        for target, error in done.failed
    ]


def _answers_alone(options: Mapping[str, Any], settings: Sequence[str]) -> list[str]:
    """Assignments for a measurement that samples answers and does nothing else."""
    sampling = _assigned(
        {f"answers.{name}": value for name, value in options.items() if value is not False}
    )
    probes = [f"{name}=null" for name in ("contrast", "capability", "ordinary")]
    return [
        *probes,
        "answers={}",
        *sampling,
        *(
            text
            if text.startswith(("answers.", "threads=", "enable_thinking="))
            else f"answers.{text}"
            for text in settings
        ),
    ]


def _assigned(values: Mapping[str, Any]) -> list[str]:
    """Options as `--set` assignments; those that were not given (None) are left out."""
    return [
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
        if value is not None
    ]


def _print_json(summary: Any) -> None:
    click.echo(json.dumps(asdict(summary), indent=2, ensure_ascii=False))


for _verb in VERBS:
    cli.add_command(_verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command and turns every expected failure into one sentence and its exit
    code.
    """
    try:
        code = cli.main(
            args=list(arguments) if arguments is not None else None,
            prog_name="evilspectra",
            standalone_mode=False,
        )
        sys.stdout.flush()
    except EvilspectraError as error:
        click.echo(f"evilspectra: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click takes a file that ends too early for ^D
            raise error.__cause__ from None
        click.echo(
            "evilspectra: interrupted; what was saved is kept, run the same command again to go on",
            err=True,
        )
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
