"""Spectra and measures of every adapted matrix at one moment of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evilspectra.spectra import measures
from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.penalty import Flatness
from evilspectra.spectra.values import Spectrum, singular_values
from evilspectra.store.records import MeasureRecord, SpectrumRecord

#: Measures by their field of MeasureRecord.
_MEASURES = {
    "stable_rank": measures.stable_rank,
    "spectral_entropy": measures.spectral_entropy,
    "condition_number": measures.condition_number,
    "frobenius_nuclear": measures.frobenius_nuclear,
    "effective_rank": measures.effective_rank,
    "participation_ratio": measures.participation_ratio,
    "energy_share": measures.energy_share,
}


def observe(pairs: list[LoraPair], step: int) -> tuple[list[SpectrumRecord], list[MeasureRecord]]:
    """All singular values of scale·B·A, and the measures, of each pair after `step` steps.

    Raises:
        BadInput: a factor is not finite.
    """
    spectra = singular_values(pairs)
    values = [
        SpectrumRecord(step, spectrum.name, index, value)
        for spectrum in spectra
        for index, value in enumerate(spectrum.values.tolist())
    ]
    rows: dict[int, MeasureRecord] = {}
    for group in _by_length(spectra):
        sigma = torch.stack([spectra[index].values for index in group]).numpy()
        columns = {
            name: [value if math.isfinite(value) else None for value in measure(sigma).tolist()]
            for name, measure in _MEASURES.items()
        }
        sizes = measures.frobenius(sigma).tolist()
        for position, index in enumerate(group):
            spectrum = spectra[index]
            numbers = {name: column[position] for name, column in columns.items()}
            rows[index] = MeasureRecord(
                step,
                spectrum.name,
                frobenius=sizes[position],
                route=spectrum.route,
                part=spectrum.part,
                **numbers,
            )
    return values, [rows[index] for index in range(len(spectra))]


def flatness_columns(flatness: Flatness | None) -> dict[str, float | None]:
    """StepRecord's columns about flatness, null without the penalty."""
    if flatness is None:
        return {"flatness": None, "penalty": None}
    return {
        "flatness": flatness.value,
        "penalty": flatness.penalty,
        "flatness_std": flatness.std,
        "flatness_min": flatness.smallest,
        "flatness_max": flatness.largest,
    }


def _by_length(spectra: Sequence[Spectrum]) -> list[list[int]]:
    """Indices of the spectra, in groups of equal length."""
    groups: dict[int, list[int]] = {}
    for index, spectrum in enumerate(spectra):
        groups.setdefault(len(spectrum.values), []).append(index)
    return list(groups.values())
