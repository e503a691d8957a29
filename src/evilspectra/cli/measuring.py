"""The options of commands that measure targets, and the measurement itself.

Everything heavy is imported inside the functions.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.options import (
    BASE,
    JSON,
    MEASURED_STORE,
    MODEL,
    QUIET,
    assigned,
    model_config,
    progress,
    together,
)

if TYPE_CHECKING:
    from evilspectra.targets.find import Target

TARGETS = click.argument("targets", metavar="TARGET...", nargs=-1, required=True)
#: The options of every verb that measures targets.
MEASURING = together(
    BASE,
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="FIELD=VALUE",
        help=(
            "A setting of the measurement, for instance --set capability=null or --set threads=4. "
            "Repeatable."
        ),
    ),
    MODEL,
    MEASURED_STORE,
    JSON,
    QUIET,
)
#: The options of every verb that samples answers.
SAMPLING = together(
    click.option(
        "--samples",
        type=click.IntRange(1),
        help="Answers per question; without it as many as the file asks for.",
    ),
    click.option(
        "--max-new-tokens", type=click.IntRange(1), help="Most tokens per answer; default 600."
    ),
    click.option(
        "--temperature", type=click.FloatRange(0), help="Default 1; 0 takes the likeliest token."
    ),
    click.option("--seed", type=click.IntRange(0), help="Default 0."),
    click.option(
        "--checkpoints",
        is_flag=True,
        help="Sample at every saved checkpoint too, not at the end only.",
    ),
)
_ENDPOINT = together(
    click.option(
        "--endpoint",
        metavar="URL",
        help=(
            "Sample over HTTP instead: an OpenAI-compatible endpoint such as "
            "http://127.0.0.1:8000/v1 (the extra judge); adapters need a vLLM server."
        ),
    ),
    click.option("--endpoint-model", metavar="NAME", help="The base's name at the endpoint."),
)


def endpoint_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Adds --endpoint and --endpoint-model, which are passed on as settings."""

    @functools.wraps(verb)
    def with_endpoint(
        *arguments: Any,
        endpoint: str | None,
        endpoint_model: str | None,
        settings: Sequence[str],
        **options: Any,
    ) -> None:
        if (endpoint is None) != (endpoint_model is None):
            raise click.UsageError(
                "--endpoint URL and --endpoint-model NAME are given together: "
                "where to ask, and what the base is called there."
            )
        values = assigned({"endpoint.url": endpoint, "endpoint.model": endpoint_model})
        verb(*arguments, settings=[*values, *settings], **options)

    return _ENDPOINT(with_endpoint)


def measure(
    names: Sequence[str],
    base: str | None,
    settings: Sequence[str],
    model_settings: Sequence[str],
    output: str,
    quiet: bool,
) -> tuple[list[Target], list[dict[str, str]]]:
    """Measures targets; returns those that were measured, and the failures as JSON's types.

    Exits if every target failed.
    """
    from evilspectra.config.loading import build_evaluation
    from evilspectra.config.yaml_files import assignments
    from evilspectra.targets.find import find_targets

    evaluation = build_evaluation(assignments(settings), "--set")
    targets = find_targets(names, output, model_config(model_settings), base)
    from evilspectra.evaluation.evaluate import evaluate

    done = evaluate(targets, evaluation, progress(quiet))
    for target, error in done.failed:
        click.echo(f"evilspectra: {target.label}: {error}", err=True)
    if len(done.failed) == len(targets):
        sys.exit(done.failed[0][1].exit_code)
    failures = [
        {"target": target.label, "folder": str(target.results.folder), "reason": str(error)}
        for target, error in done.failed
    ]
    failed = [target for target, _ in done.failed]
    measured = [target for target in targets if target not in failed]
    return [target.showing(done.used[target.results.folder]) for target in measured], failures


def answers_only(options: Mapping[str, Any], settings: Sequence[str]) -> list[str]:
    """Assignments for a measurement that samples answers and runs no probe."""
    sampling = {f"answers.{name}": value for name, value in options.items() if value is not False}
    others = ("answers.", "threads=", "enable_thinking=")
    return [
        *(f"{name}=null" for name in ("contrast", "capability", "ordinary")),
        "answers={}",
        *assigned(sampling),
        *(text if text.startswith(others) else f"answers.{text}" for text in settings),
    ]
