"""The report's records of runs, their arms, and which of them may be compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from evilspectra.errors import listing
from evilspectra.evaluation.measured import Measured
from evilspectra.evaluation.run_rates import Rated, judge_names
from evilspectra.intervals import Interval
from evilspectra.store.origin import Origin
from evilspectra.store.records import RunSummary
from evilspectra.store.results import Instrument


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


def incomparable(done: Sequence[Row]) -> str | None:
    """Why arms are not ranked against each other, in a sentence; None where they are."""
    grounds = [row.ground() for row in done]
    unknown = [name for name in grounds[0] if any(ground[name] is None for ground in grounds)]
    if unknown and len(done) > 1:
        labels = [row.label for row in done if None in row.ground().values()]
        return (
            f"The {' and '.join(unknown)} of {listing(labels, 3)}"
            f" {'is' if len(unknown) == 1 else 'are'} not known here, so arms are not ranked"
            " against each other: whether losses and spectra are comparable, only you can say."
        )
    mixed = [name for name in grounds[0] if len({repr(ground[name]) for ground in grounds}) > 1]
    if mixed:
        return (
            f"The runs differ in {' and '.join(mixed)}, so arms are not ranked against each other:"
            " neither losses nor spectra would be comparable."
        )
    return None


def by_judge(done: Sequence[Row]) -> list[tuple[str, list[tuple[Row, Rated]]]]:
    """Judges with what each judged, the judge of most runs first."""
    names = judge_names(rated.judge for row in done for rated in row.rated)
    judged: dict[str, list[tuple[Row, Rated]]] = {name: [] for name in names.values()}
    for row in done:
        for rated in row.rated:
            judged[names[rated.identity]].append((row, rated))
    return sorted(judged.items(), key=lambda item: -len(item[1]))
