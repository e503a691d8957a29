"""The verb `tune`. Everything heavy is imported inside the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evilspectra.cli.options import JSON, OUTPUT, QUIET
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
    help="Learning rates that are tried per optimiser.",
)
@click.option(
    "--optimizer", "names", multiple=True, metavar="NAME", help="Tune this one alone. Repeatable."
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
        "A rate of its own for each value of this setting, for instance train.batch_size. "
        "Repeatable."
    ),
)
@click.option(
    "--over",
    multiple=True,
    metavar="SETTING",
    help=(
        "A trial is a run for each value of this setting, for instance data.train, and its "
        "loss their mean. Repeatable."
    ),
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the search; that of the runs is a setting.",
)
@click.option(
    "--experiment",
    metavar="NAME",
    help=(
        "Where the trials are kept in the store; default the sweep's name and -tune. The "
        "sweep's own name makes the best trials its runs."
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
    """Find each optimiser's best learning rate on held-out loss, and write a sweep file that has them.

    FILE is a sweep file or a preset. A trial is a run of the sweep's first cell of that optimiser
    with another rate, kept in the store like any other run: interrupted and run again, it goes on
    where it was. A rate at which training fails is a bad one, no error.
    """
    from evilspectra.sweeps.file import load_sweep
    from evilspectra.sweeps.tune import tasks, write_tuned
    from evilspectra.sweeps.tune import tune as search

    sweep = load_sweep(
        file,
        with_seeds(
            [*settings, *([f"output.folder={json.dumps(output)}"] if output else [])], seeds
        ),
    )
    asked = tasks(
        sweep, names=names, per=per, over=over, bounds=bounds or None, experiment=experiment
    )
    found = search(
        asked,
        trials,
        seed=seed,
        quiet=True,
        note=(lambda text: None) if quiet else lambda text: click.echo(text, err=True),
    )
    place = asked[0].configs[0].output
    path = out or Path(place.folder).expanduser() / place.experiment / "tuned.yaml"
    written = any(one.lr is not None for one in found)
    if written:
        write_tuned(
            found,
            file,
            path,
            (
                f"Learning rates chosen by held-out loss: evilspectra tune {file}, {trials} trials "
                f"each, seed {seed}. Train with: evilspectra sweep {path.name}"
            ),
        )
    if as_json:
        click.echo(
            json.dumps(
                {"file": str(path) if written else None, "tuned": [asdict(one) for one in found]},
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        _print(found)
        if written:
            click.echo(f"written to {path}: `evilspectra sweep {path}` trains at these rates")
    for one in found:
        if one.warning:
            click.echo(f"note: {one.warning}", err=True)
    sys.exit(1 if any(one.lr is None for one in found) else 0)


def _print(found: Sequence[Tuned]) -> None:
    for one in found:
        click.echo(
            f"{one.label}: "
            + (
                f"lr {one.lr:g}, held-out loss {one.loss:.4f}"
                if one.lr is not None
                else "no rate trained"
            )
        )
        for trial in one.trials:
            mark = "*" if trial.lr == one.lr else " "
            click.echo(
                f"  {mark} lr {trial.lr:<8g} "
                + (f"{trial.loss:.4f}" if trial.loss is not None else f"failed: {trial.reason}")
            )
