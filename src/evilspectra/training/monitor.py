"""Spectra and measures of every adapted matrix at one moment of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from evilspectra.spectra import measures
from evilspectra.spectra.pairs import LoraPair
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
    for places in _by_length(spectra):
        sigma = torch.stack([spectra[place].values for place in places]).numpy()
        columns = {
            name: [value if math.isfinite(value) else None for value in measure(sigma).tolist()]
            for name, measure in _MEASURES.items()
        }
        sizes = measures.frobenius(sigma).tolist()
        for slot, place in enumerate(places):
            spectrum = spectra[place]
            numbers = {name: column[slot] for name, column in columns.items()}
            rows[place] = MeasureRecord(
                step,
                spectrum.name,
                frobenius=sizes[slot],
                route=spectrum.route,
                part=spectrum.part,
                **numbers,
            )
    return values, [rows[place] for place in range(len(spectra))]


def _by_length(spectra: Sequence[Spectrum]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for place, spectrum in enumerate(spectra):
        groups.setdefault(len(spectrum.values), []).append(place)
    return list(groups.values())
