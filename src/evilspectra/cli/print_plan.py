"""A sweep's plan on a terminal, and the options that change a plan.

Everything heavy is imported inside the functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from evilspectra.numbers import duration, number

if TYPE_CHECKING:
    from evilspectra.sweeps.plan import Plan

#: Of the verb `sweep`.
SEEDS = click.option(
    "--seeds",
    metavar="N",
    help=(
        "How many seeds every cell is run with (5 means 0 to 4), or which (0,7,8); "
        "instead of the file's own."
    ),
)
DRY_RUN = click.option(
    "--dry-run",
    "dry",
    is_flag=True,
    help=(
        "Run nothing: list the runs, what they lack, and what they will take as far as that "
        "is known."
    ),
)


def with_seeds(settings: Sequence[str], seeds: str | None) -> list[str]:
    """`--seeds` as one more assignment.

    >>> with_seeds([], "5"), with_seeds(["a.b=1"], "0,7")
    (['seeds=5'], ['a.b=1', 'seeds=[0,7]'])
    """
    if seeds is None:
        return [*settings]
    return [*settings, f"seeds=[{seeds}]" if "," in seeds else f"seeds={seeds}"]


def dry_run(file: str, settings: Sequence[str], as_json: bool) -> None:
    """Prints the plan of a sweep."""
    from evilspectra.sweeps.file import load_sweep
    from evilspectra.sweeps.plan import plan

    forecast = plan(load_sweep(file, settings))
    if as_json:
        click.echo(json.dumps(forecast.flat(), indent=2, ensure_ascii=False))
    else:
        print_plan(forecast)


def caution(warnings: Sequence[str]) -> None:
    """Prints the warnings of a sweep to standard error, a line each."""
    for text in warnings:
        click.echo(f"note: {text}", err=True)


def print_plan(plan: Plan) -> None:
    """Prints a line per run, what the runs have in common, what they lack, and the sums."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=10**6, soft_wrap=True, highlight=False, markup=False, emoji=False)
    names = list(dict.fromkeys(name for run in plan.runs for name in run.differs))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "state", *(name.replace(".", ".\n") for name in names)):
        table.add_column(heading, no_wrap=True)
    for heading in ("steps", "tokens", "time"):
        table.add_column(heading, no_wrap=True, justify="right")
    for run in plan.runs:
        table.add_row(
            run.id + ("*" if run.by_name else ""),
            run.state,
            *(_setting(run.differs.get(name, "")) for name in names),
            number(run.steps, ",", "unknown"),
            number(run.tokens, ",", "unknown"),
            duration(run.seconds) if run.seconds else "-",
        )
    console.width = console.measure(table).maximum  # lines as long as they are, never a column cut
    console.print(table)
    if any(run.by_name for run in plan.runs):
        console.print(
            "* data or model are not here: their names stand in for their content, "
            "and the id will be another one"
        )
    console.print()
    if plan.common:
        common = (f"{name} {_setting(value)}" for name, value in plan.common.items())
        console.print(f"in all runs: {', '.join(common)}")
    for lack in plan.missing:
        runs = f"{lack.runs} of {len(plan.runs)} runs"
        console.print(f"missing, for {runs}: {lack.what} {lack.name}: {lack.why}")
    console.print(_sums(plan))
    for text in plan.assumptions:
        console.print(f"- {text}")
    caution(plan.warnings)


def _sums(plan: Plan) -> str:
    sums = plan.totals
    untimed = sum(run.seconds is None for run in plan.runs)
    time = f"unknown for {untimed} of {len(plan.runs)} runs"
    if sums.seconds is not None:
        time = duration(sums.seconds)
    parts = [
        f"{sums.runs} runs, {sums.done} done",
        f"steps {number(sums.steps, ',', 'unknown')}",
        f"tokens {number(sums.tokens, ',', 'unknown')}",
        f"training left {time}",
    ]
    if sums.answers != 0:
        parts.append(f"answers {number(sums.answers, ',', 'unknown')}")
    if sums.judge_requests != 0:
        cost = number(sums.judge_cost, ",.2f", "unknown")
        parts += [
            f"requests to the judge {number(sums.judge_requests, ',', 'unknown')}",
            f"tokens to it at most {number(sums.judge_tokens, ',', 'unknown')}",
            f"cost at most {cost}",
        ]
    return "; ".join(parts) + f"; in {plan.folder}"


def _setting(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
