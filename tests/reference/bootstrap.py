"""Percentile intervals by a loop over resamples."""

from collections.abc import Callable, Sequence

import numpy as np


def interval_by_loop(
    count: int,
    statistic: Callable[[Sequence[int]], float],
    resamples: int = 4000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """`statistic` of all items, and its percentiles over `resamples` draws of as many items.

    It receives the items' numbers.
    """
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, count, (resamples, count))
    values = sorted(statistic(numbers.tolist()) for numbers in drawn)
    return (
        statistic(range(count)),
        _percentile(values, (1 - level) / 2),
        _percentile(values, (1 + level) / 2),
    )


def _percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest of the sorted values."""
    position = share * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])
