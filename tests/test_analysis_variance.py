"""Shares of variance: agreement with statsmodels and slow twins, confounding, replicates, rates."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st

from evilspectra.analysis.components import components
from evilspectra.analysis.design import describe
from evilspectra.analysis.estimate import noncentrality
from evilspectra.analysis.linear import lay_out
from evilspectra.analysis.outcome import Outcome, read
from evilspectra.analysis.variance import decompose, exchanged, weighted
from tests.reference.variance import (
    lmg_by_orders,
    noncentrality_by_root,
    omega_by_definition,
    sse,
    type3_by_cell_means,
)
from tests.support.simulated_sweeps import sweep

#: Two routes through float64 least squares of well-conditioned designs.
SAME = 1e-8


def measured(values: np.ndarray) -> Outcome:
    return Outcome("y", "as measured", values)


def unbalanced(seed: int = 0, interaction: float = 1.0) -> pd.DataFrame:
    """3 × 3 cells of 1 to 4 runs."""
    draw = np.random.default_rng(seed)
    cells = product(range(3), range(3))
    rows = [
        (f"o{i}", f"d{j}", i + 2 * j + interaction * i * j)
        for i, j in cells
        for _ in range(1 + (i + 2 * j) % 4)
    ]
    frame = pd.DataFrame(rows, columns=["optimizer", "data", "mean"])
    return frame.assign(y=frame["mean"] + draw.standard_normal(len(frame)))


@pytest.mark.parametrize("type_", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_anova_agrees_with_statsmodels(type_, seed):
    frame = unbalanced(seed)
    parts = decompose(frame, measured(frame["y"].to_numpy()), ["optimizer", "data"], permutations=0)
    table = sm.stats.anova_lm(
        smf.ols("y ~ C(optimizer, Sum) * C(data, Sum)", frame).fit(), typ=type_
    )
    rows = {
        "optimizer": "C(optimizer, Sum)",
        "data": "C(data, Sum)",
        "optimizer × data": "C(optimizer, Sum):C(data, Sum)",
    }
    effects = parts.type2 if type_ == 2 else parts.type3
    assert [effect.term for effect in effects] == list(rows)
    for effect in effects:
        theirs = table.loc[rows[effect.term]]
        assert (effect.ss, effect.df, effect.f, effect.p) == pytest.approx(
            tuple(theirs[name] for name in ("sum_sq", "df", "F", "PR(>F)")), rel=SAME
        )
    assert parts.residual_ss == pytest.approx(table.loc["Residual", "sum_sq"], rel=SAME)


def test_weighted_anova_agrees_with_statsmodels():
    frame = unbalanced()
    counted = np.random.default_rng(1).integers(50, 200, len(frame)).astype(float)
    misaligned = np.random.default_rng(2).binomial(counted.astype(int), 0.2).astype(float)
    rates = misaligned / counted
    outcome = Outcome("misalignment", "logit", rates, misaligned, counted)
    values = {name: list(frame[name]) for name in ("optimizer", "data")}
    response, layout = weighted(outcome, values, 1, lay_out(values, 1))
    parts = decompose(frame, outcome, ["optimizer", "data"], 1, permutations=0)
    theirs = sm.stats.anova_lm(
        smf.wls(
            "z ~ C(optimizer) + C(data)", frame.assign(z=response), weights=layout.root**2
        ).fit(),
        typ=2,
    )
    assert [effect.f for effect in parts.type2] == pytest.approx(
        theirs["F"].dropna().tolist(), rel=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_type3_omega_and_lmg_agree_with_brute_force(seed):
    frame = unbalanced(seed)
    y, a, b = frame["y"].to_numpy(), frame["optimizer"].tolist(), frame["data"].tolist()
    parts = decompose(frame, measured(y), ["optimizer", "data"], permutations=0)
    assert [effect.ss for effect in parts.type3] == pytest.approx(
        type3_by_cell_means(y, a, b), rel=SAME
    )
    for effect in parts.type2:
        assert effect.omega == pytest.approx(
            omega_by_definition(effect.ss, effect.df, parts.residual_ss, parts.residual_df, len(y)),
            rel=SAME,
        )
        assert effect.eta.low <= max(effect.omega, 0) <= effect.eta.high
    c = [str(row % 4) for row in range(len(y))]
    three = decompose(frame.assign(c=c), measured(y), ["optimizer", "data", "c"], 1, permutations=0)
    assert three.lmg == pytest.approx(
        lmg_by_orders(y, {"optimizer": a, "data": b, "c": c}), rel=1e-6
    )
    assert sum(three.lmg.values()) == pytest.approx(1 - sse(y, a, b, c) / sse(y), rel=SAME)


@given(
    f=st.floats(0.01, 300),
    df1=st.integers(1, 8),
    df2=st.integers(3, 80),
    tail=st.sampled_from([0.025, 0.975]),
)
@settings(max_examples=60)
def test_noncentrality_agrees_with_a_root_search(
    f,
    df1,
    df2,
    tail,
):
    assert float(noncentrality(f, df1, df2, tail)) == pytest.approx(
        noncentrality_by_root(f, df1, df2, tail), rel=1e-5, abs=1e-6
    )


def test_balanced_shares_add_up():
    frame = sweep()
    parts = decompose(
        frame, measured(frame["mean_alignment"].to_numpy()), ["optimizer", "data"], permutations=0
    )
    assert sum(effect.ss for effect in parts.type2) + parts.residual_ss == pytest.approx(
        parts.total_ss, rel=SAME
    )
    assert [effect.ss for effect in parts.type2] == pytest.approx(
        [effect.ss for effect in parts.type3], rel=SAME
    )


@given(scale=st.floats(0.1, 100), shift=st.floats(-100, 100))
@settings(max_examples=20)
def test_shares_do_not_depend_on_unit_origin_or_order_of_runs(scale, shift):
    frame = unbalanced()
    y = frame["y"].to_numpy()
    mixed = np.random.default_rng(0).permutation(len(y))
    first = decompose(frame, measured(y), ["optimizer", "data"], permutations=0)
    second = decompose(
        frame.iloc[mixed].reset_index(drop=True),
        measured(scale * y[mixed] + shift),
        ["optimizer", "data"],
        permutations=0,
    )
    assert [effect.eta.value for effect in first.type2] == pytest.approx(
        [effect.eta.value for effect in second.type2], rel=1e-6
    )


def test_confounded_factors_are_given_as_one():
    frame = pd.DataFrame(
        {
            "optimizer": list("aabbcc") * 3,
            "data": list("ppqqrr") * 3,
            "base": list("xy") * 9,
            "y": np.random.default_rng(0).standard_normal(18),
        }
    )
    parts = decompose(
        frame, measured(frame["y"].to_numpy()), ["optimizer", "data", "base"], 1, permutations=0
    )
    assert [effect.term for effect in parts.type2] == ["optimizer + data", "base"]
    assert parts.type2[0].df == 2
    assert parts.type2[0].ss == pytest.approx(
        sse(frame["y"].to_numpy(), frame["base"].tolist())
        - sse(frame["y"].to_numpy(), frame["base"].tolist(), frame["optimizer"].tolist()),
        rel=SAME,
    )
    assert parts.confounded[0].sentence == (
        "optimizer and data are confounded in these runs: what they explain together cannot be "
        "split, and is given as one"
    )
    assert parts.no_type3 == "terms are confounded"


def test_half_fraction_is_seen_as_confounded_with_interactions():
    """A 2^(3−1) fraction: each main effect is another two's interaction."""
    levels = [(a, b, a * b) for a in (-1, 1) for b in (-1, 1)] * 2
    frame = pd.DataFrame(levels, columns=["a", "b", "c"])
    confounded = describe(frame, ["a", "b", "c"], 2).confounded
    assert {frozenset(group.terms) for group in confounded} == {
        frozenset({"a", "b × c"}),
        frozenset({"b", "a × c"}),
        frozenset({"c", "a × b"}),
    }
    assert describe(frame, ["a", "b", "c"], 1).confounded == ()


def test_empty_cells_are_no_confounding():
    frame = unbalanced()
    frame = frame[(frame["optimizer"] != "o2") | (frame["data"] != "d2")].reset_index(drop=True)
    parts = decompose(frame, measured(frame["y"].to_numpy()), ["optimizer", "data"], permutations=0)
    assert parts.confounded == ()
    assert parts.type2[2].df == 3
    assert (
        parts.no_type3
        == "cells are empty, so type III compares averages over levels that have no runs"
    )
    assert "8 of 9 combinations have runs" in describe(frame, ["optimizer", "data"]).sentence


def test_without_replicates_the_highest_interaction_is_the_residual():
    frame = sweep(seeds=1)
    parts = decompose(
        frame, measured(frame["mean_alignment"].to_numpy()), ["optimizer", "data"], permutations=0
    )
    assert (parts.order, parts.residual_df) == (1, 6)
    assert "nothing is replicated" in parts.notes[0]


def test_permutations_stay_within_blocks():
    blocks = list("abcabc")
    drawn = exchanged(6, blocks, 50, np.random.default_rng(0))
    assert (np.sort(drawn, axis=1) == np.arange(6)).all()
    assert all(np.asarray(blocks)[row].tolist() == blocks for row in drawn)
    assert len({tuple(row) for row in drawn.tolist()}) == 8


def test_rates_keep_runs_without_misaligned_answers():
    frame = pd.DataFrame(
        {
            "misalignment": [0.0, 0.1, 0.2],
            "misaligned": [0, 10, 2],
            "misalignment_counted": [100, 100, 10],
        }
    )
    outcome = read(frame, "misalignment")
    assert np.isfinite(outcome.values).all()
    assert "1 runs without a misaligned answer stay in" in outcome.note


def test_rates_weigh_by_their_answers():
    counted = np.array([100.0, 400, 100, 400])
    rates = Outcome("misalignment", "logit", np.zeros(4), counted * 0.2, counted)
    factors = {"optimizer": ["a", "a", "b", "b"]}
    _, layout = weighted(rates, factors, 1, lay_out(factors, 1))
    assert (layout.root[1] / layout.root[0]) ** 2 == pytest.approx(4)


def test_shares_of_replicates_by_hand():
    frame = pd.DataFrame(
        {
            "optimizer": list("aabb") * 2,
            "seed": [0, 1, 0, 1] * 2,
            "generation_seed": [0] * 4 + [1] * 4,
        }
    )
    parts = components(frame, np.array([1.0, 2, 5, 6, 1.2, 2.2, 5.2, 6.2]), ["optimizer"])
    assert parts.generation_var.value == pytest.approx(0.02)
    assert parts.seed_var.value == pytest.approx(0.5 - 0.02 / 2)
    assert parts.reasons == {"judge": "one judge alone: judge the same answers by a second one"}
    judged = components(
        frame.rename(columns={"generation_seed": "judge"}),
        np.array([1.0, 2, 5, 6, 3, 4.1, 7, 8]),
        ["optimizer"],
    )
    assert judged.judge.eta.value > 0.99
