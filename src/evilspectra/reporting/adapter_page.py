"""Adapters seen through, as one self-contained HTML page: tables and small charts, no script, no network, the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evilspectra.adapters.comparison import Comparison
from evilspectra.adapters.xray import ModuleXray, Xray, mean, names
from evilspectra.reporting.adapter_text import facts, projections, shown, spectrum
from evilspectra.reporting.figures.palette import DARK, INK, LINE, MUTED, PAPER, RAMP
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


def write_page(found: Sequence[Xray], comparisons: Sequence[Comparison], place: Path) -> None:
    """Writes the page, whole or not at all."""
    text = page(found, comparisons).encode("utf-8", "replace")
    write_atomically(place.expanduser(), lambda path: path.write_bytes(text), "--html")


def page(found: Sequence[Xray], comparisons: Sequence[Comparison]) -> str:
    """The page as text; everything that came from a file is escaped."""
    colours = {
        "ink": INK,
        "muted": MUTED,
        "line": LINE,
        "paper": PAPER,
        **{f"r{place}": colour for place, colour in enumerate(RAMP)},
    }
    twins = {str(light): str(dark) for light, dark in DARK.items()}
    overall = [(one.label, _cells(one.modules)) for one in found]
    return _template().render(
        adapters=[_adapter(one) for one in found],
        comparisons=comparisons,
        columns=COLUMNS,
        light=colours,
        dark={name: twins[colour] for name, colour in colours.items()},
        overall=overall,
    )


def _adapter(one: Xray) -> dict[str, Any]:
    groups = {
        name: [module for module in one.modules if module.projection == name]
        for name in projections(one)
    }
    rows = [
        {"name": name, "count": len(group), "cells": _cells(group), "chart": chart(group)}
        for name, group in groups.items()
    ]
    if len(rows) > 1:
        rows.append(
            {
                "name": "all",
                "count": len(one.modules),
                "cells": _cells(one.modules),
                "chart": chart(one.modules),
            }
        )
    besides = [module for module in one.modules if module.against_base]
    return {
        "label": printable(one.label, 200),
        "facts": facts(one),
        "rows": rows,
        "map": _map(one, groups),
        "besides": besides,
        "notes": [printable(note, 600) for note in one.notes]
        + ([f"Skipped: {printable(names(one.skipped), 1000)}"] if one.skipped else []),
    }


def _cells(modules: Sequence[ModuleXray]) -> list[str]:
    means = mean(modules)
    return [shown(means[name], form) for name, _, form, _ in COLUMNS]


def chart(modules: Sequence[ModuleXray]) -> list[tuple[float, float, float, float]]:
    """Bars of the mean spectrum σᵢ/σ₁: x, y, width, height."""
    values = spectrum(modules)
    step = _WIDTH / max(1, len(values))
    return [
        (
            round(place * step, 2),
            round(_HEIGHT * (1 - float(value)), 2),
            round(step * 0.85, 2),
            round(_HEIGHT * float(value), 2),
        )
        for place, value in enumerate(values)
    ]


def _map(one: Xray, groups: dict[str, list[ModuleXray]]) -> dict[str, Any] | None:
    """Stable rank by layer and projection, with a colour from pale (1) to dark (the largest)."""
    layers = sorted({module.layer for module in one.modules if module.layer is not None})
    if len(layers) < 2 or len(layers) * len(groups) > _MOST_CELLS:
        return None
    cells = {
        name: [
            mean([module for module in group if module.layer == layer])["stable_rank"]
            for layer in layers
        ]
        for name, group in groups.items()
    }
    top = max((value for row in cells.values() for value in row if value is not None), default=1.0)

    def cell(value: float | None) -> dict[str, str]:
        if value is None:
            return {"text": "", "colour": "", "title": "no update"}
        share = (value - 1) / ((top - 1) or 1.0)
        return {
            "text": f"{value:.1f}",
            "colour": f"r{int(np.clip(round(share * (len(RAMP) - 1)), 0, len(RAMP) - 1))}",
            "title": f"{value:.3f}",
        }

    return {
        "layers": layers,
        "rows": [(name, [cell(value) for value in row]) for name, row in cells.items()],
        "top": f"{top:.2f}",
    }


@cache
def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("xray.html.j2")
