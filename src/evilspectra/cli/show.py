"""The commands `show` and `config`. Everything heavy is imported inside the commands."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from evilspectra.cli.options import JSON, SET, STORE


@click.command()
@click.argument("run", metavar="RUN")
@STORE
@JSON
def show(run: str, output: str, as_json: bool) -> None:
    """Show one run. RUN is its folder, or its id."""
    from evilspectra.cli.print_runs import print_json, print_summaries
    from evilspectra.evaluation.summary import summarise
    from evilspectra.store.run import find_run

    run_folder = find_run(run, output)
    summary = summarise(run_folder)
    if as_json:
        print_json(summary)
        return
    print_summaries([summary])
    click.echo(f"status: {summary.status}, {summary.steps} steps")
    click.echo(f"folder: {run_folder.path}")
    if checkpoints := run_folder.checkpoints():
        click.echo(f"checkpoints: {', '.join(map(str, checkpoints))}")


@click.group()
def config() -> None:
    """Print configs and their schema."""


@config.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a config file, for editors that complete and check YAML."""
    from evilspectra.config.loading import schema

    click.echo(json.dumps(schema(), indent=2))


@config.command("show")
@click.argument("name", metavar="[CONFIG]", required=False)
@SET
def config_show(name: str | None, settings: Sequence[str]) -> None:
    """Print a config with every default filled in: CONFIG, or one of defaults only."""
    from evilspectra.api.configs import load_config
    from evilspectra.config.loading import build, dump
    from evilspectra.config.yaml_files import assignments

    if name is None:
        config = build(assignments(settings), "--set")
    else:
        config = load_config(name, settings=settings)
    click.echo(dump(config), nl=False)
