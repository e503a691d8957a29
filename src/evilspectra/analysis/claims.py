"""The claims of a page and their common error budget.

Everything that a page may show is one claim with one decision, which its sentences, tables and
figures share. Claims are decided by Holm's procedure with weights (Holm 1979; Benjamini and
Hochberg 1997): whatever else is true, at most 5 % of pages hold a false claim. A section's weight
is divided equally among its claims; that of sections without a claim that can be tested goes to the
others in proportion. Both depend on the design alone, not on the outcome. A claim that is shown
frees its share for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from evilspectra.intervals import LEVEL

#: Section → its weight in the budget. "arms": what a report says of arms beyond the analysis.
WEIGHTS = {
    "ranking": 0.30,
    "variance": 0.10,
    "slope": 0.04,
    "slopes": 0.02,
    "equal loss": 0.08,
    "matched": 0.02,
    "training": 0.03,
    "flatness": 0.05,
    "penalty": 0.30,
    "penalty, other measures": 0.04,
    "penalty differs": 0.02,
    "arms": 0.10,
}
#: The chance that a page holds a false claim is at most this.
BUDGET = round(1 - LEVEL, 10)
#: A section with a budget of its own: two one-sided tests.
EQUIVALENCE = "equivalence"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on a page.

    `section`: of WEIGHTS, or EQUIVALENCE; `subject`: what it is about, such as two groups or a
    measure; `value`: the estimate, whose sign is the direction; `p`: of this claim alone, None if
    it cannot be tested (`note` says why); `adjusted`: over the whole page: the claim is shown where
    this is at most 0.05; `family`: how many claims share the budget.

    >>> Claim("ranking", ("adam", "lion"), 2.0, 0.001, "Welch's t").shown
    False
    """

    section: str
    subject: tuple[str, ...]
    value: float
    p: float | None
    method: str
    note: str | None = None
    adjusted: float | None = None
    family: int = 0
    shown: bool = False


def decide(claims: Iterable[Claim], budget: float = BUDGET) -> tuple[Claim, ...]:
    """The claims with adjusted p-values and decisions, in their order.

    Claims of EQUIVALENCE share a budget of their own.

    >>> first = Claim("ranking", ("a", "b"), 2.0, 0.001, "t")
    >>> second = Claim("penalty", ("a", "λ = 1", "drift"), 1.0, 0.5, "t")
    >>> [(claim.adjusted, claim.shown) for claim in decide([first, second])]
    [(0.002, True), (0.5, False)]
    """
    every = tuple(claims)
    main = _decided([claim for claim in every if claim.section != EQUIVALENCE], budget)
    equal = _decided([claim for claim in every if claim.section == EQUIVALENCE], budget)
    rest, other = iter(main), iter(equal)
    return tuple(next(other if claim.section == EQUIVALENCE else rest) for claim in every)


def _decided(claims: Sequence[Claim], budget: float) -> list[Claim]:
    tested = [number for number, claim in enumerate(claims) if claim.p is not None]
    sizes: dict[str, int] = {}
    for number in tested:
        sizes[claims[number].section] = sizes.get(claims[number].section, 0) + 1
    weights = {
        number: WEIGHTS.get(claims[number].section, 1.0) / sizes[claims[number].section]
        for number in tested
    }
    left = sum(weights.values())
    adjusted, reached = {}, 0.0
    for number in sorted(tested, key=lambda n: (claims[n].p or 0.0) / weights[n]):
        reached = max(reached, min(1.0, (claims[number].p or 0.0) * left / weights[number]))
        adjusted[number] = reached
        left = max(left - weights[number], 0.0)
    return [
        replace(
            claim,
            adjusted=adjusted.get(number),
            family=len(tested),
            shown=number in adjusted and adjusted[number] <= budget,
        )
        for number, claim in enumerate(claims)
    ]


def find(claims: Iterable[Claim], section: str, *subject: str) -> Claim | None:
    """The claim of a section on a subject, None if there is none."""
    for claim in claims:
        if claim.section == section and claim.subject == subject:
            return claim
    return None
