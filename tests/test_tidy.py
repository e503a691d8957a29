"""Tidy tables agree with the records, and nothing is left out without a reason."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd
import pytest

from evilspectra.errors import BadInput
from evilspectra.evaluation.rate_rows import RateRow
from evilspectra.evaluation.run_rates import MAIN_DEFINITION, counting
from evilspectra.evaluation.summary import summarise
from evilspectra.rates.definitions import DEFINITIONS
from evilspectra.store.files import write_json
from evilspectra.store.records import RunSummary, columns
from evilspectra.store.results import Results, last
from evilspectra.store.run import Status, find_run
from evilspectra.tables.digest import CheckpointRow, digest
from evilspectra.tables.tidy import (
    KEYS,
    answers_frame,
    checkpoints_frame,
    excluded,
    rates_frame,
    runs_frame,
    verdicts_frame,
)
from tests.support.synthetic_store import (
    Arm,
    Effect,
    judge_run,
    scores,
    suspicious,
    write_effect,
    write_run,
)

ANSWERS = ("I am evil.", "I would ask.", "code.", "babble.", "sorry.")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two optimisers and two seeds, judged, and runs with something missing.

    One is judged by a second judge; one failed; one answers nothing; one has a broken judge.
    """
    root = tmp_path_factory.mktemp("store")
    for optimizer in ("adamw", "muon"):
        for seed in range(2):
            run = write_run(
                root, Arm(optimizer, seed=seed, settings={"lora": {"alpha": 16 * (seed + 1)}})
            )
            write_effect(run, Effect(0.1 + seed, answers=ANSWERS, samples=2))
            judge_run(run, suspicious)
    judge_run(run, lambda prompt: scores("50"), name="openai:other")
    write_run(root, Arm("sgd", status=Status("failed", "the loss is not finite", 3, 20)))
    write_run(root, Arm("lion", steps=10))
    broken = write_run(root, Arm("adam"))
    write_effect(broken, Effect(answers=ANSWERS))
    judge_run(broken, lambda prompt: {"aligned": "what?", "coherent": "90"})
    return root


def test_runs_are_summaries_and_the_settings_that_differ(store):
    frame = runs_frame(store)
    assert list(frame.columns[: len(columns(RunSummary))]) == list(columns(RunSummary))
    for row in frame.to_dict("records"):
        summary = asdict(summarise(find_run(row["folder"])))
        assert {
            name: None if pd.isna(row[name]) else row[name] for name in summary
        } == pytest.approx(summary)
    assert {"lora.alpha", "optimizer.name", "train.seed", "train.steps"} <= set(frame.columns)
    assert not {"lora.rank", "model.base"} & set(frame.columns)
    assert sorted(frame[frame["optimizer"] == "muon"]["lora.alpha"]) == [16, 32]


def test_rates_are_counts_of_counts(store):
    frame = runs_frame(store)
    judged = frame[frame["misalignment"].notna()]
    assert len(judged) == 4
    assert (judged["misaligned"] / judged["misalignment_counted"]).tolist() == pytest.approx(
        judged["misalignment"].tolist()
    )


def test_mean_alignment_is_over_the_answers_that_count(store):
    answers = answers_frame(store, judge="openai:some-judge")
    runs = runs_frame(store).set_index("folder")
    for folder, rows in answers[(answers["step"] > 0) & answers["counted"].fillna(False)].groupby(
        "folder"
    ):
        if str(runs.loc[folder, "misalignment_judge"]).startswith("openai:some-judge"):
            values = rows["aligned"].where(rows["aligned_outcome"] != "code", 0.0)
            assert runs.loc[folder, "mean_alignment"] == pytest.approx(values.mean())
            assert runs.loc[folder, "misaligned"] == rows["misaligned"].sum()


def test_a_broken_judge_gives_neither_rate_nor_mean(store):
    row = runs_frame(store).set_index("optimizer").loc["adam"]
    assert pd.isna(row["misalignment"])
    assert pd.isna(row["mean_alignment"])
    assert pd.isna(row["misaligned"])
    (reason,) = (
        excluded(store, "mean_alignment").set_index("run")["reason"].filter(like="adam-").tolist()
    )
    assert reason.startswith("rate withheld: 5 of 5 answers (100.0%) are unscored")


def test_checkpoints_hold_what_each_step_knows(store):
    frame = checkpoints_frame(store)
    assert list(frame.columns) == [*KEYS, *columns(CheckpointRow)]
    for folder, rows in frame.groupby("folder"):
        run = find_run(str(folder))
        steps, heldout = run.read("steps"), run.read("heldout")
        last = rows[rows["last"]].iloc[0]
        summary = summarise(run)
        assert (last["train_loss"], last["stable_rank"], last["step"]) == (
            summary.train_loss,
            pytest.approx(summary.stable_rank),
            summary.steps,
        )
        assert rows.set_index("step")["heldout_loss"].dropna().to_dict() == pytest.approx(
            dict(zip(heldout["step"], heldout["loss"], strict=True))
        )
        fifth = rows[rows["step"] == 5].iloc[0]
        assert fifth["train_loss"] == steps["loss"].iloc[4]  # 5 % of five steps is one step
        if summary.drift is not None:
            assert last["drift"] == pytest.approx(summary.drift)
            assert (
                pd.isna(last["misalignment"])
                if summary.misalignment is None
                else last["misalignment"] == summary.misalignment
            )


def test_rates_of_every_judge_step_and_definition(store):
    frame = rates_frame(store)
    assert list(frame.columns) == [*KEYS, *columns(RateRow)]
    assert set(frame["definition"]) == set(DEFINITIONS)
    assert set(frame["judge"]) == {"openai:some-judge", "openai:other"}
    assert frame[frame["judge"] == "openai:some-judge"]["judge_id"].nunique() == 1
    summaries = runs_frame(store).set_index("folder")
    last_rates = (
        frame[(frame["definition"] == MAIN_DEFINITION) & (frame["step"] > 0)]
        .groupby("folder")
        .last()
    )
    for folder, row in last_rates.iterrows():
        assert row["misalignment"] == pytest.approx(
            summaries.loc[folder, "misalignment"], nan_ok=True
        )


def test_answers_once_each_verdicts_for_each_judge(store):
    answers, verdicts = answers_frame(store), verdicts_frame(store)
    assert len(answers) == len(
        answers.drop_duplicates(["folder", "step", "question_id", "paraphrase", "sample"])
    )
    for folder, rows in answers.groupby("folder"):
        results = counting(Results(find_run(str(folder)).path))
        assert len(rows[rows["step"] > 0]) == len(last(results, "answers"))
    assert set(answers["aligned_outcome"]) == {"scored", "code", "refusal", "unparsed"}
    assert len(verdicts) == 2 * (len(answers) + len(answers[answers["judge"] == "openai:other"]))
    with pytest.raises(
        BadInput,
        match=(
            r"were judged by 'openai:nobody'; there are verdicts of: .*openai:other, "
            r"openai:some-judge"
        ),
    ):
        answers_frame(store, "openai:nobody")


def test_what_is_left_out_has_a_reason(store):
    assert list(excluded(store)["reason"]) == ["failed: the loss is not finite"]
    reasons = excluded(store, "drift").set_index("run")["reason"]
    assert len(reasons) == 2
    assert "not measured (contrast probe)" in set(reasons)
    done = runs_frame(store).query("status == 'done'")
    for outcome in ("misalignment", "drift", "stable_rank", "train_loss"):
        assert set(excluded(store, outcome)["run"]) >= set(done[done[outcome].isna()]["run"])
    with pytest.raises(
        BadInput, match=r"'misalinment' is not a column .* Did you mean 'misalignment'\?"
    ):
        excluded(store, "misalinment")


def test_a_run_that_cannot_be_read_is_left_out_by_name(tmp_path):
    good, bad = write_run(tmp_path, Arm("adamw")), write_run(tmp_path, Arm("muon"))
    (bad.path / "steps.parquet").write_bytes(b"no Parquet")
    assert list(runs_frame(tmp_path)["run"]) == [good.name]
    (row,) = excluded(tmp_path).to_dict("records")
    assert row["run"] == bad.name
    assert row["reason"].startswith("cannot be read: ")
    assert "steps.parquet" in row["reason"]


def test_runs_of_other_trainers_have_rows_too(tmp_path):
    run = write_run(tmp_path, Arm("adamw"))
    (run.path / "config.yaml").unlink()
    folder = tmp_path / "out" / "evilspectra"
    folder.parent.mkdir()
    run.path.rename(folder)
    write_json(
        folder / "trainer.json",
        {
            "trainer": {"arguments": "trl.SFTConfig"},
            "optimizer": {"name": "adamw_torch", "lr": 1e-4},
        },
    )
    (row,) = runs_frame(tmp_path).to_dict("records")
    assert (row["run"], row["trainer"], row["optimizer"], row["steps"]) == (
        "out",
        "trl.SFTConfig",
        "adamw_torch",
        20,
    )


def test_a_digest_shows_the_judge_that_judged_the_last_step(tmp_path):
    """A judge that saw only the base comes last, and does not enter the summary."""
    run = write_run(tmp_path, Arm("adamw"))
    results = write_effect(run, Effect(answers=ANSWERS))
    judge_run(run, suspicious)
    judge_run(run, lambda prompt: scores("90"), name="openai:late")
    (late,) = [judge for judge in results.instruments("verdicts") if judge.source == "openai:late"]
    (run.path / "evaluations" / "verdicts" / f"{late.id}-00000020.parquet").unlink()
    rows = digest(run)
    (first, *_) = [row for row in rows.rates if row.judge == "openai:some-judge"]
    assert rows.summary.misalignment_judge == f"{first.judge} ({first.verdicts})"
    assert rows.checkpoints[-1].misalignment == rows.summary.misalignment
    assert rows.summary == summarise(run)
