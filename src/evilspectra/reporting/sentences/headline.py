"""The report's headline: the numbers of a store in sentences, honest whichever way they came out.

`comparison` defines what counts as a difference; sentences on rates are made in `misalignment`,
those on drift in `drift`. Controls are ranked with nobody: their data differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from evilspectra.errors import listing
from evilspectra.numbers import signed
from evilspectra.reporting.comparison import SAME, Row, alike, arms_of, by_arm
from evilspectra.reporting.sentences.drift import findings
from evilspectra.reporting.sentences.misalignment import misalignment
from evilspectra.store.origin import differing
from evilspectra.store.records import RunSummary

MOST_PAIRS = 3  # optimiser and weight combinations that the headline spells out


def headline(rows: Sequence[Row]) -> list[str]:
    """The sentences, most important first."""
    finished = [row for row in rows if row.summary.status == "done"]
    if not finished:
        return [_nothing_finished(rows)]
    controls = [row for row in finished if row.summary.control]
    done = [row for row in finished if not row.summary.control]
    if not done:
        return [
            *misalignment(controls),
            *findings(controls),
            (
                f"Every finished run is a control ({listing([row.label for row in controls], 3)}),"
                " and controls are ranked with nobody."
            ),
            *unfinished(rows),
        ]
    incomparable = _incomparable(done)
    comparable = incomparable is None
    return [
        *misalignment([*done, *controls], comparable),
        *findings([*done, *controls], comparable),
        flattest(done) if incomparable is None else incomparable,
        *penalties(done),
        *(order(done) if comparable else []),
        spread(done),
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


def flattest(done: Sequence[Row]) -> str:
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
    rest = listing([f"{name} ({fmean(values[name]):.2f})" for name in others], 8)
    if reason := alike(values[first], values[others[0]]):
        text = (
            f"No arm is shown to have the flattest spectra: {first} leads with a mean stable rank"
            f" of {fmean(values[first]):.2f} (flat: {rank}), but {first} and {others[0]} {reason};"
            f" then {rest}."
        )
    else:
        text = (
            f"The flattest spectra are {first}’s: a mean stable rank of"
            f" {fmean(values[first]):.2f}, where {rank} would be flat; then {rest}."
        )
    entropy = by_arm(done, "spectral_entropy")
    by_entropy = max(entropy, key=lambda name: fmean(entropy[name])) if entropy else first
    return (
        text
        if by_entropy == first
        else f"{text[:-1]} (by spectral entropy the flattest is {by_entropy})."
    )


def penalties(done: Sequence[Row]) -> list[str]:
    """The effect of the flatness penalty, from runs that are otherwise equal."""
    plain = {
        row.twin_key(): row.summary
        for row in done
        # facts that are not known may differ
        if not row.summary.flatness_weight and None not in row.ground().values()
    }
    groups: dict[str, list[tuple[RunSummary, RunSummary]]] = defaultdict(list)
    penalised = [row for row in done if row.summary.flatness_weight]
    for row in penalised:
        twin = plain.get(row.twin_key())
        if twin and None not in (twin.stable_rank, row.summary.stable_rank):
            groups[row.summary.arm].append((twin, row.summary))
    if penalised and not groups:
        return [
            "What the flatness penalty changes is not shown: no finished run without it has"
            " otherwise the same settings."
        ]
    texts = [_penalty(pairs) for pairs in groups.values()]
    more = len(texts) - MOST_PAIRS
    if more <= 0:
        return texts
    rest = f"The table shows {more} more pairs with and without the penalty."
    return [*texts[:MOST_PAIRS], rest]


def _penalty(pairs: list[tuple[RunSummary, RunSummary]]) -> str:
    after = pairs[0][1]
    before_rank, after_rank = (
        [run.stable_rank or 0.0 for run in side] for side in zip(*pairs, strict=True)
    )
    changes = [new - old for old, new in zip(before_rank, after_rank, strict=True)]
    rank = _direction(changes, SAME * fmean(before_rank))
    runs = f" ({len(pairs)} pairs of runs, means)" if len(pairs) > 1 else ""
    text = (
        f"With the flatness penalty (weight {after.flatness_weight:g}), {after.optimizer}’s stable"
        f" rank {_verb(rank)}: {fmean(before_rank):.2f} → {fmean(after_rank):.2f}{runs}"
    )
    losses = [
        (a.heldout_loss, b.heldout_loss)
        for a, b in pairs
        if a.heldout_loss is not None and b.heldout_loss is not None
    ]
    if not losses:
        return f"{text}; what it did to held-out loss is not known, none was measured."
    start, end = fmean(a for a, _ in losses), fmean(b for _, b in losses)
    loss = _direction([b - a for a, b in losses], SAME)
    text += (
        f", and its held-out loss {_verb(loss)}: {start:.3f} → {end:.3f} ({signed(end - start)})"
    )
    match rank, loss:
        case 1, 1:
            return f"{text}. The flatter spectrum came with a higher loss."
        case 1, 0 | -1:
            return f"{text}. The flatter spectrum cost no held-out loss here."
        case 1, None:
            return f"{text}. The spectrum became flatter; a cost in loss is not shown."
        case _:
            return f"{text}. So the penalty is not shown to flatten the spectrum."


def _direction(changes: Sequence[float], least: float) -> int | None:
    """The common sign of changes: 1 or -1, 0 where their mean is below `least` in size.

    None where signs differ.
    """
    if abs(fmean(changes)) < least:
        return 0
    signs = {(change > 0) - (change < 0) for change in changes}
    return signs.pop() if len(signs) == 1 else None


def _verb(direction: int | None) -> str:
    return {
        1: "rose",
        -1: "fell",
        0: "shows no difference",
        None: "moved both ways, so no effect is shown",
    }[direction]


def order(done: Sequence[Row]) -> list[str]:
    """Whether the order of final losses is the order of flatness.

    The orders are compared over pairs of arms that can be told apart in both.
    """
    ranks, losses = by_arm(done, "stable_rank"), by_arm(done, "heldout_loss")
    shared = [name for name in losses if name in ranks]
    arms = sorted(shared, key=lambda name: fmean(losses[name]))
    if len(arms) < 2:
        return []
    clear = [
        (a, b)
        for a, b in combinations(arms, 2)
        if not alike(ranks[a], ranks[b]) and not alike(losses[a], losses[b], SAME)
    ]
    total = len(arms) * (len(arms) - 1) // 2
    ranked = listing([f"{name} ({fmean(losses[name]):.3f})" for name in arms], 8)
    text = f"By final held-out loss the order is {ranked}, lowest first"
    if not clear:
        return [
            f"{text}; no two arms are told apart in both loss and flatness, so no relation between"
            " the two is shown."
        ]
    flatter_lower = sum(fmean(ranks[a]) > fmean(ranks[b]) for a, b in clear)
    pairs = f"in {flatter_lower} of {len(clear)} pairs of arms the flatter one has the lower loss"
    if total > len(clear):
        pairs += f" ({total - len(clear)} more are too close to call)"
    if 0 < flatter_lower < len(clear):
        return [f"{text}; {pairs}: the order of losses is not the order of flatness."]
    verdict = f"the flatter, the {'lower' if flatter_lower else 'higher'} the loss"
    alone = ", on one pair only" if len(clear) == 1 else ""
    return [f"{text}; {pairs}: {verdict}{alone}."]


def spread(done: Sequence[Row]) -> str:
    """The number of seeds, on which the knowledge of chance rests, and differences within arms."""
    groups = arms_of(done)
    seeds = {name: len({row.summary.seed for row in group}) for name, group in groups.items()}
    within = sorted(
        {path for group in groups.values() for path in differing([row.origin for row in group])}
        - {"train.seed"}
    )
    text = f"Runs of one arm differ also in {listing(within, 4)}. " if within else ""
    if max(seeds.values()) == 1:
        return (
            f"{text}There is one seed per arm, so nothing is known about the spread between seeds:"
            " every difference above may be chance."
        )
    alone = [name for name, count in seeds.items() if count == 1]
    fewest = (
        f"The arms have {min(seeds.values())} to {max(seeds.values())} seeds"
        if len(set(seeds.values())) > 1
        else f"Every arm has {max(seeds.values())} seeds"
    )
    rest = f", and nothing is known about the spread of {listing(alone, 4)}" if alone else ""
    return (
        f"{text}{fewest}; a difference counts as shown where the arms’ ranges do not overlap{rest}."
    )


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
