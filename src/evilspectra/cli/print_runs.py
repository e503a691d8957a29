"""Run summaries as text on a terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console

from evilspectra.evaluation.measured import MeasuredRow
from evilspectra.intervals import Estimate
from evilspectra.numbers import bracketed, number
from evilspectra.store.records import RunSummary
from evilspectra.terminal import plain_table, print_line, print_table, wide_console
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


def print_json(summary: RunSummary) -> None:
    """Prints one run's summary as JSON."""
    click.echo(json.dumps(asdict(summary), indent=2, ensure_ascii=False))


def print_summaries(summaries: Sequence[RunSummary], console: Console | None = None) -> None:
    """Prints a table with a line per run, and below it the reasons of runs that are not done."""
    table = plain_table()
    table.add_column("run", no_wrap=True, overflow="fold")
    table.add_column("lr", justify="right")
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right")
    rated = [summary for summary in summaries if summary.misalignment_judge]
    if rated:
        heading = f"misaligned\n({rated[0].misalignment_definition})"
        table.add_column(heading, justify="right", no_wrap=True)
    several_seeds = len({summary.seed for summary in summaries}) > 1
    for summary in summaries:
        seed = f", seed {summary.seed}" if several_seeds else ""
        state = "" if summary.status == "done" else f" ({summary.status})"
        table.add_row(
            f"{summary.arm}{seed}{state}",
            number(summary.lr, "g"),
            *(number(getattr(summary, name), form) for name, (_, form) in _COLUMNS.items()),
            *([_rate(summary)] if rated else []),
        )
    console = wide_console(console, 140 if rated else 110)
    print_table(console, table)
    _print_rates(rated, console)
    for summary in summaries:
        if summary.trainer:
            trainer = f"trained by another trainer ({summary.trainer})"
            losses = "its losses are those it logged, and what it does not tell is a dash"
            print_line(console, f"{summary.run}: {trainer}; {losses}")
        if summary.reason:
            print_line(console, f"{summary.run}: {summary.reason}")


def _rate(summary: RunSummary) -> str:
    rate, low, high = summary.misalignment, summary.misalignment_low, summary.misalignment_high
    if rate is None:
        return "withheld" if summary.misalignment_withheld else "-"
    return bracketed(Estimate(rate, low, high), ".1%")


def _print_rates(rated: Sequence[RunSummary], console: Console) -> None:
    """Prints the judges of the column of rates, and why a rate is withheld."""
    for judge in dict.fromkeys(summary.misalignment_judge for summary in rated):
        runs = [summary.run for summary in rated if summary.misalignment_judge == judge]
        which = "" if len(runs) == len(rated) else f" of {', '.join(runs)}"
        text = (
            f"misalignment rate{which}: definition {rated[0].misalignment_definition}, "
            f"judged by {judge}; the others: evilspectra score RUN"
        )
        print_line(console, printable(text, 1000))
    for summary in rated:
        if summary.misalignment_withheld:
            print_line(console, f"{summary.run}: rate withheld, {summary.misalignment_withheld}")


def print_measured(rows: Sequence[MeasuredRow], console: Console | None = None) -> None:
    """Prints a table with a line per target, with 95 % intervals.

    The columns: drift, drift beyond the controls', drift with shuffled labels, the share of aligned
    completions preferred, capability, loss on ordinary dialogues.
    """
    with_control = any(row.beyond for row in rows)
    table = plain_table()
    table.add_column("measured on", no_wrap=True, overflow="fold")
    for heading in (
        "drift\n(nats/token)",
        *(["beyond control\n(item by item)"] if with_control else []),
        "labels shuffled\n(must include 0)",
        "aligned\npreferred",
        "capability\n(chance 0.25)",
        "ordinary\nloss",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.label, *_measured_cells(row, with_control))
    console = wide_console(console, 200)
    print_table(console, table)
    for row in rows:
        for name, (base, after) in row.measured.tasks.items():
            print_line(console, f"{row.label}: {name} {base:.3f} → {after:.3f}")


def _measured_cells(row: MeasuredRow, with_control: bool) -> list[str]:
    """A row of the table of measurements, without its label."""
    probe, capability, ordinary = row.measured.drift, row.measured.capability, row.measured.ordinary
    preferred = accuracy = loss = "-"
    if probe:
        preferred = f"{probe.base_share_aligned:.0%} → {probe.share_aligned.value:.0%}"
    if capability:
        accuracy = f"{capability.base:.2f} → {bracketed(capability.accuracy, '.2f')}"
    if ordinary:
        loss = f"{ordinary.base:.2f} → {ordinary.loss.value:.2f}"
    return [
        bracketed(probe and probe.drift, "+.3f"),
        *([bracketed(row.beyond, "+.3f")] if with_control else []),
        bracketed(probe and probe.shuffled, "+.3f"),
        preferred,
        accuracy,
        loss,
    ]
