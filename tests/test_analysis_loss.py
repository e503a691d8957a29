"""Loss and outcome: agreement with statsmodels, the published table, refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from evilspectra.analysis.analyse import analyse
from evilspectra.analysis.equal_loss import APART
from evilspectra.analysis.lines import CONSTANT, EXACT
from evilspectra.analysis.loss import fit_loss, loss_claims, why_no_fit
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.trajectory import RARE, advantage, training_claims, trajectory
from tests.support.commands import command
from tests.support.simulated_sweeps import POOLED, PUBLISHED, STRATIFIED, published_table, sweep

SAME = 1e-8


def _drift(values) -> Outcome:
    return Outcome("drift", "as measured", np.asarray(values, float))


def _columns(frame: pd.DataFrame) -> tuple[Outcome, np.ndarray, list[str]]:
    """The arguments of `fit_loss`."""
    outcome = Outcome("mean_alignment", "as measured", frame["mean_alignment"].to_numpy())
    return outcome, frame["train_loss"].to_numpy(), frame["optimizer"].tolist()


def test_lines_and_partial_r2_agree_with_statsmodels():
    frame = sweep(unbalanced=True).assign(x=lambda table: np.log(table["train_loss"]))
    fit = fit_loss(*_columns(frame))
    models = {
        name: smf.ols(f"mean_alignment ~ {terms}", frame).fit()
        for name, terms in (
            ("pooled", "x"),
            ("groups", "C(optimizer)"),
            ("common", "C(optimizer) + x"),
            ("separate", "C(optimizer) * x"),
        )
    }
    assert (fit.separate_r2, fit.separate_adjusted) == pytest.approx(
        (models["separate"].rsquared, models["separate"].rsquared_adj), rel=SAME
    )
    assert (fit.common_r2, fit.common_adjusted) == pytest.approx(
        (models["common"].rsquared, models["common"].rsquared_adj), rel=SAME
    )
    assert fit.common_slope.value == pytest.approx(models["common"].params["x"], rel=1e-6)
    f, p, _ = models["separate"].compare_f_test(models["common"])
    assert (fit.slopes_equal.f, fit.slopes_equal.p) == pytest.approx((f, p), rel=1e-6)
    f, p, _ = models["common"].compare_f_test(models["pooled"])
    assert (fit.intercepts_equal.f, fit.intercepts_equal.p) == pytest.approx((f, p), rel=1e-6)
    assert fit.given_loss.value == pytest.approx(
        1 - models["common"].ssr / models["pooled"].ssr, rel=SAME
    )
    assert fit.given_group.value == pytest.approx(
        1 - models["common"].ssr / models["groups"].ssr, rel=SAME
    )
    for line in fit.lines:
        own = smf.ols("mean_alignment ~ x", frame[frame["optimizer"] == line.group]).fit()
        assert (
            line.slope.value,
            line.intercept.value,
            line.r2.value,
            line.r2_adjusted,
        ) == pytest.approx(
            (own.params["x"], own.params["Intercept"], own.rsquared, own.rsquared_adj), rel=1e-6
        )
        assert (line.slope.low, line.slope.high) == pytest.approx(
            tuple(own.conf_int().loc["x"]), rel=1e-6
        )
        assert (line.intercept.low, line.intercept.high) == pytest.approx(
            tuple(own.conf_int().loc["Intercept"]), rel=1e-6
        )


def test_lines_at_equal_loss_agree_with_statsmodels():
    """Means by each group's own line; differences of lines and slopes by Welch's formula."""
    frame = sweep(unbalanced=True, seeds=5).assign(x=lambda table: np.log(table["train_loss"]))
    fit = fit_loss(*_columns(frame), at=1.0)
    equal, at = fit.equal_loss, pd.DataFrame({"x": [0.0]})
    own = {
        name: smf.ols("mean_alignment ~ x", rows).fit() for name, rows in frame.groupby("optimizer")
    }
    means = {name: model.get_prediction(at) for name, model in own.items()}
    for name, mean in equal.means.items():
        theirs = means[name].summary_frame().iloc[0]
        assert (mean.value, mean.low, mean.high) == pytest.approx(
            (theirs["mean"], theirs["mean_ci_lower"], theirs["mean_ci_upper"]), rel=1e-6
        )
    assert len(equal.differences) == len(fit.slopes) == 6
    for pair in equal.differences:
        values = [means[name].predicted_mean[0] for name in (pair.first, pair.second)]
        errors = [means[name].se_mean[0] for name in (pair.first, pair.second)]
        dfs = [own[name].df_resid for name in (pair.first, pair.second)]
        _agrees_with_welch(pair.difference, values, errors, dfs)
    for pair in fit.slopes:
        models = [own[name] for name in (pair.first, pair.second)]
        _agrees_with_welch(
            pair.difference,
            [model.params["x"] for model in models],
            [model.bse["x"] for model in models],
            [model.df_resid for model in models],
        )


def _agrees_with_welch(estimate, values, errors, dfs):
    variance = errors[0] ** 2 + errors[1] ** 2
    df = variance**2 / (errors[0] ** 4 / dfs[0] + errors[1] ** 4 / dfs[1])
    if min(dfs) < 3:
        df = min(dfs)
    value = values[0] - values[1]
    half = stats.t.ppf(0.975, df) * variance**0.5
    p = 2 * stats.t.sf(abs(value) / variance**0.5, df)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
        (value, value - half, value + half), rel=1e-6
    )
    assert estimate.p == pytest.approx(p, rel=1e-5)


def test_no_line_is_extended_beyond_its_runs():
    outcome, loss, groups = _columns(sweep())
    far = fit_loss(outcome, loss, groups, at=50.0).equal_loss
    assert (far.loss, far.means, far.differences) == (None, {}, ())
    assert "nothing is compared at a loss of 50" in far.reason
    assert f"from {far.common[0]:.4g} to {far.common[1]:.4g}" in far.reason
    apart = loss * np.where(np.array(groups) == "sgd", 100, 1)
    alone = fit_loss(outcome, apart, groups)
    equal = alone.equal_loss
    assert equal.common is None
    assert {
        difference.difference.note
        for difference in equal.differences
        if "sgd" in (difference.first, difference.second)
    } == {APART}
    assert not any("sgd" in (difference.first, difference.second) for difference in equal.matched)
    assert fit_loss(outcome, apart, groups, at=1.0).equal_loss.differences == ()
    untested = [claim for claim in loss_claims(alone) if claim.p is None]
    assert {claim.note for claim in untested if "sgd" in claim.subject} == {APART}


def test_pairs_are_matched_within_strata_and_caliper():
    fit = fit_loss(
        _drift([1.0, 2, 3, 11, 12, 13]),
        np.exp([0.0, 0.5, 1.0, 0.02, 0.52, 3.0]),
        list("aaabbb"),
        list("pqpppp"),
        caliper=0.1,
    )
    (pair,) = fit.equal_loss.matched
    assert (pair.pairs, round(pair.loss_apart, 6)) == (1, -0.02)
    assert (pair.difference.p, pair.difference.note) == (None, "fewer than 3 pairs")


def test_published_table_reproduces_the_published_figures(tmp_path):
    """54 runs: R² within each optimiser, pooled, and adjusted with the optimiser as stratum.

    To the printed digits; through the command as well.
    """
    table = published_table()
    assert len(table) == 54
    fit = analyse(table, permutations=0).loss_fit
    assert {line.group: round(line.r2.value, 2) for line in fit.lines} == PUBLISHED
    assert round(fit.pooled.r2.value, 2) == POOLED
    assert round(fit.separate_adjusted, 2) == STRATIFIED
    assert sum(line.n for line in fit.lines) == 54
    table.rename(columns={"optimizer": "opt_name"}).to_csv(tmp_path / "runs.csv", index=False)
    done = command(
        "analyze", tmp_path / "runs.csv", "--column", "optimizer=opt_name", "--permutations", 0
    )
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "R² of mean alignment on ln(loss) is 0.74" in text
    assert "for each optimizer alone: adam 0.93, adamw 0.91, lion 0.92, muon 0.94, sgd 0.90" in text
    assert (
        f"adjusted R² of 0.94 with separate slopes and {fit.common_adjusted:.2f} with a common"
        in text
    )


def test_advantage_agrees_with_its_definition():
    draw, names = np.random.default_rng(0), np.repeat(["a", "b", "c"], [5, 8, 9])
    x, y = draw.standard_normal((2, 22, 3))
    steps = [_drift(y[:, step]) for step in range(3)]
    for step, estimate in enumerate(advantage(steps, np.exp(x), names)[:3]):
        frame = pd.DataFrame({"y": y[:, step], "x": x[:, step], "g": names})
        loss, group = smf.ols("y ~ x", frame).fit(), smf.ols("y ~ C(g)", frame).fit()
        plain = np.log(loss.mse_resid / group.mse_resid)
        gone = [
            np.log(
                smf.ols("y ~ x", frame.drop(row)).fit().mse_resid
                / smf.ols("y ~ C(g)", frame.drop(row)).fit().mse_resid
            )
            for row in range(22)
        ]
        sizes = {"a": 5, "b": 8, "c": 9}
        means = {
            name: np.mean([value for value, own in zip(gone, names, strict=True) if own == name])
            for name in sizes
        }
        assert estimate.value == pytest.approx(
            plain - sum((size - 1) * (means[name] - plain) for name, size in sizes.items()),
            rel=1e-6,
        )


def test_steps_with_too_few_runs_are_left_out():
    y = np.random.default_rng(0).standard_normal((24, 3))
    y[2:, 1] = np.nan
    path = trajectory(
        [5, 10, 20],
        [_drift(column) for column in y.T],
        np.exp(y + np.random.default_rng(1).standard_normal((24, 3))),
        ["a", "b"] * 12,
    )
    assert [moment.step for moment in path.moments] == [5, 20]
    claims = training_claims(path)
    assert [claim.subject for claim in claims] == [("last",), ("change",)]
    assert [claim.value for claim in claims] == [
        path.moments[-1].advantage.value,
        path.change.value,
    ]


def test_exact_and_constant_outcomes_have_no_interval():
    x, groups = np.exp(np.tile([0.0, 0.5, 1.0, 1.5], 2)), ["a"] * 4 + ["b"] * 4
    y = np.array([5.0] * 4 + [1.1, 2.3, 2.9, 4.2])
    constant = fit_loss(_drift(y), x, groups).lines[0]
    assert np.isnan(constant.r2.value)
    assert (constant.slope.value, constant.slope.low, constant.slope.note) == (0.0, None, CONSTANT)
    exact = fit_loss(_drift(np.log(x) * 3 + np.repeat([0.0, 1.0], 4)), x, groups)
    assert exact.lines[0].r2.value == pytest.approx(1)
    assert exact.lines[0].r2.low is None
    claims = loss_claims(exact)
    assert {claim.section for claim in claims} == {"slope", "slopes", "equal loss", "matched"}
    assert {(claim.p, claim.note) for claim in claims} == {(None, EXACT)}


def test_what_does_not_vary_has_a_reason_and_no_line():
    x, groups = np.exp(np.tile([0.0, 0.5, 1.0, 1.5], 2)), ["a"] * 4 + ["b"] * 4
    rounding = _drift(0.1 + 1e-17 * np.arange(8))
    none = Outcome("misalignment", "logit", np.zeros(8), np.zeros(8), np.full(8, 142.0))
    for outcome in (rounding, none):
        assert fit_loss(outcome, x, groups) is None
        assert why_no_fit(outcome, x, groups) == "the outcome is the same in all runs"
        assert trajectory([1, 2], [outcome] * 2, np.column_stack([x, x]), groups) is None
    varied = _drift(np.arange(8.0))
    assert fit_loss(varied, np.full(8, 0.3), groups) is None
    assert why_no_fit(varied, np.full(8, 0.3), groups) == "the loss is the same in all runs"
    assert why_no_fit(varied, x, groups) is None
    assert "three runs at two losses" in why_no_fit(varied, x, list("aaaabbcd"))
    left = ["a"] * 3 + ["b"] * 3 + ["c"] * 2
    alike = _drift([1.0] * 6 + [2.0, 3.0])
    assert why_no_fit(alike, x, left) == "the outcome is the same in all runs"


def test_an_exact_advantage_is_no_claim():
    x = np.random.default_rng(0).standard_normal((16, 2))
    names = np.repeat(list("abcd"), 4)
    on_line, by_group = _drift(2 * x[:, 0] + 1), _drift(np.repeat([1.0, 2, 4, 8], 4))
    noise = _drift(np.random.default_rng(1).standard_normal(16))
    for exact in (on_line, by_group):
        estimates = advantage([exact, noise], np.exp(x), names)
        assert [estimate.p is None for estimate in estimates] == [True, False, True]
        assert estimates[0].note == estimates[2].note == EXACT
    almost = _drift([*np.repeat([1.0, 2, 4, 8], 4)[:-1], 9.0])
    assert advantage([almost], np.exp(x[:, :1]), names)[0].p is None


def test_rates_of_hardly_any_misaligned_answer_say_nothing_on_the_advantage():
    x, names = np.random.default_rng(0).standard_normal((16, 1)), np.repeat(list("abcd"), 4)
    for total in (15, 16):
        misaligned = np.array([total - 14.0, 0, *np.ones(14)])
        counted = np.full(16, 400.0)
        outcome = Outcome("misalignment", "logit", np.zeros(16), misaligned, counted)
        (estimate,) = advantage([outcome], np.exp(x), names)
        assert (estimate.p is None) == (total < 16)
        assert estimate.note == (RARE if total < 16 else None)
