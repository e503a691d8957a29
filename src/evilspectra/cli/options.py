"""Options that many verbs have, so that they are called and explained alike everywhere."""

from __future__ import annotations

import click

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
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
QUIET = click.option("--quiet", is_flag=True, help="No progress on standard error.")
