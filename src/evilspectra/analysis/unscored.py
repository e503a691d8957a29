"""The share of unscored answers that would reverse a difference between the rates of two groups.

With k misaligned of m counted answers and u answers without a verdict, pooled over the runs of a
group, 1 the safer group and 2 the other: a share s of both groups' unscored answers counts against
the difference, the safer group's as misaligned and the other's as aligned. The rates are equal or
reversed from the smallest s with

    (k₁ + s·u₁)/(m₁ + s·u₁) ≥ k₂/(m₂ + s·u₂),

whose left side never falls and whose right side never rises with s. Multiplied out it is
a·s² + b·s − c ≥ 0 with a = u₁u₂, b = k₁u₂ + (m₂ − k₂)u₁, c = k₂m₁ − k₁m₂, so that

    s = 2c/(b + √(b² + 4ac))  (0 if c ≤ 0),

and where s > 1, none of them could. It is arithmetic on the counts, not adjusted for other factors
and without chance: it says how much the missing verdicts could matter, and decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evilspectra.analysis.estimate import Frame
from evilspectra.analysis.linear import text_columns
from evilspectra.analysis.outcome import COUNTED, MISALIGNED, UNSCORED, numbers
from evilspectra.errors import BadInput


@dataclass(frozen=True, slots=True)
class Pooled:
    """A group's answers over all its runs; `unscored` are not among the `counted`."""

    misaligned: int
    counted: int
    unscored: int


def pooled(frame: Frame, factor: str) -> dict[str, Pooled]:
    """Each group's answers; empty where a run lacks a count.

    Raises:
        BadInput: a number of unscored answers is negative.
    """
    if any(name not in frame for name in (MISALIGNED, COUNTED, UNSCORED)):
        return {}
    counts = np.stack([numbers(frame, name) for name in (MISALIGNED, COUNTED, UNSCORED)])
    if not np.isfinite(counts).all():
        return {}
    if counts[2].min() < 0:
        raise BadInput(
            f"column '{UNSCORED}' holds {counts[2].min():g}: it counts the answers without a "
            "verdict, so give 0 or more, or leave the column out."
        )
    groups = np.asarray(text_columns(frame, [factor])[factor])
    return {
        str(name): Pooled(*(int(total) for total in counts[:, groups == name].sum(axis=1)))
        for name in sorted(set(groups))
    }


def reversing_share(safer: Pooled, other: Pooled) -> float | None:
    """The smallest share of the unscored answers that makes the rates equal or reverses them.

    None if none of them could; 0 if the rates are equal or reversed already.

    >>> reversing_share(Pooled(10, 100, 20), Pooled(20, 100, 0))
    0.625
    >>> reversing_share(Pooled(10, 100, 5), Pooled(20, 100, 0)) is None
    True
    """
    k, m, u = safer.misaligned, safer.counted, safer.unscored
    bad, every, rest = other.misaligned, other.counted, other.unscored
    apart = bad * m - k * every
    if apart <= 0:
        return 0.0
    if (k + u) * (every + rest) < bad * (m + u):
        return None
    slope = k * rest + (every - bad) * u
    return min(1.0, 2 * apart / (slope + math.sqrt(slope**2 + 4 * u * rest * apart)))
