"""Spectra of adapters as one self-contained HTML page: tables and small charts.

The page has no scripts, makes no network requests, and is byte-identical each time. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evilspectra.adapters.comparison import Comparison
from evilspectra.adapters.xray import ModuleXray, Xray, mean, names
from evilspectra.numbers import number
from evilspectra.reporting.adapter_text import facts, projections, spectrum
from evilspectra.reporting.figures.palette import DARK, INK, LINE, MUTED, PAPER, RAMP
from evilspectra.reporting.rendering import environment
from evilspectra.store.files import write_atomically
from evilspectra.text import printable

COLUMNS = (
    ("frobenius", "‖ΔW‖", ".3g", "Frobenius norm, mean over modules"),
    ("stable_rank", "stable rank", ".2f", "Σσ²/σ₁², mean over modules; flat: the rank"),
    (
        "spectral_entropy",
        "entropy",
        ".2f",
        "−Σ p ln p with p = σ/Σσ, mean over modules; flat: ln r",
    ),
    ("condition_number", "condition", ".3g", "σ₁/σ_r, median over modules; flat: 1"),
    ("frobenius_nuclear", "Frob./nuclear", ".3f", "√Σσ²/Σσ, mean over modules; flat: 1/√r"),
)
#: Width and height of a spectrum's chart, in its own units.
_WIDTH, _HEIGHT = 120.0, 28.0
#: Cells of the map of layers at most: beyond them the map is left out.
_MOST_CELLS = 20_000


def write_page(xrays: Sequence[Xray], comparisons: Sequence[Comparison], path: Path) -> None:
    """Writes the page, whole or not at all."""
    text = page(xrays, comparisons).encode("utf-8", "replace")
    write_atomically(path.expanduser(), lambda temporary: temporary.write_bytes(text), "--html")


def page(xrays: Sequence[Xray], comparisons: Sequence[Comparison]) -> str:
    """The page as text; everything that came from a file is escaped."""
    colours = {
        "ink": INK,
        "muted": MUTED,
        "line": LINE,
        "paper": PAPER,
        **{f"r{number}": colour for number, colour in enumerate(RAMP)},
    }
    twins = {str(light): str(dark) for light, dark in DARK.items()}
    overall = [(xray.label, _cells(xray.modules)) for xray in xrays]
    return _template().render(
        adapters=[_adapter(xray) for xray in xrays],
        comparisons=comparisons,
        columns=COLUMNS,
        light=colours,
        dark={name: twins[colour] for name, colour in colours.items()},
        overall=overall,
    )


def _adapter(xray: Xray) -> dict[str, Any]:
    groups: dict[str, list[ModuleXray]] = {name: [] for name in projections(xray)}
    for module in xray.modules:
        groups[module.projection].append(module)
    rows = [_row(name, group) for name, group in groups.items()]
    if len(rows) > 1:
        rows.append(_row("all", xray.modules))
    besides = [module for module in xray.modules if module.against_base]
    notes = [printable(note, 600) for note in xray.notes]
    if xray.skipped:
        notes.append(f"Skipped: {printable(names(xray.skipped), 1000)}")
    return {
        "label": printable(xray.label, 200),
        "facts": facts(xray),
        "rows": rows,
        "map": _map(xray, groups),
        "besides": besides,
        "notes": notes,
    }


def _row(name: str, modules: Sequence[ModuleXray]) -> dict[str, Any]:
    return {
        "name": name,
        "count": len(modules),
        "cells": _cells(modules),
        "chart": chart(modules),
    }


def _cells(modules: Sequence[ModuleXray]) -> list[str]:
    means = mean(modules)
    return [number(means[name], form) for name, _, form, _ in COLUMNS]


def chart(modules: Sequence[ModuleXray]) -> list[tuple[float, float, float, float]]:
    """Bars of the mean spectrum σᵢ/σ₁: x, y, width, height."""
    values = spectrum(modules)
    step = _WIDTH / max(1, len(values))
    return [
        (
            round(index * step, 2),
            round(_HEIGHT * (1 - float(value)), 2),
            round(step * 0.85, 2),
            round(_HEIGHT * float(value), 2),
        )
        for index, value in enumerate(values)
    ]


def _map(xray: Xray, groups: dict[str, list[ModuleXray]]) -> dict[str, Any] | None:
    """Stable rank by layer and projection, with a colour from pale (1) to dark (the largest)."""
    layers = sorted({module.layer for module in xray.modules if module.layer is not None})
    if len(layers) < 2 or len(layers) * len(groups) > _MOST_CELLS:
        return None
    ranks = {name: _by_layer(group, layers) for name, group in groups.items()}
    stable_ranks = [value for row in ranks.values() for value in row]
    top = max((value for value in stable_ranks if value is not None), default=1.0)
    return {
        "layers": layers,
        "rows": [(name, [_map_cell(value, top) for value in row]) for name, row in ranks.items()],
        "top": f"{top:.2f}",
    }


def _by_layer(modules: Sequence[ModuleXray], layers: Sequence[int]) -> list[float | None]:
    """The mean stable rank of the modules in each layer."""
    groups: dict[int, list[ModuleXray]] = {layer: [] for layer in layers}
    for module in modules:
        if module.layer is not None:
            groups[module.layer].append(module)
    return [mean(group)["stable_rank"] for group in groups.values()]


def _map_cell(rank: float | None, top: float) -> dict[str, str]:
    if rank is None:
        return {"text": "", "colour": "", "title": "no update"}
    share = (rank - 1) / ((top - 1) or 1.0)
    tone = int(np.clip(round(share * (len(RAMP) - 1)), 0, len(RAMP) - 1))
    return {"text": f"{rank:.1f}", "colour": f"r{tone}", "title": f"{rank:.3f}"}


@cache
def _template() -> Any:
    return environment().get_template("xray.html.j2")
