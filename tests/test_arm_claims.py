"""The report decides between arms over their runs, once for the whole page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from evilspectra.analysis.claims import BUDGET, find
from evilspectra.reporting.arm_claims import arm_claims, page_claims
from evilspectra.reporting.build import read_rows, read_tables
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.outcomes import runs_table
from evilspectra.reporting.sentences.headline import headline
from evilspectra.reporting.statistics import Statistics, shares_of, statistics_of
from tests.support.synthetic_store import Arm, Effect, modules, write_effect, write_run

#: Words of a sentence that decides between arms or on the penalty.
DECIDES = re.compile(
    r"lie above|shown to differ: |are shown to be the flattest|raises|lowers|a lower rate is shown"
)
#: Pages whose headline alone is read, and pages with an analysis.
PAGES, ANALYSED = 120, 20


def store(root: Path, optimizers: Sequence[str], seeds: int, weights: Sequence[float]) -> None:
    for optimizer, seed, weight in itertools.product(optimizers, range(seeds), weights):
        arm = Arm(optimizer, weight, seed=seed, steps=2, modules=modules(1)[:1])
        write_effect(write_run(root, arm), Effect(0.2, steps=(2,), tables=("probe",)))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """48 finished runs: four optimisers, six seeds, with and without the penalty."""
    root = tmp_path_factory.mktemp("store")
    store(root, ("adamw", "lion", "muon", "sgd"), 6, (0, 3))
    return read_rows(root)


def drawn(
    rows: Sequence[Row], random: np.random.Generator, drifts: dict[str, float] | None = None
) -> list[Row]:
    """The rows with new values, in which the optimisers differ in the drifts given alone.

    Each optimiser has a spread of its own, and runs that differ in the penalty alone share noise.
    """
    spreads = dict(zip(("adamw", "lion", "muon", "sgd"), (1.0, 1.0, 3.0, 0.3), strict=True))
    shared: dict[tuple[str, int | None], np.ndarray] = {}
    changed = []
    for row in rows:
        summary = row.summary
        key = (summary.optimizer, summary.seed)
        shared.setdefault(key, random.standard_normal(3))
        noise = spreads[summary.optimizer] * (shared[key] + 0.5 * random.standard_normal(3))
        drift = 0.2 + (drifts or {}).get(summary.optimizer, 0.0) + 0.02 * float(noise[0])
        of_run = row.measured.drift
        assert of_run is not None
        measured = replace(
            row.measured, drift=replace(of_run, drift=replace(of_run.drift, value=drift))
        )
        values = {"stable_rank": 2 + 0.1 * noise[1], "heldout_loss": 1.4 + 0.02 * noise[2]}
        values |= {"drift": drift, "train_loss": 1.2 + 0.02 * float(random.standard_normal())}
        numbers = {name: float(value) for name, value in values.items()}
        changed.append(replace(row, summary=replace(summary, **numbers), measured=measured))
    return changed


def analysed(rows: Sequence[Row]) -> tuple[Statistics, list[str]]:
    """The statistics of a page on the drift, and its headline."""
    runs = runs_table(rows)
    further = partial(_further, rows, runs)
    statistics = statistics_of(runs, "drift", sorted(set(runs["arm"])), further=further)
    return statistics, headline(rows, page_claims(rows, runs, statistics.analysis))


def _further(rows, runs, analysis):
    return arm_claims(rows, runs, analysis).claims


def bound(pages: int) -> float:
    """The share of pages with a false claim that 5 % and two standard errors allow."""
    return BUDGET + 2 * (BUDGET * (1 - BUDGET) / pages) ** 0.5


def test_where_arms_do_not_differ_no_sentence_says_so(rows: list[Row]) -> None:
    random = np.random.default_rng(0)
    pages = [headline(drawn(rows, random)) for _ in range(PAGES)]
    assert any("no two" in sentence for sentence in pages[0])
    wrong = sum(any(DECIDES.search(sentence) for sentence in page) for page in pages)
    assert wrong / PAGES <= bound(PAGES)


def test_with_the_statistics_the_whole_page_keeps_its_budget(rows: list[Row]) -> None:
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(ANALYSED):
        statistics, texts = analysed(drawn(rows, random))
        assert statistics.analysis is not None
        claims = any(claim.shown for claim in statistics.analysis.claims)
        assert claims or not any(DECIDES.search(text) for text in texts)
        wrong += claims
    assert wrong / ANALYSED <= bound(ANALYSED)


def test_ranking_and_headline_agree_on_every_pair(rows: list[Row]) -> None:
    """Differences about as large as can just be shown: some pairs are, some are not."""
    random = np.random.default_rng(2)
    seen = set()
    for _ in range(8):
        statistics, texts = analysed(drawn(rows, random, {"lion": 0.04, "sgd": -0.015}))
        analysis = statistics.analysis
        assert analysis is not None
        assert analysis.stability.ranking is not None
        text = next(text for text in texts if text.startswith("By drift the order is"))
        for first, second in analysis.stability.ranking.differences:
            claim = find(analysis.claims, "ranking", first, second)
            assert claim is not None
            larger, smaller = (first, second) if claim.value > 0 else (second, first)
            assert (f"{larger} above {smaller}" in text) == claim.shown
            assert f"{smaller} above {larger}" not in text
            seen.add(claim.shown)
        for share in shares_of(analysis):
            if share.term == "optimiser" and share.low is not None:
                assert share.is_shown == bool(analysis.stability.ranking.shown)
    assert seen == {True, False}


def test_the_penalty_has_one_decision_wherever_it_is_stated(rows: list[Row]) -> None:
    random = np.random.default_rng(3)
    changed = [
        replace(row, summary=replace(row.summary, stable_rank=(row.summary.stable_rank or 0) + 2))
        if row.summary.flatness_weight
        else row
        for row in drawn(rows, random)
    ]
    statistics, texts = analysed(changed)
    assert statistics.analysis is not None
    text = " ".join(texts)
    decided = set()
    for effect in (
        statistics.analysis.mediation.penalty.effects if statistics.analysis.mediation else ()
    ):
        if effect.measure == "stable_rank":
            subject = (effect.optimizer, effect.treatment, effect.measure)
            claim = find(statistics.analysis.claims, "penalty, other measures", *subject)
            assert claim is not None
            if f"{effect.optimizer}’s stable rank" in text:
                raised = f"raises {effect.optimizer}’s stable rank" in text
                assert raised == claim.shown
                decided.add(raised)
    assert True in decided


def test_pages_of_one_run_an_arm_decide_nothing_between_arms(tmp_path: Path) -> None:
    store(tmp_path, ("adamw", "lion", "muon"), 1, (0,))
    rows = read_rows(tmp_path)
    tables = read_tables(tmp_path, rows)
    assert tables.claims is not None
    assert not any(tables.claims.tested(measure) for measure in tables.claims.pairs)
    texts = headline(rows, tables.claims)
    assert not any(DECIDES.search(text) for text in texts)
    assert sum("between adapters, not between arms" in text for text in texts) == 1


def test_a_store_and_its_tables_have_the_same_decisions(tmp_path: Path) -> None:
    store(tmp_path, ("adamw", "lion"), 3, (0,))
    tables = read_tables(tmp_path, read_rows(tmp_path))
    assert tables.statistics is not None
    assert tables.statistics.analysis is not None
    assert tables.claims is not None
    assert tables.claims.all_claims == tables.statistics.analysis.claims
