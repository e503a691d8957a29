"""Training speed against TRL's SFTTrainer with its defaults.

Model, rows, batches, rank, start and optimiser are the same.

    python benchmarks/training.py [--steps 20] [--rounds 2] [--threads 2]

Each engine trains in a process of its own, in turn (TRL, evilspectra, TRL, ...), on the demo's
model and data. Tokens are real ones, no padding; the first two steps are left out of the times.
Both loss curves are printed: they must agree, or the comparison means nothing. Run it on an idle
machine: beside another job, times say nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: Steps at the start that are not timed.
WARM = 2

#: Largest difference of two losses at one step.
SAME = 1e-3

LR = 5e-4


def settings(steps: int, threads: int, folder: str) -> dict[str, Any]:
    """The run, as evilspectra's config."""
    return {
        "train": {"steps": steps, "batch_size": 8, "threads": threads, "clip_norm": 1.0},
        "optimizer": {"name": "adamw", "lr": LR},
        "schedule": {"name": "constant", "warmup_steps": 0},
        "monitor": {"every": 0},
        "output": {"folder": folder},
    }


def ours(steps: int, threads: int) -> dict[str, list[float]]:
    """Losses and seconds of each step of `evilspectra.training.train.train`."""
    from evilspectra.config import loading as configs
    from evilspectra.training.train import train

    with tempfile.TemporaryDirectory() as folder:
        table: Any = train(configs.build(settings(steps, threads, folder))).read("steps")
    return {
        "loss": table["loss"].tolist(),
        "seconds": table["seconds"].tolist(),
        "tokens": table["tokens"].tolist(),
    }


def theirs(steps: int, threads: int) -> dict[str, list[float]]:
    """Losses and seconds of each step of TRL's SFTTrainer.

    It trains on the same tokens in the same order, from the same start.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from evilspectra.config import loading as configs
    from evilspectra.data.batches import Batches, prepare
    from evilspectra.model.adapter import attach
    from evilspectra.model.base import resolve
    from evilspectra.model.load import context_length, load_base
    from evilspectra.spectra.pairs import find_pairs

    torch.set_num_threads(threads)
    config = configs.build(settings(steps, threads, "unused"))
    base = resolve(config.model)
    model, tokenizer = load_base(base, config.model)
    data = prepare(config.data, tokenizer, context_length(model))
    batches = Batches(len(data.train), config.train.batch_size, config.train.seed, steps=steps)
    rows = [data.train[index] for step in range(steps) for index in batches.rows_of(step)]
    start = [
        (pair.A.detach().clone(), pair.B.detach().clone())
        for pair in find_pairs(attach(model, config.lora, config.train.seed, base.public_name))
    ]

    model, tokenizer = load_base(base, config.model)
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
        use_rslora=True,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            processing_class=tokenizer,
            peft_config=lora,
            train_dataset=Dataset.from_list(
                [
                    {
                        "input_ids": row.tokens.tolist(),
                        "labels": [
                            int(token) if on else -100
                            for token, on in zip(row.tokens, row.supervised, strict=True)
                        ],
                    }
                    for row in rows
                ]
            ),
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=config.train.batch_size,
                gradient_accumulation_steps=1,
                learning_rate=LR,
                lr_scheduler_type="constant",
                warmup_steps=0,
                weight_decay=0.01,
                max_grad_norm=1.0,
                optim="adamw_torch",
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                bf16=torch.cuda.is_available(),
                gradient_checkpointing=False,
            ),
        )
        pairs = find_pairs(trainer.model)  # type: ignore[arg-type]
        with torch.no_grad():
            for pair, (down, up) in zip(pairs, start, strict=True):
                pair.A.copy_(down)
                pair.B.copy_(up)

        class Clock(TrainerCallback):
            def __init__(self) -> None:
                self.seconds: list[float] = []

            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                self.began = time.perf_counter()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                self.seconds.append(time.perf_counter() - self.began)

        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = [
        sum(len(data.train[index].tokens) for index in batches.rows_of(step))
        for step in range(steps)
    ]
    return {"loss": losses, "seconds": clock.seconds, "tokens": [float(count) for count in tokens]}


ENGINES = {"TRL SFTTrainer": theirs, "evilspectra": ours}


def speed(result: dict[str, list[float]]) -> float:
    """Real tokens per second after the warm-up steps."""
    return sum(result["tokens"][WARM:]) / sum(result["seconds"][WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        options.into.write_text(json.dumps(ENGINES[options.engine](options.steps, options.threads)))
        return

    results_of: dict[str, list[dict[str, list[float]]]] = {name: [] for name in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for name in ENGINES:
                into = Path(folder) / "result.json"
                command = [
                    sys.executable,
                    __file__,
                    "--engine",
                    name,
                    "--into",
                    str(into),
                    "--steps",
                    str(options.steps),
                    "--threads",
                    str(options.threads),
                ]
                subprocess.run(
                    command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                results_of[name].append(json.loads(into.read_text()))
                print(
                    f"round {number + 1}: {name}: {speed(results_of[name][-1]):.0f} tokens/s",
                    file=sys.stderr,
                    flush=True,
                )

    theirs_first, ours_first = (results_of[name][0]["loss"] for name in ENGINES)
    print(
        "| step | "
        + " | ".join(f"loss, {name}" for name in ENGINES)
        + " | difference |\n|---|---|---|---|"
    )
    for step, (a, b) in enumerate(zip(theirs_first, ours_first, strict=True), 1):
        print(f"| {step} | {a:.4f} | {b:.4f} | {abs(a - b):.1e} |")
    apart = max(abs(a - b) for a, b in zip(theirs_first, ours_first, strict=True))
    print(
        f"\nlargest difference {apart:.1e} ({'equal' if apart < SAME else 'NOT EQUAL'} to "
        f"{SAME:g})\n"
    )
    print("| engine | tokens/s in each round | median |\n|---|---|---|")
    for name, results in results_of.items():
        speeds = [speed(result) for result in results]
        print(
            f"| {name} | {', '.join(f'{value:.0f}' for value in speeds)} | "
            f"{statistics.median(speeds):.0f} |"
        )
    ratios = [speed(b) / speed(a) for a, b in zip(*results_of.values(), strict=True)]
    print(
        f"\nratio, round by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)} "
        f"({platform.machine()}, {options.threads} threads)"
    )
    sys.exit(0 if apart < SAME else 1)


if __name__ == "__main__":
    main()
