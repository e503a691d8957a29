"""Shares of a training step that the penalty, the monitor and the optimiser take.

    python benchmarks/overhead.py --optimizers adamw muon --steps 20 --threads 2

`--model FOLDER` and `--products float64` measure another model and other products.
The demo's training (SmolLM2-135M, 8 dialogues a step, rank 16 on all linear layers) with the
penalty at every step and the monitor at every tenth, each piece timed where the training loop calls
it. The first two steps and the last one (which also measures the held-out loss) are left out. Run
it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from evilspectra.config import loading as configs
from evilspectra.model.device import set_up_process
from evilspectra.training import loop, train

#: Steps at the start that are not timed.
WARM = 2

#: Steps between two observations.
EVERY = 10

Times = dict[str, list[float]]


def timed(times: Times, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, with its seconds added under the name; it waits until the device is idle."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        wait()
        began = time.perf_counter()
        result = call(*args, **kwargs)
        wait()
        times[name].append(time.perf_counter() - began)
        return result

    return wrapped


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(optimizer: dict[str, Any], options: argparse.Namespace) -> Times:
    """Seconds of each piece of each timed step."""
    times: Times = defaultdict(list)
    totals: Times = defaultdict(list)
    names = ("enqueue", "add_flatness_gradient", "observe", "build_optimizer")
    before: dict[str, Any] = {name: getattr(loop, name) for name in names}
    advance = loop.TrainingRun.advance

    def step(self: loop.TrainingRun) -> Any:
        times.clear()
        record = timed(times, "step", advance)(self)
        if WARM < self.step <= WARM + options.steps:
            for name in ("step", "penalty", "optimiser", "observation"):
                totals[name].append(sum(times.get(name, ())))
        return record

    def built(*args: Any) -> torch.optim.Optimizer:
        optimizer = before["build_optimizer"](*args)
        optimizer.step = timed(times, "optimiser", optimizer.step)
        return optimizer

    try:
        replaced: dict[str, Callable[..., Any]] = {
            "enqueue": timed(times, "penalty", before["enqueue"]),
            "add_flatness_gradient": timed(times, "penalty", before["add_flatness_gradient"]),
            "observe": timed(times, "observation", before["observe"]),
            "build_optimizer": built,
        }
        for name, call in replaced.items():
            setattr(loop, name, call)
        loop.TrainingRun.advance = step
        with tempfile.TemporaryDirectory() as folder:
            train.train(
                configs.build(
                    {
                        **({"model": {"base": options.model}} if options.model else {}),
                        "train": {
                            "steps": WARM + options.steps + 1,
                            "batch_size": 8,
                            "threads": options.threads,
                        },
                        "optimizer": optimizer,
                        "flatness": {"weight": 1.0, "products": options.products},
                        "monitor": {"every": EVERY},
                        "output": {"folder": folder},
                    }
                )
            )
    finally:
        for name, call in before.items():
            setattr(loop, name, call)
        loop.TrainingRun.advance = advance
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--products", choices=["float64", "float32"], default="float32")
    parser.add_argument("--model", help="a folder or hub name; by default the demo's model")
    options = parser.parse_args()
    if options.steps % EVERY:
        parser.error(
            f"--steps {options.steps}: a multiple of {EVERY}, so that the share of observations is "
            "right"
        )
    set_up_process(options.threads)
    pieces = {name: measure({"name": name, "lr": 1e-3}, options) for name in options.optimizers}
    print(
        f"\n{platform.machine()}, {options.threads} threads, torch {torch.__version__}, products "
        f"{options.products}, load {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| optimiser | step, ms | penalty, ms | share | observation, ms | share at every 10th step "
        "| together | optimiser's step, ms | share |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, times in pieces.items():
        total = sum(times["step"])
        flat, seen, moved = (
            sum(times[piece]) / total for piece in ("penalty", "observation", "optimiser")
        )
        ms = [
            1e3 * statistics.median(value for value in times[piece] if value)
            for piece in ("step", "penalty", "observation", "optimiser")
        ]
        print(
            f"| {name} | {ms[0]:.0f} | {ms[1]:.1f} | {100 * flat:.2f} % | {ms[2]:.1f} | "
            f"{100 * seen:.2f} % | **{100 * (flat + seen):.2f} %** | {ms[3]:.1f} | "
            f"{100 * moved:.2f} % |"
        )


if __name__ == "__main__":
    main()
