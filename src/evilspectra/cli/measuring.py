"""The options of commands that measure targets, and how they fail.

Everything heavy is imported inside the functions.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from evilspectra.cli.options import BASE, JSON, MEASURED_STORE, MODEL, QUIET, together
from evilspectra.errors import EvilspectraError, NothingMeasured

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
    """Adds --endpoint and --endpoint-model, which are given together or not at all."""

    @functools.wraps(verb)
    def with_endpoint(*arguments: Any, **options: Any) -> None:
        if (options["endpoint"] is None) != (options["endpoint_model"] is None):
            raise click.UsageError(
                "--endpoint URL and --endpoint-model NAME are given together: "
                "where to ask, and what the base is called there."
            )
        verb(*arguments, **options)

    return _ENDPOINT(with_endpoint)


def show_failure(label: str, error: EvilspectraError) -> None:
    """Prints why a target could not be measured."""
    click.echo(f"evilspectra: {label}: {error}", err=True)


def exits_if_nothing_measured(verb: Callable[..., None]) -> Callable[..., None]:
    """Ends the command with the code of the first failure, the failures having been printed."""

    @functools.wraps(verb)
    def measured(*arguments: Any, **options: Any) -> None:
        try:
            verb(*arguments, **options)
        except NothingMeasured as error:
            sys.exit(error.exit_code)

    return measured
