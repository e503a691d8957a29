"""Spectra of adapters as data: the objects of `spectrum --json`, the rows of `spectrum --csv`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evilspectra.adapters.comparison import Comparison
from evilspectra.adapters.xray import ModuleXray, Xray


def as_json(adapter: Xray, comparisons: Sequence[Comparison] = ()) -> dict[str, Any]:
    """The object of one adapter for `spectrum --json`: docs/adapter.md lists the keys."""
    return {
        "adapter": adapter.label,
        "folder": str(adapter.folder),
        "config": dict(adapter.config),
        "part": adapter.part,
        "modules": [_module(module) for module in adapter.modules],
        "mean": adapter.mean(),
        "skipped": [{"name": name, "reason": reason} for name, reason in adapter.skipped],
        "notes": list(adapter.notes),
        "compared": [
            _comparison(comparison, adapter.label)
            for comparison in comparisons
            if adapter.label in (comparison.first, comparison.second)
        ],
    }


def _module(module: ModuleXray) -> dict[str, Any]:
    row = {
        "module": module.name,
        "shape": list(module.shape),
        "rank": module.rank,
        "part": module.part,
        "route": module.route,
        "singular_values": module.singular_values.tolist(),
        "stable_rank": module.stable_rank,
        "spectral_entropy": module.spectral_entropy,
        "condition_number": module.condition_number,
        "frobenius_nuclear": module.frobenius_nuclear,
        "frobenius": module.frobenius,
    }
    if module.against_base:
        values = asdict(module.against_base)
        row["beside_base"] = {key: value for key, value in values.items() if key != "module"}
    return row


def _comparison(comparison: Comparison, label: str) -> dict[str, Any]:
    """A comparison as the adapter of that label sees it."""
    values = asdict(comparison)
    first, second = values.pop("first"), values.pop("second")
    return {**values, "with": second if first == label else first}


def rows(adapters: Sequence[Xray]) -> list[dict[str, Any]]:
    """The rows of `spectrum --csv`: one per module."""
    return [_row(adapter.label, module) for adapter in adapters for module in adapter.modules]


def _row(label: str, module: ModuleXray) -> dict[str, Any]:
    base = module.against_base
    return {
        "adapter": label,
        "module": module.name,
        "layer": module.layer,
        "projection": module.projection,
        "d_out": module.shape[0],
        "d_in": module.shape[1],
        "rank": module.rank,
        "dtype": module.dtype,
        "part": module.part,
        "route": module.route,
        "stable_rank": module.stable_rank,
        "spectral_entropy": module.spectral_entropy,
        "condition_number": module.condition_number,
        "frobenius_nuclear": module.frobenius_nuclear,
        "frobenius": module.frobenius,
        "beside_frobenius": base.frobenius if base else None,
        "beside_spectral": base.spectral if base else None,
        "intruders": base.intruders if base else None,
        "singular_values": " ".join(repr(float(value)) for value in module.singular_values),
    }
