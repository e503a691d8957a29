"""Sentences on loss and outcome: lines, equal loss, and the course of training.

What is shown is decided by the page's claims: at equal loss by the pairs of groups on their own
lines, and the same pairs decide whether the group makes a difference beyond the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from evilspectra.analysis.claims import Claim, find
from evilspectra.analysis.equal_loss import Difference, EqualLoss
from evilspectra.analysis.estimate import MethodEstimate
from evilspectra.analysis.loss import LossFit
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import (
    PAPER_OUTCOMES,
    adjusted,
    capitalised,
    outcome_name,
    within,
)
from evilspectra.analysis.trajectory import Moment, Trajectory
from evilspectra.numbers import bracketed, brackets, figure, percent

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
                f"How {name} depends on the loss cannot be said: {analysis.reasons['loss']}.",
            )
        return
    yield from _on_r2(name, fit)
    yield _on_slope(analysis, fit)
    yield from _on_slopes(analysis, fit)
    yield from _on_shares(analysis, fit)


def _on_r2(name: str, fit: LossFit) -> Iterator[Sentence]:
    lines = ", ".join(
        f"{line.group} {'none' if math.isnan(line.r2.value) else format(line.r2.value, '.2f')}"
        for line in fit.lines
    )
    yield Sentence(
        "loss",
        f"R² of {name} on ln(loss) is {within(fit.pooled.r2)} over all runs, and "
        f"for each {fit.group} alone: {lines}.",
    )
    if fit.separate_adjusted is not None and fit.common_adjusted is not None:
        yield Sentence(
            "loss",
            f"Lines by {fit.group} have an adjusted R² of {fit.separate_adjusted:.2f} with "
            f"separate slopes and {fit.common_adjusted:.2f} with a common slope.",
        )


def _on_slope(analysis: Analysis, fit: LossFit) -> Sentence:
    slope = fit.common_slope
    name, among = outcome_name(analysis), f"Among runs of the same {fit.group}"
    claim = find(analysis.claims, "slope", fit.group)
    if slope.p is None:
        text = f"{among}, {name} changes by {within(slope, plus=True)} per unit of ln(loss)"
        return Sentence("loss", f"{text}; that cannot be tested.")
    if claim is None or not claim.shown:
        return Sentence(
            "loss",
            f"{among}, {name} is not shown to change with the loss: "
            f"{within(slope, plus=True)} per unit of ln(loss){_and_p(claim)}.",
            False,
        )
    size = MethodEstimate(*_sizes(slope), slope.method)
    against, tail = False, ""
    if analysis.outcome in PAPER_OUTCOMES:
        against = slope.value * analysis.better < 0
        tail = ", as in the paper"
    if against:
        tail = "; this contradicts the paper, where runs with a lower loss are less aligned"
    return Sentence(
        "loss",
        f"{among}, {name} {'rises' if slope.value > 0 else 'falls'} by {within(size)} per unit of "
        f"ln(loss){tail}.",
        True,
        against,
    )


def _sizes(estimate: MethodEstimate) -> tuple[float, float | None, float | None]:
    """Value and ends of an estimate in its own direction."""
    if estimate.value >= 0 or estimate.low is None or estimate.high is None:
        return abs(estimate.value), estimate.low, estimate.high
    return -estimate.value, -estimate.high, -estimate.low


def _on_slopes(analysis: Analysis, fit: LossFit) -> Iterator[Sentence]:
    pairs = _tested(analysis, "slopes", fit.slopes)
    if not pairs:
        return
    clear = [pair for pair, claim in pairs if claim.shown]
    if clear:
        yield Sentence(
            "loss",
            f"The slopes differ in {len(clear)} of {len(pairs)} pairs of {fit.group}: "
            f"{_listed(clear)}.",
            True,
        )
    elif len(pairs) == 1:
        pair, claim = pairs[0]
        yield Sentence(
            "loss",
            f"The slopes of {pair.first} and {pair.second} are not shown to differ: "
            f"{within(pair.difference, plus=True)}{_and_p(claim)}.",
            False,
        )
    else:
        yield Sentence("loss", f"No two of the {len(fit.lines)} slopes are shown to differ.", False)


def _on_shares(analysis: Analysis, fit: LossFit) -> Iterator[Sentence]:
    """Partial R² both ways, with the decision on the group that the pairs at equal loss make."""
    text = (
        f"Given the loss, {fit.group} explains {_share(fit.given_loss)} of the variance that is "
        "left (partial R²)"
    )
    pairs = _tested(analysis, "equal loss", fit.equal_loss.differences)
    if not pairs:
        yield Sentence("loss", f"{text}; no difference at equal loss could be tested.")
    elif any(claim.shown for _, claim in pairs):
        yield Sentence("loss", f"{text}; a difference at equal loss is shown.", True)
    else:
        yield Sentence("loss", f"{text}; a difference at equal loss is not shown.", False)
    yield Sentence(
        "loss",
        f"Given {fit.group}, the loss explains {_share(fit.given_group)} of the variance that is "
        "left.",
    )


def _share(estimate: MethodEstimate) -> str:
    return "an unknown share" if math.isnan(estimate.value) else bracketed(estimate, percent)


def _tested(
    analysis: Analysis,
    section: str,
    pairs: Sequence[Difference],
) -> list[tuple[Difference, Claim]]:
    """The pairs whose claims were tested, with those."""
    claims = [(pair, find(analysis.claims, section, pair.first, pair.second)) for pair in pairs]
    return [(pair, claim) for pair, claim in claims if claim is not None and claim.p is not None]


def _and_p(claim: Claim | None) -> str:
    return "" if claim is None or claim.adjusted is None else f" ({adjusted(claim)})"


def _listed(pairs: Sequence[Difference]) -> str:
    """Differences with their intervals, the first few of them."""
    texts = []
    for pair in pairs[:_MOST]:
        matched = f" ({pair.pairs} pairs of runs)" if pair.pairs else ""
        difference = within(pair.difference, plus=True)
        texts.append(f"{pair.first} − {pair.second} {difference}{matched}")
    if len(pairs) > _MOST:
        texts.append(f"and {len(pairs) - _MOST} more")
    return "; ".join(texts)


def equal_loss_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on the groups' means at one loss, and on the pairs that differ there."""
    if analysis.loss_fit is None:
        return
    equal = analysis.loss_fit.equal_loss
    if equal.reason:
        yield Sentence("equal loss", f"{capitalised(equal.reason)}.")
    if equal.loss is not None:
        yield _on_means(analysis, equal)
    yield from _on_pairs(analysis, "equal loss", "on their own lines", equal.differences)
    yield from _on_pairs(analysis, "matched", "in matched pairs of runs", equal.matched)


def _on_means(analysis: Analysis, equal: EqualLoss) -> Sentence:
    sign = analysis.better or 1
    best_first = sorted(equal.means.items(), key=lambda entry: -entry[1].value * sign)
    means = ", ".join(f"{name} {_mean(analysis, mean)}" for name, mean in best_first)
    name = outcome_name(analysis).removesuffix(" on the logit scale")
    return Sentence(
        "equal loss", f"At a loss of {figure(equal.loss or 0.0)}, the lines put {name} at {means}."
    )


def _mean(analysis: Analysis, mean: MethodEstimate) -> str:
    """A mean with its interval, that of logits as a rate; without one where there is none."""
    if analysis.scale != "logit":
        return bracketed(mean, figure)
    return bracketed(mean, lambda logit: percent(1 / (1 + math.exp(-logit))))


def _on_pairs(
    analysis: Analysis,
    section: str,
    how: str,
    pairs: Sequence[Difference],
) -> Iterator[Sentence]:
    if not pairs:
        return
    tested = _tested(analysis, section, pairs)
    scale = " (differences of logits)" if analysis.scale == "logit" else ""
    clear = [pair for pair, claim in tested if claim.shown]
    if not tested:
        yield Sentence(
            "equal loss",
            f"{capitalised(how)}, no difference at equal loss can be tested: {_why_not(pairs)}.",
        )
    elif clear:
        yield Sentence(
            "equal loss",
            f"At equal loss, {how}, {len(clear)} of {len(tested)} pairs "
            f"differ{scale}: {_listed(clear)}.",
            True,
        )
    elif len(tested) == 1:
        pair, claim = tested[0]
        yield Sentence(
            "equal loss",
            f"At equal loss, {how}, {pair.first} and {pair.second} are not shown to differ"
            f"{scale}: {within(pair.difference, plus=True)}{_and_p(claim)}.",
            False,
        )
    else:
        yield Sentence(
            "equal loss",
            f"At equal loss, {how}, none of {len(tested)} pairs is shown to differ.",
            False,
        )


def _why_not(pairs: Sequence[Difference]) -> str:
    notes = dict.fromkeys(pair.difference.note for pair in pairs if pair.difference.note)
    return ", or ".join(notes)


def training_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on group against loss at the last checkpoint, and on how that changed."""
    path = analysis.training
    if path is None:
        if "training" in analysis.reasons and not analysis.is_constant:
            yield Sentence(
                "training",
                f"Whether {analysis.group or 'a factor'} explains more than the loss in the course "
                f"of training cannot be said: {analysis.reasons['training']}.",
            )
        return
    last = path.moments[-1]
    paper = analysis.outcome in PAPER_OUTCOMES and path.group == "optimizer"
    yield _on_last(path.group, last, find(analysis.claims, "training", "last"), paper)
    yield Sentence(
        "training",
        f"There, partial R² is {bracketed(last.given_loss, percent)} of {path.group} given the "
        f"loss, and {bracketed(last.given_group, percent)} of the loss given {path.group}.",
    )
    if path.change is not None:
        yield _on_change(path, path.change, find(analysis.claims, "training", "change"))


def _on_last(group: str, last: Moment, claim: Claim | None, paper: bool) -> Sentence:
    at = f"At the last checkpoint (step {last.step:g})"
    ahead = last.advantage
    if not brackets(ahead, figure):
        return Sentence(
            "training",
            f"{at} it cannot be tested whether {group} or the loss explains more: {ahead.note}.",
        )
    numbers = (
        f"ln(residual variance of the loss alone / of {group} alone) = {within(ahead, plus=True)}"
    )
    if claim is None or not claim.shown:
        return Sentence(
            "training",
            f"{at} neither {group} nor the loss is shown to explain more: {numbers}"
            f"{_and_p(claim)}.",
            False,
        )
    if ahead.value > 0:
        return Sentence(
            "training",
            f"{at} {group} explains more than the loss{', as in the paper' if paper else ''}: "
            f"{numbers}.",
            True,
        )
    against = ""
    if paper:
        against = (
            "; this contradicts the paper, where after enough training the optimiser explains more"
        )
    return Sentence(
        "training", f"{at} the loss explains more than {group}: {numbers}{against}.", True, paper
    )


def _on_change(path: Trajectory, change: MethodEstimate, claim: Claim | None) -> Sentence:
    steps = f"From step {path.moments[0].step:g} to {path.moments[-1].step:g}"
    number = within(change, plus=True)
    if not brackets(change, figure):
        return Sentence(
            "training", f"{steps} a change of their balance cannot be tested: {change.note}."
        )
    if claim is None or not claim.shown:
        return Sentence(
            "training",
            f"{steps} the balance of the two is not shown to change: {number}{_and_p(claim)}.",
            False,
        )
    towards = path.group if change.value > 0 else "the loss"
    return Sentence(
        "training",
        f"{steps} the balance of the two moved towards {towards}: {number}.",
        True,
    )
