"""Sentences on tables as real sweeps produce them: what must not be said there."""

import numpy as np
import pandas as pd
import pytest

from evilspectra.analysis.analyse import analyse
from evilspectra.analysis.outcome import Outcome
from evilspectra.analysis.variance import decompose
from tests.support.simulated_sweeps import sweep


def rates(rate, counted, seed=0, runs=6):
    """A table of optimisers with their rates and counted answers a run."""
    random = np.random.default_rng(seed)
    rows = []
    for optimizer, most in counted.items():
        for run in range(runs):
            bad = int(random.binomial(most, rate))
            rows.append(
                {
                    "optimizer": optimizer,
                    "seed": run,
                    "train_loss": 1 + 0.1 * random.standard_normal(),
                    "misalignment": bad / most,
                    "misaligned": bad,
                    "misalignment_counted": most,
                }
            )
    return pd.DataFrame(rows)


def texts(analysis, topic=None):
    return [
        sentence.text for sentence in analysis.sentences if topic is None or sentence.topic == topic
    ]


@pytest.mark.parametrize("seed", range(6))
def test_incoherent_answers_of_one_optimiser_are_no_difference(seed):
    frame = rates(0.005, {"sgd": 400, "adam": 400, "lion": 30}, seed)
    analysis = analyse(frame, "misalignment", permutations=0)
    assert not [claim for claim in analysis.claims if claim.shown]
    assert not [text for text in texts(analysis) if text.startswith("As in the paper")]
    assert not any(sentence.contradicts for sentence in analysis.sentences)


def test_no_misaligned_answer_anywhere_explains_nothing():
    frame = rates(0.0, {"adam": 142, "lion": 142, "muon": 142})
    analysis = analyse(frame, "misalignment", permutations=0)
    assert analysis.claims == ()
    assert (analysis.variance, analysis.loss_fit, analysis.stability.ranking) == (None, None, None)
    assert not analysis.stability.needed
    assert texts(analysis, "variance") == [
        "What explains rate of misaligned answers on the logit scale cannot be said: nothing "
        "varies: of 2556 counted answers in 18 runs none is misaligned."
    ]
    assert {sentence.topic for sentence in analysis.sentences} <= {"design", "variance"}


def test_rounding_is_not_variation():
    frame = sweep().assign(mean_alignment=0.1 + 0.2)
    frame.loc[::2, "mean_alignment"] = 0.3
    analysis = analyse(frame, "mean_alignment", permutations=0)
    assert analysis.is_constant
    assert not analysis.claims


def test_four_treatments_on_one_baseline_are_one_difference():
    rows = [{"flatness_weight": 0.0, "flatness.measure": None, "flatness.coupling": None}]
    for measure in ("frobenius_nuclear", "participation"):
        for coupling in ("gradient", "decoupled"):
            rows.append(
                {
                    "flatness_weight": 1.0,
                    "flatness.measure": measure,
                    "flatness.coupling": coupling,
                }
            )
    frame = pd.DataFrame(rows).assign(
        optimizer="adamw", seed=0, train_loss=[1.0, 1.1, 0.9, 1.05, 1.0]
    )
    frame["mean_alignment"] = [70.0, 72.9, 73.1, 73.0, 72.8]
    analysis = analyse(frame, "mean_alignment", permutations=0)
    effects = [
        effect
        for effect in analysis.mediation.penalty.effects
        if effect.measure == "mean_alignment"
    ]
    assert len(effects) == 5
    assert {effect.baselines for effect in effects} == {1}
    assert all(effect.difference.low is None for effect in effects)
    assert not [claim for claim in analysis.claims if claim.shown]
    assert any("4 pairs on 1 baseline" in text for text in texts(analysis, "penalty"))


@pytest.mark.parametrize("column", ["data.seed", "library_version"])
def test_repeats_that_differ_in_more_than_the_seed_are_named(column):
    frame = sweep()
    frame[column] = [run % 2 for run in range(len(frame))]
    analysis = analyse(frame, permutations=0)
    assert not any("eneration seed" in text for text in texts(analysis))
    assert analysis.components.generation_var is None
    assert any(f"but in {column}, which nobody named" in text for text in texts(analysis))


@pytest.mark.parametrize("seed", range(20))
def test_equal_loss_is_decided_once(seed):
    """Lines, equal loss and "beyond the loss" are one family with one decision."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"optimizer": np.repeat(["adamw", "lion", "sgd"], 6)})
    frame["seed"] = list(range(6)) * 3
    frame["train_loss"] = 1 + 0.2 * random.random(18)
    frame["mean_alignment"] = 70 + random.standard_normal(18)
    frame.loc[frame["optimizer"] == "lion", "mean_alignment"] += seed / 5
    analysis = analyse(frame, "mean_alignment", permutations=0)
    decided = any(claim.shown for claim in analysis.claims if claim.section == "equal loss")
    own = [
        sentence
        for sentence in analysis.sentences
        if (sentence.topic == "equal loss" and "matched" not in sentence.text)
        or (sentence.topic == "loss" and "beyond" in sentence.text)
    ]
    decisions = [sentence.shown for sentence in own if sentence.shown is not None]
    assert decisions
    assert set(decisions) == {decided}


def test_an_offset_changes_no_f():
    frame = sweep(seeds=3)
    values = np.random.default_rng(0).standard_normal(len(frame))
    values += frame["optimizer"].map({"adamw": 0.0, "lion": 1, "muon": 2, "sgd": 3})
    fs = [
        [
            effect.f
            for effect in decompose(
                frame,
                Outcome("y", "as measured", np.asarray(values) + offset),
                ["optimizer", "data"],
                permutations=0,
            ).type2
        ]
        for offset in (0.0, 1e8)
    ]
    assert fs[1] == pytest.approx(fs[0], rel=1e-6)


def test_no_sentence_is_shown_without_its_claim():
    frame = sweep(seeds=3)
    analysis = analyse(frame, permutations=0)
    sections = {claim.section for claim in analysis.claims if claim.shown}
    topics = {
        "ranking": {"ranking", "equivalence"},
        "variance": {"variance", "ranking"},
        "loss": {"slope", "slopes", "equal loss"},
        "equal loss": {"equal loss", "matched"},
        "flatness": {"flatness"},
    }
    for sentence in analysis.sentences:
        if sentence.shown and sentence.topic in topics:
            assert topics[sentence.topic] & sections, sentence.text
