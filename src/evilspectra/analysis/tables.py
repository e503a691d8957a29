"""The tables behind the sentences of an analysis, as text: for terminal, page and Markdown.

Variance, loss, training, penalty, ranks, ways of counting; a table whose numbers the runs do not
allow is left out. Whoever shows them only lays them out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.analysis.claims import Claim, find
from evilspectra.analysis.equal_loss import Difference, EqualLoss
from evilspectra.analysis.loss import LossFit
from evilspectra.analysis.mediation import Mediation
from evilspectra.analysis.ranking import Pair, Ranking
from evilspectra.analysis.result import Analysis
from evilspectra.analysis.sentences import within
from evilspectra.analysis.sentences.flatness import effect_claim
from evilspectra.analysis.sentences.variance import term_is_shown
from evilspectra.analysis.stability import Stability
from evilspectra.analysis.trajectory import Trajectory
from evilspectra.analysis.variance import Decomposition
from evilspectra.numbers import (
    DASH,
    bracketed,
    figure,
    minus,
    number,
    p_value,
    percent,
    probability,
)


@dataclass(frozen=True)
class StatisticsTable:
    """A table of text; the first column names the row, the others are numbers.

    `notes`: whole sentences below the table.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Column:
    """A heading and its cell of a record; `detailed`: only in detailed tables."""

    heading: str
    cell: Callable[[Any], str]
    detailed: bool = False


def statistics_tables(analysis: Analysis, detailed: bool = False) -> Iterator[StatisticsTable]:
    """The tables of an analysis, most general first.

    `detailed`: with sums of squares, adjusted R², ranges of loss, counts of pairs and every note.
    """
    if analysis.variance:
        yield from _variance(analysis, analysis.variance, detailed)
    if analysis.loss_fit:
        yield _lines(analysis, analysis.loss_fit, detailed)
        equal_loss = analysis.loss_fit.equal_loss
        if equal_loss.differences or equal_loss.matched:
            yield _equal_loss(analysis, equal_loss, detailed)
    if analysis.training:
        yield _training(analysis.training)
    if analysis.mediation:
        yield from _penalty_and_flatness(analysis, analysis.mediation)
    if analysis.stability.ranking:
        yield _ranking(analysis.stability.ranking)
        yield _pairs(analysis, analysis.stability.ranking)
    if analysis.stability.variants:
        yield _variants(analysis.stability, analysis.group, detailed)


def spelled(text: str) -> str:
    """Columns as a reader spells them; settings keep their dotted names.

    >>> spelled("Optimizer × flatness_weight"), spelled("optimizer.lr")
    ('Optimiser × flatness weight', 'optimizer.lr')
    """
    text = re.sub(r"(?<![\w.])(o|O)ptimizer(?!\.\w|\w)", r"\1ptimiser", text)
    return re.sub(r"(?<![\w.])((?:F|f)latness|(?:B|b)atch)_(weight|size)", r"\1 \2", text)


def _table(
    title: str,
    columns: Sequence[_Column],
    records: Sequence[Any],
    notes: Sequence[str] = (),
    detailed: bool = False,
) -> StatisticsTable:
    """A table with a row per record."""
    columns = [column for column in columns if detailed or not column.detailed]
    return StatisticsTable(
        title,
        tuple(column.heading for column in columns),
        tuple(tuple(column.cell(record) for column in columns) for record in records),
        tuple(notes),
    )


def _adjusted_p(claim: Claim | None) -> str:
    """A claim's p-value over the page, or why there is none."""
    if claim is None or claim.adjusted is None:
        return "not tested"
    return p_value(claim.adjusted, ".3f")


def _is_shown(claim: Claim | None) -> str:
    return _yes(claim is not None and claim.shown)


def _decision(of: Callable[[Any], Claim | None]) -> list[_Column]:
    """The two columns of a decision over the page."""
    return [
        _Column("adjusted p", lambda record: _adjusted_p(of(record))),
        _Column("shown", lambda record: _is_shown(of(record))),
    ]


def _variance(
    analysis: Analysis, variance: Decomposition, detailed: bool
) -> Iterator[StatisticsTable]:
    adjusted = _adjusted(variance.r2_adjusted) if detailed else ""
    notes = [f"R² {variance.r2:.3f}{adjusted}, {variance.residual_df} degrees of freedom left."]
    notes += [f"{text[0].upper()}{text[1:]}." for text in variance.notes]
    if detailed and not variance.type3:
        notes.append(f"No type III table: {variance.no_type3}.")
    effects = [
        _Column("term", lambda effect: spelled(effect.term)),
        _Column("df", lambda effect: str(effect.df)),
        _Column("SS", lambda effect: figure(effect.ss), detailed=True),
        _Column("F", lambda effect: DASH if effect.p is None else figure(effect.f)),
        _Column("p, equal spreads", lambda effect: probability(effect.p), detailed=True),
        _Column("p by permutation", lambda effect: probability(effect.permutation), detailed=True),
        _Column("partial η²", lambda effect: bracketed(effect.eta, percent)),
        _Column("partial ω²", lambda effect: _number(effect.omega)),
    ]
    share = _Column("LMG share", lambda effect: _share(variance.lmg, effect.term))
    decision = _Column("shown", lambda effect: _yes(term_is_shown(analysis, effect.term)))
    columns = [*effects, share, decision]
    yield _table("Variance, type II", columns, variance.type2, notes, detailed)
    if variance.type3:
        yield _table("Variance, type III", effects, variance.type3, detailed=detailed)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _share(shares: Mapping[str, float], term: str) -> str:
    return number(shares.get(term), percent, DASH)


def _lines(analysis: Analysis, fit: LossFit, detailed: bool) -> StatisticsTable:
    columns = [
        _Column(
            spelled(fit.group),
            lambda line: "all runs" if line is fit.pooled else line.group,
        ),
        _Column("runs", lambda line: str(line.n)),
        _Column("R²", lambda line: within(line.r2)),
        _Column("adjusted", lambda line: _number(line.r2_adjusted), detailed=True),
        _Column("slope", lambda line: within(line.slope, True)),
        _Column("at loss 1", lambda line: within(line.intercept)),
        _Column("losses", lambda line: f"{line.low:.3g} to {line.high:.3g}", detailed=True),
    ]
    separate = f"{fit.separate_r2:.3f}{_adjusted(fit.separate_adjusted)}"
    common = f"{fit.common_r2:.3f}{_adjusted(fit.common_adjusted)}"
    notes = [
        f"Stratified by {spelled(fit.group)}: R² {separate} with separate slopes, {common} with a"
        f" common slope ({within(fit.common_slope, True)})."
    ]
    if detailed:
        notes += [f"{text[0].upper()}{text[1:]}." for text in fit.notes]
    title = f"{analysis.label[0].upper()}{analysis.label[1:]} on ln({_plain(analysis.loss)})"
    return _table(title, columns, (*fit.lines, fit.pooled), notes, detailed)


def _adjusted(value: float | None) -> str:
    return "" if value is None else f" (adjusted {value:.3f})"


def _number(value: float | None) -> str:
    return DASH if value is None or math.isnan(value) else minus(f"{value:.3f}")


def _equal_loss(analysis: Analysis, equal_loss: EqualLoss, detailed: bool) -> StatisticsTable:
    by_fit, matched = (
        {(pair.first, pair.second): pair for pair in pairs}
        for pairs in (equal_loss.differences, equal_loss.matched)
    )

    def of(pairs: Mapping[Any, Difference], text: Callable[[Difference], str], none: str = DASH):
        """The cell of a pair's difference in one of the two comparisons."""
        return lambda pair: text(pairs[pair]) if pair in pairs else none

    def claim_of(section: str) -> Callable[[Any], Claim | None]:
        return lambda pair: find(analysis.claims, section, *pair)

    columns = [
        _Column("pair", " − ".join),
        _Column("by fit", of(by_fit, lambda pair: within(pair.difference, True))),
        _Column("at loss", of(by_fit, lambda pair: _figure(pair.loss)), detailed=True),
        *_decision(claim_of("equal loss")),
        _Column("by matched pairs", of(matched, lambda pair: within(pair.difference, True))),
        _Column("shown", lambda pair: _is_shown(claim_of("matched")(pair))),
        _Column("pairs", of(matched, lambda pair: str(pair.pairs), "0")),
        _Column("Δ ln(loss)", of(matched, _loss_apart), detailed=True),
    ]
    notes = []
    if equal_loss.loss is not None:
        loss = figure(equal_loss.loss)
        notes.append(f"At a loss of {loss}; matched runs differ by at most 0.1 in ln(loss).")
    pairs = list(dict.fromkeys([*by_fit, *matched]))
    return _table("At equal loss", columns, pairs, notes, detailed)


def _figure(value: float | None) -> str:
    return DASH if value is None else figure(value)


def _loss_apart(pair: Difference) -> str:
    return DASH if pair.loss_apart is None else minus(f"{pair.loss_apart:+.3f}")


def _training(training: Trajectory) -> StatisticsTable:
    group = spelled(training.group)
    columns = [
        _Column("step", lambda moment: f"{moment.step:g}"),
        _Column("runs", lambda moment: str(moment.n)),
        _Column(f"{group}, given loss", lambda moment: bracketed(moment.given_loss, percent)),
        _Column(f"loss, given {group}", lambda moment: bracketed(moment.given_group, percent)),
        _Column("ln ratio", lambda moment: within(moment.advantage, True)),
    ]
    return _table("Partial R² while training", columns, training.moments)


def _penalty_and_flatness(analysis: Analysis, mediation: Mediation) -> Iterator[StatisticsTable]:
    if mediation.penalty.effects:
        columns = [
            _Column(
                "outcome",
                lambda paired: f"{paired.optimizer}, {paired.treatment}: {_plain(paired.measure)}",
            ),
            _Column("pairs", lambda paired: str(paired.pairs)),
            _Column("difference", lambda paired: within(paired.difference, True)),
            *_decision(lambda paired: effect_claim(analysis, paired)),
        ]
        yield _table("Flatness penalty, with − without", columns, mediation.penalty.effects)
    if mediation.beyond:
        columns = [
            _Column("measure", lambda beyond: _plain(beyond.measure)),
            _Column("runs", lambda beyond: str(beyond.n)),
            _Column("alone", lambda beyond: within(beyond.simple, True)),
            _Column("partial", lambda beyond: within(beyond.partial, True)),
            _Column("given", lambda beyond: ", ".join(map(spelled, beyond.given))),
            *_decision(lambda beyond: find(analysis.claims, "flatness", beyond.measure)),
        ]
        yield _table("Flatness and outcome, correlations", columns, mediation.beyond)


def _ranking(ranking: Ranking) -> StatisticsTable:
    factor = spelled(ranking.factor)
    columns = [
        _Column(factor, lambda ranked: ranked.group),
        _Column("mean", lambda ranked: within(ranked.mean)),
        _Column("rank", lambda ranked: str(ranked.rank)),
        _Column(
            "95 %, for all at once",
            lambda ranked: " to ".join(map(str, dict.fromkeys((ranked.low, ranked.high)))),
        ),
    ]
    return _table(f"Ranking by {factor}", columns, ranking.groups)


def _pairs(analysis: Analysis, ranking: Ranking) -> StatisticsTable:
    """Each pair's difference, and with a margin whether it is shown to be smaller than that."""
    columns = [
        _Column("pair", " − ".join),
        _Column("difference", lambda pair: within(ranking.differences[pair], True)),
        _Column("method", lambda pair: ranking.differences[pair].method, detailed=True),
        *_decision(lambda pair: find(analysis.claims, "ranking", *pair)),
    ]
    if ranking.margin is not None:
        heading = f"less than {figure(ranking.margin)}"
        columns.append(_Column(heading, lambda pair: _yes(pair in ranking.equal)))
    family = _family(analysis)
    notes = [f"Adjusted over the {family} claims of this page."] if family > 1 else []
    if ranking.reversals:
        columns.append(_Column("unscored to reverse", lambda pair: _reversal(ranking, pair)))
        notes.append(
            "Unscored to reverse: the share of the unscored answers that makes the pooled rates "
            "equal, counted as misaligned in the safer group and as aligned in the other."
        )
    title = f"Differences between levels of {spelled(ranking.factor)}"
    return _table(title, columns, list(ranking.differences), notes)


def _reversal(ranking: Ranking, pair: Pair) -> str:
    if pair not in ranking.reversals:
        return DASH
    share = ranking.reversals[pair]
    return "none could" if share is None else f"{figure(100 * share)} %"


def _family(analysis: Analysis) -> int:
    return max((claim.family for claim in analysis.claims), default=0)


def _variants(stability: Stability, group: str | None, detailed: bool) -> StatisticsTable:
    columns = [
        _Column("judge, definition", lambda variant: variant.variant),
        _Column("runs", lambda variant: str(variant.runs)),
        _Column("order", lambda variant: " > ".join(variant.order)),
        _Column("pairs shown", lambda variant: str(len(variant.shown)), detailed=True),
        _Column(
            f"partial η² of {spelled(group or '')}", lambda variant: bracketed(variant.eta, percent)
        ),
    ]
    return _table("Other ways of counting", columns, stability.variants, detailed=detailed)


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("heldout", "held-out")
