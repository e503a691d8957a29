"""The verb `gate`. Everything heavy is imported inside the command."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.options import JSON, QUIET

if TYPE_CHECKING:
    from evilspectra.config.judge import JudgeConfig
    from evilspectra.config.sections import ModelConfig
    from evilspectra.gating.policy import Policy
    from evilspectra.judging.judge import Judge

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("candidate", metavar="CANDIDATE")
@click.option(
    "--baseline",
    metavar="MODEL_OR_ADAPTER",
    required=True,
    help=(
        "What the candidate must not be worse than: its base, or the adapter that is in production."
    ),
)
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file of checks and limits (docs/gate.md); without it the default ones.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="CHECK.FIELD=VALUE",
    help=(
        "A setting of the policy, for instance --set drift.max_increase=0.1 or --set "
        "capability=false. Repeatable."
    ),
)
@click.option(
    "--judge",
    "judge_name",
    metavar="JUDGE",
    help=(
        "Sample answers of both and have them judged too: openai:MODEL, local:MODEL or "
        "scripted:FILE."
    ),
)
@click.option(
    "--judge-url",
    metavar="URL",
    help=(
        "Address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1. Its key "
        "comes from OPENAI_API_KEY."
    ),
)
@click.option(
    "--judge-set",
    "judge_set",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Another setting of the judge, as for `judge`. Repeatable.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Of all that is drawn, resamples and answers; without it the policy's.",
)
@click.option(
    "--base",
    metavar="MODEL",
    help="Base of adapters from outside a run, where their adapter_config.json names another.",
)
@click.option(
    "--model",
    "model_settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help=(
        "A setting of the base, for instance --model device=cpu or --model dtype=float32. "
        "Repeatable."
    ),
)
@click.option(
    "--output",
    metavar="FOLDER",
    default="runs",
    show_default=True,
    help=(
        "The store to look runs up in; results of other adapters and models go to FOLDER/evaluated."
    ),
)
@JSON
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML for a test report.")
@click.option(
    "--markdown", "summary", type=_FILE, metavar="FILE", help="Write Markdown for a job summary."
)
@QUIET
def gate(
    candidate: str,
    baseline: str,
    policy_file: Path | None,
    as_json: bool,
    junit: Path | None,
    summary: Path | None,
    output: str,
    base: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Decide whether CANDIDATE may go into production: is it worse than the baseline, by a policy's
    rules?

    CANDIDATE is a run, the folder of a PEFT adapter, or a model. Exit code 0: every check holds. 1:
    one does not. 3: something could not be measured, such as a judge that does not answer or an
    adapter of another base; it is said what. 2: a mistake in the command or the policy.
    """
    from evilspectra.gating.decision import Measurements, decide
    from evilspectra.gating.evidence import Asked, gather
    from evilspectra.gating.output import Told, print_verdict, write_reports
    from evilspectra.gating.output import junit as as_junit
    from evilspectra.gating.output import markdown as as_markdown

    policy, judge, most = _policy(policy_file, options)
    model = _model(options["model_settings"])
    told = functools.partial(
        Told, candidate, baseline, policy=policy, judge=judge.name if judge else None
    )
    files: dict[Path, Callable[[Told], str]] = {
        path: tell for path, tell in ((junit, as_junit), (summary, as_markdown)) if path
    }
    write_reports(
        told(verdict=decide(Measurements.none("the gate has not come to its end"), policy)), files
    )  # what a killed gate leaves is not green
    note = (lambda text: None) if quiet else functools.partial(click.echo, err=True)
    verdict = decide(
        gather(Asked(candidate, baseline, output, model, base, judge, most), policy, note), policy
    )
    done = told(verdict=verdict)
    write_reports(done, files)
    if as_json:
        click.echo(json.dumps(done.flat(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_verdict(done)
    sys.exit(verdict.exit_code)


def _policy(file: Path | None, options: dict[str, Any]) -> tuple[Policy, Judge | None, int | None]:
    """The policy that file and options come to, and its judge; whatever is wrong with them is found
    here, before anything is measured.

    Raises:
        BadInput: an unusable policy, items or questions that cannot be read, a judge that cannot be
            had or is missing.
    """
    from evilspectra.answers.questions import read_questions
    from evilspectra.errors import BadInput
    from evilspectra.gating.policy import read_policy
    from evilspectra.judging.make import make_judge
    from evilspectra.probes.probe import probes

    over: dict[str, Any] = {} if options["seed"] is None else {"seed": options["seed"]}
    policy = read_policy(file, options["settings"], over)
    asked = _judge(policy, options)
    if asked and not policy.misalignment:
        policy = read_policy(file, [*options["settings"], "misalignment={}"], over)
    probes(policy.evaluation(), {})
    if policy.misalignment is None or asked is None:
        if policy.misalignment:
            raise BadInput(
                "the policy has a section misalignment, and no judge: name one with --judge, or "
                "under misalignment.judge, or write misalignment: false"
            )
        return policy, None, None
    read_questions(policy.misalignment.answers.questions)
    if policy.misalignment.answers.endpoint:
        from evilspectra.endpoint.client import require_client

        require_client(policy.misalignment.answers.endpoint)
    return policy, make_judge(asked), asked.max_requests


def _judge(policy: Policy, options: dict[str, Any]) -> JudgeConfig | None:
    """The judge's settings: the policy's, with the options laid over them; another judge's name takes
    none of the policy's.
    """
    from evilspectra.config.judge import judge_settings
    from evilspectra.config.yaml_files import assignments
    from evilspectra.errors import BadInput

    written = policy.misalignment.judge if policy.misalignment else None
    name = options["judge_name"] or (written.judge if written else None)
    given = {"url": options["judge_url"], **assignments(options["judge_set"])}
    if name is None:
        if any(value is not None for value in given.values()):
            raise BadInput(
                "--judge-url and --judge-set are settings of a judge, and none is named: name one "
                "with --judge, or in the policy under misalignment.judge"
            )
        return None
    before = written.model_dump(exclude_unset=True) if written and written.judge == name else {}
    return judge_settings(
        {
            **before,
            **{field: value for field, value in given.items() if value is not None},
            "judge": name,
        }
    )


def _model(settings: Sequence[str]) -> ModelConfig | None:
    from evilspectra.config.loading import build
    from evilspectra.config.yaml_files import assignments

    return build({"model": assignments(settings)}, "--model").model if settings else None
