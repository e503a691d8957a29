"""An analysis as text on a terminal: tables, then the sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from evilspectra.analysis.estimate import Estimate
from evilspectra.analysis.loss import Difference
from evilspectra.analysis.result import Analysis
from evilspectra.analysis.sentences import figure, paragraphs, percent, within
from evilspectra.analysis.variance import Effect

_WIDTH = 120


def print_analysis(
    found: Analysis, console: Console | None = None, by_checkpoint: bool = False
) -> None:
    """The headline in words, then each part as a table; parts that the data cannot tell give their reason in the words."""
    console = console or Console()
    console.width = max(console.width, _WIDTH)
    _say(
        console,
        f"{found.runs} runs · outcome: {found.label} · factors: {', '.join(found.factors) or 'none'} · intervals: 95 %",
    )
    for topic, texts in paragraphs(found.sentences).items():
        _say(console, f"\n{topic}")
        for text in texts:
            _say(console, f"  {text}")
    if found.variance:
        _table(console, "Variance, type II", *_effects(found.variance.type2, found.variance.lmg))
        if found.variance.type3:
            _table(console, "Variance, type III", *_effects(found.variance.type3, {}))
        else:
            _say(console, f"\nNo type III table: {found.variance.no_type3}.")
        _say(
            console,
            f"R² {found.variance.r2:.3f}, adjusted {_number(found.variance.r2_adjusted)}; {found.variance.residual_df} degrees of freedom are left.",
        )
        for note in found.variance.notes:
            _say(console, f"Note: {note}.")
    if found.loss_fit:
        fit = found.loss_fit
        rows = [
            [
                one.group,
                str(one.n),
                _ends(one.r2),
                _number(one.r2_adjusted),
                _ends(one.slope, True),
                _ends(one.intercept),
                f"{one.low:.3g} to {one.high:.3g}",
            ]
            for one in (*fit.lines, fit.pooled)
        ]
        _table(
            console,
            f"{found.label} on ln({found.loss})",
            [fit.group, "runs", "R²", "adjusted", "slope", "at loss 1", "losses"],
            rows,
        )
        separate, common = (
            f"R² {r2:.3f}, adjusted {_number(adjusted)}"
            for r2, adjusted in (
                (fit.separate_r2, fit.separate_adjusted),
                (fit.common_r2, fit.common_adjusted),
            )
        )
        _say(
            console,
            f"Stratified by {fit.group}: {separate} with separate slopes; {common} with a common slope ({within(fit.common_slope, True)}).",
        )
        for note in fit.notes:
            _say(console, f"Note: {note}.")
        if fit.equal_loss.differences:
            _table(
                console,
                "At equal loss",
                [
                    "pair",
                    "by fit",
                    "at loss",
                    "p (Holm)",
                    "by matched pairs",
                    "pairs",
                    "Δ ln(loss)",
                ],
                _differences(fit.equal_loss.differences, fit.equal_loss.matched),
            )
    if found.training and by_checkpoint:
        rows = [
            [
                f"{one.step:g}",
                str(one.n),
                percent(one.given_loss),
                percent(one.given_group),
                within(one.advantage, True),
            ]
            for one in found.training.moments
        ]
        _table(
            console,
            f"By checkpoint: partial R² of {found.training.group} and of the loss",
            [
                "step",
                "runs",
                f"{found.training.group} given loss",
                f"loss given {found.training.group}",
                "advantage",
            ],
            rows,
        )
    if found.mediation and found.mediation.effects:
        rows = [
            [
                one.measure,
                one.optimizer,
                "all" if one.weight is None else f"{one.weight:g}",
                str(one.pairs),
                within(one.difference, True),
            ]
            for one in found.mediation.effects
        ]
        _table(
            console,
            "Flatness penalty, with − without",
            ["outcome", "optimizer", "λ", "pairs", "difference"],
            rows,
        )
    if found.stability.ranking:
        rows = [
            [one.group, within(one.mean), str(one.rank), f"{one.low} to {one.high}"]
            for one in found.stability.ranking.groups
        ]
        _table(
            console,
            f"Ranking of {found.stability.ranking.factor}",
            [found.stability.ranking.factor, "mean", "rank", "95 % for all"],
            rows,
        )
    if found.stability.variants:
        rows = [
            [
                one.variant,
                str(one.runs),
                " > ".join(one.order),
                str(len(one.shown)),
                percent(one.eta),
            ]
            for one in found.stability.variants
        ]
        _table(
            console,
            "Ways of counting",
            ["judge, definition", "runs", "order", "pairs shown", f"partial η² of {found.group}"],
            rows,
        )


def _effects(effects: Sequence[Effect], lmg: dict[str, float]) -> tuple[list[str], list[list[str]]]:
    heads = [
        "term",
        "df",
        "SS",
        "F",
        "p",
        "p, permuted",
        "partial η²",
        "partial ω²",
        *(["LMG share"] if lmg else []),
    ]
    rows = [
        [
            one.term,
            str(one.df),
            figure(one.ss),
            "-" if one.p is None else figure(one.f),
            _p(one.p),
            _p(one.permutation),
            percent(one.eta),
            _number(one.omega),
        ]
        for one in effects
    ]
    return heads, [
        [*row, f"{lmg[row[0]]:.1%}" if row[0] in lmg else "-"] if lmg else row for row in rows
    ]


def _differences(fitted: Sequence[Difference], matched: Sequence[Difference]) -> list[list[str]]:
    by_pair = {(one.first, one.second): one for one in matched}
    rows = []
    for one in fitted:
        pair = by_pair.get((one.first, one.second))
        paired = (
            [
                _ends(pair.difference, True),
                str(pair.pairs),
                "-" if pair.loss_apart is None else f"{pair.loss_apart:+.3f}",
            ]
            if pair
            else ["-", "0", "-"]
        )
        rows.append(
            [
                f"{one.first} − {one.second}",
                _ends(one.difference, True),
                "-" if one.loss is None else f"{one.loss:.3g}",
                _p(one.p),
                *paired,
            ]
        )
    return rows


def _ends(one: Estimate, plus: bool = False) -> str:
    """A cell of a table: without the reason where there is no interval."""
    return (
        within(one, plus)
        if one.low is not None
        else "-"
        if one.value != one.value
        else figure(one.value)
    )


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value >= 0.001 else "< 0.001"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


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
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table, no_wrap=True, crop=False, markup=False, highlight=False)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
