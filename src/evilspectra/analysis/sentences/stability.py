"""Sentences on seeds, generation seeds, judges, power, and ways of counting."""

from __future__ import annotations

from collections.abc import Iterator

from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences.wording import outcome_name, within
from evilspectra.analysis.stability import Needed
from evilspectra.numbers import bracketed, figure, percent


def seed_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on the variance between replicates, and on the seeds that differences need."""
    stability, parts = analysis.stability, analysis.components
    name = outcome_name(analysis)
    if parts and parts.generation_var:
        beyond = ""
        if parts.seed_var:
            beyond = f"; between training seeds beyond that {within(parts.seed_var)}"
        yield Sentence(
            "seeds",
            f"Between generation seeds of one run, {name} has a variance of "
            f"{within(parts.generation_var)}{beyond}.",
        )
    if parts and parts.judge:
        eta = parts.judge.eta
        yield Sentence(
            "seeds",
            f"The judge goes with {bracketed(eta, percent)} of the variance of {name} "
            "that the run leaves (partial η²).",
            eta.low is not None and eta.low > 0,
        )
    if analysis.is_constant:
        return
    if stability.pooled is None:
        reason = stability.reasons["seeds"]
        yield Sentence("seeds", f"Whether differences survive the seed cannot be said: {reason}.")
        return
    portion = parts.seed_share if parts else None
    of_all = f", {bracketed(portion, percent)} of all variance" if portion else ""
    yield Sentence(
        "seeds",
        f"Between seeds of one cell, {name} has a standard deviation of "
        f"{within(stability.pooled)}{of_all}.",
    )
    for needed in stability.needed[:4]:
        yield _on_needed(needed)


def _on_needed(needed: Needed) -> Sentence:
    answers = f" at {needed.answers} answers a run" if needed.answers else ""
    seeds = "not below 200 seeds a group"
    if needed.seeds:
        seeds = f"from {needed.seeds} seeds a group"
    return Sentence(
        "seeds", f"A difference of {figure(needed.d)} shows with 80 % power {seeds}{answers}."
    )


def counting_sentences(analysis: Analysis) -> Iterator[Sentence]:
    """Sentences on what changes with the judge and with the definition of the rate."""
    variants = analysis.stability.variants
    if not variants:
        return
    orders = {variant.order for variant in variants}
    in_all = set.intersection(*(set(variant.shown) for variant in variants))
    in_any = set.union(*(set(variant.shown) for variant in variants))
    if len(orders) == 1:
        order = f"the order {' > '.join(variants[0].order)} is the same in all"
    else:
        listed = "; ".join(" > ".join(order) for order in sorted(orders)[:3])
        order = f"the order is not the same: {listed}"
    yield Sentence(
        "counting",
        f"Counted in {len(variants)} ways (judge and definition), {order}; {len(in_all)} of the "
        f"{len(in_any)} differences that any way shows are shown by all.",
        len(orders) == 1,
    )
    if reverse := sorted(pair for pair in in_any if pair[::-1] in in_any):
        pairs = ", ".join(f"{first} and {second}" for first, second in reverse[:3])
        yield Sentence(
            "counting", f"Two ways of counting show opposite differences: {pairs}.", True
        )
    etas = sorted(variant.eta.value for variant in variants)
    ends = f"{percent(etas[0])} to {percent(etas[-1])}"
    yield Sentence(
        "counting", f"The share of {analysis.group} is {ends} over the ways of counting."
    )
