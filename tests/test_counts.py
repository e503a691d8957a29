"""Rates as counts and contrasts with a spread per level, against references and by their laws."""

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from evilspectra.analysis.claims import BUDGET, WEIGHTS, Claim, decide
from evilspectra.analysis.contrasts import fit
from evilspectra.analysis.counts import fit_counts
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.ranking import rank, settle


def rate(misaligned, counted):
    misaligned, counted = np.asarray(misaligned, float), np.asarray(counted, float)
    return Outcome("misalignment", "logit", misaligned / counted, misaligned, counted)


def measured(values):
    return Outcome("mean_alignment", "as measured", np.asarray(values, float))


def drawn(seed, runs=20, rate=0.05, between=0.0):
    random = np.random.default_rng(seed)
    counted = random.integers(20, 500, runs).astype(float)
    columns = np.column_stack([np.ones(runs), np.arange(runs) % 2, random.standard_normal(runs)])
    logit = np.log(rate / (1 - rate)) + columns @ [0, 0.5, 0.3]
    logit += between * random.standard_normal(runs)
    misaligned = random.binomial(counted.astype(int), 1 / (1 + np.exp(-logit))).astype(float)
    return misaligned, counted, columns


@pytest.mark.parametrize("seed", range(5))
def test_coefficients_maximise_firths_penalised_likelihood(seed):
    """Without variance between runs: log likelihood + ½·ln|information|, result by search."""
    misaligned, counted, columns = drawn(seed)

    def loss(beta):
        logit = columns @ beta
        likelihood = misaligned @ logit - counted @ np.logaddexp(0, logit)
        weights = counted / (2 + np.exp(logit) + np.exp(-logit))
        return -likelihood - np.linalg.slogdet(columns.T @ (columns * weights[:, None]))[1] / 2

    theirs = optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    ours = fit_counts(misaligned, counted, columns, np.zeros(20, int), sampling=True)
    assert ours.coefficients == pytest.approx(theirs, abs=1e-5)


def test_many_answers_give_the_binomial_model_of_statsmodels():
    misaligned, counted, columns = drawn(1)
    theirs = sm.GLM(
        np.column_stack([misaligned, counted - misaligned]) * 1e6,
        columns,
        family=sm.families.Binomial(),
    ).fit()
    ours = fit_counts(misaligned * 1e6, counted * 1e6, columns, np.zeros(20, int), sampling=True)
    assert ours.coefficients == pytest.approx(theirs.params, abs=1e-5)


@pytest.mark.parametrize("truth", [0.0, 0.3, 0.6])
def test_the_variance_between_runs_is_found(truth):
    result = []
    for seed in range(60):
        misaligned, counted, columns = drawn(seed, 40, 0.2, truth)
        result.append(fit_counts(misaligned, counted, columns, np.zeros(40, int)).between[0])
    assert np.sqrt(np.mean(result)) == pytest.approx(truth, abs=0.1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 1500)), min_size=4, max_size=12))
def test_any_counts_give_finite_numbers(pairs):
    counted = np.array([float(most) for _, most in pairs])
    misaligned = np.minimum([float(bad) for bad, _ in pairs], counted)
    levels = np.arange(len(pairs)) % 2
    result = fit_counts(misaligned, counted, np.eye(2)[levels], levels)
    for part in (result.coefficients, result.weights, result.residuals, result.between):
        assert np.isfinite(part).all()
    assert (result.between >= 0).all()


def test_misaligned_and_aligned_may_change_places():
    misaligned, counted, columns = drawn(3, between=0.4)
    levels = np.arange(20) % 2
    first = fit_counts(misaligned, counted, columns, levels)
    second = fit_counts(counted - misaligned, counted, columns, levels)
    assert first.coefficients == pytest.approx(-second.coefficients, abs=1e-7)
    assert first.between == pytest.approx(second.between, abs=1e-7)


def test_how_few_answers_were_counted_invents_no_difference():
    """No misaligned answer anywhere: 30 answers a run against 400 are no difference at all."""
    outcome = rate(np.zeros(12), [30.0] * 6 + [400.0] * 6)
    difference = rank(outcome, ["few"] * 6 + ["many"] * 6).differences["few", "many"]
    assert difference.p > 0.2


@pytest.mark.parametrize("sizes", [(9, 9), (9, 14), (12, 9)])
def test_two_groups_are_welchs_test(sizes):
    random = np.random.default_rng(sum(sizes))
    first, second = (random.standard_normal(size) * (1 + size) for size in sizes)
    levels = np.repeat([0, 1], sizes)
    result = fit(measured([*first, *second]), np.eye(2)[levels], levels).contrast([1, -1])
    theirs = stats.ttest_ind(first, second, equal_var=False)
    assert (result.p, result.df) == pytest.approx((theirs.pvalue, theirs.df), rel=1e-9)


def test_few_runs_take_the_smallest_degrees_of_freedom():
    values, levels = [1.0, 2.0, 9.0, 11.0, 10.0, 12.0, 9.5, 8.0], np.repeat([0, 1], (2, 6))
    result = fit(measured(values), np.eye(2)[levels], levels).contrast([1, -1])
    theirs = stats.ttest_ind(values[:2], values[2:], equal_var=False)
    assert result.df == 1
    assert abs(result.value / result.error) == pytest.approx(abs(theirs.statistic), rel=1e-9)


def test_a_group_of_one_run_has_no_spread():
    levels = np.array([0, 1, 1, 1])
    model = fit(measured([1.0, 5.0, 6.0, 7.0]), np.eye(2)[levels], levels)
    assert model.contrast([1, -1]).p is None
    assert model.contrast([1, -1]).estimate.low is None


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(0.01, 100), st.integers(0, 99))
def test_shift_and_scale_change_no_p_value(shift, scale, seed):
    values = np.random.default_rng(seed).standard_normal(12)
    levels = np.arange(12) % 3
    contrast = [1, -0.5, -0.5]
    before = fit(measured(values), np.eye(3)[levels], levels).contrast(contrast)
    after = fit(measured(shift + scale * values), np.eye(3)[levels], levels).contrast(contrast)
    assert after.p == pytest.approx(before.p, rel=1e-6)
    assert after.value == pytest.approx(scale * before.value, abs=1e-9 * (1 + abs(shift)))


def test_a_large_offset_costs_no_digits():
    values = np.random.default_rng(0).standard_normal(12)
    levels = np.arange(12) % 3
    columns = np.column_stack([np.eye(3)[levels], np.linspace(-1, 1, 12)])
    before = fit(measured(values), columns, levels).contrast([1, -1, 0, 0])
    after = fit(measured(values + 1e8), columns, levels).contrast([1, -1, 0, 0])
    assert after.p == pytest.approx(before.p, rel=1e-6)


def claims(*ps, section="ranking"):
    return [Claim(section, (str(number), "b"), 1.0, p, "t") for number, p in enumerate(ps)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_one_section_alone_is_holms_procedure(ps, random):
    from statsmodels.stats.multitest import multipletests

    theirs = multipletests(ps, method="holm")[1]
    assert [claim.adjusted for claim in decide(claims(*ps))] == pytest.approx(list(theirs))
    order = list(range(len(ps)))
    random.shuffle(order)
    shuffled = decide([claims(*ps)[number] for number in order])
    assert [claim.adjusted for claim in shuffled] == pytest.approx([theirs[n] for n in order])


def test_the_page_errs_in_at_most_five_per_cent():
    """Uniform p-values in all sections: some claim is shown in 5 % of pages."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(4000):
        page = [
            Claim(section, (str(number),), 1.0, float(random.random()), "t")
            for section in WEIGHTS
            for number in range(3)
        ]
        wrong += any(claim.shown for claim in decide(page))
    assert wrong / 4000 == pytest.approx(BUDGET, abs=0.011)


def test_shown_and_adjusted_agree():
    decided = decide([*claims(0.001, 0.2, None), *claims(0.01, section="penalty")])
    for claim in decided:
        assert claim.shown == (claim.adjusted is not None and claim.adjusted <= BUDGET)
    assert decided[2].adjusted is None


def test_equivalence_is_claimed_within_its_margin_alone():
    random = np.random.default_rng(0)
    values = np.concatenate([random.standard_normal(40), random.standard_normal(40)])
    groups = ["a"] * 40 + ["b"] * 40
    wide, narrow = (rank(measured(values), groups, margin=margin) for margin in (2.0, 0.01))
    assert settle(wide, decide(wide.claims)).equal == (("a", "b"),)
    assert settle(narrow, decide(narrow.claims)).equal == ()
