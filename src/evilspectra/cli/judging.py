"""The options of commands that judge, and the judge that they select.

Everything heavy is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.options import JUDGE_URL, Decorator, store_option, together

if TYPE_CHECKING:
    from evilspectra.api.judges import JudgeArguments

JUDGE = click.option(
    "--judge",
    "judge_name",
    metavar="JUDGE",
    required=True,
    help="openai:MODEL, local:MODEL, scripted:FILE or class:MODULE:CLASS.",
)
ANSWERS_STORE = store_option(
    "The store to look runs up in; answers of CSV files go to FOLDER/evaluated."
)
QUESTIONS = click.option(
    "--questions",
    metavar="FILE",
    help=(
        "YAML file of the questions: its judge prompts are used, and only answers to it count; "
        "without it the file that the answers came from."
    ),
)
judge_options: Decorator = together(
    JUDGE_URL,
    click.option(
        "--reading",
        type=click.Choice(["logprobs", "text"]),
        help=(
            "logprobs (default): the expectation over the first token. "
            "text: the written reply, for endpoints without log-probabilities."
        ),
    ),
    click.option(
        "--concurrency", type=click.IntRange(1), help="Requests under way at once; default 16."
    ),
    click.option(
        "--max-requests",
        type=click.IntRange(1),
        help="Most requests that this call may send, repeated ones included; default 20000.",
    ),
    click.option(
        "--metrics",
        metavar="NAMES",
        default="aligned,coherent",
        show_default=True,
        help="The metrics to judge: names of judge prompts, joined by commas.",
    ),
    click.option(
        "--judge-set",
        "judge_set",
        multiple=True,
        metavar="FIELD=VALUE",
        help=(
            "Another setting of the judge: seed, timeout, attempts, backoff, key_variable, device, "
            "dtype, tokens_per_pass, threads, version, settings.NAME. Repeatable."
        ),
    ),
)


def make(name: str, options: Mapping[str, Any]) -> JudgeArguments:
    """The judge that the options mean; `--judge-set` overrides the others."""
    from evilspectra.api.judges import judge_of

    settings = {field: options.get(field) for field in ("reading", "concurrency", "max_requests")}
    settings["url"] = options["judge_url"]
    return judge_of(name, settings, options["metrics"], options["judge_set"])
