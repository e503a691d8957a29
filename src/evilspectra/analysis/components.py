"""Variance between replicates: training seeds, generation seeds, judges.

| component | estimate | interval |
|---|---|---|
| training seeds, SD | √(SS within cells/df) | χ²: exact for normal values, balanced or not |
| training seeds, share | σ²/(σ² + effects), one-way over cells | noncentral F: exact likewise |
| generation seeds, variance | mean square within runs | χ² |
| training seeds beyond them, variance | (MS of runs − MS within runs)/m | modified large sample |
| judge | partial η² of the judge, adjusted for the run | noncentral F |

The modified large sample interval is Ting et al.'s (1990), on run means where unbalanced.

Rates come as working responses with the weights of their binomial model (module `counts`), so that
a run counts by how much its answers say; weights have mean 1, and a spread is that of a run of
average weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from evilspectra.analysis.estimate import TAIL, Frame, MethodEstimate, shares, spread_interval
from evilspectra.analysis.linear import lay_out, text_columns
from evilspectra.analysis.variance import Effect, effect_of, statistics

GENERATION, JUDGE = "generation_seed", "judge"


@dataclass(frozen=True, slots=True)
class Components:
    """Components of variance; those that the data do not give are None, with a reason in `reasons`.

    `seed_sd`, `seed_share`: training seeds within cells, answers' luck included. `generation_var`:
    between generation seeds of a run; `seed_var`: between training seeds beyond that. `judge`: the
    judge's effect, adjusted for the run's.
    """

    cells: int
    replicated: int
    seed_sd: MethodEstimate | None
    seed_share: MethodEstimate | None
    generation_var: MethodEstimate | None
    seed_var: MethodEstimate | None
    judge: Effect | None
    reasons: dict[str, str]


def components(
    frame: Frame,
    values: np.ndarray,
    cell: Sequence[str],
    seed: str = "seed",
    weights: np.ndarray | None = None,
) -> Components:
    """Components of the values [n] of a frame's rows, with weights [n].

    A row is a run, or a run × generation seed × judge where there are columns of those names;
    without such a column, rows that are alike in everything are repeats.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"optimizer": list("aabb"), "seed": [0, 1, 0, 1]})
    >>> parts = components(frame, np.array([1.0, 2, 5, 6]), ["optimizer"])
    >>> round(parts.seed_sd.value, 3), round(parts.seed_share.value, 3)
    (0.707, 0.114)
    """
    reasons: dict[str, str] = {}
    texts = text_columns(
        frame, [name for name in (*cell, seed, GENERATION, JUDGE) if name in frame]
    )
    cells = ["|".join(texts[name][row] for name in cell) for row in range(len(frame))]
    w = np.ones(len(values)) if weights is None else weights / weights.mean()
    several = [name for name in (GENERATION, JUDGE) if name in texts]
    runs = [
        f"{label}|{texts[seed][row]}" if several and seed in texts else str(row)
        for row, label in enumerate(cells)
    ]
    means, of_each, at = _means(values, w, runs)
    of_run = [cells[row] for row in at]
    sd = portion = generation = beyond = judge = None
    replicated = sum(of_run.count(label) > 1 for label in set(of_run))
    if not replicated:
        reasons["training seeds"] = "no cell has two runs: train at least two seeds a cell"
    else:
        ss, df = _within(means, of_each, of_run)
        sd = spread_interval(ss, df)
        portion = share_within(means, of_run, of_each)
    if GENERATION not in texts and len(set(texts.get(JUDGE, ()))) < 2:
        reasons["generation seeds"] = (
            f"the table has no column '{GENERATION}': sample with a second generation seed"
        )
    elif len(runs) == len(at):
        reasons["generation seeds"] = (
            "every run was sampled once: sample with a second generation seed"
        )
    elif JUDGE in texts and len(set(texts[JUDGE])) > 1:
        judge = judge_effect(values, runs, texts[JUDGE], w)
        reasons["generation seeds"] = "rows of one run differ by judge"
    else:
        generation, beyond = nested(values, runs, cells)
    if judge is None:
        reasons["judge"] = "one judge alone: judge the same answers by a second one"
    return Components(len(set(of_run)), replicated, sd, portion, generation, beyond, judge, reasons)


def _means(
    values: np.ndarray, weights: np.ndarray, groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Weighted means by group, mean weights of its rows, and the first row of each."""
    _, first, codes = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    sums = np.bincount(codes, weights=weights)
    means = np.bincount(codes, weights=weights * values) / sums
    return means, sums / np.bincount(codes), first.tolist()


def _within(values: np.ndarray, weights: np.ndarray, groups: Sequence[str]) -> tuple[float, int]:
    """Weighted sum of squares within groups, and its degrees of freedom."""
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    means = np.bincount(codes, weights=weights * values) / np.bincount(codes, weights=weights)
    squares = weights * (values - means[codes]) ** 2
    return float(squares.sum()), len(values) - len(means)


def share_within(
    values: np.ndarray, cells: Sequence[str], weights: np.ndarray | None = None
) -> MethodEstimate | None:
    """The share of variance within cells: 1 − λ/(λ + n) of the one-way analysis.

    The estimate is 1 − ω², at most 1. None for one cell, and where nothing varies within cells.
    """
    w = np.ones(len(values)) if weights is None else weights
    within, df = _within(values, w, cells)
    n, between_df = len(values), len(set(cells)) - 1
    between = _within(values, w, ["all"] * n)[0] - within
    if between_df < 1 or df < 1 or within <= 0:
        return None
    low, high = shares(between / between_df / (within / df), between_df, df, n)
    mse = within / df
    value = min(1.0, 1 - (between - between_df * mse) / (between + (n - between_df) * mse))
    ends = min(float(1 - high), value), max(float(1 - low), value)
    return MethodEstimate(value, *ends, "noncentral F")


def nested(
    values: np.ndarray, runs: Sequence[str], cells: Sequence[str]
) -> tuple[MethodEstimate | None, MethodEstimate | None]:
    """Variance within runs, and the excess between a cell's runs; None without data for it."""
    ones = np.ones(len(values))
    within, df = _within(values, ones, runs)
    if df < 1:
        return None, None
    spread = spread_interval(within, df)
    generation = MethodEstimate(
        spread.value**2, spread.low and spread.low**2, spread.high and spread.high**2, "χ²"
    )
    means, _, at = _means(values, ones, runs)
    ss, run_df = _within(means, np.ones(len(means)), [cells[row] for row in at])
    if run_df < 1:
        return generation, None
    counts = np.unique(np.asarray(runs), return_counts=True)[1]
    return generation, difference_of_squares(
        ss / run_df, run_df, generation.value, df, float(np.mean(1 / counts))
    )


def difference_of_squares(
    first: float,
    df1: int,
    second: float,
    df2: int,
    factor: float,
) -> MethodEstimate:
    """first − factor·second of independent mean squares, at least 0.

    The interval is Ting et al.'s (1990) modified large sample interval.

    >>> estimate = difference_of_squares(10.0, 10, 2.0, 20, 0.5)
    >>> estimate.value, round(estimate.low, 2), round(estimate.high, 2)
    (9.0, 3.78, 29.77)
    """
    a, b = first, factor * second
    upper1, lower1 = (special.chdtri(df1, tail) / df1 for tail in (TAIL, 1 - TAIL))
    upper2, lower2 = (special.chdtri(df2, tail) / df2 for tail in (TAIL, 1 - TAIL))
    g1, h1, g2, h2 = 1 - 1 / upper1, 1 / lower1 - 1, 1 - 1 / upper2, 1 / lower2 - 1
    top, bottom = special.fdtri(df1, df2, 1 - TAIL), special.fdtri(df1, df2, TAIL)
    g12 = ((top - 1) ** 2 - g1**2 * top**2 - h2**2) / top
    h12 = ((1 - bottom) ** 2 - h1**2 * bottom**2 - g2**2) / bottom
    low = a - b - math.sqrt(max(0.0, g1**2 * a * a + h2**2 * b * b + g12 * a * b))
    high = a - b + math.sqrt(max(0.0, h1**2 * a * a + g2**2 * b * b + h12 * a * b))
    return MethodEstimate(
        max(0.0, a - b), max(0.0, float(low)), max(0.0, float(high)), "modified large sample"
    )


def judge_effect(
    values: np.ndarray,
    runs: Sequence[str],
    judges: Sequence[str],
    weights: np.ndarray | None = None,
) -> Effect | None:
    """The judge's effect on values [n], adjusted for the run's; None if no residual is left."""
    layout = lay_out({"run": runs, "judge": judges}, 1, weights)
    unit, others = (("judge",),), [("run",)]
    y = layout.weighted(values - values.mean())
    _, _, rss, df = statistics(layout, y, unit, others)
    if df < 1:
        return None
    return effect_of(layout, y, unit, others, float(rss), df, None, 0)
