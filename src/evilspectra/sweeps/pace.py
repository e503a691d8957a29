"""The speed of a store's finished runs: training tokens per second, and tokens per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from typing import Any

from evilspectra.errors import BadInput
from evilspectra.store.run import RunFolder, Store

#: The most done runs that are read per base, and the most folders that are looked at: a large store
#: must not make a plan slow.
ENOUGH, MOST_FOLDERS = 12, 500


@dataclass
class Pace:
    """Measurements of done runs, by the content of base and data."""

    speeds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    lengths: dict[tuple[str, str], float] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)

    def tokens_per_s(self, base: str, batch_size: int) -> float | None:
        """Median over runs on that base at that batch size, or else at any.

        None where no run on it is done.
        """
        speeds = self.speeds.get((base, batch_size))
        if not speeds:
            groups = [group for (other, _), group in self.speeds.items() if other == base]
            speeds = list(chain.from_iterable(groups))
        return median(speeds) if speeds else None

    def tokens_per_row(self, base: str, data: str) -> float | None:
        """Average number of tokens in a used row; None if no run on both is done."""
        return self.lengths.get((base, data))

    def take(self, run: RunFolder) -> None:
        """Adds the measurements of a done run."""
        provenance = run.provenance()
        base = str(provenance.get("base_sha256"))
        report = provenance.get("data") or {}
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
    """Measures the pace of runs on some bases.

    The plan's own done runs are read first, then the store's others.
    """
    pace, seen = Pace(), set()
    for number, run in enumerate(chain(own, _others(store))):
        # also true without any base
        enough = all(pace.read.get(base, 0) >= ENOUGH for base in bases)
        if enough or number >= MOST_FOLDERS:
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
        except BadInput:  # a damaged run is skipped here, and reported to whoever reads it
            continue
    return pace


def _others(store: Store) -> Iterator[RunFolder]:
    yield from store.runs() if store.root.expanduser().is_dir() else ()
