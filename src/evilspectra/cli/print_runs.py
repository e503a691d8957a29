"""Run summaries as text on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from evilspectra.evaluation.measured import MeasuredRow
from evilspectra.intervals import Interval
from evilspectra.store.records import RunSummary
from evilspectra.text import printable

#: Column → (heading, format).
_COLUMNS: dict[str, tuple[str, str]] = {
    "train_loss": ("train\nloss", ".3f"),
    "heldout_loss": ("held-out\nloss", ".3f"),
    "stable_rank": ("stable\nrank", ".2f"),
    "spectral_entropy": ("spectral\nentropy", ".2f"),
    "frobenius_nuclear": ("Frobenius/\nnuclear", ".3f"),
    "condition_number": ("condition\nnumber", ".3g"),
    "tokens_per_s": ("tokens\n/s", ".0f"),
}


def print_summaries(summaries: Sequence[RunSummary], console: Console | None = None) -> None:
    """A table with one line per run; a run that is not done shows its state and reason below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True, overflow="fold")
    table.add_column("lr", justify="right")
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right")
    rated = [summary for summary in summaries if summary.misalignment_judge]
    if rated:
        table.add_column(
            f"misaligned\n({rated[0].misalignment_definition})", justify="right", no_wrap=True
        )
    for summary in summaries:
        values = (getattr(summary, name) for name in _COLUMNS)
        cells = [
            "-" if value is None else format(value, shape)
            for value, (_, shape) in zip(values, _COLUMNS.values(), strict=True)
        ]
        state = "" if summary.status == "done" else f" ({summary.status})"
        table.add_row(
            summary.arm
            + (f", seed {summary.seed}" if len({other.seed for other in summaries}) > 1 else "")
            + state,
            "-" if summary.lr is None else f"{summary.lr:g}",
            *cells,
            *([_rate(summary)] if rated else []),
        )
    console = _print(table, console, 140 if rated else 110)
    _rates(rated, console)
    for summary in summaries:
        if summary.trainer:
            console.print(
                (
                    f"{summary.run}: trained by another trainer ({summary.trainer}); its losses are "
                    "those it logged, and what it does not tell is a dash"
                ),
                markup=False,
                emoji=False,
                highlight=False,
                soft_wrap=True,
            )
        if summary.reason:
            console.print(
                f"{summary.run}: {summary.reason}",
                markup=False,
                emoji=False,
                highlight=False,
                soft_wrap=True,
            )


def _rate(summary: RunSummary) -> str:
    if summary.misalignment is None:
        return "withheld" if summary.misalignment_withheld else "-"
    if summary.misalignment_low is None or summary.misalignment_high is None:
        return f"{summary.misalignment:.1%}"
    return interval(
        Interval(summary.misalignment, summary.misalignment_low, summary.misalignment_high), ".1%"
    )


def _rates(rated: Sequence[RunSummary], console: Console) -> None:
    """Whose rates the column holds, and why one is withheld."""
    for judge in dict.fromkeys(summary.misalignment_judge for summary in rated):
        runs = [summary.run for summary in rated if summary.misalignment_judge == judge]
        which = "" if len(runs) == len(rated) else f" of {', '.join(runs)}"
        console.print(
            printable(
                (
                    f"misalignment rate{which}: definition {rated[0].misalignment_definition}, judged "
                    f"by {judge}; the others: evilspectra score RUN"
                ),
                1000,
            ),
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
        )
    for summary in rated:
        if summary.misalignment_withheld:
            console.print(
                f"{summary.run}: rate withheld, {summary.misalignment_withheld}",
                markup=False,
                emoji=False,
                highlight=False,
                soft_wrap=True,
            )


def print_measured(rows: Sequence[MeasuredRow], console: Console | None = None) -> None:
    """A table with one line per target: drift, beyond the controls', with shuffled labels, capability,
    ordinary loss; 95 % intervals.
    """
    against = any(row.beyond for row in rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measured on", no_wrap=True, overflow="fold")
    for heading in (
        "drift\n(nats/token)",
        *(["beyond control\n(item by item)"] if against else []),
        "labels shuffled\n(must hold 0)",
        "aligned\npreferred",
        "capability\n(chance 0.25)",
        "ordinary\nloss",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found = row.measured
        probe, capability, ordinary = found.drift, found.capability, found.ordinary
        table.add_row(
            row.label,
            interval(probe and probe.drift, "+.3f"),
            *([interval(row.beyond, "+.3f")] if against else []),
            interval(probe and probe.shuffled, "+.3f"),
            f"{probe.base_share_aligned:.0%} → {probe.share_aligned.value:.0%}" if probe else "-",
            f"{capability.base:.2f} → {interval(capability.accuracy, '.2f')}"
            if capability
            else "-",
            f"{ordinary.base:.2f} → {ordinary.loss.value:.2f}" if ordinary else "-",
        )
    console = _print(table, console, 200)
    for row in rows:
        for name, (base, after) in row.measured.tasks.items():
            console.print(
                f"{row.label}: {name} {base:.3f} → {after:.3f}",
                markup=False,
                emoji=False,
                highlight=False,
                soft_wrap=True,
            )


def interval(value: Interval | None, shape: str) -> str:
    """An estimate with its interval in brackets.

    >>> interval(Interval(0.5, 0.25, 0.75), "+.2f")
    '+0.50 [+0.25, +0.75]'
    """
    return (
        "-"
        if value is None
        else f"{value.value:{shape}} [{value.low:{shape}}, {value.high:{shape}}]"
    )


def _print(table: Table, console: Console | None, width: int) -> Console:
    console = console or Console()
    console.width = max(console.width, width)  # a wrapped line is better than a cut number
    console.print(table, no_wrap=True, crop=False, markup=False, highlight=False)
    return console
