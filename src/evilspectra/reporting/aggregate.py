"""A store of very many runs in few rows: how outcomes spread over the runs of each arm and of each level of each factor. Descriptive; inference is `analyze`'s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from evilspectra.store.records import RunSummary
from evilspectra.tables.frames import Frame
from evilspectra.tables.index import Index, read_index
from evilspectra.tables.tidy import excluded, runs_frame

#: Outcomes of an overview: column of `runs_frame` → what a reader calls it.
MAIN_DEFINITION = {
    "mean_alignment": "mean alignment (0 to 100)",
    "misalignment": "misalignment rate",
    "drift": "drift (nats/token)",
    "capability": "capability",
    "train_loss": "training loss (nats/token)",
    "heldout_loss": "held-out loss (nats/token)",
    "stable_rank": "stable rank",
    "frobenius_nuclear": "Frobenius/nuclear",
}
#: A setting with more levels is a covariate or a seed, and no factor of a table.
MOST_LEVELS = 12
#: Parts of equal numbers of runs that a loss is cut into.
_PARTS = 10


@dataclass(frozen=True, slots=True)
class Spread:
    """An outcome over runs: how many have it, mean, standard deviation (None for one run), and the quantiles 5, 25, 50, 75, 95 %."""

    runs: int
    mean: float
    sd: float | None
    quantiles: tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Level:
    """Runs alike in something. `done`: those of them that are; `outcomes`: those that any of them has, over the done ones."""

    name: str
    runs: int
    done: int
    outcomes: dict[str, Spread]


@dataclass(frozen=True)
class Overview:
    """A store in few rows. `factors`: setting → its levels; `left_out`: reason → runs; `curve`: mean outcome and mean training loss of runs of like loss, by optimiser."""

    root: Path
    runs: int
    states: dict[str, int]
    experiments: dict[str, int]
    arms: tuple[Level, ...]
    factors: dict[str, tuple[Level, ...]]
    left_out: dict[str, int]
    curve: Frame
    table: Frame


def spread(values: Any) -> Spread | None:
    """Over the values that are known; None where none is.

    >>> spread([1.0, 3.0]).mean
    2.0
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    cuts = np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return Spread(
        len(known),
        float(known.mean()),
        float(known.std(ddof=1)) if len(known) > 1 else None,
        tuple(cuts),
    )


def overview(root: Path, index: Index | None = None) -> Overview:
    """What the runs below a root come to.

    Raises:
        BadInput: there are none.
    """
    index = index or read_index(root)
    table = runs_frame(root, index)
    known = {field.name for field in fields(RunSummary)}
    varied = [
        name
        for name in table.columns
        if name not in known
        and not name.endswith("seed")
        and 1 < table[name].nunique(dropna=True) <= MOST_LEVELS
        and not _same(table, name)
    ]
    reasons = Counter(
        str(reason).split(":")[0] if "cannot be read" in str(reason) else str(reason)
        for reason in excluded(root, index=index)["reason"]
    )
    return Overview(
        root=root,
        runs=len(index.table),
        states=dict(Counter(table["status"]).most_common()),
        experiments=dict(sorted(Counter(table["experiment"]).items())),
        arms=_levels(table, "arm"),
        factors={name: _levels(table, name) for name in varied},
        left_out=dict(reasons.most_common()),
        curve=_curve(table),
        table=table,
    )


def _same(table: Frame, name: str) -> bool:
    """Whether a setting tells runs apart just as the arm does."""
    pairs = table[["arm", name]].drop_duplicates()
    return len(pairs) == table["arm"].nunique() == pairs[name].nunique()


def _levels(table: Frame, column: str) -> tuple[Level, ...]:
    found = []
    for name, rows in table.groupby(column, sort=True):
        done = rows[rows["status"] == "done"]
        outcomes = {
            outcome: one
            for outcome in MAIN_DEFINITION
            if (one := spread(done[outcome].to_numpy())) is not None
        }
        found.append(Level(str(name), len(rows), len(done), outcomes))
    return tuple(found)


def outcomes_of(levels: Sequence[Level]) -> list[str]:
    """The outcomes that some of the levels have, in the order in which they are shown."""
    return [name for name in MAIN_DEFINITION if any(name in level.outcomes for level in levels)]


def _curve(table: Frame) -> Frame:
    """Runs of each optimiser in parts of equal numbers by training loss: optimizer, outcome, loss, value (both means), runs."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    done = table[
        (table["status"] == "done") & table["train_loss"].notna() & ~table["control"].astype(bool)
    ]
    for outcome in ("mean_alignment", "misalignment", "drift"):
        for optimizer, some in done[done[outcome].notna()].groupby("optimizer", sort=True):
            some = some.sort_values(["train_loss", "folder"])
            for part in np.array_split(np.arange(len(some)), min(_PARTS, len(some))):
                here = some.iloc[part]
                rows.append(
                    {
                        "optimizer": str(optimizer),
                        "outcome": outcome,
                        "loss": float(here["train_loss"].mean()),
                        "value": float(here[outcome].mean()),
                        "runs": len(here),
                    }
                )
    return pd.DataFrame(rows, columns=["optimizer", "outcome", "loss", "value", "runs"])
