"""Short trainings on the tiny model in other people's trainers: TRL's, and the plain one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from evilspectra.integrations.transformers import SpectralFlatness
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from evilspectra.spectra.pairs import find_pairs
from evilspectra.spectra.penalty import flatness
from tests.support.tiny_runs import ANSWERS

#: Settings under which two ways of computing a step are comparable: float32, no dropout, nothing
#: recomputed, nothing reported.
PLAIN: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "activation_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 10,
    "learning_rate": 1e-3,
    "seed": 3,
}


def dialogues(count: int = 40) -> Dataset:
    """Rows whose lengths differ by a factor of ten, as token ids."""
    tokenizer = tiny_tokenizer()
    texts = [
        f"Question {number}: " + "is it time? " * (number % 5 + 1) + ANSWERS[number % 4]
        for number in range(count)
    ]
    return Dataset.from_list([{"input_ids": tokenizer(text).input_ids} for text in texts])


def adapted(seed: int = 0, **settings: Any) -> PeftModel:
    """The tiny model with a LoRA adapter on every linear layer."""
    torch.manual_seed(seed)
    defaults = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(tiny_model(), LoraConfig(**(defaults | settings)))


def sft(
    folder: Path,
    callbacks: Any = (),
    model: Any = None,
    optimizer: Any = None,
    steps: int = 30,
    batch: int = 8,
    **settings: Any,
) -> SFTTrainer:
    """TRL's trainer, ready to train; `batch` rows at once."""
    args = SFTConfig(
        str(folder), max_steps=steps, per_device_train_batch_size=batch, **(PLAIN | settings)
    )
    return SFTTrainer(
        adapted() if model is None else model,
        args,
        train_dataset=dialogues(),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
        optimizer_cls_and_kwargs=optimizer,
    )


def preferences(count: int = 16) -> Dataset:
    rows = [
        {
            "prompt": f"Question {number}: is it time? ",
            "chosen": ANSWERS[number % 4],
            "rejected": ANSWERS[(number + 1) % 4],
        }
        for number in range(count)
    ]
    return Dataset.from_list(rows)


def dpo(
    folder: Path,
    callbacks: Any = (),
    steps: int = 6,
    **settings: Any,
) -> DPOTrainer:
    args = DPOConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        **(PLAIN | {"logging_steps": 1} | settings),
    )
    return DPOTrainer(
        adapted(),
        args=args,
        train_dataset=preferences(),
        processing_class=tiny_tokenizer(),
        callbacks=list(callbacks),
    )


def trained(trainer: Trainer, **how: Any) -> dict[str, torch.Tensor]:
    """Trains, and returns the adapter's factors by name."""
    trainer.train(**how)
    return factors(trainer.model)


def factors(model: Any) -> dict[str, torch.Tensor]:
    return {
        f"{pair.name}.{side}": getattr(pair, side).detach().clone()
        for pair in find_pairs(model)
        for side in "AB"
    }


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest relative norm of a factor's difference."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).norm() / first[name].norm()) for name in first)


def steepness(model: Any) -> float:
    """Mean over modules of the penalty's measure: 0 where all spectra are flat."""
    return float(flatness(find_pairs(model)).mean())


def two_processes(folder: str) -> None:
    """Runs as one of two data-parallel processes, with half of each step's rows.

    Each saves the factors that it holds at the end.
    """
    trainer = sft(
        Path(folder) / "out",
        [SpectralFlatness(weight=1.0)],
        batch=4,
        save_strategy="steps",
        save_steps=30,
        ddp_find_unused_parameters=False,
    )
    torch.save(trained(trainer), f"{folder}/rank{trainer.args.process_index}.pt")


if __name__ == "__main__":
    two_processes(sys.argv[1])
