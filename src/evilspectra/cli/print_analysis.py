"""An analysis as text on a terminal: the sentences, then tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from evilspectra.analysis.equal_loss import Difference
from evilspectra.analysis.estimate import MethodEstimate, missing
from evilspectra.analysis.loss import LossFit
from evilspectra.analysis.mediation import Paired
from evilspectra.analysis.result import Analysis
from evilspectra.analysis.sentences import paragraphs, within
from evilspectra.analysis.stability import Ranking, Variant
from evilspectra.analysis.trajectory import Trajectory
from evilspectra.analysis.variance import Decomposition, Effect
from evilspectra.numbers import bracketed, figure, number, p_value, percent

_WIDTH = 120


def print_analysis(
    analysis: Analysis, console: Console | None = None, by_checkpoint: bool = False
) -> None:
    """Print the sentences, then each part as a table.

    For a part that the data do not allow, a sentence gives the reason.
    """
    console = console or Console()
    console.width = max(console.width, _WIDTH)
    _print(
        console,
        f"{analysis.runs} runs · outcome: {analysis.label} · "
        f"factors: {', '.join(analysis.factors) or 'none'} · intervals: 95 %",
    )
    for topic, texts in paragraphs(analysis.sentences).items():
        _print(console, f"\n{topic}")
        for text in texts:
            _print(console, f"  {text}")
    if analysis.variance:
        _print_variance(console, analysis.variance)
    if analysis.loss_fit:
        title = f"{analysis.label} on ln({analysis.loss})"
        _print_loss(console, analysis.loss_fit, title)
    if analysis.training and by_checkpoint:
        _print_training(console, analysis.training)
    if analysis.mediation and analysis.mediation.effects:
        _print_penalty(console, analysis.mediation.effects)
    if analysis.stability.ranking:
        _print_ranking(console, analysis.stability.ranking)
    if analysis.stability.variants:
        _print_variants(console, analysis.stability.variants, analysis.group)


def _print_variance(console: Console, variance: Decomposition) -> None:
    _table(console, "Variance, type II", *_effects(variance.type2, variance.lmg))
    if variance.type3:
        _table(console, "Variance, type III", *_effects(variance.type3, {}))
    else:
        _print(console, f"\nNo type III table: {variance.no_type3}.")
    _print(
        console,
        f"R² {variance.r2:.3f}, adjusted {_number(variance.r2_adjusted)}; "
        f"{variance.residual_df} degrees of freedom are left.",
    )
    for note in variance.notes:
        _print(console, f"Note: {note}.")


def _print_loss(console: Console, fit: LossFit, title: str) -> None:
    rows = [
        [
            line.group,
            str(line.n),
            _ends(line.r2),
            _number(line.r2_adjusted),
            _ends(line.slope, True),
            _ends(line.intercept),
            f"{line.low:.3g} to {line.high:.3g}",
        ]
        for line in (*fit.lines, fit.pooled)
    ]
    heads = [fit.group, "runs", "R²", "adjusted", "slope", "at loss 1", "losses"]
    _table(console, title, heads, rows)
    separate = f"R² {fit.separate_r2:.3f}, adjusted {_number(fit.separate_adjusted)}"
    common = f"R² {fit.common_r2:.3f}, adjusted {_number(fit.common_adjusted)}"
    _print(
        console,
        f"Stratified by {fit.group}: {separate} with separate slopes; {common} with a common slope "
        f"({within(fit.common_slope, True)}).",
    )
    for note in fit.notes:
        _print(console, f"Note: {note}.")
    equal = fit.equal_loss
    if equal.differences:
        heads = ["pair", "by fit", "at loss", "p (Holm)", "by matched pairs", "pairs", "Δ ln(loss)"]
        _table(console, "At equal loss", heads, _differences(equal.differences, equal.matched))


def _print_training(console: Console, training: Trajectory) -> None:
    group = training.group
    rows = [
        [
            f"{moment.step:g}",
            str(moment.n),
            bracketed(moment.given_loss, percent),
            bracketed(moment.given_group, percent),
            within(moment.advantage, True),
        ]
        for moment in training.moments
    ]
    heads = ["step", "runs", f"{group} given loss", f"loss given {group}", "advantage"]
    _table(console, f"By checkpoint: partial R² of {group} and of the loss", heads, rows)


def _print_penalty(console: Console, effects: Sequence[Paired]) -> None:
    rows = [
        [
            effect.measure,
            effect.optimizer,
            number(effect.weight, "g", "all"),
            str(effect.pairs),
            within(effect.difference, True),
        ]
        for effect in effects
    ]
    heads = ["outcome", "optimizer", "λ", "pairs", "difference"]
    _table(console, "Flatness penalty, with − without", heads, rows)


def _print_ranking(console: Console, ranking: Ranking) -> None:
    rows = [
        [ranked.group, within(ranked.mean), str(ranked.rank), f"{ranked.low} to {ranked.high}"]
        for ranked in ranking.groups
    ]
    heads = [ranking.factor, "mean", "rank", "95 % for all"]
    _table(console, f"Ranking of {ranking.factor}", heads, rows)


def _print_variants(console: Console, variants: Sequence[Variant], group: str | None) -> None:
    rows = [
        [
            variant.variant,
            str(variant.runs),
            " > ".join(variant.order),
            str(len(variant.shown)),
            bracketed(variant.eta, percent),
        ]
        for variant in variants
    ]
    heads = ["judge, definition", "runs", "order", "pairs shown", f"partial η² of {group}"]
    _table(console, "Ways of counting", heads, rows)


def _effects(effects: Sequence[Effect], lmg: dict[str, float]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table of effects, with a column of LMG shares if there are any."""
    heads = ["term", "df", "SS", "F", "p", "p, permuted", "partial η²", "partial ω²"]
    rows = [
        [
            effect.term,
            str(effect.df),
            figure(effect.ss),
            "-" if effect.p is None else figure(effect.f),
            p_value(effect.p),
            p_value(effect.permutation),
            bracketed(effect.eta, percent),
            _number(effect.omega),
        ]
        for effect in effects
    ]
    if not lmg:
        return heads, rows
    shares = [number(lmg.get(effect.term), ".1%") for effect in effects]
    return [*heads, "LMG share"], [[*row, share] for row, share in zip(rows, shares, strict=True)]


def _differences(fitted: Sequence[Difference], matched: Sequence[Difference]) -> list[list[str]]:
    by_pair = {(difference.first, difference.second): difference for difference in matched}
    rows = []
    for difference in fitted:
        paired = ["-", "0", "-"]
        if pair := by_pair.get((difference.first, difference.second)):
            apart = number(pair.loss_apart, "+.3f")
            paired = [_ends(pair.difference, True), str(pair.pairs), apart]
        rows.append(
            [
                f"{difference.first} − {difference.second}",
                _ends(difference.difference, True),
                number(difference.loss, ".3g"),
                p_value(difference.p),
                *paired,
            ]
        )
    return rows


def _ends(estimate: MethodEstimate, plus: bool = False) -> str:
    """A cell of a table: without the reason if there is no interval."""
    if estimate.low is not None:
        return within(estimate, plus)
    return "-" if math.isnan(estimate.value) else figure(estimate.value)


def _number(value: float | None) -> str:
    return number(None if missing(value) else value, ".3f")


def _table(
    console: Console,
    title: str,
    heads: Iterable[str],
    rows: Iterable[Iterable[str]],
) -> None:
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=title,
        title_justify="left",
        title_style="bold",
    )
    for column, head in enumerate(heads):
        table.add_column(head, justify="left" if column == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table, no_wrap=True, crop=False, markup=False, highlight=False)


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
