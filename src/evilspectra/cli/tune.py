"""The command `tune`. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evilspectra.cli.options import JSON, OUTPUT, QUIET, progress, with_output
from evilspectra.cli.print_plan import SEEDS, with_seeds

if TYPE_CHECKING:
    from evilspectra.sweeps.tune import Tuned


@click.command()
@click.argument("file", metavar="FILE")
@click.option(
    "--trials",
    type=click.IntRange(3, 1000),
    default=8,
    show_default=True,
    help="Learning rates to try per optimiser.",
)
@click.option(
    "--optimizer",
    "names",
    multiple=True,
    metavar="NAME",
    help="Tune this optimiser only. Repeatable.",
)
@click.option(
    "--range",
    "bounds",
    nargs=2,
    type=click.FloatRange(min=0, min_open=True),
    metavar="LOW HIGH",
    help="Lowest and highest rate; without it a factor of 30 to either side of the file's.",
)
@click.option(
    "--per",
    multiple=True,
    metavar="SETTING",
    help=(
        "A separate rate for each value of this setting, for instance train.batch_size. Repeatable."
    ),
)
@click.option(
    "--over",
    multiple=True,
    metavar="SETTING",
    help=(
        "A trial is a run for each value of this setting, for instance data.train, "
        "and its loss their mean. Repeatable."
    ),
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="The seed of the search; that of the runs is a setting.",
)
@click.option(
    "--experiment",
    metavar="NAME",
    help=(
        "Where the trials are kept in the store; default the sweep's name and -tune. "
        "The sweep's own name makes the best trials its runs."
    ),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The sweep file to write; default tuned.yaml beside the trials.",
)
@SEEDS
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.FIELD=VALUE",
    help="Change one setting of the sweep. Repeatable.",
)
@OUTPUT
@JSON
@QUIET
def tune(
    file: str,
    trials: int,
    names: Sequence[str],
    bounds: tuple[float, float] | None,
    per: Sequence[str],
    over: Sequence[str],
    seed: int,
    experiment: str | None,
    out: Path | None,
    seeds: str | None,
    settings: Sequence[str],
    output: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find each optimiser's best learning rate on held-out loss, and write a sweep file with them.

    FILE is a sweep file or a preset. A trial is a run of the sweep's first cell of that optimiser
    with another rate, kept in the store like any other run: interrupted and run again, it resumes
    from where it stopped. A rate at which training fails is a bad rate, not an error.
    """
    from evilspectra.sweeps.file import load_sweep
    from evilspectra.sweeps.tune import tasks, write_tuned
    from evilspectra.sweeps.tune import tune as search

    sweep = load_sweep(
        file,
        with_seeds(with_output(settings, output or None), seeds),
    )
    searches = tasks(
        sweep, names=names, per=per, over=over, bounds=bounds or None, experiment=experiment
    )
    results = search(searches, trials, seed=seed, quiet=True, note=progress(quiet))
    store = searches[0].configs[0].output
    path = out or Path(store.folder).expanduser() / store.experiment / "tuned.yaml"
    written = any(result.lr is not None for result in results)
    if written:
        command = f"evilspectra tune {file}, {trials} trials each, seed {seed}"
        remark = (
            f"Learning rates chosen by held-out loss: {command}. "
            f"Train with: evilspectra sweep {path.name}"
        )
        write_tuned(results, file, path, remark)
    if as_json:
        values = {
            "file": str(path) if written else None,
            "tuned": [asdict(result) for result in results],
        }
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        _print(results)
        if written:
            click.echo(f"written to {path}: `evilspectra sweep {path}` trains at these rates")
    for result in results:
        if result.warning:
            click.echo(f"note: {result.warning}", err=True)
    sys.exit(1 if any(result.lr is None for result in results) else 0)


def _print(results: Sequence[Tuned]) -> None:
    for result in results:
        best = "no rate trained"
        if result.lr is not None:
            best = f"lr {result.lr:g}, held-out loss {result.loss:.4f}"
        click.echo(f"{result.label}: {best}")
        for trial in result.trials:
            mark = "*" if trial.lr == result.lr else " "
            loss = f"failed: {trial.reason}" if trial.loss is None else f"{trial.loss:.4f}"
            click.echo(f"  {mark} lr {trial.lr:<8g} {loss}")
