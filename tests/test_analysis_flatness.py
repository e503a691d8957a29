"""Flatness, the penalty's pairs and ranks: agreement with residuals, pairs and statsmodels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from evilspectra.analysis.linear import lay_out
from evilspectra.analysis.mediation import partial_correlation
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.penalty import ALL, pairs, penalty
from evilspectra.analysis.ranking import rank
from tests.support.simulated_sweeps import sweep

SAME = 1e-8


def test_partial_correlation_agrees_with_residuals():
    draw, groups = np.random.default_rng(3), ["a", "b", "c"] * 8
    x, y, z = draw.standard_normal((3, 24))
    frame = pd.DataFrame({"x": x, "y": y, "z": z, "g": groups})
    left = [smf.ols(f"{name} ~ z + C(g)", frame).fit().resid for name in "xy"]
    layout = lay_out({"g": groups}, 1, numbers={"z": z})
    assert partial_correlation(x, y, layout.basis(layout.terms)).value == pytest.approx(
        np.corrcoef(*left)[0, 1], rel=SAME
    )


def test_penalty_is_compared_within_pairs_alone():
    base = pd.DataFrame(
        {
            "optimizer": ["adamw", "adamw", "sgd"],
            "seed": [0, 1, 0],
            "lr": 1e-3,
            "flatness_weight": 0.0,
            "mean_alignment": [60.0, 62, 70],
        }
    )
    weak, strong = (
        base.assign(flatness_weight=weight, mean_alignment=base["mean_alignment"] + gain)
        for weight, gain in ((0.1, [1.0, 3, -2]), (1.0, [5.0, 7, -6]))
    )
    alone = base.iloc[:1].assign(seed=9, flatness_weight=1.0, mean_alignment=99.0)
    frame = pd.concat([base, weak, strong, alone], ignore_index=True)
    assert pairs(frame) == [(3, 0), (4, 1), (5, 2), (6, 0), (7, 1), (8, 2)]
    effects = penalty(frame).effects
    by_arm = {
        (effect.optimizer, effect.treatment): (
            round(effect.difference.value, 9),
            effect.pairs,
            effect.baselines,
        )
        for effect in effects
        if effect.measure == "mean_alignment"
    }
    assert by_arm == {
        ("adamw", "λ = 0.1"): (2.0, 2, 2),
        ("adamw", "λ = 1"): (6.0, 2, 2),
        ("adamw", ALL): (4.0, 4, 2),
        ("sgd", "λ = 0.1"): (-2.0, 1, 1),
        ("sgd", "λ = 1"): (-6.0, 1, 1),
        ("sgd", ALL): (-4.0, 2, 1),
    }
    assert {effect.difference.p for effect in effects if effect.optimizer == "sgd"} == {None}


def test_differences_of_a_ranking_agree_with_welch():
    frame = sweep(seeds=4)
    outcome = Outcome("mean_alignment", "as measured", frame["mean_alignment"].to_numpy())
    ranking = rank(outcome, frame["optimizer"].tolist())
    values = {name: rows.to_numpy() for name, rows in frame.groupby("optimizer")["mean_alignment"]}
    assert len(ranking.differences) == 6
    for (first, second), difference in ranking.differences.items():
        theirs = stats.ttest_ind(values[first], values[second], equal_var=False)
        interval = theirs.confidence_interval()
        assert difference.p == pytest.approx(theirs.pvalue, rel=1e-6)
        assert (difference.low, difference.high) == pytest.approx(tuple(interval), rel=1e-6)
