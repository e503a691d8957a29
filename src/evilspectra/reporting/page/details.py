"""The details that a click on a run or a module shows, packed. No torch.

They are spectra as 16-bit numbers, stable ranks, losses and the outcome over training. The page
carries every run's singular values after its last measured step: for each module σ₁ and the stable
rank as 32-bit floats, and −log₁₀(σᵢ / σ₁) of at most MOST_INDICES of its values in 65 534 steps
over eight decades (an error below 0.015 %), base64 in one block. Where all runs together would have
more than MOST_VALUES of them, only every n-th module is kept, and the page says so.
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

from evilspectra.numbers import minus, percent
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.figures.charts import Tables
from evilspectra.reporting.figures.modules import map_cell
from evilspectra.reporting.figures.palette import Frame
from evilspectra.reporting.page.cells import formatted
from evilspectra.store.records import RunSummary

#: Singular values of a module that the page holds; of all modules of all runs; points of a run's
#: loss curve.
MOST_INDICES, MOST_VALUES, MOST_POINTS = 32, 4_000_000, 120
#: Decades that the 16-bit numbers span, and the number that stands for a value of zero, or none.
DECADES, NOTHING = 8.0, 65_535


@dataclass(frozen=True)
class Spectra:
    """A run's singular values after its last measured step.

    `values`: modules × indices, largest first, nan where a module has fewer.
    """

    modules: tuple[str, ...]
    values: np.ndarray
    stable_rank: np.ndarray
    step: int


def read_spectra(spectra: Frame, measures: Frame) -> tuple[Spectra | None, Frame]:
    """The last spectra of a run, and its `evolution`: step, position, median over modules of σ/σ₁.

    Steps whose values are all zero are left out; where the last one is, there are no spectra and
    the evolution is empty.
    """
    nothing = pd.DataFrame({"step": [], "position": [], "relative": []})
    if spectra.empty:
        return None, nothing
    module, names = pd.factorize(spectra["module"])
    step, steps = pd.factorize(spectra["step"], sort=True)
    values = np.full((len(steps), len(names), int(spectra["index"].max()) + 1), np.nan)
    index = spectra["index"].to_numpy()
    values[step, module, index] = spectra["singular_value"].to_numpy(dtype=float)
    updated = np.nan_to_num(values).max(axis=(1, 2)) > 0
    if not updated[-1]:
        return None, nothing
    largest = np.nan_to_num(values).max(axis=2, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an index that no module has
        shares = np.where(largest > 0, values / np.where(largest > 0, largest, 1.0), np.nan)
        relative = np.nanmedian(shares, axis=1)
    grid = np.argwhere(updated[:, None] & np.isfinite(relative))
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
    stable_rank = np.array([ranks.get(name, np.nan) for name in modules])
    return Spectra(modules, values[-1], stable_rank, int(steps[-1])), evolution


def pack(spectra: Sequence[Spectra | None], most_values: int = MOST_VALUES) -> dict[str, Any]:
    """The blocks of all runs, and where each run's part begins.

    `layouts`: modules (with their layer and projection) and the kept indices, one for all runs
    that share them; `runs`: a layout and two offsets, or None; `relative`, `largest`, `ranks`:
    base64 of little-endian uint16, float32 and float32; `every`: of every how many modules one is
    kept.
    """
    shapes = [run_spectra.values.shape for run_spectra in spectra if run_spectra]
    total = sum(modules * min(indices, MOST_INDICES) for modules, indices in shapes)
    every = max(1, math.ceil(total / most_values))
    layouts: dict[tuple[Any, ...], int] = {}
    runs: list[dict[str, int] | None] = []
    relative, largest, ranks = [], [], []
    modules_before = values_before = 0
    for run_spectra in spectra:
        if run_spectra is None:
            runs.append(None)
            continue
        indices = _indices(run_spectra.values.shape[1])
        modules = run_spectra.modules[::every]
        values_of_modules = run_spectra.values[::every]
        values = values_of_modules[:, indices]
        tops = values_of_modules.max(axis=1, initial=0.0, where=~np.isnan(values_of_modules))
        layout = layouts.setdefault((modules, tuple(indices)), len(layouts))
        runs.append(
            {
                "layout": layout,
                "module": modules_before,
                "value": values_before,
                "step": run_spectra.step,
            }
        )
        relative.append(quantise(values, tops))
        largest.append(tops.astype("<f4"))
        ranks.append(run_spectra.stable_rank[::every].astype("<f4"))
        modules_before += len(modules)
        values_before += values.size
    return {
        "layouts": [
            {
                "modules": list(modules),
                "places": [list(map_cell(name)) for name in modules],
                "indices": [int(index) + 1 for index in indices],
            }
            for modules, indices in layouts
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
    codes = np.clip(np.round(depth), 0, NOTHING - 1)
    return np.where(np.isfinite(depth), codes, NOTHING).astype("<u2")


def _indices(count: int) -> np.ndarray:
    """At most MOST_INDICES of the indices below `count`, denser towards the first."""
    if count <= MOST_INDICES:
        return np.arange(count)
    return np.unique(np.geomspace(1, count, MOST_INDICES).round().astype(int)) - 1


def _base64(parts: Sequence[np.ndarray], kind: str) -> str:
    if not parts:
        return ""
    block = np.concatenate([part.ravel() for part in parts]).astype(kind)
    return base64.b64encode(block.tobytes()).decode("ascii")


# --- a run --------------------------------------------------------------------------------------

#: The facts at the head of a run's panel: column of the summary, label, format.
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
    """The content of every run's panel, the spectrum aside.

    It is the facts, training and held-out losses, and the paths of drift and alignment.
    """
    steps, heldout, drifts, paths = (
        dict(iter(frame.groupby("run", sort=False))) if len(frame) else {}
        for frame in (tables.steps, tables.heldout, tables.drifts, tables.paths)
    )
    described = []
    for number, row in enumerate(rows):
        curve = steps.get(row.label)
        after = heldout.get(row.label)
        drift = drifts.get(row.label)
        path = paths.get(row.label)
        described.append(
            {
                "run": row.label,
                "arm": row.summary.arm,
                "data": str(tables.runs["dataset"].iloc[number]),
                "state": row.summary.status,
                "facts": _facts(row.summary),
                "loss": [] if curve is None else _thinned(curve),
                "heldout": [] if after is None else _points(after, "step", "loss"),
                "drift": [] if drift is None else _points(drift, "step", "drift"),
                "mean_alignment": [] if path is None else _points(path, "step", "mean_alignment"),
            }
        )
    return described


def _facts(summary: RunSummary) -> list[list[str]]:
    facts = []
    for name, label, form in FACTS:
        facts.append([label, formatted(getattr(summary, name), form)])
    if summary.mean_alignment is not None:
        facts.append(["mean alignment", f"{summary.mean_alignment:.1f}"])
    if summary.misalignment is not None:
        facts.append(["misalignment rate", percent(summary.misalignment)])
    if summary.drift is not None:
        facts.append(["drift", minus(f"{summary.drift:+.3f}")])
    return facts


def _points(frame: Frame, x: str, y: str) -> list[list[float]]:
    return [
        [_short(step), _short(value)]
        for step, value in zip(frame[x], frame[y].astype(float), strict=True)
        if math.isfinite(value)
    ]


def _thinned(curve: Frame) -> list[list[float]]:
    """Step and loss, averaged in neighbours to at most MOST_POINTS points."""
    steps = curve["step"].to_numpy()
    losses = curve["loss"].to_numpy(dtype=float)
    finite = np.isfinite(losses)
    if not finite.any():
        return []
    count = min(MOST_POINTS, int(finite.sum()))
    parts = zip(
        np.array_split(steps[finite], count),
        np.array_split(losses[finite], count),
        strict=True,
    )
    return [[_short(step.mean()), _short(loss.mean())] for step, loss in parts]


def _short(value: Any) -> float:
    return float(f"{float(value):.5g}")
