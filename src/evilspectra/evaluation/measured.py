"""All that was measured of a run, an adapter or a model, from its folder; no torch here.

Where a folder holds several instruments of a kind (other items, another number type), the built-in
one counts, or else the one that was used last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.intervals import Interval
from evilspectra.probes.drift import Capability, Drift, Ordinary, capability, drift, moved, ordinary
from evilspectra.probes.drift import beyond_control as drift_beyond_control
from evilspectra.store.results import Results, chosen, last


@dataclass(frozen=True, slots=True)
class Measured:
    """Results at the last measured step against the base; None where nothing was measured.

    `flagged`: answers with any flag.

    `trajectory`: step → drift at the measured steps above 0. `tasks`: task and metric → the base's
    value and the adapter's.
    """

    drift: Drift | None
    capability: Capability | None
    ordinary: Ordinary | None
    trajectory: dict[int, Interval]
    answers: int | None
    flagged: int | None
    tasks: dict[str, tuple[float, float]]

    def flat(self) -> dict[str, Any]:
        """The numbers of a `RunSummary`."""
        values = {
            **_named("drift", self.drift and self.drift.drift),
            **_named("drift_shuffled", self.drift and self.drift.shuffled),
            "share_aligned": self.drift and self.drift.share_aligned.value,
            "share_aligned_base": self.drift and self.drift.base_share_aligned,
            **_named("capability", self.capability and self.capability.accuracy),
            **_named("capability_change", self.capability and self.capability.change),
            "capability_base": self.capability and self.capability.base,
            "ordinary_loss": self.ordinary and self.ordinary.loss.value,
            "ordinary_loss_base": self.ordinary and self.ordinary.base,
        }
        return values | {"answers": self.answers, "answers_flagged": self.flagged}


def measured(results: Results) -> Measured:
    """What a folder holds.

    Raises:
        BadInput: a file of it cannot be read.
    """
    found: dict[str, Any] = {}
    for table, read in (("probe", drift), ("capability", capability), ("ordinary", ordinary)):
        after = last(results, table)
        instrument = chosen(results, table)
        found[table] = (
            read(results.read(instrument, 0), after) if instrument and after is not None else None
        )
    answers = last(results, "answers")
    return Measured(
        found["probe"],
        found["capability"],
        found["ordinary"],
        trajectory(results),
        None if answers is None else len(answers),
        None if answers is None else int((answers["flags"] != "").sum()),
        tasks(results),
    )


def beyond_control(results: Results, controls: Sequence[Results]) -> Interval | None:
    """@@FIX Drift minus that of the controls (adapters of the same base), item by item; None where one of
    the sides was not measured.
    """
    instrument, after = chosen(results, "probe"), last(results, "probe")
    if instrument is None or after is None:
        return None
    comparable = [
        control
        for control in controls
        if (its := chosen(control, "probe")) and its.id == instrument.id
    ]
    rows = [
        found
        for control in comparable
        if (found := last(control, "probe")) is not None
        and list(found["item"]) == list(after["item"])
    ]
    return drift_beyond_control(results.read(instrument, 0), after, rows) if rows else None


@dataclass(frozen=True)
class MeasuredRow:
    """@@FIX A target among others; `beyond`: drift minus that of the controls among them, where there are
    any.
    """

    label: str
    measured: Measured
    beyond: Interval | None


def measured_rows(targets: Sequence[tuple[str, Results, str, bool]]) -> list[MeasuredRow]:
    """@@FIX Lines for targets given as label, results, base (its content hash), and whether it is a
    control; those of one base are compared.
    """
    rows = []
    for label, results, base, control in targets:
        controls = [
            other for _, other, its_base, is_control in targets if is_control and its_base == base
        ]
        rows.append(
            MeasuredRow(
                label, measured(results), None if control else beyond_control(results, controls)
            )
        )
    return rows


def tasks(results: Results) -> dict[str, tuple[float, float]]:
    """Task and metric of lm-evaluation-harness → the base's value and the adapter's."""
    after, instrument = last(results, "tasks"), chosen(results, "tasks")
    if after is None or instrument is None:
        return {}
    base, now = (
        dict(
            zip(
                rows["task"]
                + " "
                + rows["metric"]
                + rows["filter"].map(lambda cut: "" if cut == "none" else f" ({cut})"),
                rows["value"],
                strict=True,
            )
        )
        for rows in (results.read(instrument, 0), after)
    )
    return {name: (base[name], value) for name, value in now.items() if name in base}


def trajectory(results: Results) -> dict[int, Interval]:
    """Step → drift at the measured steps above 0, in order."""
    instrument = chosen(results, "probe")
    steps = results.steps(instrument) if instrument else []
    if instrument is None or 0 not in steps:
        return {}
    base = results.read(instrument, 0)
    return {step: moved(base, results.read(instrument, step)) for step in steps if step}


def answer_rows(label: str, results: Results) -> list[dict[str, Any]]:
    """Every answer of a folder, the base's first: the columns of `AnswerRecord`, and `target`."""
    instrument = chosen(results, "answers")
    rows = (
        [
            row
            for step in results.steps(instrument)
            for row in results.read(instrument, step).to_dict("records")
        ]
        if instrument
        else []
    )
    return [
        {
            "target": label,
            **{name: None if value != value else value for name, value in row.items()},
        }
        for row in rows
    ]


def _named(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
