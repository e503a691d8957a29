"""Records of callbacks beside a trainer's output: tables that show and report can read.

Unknown values are null.
"""

import gc
import json
import math
import re
import shutil

import pandas as pd
import pytest
from click.testing import CliRunner

from evilspectra.cli.main import cli
from evilspectra.errors import BadInput
from evilspectra.evaluation.summary import summarise
from evilspectra.integrations._recording import MOST_WAITING, Recording
from evilspectra.integrations.optimizer import lora_optimizer
from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
from evilspectra.reporting.build import build_report
from evilspectra.spectra.pairs import find_pairs
from evilspectra.store.origin import origin
from evilspectra.store.records import TABLES, SpectrumRecord, StepRecord, columns
from evilspectra.store.run import RunFolder, Store, find_run, is_run
from evilspectra.targets.find import find_targets
from evilspectra.training.monitor import observe
from tests.support.tiny_runs import run_tiny
from tests.support.tiny_trainers import adapted, dpo, sft, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twelve steps of TRL's trainer with both callbacks, with logs at 4, 8, 12, saves at 8, 12."""
    output = tmp_path_factory.mktemp("outputs") / "my-sft"
    callbacks = [SpectralFlatness(weight=1.0), SpectrumMonitor(every=5)]
    trainer = sft(
        output,
        callbacks,
        optimizer=lora_optimizer("muon", lr=1e-3),
        steps=12,
        logging_steps=4,
        save_strategy="steps",
        save_steps=8,
        warmup_steps=2,
    )
    trainer.train()
    return RunFolder.of_trainer(output), trainer


def test_the_tables_are_the_own_ones(run):
    folder, trainer = run
    for table in ("steps", "spectra", "measures"):
        assert list(folder.read(table).columns) == list(columns(TABLES[table]))
        assert (folder.path / f"{table}.parquet").is_file()
        assert not (folder.path / f"{table}.parts").exists()
    steps = folder.read("steps")
    assert list(steps["step"]) == list(range(1, 13))
    assert steps["lr"].to_numpy() == pytest.approx(
        [log * 1e-3 for log in (0, 0.5, *(1 - step / 10 for step in range(10)))]
    )
    logs = {log["step"]: log for log in trainer.state.log_history if "loss" in log}
    for row in steps.itertuples():
        log = logs.get(row.step)
        assert (
            (row.loss == log["loss"] and row.grad_norm == log["grad_norm"])
            if log
            else (math.isnan(row.loss) and math.isnan(row.grad_norm))
        )
        assert not log or (row.flatness, row.penalty, row.flatness_max) == (
            log["flatness/mean"],
            log["flatness/penalty"],
            log["flatness/max"],
        )
    assert steps[["tokens", "supervised_tokens"]].isna().all(axis=None)
    assert (
        sorted(set(folder.read("measures")["step"]))
        == sorted(set(folder.read("spectra")["step"]))
        == [5, 8, 10, 12]
    )  # every fifth, the save, the end


def test_the_last_spectra_are_those_of_the_model(run):
    folder, trainer = run
    spectra, measures = observe(find_pairs(trainer.model), 12)
    stored = folder.read("spectra")
    assert [
        SpectrumRecord(*row) for row in stored[stored["step"] == 12].itertuples(index=False)
    ] == spectra
    log = [log for log in trainer.state.log_history if "spectrum/stable_rank" in log][-1]
    assert log["spectrum/stable_rank"] == pytest.approx(summarise(folder).stable_rank)
    assert log["spectrum/condition_number"] == pytest.approx(summarise(folder).condition_number)
    assert len(measures) == 14


def test_what_is_known_and_what_is_not(run):
    folder, _ = run
    facts, summary = origin(folder), summarise(folder)
    assert (facts.trainer, facts.base, facts.data, facts.optimizer, facts.lr) == (
        "trl.SFTConfig",
        "tiny-random",
        None,
        "Muon",
        1e-3,
    )
    assert (facts.rank, facts.flatness_weight, facts.batch_size, facts.seed, facts.arm) == (
        4,
        1.0,
        8,
        3,
        "Muon + flatness 1",
    )
    expected = {
        "optimizer.lr_rule": "match_rms_adamw",
        "schedule.name": "linear",
        "schedule.warmup_steps": 2,
        "train.steps": 12,
        "train.clip_norm": 1.0,
        "monitor.every": 5,
        "flatness.coupling": "gradient",
        "data.rows": 40,
    }
    assert {path: facts.settings[path] for path in expected} == expected
    assert (
        not {"data.train", "data.heldout", "train.clip", "train.packed", "train.threads"}
        & facts.settings.keys()
    )  # nobody has said
    assert folder.provenance()["base_sha256"] is None
    assert {"torch", "transformers", "trl"} <= folder.provenance()["packages"].keys()
    assert (
        summary.run,
        summary.status,
        summary.steps,
        summary.data,
        summary.heldout_loss,
        summary.tokens_per_s,
        summary.trainer,
    ) == ("my-sft", "done", 12, None, None, None, "trl.SFTConfig")
    assert summary.train_loss == folder.read("steps")["loss"].iloc[-1]  # the last that was logged
    with pytest.raises(BadInput, match=r"config\.yaml"):
        folder.config()


def test_show_and_report_read_it(run):
    folder, _ = run
    for name in (str(folder.path), str(folder.path.parent)):
        result = CliRunner().invoke(cli, ["show", name])
        assert result.exit_code == 0
        assert "Muon + flatness 1" in result.output
        assert (
            "my-sft: trained by another trainer (trl.SFTConfig); its losses are those it "
            "logged, and what it does not tell is a dash"
        ) in result.output
    assert (
        json.loads(CliRunner().invoke(cli, ["show", str(folder.path), "--json"]).output)["data"]
        is None
    )
    assert find_run("my-sft", str(folder.path.parents[1])).path == folder.path
    page = build_report(folder.path.parent).read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>|\s+", " ", page.split("<script")[0])
    assert re.search(
        (
            r"my-sft: trained by another trainer \(trl\.SFTConfig\)\. Its training loss is what "
            r"that trainer logged"
        ),
        text,
    )
    assert re.search(r"Data\s+not known", text)
    assert "Commands that repeat the runs" not in text
    assert "NaN" not in page.split('id="payload">')[1].split("</script>")[0]


def test_outside_runs_are_not_ranked(run, tmp_path):
    """It is unknown whether such runs saw the same data as each other or as this package's runs.

    So neither losses nor the penalty's effect are compared.
    """
    folder, _ = run
    other = sft(tmp_path / "plain", [SpectrumMonitor()], steps=3)
    trained(other)
    run_tiny(tmp_path, train={"steps": 3})
    shutil.copytree(folder.path, tmp_path / "my-sft" / "evilspectra")
    text = re.sub(
        r"<[^>]+>|\s+", " ", build_report(tmp_path).read_text(encoding="utf-8").split("<script")[0]
    )
    assert re.search(
        (
            r"The (base model and )?data (and adapted modules )?of [^.]* not known here, so arms "
            r"are not ranked against each other"
        ),
        text,
    )
    assert "is not known: no finished run without it" in text
    assert "The flattest spectra" not in text


def test_a_run_of_another_trainer_has_no_adapter_to_measure(run, tmp_path):
    folder, _ = run
    with pytest.raises(
        BadInput,
        match=(
            r"holds the spectra of a run of another trainer, and no adapter: name the folder of "
            r"its adapter \(adapter_config\.json\) instead"
        ),
    ):
        find_targets([str(folder.path)], str(tmp_path))


def test_dora_is_said_to_be_ba_only(tmp_path):
    trained(
        sft(
            tmp_path,
            [SpectrumMonitor(every=1), SpectralFlatness(weight=1.0)],
            model=adapted(use_dora=True),
            steps=2,
        )
    )
    assert set(RunFolder.of_trainer(tmp_path).read("measures")["part"]) == {"BA only"}
    assert origin(RunFolder.of_trainer(tmp_path)).settings["lora.dora"] is True


def test_a_second_training_begins_anew_and_one_without_records_leaves_nothing(tmp_path):
    for steps in (4, 2):
        trained(sft(tmp_path, [SpectrumMonitor(every=1)], steps=steps))
        assert list(RunFolder.of_trainer(tmp_path).read("steps")["step"]) == list(
            range(1, steps + 1)
        )
    trained(
        dpo(
            tmp_path / "none",
            [SpectrumMonitor(every=1, record=False), SpectralFlatness(weight=1.0, record=False)],
            steps=1,
        )
    )
    assert not (tmp_path / "none" / "evilspectra").exists()


def test_an_error_leaves_what_was_saved_and_the_same_process_goes_on(tmp_path):
    class Broken(RuntimeError):
        pass

    def spoil(trainer):
        step = trainer.training_step

        def training_step(*args, **kwargs):
            if trainer.state.global_step == 5:
                raise Broken
            return step(*args, **kwargs)

        trainer.training_step = training_step
        return trainer

    def make():
        return sft(
            tmp_path,
            [SpectralFlatness(weight=1.0), SpectrumMonitor(every=1)],
            steps=8,
            save_strategy="steps",
            save_steps=4,
            logging_steps=1,
        )

    broken = spoil(make())
    with pytest.raises(Broken):
        broken.train()
    run = RunFolder.of_trainer(tmp_path)
    assert run.status().state == "running"  # this process holds it still, as in a notebook
    assert list(run.read("steps")["step"]) == [
        1,
        2,
        3,
        4,
        5,
    ]  # the save after 4 steps, the end of an epoch after 5
    assert run.read("steps")["loss"].notna().all()
    assert sorted(set(run.read("spectra")["step"])) == [1, 2, 3, 4, 5]
    trained(make(), resume_from_checkpoint=True)
    assert run.status().state == "done"
    for table in ("steps", "spectra"):
        assert sorted(set(run.read(table)["step"])) == list(range(1, 9))
    assert not run.read("steps")["step"].duplicated().any()


def test_two_processes_may_not_write_one_folder(tmp_path):
    run = RunFolder.of_trainer(tmp_path)
    with run.locked(), pytest.raises(BadInput, match="is being written by another process"):
        sft(tmp_path, [SpectralFlatness(weight=1.0)], steps=1).train()
    trained(sft(tmp_path, [SpectralFlatness(weight=1.0)], steps=1))


# --- the recording by itself ----------------------------------------------------------------------


class State:
    def __init__(self, step: int = 0) -> None:
        self.global_step, self.max_steps = step, 2000


def test_a_part_is_written_again_when_its_loss_is_known(tmp_path):
    recording = Recording.of(tmp_path, State())
    recording.describe({"optimizer": {"name": "SGD"}}, adapted(), "user")
    for step in (1, 2):
        recording.note(step, lr=0.1)
        recording.note(step, seconds=1.0)
    recording.flush(2)
    assert recording.run.read("steps")["loss"].isna().all()
    recording.logged(2, 1.5, None)
    assert list(recording.run.read("steps")["loss"].dropna()) == [1.5]
    recording.note(3, lr=0.1)  # has not ended
    recording.flush(3)
    assert list(recording.run.read("steps")["step"]) == [1, 2]
    recording.finish("user")
    assert recording.closed
    assert recording.run.status().state == "done"


def test_waiting_rows_are_written_without_a_save(tmp_path):
    recording = Recording.of(tmp_path, State())
    recording.describe({}, adapted(), "user")
    for step in range(1, MOST_WAITING + 2):
        recording.note(step, lr=0.1, seconds=1.0)
    assert len(recording.run.read("steps")) == MOST_WAITING
    recording.finish("user")


def test_resuming_before_the_end_of_a_part_keeps_its_beginning(tmp_path):
    """A part may begin before, and end after, the checkpoint of a resume."""
    run = RunFolder(tmp_path)
    for first, last in ((1, 4), (5, 9)):
        run.append(
            "steps",
            [
                StepRecord(step, None, 0.1, None, None, None, None, None, 1.0)
                for step in range(first, last + 1)
            ],
            last,
        )
    run.truncate(6)
    assert list(run.read("steps")["step"]) == [1, 2, 3, 4, 5, 6]
    run.append("steps", [StepRecord(7, 0.5, 0.1, None, None, None, None, None, 1.0)], 7)
    run.merge()
    assert list(run.read("steps")["step"]) == list(range(1, 8))


def test_a_trainer_json_alone_is_no_run(tmp_path):
    (tmp_path / "trainer.json").write_text("{}")
    assert not is_run(tmp_path)
    assert Store(tmp_path).runs() == []


def test_own_runs_are_as_they_were(tmp_path):
    summary = summarise(run_tiny(tmp_path, train={"steps": 2}))
    assert summary.trainer is None
    assert isinstance(summary.tokens_per_s, float)
    gc.collect()
    assert pd.notna(summary.train_loss)
