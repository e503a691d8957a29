"""The effect of the flatness penalty: runs with it against runs that differ in nothing else.

The penalty is an intervention, set and not observed. All of its settings (weight λ, measure,
coupling, recipe, modules, soft start) are the treatment; a pair is a run with it and the run
without it whose other settings and seed are the same. The effect of a treatment is the mean
difference over its pairs, with Student's interval of the pairs (of rates: of the pairs' counts).
Several treatments on one baseline share its noise: over all treatments, those of one baseline are
averaged first, so that one baseline is one difference however many treatments it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.contrasts import Contrast, between, fit
from evilspectra.analysis.estimate import Frame, MethodEstimate
from evilspectra.analysis.linear import independent, is_rounding, text_columns
from evilspectra.analysis.outcome import Outcome, numbers, read
from evilspectra.analysis.shared import WEIGHT, keys_but_penalty

#: Measures in which pairs are compared, if they were measured.
COMPARED = (
    "mean_alignment",
    "misalignment",
    "drift",
    "capability",
    "train_loss",
    "heldout_loss",
    "stable_rank",
)
#: Why there is no interval where the penalty changes nothing.
EQUAL = "all pairs are equal"
#: The treatment that stands for all of them together.
ALL = "all treatments"


@dataclass(frozen=True, slots=True)
class Paired:
    """Mean of with − without over the pairs of one optimiser and treatment.

    `treatment`: its settings, such as "λ = 1", or ALL; `weight`: λ, None where several are pooled;
    `pairs`: of runs; `baselines`: runs without the penalty, of which each counts once.
    """

    measure: str
    optimizer: str
    treatment: str
    weight: float | None
    pairs: int
    baselines: int
    difference: MethodEstimate


@dataclass(frozen=True, slots=True)
class Penalty:
    """Effects by measure, optimiser and treatment.

    `between`: measure → pair of optimisers → difference of their effects, all treatments together.
    """

    effects: tuple[Paired, ...]
    between: dict[str, dict[tuple[str, str], MethodEstimate]]


@dataclass(frozen=True, slots=True)
class _Pair:
    with_penalty: int
    without: int
    treatment: str
    weight: float


def penalty(frame: Frame, group: str = "optimizer") -> Penalty:
    """The penalty's effects in the runs of a frame; empty where no two runs differ in it alone."""
    matched = _pairs(frame)
    names = text_columns(frame, [group])[group] if group in frame else ["all"] * len(frame)
    effects: list[Paired] = []
    differences: dict[str, dict[tuple[str, str], MethodEstimate]] = {}
    for measure in COMPARED if matched else ():
        if measure not in frame:
            continue
        outcome = read(frame, measure)
        measured = [
            pair
            for pair in matched
            if np.isfinite(outcome.values[[pair.with_penalty, pair.without]]).all()
        ]
        pooled: dict[str, Contrast] = {}
        for name in sorted({names[pair.with_penalty] for pair in measured}):
            mine = [pair for pair in measured if names[pair.with_penalty] == name]
            own, pooled[name] = _effects(outcome, name, mine)
            effects += own
        differences[measure] = {
            (first, second): between(pooled[first], pooled[second]).estimate
            for first, second in combinations(pooled, 2)
        }
    return Penalty(tuple(effects), {name: own for name, own in differences.items() if own})


def pairs(frame: Frame) -> list[tuple[int, int]]:
    """Rows (with, without) whose settings and seed are equal but for the flatness penalty."""
    return [(pair.with_penalty, pair.without) for pair in _pairs(frame)]


def _pairs(frame: Frame) -> list[_Pair]:
    if WEIGHT not in frame:
        return []
    keys = keys_but_penalty(frame)
    weights = np.nan_to_num(numbers(frame, WEIGHT))
    treatments = _treatments(frame, weights)
    without = {key: row for row, key in reversed(list(enumerate(keys))) if weights[row] == 0}
    return [
        _Pair(row, without[key], treatments[row], float(weights[row]))
        for row, key in enumerate(keys)
        if weights[row] != 0 and key in without
    ]


def _treatments(frame: Frame, weights: np.ndarray) -> list[str]:
    """Each run's treatment: λ, and the settings of the penalty that vary between treated runs."""
    settings = [
        name
        for name in frame
        if isinstance(name, str) and name.startswith("flatness.") and name != "flatness.weight"
    ]
    texts = text_columns(frame, settings)
    treated = np.flatnonzero(weights != 0)
    varying = [name for name in settings if len({texts[name][row] for row in treated}) > 1]
    labels = []
    for row, weight in enumerate(weights):
        parts = [f"λ = {weight:g}"]
        parts += [f"{name.removeprefix('flatness.')} {texts[name][row]}" for name in varying]
        labels.append(", ".join(parts))
    return labels


def _effects(
    outcome: Outcome, optimizer: str, own: Sequence[_Pair]
) -> tuple[list[Paired], Contrast]:
    """Effects of each treatment under one optimiser and of all together, and the latter's contrast.

    With one treatment alone, that is the effect of all.
    """
    by_treatment: dict[str, list[_Pair]] = {}
    for pair in own:
        by_treatment.setdefault(pair.treatment, []).append(pair)
    effects = []
    for treatment, some in sorted(by_treatment.items(), key=lambda item: (item[1][0].weight, item)):
        effects.append(_paired(outcome, optimizer, treatment, some[0].weight, some))
    every = _contrast(outcome, own)
    if len(by_treatment) > 1:
        weights = {pair.weight for pair in own}
        weight = weights.pop() if len(weights) == 1 else None
        effects.append(_paired(outcome, optimizer, ALL, weight, own))
    return effects, every


def _paired(
    outcome: Outcome, optimizer: str, treatment: str, weight: float | None, own: Sequence[_Pair]
) -> Paired:
    baselines = len({pair.without for pair in own})
    difference = _contrast(outcome, own).estimate
    if difference.value == 0 and difference.low is None:
        difference = MethodEstimate(0.0, None, None, "paired t", EQUAL)
    elif difference.low is None and baselines == 1:
        note = "one baseline: no interval"
        difference = MethodEstimate(difference.value, None, None, "paired t", note)
    return Paired(outcome.name, optimizer, treatment, weight, len(own), baselines, difference)


def _contrast(outcome: Outcome, own: Sequence[_Pair]) -> Contrast:
    """With − without over pairs; the treated runs of one baseline count as one."""
    by_baseline: dict[int, list[int]] = {}
    for pair in own:
        by_baseline.setdefault(pair.without, []).append(pair.with_penalty)
    baselines = list(by_baseline)
    treated = list(by_baseline.values())
    values = np.concatenate(
        [outcome.values[baselines], [outcome.values[rows].mean() for rows in treated]]
    )
    misaligned = counted = None
    if outcome.misaligned is not None and outcome.counted is not None:
        misaligned, counted = (
            np.concatenate([counts[baselines], [counts[rows].sum() for rows in treated]])
            for counts in (outcome.misaligned, outcome.counted)
        )
    both = Outcome(outcome.name, outcome.scale, values, misaligned, counted)
    count = len(baselines)
    if counted is None and is_rounding(values[count:] - values[:count], values):
        return Contrast(0.0, math.nan, math.nan, "none")
    columns = np.hstack([np.tile(np.eye(count), (2, 1)), np.repeat([[0.0], [1.0]], count, axis=0)])
    model = fit(both, independent(columns), np.zeros(2 * count, int))
    effect = model.contrast(np.eye(count + 1)[count])
    method = "paired t" if effect.p is not None else effect.method
    return Contrast(effect.value, effect.error, effect.df, method)


def penalty_claims(result: Penalty, outcome: str) -> Iterator[Claim]:
    """The claims on the penalty: on the outcome, on other measures, and between optimisers."""
    for effect in result.effects:
        section = "penalty" if effect.measure == outcome else "penalty, other measures"
        subject = (effect.optimizer, effect.treatment, effect.measure)
        yield _claim(section, subject, effect.difference)
    pairwise: Mapping[tuple[str, str], MethodEstimate] = result.between.get(outcome, {})
    for pair, estimate in pairwise.items():
        yield _claim("penalty differs", pair, estimate)


def _claim(section: str, subject: tuple[str, ...], estimate: MethodEstimate) -> Claim:
    return Claim(section, subject, estimate.value, estimate.p, estimate.method, estimate.note)
