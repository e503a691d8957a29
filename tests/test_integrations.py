"""The penalty in other people's trainers: one gradient a step, one added line.

The gradient does not depend on accumulation or processes, and is that of this package's training.
"""

import difflib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from evilspectra.data.batches import Batches, prepare
from evilspectra.integrations.optimizer import build_for, lora_optimizer
from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
from evilspectra.model.adapter import attach
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from evilspectra.spectra.pairs import find_pairs
from evilspectra.training.loop import TrainingRun
from tests.reference.spectra import flatness_by_autograd
from tests.support.tiny_runs import tiny_config
from tests.support.tiny_trainers import (
    PLAIN,
    adapted,
    apart,
    dialogues,
    dpo,
    factors,
    sft,
    steepness,
    trained,
)

#: Relative norm of the difference per factor after 30 steps in float32: sums in another order,
#: amplified by training.
OTHER_ORDER = 1e-4

#: The same sums in the same order; a resumed run may lose that much by reading its state back.
SAME_ORDER = 1e-6

#: One gradient in float32, against autograd through a decomposition in float64.
ONE_GRADIENT = 1e-5


class Gradients(TrainerCallback):
    """Keeps each step's gradients."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(
        self,
        args: Any,
        state: Any,
        control: Any,
        **kwargs: Any,
    ) -> None:
        self.steps.append(
            {
                f"{pair.name}.{side}": getattr(pair, side).grad.clone()
                for pair in find_pairs(kwargs["model"])
                for side in "AB"
            }
        )


# --- one gradient a step --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["gradient", "decoupled"])
def test_accumulation_equals_one_big_batch(tmp_path, coupling):
    settings = {
        "weight": 1.0 if coupling == "gradient" else 300.0,
        "coupling": coupling,
        "record": False,
    }
    steps = 30 if coupling == "gradient" else 15
    full = sft(tmp_path, [SpectralFlatness(**settings)], steps=steps)
    split = sft(
        tmp_path,
        [SpectralFlatness(**settings)],
        steps=steps,
        batch=1,
        gradient_accumulation_steps=8,
    )
    first, second = trained(full), trained(split)
    assert any(
        not torch.equal(first[name], second[name]) for name in first
    )  # they did go different ways
    assert apart(first, second) < OTHER_ORDER
    plain = sft(tmp_path, steps=steps)
    trained(plain)
    assert steepness(full.model) < 0.5 * steepness(plain.model)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Two processes with half of each step's rows each end with the adapter of a single process.

    One of them keeps records.
    """
    single = sft(tmp_path / "one", [SpectralFlatness(weight=1.0)])
    alone = trained(single)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-m", "tests.support.tiny_trainers", str(tmp_path)]
    with (tmp_path / "log").open("w") as log:
        ranks = [
            subprocess.Popen(
                arguments,
                cwd=Path(__file__).parents[1],
                env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
                stdout=log,
                stderr=log,
            )
            for rank in "01"
        ]
        assert [rank.wait() for rank in ranks] == [0, 0], (tmp_path / "log").read_text()[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert apart(alone, first) < OTHER_ORDER
    names = {path.name for path in (tmp_path / "out" / "evilspectra").iterdir()}
    assert {"trainer.json", "status.json", "steps.parquet"} <= names


def test_it_is_what_the_own_loop_does(tmp_path):
    """The plain trainer on this package's rows and order, with its optimiser and schedule."""
    config = tiny_config(
        tmp_path,
        flatness={"weight": 1.0, "warmup_steps": 5},
        optimizer={"name": "adamw", "lr": 1e-3},
        data={"heldout_share": 0.0},
    )
    data = prepare(config.data, tiny_tokenizer(), 1024)
    batches = Batches(
        len(data.train),
        config.train.batch_size,
        config.train.seed,
        config.train.epochs,
        config.train.steps,
    )
    theirs = attach(tiny_model(), config.lora, config.train.seed, "tiny-random")

    from evilspectra.model.packing import use_packed_attention
    from evilspectra.store.run import RunFolder

    base = tiny_model()
    use_packed_attention(base)
    own = TrainingRun(
        config,
        RunFolder(tmp_path / "own"),
        attach(base, config.lora, config.train.seed, "tiny-random"),
        tiny_tokenizer(),
        data,
        batches,
    )
    records = [own.advance() for _ in range(batches.total_steps)]

    rows = [
        data.train[index] for step in range(batches.total_steps) for index in batches.rows_of(step)
    ]
    examples = [
        {
            "input_ids": row.tokens.tolist(),
            "labels": [
                token if learned else -100
                for token, learned in zip(row.tokens.tolist(), row.supervised.tolist(), strict=True)
            ],
        }
        for row in rows
    ]

    def collate(parts):
        longest = max(len(part["input_ids"]) for part in parts)
        filled = {"input_ids": 0, "labels": -100}
        batch = {
            name: torch.tensor(
                [part[name] + [fill] * (longest - len(part[name])) for part in parts]
            )
            for name, fill in filled.items()
        }
        return batch | {
            "attention_mask": torch.tensor(
                [
                    [1] * len(part["input_ids"]) + [0] * (longest - len(part["input_ids"]))
                    for part in parts
                ]
            )
        }

    same = {
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "logging_steps": 1,
    }
    args = TrainingArguments(
        str(tmp_path / "theirs"),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **(PLAIN | same),
    )
    optimizer = build_for(theirs, "adamw", lr=1e-3)
    trainer = Trainer(
        theirs,
        args,
        data_collator=collate,
        train_dataset=examples,
        callbacks=[SpectralFlatness(weight=1.0, warmup_steps=5)],
        optimizers=(optimizer, None),
    )
    assert apart(factors(own.model), trained(trainer)) < OTHER_ORDER
    logged = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logged) == len(records) == 30
    for log, record in zip(logged, records, strict=True):
        assert log["flatness/mean"] == pytest.approx(record.flatness, rel=1e-3, abs=1e-9)
        assert log["flatness/penalty"] == pytest.approx(record.penalty, rel=1e-3, abs=1e-9)
        assert log["loss"] == pytest.approx(record.loss, rel=1e-4)
        assert log["learning_rate"] == pytest.approx(record.lr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [None, lora_optimizer("muon", lr=1e-3)], ids=["adamw", "muon"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer):
    def trainer(folder: str, steps: int) -> Trainer:
        callbacks = [SpectralFlatness(weight=1.0, warmup_steps=12), SpectrumMonitor(every=4)]
        return sft(
            tmp_path / folder,
            callbacks,
            optimizer=optimizer,
            steps=steps,
            batch=4,
            save_strategy="steps",
            save_steps=8,
            logging_steps=4,
            lr_scheduler_type="constant",
        )

    uninterrupted = trained(trainer("whole", 16))
    stopped = trainer("resumed", 10)  # its last steps are repeated by the next one
    trained(stopped)
    resumed = trained(
        trainer("resumed", 16), resume_from_checkpoint=str(tmp_path / "resumed" / "checkpoint-8")
    )
    assert apart(uninterrupted, resumed) < SAME_ORDER

    from evilspectra.store.run import RunFolder

    first, second = (RunFolder.of_trainer(tmp_path / folder) for folder in ("whole", "resumed"))
    for table in ("steps", "spectra", "measures"):
        a, b = (run.read(table).drop(columns="seconds", errors="ignore") for run in (first, second))
        assert list(a["step"]) == list(b["step"])
        columns = [
            name
            for name in a.select_dtypes("number")
            if a[name].notna().any() and name != "condition_number"
        ]
        assert (
            ((a[columns] - b[columns]).abs() <= 1e-5 * (1 + a[columns].abs()))
            .to_numpy()[a[columns].notna().to_numpy()]
            .all()
        )


def test_preference_training_gets_the_gradient_too(tmp_path):
    """DPO: the second step's gradients with and without the penalty differ by λ∇R.

    The expected ∇R is autograd's through a dense decomposition.
    """
    gradients, at = {}, {}

    class Factors(TrainerCallback):
        def on_step_begin(
            self,
            args,
            state,
            control,
            **kwargs,
        ):
            at[state.global_step] = (
                find_pairs(kwargs["model"])[3].A.detach().clone(),
                find_pairs(kwargs["model"])[3].B.detach().clone(),
            )

    for weight in (0.0, 0.7):
        seen = Gradients()
        trainer = dpo(
            tmp_path,
            [
                seen,
                Factors(),
                SpectralFlatness(
                    weight=weight,
                    soft_start=0.0,
                    modules=find_pairs(adapted())[3].name,
                    record=False,
                ),
            ],
            steps=2,
            max_grad_norm=1e-3,
        )
        trained(trainer)
        gradients[weight] = seen.steps[1]
    _, *slopes = flatness_by_autograd(*at[1])
    name = find_pairs(adapted())[3].name
    for side, slope in zip("AB", slopes, strict=True):
        added = gradients[0.7][f"{name}.{side}"] - gradients[0.0][f"{name}.{side}"]
        assert float((added - 0.7 * slope).norm() / (0.7 * slope).norm()) < ONE_GRADIENT
    others = [key for key in gradients[0.0] if not key.startswith(name)]
    assert all(torch.equal(gradients[0.0][key], gradients[0.7][key]) for key in others)


def test_preference_training_becomes_flatter(tmp_path):
    steep = {}
    for weight in (0.0, 3.0):
        trainer = dpo(tmp_path, [SpectralFlatness(weight=weight, record=False)], steps=12)
        trained(trainer)
        steep[weight] = steepness(trainer.model)
    assert steep[3.0] < 0.5 * steep[0.0]


def test_recomputed_activations_change_nothing(tmp_path):
    stored, recomputed = (
        trained(
            sft(
                tmp_path,
                [SpectralFlatness(weight=1.0, record=False)],
                steps=5,
                activation_checkpointing=again,
            )
        )
        for again in (False, True)
    )
    assert apart(stored, recomputed) < OTHER_ORDER


def test_warm_up_counts_the_trainers_steps(tmp_path):
    trainer = sft(
        tmp_path,
        [SpectralFlatness(weight=2.0, warmup_steps=4, record=False)],
        steps=6,
        logging_steps=1,
    )
    trained(trainer)
    assert [
        log["flatness/weight"] for log in trainer.state.log_history if "flatness/weight" in log
    ] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


# --- one line -------------------------------------------------------------------------------------

SCRIPT = """\
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

model, tokenizer, rows = load()
trainer = SFTTrainer(
    model,
    SFTConfig(
        "out",
        max_steps=10,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        activation_checkpointing=False,
    ),
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=4, target_modules="all-linear"),
)
trainer.train()
"""


@pytest.mark.slow
def test_a_script_needs_one_import_and_one_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    added = SCRIPT.replace(
        "from trl", "from evilspectra.integrations.transformers import SpectralFlatness\nfrom trl"
    ).replace(
        '"all-linear"),\n)', '"all-linear"),\n    callbacks=[SpectralFlatness(weight=3.0)],\n)'
    )
    difference = [
        line for line in difflib.ndiff(SCRIPT.splitlines(), added.splitlines()) if line[0] != " "
    ]
    assert difference == [
        "+ from evilspectra.integrations.transformers import SpectralFlatness",
        "+     callbacks=[SpectralFlatness(weight=3.0)],",
    ]
    steep = {}
    for name, text in (("plain", SCRIPT), ("added", added)):
        names: dict[str, Any] = {
            "load": lambda: (tiny_model(), tiny_tokenizer(), dialogues().to_list())
        }
        torch.manual_seed(0)
        exec(compile(text, name, "exec"), names)
        steep[name] = steepness(names["trainer"].model)
    assert steep["added"] < 0.7 * steep["plain"]
    assert (tmp_path / "out" / "evilspectra" / "steps.parquet").is_file()
