"""Flatness as a mediator: partial correlations, and the effect of the flatness penalty.

A partial correlation is that of the residuals of both after a regression on ln(loss) and the
groups; its interval is Fisher's, tanh(artanh r ± 1.96/√(n − k − 3)), k being the number of columns
projected out. It does not show cause. The penalty is an intervention, set and not observed: pairs
of runs that differ only in `flatness.*`, with equal seeds, show its effect on the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evilspectra.analysis.estimate import Frame, MethodEstimate, f_tail, mean_interval
from evilspectra.analysis.linear import lay_out, text_columns
from evilspectra.analysis.outcome import numbers
from evilspectra.rates.calibrate import cosine

#: Measures of flatness, and the column of the penalty's weight λ.
SPECTRAL = ("stable_rank", "spectral_entropy", "frobenius_nuclear", "condition_number")
WEIGHT = "flatness_weight"
#: Measures in which the penalty's pairs are compared, if they were measured.
COMPARED = (
    "mean_alignment",
    "misalignment",
    "drift",
    "capability",
    "train_loss",
    "heldout_loss",
    "stable_rank",
)
#: Settings that make runs the same but for the penalty, where a table has no dotted columns.
_SETTINGS = ("base", "data", "optimizer", "lr", "batch_size", "seed")
#: Dotted settings that do not change a result, or are the penalty's.
_APART = ("flatness.", "output.")


@dataclass(frozen=True, slots=True)
class Beyond:
    """Partial correlation of a measure with the outcome, given the variables in `given`.

    `simple`: the correlation without adjustment.
    """

    measure: str
    given: tuple[str, ...]
    n: int
    simple: MethodEstimate
    partial: MethodEstimate


@dataclass(frozen=True, slots=True)
class Paired:
    """Mean of with − without over pairs of one optimiser and λ.

    `weight`: λ; None for all of them, pairs of one baseline averaged.
    """

    measure: str
    optimizer: str
    weight: float | None
    pairs: int
    difference: MethodEstimate


@dataclass(frozen=True, slots=True)
class Mediation:
    """Association and effect of flatness.

    `beyond`: by measure; `effects`: by measure, optimiser and λ; `heterogeneity`: measure → (F, p)
    of equal effects under all optimisers. `reasons`: part → why it could not be estimated.
    """

    beyond: tuple[Beyond, ...]
    effects: tuple[Paired, ...]
    heterogeneity: dict[str, tuple[float, float | None]]
    reasons: dict[str, str]


def mediation(
    frame: Frame,
    outcome: str,
    values: np.ndarray,
    loss: str,
    group: str = "optimizer",
) -> Mediation:
    """Both arms for the outcome's values [n] of the frame's runs."""
    reasons: dict[str, str] = {}
    beyond = []
    for measure in SPECTRAL:
        if measure == outcome or measure not in frame:
            continue
        x = numbers(frame, measure)
        if measure == "condition_number":
            x = np.log(np.maximum(x, 1.0))
        losses = numbers(frame, loss) if loss in frame else np.full(len(frame), np.nan)
        usable = np.isfinite(x) & np.isfinite(values) & np.isfinite(losses) & (losses > 0)
        if len(set(x[usable].tolist())) > 1:
            groups: dict[str, list[str]] = {}
            if group in frame and frame[usable][group].nunique() > 1:
                groups = text_columns(frame[usable], [group])
            beyond.append(
                _beyond(measure, values[usable], x[usable], np.log(losses[usable]), groups)
            )
    if not beyond:
        reasons["flatness beyond loss"] = "no run has its loss, its spectrum and the outcome"
    effects, heterogeneity = intervention(frame, group)
    if not effects:
        reasons["flatness penalty"] = (
            "no two runs differ in the penalty alone: train the same settings and seed with and "
            "without it"
        )
    return Mediation(tuple(beyond), effects, heterogeneity, reasons)


def _beyond(
    measure: str,
    y: np.ndarray,
    x: np.ndarray,
    log_loss: np.ndarray,
    groups: Mapping[str, Sequence[str]],
) -> Beyond:
    layout = lay_out(groups, 1, numbers={"loss": log_loss})
    basis = layout.basis(layout.terms)
    return Beyond(
        measure,
        ("ln(loss)", *groups),
        len(y),
        partial_correlation(x, y, layout.basis([])),
        partial_correlation(x, y, basis),
    )


def partial_correlation(x: np.ndarray, y: np.ndarray, basis: np.ndarray) -> MethodEstimate:
    """Correlation of x and y [n] after a projection off `basis`, with Fisher's interval.

    `basis`: orthonormal, intercept included.

    >>> x = np.arange(8.0)
    >>> round(partial_correlation(x, x + [0, 1] * 4, np.full((8, 1), 8**-0.5)).value, 3)
    0.98
    """
    a, b = (values - basis @ (basis.T @ values) for values in (x, y))
    taken = basis.shape[1] - 1
    size = math.sqrt(float(a @ a) * float(b @ b))
    if len(x) - taken - 3 < 1 or size <= 1e-12 * math.sqrt(float(x @ x) * float(y @ y)):
        return MethodEstimate(
            math.nan, None, None, "Fisher z", "too few runs, or nothing is left to correlate"
        )
    r = cosine(a, b)
    if abs(r) >= 1:
        return MethodEstimate(r, None, None, "Fisher z", "the relation is exact")
    half = 1.959963984540054 / math.sqrt(len(x) - taken - 3)
    z = math.atanh(r)
    return MethodEstimate(r, math.tanh(z - half), math.tanh(z + half), "Fisher z")


def pairs(frame: Frame) -> list[tuple[int, int]]:
    """Rows (with, without) whose settings and seed are equal but for the flatness penalty."""
    if WEIGHT not in frame:
        return []
    dotted = [
        name
        for name in frame
        if isinstance(name, str) and "." in name and not name.startswith(_APART)
    ]
    texts = text_columns(frame, sorted({*dotted, *(name for name in _SETTINGS if name in frame)}))
    keys = ["\x1f".join(texts[name][row] for name in texts) for row in range(len(frame))]
    weights = np.nan_to_num(numbers(frame, WEIGHT))
    without = {key: row for row, key in reversed(list(enumerate(keys))) if weights[row] == 0}
    return [
        (row, without[key]) for row, key in enumerate(keys) if weights[row] != 0 and key in without
    ]


def intervention(
    frame: Frame, group: str = "optimizer"
) -> tuple[tuple[Paired, ...], dict[str, tuple[float, float | None]]]:
    """Paired effects by measure, optimiser and λ, and whether they differ between optimisers."""
    matched = pairs(frame)
    if not matched:
        return (), {}
    effects: list[Paired] = []
    heterogeneity: dict[str, tuple[float, float | None]] = {}
    names = text_columns(frame, [group])[group] if group in frame else ["all"] * len(frame)
    weights = np.nan_to_num(numbers(frame, WEIGHT))
    for measure in COMPARED:
        if measure not in frame:
            continue
        values = numbers(frame, measure)
        differences = [
            (a, b, float(values[a] - values[b]))
            for a, b in matched
            if np.isfinite(values[a] - values[b])
        ]
        averages: list[list[float]] = []
        for name in sorted({names[a] for a, _, _ in differences}):
            mine = [
                (float(weights[a]), b, difference)
                for a, b, difference in differences
                if names[a] == name
            ]
            by_weight, average = _effects(measure, name, mine)
            effects += by_weight
            averages.append(average)
        if (test := _equal(averages)) is not None:
            heterogeneity[measure] = test
    return tuple(effects), heterogeneity


def _effects(
    measure: str,
    optimizer: str,
    differences: Sequence[tuple[float, int, float]],
) -> tuple[list[Paired], list[float]]:
    """Effects under one optimiser, by λ and over all λ; and each baseline's average difference.

    `differences`: λ, the row of the baseline, with − without.
    """
    effects = []
    lambdas = sorted({weight for weight, _, _ in differences})
    for weight in lambdas:
        some = [difference for own, _, difference in differences if own == weight]
        effects.append(
            Paired(measure, optimizer, weight, len(some), mean_interval(some, "paired t"))
        )
    by_baseline: dict[int, list[float]] = {}
    for _, baseline, difference in differences:
        by_baseline.setdefault(baseline, []).append(difference)
    averages = [float(np.mean(some)) for some in by_baseline.values()]
    if len(lambdas) > 1:
        interval = mean_interval(averages, "paired t")
        effects.append(Paired(measure, optimizer, None, len(averages), interval))
    return effects, averages


def _equal(groups: Sequence[Sequence[float]]) -> tuple[float, float | None] | None:
    """F and p of a one-way analysis of variance.

    None if no group has two values, or there is one group.
    """
    every = np.concatenate([np.asarray(values) for values in groups]) if groups else np.zeros(0)
    df, residual_df = len(groups) - 1, len(every) - len(groups)
    within = sum(float(((np.asarray(values) - np.mean(values)) ** 2).sum()) for values in groups)
    if df < 1 or residual_df < 1 or within <= 0:
        return None
    between = float(((every - every.mean()) ** 2).sum()) - within
    f = between / df / (within / residual_df)
    return f, f_tail(f, df, residual_df)
