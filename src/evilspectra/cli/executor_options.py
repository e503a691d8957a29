"""The options of commands that execute runs, and the executor that they select.

Everything heavy is imported inside the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evilspectra.cli.options import together
from evilspectra.errors import BadInput

if TYPE_CHECKING:
    from evilspectra.executors.executor import Executor
    from evilspectra.sweeps.file import Sweep

executor_options = together(
    click.option(
        "--executor",
        "where",
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
#: Options of some executors only.
_OWNERS = {
    "address": ("ray",),
    "partition": ("slurm",),
    "slurm_settings": ("slurm",),
    "gpus_per_run": ("ray", "slurm"),
}


def executor_of(loaded: Sweep, quiet: bool, options: dict[str, Any]) -> Executor:
    """The executor that the options name.

    Raises:
        BadInput: an option belongs to another executor.
    """
    where = options.get("where", "local")
    for name, allowed in _OWNERS.items():
        if options.get(name) and where not in allowed:
            flag = {"slurm_settings": "--slurm-set"}.get(name, f"--{name.replace('_', '-')}")
            raise BadInput(
                f"{flag} is for --executor {' or '.join(allowed)}, and this one is {where}: "
                "leave it out, or choose that"
            )
    count = options.get("workers")
    if where == "ray":
        from evilspectra.executors.ray import OnRay

        return OnRay(options["address"], options["gpus_per_run"] or 0.0, count, quiet)
    if where == "slurm":
        from evilspectra.executors.slurm import OnSlurm, slurm_settings
        from evilspectra.sweeps.file import experiment_folder

        partition = {"partition": options["partition"]} if options["partition"] else {}
        return OnSlurm(
            experiment_folder(loaded) / "jobs",
            options["gpus_per_run"] or 0.0,
            count,
            options["runs_per_job"],
            options["hours"],
            partition | slurm_settings(options["slurm_settings"]),
        )
    from evilspectra.executors.local import suitable, workers
    from evilspectra.executors.stages import Task

    if count is not None:
        return workers(count)
    return suitable([Task(number, config) for number, config in enumerate(loaded.configs)])
