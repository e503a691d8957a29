"""The command `gate`. Everything heavy is imported inside the command."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.judging import settings_of_options
from evilspectra.cli.options import (
    BASE,
    JSON,
    JUDGE_URL,
    MEASURED_STORE,
    MODEL,
    QUIET,
    model_config,
    progress,
)

if TYPE_CHECKING:
    from evilspectra.config.judge import JudgeConfig
    from evilspectra.gating.output import Report
    from evilspectra.gating.policy import Policy
    from evilspectra.judging.judge import Judge

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("candidate", metavar="CANDIDATE")
@click.option(
    "--baseline",
    metavar="MODEL_OR_ADAPTER",
    required=True,
    help="The candidate must not be worse than this: its base, or the adapter in production.",
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
        "A setting of the policy, for instance --set drift.max_increase=0.1 or "
        "--set capability=false. Repeatable."
    ),
)
@click.option(
    "--judge",
    "judge_name",
    metavar="JUDGE",
    help=(
        "Sample answers of both and have them judged too: "
        "openai:MODEL, local:MODEL, scripted:FILE or class:MODULE:CLASS."
    ),
)
@JUDGE_URL
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
    help="The seed of resamples and answers; without it the policy's.",
)
@BASE
@MODEL
@MEASURED_STORE
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
    model_settings: tuple[str, ...],
    as_json: bool,
    junit: Path | None,
    summary: Path | None,
    output: str,
    base: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Decide by a policy's rules whether CANDIDATE may go into production.

    It may unless it is worse than the baseline. CANDIDATE is a run, the folder of a PEFT adapter,
    or a model. Exit code 0: every check passes. 1: a check fails. 3: something could not be
    measured, for instance because a judge does not answer or an adapter belongs to another base;
    the reason is printed. 2: a mistake in the command or the policy.
    """
    from evilspectra.gating.decision import Measurements, decide
    from evilspectra.gating.evidence import GateRequest, gather
    from evilspectra.gating.output import Report, print_verdict, write_reports
    from evilspectra.gating.output import junit as as_junit
    from evilspectra.gating.output import markdown as as_markdown

    policy, judge, max_requests = _policy(policy_file, options)
    model = model_config(model_settings)
    report_of = functools.partial(
        Report, candidate, baseline, policy=policy, judge=judge.name if judge else None
    )
    files: dict[Path, Callable[[Report], str]] = {}
    for path, text_of in ((junit, as_junit), (summary, as_markdown)):
        if path:
            files[path] = text_of
    # If the gate is killed, the reports that it leaves are not green.
    unfinished = Measurements.none("the gate did not finish")
    write_reports(report_of(verdict=decide(unfinished, policy)), files)
    request = GateRequest(candidate, baseline, output, model, base, judge, max_requests)
    verdict = decide(gather(request, policy, progress(quiet)), policy)
    report = report_of(verdict=verdict)
    write_reports(report, files)
    if as_json:
        click.echo(json.dumps(report.flat(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_verdict(report)
    sys.exit(verdict.exit_code)


def _policy(file: Path | None, options: dict[str, Any]) -> tuple[Policy, Judge | None, int | None]:
    """The policy of a file and the options, its judge, and the most requests to that judge.

    Whatever is wrong with them is found here, before anything is measured.

    Raises:
        BadInput: an unusable policy, items or questions that cannot be read, a judge that is
            missing or cannot be used.
    """
    from evilspectra.answers.questions import read_questions
    from evilspectra.errors import BadInput
    from evilspectra.gating.policy import read_policy
    from evilspectra.judging.make import make_judge
    from evilspectra.probes.probe import probes

    over: dict[str, Any] = {} if options["seed"] is None else {"seed": options["seed"]}
    policy = read_policy(file, options["settings"], over)
    settings = _judge(policy, options)
    if settings and not policy.misalignment:
        policy = read_policy(file, [*options["settings"], "misalignment={}"], over)
    probes(policy.evaluation(), {})
    if policy.misalignment is None:
        return policy, None, None
    if settings is None:
        raise BadInput(
            "the policy has a section misalignment, and no judge: name one with --judge, "
            "or under misalignment.judge, or write misalignment: false"
        )
    read_questions(policy.misalignment.answers.questions)
    if policy.misalignment.answers.endpoint:
        from evilspectra.endpoint.chat import require_client

        require_client(policy.misalignment.answers.endpoint)
    return policy, make_judge(settings), settings.max_requests


def _judge(policy: Policy, options: dict[str, Any]) -> JudgeConfig | None:
    """The judge's settings: the policy's, overridden by the options; None without a judge.

    If the options name another judge than the policy, none of the policy's settings are used.
    """
    from evilspectra.config.judge import judge_settings
    from evilspectra.errors import BadInput

    written = policy.misalignment.judge if policy.misalignment else None
    name = options["judge_name"] or (written.judge if written else None)
    overrides = settings_of_options(options)
    if name is None:
        if overrides:
            raise BadInput(
                "--judge-url and --judge-set are settings of a judge, and none is named: "
                "name one with --judge, or in the policy under misalignment.judge"
            )
        return None
    if name.startswith("class:") and options["judge_name"] is None:
        raise BadInput(
            f"the policy names the judge {name}, and a class is code: it is imported only if the "
            f"command line names it too: add --judge {name}"
        )
    before = written.model_dump(exclude_unset=True) if written and written.judge == name else {}
    return judge_settings({**before, **overrides, "judge": name})
