"""Simulated sweeps with known effects: intervals cover as they claim, tests hold their level.

docs/statistics.md lists the figures that these tests print. Bounds are 0.95 ± 4 standard errors of
500 simulations; where the truth lies on the boundary of the possible (a share of 0) or an interval
is made to hold for all groups at once, coverage may only be higher. Each interval is the package's
own, at the level of the function that makes it.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from evilspectra.analysis.claims import decide
from evilspectra.analysis.components import difference_of_squares, nested, share_within
from evilspectra.analysis.contrasts import fit
from evilspectra.analysis.design import aliases
from evilspectra.analysis.estimate import MethodEstimate, shares, spread_interval
from evilspectra.analysis.linear import Layout, lay_out
from evilspectra.analysis.loss import fit_loss
from evilspectra.analysis.mediation import partial_correlation
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.penalty import Penalty, penalty, penalty_claims
from evilspectra.analysis.ranking import rank, settle
from evilspectra.analysis.stability import power, seeds_needed
from evilspectra.analysis.trajectory import advantage
from evilspectra.analysis.variance import permutation_p, statistics, weighted

pytestmark = pytest.mark.slow

SIMULATIONS = 500
#: Four standard errors of a share of 0.95, and of 0.05.
ROOM = 4 * math.sqrt(0.95 * 0.05 / SIMULATIONS)


def covered(kind: str, hits: list[bool] | np.ndarray, one_sided: bool = False) -> float:
    """Prints and checks the coverage of a kind of interval."""
    hits = np.asarray(hits)
    # A few draws have no loss that is common to all, or no pair.
    assert len(hits) >= 0.9 * SIMULATIONS
    share = float(hits.mean())
    print(f"coverage | {kind} | {share:.3f}")
    room = 4 * math.sqrt(0.95 * 0.05 / len(hits))
    assert share >= 0.95 - room, kind
    assert one_sided or share <= 0.95 + room, kind
    return share


def level(kind: str, rejected: list[bool] | np.ndarray, one_sided: bool = False) -> None:
    """Prints and checks how often a true hypothesis is rejected at 5 %."""
    share = float(np.mean(rejected))
    print(f"level | {kind} | {share:.3f}")
    assert share <= 0.05 + ROOM, kind
    assert one_sided or share >= 0.05 - ROOM, kind


def holds(estimate: MethodEstimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def design(kind: str) -> dict[str, list[str]]:
    """4 optimisers × 3 data sets: 3 runs a cell, or 1 to 4."""
    cells = [
        (f"o{i}", f"d{j}", 3 if kind == "balanced" else 1 + (i * 3 + j * 2) % 4)
        for i in range(4)
        for j in range(3)
    ]
    return {
        "optimizer": [o for o, _, n in cells for _ in range(n)],
        "data": [d for _, d, n in cells for _ in range(n)],
    }


def means(factors: dict[str, list[str]], effect: float, interaction: float) -> np.ndarray:
    o, d = (np.array([int(level[1]) for level in factors[name]]) for name in ("optimizer", "data"))
    return effect * (o - 1.5) + effect / 2 * (d - 1) + interaction * ((o * d) % 3 - 1)


@pytest.mark.parametrize(
    ("kind", "effect", "interaction"),
    [
        ("balanced", 1.0, 0.0),
        ("unbalanced", 1.0, 0.0),
        ("unbalanced", 0.8, 1.0),
        ("unbalanced", 0.0, 0.0),
    ],
)
def test_shares_of_variance(kind, effect, interaction):
    factors = design(kind)
    layout = lay_out(factors, 2)
    mean = means(factors, effect, interaction)
    draw = np.random.default_rng(1)
    outcomes = mean[:, None] + draw.standard_normal((layout.n, SIMULATIONS))
    for term in layout.terms:
        for type_, others in (
            ("II", layout.without(term)),
            ("III", [other for other in layout.terms if other != term]),
        ):
            ss, df, rss, rest = statistics(layout, outcomes, [term], others)
            truth = float(statistics(layout, mean, [term], others)[0])
            low, high = shares(ss / df / (rss / rest), df, rest, layout.n)
            share = truth / (truth + layout.n)
            label = (
                f"partial η², type {type_}, noncentral F: {' × '.join(term)}, {kind}, "
                f"effect {effect:g}, interaction {interaction:g}"
            )
            covered(
                label, (low <= share + 1e-12) & (share <= high + 1e-12), one_sided=share < 1e-12
            )
            if share < 1e-12:
                level(
                    f"F test, type {type_}: {' × '.join(term)}, {kind}",
                    stats.f.sf(ss / df / (rss / rest), df, rest) < 0.05,
                )


def rates(misaligned: np.ndarray, counted: np.ndarray) -> Outcome:
    misaligned, counted = misaligned.astype(float), counted.astype(float)
    return Outcome("misalignment", "logit", misaligned / counted, misaligned, counted)


def drawn(
    draw: np.random.Generator, eta: np.ndarray, between: float, counted: np.ndarray
) -> Outcome:
    """Counts of runs with logits eta [n] and a standard deviation between runs."""
    logits = eta + between * draw.standard_normal(len(eta))
    return rates(draw.binomial(counted, 1 / (1 + np.exp(-logits))), counted)


@pytest.mark.parametrize("counts", [(200, 200), (400, 30)])
@pytest.mark.parametrize("size", [6, 12])
@pytest.mark.parametrize("between", [0.0, 0.4])
@pytest.mark.parametrize("rate", [0.03, 0.2])
def test_contrasts_of_rates_as_counts(rate, between, size, counts):
    """Two groups that differ by 0.5, with as many answers counted each, or 400 and 30 a run.

    A spread is never believed below the binomial one, and the smallest df are cautious: coverage
    may be higher without variance between runs, and with 6 runs.
    """
    draw, levels = np.random.default_rng(2), np.repeat([0, 1], size)
    eta, counted = math.log(rate / (1 - rate)) - 0.5 * levels, np.array(counts)[levels]
    hits = []
    for _ in range(SIMULATIONS):
        model = fit(drawn(draw, eta, between, counted), np.eye(2)[levels], levels)
        estimate = model.contrast([1, -1]).estimate
        hits.append(holds(estimate, 0.5))
    covered(
        f"difference of rates, {estimate.method}, {size} runs, rate {rate:g}, "
        f"{counts[0]} and {counts[1]} counted, between runs {between:g}",
        hits,
        one_sided=between == 0 or size == 6,
    )


@cache
def decomposed(rate: float, between: float) -> tuple[list[bool], list[bool]]:
    """Counts of 100 to 300 answers, decomposed by the working response of their model.

    Whether the F test rejects that the data set, which has no effect, has one, and whether the
    optimiser's share lies in its interval, by simulation.
    """
    factors, draw = design("unbalanced"), np.random.default_rng(2)
    layout = lay_out(factors, 1)
    o = np.array([int(name[1]) for name in factors["optimizer"]])
    counted = draw.integers(100, 301, layout.n)
    eta = np.log(rate / (1 - rate)) + 0.5 * (o - 1.5)
    p = 1 / (1 + np.exp(-eta))
    exact = 1 / (1 / (counted * p * (1 - p)) + between**2)
    exact_layout = lay_out(factors, 1, exact)
    squares = exact.mean() * float(
        statistics(exact_layout, exact_layout.weighted(eta), [("optimizer",)], [("data",)])[0]
    )
    rejected, portions = [], []
    for _ in range(SIMULATIONS):
        response, own = weighted(drawn(draw, eta, between, counted), factors, 1, layout)
        y = own.weighted(response - response.mean())
        ss, df, rss, rest = statistics(own, y, [("data",)], [("optimizer",)])
        rejected.append(bool(stats.f.sf(ss / df / (rss / rest), df, rest) < 0.05))
        ss, df, rss, rest = statistics(own, y, [("optimizer",)], [("data",)])
        low, high = shares(ss / df / (rss / rest), df, rest, layout.n)
        portions.append(bool(low <= squares / (squares + layout.n) <= high))
    return rejected, portions


@pytest.mark.parametrize(("rate", "between"), [(0.03, 0.0), (0.2, 0.0), (0.03, 0.4), (0.2, 0.4)])
def test_f_test_of_rates(rate, between):
    level(f"F test of rates, rate {rate:g}, between runs {between:g}", decomposed(rate, between)[0])


@pytest.mark.parametrize(("rate", "between"), [(0.03, 0.0), (0.2, 0.0), (0.03, 0.4), (0.2, 0.4)])
def test_shares_of_variance_of_rates(rate, between):
    kind = f"rate {rate:g}, between runs {between:g}"
    covered(f"partial η² of rates, noncentral F, {kind}", decomposed(rate, between)[1])


@pytest.mark.parametrize("heavy", [False, True])
def test_permutation_within_blocks_holds_its_level(heavy):
    """Freedman and Lane within data sets, with normal and with heavy-tailed noise.

    The covariate matters, the optimiser does not.
    """
    factors, draw = design("unbalanced"), np.random.default_rng(3)
    layout = lay_out(factors, 1)
    mean = means(factors, 0.0, 0.0) + np.array([int(name[1]) for name in factors["data"]])
    rejected = []
    for seed in range(SIMULATIONS):
        y = mean + (draw.standard_t(3, layout.n) if heavy else draw.standard_normal(layout.n))
        rejected.append(
            permutation_p(layout, y, [("optimizer",)], [("data",)], factors["data"], 199, seed)
            <= 0.05
        )
    level(
        f"permutation (Freedman–Lane) within blocks, {'t(3)' if heavy else 'normal'} noise",
        rejected,
    )


def test_components_of_variance():
    draw = np.random.default_rng(4)
    cells = [name for name in "abcdefgh" for _ in range(3)]
    truth, fixed = 1.5, np.repeat(draw.standard_normal(8) * 2, 3)
    between = float(((fixed - fixed.mean()) ** 2).sum()) / truth**2
    share, sd = 1 - between / (between + 24), []
    portions = []
    for _ in range(SIMULATIONS):
        y = fixed + truth * draw.standard_normal(24)
        portion = share_within(y, cells)
        assert portion
        portions.append(holds(portion, share))
        within = y.reshape(8, 3)
        sd.append(
            holds(
                spread_interval(float(((within - within.mean(1, keepdims=True)) ** 2).sum()), 16),
                truth,
            )
        )
    covered("share of training seeds, noncentral F", portions)
    covered("standard deviation between seeds, χ²", sd)


@pytest.mark.parametrize("unbalanced", [False, True])
@pytest.mark.parametrize("between", [0.0, 1.0])
def test_nested_components(unbalanced, between):
    """8 cells × 3 training seeds × 2 (or 2 to 4) generation seeds."""
    draw = np.random.default_rng(5)
    counts = [2 + (unbalanced and run % 3) for run in range(24)]
    runs = [f"r{run}" for run in range(24) for _ in range(counts[run])]
    cells = [f"c{run // 3}" for run in range(24) for _ in range(counts[run])]
    run_of = np.repeat(np.arange(24), counts)
    inner, outer = [], []
    for _ in range(SIMULATIONS):
        y = between * draw.standard_normal(24)[run_of] + 0.7 * draw.standard_normal(len(run_of))
        generation, training = nested(y, runs, cells)
        assert generation
        assert training
        inner.append(holds(generation, 0.49))
        outer.append(holds(training, between**2))
    kind = "unbalanced" if unbalanced else "balanced"
    covered(f"variance between generation seeds, χ², {kind}", inner)
    covered(
        f"variance between training seeds, modified large sample, {kind}, true {between:g}",
        outer,
        one_sided=between == 0,
    )


def test_difference_of_squares_is_never_negative():
    assert difference_of_squares(0.5, 8, 2.0, 8, 1.0).low == 0


def measured(values: np.ndarray) -> Outcome:
    return Outcome("drift", "as measured", values)


GROUPS = np.repeat(["adamw", "lion", "muon", "sgd"], 8)
OFFSET = {"adamw": 0.0, "lion": -6.0, "muon": 4.0, "sgd": 2.0}


def runs(draw: np.random.Generator, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Outcome and ln(loss) of 32 runs: slope 10, losses that overlap, noise 2.

    The same line for all groups, or four.
    """
    shift = np.array([0.0 if same else OFFSET[name] for name in GROUPS])
    x = np.array(
        [{"adamw": 0.0, "lion": -0.1, "muon": 0.05, "sgd": 0.15}[name] for name in GROUPS]
    ) + 0.3 * draw.standard_normal(32)
    return 70 + shift + 10 * x + 2 * draw.standard_normal(32), x


def test_loss_and_outcome():
    """Slopes, intercepts, R² and partial R² given the losses; adjusted means and differences.

    Those at equal loss, by fit and by matched pairs.
    """
    draw = np.random.default_rng(6)
    hits: dict[str, list[bool]] = {}
    for _ in range(SIMULATIONS):
        y, x = runs(draw)
        fit = fit_loss(measured(y), np.exp(x), GROUPS.tolist(), at=None)
        assert fit
        line, mine = fit.lines[1], x[GROUPS == "lion"]
        sxx = float(((mine - mine.mean()) ** 2).sum())
        truth = {
            "slope, t": holds(line.slope, 10),
            "intercept, t": holds(line.intercept, 64),
            "common slope, t": holds(fit.common_slope, 10),
            "R² of a line, noncentral F": holds(line.r2, 25 * sxx / (25 * sxx + 8)),
        }
        layout = lay_out({"g": GROUPS.tolist()}, 1, numbers={"x": x})
        clean = 70 + np.array([OFFSET[name] for name in GROUPS]) + 10 * x
        for name, estimate, term, given_term in (
            ("partial R² of the group given loss, noncentral F", fit.given_loss, ("g",), ("x",)),
            ("partial R² of loss given the group, noncentral F", fit.given_group, ("x",), ("g",)),
        ):
            squares = float(statistics(layout, clean, [term], [given_term])[0]) / 4
            truth[name] = holds(estimate, squares / (squares + 32))
        equal = fit.equal_loss
        if equal.loss is not None:
            truth["adjusted mean at equal loss, t"] = holds(
                equal.means["lion"], 64 + 10 * math.log(equal.loss)
            )
        by_fit = next(
            estimate
            for estimate in equal.differences
            if (estimate.first, estimate.second) == ("lion", "muon")
        )
        if by_fit.loss is not None:
            truth["difference at equal loss by fit, t"] = holds(by_fit.difference, -10)
        paired = next(
            (
                estimate
                for estimate in equal.matched
                if (estimate.first, estimate.second) == ("lion", "muon")
            ),
            None,
        )
        if paired and paired.pairs and paired.pairs >= 3:
            truth["difference by matched pairs, paired t"] = holds(paired.difference, -10)
        for name, hit in truth.items():
            hits.setdefault(name, []).append(hit)
    for name, hits_of in hits.items():
        covered(name, hits_of)


def test_equal_lines_are_tested_at_their_level():
    draw, slopes, intercepts = np.random.default_rng(7), [], []
    for _ in range(SIMULATIONS):
        y, x = runs(draw, same=True)
        fit = fit_loss(measured(y), np.exp(x), GROUPS.tolist())
        assert fit
        assert fit.slopes_equal.p is not None
        assert fit.intercepts_equal.p is not None
        slopes.append(fit.slopes_equal.p < 0.05)
        intercepts.append(fit.intercepts_equal.p < 0.05)
    level("F test of equal slopes", slopes)
    level("F test of equal intercepts", intercepts)


def true_advantage(
    centres: np.ndarray,
    offsets: np.ndarray,
    slope: float,
    inside: float,
    noise: float,
) -> float:
    """A of populations of equal size.

    ln of the residual variance on the pooled line over that within groups.
    """
    y = offsets + slope * centres
    sxx = inside**2 + centres.var()
    sxy = slope * inside**2 + float(((centres - centres.mean()) * (y - y.mean())).mean())
    within = slope**2 * inside**2 + noise**2
    total = slope**2 * inside**2 + noise**2 + y.var()
    return math.log((total - sxy**2 / sxx) / within)


@pytest.mark.parametrize("size", [5, 8, 13])
@pytest.mark.parametrize(
    ("centres", "offsets", "slope"),
    [
        ((0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), -10.0),
        ((0.0, 0.5, 0.2, -0.5), (0.0, 3.0, 6.0, 9.0), -4.0),
    ],
)
def test_advantage_of_the_optimizer(
    size,
    centres,
    offsets,
    slope,
):
    """20, 32 and 52 clusters."""
    draw, names, hits = np.random.default_rng(8), np.repeat(np.arange(4), size), []
    truth = true_advantage(np.array(centres), np.array(offsets), slope, 0.5, 2.0)
    for _ in range(SIMULATIONS):
        x = np.array(centres)[names] + 0.5 * draw.standard_normal(len(names))
        y = np.array(offsets)[names] + slope * x + 2 * draw.standard_normal(len(names))
        hits.append(holds(advantage([measured(y)], np.exp(x)[:, None], names)[0], truth))
    covered(
        f"advantage of the optimiser, cluster jackknife, {4 * size} runs, true {truth:.2f}",
        hits,
        one_sided=True,
    )


def test_change_over_training():
    """Two steps whose noise belongs to the run.

    The loss explains more at first, the optimiser in the end.
    """
    draw, names, hits = np.random.default_rng(9), np.repeat(np.arange(4), 8), []
    centres, first, last = (
        np.array([0.0, 0.3, 0.1, -0.3]),
        np.zeros(4),
        np.array([0.0, 4.0, 8.0, 12.0]),
    )
    truth = true_advantage(centres, last, -6.0, 0.5, 2.0) - true_advantage(
        centres, first, -6.0, 0.5, 2.0
    )
    for _ in range(SIMULATIONS):
        luck, shift = draw.standard_normal(32), draw.standard_normal(32)
        x = centres[names][:, None] + 0.5 * (
            0.8 * shift[:, None] + 0.6 * draw.standard_normal((32, 2))
        )
        y = (
            np.stack([first, last], axis=1)[names]
            - 6 * x
            + 2 * (0.8 * luck[:, None] + 0.6 * draw.standard_normal((32, 2)))
        )
        hits.append(holds(advantage([measured(step) for step in y.T], np.exp(x), names)[-1], truth))
    covered("change of the advantage over training, cluster jackknife, 32 runs", hits, True)


def test_partial_correlation():
    draw, hits = np.random.default_rng(11), []
    layout: Layout = lay_out({"g": GROUPS.tolist()}, 1, numbers={"x": draw.standard_normal(32)})
    basis, shift = layout.basis(layout.terms), np.array([OFFSET[name] for name in GROUPS])
    for _ in range(SIMULATIONS):
        a, b = draw.standard_normal((2, 32))
        hits.append(holds(partial_correlation(a + shift, 0.6 * a + 0.8 * b + shift, basis), 0.6))
    covered("partial correlation, Fisher z", hits)


def with_and_without(outcome: str, without: np.ndarray, treated: np.ndarray, **others) -> Penalty:
    """The penalty's effect on runs [n] without it and the same runs with it, 4 an optimiser."""
    base = pd.DataFrame({"seed": np.arange(len(without)) % 4, "flatness_weight": 0.0})
    base["optimizer"] = np.array(["adamw", "lion", "muon"])[np.arange(len(without)) // 4]
    base = base.assign(**others)
    both = [base.assign(**{outcome: without}), base.assign(**{outcome: treated})]
    both[1]["flatness_weight"] = 0.3
    return penalty(pd.concat(both, ignore_index=True))


def test_paired_differences():
    draw, hits = np.random.default_rng(12), []
    for _ in range(SIMULATIONS):
        without = 2 * draw.standard_normal(4)
        result = with_and_without("drift", without, without + 3 + draw.standard_normal(4))
        hits.append(holds(result.effects[0].difference, 3))
    covered("effect of the penalty, paired t, 4 pairs", hits)


def test_equal_effects_of_the_penalty_are_not_said_to_differ():
    """3 optimisers × 4 seeds, with and without: one effect for all, spreads of their own."""
    draw, rejected = np.random.default_rng(15), []
    for _ in range(SIMULATIONS):
        without = draw.standard_normal(12)
        noise = np.repeat([0.5, 1.0, 2.0], 4) * draw.standard_normal(12)
        claims = penalty_claims(with_and_without("drift", without, without + 1 + noise), "drift")
        differ = decide(claim for claim in claims if claim.section == "penalty differs")
        rejected.append(any(claim.shown for claim in differ))
    level("equal effects of the penalty, some pair shown, t, smallest df", rejected, True)


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), (4, 9, 6, 5), (12, 12, 12, 12)])
def test_ranks(sizes):
    """No pair is shown among equals.

    Among different groups every true rank lies in its interval.
    """
    draw = np.random.default_rng(13)
    names = [name for name, size in zip("abcd", sizes, strict=True) for _ in range(size)]
    effects = np.array(["dcba".index(name) * 1.2 for name in names])
    silent, right = [], []
    for _ in range(SIMULATIONS):
        noise = draw.standard_normal(len(names))
        equal, apart = (
            rank(Outcome("capability", "as measured", values), names)
            for values in (noise, noise + effects)
        )
        assert equal
        assert apart
        silent.append(not settle(equal, decide(equal.claims)).shown)
        settled = settle(apart, decide(apart.claims))
        right.append(
            all(
                ranked.low <= "abcd".index(ranked.group) + 1 <= ranked.high
                for ranked in settled.groups
            )
        )
    kind = ", ".join(map(str, sizes)) + " runs"
    covered(f"no pair shown among equals, {kind}", silent, one_sided=True)
    covered(f"ranks of different groups, all at once, {kind}", right, one_sided=True)


@pytest.mark.parametrize("d", [0.5, 1.5])
def test_power_is_what_it_says(d):
    """Variance between seeds and between answers: shares of significant differences.

    They are the formula's, with the seeds needed and with one seed less.
    """
    draw, seeds = np.random.default_rng(14), seeds_needed(d, 0.8, 4.0, 50)
    assert seeds
    assert power(d, seeds, 0.8, 4.0, 50) >= 0.8 > power(d, seeds - 1, 0.8, 4.0, 50)
    means_of_groups = 0.8 * draw.standard_normal((SIMULATIONS * 4, 2, seeds)) + (
        4.0 * draw.standard_normal((SIMULATIONS * 4, 2, seeds, 50))
    ).mean(axis=-1)
    significant = (
        stats.ttest_ind(means_of_groups[:, 0] + d, means_of_groups[:, 1], axis=1).pvalue < 0.05
    )
    expected = power(d, seeds, 0.8, 4.0, 50)
    print(f"power | {seeds} seeds for {d:g} | {significant.mean():.3f} against {expected:.3f}")
    assert abs(significant.mean() - expected) < 4 * math.sqrt(
        expected * (1 - expected) / len(significant)
    )


def test_confounded_factors_are_never_split():
    """An optimiser that occurs with one data set only is one group with it."""
    factors = {
        "optimizer": list("aabbcc") * 2,
        "data": list("ppqqrr") * 2,
        "seed": ["0"] * 6 + ["1"] * 6,
    }
    groups, _ = aliases(lay_out(factors, 1))
    assert groups == (((("optimizer",), ("data",)), (2, 2)),)
