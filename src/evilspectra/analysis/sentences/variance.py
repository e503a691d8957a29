"""Sentences on the design and on the shares of variance."""

from __future__ import annotations

from collections.abc import Iterator

from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import (
    PAPER_OUTCOMES,
    capitalised,
    outcome_name,
    paper_name,
)
from evilspectra.analysis.variance import Effect
from evilspectra.numbers import bracketed, figure, percent, probability


def design_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on levels, cells and seeds, on runs that were left out, and on confounding."""
    if analysis.factors:
        yield Sentence("design", f"{analysis.design.sentence}.")
    if analysis.left_out:
        reasons = "; ".join(f"{count} {reason}" for reason, count in analysis.left_out.items())
        yield Sentence("design", f"Left out: {reasons}.")
    parts = analysis.variance or analysis.design
    for confounded in parts.confounded:
        yield Sentence("design", f"{capitalised(confounded.sentence)}.")


def variance_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """A sentence on the share of each term, or the reason why there is none."""
    if analysis.variance is None:
        yield Sentence(
            "variance",
            f"What goes with {outcome_name(analysis)} cannot be said: "
            f"{analysis.reasons['variance']}.",
        )
        return
    for effect in analysis.variance.type2:
        yield _on_term(analysis, effect, analysis.variance.residual_df)


def _on_term(analysis: Analysis, effect: Effect, residual_df: int) -> Sentence:
    name = outcome_name(analysis)
    test = "not tested"
    if effect.p is not None:
        test = f"F({effect.df}, {residual_df}) = {figure(effect.f)}, {probability(effect.p)}"
    if effect.permutation is not None:
        test += f", by permutation {probability(effect.permutation)}"
    if effect.eta.low is None:
        text = f"The share of {effect.term} in the variance of {name} cannot be said"
        return Sentence("variance", f"{text}: {effect.eta.note}.", False)
    if not effect.eta.low > 0:
        kind = "The interaction" if "×" in effect.term else "The factor"
        return Sentence(
            "variance",
            f"{kind} {effect.term} is not shown to go with any of the variance of {name}: "
            f"partial η² {bracketed(effect.eta, percent)}, {test}.",
            False,
        )
    against = ""
    if _is_size_under_adam(analysis, effect.term):
        against = "; this contradicts the paper, where size and family mattered little under Adam"
    return Sentence(
        "variance",
        f"{_kind(effect.term)} {effect.term} goes with {bracketed(effect.eta, percent)} of the "
        f"variance of {name} that the other terms leave (partial η², {test}){against}.",
        True,
        bool(against),
    )


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
