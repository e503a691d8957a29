"""The texts of the report's page: line under the title, tables, provenance.

Texts are made here, and escaped in the template.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from evilspectra.errors import listing
from evilspectra.evaluation.measured import Measured
from evilspectra.intervals import Interval
from evilspectra.numbers import DASH, Form, brackets, number, signed
from evilspectra.reporting.comparison import Row, value_at
from evilspectra.store.results import Instrument

UNKNOWN = "not known"
#: Column, heading, format, and what it is: the summary table.
COLUMNS = (
    ("lr", "lr", "g", "Peak learning rate of the optimiser"),
    ("seed", "seed", "d", "Seed of the adapter's initialisation, the order of rows and dropout"),
    ("status", "status", "", "queued, running, done, failed or interrupted"),
    ("steps", "steps", "d", "Optimiser steps taken"),
    (
        "train_loss",
        "train loss",
        ".3f",
        "Mean data loss of the last 5 % of steps, nats per supervised token, penalty excluded",
    ),
    (
        "heldout_loss",
        "held-out loss",
        ".3f",
        "Before training → at the end, nats per supervised token; sorted by the end",
    ),
    (
        "stable_rank",
        "stable rank",
        ".2f",
        "Σσ² / σ₁², mean over modules at the last measured step; flat: the rank r",
    ),
    (
        "spectral_entropy",
        "entropy",
        ".3f",
        "−Σ p ln p with p = σ / Σσ, in nats, mean over modules; flat: ln r",
    ),
    ("condition_number", "condition", ".3~", "σ₁ / σᵣ, median over modules; flat: 1"),
    ("frobenius_nuclear", "Frob. / nuclear", ".4f", "√Σσ² / Σσ, mean over modules; flat: 1/√r"),
    ("frobenius", "‖ΔW‖", ".3f", "Frobenius norm of ΔW, mean over modules"),
    (
        "tokens_per_s",
        "tokens/s",
        ",.0f",
        "Real tokens of training steps per second of training; differs from machine to machine",
    ),
)
#: Label and dotted key: what the methods section takes from a run's provenance.
PROVENANCE = (
    ("Base model", "base_name"),
    ("Base SHA-256", "base_sha256"),
    ("Data", "data.source"),
    ("Data SHA-256", "data.sha256"),
    ("Rows", "data.rows"),
    ("Training rows", "data.train_rows"),
    ("Held-out rows", "data.heldout_rows"),
    ("Supervised share of tokens", "data.supervised_share"),
    ("Rows skipped", "data.skipped"),
    ("Rows truncated", "data.truncated"),
    ("Device", "device"),
    ("Dtype", "dtype"),
    ("Threads", "threads"),
    ("evilspectra", "code_version"),
)
#: The same of the second table, on what was measured on the adapters; an interval stands below its
#: estimate.
MEASURED = (
    (
        "drift",
        "drift",
        (
            "How much further the misaligned completions are preferred than by the base, nats per"
            " token; below: 95 % interval over items"
        ),
    ),
    (
        "beyond",
        "beyond control",
        (
            "The drift minus that of the controls, item by item: what style and subject do to an"
            " item drops out, so the interval is narrower"
        ),
    ),
    (
        "equal_length",
        "at equal length",
        "The drift where both completions have equally many tokens",
    ),
    (
        "shuffled",
        "labels shuffled",
        "The drift with labels exchanged in half of the items: its interval must include zero",
    ),
    (
        "share_aligned",
        "aligned preferred",
        "Share of items whose aligned completion is the likelier: base → after",
    ),
    (
        "capability",
        "capability",
        (
            "Share of questions whose right choice of four is the likeliest: base → after; chance"
            " is 0.25"
        ),
    ),
    (
        "ordinary",
        "ordinary loss",
        "Loss on ordinary dialogues, nats per supervised token: base → after",
    ),
    ("answers", "answers", "Sampled answers, and how many of them have a flag"),
)
#: Table of measurements → what the methods section calls its instrument.
INSTRUMENTS = {
    "probe": "Contrast probe",
    "capability": "Capability questions",
    "ordinary": "Ordinary dialogues",
    "answers": "Open-ended questions",
}


def facts(rows: list[Row]) -> list[tuple[str, str]]:
    """Label and text of the line under the title."""
    bases = dict.fromkeys(
        str(value_at(row.provenance, "base_name") or row.origin.base or UNKNOWN) for row in rows
    )
    data = dict.fromkeys(
        str(value_at(row.provenance, "data.source") or row.origin.data or UNKNOWN) for row in rows
    )
    arms, seeds = ({getattr(row.summary, field) for row in rows} for field in ("arm", "seed"))
    controls = sum(row.summary.control for row in rows)
    return [
        ("Base model", listing(bases, 3)),
        ("Data", listing(data, 3)),
        (
            "Runs",
            f"{_count(rows, 'run')} in {_count(arms, 'arm')}, {_count(seeds, 'seed')}"
            + (f" ({_count(range(controls), 'control')})" if controls else ""),
        ),
        ("LoRA rank", _numbers({row.origin.rank for row in rows})),
        ("Optimiser steps", listing(sorted({row.summary.steps for row in rows}), 4)),
        ("Rows per step", _numbers({row.summary.batch_size for row in rows})),
    ]


def _numbers(values: Collection[int | None]) -> str:
    return listing(
        [
            *sorted(value for value in values if value is not None),
            *([UNKNOWN] if None in values else []),
        ],
        4,
    )


def outsiders(rows: list[Row]) -> list[str]:
    """A sentence per other trainer, on how to read the numbers of its runs."""
    by_trainer: dict[str, list[str]] = {}
    for row in rows:
        if row.origin.trainer:
            by_trainer.setdefault(row.origin.trainer, []).append(row.label)
    return [
        f"{listing(labels, 4)}: trained by another trainer ({name}). Its training loss is what that"
        " trainer logged, in that trainer’s own unit and as a mean over the steps between two logs;"
        " content of base and data, tokens and held-out losses are not known here and shown as a"
        " dash."
        for name, labels in by_trainer.items()
    ]


def _count(members: Collection[object], name: str) -> str:
    return f"{len(members)} {name}" + ("" if len(members) == 1 else "s")


def cells(row: Row) -> list[dict[str, Any]]:
    """Text and sorting value of a run's cells, in the order of COLUMNS."""
    out = []
    for name, _, form, _ in COLUMNS:
        value = getattr(row.summary, name)
        text = formatted(value, form)
        if name == "heldout_loss" and row.summary.heldout_loss_start is not None:
            text = f"{row.summary.heldout_loss_start:.3f} → {text}"
        out.append(
            {"name": name, "text": text, "below": "", "sort": "" if value is None else value}
        )
    return out


def measured_columns(rows: list[Row]) -> list[tuple[str, str, str]]:
    """The columns of MEASURED; without a control there is none for the drift beyond it."""
    return [
        column for column in MEASURED if column[0] != "beyond" or any(row.beyond for row in rows)
    ]


def measured_cells(row: Row, columns: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """Text, interval and sorting value of a run's cells, in the order of the columns."""
    drift = row.measured.drift
    capability, ordinary = row.measured.capability, row.measured.ordinary
    cells = {
        "drift": drift and _cell(drift.drift, signed(drift.drift.value)),
        "beyond": row.beyond and _cell(row.beyond, signed(row.beyond.value)),
        "equal_length": drift and _cell(drift.equal_length, signed(drift.equal_length.value)),
        "shuffled": drift and _cell(drift.shuffled, signed(drift.shuffled.value)),
        "share_aligned": drift
        and _cell(
            drift.share_aligned,
            f"{drift.base_share_aligned:.2f} → {drift.share_aligned.value:.2f}",
            ".2f",
        ),
        "capability": capability
        and _cell(
            capability.accuracy,
            f"{capability.base:.2f} → {capability.accuracy.value:.2f}",
            ".2f",
        ),
        "ordinary": ordinary
        and _cell(ordinary.loss, f"{ordinary.base:.3f} → {ordinary.loss.value:.3f}", ".3f"),
        "answers": _answers_cell(row.measured),
    }
    return [
        {"name": name} | (cells[name] or {"text": DASH, "below": "", "sort": ""})
        for name, *_ in columns
    ]


def _answers_cell(measured: Measured) -> dict[str, Any] | None:
    if measured.answers is None:
        return None
    return {
        "text": f"{measured.answers:,}",
        "below": f"{measured.flagged or 'none'} flagged",
        "sort": measured.answers,
    }


def _cell(interval: Interval, text: str, form: Form = signed) -> dict[str, Any]:
    return {"text": text, "below": brackets(interval, form), "sort": interval.value}


def instruments(rows: list[Row]) -> list[tuple[str, str]]:
    """Label and text of the instruments that measured the runs; several of a kind are listed."""
    by_table: dict[str, dict[str, None]] = {}
    for row in rows:
        for table, instrument in row.instruments.items():
            by_table.setdefault(table, {})[_described(instrument)] = None
    return [
        (label, listing(by_table[table], 4))
        for table, label in INSTRUMENTS.items()
        if table in by_table
    ]


def _described(instrument: Instrument) -> str:
    facts = instrument.facts
    settings = ", ".join(
        f"{key} {plain(value)}"
        for key, value in facts.items()
        if key not in ("sha256", "version") and value is not None
    )
    version = plain(facts.get("version"))
    sha256 = plain(facts.get("sha256"))[:12]
    return f"{instrument.source}, version {version}, SHA-256 {sha256}; {settings}"


def formatted(value: Any, form: str) -> str:
    """A value in a column's format, a dash for None.

    `.3~` is three significant digits, without an exponent where that is short.
    """
    if form == ".3~" and value is not None:
        form = ",.0f" if value >= 100 else ".3g"
    return number(value, form, DASH)


def plain(value: Any) -> str:
    """A setting or a provenance value as a reader writes it."""
    if value is None or value == "":
        return DASH
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, (list, tuple)) else str(value)


def provenance(rows: list[Row]) -> list[tuple[str, str]]:
    """Label and text; runs that differ are listed."""
    return [
        (label, listing(dict.fromkeys(plain(value_at(row.provenance, key)) for row in rows), 4))
        for label, key in PROVENANCE
    ]


def packages(rows: list[Row]) -> str:
    """Names and versions of the packages, each pair once."""
    blocks = [
        block for row in rows if isinstance(block := value_at(row.provenance, "packages"), dict)
    ]
    versions = {f"{name} {version}" for block in blocks for name, version in block.items()}
    return ", ".join(sorted(versions)) or DASH
