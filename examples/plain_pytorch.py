"""A training loop without a trainer, with the penalty and the spectra by two function calls.

python examples/plain_pytorch.py --output out
evilspectra probe out
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence

from evilspectra.config.sections import DataConfig, ModelConfig
from evilspectra.data.batches import prepare
from evilspectra.data.mask import Row
from evilspectra.model.base import resolve
from evilspectra.model.load import context_length, load_base
from evilspectra.spectra.pairs import find_pairs
from evilspectra.spectra.penalty import add_flatness_gradient
from evilspectra.training.monitor import observe


def padded(rows: list[Row], device: torch.device) -> dict[str, torch.Tensor]:
    """Rows as one batch, padded on the right; the loss is on the answers alone."""
    tokens = [torch.as_tensor(row.tokens, dtype=torch.long) for row in rows]
    labels = [
        ids.where(torch.as_tensor(row.supervised), -100)
        for ids, row in zip(tokens, rows, strict=True)
    ]
    mask = [torch.ones_like(ids) for ids in tokens]
    batch = {
        "input_ids": pad_sequence(tokens, True),
        "labels": pad_sequence(labels, True, -100),
        "attention_mask": pad_sequence(mask, True),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default=ModelConfig().base,
        help="a hub name, a folder, a .gguf file, or a built-in name (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument(
        "--weight", type=float, default=1.0, help="λ of the penalty (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("plain-output"))
    options = parser.parse_args()

    torch.manual_seed(0)
    config = ModelConfig(base=options.model)
    base, tokenizer = load_base(resolve(config), config)
    rows = prepare(DataConfig(), tokenizer, context_length(base)).train
    model = get_peft_model(
        base,
        LoraConfig(
            r=16, lora_alpha=32, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    pairs = find_pairs(model)  # the factors A and B of every adapted layer
    measures = []
    model.train()
    for step in range(1, options.steps + 1):
        chosen = torch.randperm(len(rows))[:8].tolist()
        loss = model(**padded([rows[index] for index in chosen], base.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        # once per optimiser step, after clipping
        penalty = add_flatness_gradient(pairs, options.weight, soft_start=0.01)
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0 or step == options.steps:
            _, rows_of_step = observe(pairs, step)  # all singular values, and their measures
            measures += rows_of_step
            ranks = [row.stable_rank for row in rows_of_step if row.stable_rank is not None]
            print(
                f"step {step}: loss {loss.item():.3f}, flatness {penalty.value:.3f}, stable rank "
                f"{sum(ranks) / len(ranks):.2f}"
            )
    model.save_pretrained(str(options.output))
    pd.DataFrame([asdict(row) for row in measures]).to_parquet(options.output / "measures.parquet")


if __name__ == "__main__":
    main()
