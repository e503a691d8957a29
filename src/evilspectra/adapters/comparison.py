"""Pairwise comparison of adapters: how far they change the same directions. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evilspectra.spectra.overlap import Overlap, overlap
from evilspectra.spectra.peft_files import AdapterFolder
from evilspectra.spectra.values_numpy import side_by_side


@dataclass(frozen=True)
class Comparison:
    """Two adapters on the modules that both adapt.

    `output` and `input`: mean overlap of the `k` leading directions, `chance` that of random ones;
    `cosine`: mean cosine of the updates.
    """

    first: str
    second: str
    k: int
    modules: int
    output: float
    input: float
    chance: tuple[float, float]
    cosine: float
    each: tuple[Overlap, ...]


def compare(adapters: Sequence[tuple[str, AdapterFolder]], k: int) -> list[Comparison]:
    """Compares every two of the adapters that have modules of the same name and shape.

    Raises:
        BadInput: a factor is not finite.
    """
    comparisons = []
    for (first, adapter), (second, other) in combinations(adapters, 2):
        if each := _overlaps(adapter, other, k):
            chance = [float(np.mean([pair.chance[side] for pair in each])) for side in (0, 1)]
            comparisons.append(
                Comparison(
                    first,
                    second,
                    k=max(pair.k for pair in each),
                    modules=len(each),
                    output=float(np.mean([pair.output for pair in each])),
                    input=float(np.mean([pair.input for pair in each])),
                    chance=(chance[0], chance[1]),
                    cosine=float(np.mean([pair.cosine for pair in each])),
                    each=each,
                )
            )
    return comparisons


def _overlaps(first: AdapterFolder, second: AdapterFolder, k: int) -> tuple[Overlap, ...]:
    others = {(module.name, module.shape[1:]): module for module in second.modules}
    common = [module for module in first.modules if (module.name, module.shape[1:]) in others]
    overlaps = side_by_side(
        lambda module: overlap(module, others[module.name, module.shape[1:]], k), common
    )
    return tuple(pair for pair in overlaps if pair)


def distinct(labels: Sequence[str]) -> list[str]:
    """The labels, numbered where two are the same.

    >>> distinct(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    counts: dict[str, int] = {}
    numbered = []
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
        numbered.append(label if counts[label] == 1 else f"{label} ({counts[label]})")
    return numbered
