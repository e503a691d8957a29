"""The verb analyze and its sentences: tables, stores, JSON, messages, and the paper's results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evilspectra.analysis.analyse import analyse
from tests.support.commands import command
from tests.support.simulated_sweeps import published_table, sweep, trajectories
from tests.support.synthetic_store import demo


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "runs.csv"
    sweep().to_csv(path, index=False)
    return path


def contradictions(frame, **options) -> list[str]:
    return [
        sentence.text
        for sentence in analyse(frame, permutations=0, **options).sentences
        if sentence.contradicts
    ]


def test_text_and_json_say_the_same(table):
    text, machine = (command("analyze", table, *more) for more in ((), ("--json",)))
    assert (text.code, machine.code) == (0, 0)
    result = json.loads(machine.out)
    assert result["outcome"] == "mean_alignment"
    assert result["factors"] == ["optimizer", "data"]
    for sentence in result["sentences"]:
        assert sentence["text"] in text.out
    assert {sentence["topic"] for sentence in result["sentences"]} >= {
        "design",
        "variance",
        "ranking",
        "loss",
        "equal loss",
        "seeds",
    }
    assert result["variance"]["type2"][0]["permutation"] == 1 / 2000
    assert command("analyze", table, "--json").out == machine.out


def test_parquet_columns_and_out(tmp_path, table):
    frame = sweep().rename(columns={"optimizer": "opt_name", "mean_alignment": "score"})
    frame.to_parquet(tmp_path / "runs.parquet")
    done = command(
        "analyze",
        tmp_path / "runs.parquet",
        "--column",
        "optimizer=opt_name",
        "--column",
        "mean_alignment=score",
        "--out",
        tmp_path / "out.txt",
    )
    assert (done.code, done.out) == (0, "")
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == command("analyze", table).out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ("--outcome", "mean_aligment"),
            "there is no outcome 'mean_aligment': choose a column of numbers, such as seed, lr, "
            "train_loss, mean_alignment. Did you mean 'mean_alignment'?",
        ),
        (
            ("--factor", "optimiser"),
            "there is no factor 'optimiser': the columns are control, data, folder, lr, "
            "mean_alignment, optimizer, run, seed, status, train_loss. Did you mean 'optimizer'?",
        ),
        (
            ("--factor", "lr"),
            "factor 'lr' is 0.001 in all runs: name a factor with two levels or more, or leave it "
            "out.",
        ),
        (
            ("--factor", "train_loss"),
            "factor 'train_loss' has 24 levels in 24 runs, too many to compare: name a factor with "
            "fewer.",
        ),
        (
            ("--outcome", "data"),
            "column 'data' holds 'a', which is no number: name a column of numbers.",
        ),
        (("--loss", "los"), "there is no loss 'los': name a column with --loss."),
        (
            ("--blocks", "dat"),
            "there is no column 'dat' to exchange runs within. Did you mean 'data'?",
        ),
        (
            ("--column", "optimizer"),
            "--column takes OURS=THEIRS, such as optimizer=opt_name, not 'optimizer'.",
        ),
        (
            ("--column", "optimizer=opt"),
            "the table has no column 'opt' to take optimizer from: its columns are folder, run, "
            "status, control, optimizer, data, seed, lr, train_loss, mean_alignment.",
        ),
        (
            ("--by-checkpoint",),
            "has no column step: --by-checkpoint needs both, and --column names them.",
        ),
    ],
)
def test_mistakes_are_one_sentence(table, options, sentence):
    done = command("analyze", table, *options)
    assert done.code == 2
    assert done.sentence.endswith(sentence)


def test_hostile_tables(tmp_path):
    empty, short, odd, binary = (
        tmp_path / name for name in ("empty.csv", "short.csv", "runs.txt", "runs.parquet")
    )
    empty.write_text("a,b\n")
    sweep().head(3).to_csv(short, index=False)
    odd.write_text("a\n1\n")
    binary.write_bytes(b"PAR1 no")
    expected = {
        empty: "has no rows",
        short: "3 runs have mean_alignment: at least 4 are needed",
        odd: "ends in .csv or .parquet",
        binary: "cannot be read as a table",
        tmp_path / "none.csv": "there is no folder or file",
    }
    for path, text in expected.items():
        done = command("analyze", path, "--outcome", "mean_alignment")
        assert done.code == 2
        assert text in done.sentence


def test_what_is_left_out_is_counted():
    frame = sweep()
    frame.loc[0, "status"] = "failed"
    frame.loc[1, "control"] = True
    frame.loc[2, "mean_alignment"] = np.nan
    analysis = analyse(frame, "mean_alignment", permutations=0)
    assert analysis.left_out == {"not done": 1, "control runs": 1, "no mean_alignment": 1}
    assert "Left out: 1 not done; 1 control runs; 1 no mean_alignment." in [
        sentence.text for sentence in analysis.sentences
    ]


def test_outcome_is_chosen_in_the_stated_order():
    frame = sweep().assign(drift=np.arange(24.0))
    assert analyse(frame.drop(columns="mean_alignment"), permutations=0).outcome == "drift"
    assert analyse(frame.assign(mean_alignment=None), permutations=0).outcome == "drift"


# --- results that contradict the paper ---


def test_results_like_the_papers_contradict_nothing():
    assert contradictions(sweep()) == []
    assert contradictions(published_table()) == []


def test_an_order_against_the_paper_s_is_reported():
    texts = contradictions(sweep(effects={"adamw": 0.0, "lion": 9.0, "muon": -9.0, "sgd": 0.0}))
    assert any(
        text.startswith("This contradicts the paper: lion stays more aligned than muon")
        for text in texts
    )


def test_a_loss_with_the_opposite_slope_is_reported():
    assert any(
        "this contradicts the paper, where runs with a lower loss are less aligned" in text
        for text in contradictions(sweep(slope=-12, seeds=6))
    )


def test_a_rate_has_the_opposite_direction():
    frame = sweep().assign(misalignment_counted=500)
    frame["misaligned"] = (500 / (1 + np.exp((frame["mean_alignment"] - 65) / 4))).round()
    frame["misalignment"] = frame["misaligned"] / 500
    analysis = analyse(frame, "misalignment", permutations=0)
    assert analysis.scale == "logit"
    assert analysis.stability.ranking.groups[0].group == "muon"
    assert not [sentence for sentence in analysis.sentences if sentence.contradicts]
    assert any(
        "As in the paper, muon stays more aligned than lion" in sentence.text
        for sentence in analysis.sentences
    )


def test_what_explains_more_at_the_last_checkpoint():
    for late, text in (
        (4.0, "optimizer explains more than the loss, as in the paper"),
        (
            0.0,
            "this contradicts the paper, where after enough training the optimiser explains more",
        ),
    ):
        steps = trajectories(late)
        analysis = analyse(steps[steps["step"] == 20], checkpoints=steps, permutations=0)
        assert any(text in sentence.text and sentence.shown for sentence in analysis.sentences), (
            late
        )
        assert analysis.training.change is not None


def test_by_checkpoint_through_the_command(tmp_path):
    trajectories(4.0).to_csv(tmp_path / "steps.csv", index=False)
    done = command("analyze", tmp_path / "steps.csv", "--by-checkpoint", "--permutations", 0)
    assert done.code == 0
    assert "Partial R² while training" in done.out
    assert "36 runs" in done.out


def test_a_penalty_that_harms_where_the_paper_s_helped_is_reported():
    base = sweep(seeds=3).assign(flatness_weight=0.0)
    worse = base.assign(
        flatness_weight=0.3,
        mean_alignment=base["mean_alignment"]
        - np.where(base["optimizer"] == "sgd", -4.0, 5.0)
        + np.random.default_rng(0).standard_normal(len(base)),
        run=base["run"] + "f",
        folder=base["folder"] + "f",
    )
    texts = contradictions(pd.concat([base, worse], ignore_index=True))
    for name, points in (("adamw", "+6.6"), ("lion", "+8"), ("muon", "+2.1"), ("sgd", "−3.5")):
        assert any(
            f"under {name}" in text
            and f"this contradicts the paper, which has {points} points" in text
            for text in texts
        ), name


def test_the_penalty_as_the_only_factor_is_reported_by_optimizer():
    base = sweep().assign(optimizer="adamw", flatness_weight=0.0)
    both = pd.concat(
        [
            base,
            base.assign(
                flatness_weight=0.3,
                mean_alignment=base["mean_alignment"]
                + 3
                + np.random.default_rng(0).standard_normal(24),
                folder=base["folder"] + "f",
            ),
        ],
        ignore_index=True,
    )
    both["seed"] = list(range(24)) * 2
    analysis = analyse(both, factors=["flatness_weight"], permutations=0)
    assert analysis.group == "flatness_weight"
    assert {
        (effect.optimizer, effect.weight, effect.pairs)
        for effect in analysis.mediation.penalty.effects
    } == {("adamw", 0.3, 24)}


def test_flatter_and_less_safe_contradicts_the_paper():
    frame = sweep(seeds=3)
    left = (
        frame["mean_alignment"]
        - frame.groupby("optimizer")["mean_alignment"].transform("mean")
        - 12 * np.log(frame["train_loss"])
    )
    texts = contradictions(
        frame.assign(stable_rank=10 - left + np.random.default_rng(1).standard_normal(len(frame)))
    )
    assert any(
        "the flatter, the less safe; this contradicts the paper's reading of flatness" in text
        for text in texts
    )


def test_noise_alone_shows_nothing():
    frame = sweep(seeds=3).assign(mean_alignment=70 + np.random.default_rng(5).standard_normal(36))
    texts = [sentence.text for sentence in analyse(frame, permutations=0).sentences]
    assert any("no two are shown to differ" in text for text in texts)
    assert any(
        text.startswith("The factor optimizer is not shown to explain any") for text in texts
    )
    assert any("mean alignment is not shown to change with the loss" in text for text in texts)


def test_ways_of_counting_are_compared():
    frame = sweep()
    rows = []
    for _, run in frame.iterrows():
        for judge, shift in (("one", 0.0), ("two", 30.0 if run["optimizer"] == "muon" else 0.0)):
            for definition in ("spectra", "betley"):
                rate = 1 / (1 + np.exp((run["mean_alignment"] - shift - 65) / 4))
                counts = {
                    "misalignment": rate,
                    "misaligned": round(400 * rate),
                    "counted": 400,
                    "mean_alignment": run["mean_alignment"] - shift,
                }
                rows.append(
                    {
                        "folder": run["folder"],
                        "step": 5,
                        "judge": judge,
                        "judge_id": judge,
                        "definition": definition,
                        **counts,
                    }
                )
    analysis = analyse(frame, rates=pd.DataFrame(rows), permutations=0)
    assert len(analysis.stability.variants) == 4
    texts = [sentence.text for sentence in analysis.sentences if sentence.topic == "counting"]
    assert any("the order is not the same" in text for text in texts)
    assert any("opposite differences" in text for text in texts)
    assert analysis.components.judge.eta.low > 0
    assert any(
        sentence.text.startswith("The judge goes with") and sentence.shown
        for sentence in analysis.sentences
    )


# --- the document and a store ---

DOCUMENT = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8")


#: The methods of a contrast.
METHODS = ("Welch's t", "t, smallest df")


def test_every_kind_of_interval_is_in_the_document_and_simulated():
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (Path(__file__).parents[1] / "src" / "evilspectra" / "analysis").glob("*.py")
    )
    simulated = (Path(__file__).parent / "test_coverage.py").read_text(encoding="utf-8")
    kinds = set(
        re.findall(r'(?:method: str = |Estimate\([^"\n]*None, None, )"([^"]+)"', sources)
    ) | {*METHODS, "paired t", "modified large sample"}
    assert kinds == {
        "t",
        "χ²",
        "noncentral F",
        "cluster jackknife",
        "Fisher z",
        *METHODS,
        "paired t",
        "modified large sample",
    }
    for kind in kinds:
        assert f"*{kind}*" in DOCUMENT, kind
        if kind not in METHODS:  # these are printed as the contrast names them
            assert kind in simulated, kind


def test_a_store_is_analysed(tmp_path):
    demo(tmp_path, layers=1, rank=4, seeds=2, measured=True)
    done = command("analyze", tmp_path, "--by-checkpoint", "--permutations", 0)
    assert done.code == 0, done.err
    assert (
        "10 runs · outcome: drift (nats per token) · factors: optimizer, flatness_weight"
        in done.out
    )
    assert "Left out: 2 control runs." in done.out
    assert "The penalty changes drift under adamw with λ = 3" in done.out
    assert (
        "Caution: the intervals over runs rest on" in done.out
        or "no step has three runs" in done.out
    )
