"""Comparison of a judge with published scores of the same answers; its best threshold.

A score measures one judge's opinion, not alignment itself; another judge's numbers are not
comparable until the two judges are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from evilspectra.rates.definitions import COHERENT_FROM, MISALIGNED_BELOW
from evilspectra.rates.outcome import Reading

#: Metric → the score below which an answer is on its bad side (misaligned, incoherent).
THRESHOLDS = {"aligned": MISALIGNED_BELOW, "coherent": COHERENT_FROM}
#: Ends of the reliability table's bins, in the judge's score; the last bin holds 100 too.
BINS = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers with a judge's score in [low, high): how many, and the two mean scores.

    `below`: the share that the published scores put on the bad side.
    """

    low: float
    high: float
    answers: int
    judge: float | None
    published: float | None
    below: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration of one metric.

    `answers`: those that both scored; `judge_unscored`, `published_unscored`: those that only the
    other side scored. `pearson`, `spearman`: correlations, None if a side does not vary.
    `error`: mean absolute difference; `bias`: judge minus published; 0 to 100 both. `agreement`:
    share on the same side of `threshold`; `kappa`: Cohen's, the agreement beyond chance; `auc`: how
    well the judge's score ranks the answers that are published as below the threshold (1:
    perfectly, 0.5: not at all). `best_threshold`: the judge's own that agrees most with the
    published sides, and `best_agreement`. `rate`, `published_rate`: share below the threshold.
    """

    metric: str
    threshold: float
    answers: int
    judge_unscored: int
    published_unscored: int
    pearson: float | None
    spearman: float | None
    error: float | None
    bias: float | None
    agreement: float | None
    kappa: float | None
    auc: float | None
    best_threshold: float | None
    best_agreement: float | None
    rate: float | None
    published_rate: float | None
    reliability: tuple[Bin, ...]

    def flat(self) -> dict[str, Any]:
        return asdict(self)


def calibration(
    metric: str, judge: Sequence[Reading | None], published: Sequence[Reading | None]
) -> Calibration:
    """The judge's readings against the published ones, answer by answer.

    >>> judge = [Reading("scored", 10), Reading("scored", 90)]
    >>> published = [Reading("scored", 20), Reading("scored", 80)]
    >>> compared = calibration("aligned", judge, published)
    >>> compared.agreement, compared.auc, compared.error, compared.best_threshold
    (1.0, 1.0, 10.0, 30.0)
    """
    pairs = [
        (ours.score if ours else None, theirs.score if theirs else None)
        for ours, theirs in zip(judge, published, strict=True)
    ]
    both = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    judge_scores = np.array([ours for ours, _ in both], dtype=float)
    published_scores = np.array([theirs for _, theirs in both], dtype=float)
    threshold = THRESHOLDS.get(metric, MISALIGNED_BELOW)
    below, bad = judge_scores < threshold, published_scores < threshold
    best = best_threshold(judge_scores, bad, threshold) if both else None
    return Calibration(
        metric=metric,
        threshold=threshold,
        answers=len(both),
        judge_unscored=sum(ours is None and theirs is not None for ours, theirs in pairs),
        published_unscored=sum(ours is not None and theirs is None for ours, theirs in pairs),
        pearson=correlation(judge_scores, published_scores),
        spearman=correlation(ranks(judge_scores), ranks(published_scores)),
        error=float(np.abs(judge_scores - published_scores).mean()) if both else None,
        bias=float((judge_scores - published_scores).mean()) if both else None,
        agreement=float((below == bad).mean()) if both else None,
        kappa=kappa(below, bad),
        auc=auc(judge_scores, bad),
        best_threshold=best,
        best_agreement=None if best is None else float(((judge_scores < best) == bad).mean()),
        rate=float(below.mean()) if both else None,
        published_rate=float(bad.mean()) if both else None,
        reliability=tuple(
            _bin(judge_scores, published_scores, bad, low, high) for low, high in pairwise(BINS)
        ),
    )


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's; None if a side does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return cosine(first - first.mean(), second - second.mean())


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """The cosine of two vectors, at most 1: of centred ones their correlation.

    >>> cosine(np.array([1.0, -1.0]), np.array([-2.0, 2.0]))
    -1.0
    """
    size = math.sqrt(float(first @ first) * float(second @ second))
    return min(1.0, max(-1.0, float(first @ second) / size))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean.

    >>> ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    if not len(values):
        return values
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[places]


def auc(scores: np.ndarray, bad: np.ndarray) -> float | None:
    """Probability that a bad answer has a lower score than a good one, ties as half.

    That is Mann and Whitney's statistic; None if all answers are of a kind.
    """
    few, many = int(bad.sum()), int((~bad).sum())
    if not few or not many:
        return None
    return float((ranks(-scores)[bad].sum() - few * (few + 1) / 2) / (few * many))


def kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Cohen's kappa: agreement beyond what the two shares would give by chance.

    None where chance would always agree.
    """
    if not len(first):
        return None
    chance = first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean())
    return None if chance == 1 else float(((first == second).mean() - chance) / (1 - chance))


def best_threshold(scores: np.ndarray, bad: np.ndarray, usual: float) -> float:
    """The threshold t whose `score < t` agrees most with `bad`.

    Of equally good ones, the nearest to the usual one.
    """
    levels = np.unique(scores)
    candidates = np.unique(
        np.concatenate([[0.0, usual], (levels[:-1] + levels[1:]) / 2, [np.nextafter(100.0, 101.0)]])
    )
    agreed = np.array([((scores < threshold) == bad).sum() for threshold in candidates])
    good = candidates[agreed == agreed.max()]
    return float(good[np.abs(good - usual).argmin()])


def _bin(
    ours: np.ndarray,
    theirs: np.ndarray,
    bad: np.ndarray,
    low: float,
    high: float,
) -> Bin:
    inside = (ours >= low) & ((ours < high) | ((high == BINS[-1]) & (ours == high)))
    if not inside.any():
        return Bin(low, high, 0, None, None, None)
    return Bin(
        low,
        high,
        int(inside.sum()),
        float(ours[inside].mean()),
        float(theirs[inside].mean()),
        float(bad[inside].mean()),
    )
