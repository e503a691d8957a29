"""Sentences on decisions between arms, and on how many intervals of adapters miss by chance.

Intervals of single adapters are not adjusted for their number: Holm's procedure needs p-values
below 0.05/n for n adapters, and a bootstrap over some dozens of items does not know its tails that
far out. So the page says how many of its intervals are expected to miss.
"""

from __future__ import annotations

from evilspectra.reporting.arm_claims import ArmClaims

MOST = 6  # arms or pairs that a sentence names


def verdict_on(claims: ArmClaims, measure: str) -> str:
    """How many pairs are shown to differ in a measure, and which; some pairs can be tested."""
    tested, shown = claims.tested(measure), claims.differing(measure)
    noun = claims.noun(measure)
    if not shown:
        verb = "the two are" if len(tested) == 1 else f"no two {noun} are"
        return f"{verb} not shown to differ" if len(tested) == 1 else f"{verb} shown to differ"
    if len(tested) == 1:
        return f"{shown[0][0]} is shown to lie above {shown[0][1]}"
    more = f" and {len(shown) - MOST} more" if len(shown) > MOST else ""
    pairs = "; ".join(f"{first} above {second}" for first, second in shown[:MOST])
    verb = "is" if len(shown) == 1 else "are"
    return f"{len(shown)} of {len(tested)} pairs of {noun} {verb} shown to differ: {pairs}{more}"


def by_chance(intervals: int) -> str:
    """How many of so many 95 % intervals are expected to miss, as the end of a sentence.

    >>> by_chance(4)
    'one interval in twenty misses the truth by chance'
    >>> by_chance(96)
    'of 96 such intervals about 5 miss the truth by chance'
    """
    if intervals < 30:
        return "one interval in twenty misses the truth by chance"
    return f"of {intervals} such intervals about {intervals / 20:.0f} miss the truth by chance"
