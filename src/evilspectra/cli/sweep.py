"""The commands for sweeps: run one, show its status, retry the runs that failed.

Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.executor_options import executor_options
from evilspectra.cli.options import JSON, OUTPUT, QUIET, with_output
from evilspectra.cli.print_plan import DRY_RUN, SEEDS, dry_run, with_seeds
from evilspectra.cli.print_status import print_status, watch_status
from evilspectra.cli.run_sweep import run_sweep
from evilspectra.errors import BadInput

if TYPE_CHECKING:
    from evilspectra.sweeps.ledger import Ledger

_SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Change one setting of every run, for instance --set train.steps=30. Repeatable.",
)


class _FileOrVerb(click.Group):
    """`sweep FILE …` is `sweep run FILE …`: an argument that is not a command is a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_FileOrVerb)
def sweep() -> None:
    """Train every run of a sweep, measure it and have it judged, skipping what is done.

    \b
    evilspectra sweep FILE [OPTIONS]   FILE is a YAML file or a preset's name
    evilspectra sweep run --help       the options of a sweep
    evilspectra sweep status           how far a sweep or a store is
    evilspectra sweep retry            run failed runs again
    """


@sweep.command("run")
@click.argument("file", metavar="FILE")
@SEEDS
@DRY_RUN
@executor_options
@_SET
@OUTPUT
@JSON
@QUIET
def run_verb(
    file: str,
    seeds: str | None,
    dry: bool,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Carry out a sweep; `sweep FILE` for short. FILE is a YAML file or a preset's name.

    A failed run does not stop the others. The exit code is 1 if some failed, and 3 if all is well
    but verdicts are missing. Run again, it carries out the runs that are not done, failed ones
    included, and nothing else.
    """
    changes = with_seeds(with_output(settings, output), seeds)
    if dry:
        return dry_run(file, changes, as_json)
    outcome = run_sweep(file, changes, as_json, quiet, options, warn=True)
    sys.exit(1 if outcome.failed else 0)


@sweep.command()
@click.argument("file", metavar="FILE")
@click.option("--failed", is_flag=True, help="Runs with a stage that failed.")
@click.option("--interrupted", is_flag=True, help="Runs that were interrupted.")
@SEEDS
@executor_options
@_SET
@OUTPUT
@JSON
@QUIET
def retry(
    file: str,
    failed: bool,
    interrupted: bool,
    seeds: str | None,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Carry out only the runs of a sweep that failed or were interrupted.

    For instance `sweep retry FILE --failed`. Runs resume from their last saved state, and stages
    that are done are not repeated. Queued runs stay queued.
    """
    from evilspectra.sweeps.status import of_sweep

    if not failed and not interrupted:
        raise click.UsageError("say which runs to try again: --failed, --interrupted, or both.")
    changes = with_seeds(with_output(settings, output), seeds)
    states = {*(["failed"] if failed else []), *(["interrupted"] if interrupted else [])}
    runs = of_sweep(_ledger(file, changes))
    names = {run.run for run in runs if states & set(run.stages.values())}
    if not names:
        if as_json:
            click.echo(json.dumps({"runs": [], "failed": 0}, indent=2))
        else:
            click.echo(f"no run of {file} {' or '.join(sorted(states))}: nothing to do")
        return
    outcome = run_sweep(file, changes, as_json, quiet, options, names)
    sys.exit(1 if outcome.failed else 0)


@sweep.command()
@click.argument("name", metavar="[STORE_OR_FILE]", default="runs")
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again and again, until nothing is queued or running; ^C ends it.",
)
@click.option("--all", "every", is_flag=True, help="List every run, however many there are.")
@SEEDS
@_SET
@OUTPUT
@JSON
def status(
    name: str,
    watch: bool,
    every: bool,
    seeds: str | None,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
) -> None:
    """Show each run's state, stage by stage: queued, running, done, failed or interrupted, and why.

    STORE_OR_FILE is a store of runs or an experiment in it (default: runs), or a sweep file or
    preset; of a sweep, runs that have not begun are shown too. Nothing is changed, so it may be
    used while the sweep runs.
    """
    from evilspectra.sweeps.status import counts, of_store, of_sweep

    changes = with_seeds(with_output(settings, output), seeds)
    if Path(name).is_dir():
        if changes:
            raise BadInput(
                f"{name} is a folder, which takes no --set, --seeds or --output: "
                "leave them out, or name the sweep file"
            )
        look = partial(of_store, Path(name))
    else:
        look = partial(of_sweep, _ledger(name, changes))
    if as_json:
        runs = look()
        values = {"counts": counts(runs), "runs": [run.flat() for run in runs]}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    elif watch:
        watch_status(look, every)
    else:
        print_status(look(), every)


def _ledger(file: str, settings: Sequence[str]) -> Ledger:
    from evilspectra.sweeps.file import load_sweep
    from evilspectra.sweeps.run import ledger_of
    from evilspectra.training.identity import locate

    loaded = load_sweep(file, settings)
    return ledger_of(loaded, [locate(config)[0] for config in loaded.configs])
