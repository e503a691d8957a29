"""The design of a set of runs: levels, cells, balance, replication, and confounded terms.

A term is *confounded* if it has fewer degrees of freedom when adjusted for all terms that do not
contain it than when adjusted only for its own lower-order terms. Then other terms explain the same
variance, no formula can split their shares, and they are reported as one. Empty cells that merely
shorten an interaction are not confounding, and are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from evilspectra.analysis.estimate import Frame
from evilspectra.analysis.linear import Layout, Term, lay_out, spelled, text_columns

#: The column that tells replicates apart.
SEED = "seed"


@dataclass(frozen=True, slots=True)
class Confounded:
    """Terms that share what they would explain.

    `lost`: degrees of freedom of each that the others already have.
    """

    terms: tuple[str, ...]
    lost: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """
        The confounding in one sentence.

        >>> Confounded(("optimizer", "data"), (2, 2)).sentence.split(":")[0]
        'optimizer and data are confounded in these runs'
        """
        *first, last = self.terms
        return (
            f"{', '.join(first)}{' and ' if first else ''}{last} are confounded in these runs: "
            "what they explain together cannot be split, and is given as one"
        )


@dataclass(frozen=True, slots=True)
class Design:
    """The design of a set of runs over its factors.

    `factors`: factor → level → runs. `cells`: those that have runs, of `possible`; `smallest` and
    `largest` count the runs of a cell that has any. `seeds`: distinct seeds of a cell, smallest and
    largest; None without a column of seeds. `replicated`: cells with two runs or more. `dropped`:
    terms of which no cell shows anything.
    """

    runs: int
    factors: dict[str, dict[str, int]]
    constant: tuple[str, ...]
    cells: int
    possible: int
    smallest: int
    largest: int
    balanced: bool
    replicated: int
    seeds: tuple[int, int] | None
    confounded: tuple[Confounded, ...]
    dropped: tuple[str, ...]

    @property
    def factorial(self) -> bool:
        """Whether every combination of levels has a run."""
        return self.cells == self.possible

    @property
    def sentence(self) -> str:
        """The design in one sentence."""
        factors = " × ".join(f"{name} ({len(levels)})" for name, levels in self.factors.items())
        filled = (
            "every combination has runs"
            if self.factorial
            else f"{self.cells} of {self.possible} combinations have runs"
        )
        number = (
            f"{self.smallest} each"
            if self.smallest == self.largest
            else f"{self.smallest} to {self.largest} each: unbalanced"
        )
        replication = "" if self.replicated else "; nothing is replicated"
        return f"{self.runs} runs, {factors}: {filled}, {number}{self._seeds_text()}{replication}"

    def _seeds_text(self) -> str:
        if self.seeds is None:
            return ""
        fewest, most = self.seeds
        if fewest == most:
            return f"; {fewest} seed{'' if fewest == 1 else 's'} a cell"
        return f"; {fewest} to {most} seeds a cell"


def describe(frame: Frame, factors: Sequence[str], order: int = 2) -> Design:
    """The design of the runs of a frame over factors.

    Terms up to products of `order` are checked for confounding.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"optimizer": ["sgd", "lion"] * 4, "data": ["a", "a", "b", "b"] * 2})
    >>> describe(frame, ["optimizer", "data"]).sentence
    '8 runs, optimizer (2) × data (2): every combination has runs, 2 each'
    """
    values = text_columns(frame, factors)
    counts = {name: dict(sorted(Counter(levels).items())) for name, levels in values.items()}
    varying = [name for name in factors if len(counts[name]) > 1]
    cells = (
        Counter(zip(*(values[name] for name in varying), strict=True))
        if varying
        else Counter({(): len(frame)})
    )
    layout = (
        lay_out({name: values[name] for name in varying}, min(order, len(varying)))
        if varying
        else None
    )
    confounded, dropped = aliases(layout) if layout else ((), ())
    possible = prod(len(counts[name]) for name in varying)
    return Design(
        runs=len(frame),
        factors={name: counts[name] for name in varying},
        constant=tuple(name for name in factors if len(counts[name]) == 1),
        cells=len(cells),
        possible=possible,
        smallest=min(cells.values(), default=0),
        largest=max(cells.values(), default=0),
        balanced=len(set(cells.values())) <= 1 and len(cells) == possible,
        replicated=sum(count > 1 for count in cells.values()),
        seeds=_seeds(frame, values, varying),
        confounded=tuple(
            Confounded(tuple(spelled(term) for term in group), lost) for group, lost in confounded
        ),
        dropped=tuple(spelled(term) for term in dropped),
    )


def _seeds(
    frame: Frame, values: dict[str, list[str]], varying: Sequence[str]
) -> tuple[int, int] | None:
    if SEED not in frame or SEED in varying:
        return None
    seeds_of: dict[tuple[str, ...], set[str]] = {}
    for row, seed in enumerate(frame[SEED]):
        seeds_of.setdefault(tuple(values[name][row] for name in varying), set()).add(str(seed))
    return min(map(len, seeds_of.values())), max(map(len, seeds_of.values()))


def aliases(
    layout: Layout,
) -> tuple[tuple[tuple[tuple[Term, ...], tuple[int, ...]], ...], tuple[Term, ...]]:
    """Groups of confounded terms and the degrees of freedom that each loses; and dropped terms.

    Dropped are terms of which no cell shows anything.
    """
    lost: dict[Term, int] = {}
    partners: dict[Term, set[Term]] = {}
    dropped: list[Term] = []
    for term in layout.terms:
        own = [other for other in layout.terms if set(other) < set(term)]
        alone = layout.added(term, own).shape[1]
        if not alone:
            dropped.append(term)
            continue
        others = layout.without(term)
        remaining = layout.added(term, others).shape[1]
        if remaining < alone:
            lost[term] = alone - remaining
            partners[term] = {
                other
                for other in others
                if layout.added(term, [third for third in others if third != other]).shape[1]
                > remaining
            } or set(others)
    groups: list[set[Term]] = []
    for term in lost:
        linked = {term} | {other for other in partners[term] if other in lost}
        touching = [group for group in groups if group & linked]
        groups = [group for group in groups if not group & linked] + [linked.union(*touching)]
    ordered = [tuple(term for term in layout.terms if term in group) for group in groups]
    return tuple((group, tuple(lost[term] for term in group)) for group in ordered), tuple(dropped)
