"""Sentences on flatness beyond the loss, and on the effect of the flatness penalty."""

from __future__ import annotations

from collections.abc import Iterator

from evilspectra.analysis.mediation import Beyond, Paired
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import (
    PAPER_OUTCOMES,
    measure_name,
    outcome_name,
    paper_name,
    within,
)
from evilspectra.numbers import figure, probability, signed_figure

#: The penalty's effect on mean alignment in the paper (section on the regulariser), in points.
PAPER_PENALTY = {"adam": 6.6, "lion": 8.0, "muon": 2.1, "sgd": -3.5}


def flatness_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """A sentence on each spectral measure's partial correlation with the outcome."""
    if analysis.mediation is None:
        return
    for beyond in analysis.mediation.beyond:
        yield _on_measure(analysis, beyond)


def _on_measure(analysis: Analysis, beyond: Beyond) -> Sentence:
    adjusted_for = " and ".join(beyond.given)
    measure, name = measure_name(beyond.measure), outcome_name(analysis)
    if beyond.partial.low is None:
        return Sentence(
            "flatness",
            f"Whether {measure} says something of {name} beyond {adjusted_for} cannot be said: "
            f"{beyond.partial.note}.",
            False,
        )
    numbers = (
        f"partial correlation {within(beyond.partial, plus=True)} "
        f"(alone {within(beyond.simple, plus=True)})"
    )
    if not beyond.partial.clear_of():
        return Sentence(
            "flatness",
            f"Beyond {adjusted_for}, that {measure} goes with {name} is not shown: {numbers}.",
            False,
        )
    flatter = 1 if beyond.measure in ("stable_rank", "spectral_entropy") else -1
    safer = beyond.partial.value * flatter * analysis.better > 0
    against = analysis.outcome in PAPER_OUTCOMES and not safer
    tail = ""
    if analysis.better:
        tail = ": the flatter, the safer" if safer else ": the flatter, the less safe"
        tail += "; this contradicts the paper's reading of flatness" if against else ""
    return Sentence(
        "flatness",
        f"Beyond {adjusted_for}, {measure} goes with {name}: {numbers}{tail}. This shows no cause.",
        True,
        against,
    )


def penalty_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """A sentence on the penalty's effect by measure, optimiser and λ, or the reason for none."""
    mediation = analysis.mediation
    if mediation is None:
        return
    if not mediation.effects:
        if "flatness penalty" in mediation.reasons:
            yield Sentence(
                "penalty",
                "What the flatness penalty does cannot be said: "
                f"{mediation.reasons['flatness penalty']}.",
            )
        return
    for effect in mediation.effects:
        if effect.measure in (analysis.outcome, "train_loss", "capability"):
            yield _on_effect(effect)
    for measure, (f, p) in mediation.heterogeneity.items():
        if measure == analysis.outcome:
            is_shown = p is not None and p < 0.05
            yield Sentence(
                "penalty",
                f"That its effect on {measure_name(measure)} differs between optimisers is "
                f"{'shown' if is_shown else 'not shown'} (F = {figure(f)}, {probability(p)}).",
                is_shown,
            )


def _on_effect(effect: Paired) -> Sentence:
    weight = " over all λ" if effect.weight is None else f" with λ = {effect.weight:g}"
    where = f"under {effect.optimizer}{weight}"
    measure = measure_name(effect.measure)
    pairs = f"{effect.pairs} pair{'' if effect.pairs == 1 else 's'}"
    number = f"{within(effect.difference, plus=True)}, {pairs}"
    if not effect.difference.clear_of():
        return Sentence(
            "penalty",
            f"That the penalty changes {measure} {where} is not shown ({number}).",
            False,
        )
    paper = None
    if effect.measure in PAPER_OUTCOMES:
        paper = PAPER_PENALTY.get(paper_name(effect.optimizer))
    safer = effect.difference.value * (-1 if effect.measure == "misalignment" else 1)
    against, tail = False, ""
    if paper is not None:
        against = paper * safer < 0
        which = "this contradicts the paper, which has" if against else "the paper has"
        tail = f"; {which} {signed_figure(paper)} points of mean alignment there"
    return Sentence(
        "penalty", f"The penalty changes {measure} {where} by {number}{tail}.", True, against
    )
