"""Effect and cost of the callback: TRL's SFTTrainer without it and with it.

Both start alike and train on the same rows in the same order.

    python examples/compare_trl.py --output out                   # SmolLM2 and the demo's data
    python examples/compare_trl.py --model tiny-random --steps 12 --rank 4 --weight 0.3 --output out
    evilspectra report out

Prints two Markdown tables. Losses, spectra and probes repeat on the same kind of machine with the
same number of threads; times need an idle one. The share is the time spent inside a callback
divided by the time of the same steps, everything in them counted; the first steps are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.data.batches import Batches, prepare
from evilspectra.data.mask import Row
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.evaluation.measured import measured
from evilspectra.evaluation.summary import summarise
from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
from evilspectra.model.adapter import attach
from evilspectra.model.base import resolve
from evilspectra.model.load import context_length, load_base
from evilspectra.numbers import bracketed
from evilspectra.probes.likelihood import packed_attention_on, token_log_probs
from evilspectra.store.records import RunSummary
from evilspectra.store.results import Results
from evilspectra.store.run import find_run
from evilspectra.targets.find import find_targets

#: Steps at the start that are not timed.
WARM = 2

EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]


class Stopwatch(TrainerCallback):
    """Seconds inside other callbacks, by their class, and when each step began."""

    def __init__(self, watched: Sequence[TrainerCallback]) -> None:
        self.inside = dict.fromkeys((type(callback).__name__ for callback in watched), 0.0)
        self.marks: list[tuple[float, dict[str, float]]] = []
        for callback in watched:
            for event in EVENTS:
                setattr(
                    callback, event, self._timed(type(callback).__name__, getattr(callback, event))
                )

    def _timed(self, name: str, handle: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return handle(*args, **kwargs)
            finally:
                self.inside[name] += time.perf_counter() - began

        return timed

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append((time.perf_counter(), dict(self.inside)))

    def shares(self) -> tuple[float, dict[str, float]]:
        """Seconds a step, and each callback's share of them, without the first and last steps."""
        (began, before), (ended, after) = self.marks[WARM], self.marks[-1]
        total = ended - began
        shares = {name: (after[name] - before[name]) / total for name in self.inside}
        return total / (len(self.marks) - 1 - WARM), shares


def labelled(rows: Sequence[Row]) -> Dataset:
    """Tokens as TRL takes them; the loss is on the answers alone."""
    return Dataset.from_list(
        [
            {
                "input_ids": row.tokens.tolist(),
                "labels": np.where(row.supervised, row.tokens, -100).tolist(),
            }
            for row in rows
        ]
    )


def mean_loss(adapted: Any, rows: Sequence[Row]) -> float:
    """Nats per supervised token."""
    adapted.eval()
    with packed_attention_on(adapted.get_base_model()) as packed:
        return -float(np.concatenate(token_log_probs(adapted, rows, packed=packed)).mean())


def train(config: sections.Config, weight: float, folder: Path) -> tuple[Stopwatch, float, float]:
    """Trains with TRL and saves the adapter; returns times, and held-out loss before and after."""
    base = resolve(config.model)
    model, tokenizer = load_base(base, config.model)
    data = prepare(config.data, tokenizer, context_length(model))
    batches = Batches(
        len(data.train), config.train.batch_size, config.train.seed, steps=config.train.steps
    )
    rows = [
        data.train[index] for step in range(batches.total_steps) for index in batches.rows_of(step)
    ]
    adapted = attach(model, config.lora, config.train.seed, base.public_name)
    before = mean_loss(adapted, data.heldout)
    callbacks: list[TrainerCallback] = [SpectrumMonitor(every=config.monitor.every)]
    if weight:
        callbacks.append(SpectralFlatness(weight=weight))
    watch = Stopwatch(callbacks)
    trainer = SFTTrainer(
        model=adapted,
        processing_class=tokenizer,
        train_dataset=labelled(rows),
        callbacks=[*callbacks, watch],
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=batches.total_steps,
            per_device_train_batch_size=config.train.batch_size,
            learning_rate=config.optimizer.lr,
            weight_decay=0.01,
            lr_scheduler_type="cosine",
            warmup_steps=config.schedule.warmup_steps,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            seed=config.train.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
        ),
    )
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return watch, before, mean_loss(adapted, data.heldout)


def row(
    name: str,
    summary: RunSummary,
    heldout: float,
    results: Results | None,
) -> str:
    """A line of the table."""
    probed = measured(results) if results else None
    numbers = (
        summary.train_loss,
        heldout,
        summary.stable_rank,
        summary.spectral_entropy,
        summary.frobenius_nuclear,
    )
    cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
    cells += [
        bracketed(probed and probed.drift and probed.drift.drift, "+.3f"),
        bracketed(probed and probed.capability and probed.capability.accuracy, ".2f"),
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default=sections.ModelConfig().base,
        help="a hub name, a folder, a .gguf file, or a built-in name (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--weight",
        type=float,
        nargs="+",
        default=[1.0],
        help="λ of the penalty, one or several (default: 1)",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=5,
        help="steps between two looks at the spectra (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-probes", action="store_true", help="leave drift and capability out")
    parser.add_argument("--output", type=Path, default=Path("compare-output"))
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    settings = {
        "model": {"base": options.model},
        "lora": {"rank": options.rank},
        "optimizer": {"lr": options.lr},
        "monitor": {"every": options.every},
        "train": {
            "steps": options.steps,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "threads": options.threads,
        },
    }
    config = configs.build(settings, "compare_trl")
    arms = {"without": 0.0} | {f"weight {weight:g}": weight for weight in options.weight}
    lines, costs, starts, firsts = [], [], set(), set()
    for name, weight in arms.items():
        folder = options.output / name.replace(" ", "-")
        watch, before, heldout = train(config, weight, folder)
        run, results = find_run(str(folder)), None
        if not options.no_probes:
            (target,) = find_targets(
                [str(folder / "adapter")], str(options.output), base=options.model
            )
            done = evaluate(
                [target],
                configs.build_evaluation({"ordinary": None, "threads": options.threads}),
                lambda text: print(text, flush=True),
            )
            for _, error in done.failed:
                raise error
            results = target.results
        lines.append(row(name, summarise(run), heldout, results))
        starts.add(before)
        firsts.add(run.read("steps")["loss"].iloc[0])
        if len(watch.marks) > WARM + 1:
            seconds, shares = watch.shares()
            costs += [
                f"| {name} | {seconds:.3f} | {callback} | {share:.2%} |"
                for callback, share in shares.items()
            ]

    print(
        "\n| | train loss | held-out loss | stable rank | spectral entropy | Frobenius/nuclear | "
        "drift, nats per token | capability |\n|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))
    print(
        f"\nheld-out loss before training {', '.join(f'{start:.3f}' for start in starts)}; loss of "
        f"the first step {', '.join(f'{first:.4f}' for first in firsts)}: one number each, for all "
        "begin alike"
    )
    if costs:
        print("\n| | seconds a step | callback | its share |\n|---|---|---|---|")
        print("\n".join(costs))


if __name__ == "__main__":
    main()
