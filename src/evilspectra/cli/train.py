"""The commands `train` and `demo`. Everything heavy is imported inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from evilspectra.cli.options import JSON, OUTPUT, QUIET, SET, with_output
from evilspectra.cli.run_sweep import run_sweep
from evilspectra.errors import RunFailed


@click.command()
@click.argument("config", metavar="CONFIG")
@SET
@OUTPUT
@JSON
@QUIET
def train(
    config: str,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train one run. CONFIG is a YAML file or a preset's name.

    `evilspectra config show` prints such a file. A run that was interrupted resumes from where it
    stopped; a run that is done is not trained again.
    """
    from evilspectra.api.configs import load_config
    from evilspectra.api.training import train as train_run

    loaded = load_config(config, settings=with_output(settings, output))
    from evilspectra.cli.print_runs import print_json, print_summaries

    try:
        trained = train_run(loaded, progress=not quiet)
    except RunFailed:
        from evilspectra.evaluation.summary import summarise
        from evilspectra.training.identity import locate

        failed = locate(loaded)[0]
        if as_json and (failed.path / "config.yaml").is_file():
            print_json(summarise(failed))
        raise
    if as_json:
        print_json(trained.summary)
    else:
        print_summaries([trained.summary])
        click.echo(f"adapter: {trained.adapter}")


@click.command()
@SET
@OUTPUT
@QUIET
def demo(settings: Sequence[str], output: str | None, quiet: bool) -> None:
    """Fine-tune a small model under several optimisers, measure the runs, and write a report.

    The model is SmolLM2-135M, the optimisers are SGD, AdamW, Lion and Muon, and AdamW with the
    flatness penalty. Takes about 20 minutes on two CPU cores. Run again, it resumes from where it
    stopped.
    """
    from evilspectra.reporting.build import build_report, read_rows
    from evilspectra.reporting.sentences.headline import headline

    outcome = run_sweep("demo", with_output(settings, output), as_json=False, quiet=quiet)
    path = build_report(outcome.folder)
    click.echo()
    for sentence in headline(read_rows(outcome.folder)):
        click.echo(f"- {sentence}")
    click.echo(f"\nreport: {path.resolve()}")
    sys.exit(1 if outcome.failed else 0)
