"""What a click on a run or a module shows, packed: spectra as 16-bit numbers, stable ranks, losses, the outcome's path. No torch.

The page carries every run's singular values after its last measured step: for each module σ₁ and the stable rank as 32-bit floats, and
−log₁₀(σᵢ / σ₁) of at most MOST_INDICES of its values in 65 534 steps over eight decades (an error below 0.015 %), base64 in one block. Where
all runs together would have more than MOST_VALUES of them, whole modules are left out, every n-th one staying, and the page says so.
"""

from __future__ import annotations

import base64
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evilspectra.reporting.comparison import Row
from evilspectra.reporting.figures.charts import Tables
from evilspectra.reporting.figures.modules import place_of
from evilspectra.reporting.figures.palette import Frame
from evilspectra.reporting.page.cells import NONE, shown

#: Singular values of a module that the page holds; of all modules of all runs; points of a run's loss curve.
MOST_INDICES, MOST_VALUES, MOST_POINTS = 32, 4_000_000, 120
#: Decades that the 16-bit numbers span, and the number that stands for a value of zero, or none.
DECADES, NOTHING = 8.0, 65_535


@dataclass(frozen=True)
class Spectra:
    """A run's singular values after its last measured step: `values`, modules × indices, largest first, nan where a module has fewer."""

    modules: tuple[str, ...]
    values: np.ndarray
    stable_rank: np.ndarray
    step: int


def read_spectra(spectra: Frame, measures: Frame) -> tuple[Spectra | None, Frame]:
    """What the page holds of a run's tables, and its `evolution`: step, position and the median over modules of σ/σ₁.

    Steps whose values are all zero are left out; no spectra where nothing else is left.
    """
    nothing = pd.DataFrame({"step": [], "position": [], "relative": []})
    if spectra.empty:
        return None, nothing
    (module, names), (step, steps) = (
        pd.factorize(spectra["module"]),
        pd.factorize(spectra["step"], sort=True),
    )
    values = np.full((len(steps), len(names), int(spectra["index"].max()) + 1), np.nan)
    values[step, module, spectra["index"].to_numpy()] = spectra["singular_value"].to_numpy(
        dtype=float
    )
    kept = np.nan_to_num(values).max(axis=(1, 2)) > 0
    if not kept[-1]:
        return None, nothing
    largest = np.nan_to_num(values).max(axis=2, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an index that no module has
        relative = np.nanmedian(
            np.where(largest > 0, values / np.where(largest > 0, largest, 1.0), np.nan), axis=1
        )
    grid = np.argwhere(kept[:, None] & np.isfinite(relative))
    evolution = pd.DataFrame(
        {
            "step": np.asarray(steps)[grid[:, 0]],
            "position": grid[:, 1] + 1,
            "relative": relative[grid[:, 0], grid[:, 1]],
        }
    )
    ends = measures[measures["step"] == measures["step"].max()] if len(measures) else measures
    ranks = dict(zip(ends["module"].astype(str), ends["stable_rank"].astype(float), strict=True))
    modules = tuple(map(str, names))
    return Spectra(
        modules, values[-1], np.array([ranks.get(name, np.nan) for name in modules]), int(steps[-1])
    ), evolution


def pack(spectra: Sequence[Spectra | None], most_values: int = MOST_VALUES) -> dict[str, Any]:
    """The blocks of all runs, and where each run's part begins.

    `layouts`: modules (with their layer and projection) and the kept indices, one for all runs that share them; `runs`: a layout and two
    offsets, or None; `relative`, `largest`, `ranks`: base64 of little-endian uint16, float32 and float32; `every`: of every how many modules one is kept.
    """
    total = sum(
        one.values.shape[0] * min(one.values.shape[1], MOST_INDICES) for one in spectra if one
    )
    every = max(1, math.ceil(total / most_values))
    layouts: dict[tuple[Any, ...], int] = {}
    runs: list[dict[str, int] | None] = []
    relative, largest, ranks = [], [], []
    modules_before = values_before = 0
    for one in spectra:
        if one is None:
            runs.append(None)
            continue
        kept = _indices(one.values.shape[1])
        modules = one.modules[::every]
        values = one.values[::every, kept]
        tops = one.values[::every].max(axis=1, initial=0.0, where=~np.isnan(one.values[::every]))
        layout = layouts.setdefault((modules, tuple(kept)), len(layouts))
        runs.append(
            {"layout": layout, "module": modules_before, "value": values_before, "step": one.step}
        )
        relative.append(quantise(values, tops))
        largest.append(tops.astype("<f4"))
        ranks.append(one.stable_rank[::every].astype("<f4"))
        modules_before, values_before = modules_before + len(modules), values_before + values.size
    return {
        "layouts": [
            {
                "modules": list(modules),
                "places": [list(place_of(name)) for name in modules],
                "indices": [int(index) + 1 for index in kept],
            }
            for modules, kept in layouts
        ],
        "runs": runs,
        "relative": _base64(relative, "<u2"),
        "largest": _base64(largest, "<f4"),
        "ranks": _base64(ranks, "<f4"),
        "every": every,
        "decades": DECADES,
    }


def quantise(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """−log₁₀(value / largest) of each row in 16 bits.

    >>> quantise(np.array([[2.0, 0.02, 0.0]]), np.array([2.0])).tolist()
    [[0, 16384, 65535]]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = -np.log10(values / largest[:, None]) * ((NOTHING - 1) / DECADES)
    return np.where(np.isfinite(depth), np.clip(np.round(depth), 0, NOTHING - 1), NOTHING).astype(
        "<u2"
    )


def _indices(count: int) -> np.ndarray:
    """At most MOST_INDICES of `count` places, all of the first ones."""
    return (
        np.arange(count)
        if count <= MOST_INDICES
        else np.unique(np.geomspace(1, count, MOST_INDICES).round().astype(int)) - 1
    )


def _base64(parts: Sequence[np.ndarray], kind: str) -> str:
    return base64.b64encode(
        np.concatenate([part.ravel() for part in parts]).astype(kind).tobytes() if parts else b""
    ).decode("ascii")


# --- a run ------------------------------------------------------------------------------------------------------------

#: What stands at the head of a run's panel: column of the summary, label, format.
FACTS = (
    ("lr", "lr", "g"),
    ("seed", "seed", "d"),
    ("batch_size", "rows per step", "d"),
    ("steps", "steps", "d"),
    ("train_loss", "train loss", ".3f"),
    ("heldout_loss", "held-out loss", ".3f"),
    ("stable_rank", "stable rank", ".2f"),
    ("capability", "capability", ".2f"),
)


def describe(rows: Sequence[Row], tables: Tables) -> list[dict[str, Any]]:
    """Of every run what its panel says and draws beside the spectrum: facts, training and held-out losses, the path of drift and alignment."""
    steps, heldout, drifts, paths = (
        dict(iter(frame.groupby("run", sort=False))) if len(frame) else {}
        for frame in (tables.steps, tables.heldout, tables.drifts, tables.paths)
    )
    out = []
    for place, row in enumerate(rows):
        curve = steps.get(row.label)
        after, drift, path = heldout.get(row.label), drifts.get(row.label), paths.get(row.label)
        found = [
            (label, NONE if (value := getattr(row.summary, name)) is None else shown(value, form))
            for name, label, form in FACTS
        ]
        if row.summary.mean_alignment is not None:
            found.append(("mean alignment", f"{row.summary.mean_alignment:.1f}"))
        if row.summary.misalignment is not None:
            found.append(("misalignment rate", f"{100 * row.summary.misalignment:.1f} %"))
        if row.summary.drift is not None:
            found.append(("drift", f"{row.summary.drift:+.3f}".replace("-", "−")))
        out.append(
            {
                "run": row.label,
                "arm": row.summary.arm,
                "data": str(tables.runs["dataset"].iloc[place]),
                "state": row.summary.status,
                "facts": [list(pair) for pair in found],
                "loss": []
                if curve is None
                else _thinned(curve["step"].to_numpy(), curve["loss"].to_numpy(dtype=float)),
                "heldout": [] if after is None else _points(after, "step", "loss"),
                "drift": [] if drift is None else _points(drift, "step", "drift"),
                "mean_alignment": [] if path is None else _points(path, "step", "mean_alignment"),
            }
        )
    return out


def _points(frame: Frame, x: str, y: str) -> list[list[float]]:
    return [
        [_short(a), _short(b)]
        for a, b in zip(frame[x], frame[y].astype(float), strict=True)
        if math.isfinite(b)
    ]


def _thinned(steps: np.ndarray, losses: np.ndarray) -> list[list[float]]:
    """Step and loss, averaged in neighbours to at most MOST_POINTS points."""
    kept = np.isfinite(losses)
    parts = (
        zip(
            np.array_split(steps[kept], min(MOST_POINTS, int(kept.sum()))),
            np.array_split(losses[kept], min(MOST_POINTS, int(kept.sum()))),
            strict=True,
        )
        if kept.any()
        else ()
    )
    return [[_short(a.mean()), _short(b.mean())] for a, b in parts]


def _short(value: Any) -> float:
    return float(f"{float(value):.5g}")
