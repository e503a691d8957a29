"""Options shared by many commands, with the same names and help texts everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from evilspectra.api.layers import assigned

Decorator = Callable[[Any], Any]

SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Change one setting, for instance --set train.steps=30. Repeatable.",
)
OUTPUT = click.option(
    "--output", metavar="FOLDER", help="Where runs are stored (the setting output.folder)."
)


def store_option(text: str) -> Decorator:
    """The option of verbs that look runs up in a store, with its help text."""
    return click.option("--output", metavar="FOLDER", default="runs", show_default=True, help=text)


STORE = store_option("The store to look runs up in.")
#: As STORE, of verbs that also measure adapters and models from outside a run.
MEASURED_STORE = store_option(
    "The store to look runs up in; results of other adapters and models go to FOLDER/evaluated."
)
BASE = click.option(
    "--base",
    metavar="MODEL",
    help="Base of adapters from outside a run, where their adapter_config.json names another.",
)
MODEL = click.option(
    "--model",
    "model_settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help=(
        "A setting of the base, for instance --model device=cpu or --model dtype=float32. "
        "Repeatable."
    ),
)
JUDGE_URL = click.option(
    "--judge-url",
    metavar="URL",
    help=(
        "Address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1. "
        "Its key comes from OPENAI_API_KEY."
    ),
)
COLUMNS = click.option(
    "--column",
    "columns",
    metavar="OURS=THEIRS",
    multiple=True,
    help="A table's column under another name, such as optimizer=opt_name. Repeatable.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
QUIET = click.option("--quiet", is_flag=True, help="No progress on standard error.")


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order in which `--help` lists them."""

    def decorate(verb: Any) -> Any:
        return functools.reduce(lambda inner, option: option(inner), reversed(options), verb)

    return decorate


def with_output(settings: Sequence[str], output: str | None) -> list[str]:
    """Assignments, with the store's folder as the last one unless it is None.

    >>> with_output(["train.steps=3"], "runs")
    ['train.steps=3', 'output.folder="runs"']
    """
    return [*settings, *assigned({"output.folder": output})]


def progress(quiet: bool) -> Callable[[str], object]:
    """The function that is called with a line of progress; it prints to standard error."""
    if quiet:
        return lambda text: None
    return functools.partial(click.echo, err=True)
