"""Sentences on the design and on the shares of variance."""

from __future__ import annotations

from collections.abc import Iterator

from evilspectra.analysis.claims import find
from evilspectra.analysis.outcome import LABELS
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import (
    PAPER_OUTCOMES,
    capitalised,
    outcome_name,
    paper_name,
)
from evilspectra.analysis.variance import Effect
from evilspectra.errors import listing
from evilspectra.numbers import bracketed, percent


def design_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on levels, cells and seeds, on runs that were left out, and on confounding."""
    if analysis.factors:
        yield Sentence("design", f"{analysis.design.sentence}.")
    if analysis.left_out:
        reasons = "; ".join(f"{count} {reason}" for reason, count in analysis.left_out.items())
        yield Sentence("design", f"Left out: {reasons}.")
    for outcome, clause in analysis.constant.items():
        label = LABELS[outcome].split(" (")[0]
        yield Sentence("design", f"{capitalised(label)} is not the outcome here, since {clause}.")
    if analysis.unlisted:
        names = listing(analysis.unlisted)
        yield Sentence(
            "design",
            f"Repeats differ not in the seed alone but in {names}, which nobody named as a factor: "
            "what it changes counts as spread between repeats.",
        )
    parts = analysis.variance or analysis.design
    for confounded in parts.confounded:
        yield Sentence("design", f"{capitalised(confounded.sentence)}.")


def variance_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """A sentence on the share of each term, or the reason why there is none."""
    if analysis.variance is None:
        yield Sentence(
            "variance",
            f"What explains {outcome_name(analysis)} cannot be said: "
            f"{analysis.reasons['variance']}.",
        )
        return
    for effect in analysis.variance.type2:
        yield _on_term(analysis, effect, analysis.variance.residual_df)


def _on_term(analysis: Analysis, effect: Effect, residual_df: int) -> Sentence:
    name = outcome_name(analysis)
    kind, share = _kind(effect.term), bracketed(effect.eta, percent)
    if effect.eta.low is None:
        text = f"The share of {effect.term} in the variance of {name} cannot be said"
        return Sentence("variance", f"{text}: {effect.eta.note}.", False)
    if not term_is_shown(analysis, effect.term):
        return Sentence(
            "variance",
            f"{kind} {effect.term} is not shown to explain any of the variance of {name} "
            f"(partial η² {share}).",
            False,
        )
    against = ""
    if _is_size_under_adam(analysis, effect.term):
        against = "; this contradicts the paper, where size and family mattered little under Adam"
    rest = " left by the other terms" if len(analysis.factors) > 1 else ""
    return Sentence(
        "variance",
        f"{kind} {effect.term} explains {share} of the variance of {name}{rest} "
        f"(partial η²){against}.",
        True,
        bool(against),
    )


def term_is_shown(analysis: Analysis, term: str) -> bool:
    """Whether a term is shown to explain anything: the ranked factor where one of its pairs is."""
    ranking = analysis.stability.ranking
    if term == analysis.group:
        return ranking is not None and bool(ranking.shown)
    claim = find(analysis.claims, "variance", term)
    return claim is not None and claim.shown


def _kind(term: str) -> str:
    if "+" in term:
        return "What is confounded,"
    return "The interaction" if "×" in term else "The factor"


def _is_size_under_adam(analysis: Analysis, term: str) -> bool:
    """Whether the term is the base model in runs of Adam alone: the paper makes a claim on that."""
    if analysis.outcome not in PAPER_OUTCOMES or term not in ("base", "model.base"):
        return False
    optimizers = tuple(map(paper_name, analysis.levels.get("optimizer", ())))
    return "optimizer" not in analysis.factors and optimizers == ("adam",)
