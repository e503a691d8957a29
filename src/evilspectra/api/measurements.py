"""Measuring of targets, as `probe` and `evaluate` begin; and the records of what was probed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evilspectra.api.arguments import PathLike, Settings, name, names, optional_name
from evilspectra.api.frames import ends
from evilspectra.api.layers import Layers, layers
from evilspectra.api.result import Result
from evilspectra.errors import EvilspectraError, NothingMeasured
from evilspectra.numbers import bracketed

if TYPE_CHECKING:
    from altair import FacetChart, LayerChart
    from pandas import DataFrame

    from evilspectra.config.sections import ModelConfig
    from evilspectra.evaluation.measured import Measured
    from evilspectra.intervals import Interval
    from evilspectra.targets.find import Target

#: What `probe` says where it measured no control.
NO_CONTROL = (
    "There is no control among these: to see what part of a drift is style alone, "
    "train one on good answers to the same questions (data.control: true)."
)
#: Called with the label of a target that could not be measured, and why.
OnFailure = Callable[[str, EvilspectraError], object]


@dataclass(frozen=True)
class ProbedTarget:
    """The measurements of one target against its base.

    Attributes:
        label: its name.
        folder: where its results are stored.
        control: whether it was trained on good answers, for comparison.
        measured: everything that was measured, with intervals; parts are None where they were not.
        beyond_control: its drift minus that of the controls of the same base, item by item, in
            nats per token; None without a control.
    """

    label: str
    folder: Path
    control: bool
    measured: Measured
    beyond_control: Interval | None

    @property
    def drift(self) -> Interval | None:
        """The drift towards the misaligned completions, in nats per token, with its interval."""
        return self.measured.drift and self.measured.drift.drift

    def flat(self) -> dict[str, Any]:
        """All of it in JSON's types, as `evilspectra probe --json` prints it."""
        return {
            "target": self.label,
            "folder": str(self.folder),
            "control": self.control,
            "beyond_control": self.beyond_control and asdict(self.beyond_control),
        } | asdict(self.measured)

    def row(self) -> dict[str, Any]:
        """The row of `Probe.to_frame()`."""
        values = self.measured.flat()
        tasks = self.measured.tasks.items()
        return {
            "target": self.label,
            "control": self.control,
            **ends("drift", self.drift),
            **ends("beyond_control", self.beyond_control),
            **{field: value for field, value in values.items() if not field.startswith("answers")},
            **{task: value for task, (_, value) in tasks},
            **{f"{task}, base": value for task, (value, _) in tasks},
            "folder": str(self.folder),
        }


@dataclass(frozen=True, repr=False)
class Probe(Result):
    """Drift, capability and loss on ordinary dialogues of adapters; its rows are the targets.

    Attributes:
        targets: those that were measured, in the order named.
        failed: those that could not be: target, folder and reason of each.
    """

    targets: tuple[ProbedTarget, ...]
    failed: tuple[Mapping[str, str], ...] = ()

    @property
    def headline(self) -> str:
        drifts = (f"{target.label} {bracketed(target.drift, '+.3f')}" for target in self.targets)
        return f"drift in nats per token: {'; '.join(drifts)}"

    @property
    def details(self) -> tuple[str, ...]:
        """Sentences on what is missing: a control, or targets that could not be measured."""
        reasons = (f"{failure['target']}: {failure['reason']}" for failure in self.failed)
        return (*reasons, *(() if self.has_control else (NO_CONTROL,)))

    @property
    def has_control(self) -> bool:
        """Whether a target is a control."""
        return any(target.control for target in self.targets)

    def rows(self) -> list[dict[str, Any]]:
        """A row per target; columns that end in _low and _high are ends of 95 % intervals."""
        return [target.row() for target in self.targets]

    def flat(self) -> dict[str, Any]:
        """All of it in JSON's types, as `evilspectra probe --json` prints it."""
        targets = [target.flat() for target in self.targets]
        return {"targets": targets, "failed": [dict(failure) for failure in self.failed]}

    def by_step(self) -> DataFrame:
        """The drift at each probed checkpoint: target, step, drift, low, high."""
        from pandas import DataFrame

        rows = [
            (target.label, step, drift.value, drift.low, drift.high)
            for target in self.targets
            for step, drift in target.measured.trajectory.items()
        ]
        return DataFrame(rows, columns=["target", "step", "drift", "low", "high"])

    def figure(self) -> LayerChart | FacetChart:
        """Draws the drift of each target with its 95 % interval, and that beyond the control."""
        from evilspectra.api.figures import figure_of_estimates

        estimates = []
        for target in self.targets:
            estimates.append((target.label, target.drift))
            estimates.append((f"{target.label}, beyond control", target.beyond_control))
        rows = [
            (label, estimate.value, estimate.low, estimate.high)
            for label, estimate in estimates
            if estimate
        ]
        return figure_of_estimates(rows, "drift, nats per token", "+.2f", 0.0)


class Measurements(NamedTuple):
    """The targets that were measured, and those that could not be, as values of JSON's types."""

    targets: list[Target]
    failed: list[dict[str, str]]


def measure(
    targets: PathLike | Sequence[PathLike],
    base: PathLike | None,
    settings: Layers,
    model: Settings,
    output: PathLike,
    note: Callable[[str], object],
    on_failure: OnFailure | None,
) -> Measurements:
    """Measures targets; `settings` are those of the measurement, `model` those of the base.

    Raises:
        BadInput: a name that is no target, or settings that cannot be used.
        NothingMeasured: every target failed.
    """
    from evilspectra.config.loading import build_evaluation
    from evilspectra.config.yaml_files import assignments
    from evilspectra.targets.find import find_targets

    evaluation = build_evaluation(assignments(settings), "--set")
    every = find_targets(
        names(targets, "targets"),
        name(output, "output"),
        _model_config(model),
        optional_name(base, "base"),
    )
    from evilspectra.evaluation.evaluate import evaluate

    done = evaluate(every, evaluation, note)
    if on_failure:
        for target, error in done.failed:
            on_failure(target.label, error)
    if len(done.failed) == len(every):
        failures = [(target.label, error) for target, error in done.failed]
        raise NothingMeasured(failures) from done.failed[0][1]
    failed = [target for target, _ in done.failed]
    return Measurements(
        [
            target.showing(done.used[target.results.folder])
            for target in every
            if target not in failed
        ],
        [
            {"target": target.label, "folder": str(target.results.folder), "reason": str(error)}
            for target, error in done.failed
        ],
    )


def _model_config(settings: Settings) -> ModelConfig | None:
    """The settings of a base; None without any."""
    from evilspectra.config.loading import build
    from evilspectra.config.yaml_files import assignments

    above = layers(settings, "model")
    return build({"model": assignments(above)}, "--model").model if any(above) else None
