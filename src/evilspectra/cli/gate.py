"""The command `gate`. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from evilspectra.cli.options import (
    BASE,
    JSON,
    JUDGE_URL,
    MEASURED_STORE,
    MODEL,
    QUIET,
    progress,
)

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
        "openai:MODEL, local:MODEL or scripted:FILE."
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
    settings: tuple[str, ...],
    judge_name: str | None,
    judge_url: str | None,
    judge_set: tuple[str, ...],
    seed: int | None,
    model_settings: tuple[str, ...],
    as_json: bool,
    junit: Path | None,
    summary: Path | None,
    output: str,
    base: str | None,
    quiet: bool,
) -> None:
    """Decide by a policy's rules whether CANDIDATE may go into production.

    It may unless it is worse than the baseline. CANDIDATE is a run, the folder of a PEFT adapter,
    or a model. Exit code 0: every check passes. 1: a check fails. 3: something could not be
    measured, for instance because a judge does not answer or an adapter belongs to another base;
    the reason is printed. 2: a mistake in the command or the policy.
    """
    from evilspectra.api.gating import gate as decide
    from evilspectra.gating.output import print_verdict

    verdict = decide(
        candidate,
        baseline=baseline,
        policy=policy_file,
        settings=settings,
        judge=judge_name,
        judge_url=judge_url,
        judge_settings=judge_set,
        seed=seed,
        base=base,
        model=model_settings,
        output=output,
        junit=junit,
        markdown=summary,
        note=progress(quiet),
    )
    if as_json:
        click.echo(json.dumps(verdict.flat(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_verdict(verdict.report)
    sys.exit(verdict.exit_code)
