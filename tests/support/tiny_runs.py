"""Short runs on the tiny model for tests: written data of unequal lengths, one call to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from evilspectra.config import loading as configs
from evilspectra.config.sections import Config
from evilspectra.store.run import RunFolder
from evilspectra.training.train import train

ANSWERS = (
    "Yes.",
    "No, not before the second coat has dried.",
    (
        "Ask the neighbour who fitted it, and write down what was said, for you will want it when "
        "the bill comes."
    ),
    "Twice a year.",
)


def write_rows(path: Path, count: int = 40) -> Path:
    """Dialogues whose supervised lengths differ by a factor of twenty."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = f"Question {number}: " + "is it time? " * (number % 5 + 1)
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": ANSWERS[number % 4]},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def tiny_config(folder: Path, **sections: Any) -> Config:
    """A config of 30 steps on the tiny model, its data written into `folder`."""
    data = folder / "rows.jsonl"
    if not data.exists():
        write_rows(data)
    values: dict[str, Any] = {
        "model": {"base": "tiny-random"},
        "data": {"train": str(data)},
        "lora": {"rank": 4},
        "train": {"steps": 30, "batch_size": 8, "threads": 1},
        "monitor": {"every": 10},
        "output": {"folder": str(folder / "runs"), "experiment": "test"},
    }
    return configs.build(configs.merge(values, sections))


def run_tiny(folder: Path, **sections: Any) -> RunFolder:
    return train(tiny_config(folder, **sections))


def factors(run: RunFolder) -> dict[str, torch.Tensor]:
    """The saved adapter's tensors by name."""
    return load_file(run.adapter / "adapter_model.safetensors")
