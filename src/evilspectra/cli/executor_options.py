"""The options of commands that execute runs."""

from __future__ import annotations

import click

from evilspectra.cli.options import Decorator, together

executor_options: Decorator = together(
    click.option(
        "--executor",
        type=click.Choice(["local", "ray", "slurm"]),
        default="local",
        show_default=True,
        help="Where runs are carried out: docs/executors.md.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help=(
            "Runs under way at once. local: processes; without it as many as memory, cores and "
            "graphics cards allow."
        ),
    ),
    click.option(
        "--address",
        metavar="ADDRESS",
        help=(
            "ray: the cluster, such as 10.0.0.5:6379 or auto; without it one is started on this "
            "machine for this sweep alone."
        ),
    ),
    click.option(
        "--gpus-per-run",
        type=click.FloatRange(0),
        help="ray, slurm: graphics cards of each run; ray can share one, as in 0.5. Default 0.",
    ),
    click.option("--partition", metavar="NAME", help="slurm: the partition."),
    click.option(
        "--hours",
        type=click.FloatRange(0, min_open=True),
        default=24.0,
        show_default=True,
        help="slurm: time limit of a job; a run that reaches it resumes in the next.",
    ),
    click.option(
        "--runs-per-job",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help=(
            "slurm: runs that one job carries out one after the other, with the base loaded once."
        ),
    ),
    click.option(
        "--slurm-set",
        "slurm_settings",
        multiple=True,
        metavar="NAME=VALUE",
        help=(
            "slurm: another parameter of submitit's, for instance --slurm-set account=x. "
            "Repeatable."
        ),
    ),
)
