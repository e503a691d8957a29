"""Laws of lines on the loss, comparisons at equal loss and trajectories.

Shift and scale of the outcome, order and names of groups and runs, a large offset, exact fits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evilspectra.analysis.claims import decide, find
from evilspectra.analysis.equal_loss import CALIPER
from evilspectra.analysis.loss import LossFit, fit_loss, loss_claims
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.trajectory import advantage, trajectory

NAMES = np.repeat(["adamw", "lion", "muon", "sgd"], [5, 6, 7, 3])


def measured(values: np.ndarray) -> Outcome:
    return Outcome("drift", "as measured", np.asarray(values, float))


def counts(misaligned: np.ndarray, counted: np.ndarray) -> Outcome:
    k, m = np.asarray(misaligned, float), np.asarray(counted, float)
    return Outcome("misalignment", "logit", k / m, k, m)


def table(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcome, loss, strata of runs whose groups have spreads of their own."""
    draw = np.random.default_rng(seed)
    x = 0.25 * draw.standard_normal(len(NAMES))
    spread = np.repeat([0.5, 1.0, 2.0, 3.0], [5, 6, 7, 3])
    y = 10 * x + spread * draw.standard_normal(len(NAMES)) + np.repeat([0.0, 3, 0, 1], [5, 6, 7, 3])
    return y, np.exp(x), draw.choice(["p", "q"], len(NAMES))


def rates(seed: int = 0) -> tuple[Outcome, np.ndarray]:
    draw = np.random.default_rng(seed)
    loss = np.exp(0.25 * draw.standard_normal(len(NAMES)))
    counted = draw.integers(30, 400, len(NAMES))
    return counts(draw.binomial(counted, 0.05 * loss), counted), loss


def numbers(fit: LossFit) -> dict[tuple[str, ...], tuple[float, float | None]]:
    """Section and subject → value and p of every claim."""
    return {(c.section, *c.subject): (c.value, c.p) for c in loss_claims(fit)}


def agree(first: dict, second: dict, scale: float = 1.0, rel: float = 1e-8) -> None:
    assert first.keys() == second.keys()
    for key, (value, p) in first.items():
        assert second[key][0] == pytest.approx(value * scale, rel=rel, abs=1e-9 * abs(scale)), key
        assert (p is None) == (second[key][1] is None), key
        if p is not None:
            assert second[key][1] == pytest.approx(p, rel=100 * rel), key


@pytest.mark.parametrize(("shift", "scale"), [(100.0, 1.0), (0.0, -3.0), (-7.0, 1e-6)])
def test_shift_and_scale_of_the_outcome(shift, scale):
    y, loss, strata = table()
    plain = fit_loss(measured(y), loss, NAMES.tolist(), strata.tolist())
    moved = fit_loss(measured(shift + scale * y), loss, NAMES.tolist(), strata.tolist())
    agree(numbers(plain), numbers(moved), scale, 1e-6)
    assert moved.slopes_equal.f == pytest.approx(plain.slopes_equal.f)
    assert moved.given_loss.value == pytest.approx(plain.given_loss.value)
    assert moved.pooled.r2.low == pytest.approx(plain.pooled.r2.low)
    for name, mean in plain.equal_loss.means.items():
        expected = shift + scale * mean.value
        assert moved.equal_loss.means[name].value == pytest.approx(expected)


def test_a_unit_of_the_loss_is_of_no_consequence():
    y, loss, strata = table()
    plain = fit_loss(measured(y), loss, NAMES.tolist(), strata.tolist())
    in_bits = fit_loss(measured(y), loss / np.log(2), NAMES.tolist(), strata.tolist())
    agree(numbers(plain), numbers(in_bits), rel=1e-7)
    outcome, loss = rates()
    agree(
        numbers(fit_loss(outcome, loss, NAMES.tolist())),
        numbers(fit_loss(outcome, 1000 * loss, NAMES.tolist())),
        rel=1e-5,
    )


@pytest.mark.parametrize("kind", ["measured", "rates"])
def test_order_of_runs_and_names_of_groups(kind):
    y, loss, _ = table()
    outcome = measured(y)
    if kind == "rates":
        outcome, loss = rates()
    plain = numbers(fit_loss(outcome, loss, NAMES.tolist()))
    order = np.random.default_rng(1).permutation(len(NAMES))
    shuffled = fit_loss(outcome.take(order), loss[order], NAMES[order].tolist())
    agree(plain, numbers(shuffled), rel=1e-6)
    new = {"adamw": "z", "lion": "y", "muon": "x", "sgd": "w"}
    renamed = numbers(fit_loss(outcome, loss, [new[name] for name in NAMES]))
    for (section, *subject), (value, p) in plain.items():
        if section == "slope":
            continue
        there = renamed[(section, new[subject[1]], new[subject[0]])]
        assert there[0] == pytest.approx(-value, rel=1e-6, abs=1e-7)
        assert there[1] == (None if p is None else pytest.approx(p, rel=1e-4))


def test_good_and_bad_answers_are_mirror_images():
    outcome, loss = rates()
    mirrored = counts(outcome.counted - outcome.misaligned, outcome.counted)
    agree(
        numbers(fit_loss(outcome, loss, NAMES.tolist())),
        numbers(fit_loss(mirrored, loss, NAMES.tolist())),
        -1.0,
        1e-5,
    )


def test_a_large_offset_costs_no_digits():
    """Against the same numbers, as far as they can be stored beside the offset."""
    y, loss, strata = table()
    y = (y + 1e8) - 1e8
    arguments = (loss, NAMES.tolist(), strata.tolist())
    plain, far = fit_loss(measured(y), *arguments), fit_loss(measured(y + 1e8), *arguments)
    for test in ("slopes_equal", "intercepts_equal"):
        assert getattr(far, test).f == pytest.approx(getattr(plain, test).f, rel=1e-6)
    agree(numbers(plain), numbers(far), rel=1e-6)
    names, x = np.repeat(list("abcd"), 5), np.random.default_rng(2).standard_normal((20, 2))
    steps = [
        measured((column + 1e8) - 1e8) for column in np.random.default_rng(3).normal(size=(2, 20))
    ]
    moved = [replace(step, values=step.values + 1e8) for step in steps]
    for near, there in zip(
        advantage(steps, np.exp(x), names), advantage(moved, np.exp(x), names), strict=True
    ):
        assert there.value == pytest.approx(near.value, rel=1e-6)
        assert there.p == pytest.approx(near.p, rel=1e-6)


def test_each_group_has_its_own_spread():
    """One group's noise changes nothing between two others."""
    y, loss, _ = table()
    wild = np.where(NAMES == "sgd", 50 * y, y)
    for section in ("slopes", "equal loss"):
        quiet, loud = (numbers(fit_loss(measured(v), loss, NAMES.tolist())) for v in (y, wild))
        pair = (section, "adamw", "lion")
        assert loud[pair] == pytest.approx(quiet[pair])
        assert loud[(section, "adamw", "sgd")] != pytest.approx(quiet[(section, "adamw", "sgd")])


def test_matched_pairs_at_the_same_losses_are_a_paired_t_test():
    from scipy import stats

    draw = np.random.default_rng(4)
    x, noise = draw.standard_normal(8), draw.standard_normal((2, 8))
    y = np.concatenate([3 * x + noise[0], 3 * x + 1 + noise[1]])
    fit = fit_loss(measured(y), np.exp(np.tile(x, 2)), ["a"] * 8 + ["b"] * 8, caliper=1e-9)
    (pair,) = fit.equal_loss.matched
    theirs = stats.ttest_rel(y[:8], y[8:])
    assert (pair.pairs, pair.loss_apart) == (8, 0.0)
    assert pair.difference.p == pytest.approx(theirs.pvalue)


def test_zero_counts_show_nothing_however_few_answers_count():
    """Six runs without a misaligned answer of 30, beside 400 at a rate of 0.5 %."""
    draw = np.random.default_rng(5)
    loss = np.exp(0.2 * draw.standard_normal(18))
    counted = np.repeat([400, 400, 30], 6)
    outcome = counts(np.r_[[2, 1, 3, 2, 2, 1], [2, 3, 1, 2, 4, 0], np.zeros(6)], counted)
    fit = fit_loss(outcome, loss, ["adam"] * 6 + ["muon"] * 6 + ["lion"] * 6)
    assert all(claim.p > 0.2 for claim in loss_claims(fit) if claim.p is not None)
    pooled = fit_loss(outcome, loss, ["adam"] * 6 + ["muon"] * 6 + ["lion"] * 6).pooled
    assert pooled.slope.p > 0.05


def test_runs_beyond_the_caliper_are_not_matched():
    y, loss, strata = table()
    equal = fit_loss(measured(y), loss, NAMES.tolist(), strata.tolist()).equal_loss
    for pair in equal.matched:
        assert abs(pair.loss_apart) <= CALIPER
        assert (pair.difference.p is None) == (pair.pairs < 3)


def test_claims_of_few_pairs_take_no_share_of_the_budget():
    y, loss, strata = table()
    claims = decide(loss_claims(fit_loss(measured(y), loss, NAMES.tolist(), strata.tolist())))
    untested = [claim for claim in claims if claim.p is None]
    assert all((claim.adjusted, claim.shown) == (None, False) for claim in untested)
    assert all(claim.note for claim in untested)
    assert {claim.family for claim in claims} == {len(claims) - len(untested)}
    assert find(claims, "equal loss", "adamw", "lion").p is not None


@pytest.mark.parametrize("kind", ["measured", "rates"])
def test_the_advantage_is_free_of_scale_and_order(kind):
    draw = np.random.default_rng(6)
    names, x = np.repeat(list("abcd"), 4), draw.standard_normal((16, 2))
    values = draw.standard_normal((2, 16))
    steps = [measured(column) for column in values]
    scaled = [measured(7 - 100 * column) for column in values]
    if kind == "rates":
        steps = [counts(draw.binomial(400, 0.1, 16), np.full(16, 400)) for _ in range(2)]
        scaled = [counts(step.counted - step.misaligned, step.counted) for step in steps]
    order = draw.permutation(16)
    plain = advantage(steps, np.exp(x), names)
    for other in (
        advantage(scaled, np.exp(1 + x), names),
        advantage([step.take(order) for step in steps], np.exp(x[order]), names[order]),
    ):
        for ours, theirs in zip(plain, other, strict=True):
            assert (theirs.value, theirs.p) == pytest.approx((ours.value, ours.p), rel=1e-5)
    back = advantage(steps[::-1], np.exp(x[:, ::-1]), names)
    assert back[-1].value == pytest.approx(-plain[-1].value, rel=1e-6)


def test_runs_that_were_not_is_leftare_left_out_of_a_trajectory():
    draw = np.random.default_rng(7)
    names, loss = list("abcd") * 5, np.exp(draw.standard_normal((20, 2)))
    steps = [counts(draw.binomial(400, 0.1, 20), np.full(20, 400)) for _ in range(2)]
    left = np.arange(20) != 3
    missing = [step.spread(np.where(left, np.arange(20), -1)) for step in steps]
    assert np.isnan(missing[0].misaligned[3])
    complete = trajectory(
        [1, 2], [step.take(left) for step in steps], loss[left], np.array(names)[left]
    )
    assert trajectory([1, 2], missing, loss, names) == complete
