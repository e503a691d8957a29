"""Sentences on the loss: each decision is a claim's, and what was not compared is said."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from evilspectra.analysis.analyse import analyse
from evilspectra.analysis.claims import find
from evilspectra.analysis.result import Analysis
from evilspectra.analysis.tables import statistics_tables
from tests.support.simulated_sweeps import sweep

TOPICS = ("loss", "equal loss", "training")


def texts(analysis: Analysis) -> list[str]:
    return [sentence.text for sentence in analysis.sentences if sentence.topic in TOPICS]


def decided(analysis: Analysis, section: str) -> list[tuple[str, ...]]:
    return [claim.subject for claim in analysis.claims if claim.section == section and claim.shown]


def noisy(seed: int, effect: float, noise: float) -> pd.DataFrame:
    """24 runs of four optimisers with a loss, an effect of one optimiser, and noise."""
    draw = np.random.default_rng(seed)
    frame = sweep(seeds=3, effects={"adamw": 0.0, "lion": effect, "muon": 0.0, "sgd": 0.0})
    return frame.assign(
        mean_alignment=frame["mean_alignment"] + noise * draw.standard_normal(len(frame))
    )


@pytest.mark.parametrize("seed", range(12))
def test_sentences_and_tables_have_the_decisions_of_the_claims(seed):
    frame = noisy(seed, effect=-1.0 * (seed % 4), noise=1.0 + seed % 3)
    analysis = analyse(frame, permutations=0)
    assert {claim.section for claim in analysis.claims} >= {"slope", "slopes", "equal loss"}
    by_kind = {
        "slope": r"^Among runs of the same optimizer, ",
        "slopes": r"slopes (differ|are|of)",
        "equal loss": r"^(Given the loss, optimizer explains|At equal loss, on their own lines)",
        "matched": r"^At equal loss, in matched pairs",
    }
    for section, pattern in by_kind.items():
        decisions = [
            sentence.shown
            for sentence in analysis.sentences
            if sentence.topic in TOPICS and re.search(pattern, sentence.text)
        ]
        assert set(decisions) <= {bool(decided(analysis, section)), None}, section
        assert decisions, section
    by_title = {table.title: table for table in statistics_tables(analysis)}
    table = by_title["At equal loss"]
    column = table.headings.index("shown")
    ticked = {tuple(row[0].split(" − ")) for row in table.rows if row[column] == "yes"}
    assert ticked == set(decided(analysis, "equal loss"))
    listed = next(text for text in texts(analysis) if text.startswith("At equal loss, on their"))
    for first, second in decided(analysis, "equal loss"):
        assert f"{first} − {second} " in listed


def test_an_interval_clear_of_zero_shows_nothing_by_itself():
    """A pair whose own p is below 0.05 and whose adjusted p is not."""
    for seed in range(60):
        analysis = analyse(noisy(seed, effect=-2.0, noise=2.0), permutations=0)
        unsure = [
            claim
            for claim in analysis.claims
            if claim.section == "equal loss" and claim.p < 0.05 < claim.adjusted
        ]
        if unsure and not decided(analysis, "equal loss"):
            break
    else:
        pytest.fail("no such table was drawn")
    beyond = [s for s in analysis.sentences if s.text.startswith("Given the loss, optimizer")]
    assert [sentence.shown for sentence in beyond] == [False]
    assert "a difference at equal loss is not shown" in beyond[0].text


def test_a_loss_outside_the_common_range_compares_nothing():
    analysis = analyse(sweep(), permutations=0, at=50.0)
    low, high = analysis.loss_fit.equal_loss.common
    assert (
        f"Nothing is compared at a loss of 50, because all groups have losses only from {low:.4g} "
        f"to {high:.4g} and no line is drawn on beyond its runs."
    ) in texts(analysis)
    assert not any(
        "on their own lines" in text or "the lines put" in text for text in texts(analysis)
    )
    assert find(analysis.claims, "equal loss", "adamw", "lion") is None
    beyond = next(s for s in analysis.sentences if s.text.startswith("Given the loss"))
    assert beyond.shown is None


def test_only_what_is_shown_contradicts_the_paper():
    draw = np.random.default_rng(3)
    frame = sweep(seeds=2, slope=0.0)
    flat = frame.assign(mean_alignment=70 + draw.standard_normal(len(frame)))
    for table in (flat, sweep(slope=-12.0), sweep()):
        analysis = analyse(table, permutations=0)
        against = [sentence for sentence in analysis.sentences if sentence.contradicts]
        assert all(sentence.shown for sentence in against)
        slope = find(analysis.claims, "slope", "optimizer")
        contradicted = any(sentence.topic == "loss" for sentence in against)
        assert contradicted == (slope.shown and slope.value < 0)


def test_the_same_outcome_in_all_runs_is_no_slope():
    frame = sweep().assign(mean_alignment=83.1)
    analysis = analyse(frame, "mean_alignment", permutations=0)
    assert analysis.loss_fit is None
    assert not any(claim.shown for claim in analysis.claims)
    same_loss = analyse(sweep().assign(train_loss=0.7), permutations=0)
    assert any("the loss is the same in all runs" in text for text in texts(same_loss))


def test_rates_at_equal_loss_are_rates():
    frame = sweep().assign(misalignment_counted=500)
    frame["misaligned"] = (500 / (1 + np.exp((frame["mean_alignment"] - 65) / 4))).round()
    frame["misalignment"] = frame["misaligned"] / 500
    analysis = analyse(frame, "misalignment", permutations=0)
    means = next(text for text in texts(analysis) if "the lines put" in text)
    assert re.search(
        r"rate of misaligned answers at muon \d+\.\d % \[\d+\.\d %, \d+\.\d %\]", means
    )
    slope = find(analysis.claims, "slope", "optimizer")
    assert slope.shown
    assert slope.value < 0
    assert not any(sentence.contradicts for sentence in analysis.sentences)
