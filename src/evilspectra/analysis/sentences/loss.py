"""Sentences on loss and outcome: lines, equal loss, and the course of training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from evilspectra.analysis.equal_loss import Difference
from evilspectra.analysis.loss import LossFit, Test
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import PAPER_OUTCOMES, capitalised, outcome_name, within
from evilspectra.analysis.trajectory import Moment, Trajectory
from evilspectra.numbers import bracketed, figure, percent, probability

#: Most pairs that a sentence lists.
_MOST = 6


def loss_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on R², slopes, and the group beyond the loss; or the reason why there are none."""
    fit = analysis.loss_fit
    name = outcome_name(analysis)
    if fit is None:
        if "loss" in analysis.reasons and not analysis.is_constant:
            yield Sentence(
                "loss",
                f"How {name} goes with the loss cannot be said: {analysis.reasons['loss']}.",
            )
        return
    yield _on_r2(name, fit)
    yield _on_slope(analysis, fit)
    yield from _on_test(fit.group, fit.slopes_equal, "that the slopes differ", "The slopes differ")
    yield from _on_test(
        fit.group,
        fit.intercepts_equal,
        "that the lines differ at equal loss",
        "At equal slopes the lines differ",
    )
    partial = (
        f"{fit.group} given the loss {bracketed(fit.given_loss, percent)}, "
        f"the loss given {fit.group} {bracketed(fit.given_group, percent)}"
    )
    is_shown = fit.given_loss.low is not None and fit.given_loss.low > 0
    yield Sentence(
        "loss",
        f"Partial R²: {partial}; that {fit.group} says something beyond the loss is "
        f"{'shown' if is_shown else 'not shown'}.",
        is_shown,
    )


def _on_r2(name: str, fit: LossFit) -> Sentence:
    lines = ", ".join(
        f"{line.group} {'none' if math.isnan(line.r2.value) else format(line.r2.value, '.2f')}"
        for line in fit.lines
    )
    adjusted = ""
    if fit.separate_adjusted is not None and fit.common_adjusted is not None:
        adjusted = (
            f"; stratified, adjusted: {fit.separate_adjusted:.2f} with separate slopes, "
            f"{fit.common_adjusted:.2f} with a common slope"
        )
    return Sentence(
        "loss",
        f"R² of {name} on ln(loss): pooled {within(fit.pooled.r2)}; "
        f"within {fit.group} {lines}{adjusted}.",
    )


def _on_slope(analysis: Analysis, fit: LossFit) -> Sentence:
    slope = fit.common_slope
    name = outcome_name(analysis)
    if not slope.clear_of():
        return Sentence(
            "loss",
            f"Within {fit.group}, that {name} changes with the loss is not shown: "
            f"slope {within(slope, plus=True)} per unit of ln(loss).",
            False,
        )
    against, tail = False, ""
    if analysis.outcome in PAPER_OUTCOMES:
        against = slope.value * analysis.better < 0
        tail = ", as in the paper"
    if against:
        tail = "; this contradicts the paper, where a lower loss goes with less alignment"
    return Sentence(
        "loss",
        f"Within {fit.group}, {name} changes by {within(slope, plus=True)} per unit of "
        f"ln(loss){tail}.",
        True,
        against,
    )


def _on_test(group: str, test: Test, hypothesis: str, result: str) -> Iterator[Sentence]:
    if test.p is None or test.f is None:
        return
    numbers = f"F({test.df}, {test.residual_df}) = {figure(test.f)}, {probability(test.p)}"
    if test.p < 0.05:
        yield Sentence("loss", f"{result} between levels of {group} ({numbers}).", True)
    else:
        yield Sentence(
            "loss",
            f"{capitalised(hypothesis)} between levels of {group} is not shown ({numbers}).",
            False,
        )


def equal_loss_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on the groups' means at one loss, and on the pairs that differ there."""
    if analysis.loss_fit is None:
        return
    equal = analysis.loss_fit.equal_loss
    if equal.reason:
        yield Sentence("equal loss", f"{capitalised(equal.reason)}.")
    if equal.loss is not None:
        sign = analysis.better or 1
        best_first = sorted(equal.means.items(), key=lambda entry: -entry[1].value * sign)
        means = ", ".join(f"{name} {within(mean)}" for name, mean in best_first)
        yield Sentence("equal loss", f"At a loss of {figure(equal.loss)}: {means}.")
    yield from _on_pairs("by fit", equal.differences)
    yield from _on_pairs("by matched pairs", equal.matched)


def _on_pairs(method: str, pairs: Sequence[Difference]) -> Iterator[Sentence]:
    if not pairs:
        return
    clear = [
        pair for pair in pairs if pair.difference.clear_of() and (pair.p is None or pair.p < 0.05)
    ]
    texts = []
    for pair in clear[:_MOST]:
        matched = f" ({pair.pairs} pairs)" if pair.pairs else ""
        difference = within(pair.difference, plus=True)
        texts.append(f"{pair.first} − {pair.second} {difference}{matched}")
    if len(clear) > _MOST:
        texts.append(f"and {len(clear) - _MOST} more")
    listed = f": {'; '.join(texts)}" if texts else ""
    yield Sentence(
        "equal loss",
        f"At equal loss, {method}, {len(clear)} of {len(pairs)} pairs are shown to differ{listed}.",
        bool(clear),
    )


def training_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on group against loss at the last checkpoint, and on how that changed."""
    path = analysis.training
    if path is None:
        if "training" in analysis.reasons and not analysis.is_constant:
            yield Sentence(
                "training",
                f"Whether {analysis.group or 'a factor'} says more than the loss in the course of "
                f"training cannot be said: {analysis.reasons['training']}.",
            )
        return
    last = path.moments[-1]
    yield _on_last(path.group, last, analysis.outcome in PAPER_OUTCOMES)
    if path.change is not None:
        yield _on_change(path, last)
    if path.warning:
        yield Sentence("training", f"Caution: {path.warning}.")


def _on_last(group: str, last: Moment, paper_outcome: bool) -> Sentence:
    claims = paper_outcome and group == "optimizer"
    numbers = (
        f"partial R² {bracketed(last.given_loss, percent)} of {group} given the loss against "
        f"{bracketed(last.given_group, percent)} of the loss given {group}; ln ratio of "
        f"what the loss alone and {group} alone leave {within(last.advantage, plus=True)}"
    )
    if not last.advantage.clear_of():
        return Sentence(
            "training",
            f"That {group} says more than the loss at the last checkpoint (step {last.step:g}) "
            f"is not shown: {numbers}.",
            False,
        )
    if last.advantage.value > 0:
        return Sentence(
            "training",
            f"At the last checkpoint (step {last.step:g}) {group} says more than the "
            f"loss{', as the paper has it' if claims else ''}: {numbers}.",
            True,
        )
    against = ""
    if claims:
        against = (
            "; this contradicts the paper, where after enough training the optimiser says more"
        )
    return Sentence(
        "training",
        f"At the last checkpoint (step {last.step:g}) the loss says more than {group}: "
        f"{numbers}{against}.",
        True,
        claims,
    )


def _on_change(path: Trajectory, last: Moment) -> Sentence:
    assert path.change is not None
    clear = path.change.clear_of()
    direction = "a change is not shown"
    if clear:
        direction = f"a move towards {path.group if path.change.value > 0 else 'the loss'}"
    return Sentence(
        "training",
        f"From step {path.moments[0].step:g} to {last.step:g} that ratio changed by "
        f"{within(path.change, plus=True)}: {direction}.",
        clear,
    )
