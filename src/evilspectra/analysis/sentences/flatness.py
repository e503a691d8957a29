"""Sentences on flatness beyond the loss, and on the effect of the flatness penalty."""

from __future__ import annotations

from collections.abc import Iterator

from evilspectra.analysis.claims import Claim, find
from evilspectra.analysis.mediation import Beyond
from evilspectra.analysis.penalty import ALL, EQUAL, Paired
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import (
    PAPER_OUTCOMES,
    adjusted,
    measure_name,
    outcome_name,
    paper_name,
    within,
)
from evilspectra.numbers import signed_figure

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
    claim = find(analysis.claims, "flatness", beyond.measure)
    if claim is None or claim.p is None:
        return Sentence(
            "flatness",
            f"Whether {measure} is related to {name} beyond {adjusted_for} cannot be said: "
            f"{beyond.partial.note or 'a group has too few runs'}.",
            False,
        )
    numbers = f"partial correlation {within(beyond.partial, plus=True)}, {adjusted(claim)}"
    if not claim.shown:
        return Sentence(
            "flatness",
            f"Beyond {adjusted_for}, {measure} is not shown to be related to {name} ({numbers}).",
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
        f"Beyond {adjusted_for}, {measure} is related to {name} ({numbers}){tail}. "
        "This shows no cause.",
        True,
        against,
    )


def penalty_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """A sentence on the penalty's effect by measure, optimiser and λ, or the reason for none."""
    mediation = analysis.mediation
    if mediation is None:
        return
    if not mediation.penalty.effects:
        yield Sentence(
            "penalty",
            "What the flatness penalty does cannot be said: "
            f"{mediation.reasons['flatness penalty']}.",
        )
        return
    for effect in mediation.penalty.effects:
        if effect.measure in (analysis.outcome, "train_loss", "capability"):
            yield _on_effect(analysis, effect)
    yield from _between_optimisers(analysis)


def _between_optimisers(analysis: Analysis) -> Iterator[Sentence]:
    """Whether the penalty's effect on the outcome differs between optimisers."""
    claims = [claim for claim in analysis.claims if claim.section == "penalty differs"]
    tested = [claim for claim in claims if claim.p is not None]
    if not tested:
        return
    name = measure_name(analysis.outcome)
    apart = [claim for claim in tested if claim.shown]
    if apart:
        listed = "; ".join(
            f"{' − '.join(claim.subject)} {signed_figure(claim.value)} ({adjusted(claim)})"
            for claim in apart
        )
        text = f"The penalty's effect on {name} differs between optimisers: {listed}."
    else:
        text = f"The penalty's effect on {name} is not shown to differ between optimisers."
    yield Sentence("penalty", text, bool(apart))


def effect_claim(analysis: Analysis, effect: Paired) -> Claim | None:
    """The claim on an effect of the penalty."""
    section = "penalty" if effect.measure == analysis.outcome else "penalty, other measures"
    return find(analysis.claims, section, effect.optimizer, effect.treatment, effect.measure)


def _on_effect(analysis: Analysis, effect: Paired) -> Sentence:
    claim = effect_claim(analysis, effect)
    which = "over all treatments" if effect.treatment == ALL else f"with {effect.treatment}"
    where = f"under {effect.optimizer} {which}"
    measure = measure_name(effect.measure)
    of_rate = " in log odds" if effect.measure == "misalignment" else ""
    pairs = f"{effect.pairs} pair{'' if effect.pairs == 1 else 's'}"
    if effect.baselines < effect.pairs:
        pairs += f" on {effect.baselines} baseline{'' if effect.baselines == 1 else 's'}"
    number = f"{within(effect.difference, plus=True)}{of_rate}, {pairs}"
    if effect.difference.note == EQUAL:
        return Sentence(
            "penalty", f"With and without the penalty, {measure} is the same {where}, {pairs}."
        )
    if claim is None or not claim.shown:
        return Sentence(
            "penalty",
            f"The penalty is not shown to change {measure} {where} ({number}).",
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
        "penalty",
        f"The penalty changes {measure} {where} by {number}, {adjusted(claim)}{tail}.",
        True,
        against,
    )
