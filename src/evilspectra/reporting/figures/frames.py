"""The frames of measurements that figures draw: drift along training, by topic, effects of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from evilspectra.evaluation.measured import Measured
from evilspectra.intervals import Interval
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.figures.palette import Frame

_RUN = ("run", "arm", "control")
_DRIFTS = (*_RUN, "step", "drift", "low", "high", "last")
_TOPICS = (*_RUN, "topic", "drift")
_EFFECTS = (
    *_RUN,
    "seed",
    "flatness_weight",
    *(
        f"{name}{end}"
        for name in ("drift", "shuffled", "capability", "ordinary")
        for end in ("", "_low", "_high")
    ),
    "capability_base",
    "ordinary_base",
)


def frames(rows: Sequence[Row]) -> dict[str, Frame]:
    """The frames of `Tables` that hold measurements.

    They have their columns where nothing was measured, too.
    """
    drifts, topics, effects = [], [], []
    for row in rows:
        if row.measured.drift is None:
            continue
        run = {"run": row.label, "arm": row.summary.arm, "control": row.summary.control}
        steps = {0: Interval(0.0, 0.0, 0.0)} | row.measured.trajectory
        drifts += [
            run
            | {
                "step": step,
                "drift": drift.value,
                "low": drift.low,
                "high": drift.high,
                "last": step == max(steps),
            }
            for step, drift in steps.items()
        ]
        topics += [
            run | {"topic": topic, "drift": drift.value}
            for topic, drift in row.measured.drift.topics.items()
        ]
        settings = {"seed": row.summary.seed, "flatness_weight": row.summary.flatness_weight}
        effects.append(run | settings | _effects(row.measured))
    return {
        "drifts": pd.DataFrame(drifts, columns=list(_DRIFTS)),
        "topics": pd.DataFrame(topics, columns=list(_TOPICS)),
        "effects": pd.DataFrame(effects, columns=list(_EFFECTS)),
    }


def _effects(measured: Measured) -> dict[str, Any]:
    drift = measured.drift
    capability = measured.capability
    ordinary = measured.ordinary
    return (
        _ends("drift", drift and drift.drift)
        | _ends("shuffled", drift and drift.shuffled)
        | _ends("capability", capability and capability.accuracy)
        | _ends("ordinary", ordinary and ordinary.loss)
        | {
            "capability_base": capability and capability.base,
            "ordinary_base": ordinary and ordinary.base,
        }
    )


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
