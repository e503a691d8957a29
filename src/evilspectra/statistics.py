"""What the report's figures and sentences take from `analysis`, as plain numbers. No torch.

`statistics` asks `analysis` once for everything; what a design does not allow is left out, with the reason in `notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    """A line of the outcome on log training loss. `name`: the optimiser, or "all runs"; `arm`: whose colour it has, empty for the pooled one.

    `x`, `y`, `low`, `high`: points of the line and of the 95 % band of its mean.
    """

    name: str
    arm: str
    runs: int
    slope: float
    slope_low: float | None
    slope_high: float | None
    intercept: float
    r2: float
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Share:
    """A term's share of the outcome's variance, with its 95 % interval where there is one; `what` says which kind of share it is."""

    term: str
    share: float
    low: float | None
    high: float | None
    what: str


@dataclass(frozen=True)
class Partial:
    """Partial R² of `what` ("optimiser, given loss" or "loss, given optimiser") over the runs at a checkpoint."""

    step: float
    what: str
    r2: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Statistics:
    """`sentences` are the headline's; `notes`: what the design does not allow, and why; `commands`: what prints the whole of it."""

    fits: tuple[Fit, ...] = ()
    shares: tuple[Share, ...] = ()
    partials: tuple[Partial, ...] = ()
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


def fit_of(statistics: Statistics, name: str) -> Fit | None:
    """The line of an optimiser."""
    return next((fit for fit in statistics.fits if fit.name == name), None)


def kinds(shares: Sequence[Share]) -> list[str]:
    """The kinds of shares there are, in order."""
    return list(dict.fromkeys(share.what for share in shares))
