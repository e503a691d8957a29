"""Flatness as a mediator: partial correlations with the outcome, and the penalty's effect.

A partial correlation is that of the residuals of both after a regression on ln(loss) and the
groups; its interval is Fisher's, tanh(artanh r ± 1.96/√(n − k − 3)), k being the number of columns
projected out. Fisher's interval needs one spread for all runs; whether a correlation is shown is
decided by the slope of the outcome on the measure in the same model, in which every group has a
spread of its own (module `contrasts`). It does not show cause; the penalty's effect (module
`penalty`) does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.contrasts import fit
from evilspectra.analysis.estimate import Frame, MethodEstimate
from evilspectra.analysis.linear import independent, is_rounding, orthonormal, text_columns
from evilspectra.analysis.outcome import Outcome, numbers
from evilspectra.analysis.penalty import Penalty, penalty
from evilspectra.rates.calibrate import cosine

#: Measures of flatness.
SPECTRAL = ("stable_rank", "spectral_entropy", "frobenius_nuclear", "condition_number")


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
class Mediation:
    """Association and effect of flatness.

    `beyond`: by measure; `penalty`: its effects. `reasons`: part → why it could not be estimated.
    """

    beyond: tuple[Beyond, ...]
    penalty: Penalty
    reasons: dict[str, str]


def mediation(
    frame: Frame,
    outcome: Outcome,
    loss: str,
    group: str = "optimizer",
) -> Mediation:
    """Both for the outcome of the frame's runs."""
    reasons: dict[str, str] = {}
    beyond = []
    for measure in SPECTRAL:
        if measure == outcome.name or measure not in frame:
            continue
        x = numbers(frame, measure)
        if measure == "condition_number":
            x = np.log(np.maximum(x, 1.0))
        losses = numbers(frame, loss) if loss in frame else np.full(len(frame), np.nan)
        usable = np.isfinite(x) & np.isfinite(losses) & (losses > 0)
        if usable.sum() and not is_rounding(x[usable] - x[usable].mean(), x[usable]):
            groups = text_columns(frame[usable], [group])[group] if group in frame else None
            own = outcome.take(usable)
            beyond.append(_beyond(measure, own, x[usable], np.log(losses[usable]), group, groups))
    if not beyond:
        reasons["flatness beyond loss"] = "no run has its loss, its spectrum and the outcome"
    effects = penalty(frame, group)
    if not effects.effects:
        reasons["flatness penalty"] = (
            "no two runs differ in the penalty alone: train the same settings and seed with and "
            "without it"
        )
    return Mediation(tuple(beyond), effects, reasons)


def flatness_claims(result: Mediation) -> Iterator[Claim]:
    """The claims that a measure of flatness says something beyond the loss and the groups."""
    for beyond in result.beyond:
        partial = beyond.partial
        yield Claim(
            "flatness", (beyond.measure,), partial.value, partial.p, partial.method, partial.note
        )


def _beyond(
    measure: str,
    outcome: Outcome,
    x: np.ndarray,
    log_loss: np.ndarray,
    group: str,
    groups: Sequence[str] | None,
) -> Beyond:
    names = sorted(set(groups or ()))
    several = len(names) > 1
    levels = np.array([names.index(name) for name in groups or ()] if several else [0] * len(x))
    member = np.eye(len(names))[levels] if several else np.ones((len(x), 1))
    columns = independent(np.hstack([member, log_loss[:, None], x[:, None] / x.std()]))
    adjusted = ("ln(loss)", *((group,) if several else ()))
    if columns.shape[1] < member.shape[1] + 2 or len(x) <= columns.shape[1]:
        note = "the groups and the loss already determine it"
        none = MethodEstimate(math.nan, None, None, "Fisher z", note)
        return Beyond(measure, adjusted, len(x), none, none)
    model = fit(outcome, columns, levels)
    slope = model.contrast(np.eye(columns.shape[1])[-1])
    root = np.sqrt(model.weights)
    y, weighted_x = root * (model.response - model.response.mean()), root * x
    ones, others = root[:, None], root[:, None] * columns[:, :-1]
    partial = partial_correlation(weighted_x, y, orthonormal(others))
    return Beyond(
        measure,
        adjusted,
        len(x),
        partial_correlation(weighted_x, y, orthonormal(ones)),
        replace(partial, p=slope.p if partial.low is not None else None),
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
