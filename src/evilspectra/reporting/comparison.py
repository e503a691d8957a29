"""The report's records of runs, and the rule for comparing two runs or two arms.

A difference is *shown* only where it is larger than 1 % (of a measure; in a loss 0.01 nats, which
is 1 % of the perplexity) and where, with several runs on a side, the two sides' ranges do not
overlap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any

from evilspectra.evaluation.measured import Measured
from evilspectra.evaluation.run_rates import Rated
from evilspectra.intervals import Interval
from evilspectra.store.origin import Origin
from evilspectra.store.records import RunSummary
from evilspectra.store.results import Instrument

SAME = 0.01


@dataclass(frozen=True)
class Row:
    """A run as the report knows it.

    `folder` is relative to the report's root, `label` unique in the report. `instruments`: table of
    measurements → the one whose results count. `beyond`: its drift minus that of the controls of
    its base, item by item. `rated`: the rates of its answers under each judge; none where they were
    not judged.
    """

    label: str
    folder: PurePosixPath
    origin: Origin
    provenance: dict[str, Any]
    summary: RunSummary
    measured: Measured
    instruments: Mapping[str, Instrument]
    beyond: Interval | None = None
    rated: tuple[Rated, ...] = ()

    @property
    def name(self) -> str:
        """Arm and seed: the run's name in a sentence."""
        return f"{self.summary.arm}, seed {self.summary.seed}"

    def ground(self) -> dict[str, object]:
        """The facts that must be equal for two runs' losses and spectra to be compared.

        None where a fact is not known (another trainer's run).
        """
        settings = self.origin.settings
        data = value_at(self.provenance, "data.sha256") or self.origin.data
        split = [
            repr(settings.get(f"data.{name}")) for name in ("heldout", "heldout_share", "seed")
        ]
        return {
            "base model": value_at(self.provenance, "base_sha256") or self.origin.base,
            "data": data and (data, *split),
            "rank": self.origin.rank,
            "adapted modules": settings.get("lora.targets"),
        }

    def twin_key(self) -> str:
        """A key that is equal for runs whose settings and contents differ in the penalty alone."""
        settings = [
            (path, value)
            for path, value in self.origin.settings.items()
            if not path.startswith("flatness.")
        ]
        return repr((settings, self.ground()))


def value_at(values: Any, path: str) -> Any:
    """The value at a dotted path of nested mappings, None if there is none.

    >>> value_at({"data": {"rows": 8}}, "data.rows"), value_at({}, "data.rows")
    (8, None)
    """
    for key in path.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return values


def arms_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Arm → its runs, both in the order of the rows."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.summary.arm].append(row)
    return dict(groups)


def by_arm(rows: Sequence[Row], field: str) -> dict[str, list[float]]:
    """The finite values of a summary's field, by arm."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        value = getattr(row.summary, field)
        if value is not None:
            values[row.summary.arm].append(value)
    return dict(values)


def alike(a: Sequence[float], b: Sequence[float], least: float | None = None) -> str | None:
    """Why two arms are not told apart, as the end of a sentence; None if they are.

    >>> alike([4.0], [4.01])
    'differ by less than 1 %'
    """
    limit = SAME * max(abs(fmean(a)), abs(fmean(b))) if least is None else least
    if abs(fmean(a) - fmean(b)) < limit:
        return "differ by less than 1 %" if least is None else f"differ by less than {least:g}"
    if max(len(a), len(b)) > 1 and min(a) <= max(b) and min(b) <= max(a):
        return "overlap between their runs"
    return None
