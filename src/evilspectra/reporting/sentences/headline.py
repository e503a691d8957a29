"""The report's headline: the numbers of a store in sentences, honest whichever way they came out.

What differs between arms is decided in `arm_claims`; sentences on rates are made in `misalignment`,
those on drift in `drift`. Controls are ranked with nobody: their data differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean

from evilspectra.analysis.penalty import ALL, Paired
from evilspectra.analysis.sentences.wording import adjusted, capitalised
from evilspectra.errors import listing
from evilspectra.numbers import bracketed, signed
from evilspectra.reporting.arm_claims import MEASURES, PENALISED, ArmClaims, page_claims
from evilspectra.reporting.comparison import Row, arms_of, by_arm, incomparable
from evilspectra.reporting.outcomes import runs_table
from evilspectra.reporting.sentences.decisions import verdict_on
from evilspectra.reporting.sentences.drift import findings
from evilspectra.reporting.sentences.misalignment import misalignment
from evilspectra.store.origin import differing

MOST_PAIRS = 3  # optimiser and weight combinations that the headline spells out
MOST_ARMS = 8  # arms that an order names


def headline(rows: Sequence[Row], claims: ArmClaims | None = None) -> list[str]:
    """The sentences, most important first.

    `claims`: what the page decides between arms; None for a page without other statistics.
    """
    if claims is None:
        claims = page_claims(rows, runs_table(rows), None)
    finished = [row for row in rows if row.summary.status == "done"]
    if not finished:
        return [_nothing_finished(rows)]
    controls = [row for row in finished if row.summary.control]
    done = [row for row in finished if not row.summary.control]
    if not done:
        return [
            *misalignment(controls, claims),
            *findings(controls, claims),
            (
                f"Every finished run is a control ({listing([row.label for row in controls], 3)}),"
                " and controls are ranked with nobody."
            ),
            *unfinished(rows),
        ]
    reason = incomparable(done)
    return [
        *misalignment([*done, *controls], claims, reason is None),
        *findings([*done, *controls], claims, reason is None),
        flattest(done, claims) if reason is None else reason,
        *penalties(done, claims),
        *(order(done, claims) if reason is None else []),
        spread(done, claims),
        *_without_controls(controls),
        *unfinished(rows),
    ]


def _nothing_finished(rows: Sequence[Row]) -> str:
    if len(rows) > 1:
        return (
            f"None of the {len(rows)} runs has finished, so nothing is compared; the table says"
            " where each stands."
        )
    return (
        "The only run has not finished, so nothing is concluded from it; the table says where it"
        " stands."
    )


def _without_controls(controls: Sequence[Row]) -> list[str]:
    if not controls:
        return []
    runs, verb = ("run", "is") if len(controls) == 1 else ("runs", "are")
    return [
        f"The {len(controls)} control {runs} {verb} left out of what is said of spectra and losses,"
        " for the data differ."
    ]


def flattest(done: Sequence[Row], claims: ArmClaims) -> str:
    """Which arm has the flattest spectra, if that is shown."""
    values = by_arm(done, "stable_rank")
    if not values:
        return "No finished run has a measured spectrum, so nothing is said about flatness."
    rank = done[0].origin.rank
    ranked = sorted(values, key=lambda name: -fmean(values[name]))
    first, *others = ranked
    if not others:
        flat = f", where a flat spectrum of rank {rank} would have {rank}" if rank else ""
        return (
            f"{first}’s adapters end with a mean stable rank of {fmean(values[first]):.2f}{flat};"
            " there is no second finished arm to compare it with."
        )
    listed = listing([f"{name} ({fmean(values[name]):.2f})" for name in ranked], MOST_ARMS)
    flat = f", where {rank} would be flat" if rank else ""
    differing_pairs = set(claims.differing("stable_rank"))
    verdict = f"; {verdict_on(claims, 'stable_rank')}" if claims.tested("stable_rank") else ""
    if all((first, other) in differing_pairs for other in others):
        verdict = f"; {first}’s are shown to be the flattest"
    entropy = by_arm(done, "spectral_entropy")
    by_entropy = max(entropy, key=lambda name: fmean(entropy[name])) if entropy else first
    note = (
        "" if by_entropy == first else f" (by spectral entropy {by_entropy} has the largest mean)"
    )
    return f"By mean stable rank the order is {listed}, flattest first{flat}{verdict}{note}."


def penalties(done: Sequence[Row], claims: ArmClaims) -> list[str]:
    """The effect of the flatness penalty, from runs that are otherwise equal."""
    by_treatment: dict[tuple[str, str], dict[str, Paired]] = {}
    for effect in claims.effects:
        if effect.measure not in PENALISED:
            continue
        own = by_treatment.setdefault((effect.optimizer, effect.treatment), {})
        own[effect.measure] = effect
    if any(row.summary.flatness_weight for row in done) and not by_treatment:
        return [
            "What the flatness penalty changes is not known: no finished run without it has"
            " otherwise the same settings."
        ]
    texts = [_penalty(effects, claims) for effects in by_treatment.values()]
    more = len(texts) - MOST_PAIRS
    if more <= 0:
        return texts
    rest = f"The statistics have {more} more treatments with and without the penalty."
    return [*texts[:MOST_PAIRS], rest]


def _penalty(effects: Mapping[str, Paired], claims: ArmClaims) -> str:
    """The changes of stable rank and held-out loss under one optimiser and treatment."""
    texts = [
        _change(effects[measure], claims, name, decimals)
        for measure, name, decimals in (
            ("stable_rank", "stable rank", 2),
            ("heldout_loss", "held-out loss", 3),
        )
        if measure in effects
    ]
    if "heldout_loss" not in effects:
        texts.append("What it did to held-out loss is not known, as none was measured.")
    return " ".join(texts)


def _change(effect: Paired, claims: ArmClaims, name: str, decimals: int) -> str:
    """A sentence on what the penalty changes in a measure."""
    optimizer = effect.optimizer
    treatment = effect.treatment if effect.treatment != ALL else "all weights together"
    number = bracketed(effect.difference, partial(signed, decimals=decimals))
    zero = signed(0.0, decimals)
    pairs = f"{effect.pairs} pair{'' if effect.pairs == 1 else 's'} of runs"
    claim = claims.of_effect(effect)
    penalty = f"the flatness penalty ({treatment})"
    if (claim is None or claim.p is None) and effect.baselines > 1:
        same = f"differs by {number}" if number != zero else "is the same"
        return (
            f"With and without {penalty}, {optimizer}’s {name} {same} in all of {pairs}, so there"
            " is no spread to test it against."
        )
    if claim is None or claim.p is None:
        return (
            f"With {penalty}, {optimizer}’s {name} differs by {number} in {pairs}, which is too"
            " little to estimate an error from."
        )
    if not claim.shown:
        return (
            f"{capitalised(penalty)} is not shown to change {optimizer}’s {name} ({number} over"
            f" {pairs}, {adjusted(claim)})."
        )
    verb = "raises" if effect.difference.value > 0 else "lowers"
    return (
        f"{capitalised(penalty)} {verb} {optimizer}’s {name} ({number} over {pairs},"
        f" {adjusted(claim)})."
    )


def order(done: Sequence[Row], claims: ArmClaims) -> list[str]:
    """The order of arms by final held-out loss, and whether it is the order of flatness.

    The orders are compared over the pairs of arms that are shown to differ in both.
    """
    ranks, losses = by_arm(done, "stable_rank"), by_arm(done, "heldout_loss")
    arms = sorted((name for name in losses if name in ranks), key=lambda name: fmean(losses[name]))
    if len(arms) < 2:
        return []
    ranked = listing([f"{name} ({fmean(losses[name]):.3f})" for name in arms], MOST_ARMS)
    text = f"By final held-out loss the order is {ranked}, lowest first"
    if not claims.tested("heldout_loss"):
        return [f"{text}."]
    text = f"{text}; {verdict_on(claims, 'heldout_loss')}"
    flatter = claims.differing("stable_rank")
    higher = claims.differing("heldout_loss")
    both = [pair for pair in higher if pair in flatter or pair[::-1] in flatter]
    if not both:
        return [f"{text}."]
    lower = sum(pair[::-1] in flatter for pair in both)
    pairs = "the 1 pair" if len(both) == 1 else f"the {len(both)} pairs"
    return [
        f"{text}. Of {pairs} shown to differ in stable rank too, the flatter has the lower loss"
        f" in {lower}."
    ]


def spread(done: Sequence[Row], claims: ArmClaims) -> str:
    """The number of runs, on which the knowledge of chance rests, and differences within arms."""
    groups = arms_of(done)
    seeds = {name: len({row.summary.seed for row in group}) for name, group in groups.items()}
    within = sorted(
        {path for group in groups.values() for path in differing([row.origin for row in group])}
        - {"train.seed"}
    )
    text = f"Runs of one arm differ also in {listing(within, 4)}. " if within else ""
    if max(seeds.values()) == 1:
        if len(groups) == 1:
            return (
                f"{text}There is one seed, so nothing is known about the spread between seeds: more"
                " seeds would show it."
            )
        return (
            f"{text}There is one seed per arm, so all differences above are between adapters, not"
            " between arms: another seed might reverse any of them. With three seeds or more per"
            " arm, differences between arms can be tested."
        )
    alone = [name for name, count in seeds.items() if count == 1]
    fewest = (
        f"The arms have {min(seeds.values())} to {max(seeds.values())} seeds"
        if len(set(seeds.values())) > 1
        else f"Every arm has {max(seeds.values())} seeds"
    )
    lone = ""
    if alone:
        verb = "has" if len(alone) == 1 else "have"
        lone = f"; {listing(alone, 4)} {verb} one, so nothing between arms can be shown of it"
        lone = lone if len(alone) == 1 else lone.replace("of it", "of them")
    tested = any(claims.tested(measure) for measure in MEASURES)
    how = (
        " Differences between arms are tested over their runs, with a spread for each arm, and"
        " adjusted for all that this page claims."
        if tested
        else ""
    )
    return f"{text}{fewest}{lone}.{how}"


def unfinished(rows: Sequence[Row]) -> list[str]:
    """How many runs are not done, and which."""
    left = [row for row in rows if row.summary.status != "done"]
    if not left:
        return []
    states = listing([f"{row.label}: {row.summary.status}" for row in left], 3)
    return [
        f"{len(left)} of {len(rows)} runs {'is' if len(left) == 1 else 'are'} not done ({states})"
        " and left out of these sentences."
    ]
