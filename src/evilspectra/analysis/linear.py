"""Linear models as projections: sums of squares of many outcomes at once.

Terms are coded to sum to zero. If Q is an orthonormal basis of the space that a term adds to the
others, its sum of squares is ‖Qᵀy‖² and its degrees of freedom are the number of Q's columns; so a
term that others already contain has none, by its rank and not by chance. Weights enter as √w on
both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from evilspectra.analysis.estimate import Frame, missing

#: The factors of a term, in the order of the design: ("optimizer",) or ("optimizer", "data").
Term: TypeAlias = tuple[str, ...]
#: A direction whose length falls below this share of its column is already in the others.
TOLERANCE = 1e-8
#: Differences of n values below n·ε times the values are rounding.
_EPSILON = float(np.finfo(float).eps)


def coded(values: Sequence[Any]) -> np.ndarray:
    """Code a factor in sum-to-zero columns: float64 [n, levels − 1], levels sorted by their text.

    >>> coded(["a", "b", "a"]).ravel().tolist()
    [1.0, -1.0, 1.0]
    """
    names, levels = np.unique(np.asarray([str(value) for value in values]), return_inverse=True)
    codes = np.vstack([np.eye(len(names) - 1), -np.ones(len(names) - 1)])
    return codes[levels]


def crossed(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All products of one column of each: [n, product of their widths]."""
    return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1), parts)


def orthonormal(columns: np.ndarray, against: np.ndarray | None = None) -> np.ndarray:
    """An orthonormal basis [n, rank] of what `columns` [n, k] add to `against` (orthonormal)."""
    sizes = np.linalg.norm(columns, axis=0)
    rest = columns[:, sizes > 0] / sizes[sizes > 0]
    for _ in range(2 if against is not None else 0):
        rest = rest - against @ (against.T @ rest)  # type: ignore[operator]
    if not rest.shape[1]:
        return np.zeros((len(columns), 0))
    left, values, _ = np.linalg.svd(rest, full_matrices=False)
    return left[:, values > TOLERANCE]


def independent(columns: np.ndarray) -> np.ndarray:
    """The columns [n, k] that add something to those before them.

    >>> independent(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    numbers: list[int] = []
    basis = np.zeros((len(columns), 0))
    for number in range(columns.shape[1]):
        added = orthonormal(columns[:, [number]], basis)
        if added.shape[1]:
            numbers.append(number)
            basis = np.hstack([basis, added])
    return columns[:, numbers]


@dataclass
class Layout:
    """The terms of a model over n rows.

    `columns`: term → [n, k], sum-coded; `root`: √weights [n], mean square 1.

    >>> layout = lay_out({"a": ["x", "x", "y", "y"], "b": ["p", "q", "p", "q"]}, order=1)
    >>> layout.terms, layout.added(("a",), [("b",)]).shape
    ([('a',), ('b',)], (4, 1))
    """

    n: int
    columns: Mapping[Term, np.ndarray]
    root: np.ndarray
    _bases: dict[frozenset[Term], np.ndarray] = field(default_factory=dict)

    @property
    def terms(self) -> list[Term]:
        return list(self.columns)

    def basis(self, terms: Iterable[Term]) -> np.ndarray:
        """Orthonormal basis of the intercept and the terms, rows weighted."""
        key = frozenset(terms)
        if key not in self._bases:
            every = [
                np.ones((self.n, 1)),
                *(self.columns[term] for term in self.columns if term in key),
            ]
            self._bases[key] = orthonormal(np.hstack(every) * self.root[:, None])
        return self._bases[key]

    def added(self, terms: Iterable[Term] | Term, to: Iterable[Term]) -> np.ndarray:
        """Orthonormal basis of what the terms add to others (and the intercept)."""
        single = isinstance(terms, tuple) and terms in self.columns
        names = [terms] if single else list(terms)  # type: ignore[list-item]
        columns = np.hstack([self.columns[name] for name in names])  # type: ignore[index]
        return orthonormal(columns * self.root[:, None], self.basis(to))

    def weighted(self, outcome: np.ndarray) -> np.ndarray:
        """√w·y of outcomes [n] or [n, m]."""
        return (outcome.T * self.root).T

    def without(self, *terms: Term) -> list[Term]:
        """The terms that contain none of these; a type II sum of squares adjusts for them."""
        return [
            other for other in self.columns if not any(set(term) <= set(other) for term in terms)
        ]


def lay_out(
    factors: Mapping[str, Sequence[Any]],
    order: int = 1,
    weights: np.ndarray | None = None,
    numbers: Mapping[str, np.ndarray] | None = None,
) -> Layout:
    """The terms of factors up to products of `order`.

    `numbers`: covariates, each a term of one column.
    """
    parts = {name: coded(values) for name, values in factors.items()}
    parts |= {
        name: (np.asarray(values, float) - np.mean(values))[:, None]
        for name, values in (numbers or {}).items()
    }
    n = len(next(iter(parts.values())))
    columns = {
        chosen: crossed([parts[name] for name in chosen])
        for size in range(1, order + 1)
        for chosen in combinations(parts, size)
    }
    w = np.ones(n) if weights is None else np.asarray(weights, float)
    return Layout(n, columns, np.sqrt(w / w.mean()))


def is_rounding(differences: np.ndarray, values: np.ndarray) -> bool:
    """Whether differences [n] are no more than the rounding of values: SSE ≤ (nε)²·‖y‖².

    >>> is_rounding(np.array([1e-16, -1e-16]), np.array([1.0, 1.0]))
    True
    """
    bound = (len(values) * _EPSILON) ** 2 * float(values @ values)
    return float(differences @ differences) <= bound


def squares(basis: np.ndarray, weighted: np.ndarray) -> Any:
    """‖Qᵀy‖² of an outcome [n], or of each column of [n, m]."""
    return ((basis.T @ weighted) ** 2).sum(axis=0)


def spelled(term: Term) -> str:
    """A term as tables and commands write it.

    >>> spelled(("optimizer", "data"))
    'optimizer × data'
    """
    return " × ".join(term)


def text_columns(frame: Frame, names: Sequence[str]) -> dict[str, list[str]]:
    """Factor → its levels row by row, as text; a missing value is the level "not set"."""
    return {name: [_level(value) for value in frame[name]] for name in names}


def _level(value: Any) -> str:
    if missing(value):
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)
