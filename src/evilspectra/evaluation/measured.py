"""The measurements of a run, an adapter or a model, from its folder; no torch here.

If a folder holds several instruments of one kind (different items or number types), the built-in
one is used, or else the one used last.
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
    """Results at the last measured step against the base; None if nothing was measured.

    `flagged`: answers with any flag. `trajectory`: step → drift at the measured steps above 0.
    `tasks`: task and metric → the base's value and the adapter's.
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
    """The measurements in a folder.

    Raises:
        BadInput: a file of it cannot be read.
    """
    probes: dict[str, Any] = {}
    for table, read in (("probe", drift), ("capability", capability), ("ordinary", ordinary)):
        after, instrument = last(results, table), chosen(results, table)
        probes[table] = None
        if instrument and after is not None:
            probes[table] = read(results.read(instrument, 0), after)
    answers = last(results, "answers")
    return Measured(
        drift=probes["probe"],
        capability=probes["capability"],
        ordinary=probes["ordinary"],
        trajectory=trajectory(results),
        answers=None if answers is None else len(answers),
        flagged=None if answers is None else int((answers["flags"] != "").sum()),
        tasks=tasks(results),
    )


def beyond_control(results: Results, controls: Sequence[Results]) -> Interval | None:
    """Drift minus that of the controls (adapters of the same base), item by item.

    None where the drift, or that of every control, was not measured.
    """
    instrument, after = chosen(results, "probe"), last(results, "probe")
    if instrument is None or after is None:
        return None
    controls_after = []
    for control in controls:
        its_instrument = chosen(control, "probe")
        if its_instrument is None or its_instrument.id != instrument.id:
            continue
        rows = last(control, "probe")
        if rows is not None and list(rows["item"]) == list(after["item"]):
            controls_after.append(rows)
    if not controls_after:
        return None
    return drift_beyond_control(results.read(instrument, 0), after, controls_after)


@dataclass(frozen=True)
class MeasuredRow:
    """A target among others; `beyond`: drift minus that of the controls among them, if any."""

    label: str
    measured: Measured
    beyond: Interval | None


def measured_rows(targets: Sequence[tuple[str, Results, str, bool]]) -> list[MeasuredRow]:
    """A row for each target; targets of one base are compared.

    A target is its label, its results, its base (the hash of the content), and whether it is a
    control.
    """
    rows = []
    for label, results, base, control in targets:
        controls = [
            other for _, other, its_base, is_control in targets if is_control and its_base == base
        ]
        beyond = None if control else beyond_control(results, controls)
        rows.append(MeasuredRow(label, measured(results), beyond))
    return rows


def tasks(results: Results) -> dict[str, tuple[float, float]]:
    """Task and metric of lm-evaluation-harness → the base's value and the adapter's."""
    after, instrument = last(results, "tasks"), chosen(results, "tasks")
    if after is None or instrument is None:
        return {}
    base, adapter = _task_values(results.read(instrument, 0)), _task_values(after)
    return {name: (base[name], value) for name, value in adapter.items() if name in base}


def _task_values(rows: Any) -> dict[str, float]:
    """Task, metric and filter → value, of a table of tasks."""
    filters = rows["filter"].map(lambda cut: "" if cut == "none" else f" ({cut})")
    names = rows["task"] + " " + rows["metric"] + filters
    return dict(zip(names, rows["value"], strict=True))


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
    rows: list[dict[str, Any]] = []
    if instrument is None:
        return rows
    for step in results.steps(instrument):
        for row in results.read(instrument, step).to_dict("records"):
            values = {name: None if value != value else value for name, value in row.items()}
            rows.append({"target": label, **values})
    return rows


def _named(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
