"""The status of a sweep's runs on a terminal. Everything heavy is imported inside the functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evilspectra.sweeps.status import RunProgress

#: Seconds between two looks of `sweep status --watch`.
_INTERVAL = 2.0
#: Beyond this number of runs, those that are done or queued are counted and not listed.
_LISTED = 40


def print_status(runs: Sequence[RunProgress], every: bool) -> None:
    """Prints the table once."""
    from rich.console import Console

    _widened(Console()).print(_table(runs, every))


def watch_status(look: Callable[[], list[RunProgress]], every: bool) -> None:
    """Prints the table again and again, until nothing is queued or running."""
    from rich.console import Console
    from rich.live import Live

    console = _widened(Console())
    try:
        runs = look()
        with Live(_table(runs, every), console=console, auto_refresh=False) as live:
            while any(run.state in ("queued", "running") for run in runs):
                time.sleep(_INTERVAL)
                runs = look()
                live.update(_table(runs, every), refresh=True)
    except KeyboardInterrupt:
        return


def _widened(console: Any) -> Any:
    """The console, wide enough for names and reasons if its output is not a terminal."""
    console.width = console.width if console.is_terminal else max(console.width, 200)
    return console


def _table(runs: Sequence[RunProgress], every: bool) -> Any:
    """A line per run, and a line of counts; of very many runs only those that need attention."""
    from rich.markup import escape
    from rich.table import Table

    from evilspectra.text import printable

    stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))
    listed = _listed(runs, every)
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption=_caption(runs, len(runs) - len(listed)),
        caption_justify="left",
        caption_style="",
    )
    for heading in ("run", *stages, "step", "why"):
        table.add_column(heading, no_wrap=heading != "why", overflow="fold")
    for run in listed:
        table.add_row(
            escape(run.run),
            *(run.stages.get(stage, "-") for stage in stages),
            f"{run.step}/{run.total_steps}" if run.step is not None else "-",
            escape(printable(run.reason or "", 300)),
        )
    return table


def _listed(runs: Sequence[RunProgress], every: bool) -> list[RunProgress]:
    """The runs to list: all in their order, or those that need attention first."""
    from evilspectra.sweeps.status import STATES

    if every:
        return list(runs)
    if len(runs) > _LISTED:
        runs = [run for run in runs if run.state not in ("done", "queued")]
    return sorted(runs, key=lambda run: (run.experiment, STATES.index(run.state)))


def _caption(runs: Sequence[RunProgress], left_out: int) -> str:
    from evilspectra.sweeps.status import counts

    states = ", ".join(f"{count} {state}" for state, count in counts(runs).items())
    remark = f"; {left_out} done or queued are not listed (--all lists them)" if left_out else ""
    return f"{len(runs)} runs: {states}{remark}"
