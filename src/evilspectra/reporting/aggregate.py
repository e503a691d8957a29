"""Summary of a large store in few rows: the spread of outcomes by arm and by level of each factor.

It is descriptive; inference is left to `evilspectra analyze`. No torch.
"""

from __future__ import annotations

import os
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

#: Outcomes of an overview: column of `runs_frame` → its name for a reader.
OUTCOMES = {
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
    """An outcome over runs: how many have it, mean, standard deviation and quantiles.

    `sd`: None for a single run; `quantiles`: 5, 25, 50, 75 and 95 %.
    """

    runs: int
    mean: float
    sd: float | None
    quantiles: tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Level:
    """Runs that are alike in an arm or a factor.

    `done`: how many of them are; `outcomes`: the spread of every outcome that any of them has, over
    the done ones.
    """

    name: str
    runs: int
    done: int
    outcomes: dict[str, Spread]


@dataclass(frozen=True)
class Overview:
    """A store in few rows.

    `factors`: setting → its levels; `left_out`: reason → runs; `curve`: mean outcome and mean
    training loss of runs of similar loss, by optimiser.
    """

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
    """The spread of the finite values; None if there is none.

    >>> spread([1.0, 3.0]).mean
    2.0
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    cuts = np.quantile(finite, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return Spread(
        len(finite),
        float(finite.mean()),
        float(finite.std(ddof=1)) if len(finite) > 1 else None,
        tuple(cuts),
    )


def overview(root: str | os.PathLike[str], index: Index | None = None) -> Overview:
    """The runs below a root in few rows.

    Raises:
        BadInput: there are no runs.
    """
    root = Path(root)
    index = index or read_index(root)
    table = runs_frame(root, index)
    summary_fields = {field.name for field in fields(RunSummary)}
    varied = [
        name
        for name in table.columns
        if name not in summary_fields
        and not name.endswith("seed")
        and 1 < table[name].nunique(dropna=True) <= MOST_LEVELS
        and not _same(table, name)
    ]
    reasons = Counter(map(_reason, excluded(root, index=index)["reason"]))
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


def _reason(reason: object) -> str:
    """Why a run is left out, without the details of a file that cannot be read."""
    text = str(reason)
    return text.split(":")[0] if "cannot be read" in text else text


def _same(table: Frame, name: str) -> bool:
    """Whether a setting tells runs apart just as the arm does."""
    pairs = table[["arm", name]].drop_duplicates()
    return len(pairs) == table["arm"].nunique() == pairs[name].nunique()


def _levels(table: Frame, column: str) -> tuple[Level, ...]:
    levels = []
    for name, rows in table.groupby(column, sort=True):
        done = rows[rows["status"] == "done"]
        spreads = {outcome: spread(done[outcome].to_numpy()) for outcome in OUTCOMES}
        outcomes = {outcome: values for outcome, values in spreads.items() if values is not None}
        levels.append(Level(str(name), len(rows), len(done), outcomes))
    return tuple(levels)


def outcomes_of(levels: Sequence[Level]) -> list[str]:
    """The outcomes that some of the levels have, in the order in which they are shown."""
    return [name for name in OUTCOMES if any(name in level.outcomes for level in levels)]


def _curve(table: Frame) -> Frame:
    """Runs of each optimiser in parts of equal numbers by training loss.

    Columns: optimizer, outcome, loss and value (both means), runs.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    trained = (table["status"] == "done") & ~table["control"].astype(bool)
    done = table[trained & table["train_loss"].notna()]
    for outcome in ("mean_alignment", "misalignment", "drift"):
        for optimizer, runs in done[done[outcome].notna()].groupby("optimizer", sort=True):
            runs = runs.sort_values(["train_loss", "folder"])
            for indices in np.array_split(np.arange(len(runs)), min(_PARTS, len(runs))):
                part = runs.iloc[indices]
                rows.append(
                    {
                        "optimizer": str(optimizer),
                        "outcome": outcome,
                        "loss": float(part["train_loss"].mean()),
                        "value": float(part[outcome].mean()),
                        "runs": len(part),
                    }
                )
    return pd.DataFrame(rows, columns=["optimizer", "outcome", "loss", "value", "runs"])
