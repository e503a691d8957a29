"""What the done runs of a store say of those to come: tokens a second of training, and tokens a
row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any

from evilspectra.errors import BadInput
from evilspectra.store.run import RunFolder, Store

#: Done runs that are read per base, and folders that are looked at, at most: a large store must not
#: make a plan slow.
ENOUGH, MOST_FOLDERS = 12, 500


@dataclass
class Pace:
    """Measurements of done runs, by the content of base and data."""

    speeds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    lengths: dict[tuple[str, str], float] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)

    def tokens_per_s(self, base: str, batch_size: int) -> float | None:
        """Median of the runs on that base at that batch size, or else at any; None where none is
        done.
        """
        at = self.speeds.get((base, batch_size)) or [
            speed for (of, _), speeds in self.speeds.items() if of == base for speed in speeds
        ]
        return median(at) if at else None

    def tokens_per_row(self, base: str, data: str) -> float | None:
        """Tokens in a used row, on average; None where no run on both is done."""
        return self.lengths.get((base, data))

    def take(self, run: RunFolder) -> None:
        """Reads a done run."""
        made = run.provenance()
        base, report = str(made.get("base_sha256")), made.get("data") or {}
        steps: Any = run.read("steps")
        tokens, seconds = steps["tokens"].sum(), steps["seconds"].sum()
        if report.get("used"):
            self.lengths[base, str(report.get("sha256"))] = report["tokens"] / report["used"]
        if seconds > 0 and tokens > 0:
            self.speeds.setdefault((base, run.config().train.batch_size), []).append(
                float(tokens / seconds)
            )
        self.read[base] = self.read.get(base, 0) + 1


def measure_pace(bases: set[str], own: Iterable[RunFolder], store: Store) -> Pace:
    """What is known of runs on some bases: from the plan's own done runs first, then from the
    store's others.
    """
    pace, seen = Pace(), set()
    for number, run in enumerate(chain(own, _others(store))):
        if (
            number >= MOST_FOLDERS
            or (bases and all(pace.read.get(base, 0) >= ENOUGH for base in bases))
            or not bases
        ):
            break
        if run.path in seen or run.is_outside:
            continue
        seen.add(run.path)
        try:
            if (
                run.status().state == "done"
                and run.provenance().get("base_sha256") in bases
                and pace.read.get(str(run.provenance().get("base_sha256")), 0) < ENOUGH
            ):
                pace.take(run)
        except BadInput:  # a damaged run has nothing to say here; whoever reads it is told
            continue
    return pace


def _others(store: Store) -> Iterator[RunFolder]:
    yield from store.runs() if store.root.expanduser().is_dir() else ()
