"""Claims that a term of the analysis of variance explains something of the outcome.

A term is shown if one of its own contrasts is: for a factor the differences of all pairs of its
levels, for an interaction all differences of differences, for confounded terms all pairs of their
common cells. Every level of the first factor has a spread of its own (module `contrasts`), which
the F test does not allow for. The term's p-value is the smallest of its contrasts times their
number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import combinations, product

import numpy as np

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.contrasts import Contrast, fit
from evilspectra.analysis.linear import Layout, Term, independent, spelled
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.ranking import rank

#: A contrast that loses this share of its length in the space of the columns is not estimable.
_LOST = 1e-6


def term_claim(
    outcome: Outcome,
    values: Mapping[str, Sequence[str]],
    layout: Layout,
    unit: Sequence[Term],
    eta: float,
) -> Claim:
    """The claim that a unit of terms explains something: factor → level by run in `values`."""
    names = list(dict.fromkeys(name for term in unit for name in term))
    subject = (" + ".join(spelled(term) for term in unit),)
    if len(unit) == 1 and len(names) > 1:
        tested = _of_interaction(outcome, values, layout, unit[0])
    else:
        tested = _of_levels(outcome, values, names)
    ps = [p for p, _ in tested if p is not None]
    if not ps:
        note = "a level has too few runs to estimate its spread from"
        return Claim("variance", subject, eta, None, "none", note)
    smallest, method = min((p, method) for p, method in tested if p is not None)
    count = f"{len(ps)} contrasts, " if len(ps) > 1 else ""
    return Claim("variance", subject, eta, min(1.0, smallest * len(ps)), count + method)


def _of_levels(
    outcome: Outcome, values: Mapping[str, Sequence[str]], names: Sequence[str]
) -> list[tuple[float | None, str]]:
    """p-value and method of each pair of the factors' common levels."""
    groups = [" | ".join(levels) for levels in zip(*(values[name] for name in names), strict=True)]
    others = {name: levels for name, levels in values.items() if name not in names}
    ranking = rank(outcome, groups, others) or rank(outcome, groups)
    if ranking is None:
        return []
    return [(estimate.p, estimate.method) for estimate in ranking.differences.values()]


def _of_interaction(
    outcome: Outcome, values: Mapping[str, Sequence[str]], layout: Layout, term: Term
) -> list[tuple[float | None, str]]:
    """p-value and method of each difference of differences that the runs allow."""
    every = np.hstack([np.ones((layout.n, 1)), *layout.columns.values()])
    own = [layout.columns[other] for other in layout.columns if other != term]
    first = 1 + sum(columns.shape[1] for columns in own)
    ordered = np.hstack([np.ones((layout.n, 1)), *own, layout.columns[term]])
    columns = independent(ordered)
    if columns.shape[1] < every.shape[1]:
        columns, back = _basis(ordered)
    else:
        back = np.eye(ordered.shape[1])
    names = sorted(set(values[term[0]]))
    model = fit(outcome, columns, np.array([names.index(level) for level in values[term[0]]]))
    tested = []
    for within in _differences(values, term):
        c = np.concatenate([np.zeros(first), within]) @ back
        if np.linalg.norm(back @ c - np.concatenate([np.zeros(first), within])) > _LOST:
            continue
        contrast: Contrast = model.contrast(c)
        tested.append((contrast.p, contrast.method))
    return tested


def _basis(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns [n, rank] that span the same, and the map [k, rank] from contrasts to theirs."""
    _, values, right = np.linalg.svd(columns, full_matrices=False)
    directions = right[values > 1e-8 * values[0]].T
    return columns @ directions, directions


def _differences(values: Mapping[str, Sequence[str]], term: Term) -> Iterable[np.ndarray]:
    """Each difference of differences of a term, over the term's sum-coded columns."""
    by_factor = []
    for name in term:
        count = len(set(values[name]))
        codes = np.vstack([np.eye(count - 1), -np.ones(count - 1)])
        by_factor.append([codes[i] - codes[j] for i, j in combinations(range(count), 2)])
    for parts in product(*by_factor):
        yield reduce(np.kron, parts)
