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
    tested, pairs = claims.tested(measure), claims.differing(measure)
    noun = claims.noun(measure)
    if not pairs:
        alone = len(tested) == 1
        return "the two are not shown to differ" if alone else f"no two {noun} are shown to differ"
    if len(tested) == 1:
        return f"{pairs[0][0]} is shown to lie above {pairs[0][1]}"
    more = f" and {len(pairs) - MOST} more" if len(pairs) > MOST else ""
    listed = "; ".join(f"{first} above {second}" for first, second in pairs[:MOST])
    verb = "is" if len(pairs) == 1 else "are"
    return f"{len(pairs)} of {len(tested)} pairs of {noun} {verb} shown to differ: {listed}{more}"


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
