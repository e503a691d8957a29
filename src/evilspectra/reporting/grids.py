"""The tables behind the sentences of statistics, as text: variance, loss, training, penalty, ranks.

A table whose numbers the runs do not allow is left out. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evilspectra.analysis.loss import EqualLoss, LossFit
from evilspectra.analysis.mediation import Mediation
from evilspectra.analysis.result import Analysis
from evilspectra.analysis.sentences import within
from evilspectra.analysis.stability import Ranking, Stability
from evilspectra.analysis.trajectory import Trajectory
from evilspectra.analysis.variance import Decomposition, Effect
from evilspectra.numbers import DASH, bracketed, figure, minus, number, percent, probability

_VARIANCE = ("term", "df", "F", "p", "p by permutation", "partial η²", "partial ω²", "LMG share")


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column names the row, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def grids(analysis: Analysis) -> Iterator[Grid]:
    """The tables of an analysis, in the order of the page."""
    if analysis.variance:
        yield from _variance(analysis.variance)
    if analysis.loss_fit:
        yield _lines(analysis, analysis.loss_fit)
        if analysis.loss_fit.equal_loss.differences:
            yield _equal_loss(analysis.loss_fit.equal_loss)
    if analysis.training:
        yield _training(analysis.training)
    if analysis.mediation:
        yield from _penalty_and_flatness(analysis.mediation)
    if analysis.stability.ranking:
        yield _ranking(analysis.stability.ranking)
    if analysis.stability.variants:
        yield _variants(analysis.stability, analysis.group)


def spelled(text: str) -> str:
    """Columns as a reader spells them; settings keep their dotted names.

    >>> spelled("Optimizer × flatness_weight"), spelled("optimizer.lr")
    ('Optimiser × flatness weight', 'optimizer.lr')
    """
    text = re.sub(r"(?<![\w.])(o|O)ptimizer(?!\.\w|\w)", r"\1ptimiser", text)
    return re.sub(r"(?<![\w.])((?:F|f)latness|(?:B|b)atch)_(weight|size)", r"\1 \2", text)


def _variance(variance: Decomposition) -> Iterator[Grid]:
    note = f"R² {variance.r2:.3f}, {variance.residual_df} degrees of freedom left."
    note += "".join(f" {text[0].upper()}{text[1:]}." for text in variance.notes)
    rows = tuple(_effect(effect, variance.lmg) for effect in variance.type2)
    yield Grid("Variance, type II", _VARIANCE, rows, note)
    if variance.type3:
        rows = tuple(_effect(effect, {})[:-1] for effect in variance.type3)
        yield Grid("Variance, type III", _VARIANCE[:-1], rows)


def _effect(effect: Effect, lmg: Mapping[str, float]) -> tuple[str, ...]:
    return (
        spelled(effect.term),
        str(effect.df),
        figure(effect.f),
        probability(effect.p),
        probability(effect.permutation),
        bracketed(effect.eta, percent),
        minus(f"{effect.omega:.3f}"),
        number(lmg.get(effect.term), percent, DASH),
    )


def _lines(analysis: Analysis, fit: LossFit) -> Grid:
    rows = [
        (
            "all runs" if line is fit.pooled else line.group,
            str(line.n),
            within(line.r2),
            within(line.slope, True),
            within(line.intercept),
        )
        for line in (*fit.lines, fit.pooled)
    ]
    separate = f"{fit.separate_r2:.3f}{_adjusted(fit.separate_adjusted)}"
    common = f"{fit.common_r2:.3f}{_adjusted(fit.common_adjusted)}"
    note = (
        f"Stratified by {spelled(fit.group)}: R² {separate} with separate slopes, {common} with a"
        f" common slope ({within(fit.common_slope, True)})."
    )
    title = f"{analysis.label[0].upper()}{analysis.label[1:]} on ln({_plain(analysis.loss)})"
    return Grid(title, (spelled(fit.group), "runs", "R²", "slope", "at loss 1"), tuple(rows), note)


def _adjusted(value: float | None) -> str:
    return "" if value is None else f" (adjusted {value:.3f})"


def _equal_loss(equal_loss: EqualLoss) -> Grid:
    matched = {(pair.first, pair.second): pair for pair in equal_loss.matched}
    rows = []
    for by_fit in equal_loss.differences:
        by_pairs = matched.get((by_fit.first, by_fit.second))
        rows.append(
            (
                f"{by_fit.first} − {by_fit.second}",
                within(by_fit.difference, True),
                probability(by_fit.p),
                within(by_pairs.difference, True) if by_pairs else DASH,
                str(by_pairs.pairs) if by_pairs else "0",
            )
        )
    note = ""
    if equal_loss.loss is not None:
        loss = figure(equal_loss.loss)
        note = f"At a loss of {loss}; matched runs differ by at most 0.1 in ln(loss)."
    columns = ("pair", "by fit", "p (Holm)", "by matched pairs", "pairs")
    return Grid("At equal loss", columns, tuple(rows), note)


def _training(training: Trajectory) -> Grid:
    group = spelled(training.group)
    rows = tuple(
        (
            f"{moment.step:g}",
            str(moment.n),
            bracketed(moment.given_loss, percent),
            bracketed(moment.given_group, percent),
            within(moment.advantage, True),
        )
        for moment in training.moments
    )
    columns = ("step", "runs", f"{group}, given loss", f"loss, given {group}", "ln ratio")
    return Grid("Partial R² while training", columns, rows, training.warning or "")


def _penalty_and_flatness(mediation: Mediation) -> Iterator[Grid]:
    if mediation.effects:
        rows = tuple(
            (
                f"{paired.optimizer}, λ {_weight(paired.weight)}: {_plain(paired.measure)}",
                str(paired.pairs),
                within(paired.difference, True),
            )
            for paired in mediation.effects
        )
        title = "Flatness penalty, with − without"
        yield Grid(title, ("outcome", "pairs", "difference"), rows)
    if mediation.beyond:
        rows = tuple(
            (
                _plain(beyond.measure),
                str(beyond.n),
                within(beyond.simple, True),
                within(beyond.partial, True),
                ", ".join(map(spelled, beyond.given)),
            )
            for beyond in mediation.beyond
        )
        columns = ("measure", "runs", "alone", "partial", "given")
        yield Grid("Flatness and outcome, correlations", columns, rows)


def _weight(weight: float | None) -> str:
    return number(weight, "g", "all")


def _ranking(ranking: Ranking) -> Grid:
    rows = tuple(
        (
            ranked.group,
            within(ranked.mean),
            str(ranked.rank),
            " to ".join(map(str, dict.fromkeys((ranked.low, ranked.high)))),
        )
        for ranked in ranking.groups
    )
    factor = spelled(ranking.factor)
    return Grid(f"Ranking by {factor}", (factor, "mean", "rank", "95 %, for all at once"), rows)


def _variants(stability: Stability, group: str | None) -> Grid:
    rows = tuple(
        (
            variant.variant,
            str(variant.runs),
            " > ".join(variant.order),
            bracketed(variant.eta, percent),
        )
        for variant in stability.variants
    )
    columns = ("judge, definition", "runs", "order", f"partial η² of {spelled(group or '')}")
    return Grid("Other ways of counting", columns, rows)


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("heldout", "held-out")
