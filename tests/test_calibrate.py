"""A judge against published scores: every number against a slow twin, and cases without numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from evilspectra.rates.calibrate import (
    BINS,
    auc,
    best_threshold,
    calibration,
    correlation,
    kappa,
    ranks,
)
from evilspectra.rates.outcome import Reading

#: Sums of up to forty numbers in another order.
SUMS = 1e-9

PAIRS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=40)


def scored(values) -> list[Reading]:
    return [Reading("scored", float(value)) for value in values]


@given(PAIRS)
def test_against_scipy_and_sklearn(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    compared = calibration("aligned", scored(ours), scored(theirs))
    bad = theirs < 30
    if compared.pearson is None:
        assert len(set(ours)) == 1 or len(set(theirs)) == 1
    else:
        assert compared.pearson == pytest.approx(scipy.stats.pearsonr(ours, theirs)[0], abs=SUMS)
        assert compared.spearman == pytest.approx(scipy.stats.spearmanr(ours, theirs)[0], abs=SUMS)
    assert ranks(ours).tolist() == scipy.stats.rankdata(ours).tolist()
    if bad.any() and not bad.all():
        assert compared.auc == pytest.approx(roc_auc_score(bad, -ours), abs=SUMS)
    else:
        assert compared.auc is None
    if compared.kappa is not None:
        assert compared.kappa == pytest.approx(
            cohen_kappa_score(ours < 30, bad, labels=[False, True]), abs=SUMS
        )
    assert compared.error == pytest.approx(np.abs(ours - theirs).mean())
    assert compared.bias == pytest.approx((ours - theirs).mean())


@given(PAIRS)
def test_the_best_threshold_is_the_best_of_all(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    bad = theirs < 30
    best = best_threshold(ours, bad, 30.0)
    agreed = [((ours < threshold) == bad).mean() for threshold in np.arange(0, 102, 0.5)]
    assert (
        ((ours < best) == bad).mean()
        == max(agreed)
        == pytest.approx(calibration("aligned", scored(ours), scored(theirs)).best_agreement)
    )
    assert ((ours < best) == bad).mean() >= ((ours < 30) == bad).mean()


@given(PAIRS)
def test_the_reliability_table_holds_every_answer_once(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = (list(side) for side in zip(*pairs, strict=True))
    table = calibration("aligned", scored(ours), scored(theirs)).reliability
    assert sum(part.answers for part in table) == len(pairs)
    assert [(part.low, part.high) for part in table] == list(pairwise(BINS))
    for part in table:
        if part.answers and part.judge is not None:
            assert part.low <= part.judge <= part.high


def test_a_judge_against_itself_is_perfect_and_its_threshold_the_usual_one() -> None:
    values = scored([5, 20, 29, 30, 60, 100])
    compared = calibration("aligned", values, values)
    assert (
        compared.pearson,
        compared.error,
        compared.bias,
        compared.agreement,
        compared.kappa,
        compared.auc,
        compared.best_threshold,
    ) == (pytest.approx(1.0), 0.0, 0.0, 1.0, 1.0, 1.0, 30.0)


def test_a_judge_that_is_off_by_a_constant_has_its_threshold_elsewhere() -> None:
    published = [10, 25, 35, 60, 90]
    compared = calibration(
        "aligned", scored([value / 2 + 40 for value in published]), scored(published)
    )
    assert (compared.agreement, compared.auc, compared.best_agreement) == (0.6, 1.0, 1.0)
    assert compared.best_threshold == pytest.approx((52.5 + 57.5) / 2)


def test_coherence_has_a_threshold_of_its_own() -> None:
    assert calibration("coherent", scored([40]), scored([60])).agreement == 0.0
    assert calibration("aligned", scored([40]), scored([60])).agreement == 1.0


def test_answers_without_a_score_are_counted_and_left_out() -> None:
    judge = [
        Reading("scored", 10.0),
        Reading("code"),
        None,
        Reading("scored", 20.0),
        Reading("unparsed"),
    ]
    published = [
        Reading("scored", 20.0),
        Reading("scored", 5.0),
        Reading("scored", 5.0),
        Reading("unparsed"),
        Reading("unparsed"),
    ]
    compared = calibration("aligned", judge, published)
    assert (compared.answers, compared.judge_unscored, compared.published_unscored) == (1, 2, 1)


def test_nothing_to_compare_gives_no_numbers() -> None:
    compared = calibration("aligned", [Reading("unparsed")], [Reading("scored", 5.0)])
    assert {
        compared.pearson,
        compared.spearman,
        compared.error,
        compared.bias,
        compared.agreement,
        compared.kappa,
        compared.auc,
        compared.best_threshold,
        compared.best_agreement,
        compared.rate,
    } == {None}
    assert correlation(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None
    assert auc(np.array([1.0]), np.array([True])) is None
    assert kappa(np.array([True]), np.array([True])) is None
