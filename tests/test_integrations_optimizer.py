"""This package's optimisers in other people's trainers."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from evilspectra.config.optimizers import OPTIMIZERS
from evilspectra.integrations.optimizer import build_for, lora_optimizer
from evilspectra.integrations.transformers import SpectralFlatness
from tests.support.tiny_trainers import PLAIN, adapted, dialogues, factors, sft, trained


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_trains_in_a_trainer(tmp_path, name):
    if name in ("soap", "scion", "lora-rite", "adafactor"):
        pytest.importorskip("pytorch_optimizer")
    trainer = sft(
        tmp_path,
        [SpectralFlatness(weight=0.3, record=False)],
        optimizer=lora_optimizer(name, lr=1e-3),
        steps=3,
        logging_steps=1,
    )
    before = factors(trainer.model)
    after = trained(trainer)
    assert all(not torch.equal(before[key], after[key]) for key in before if key.endswith("B"))
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    # the trainer's schedule on the optimiser's own lr
    assert rates == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])


def test_the_two_ways_to_an_optimiser_are_one(tmp_path):
    model = adapted()
    args = TrainingArguments(
        str(tmp_path), max_steps=4, per_device_train_batch_size=1, weight_decay=0.1, **PLAIN
    )
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in dialogues()]
    built = Trainer(
        model,
        args,
        train_dataset=rows,
        optimizers=(build_for(model, "muon", lr=1e-3, factors="b_only"), None),
    )
    called = Trainer(
        adapted(),
        args,
        train_dataset=rows,
        optimizer_cls_and_kwargs=lora_optimizer("muon", lr=1e-3, factors="b_only"),
    )
    first, second = trained(built), trained(called)
    assert all(torch.equal(first[name], second[name]) for name in first)
    group = called.optimizer.param_groups[0]
    assert len(called.optimizer.param_groups) == 1
    assert group["weight_decay"] == 0.0  # its own, not the trainer's
    assert all("lora_" in name for name in group["param_names"])
