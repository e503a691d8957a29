"""Time of an optimiser step over the LoRA factors of models, against AdamW's and torch's Muon.

    python benchmarks/optimizers.py [--shapes smollm2-135m ...] [--rounds 9] [--threads 1]
                                    [--only muon lion ...]

Every optimiser has its own copy of the factors and of one random gradient; the optimisers take
turns, a step each, so that they share whatever else the machine does; the process is set up as for
training. The first turn is not timed. Ratios are of the medians. Where the copies do not fit into
the free memory, a set of shapes is left out, and says so. Optimisers of the extra `optimizers` are
timed where it is installed.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch

from evilspectra.config import optimizers as c
from evilspectra.model.device import set_up_process
from evilspectra.optim.build import build_optimizer
from evilspectra.optim.muon import Muon
from shapes import MODELS, Shapes

#: Copies of the factors that one optimiser holds at most at a time: itself, gradient, two moments,
#: two passing ones.
COPIES = 6

#: torch's Muon is slow: it takes part in every third round only.
SLOW_EVERY = 3


Named = list[tuple[str, torch.nn.Parameter]]

OPTIMIZERS: dict[str, Callable[[Named], torch.optim.Optimizer]] = {
    "adamw": lambda named: build_optimizer(c.AdamW(), named),
    "torch.optim.Muon": lambda named: torch.optim.Muon(
        [weight for _, weight in named], weight_decay=0.0
    ),
    "sgd": lambda named: build_optimizer(c.SGD(momentum=0.9), named),
    "lion": lambda named: build_optimizer(c.Lion(), named),
    "muon": lambda named: build_optimizer(c.Muon(), named),
    "muon, polar_express": lambda named: Muon(named, orthogonalisation="polar_express"),
    "muon, exact": lambda named: Muon(named, orthogonalisation="exact"),
    "muon, b_only": lambda named: Muon(named, factors="b_only"),
    "soap": lambda named: build_optimizer(c.SOAP(), named),
    "scion": lambda named: build_optimizer(c.Scion(), named),
    "lora-rite": lambda named: build_optimizer(c.LoraRite(), named),
    "adafactor": lambda named: build_optimizer(c.Adafactor(), named),
}
EXTRA = {"soap", "scion", "lora-rite", "adafactor"}
SLOW = {"torch.optim.Muon", "muon, exact", "soap", "lora-rite"}


def factors(shapes: Shapes) -> list[tuple[str, tuple[int, int]]]:
    """Names and shapes of A and B of every projection in turn, as PEFT has them."""
    return [
        factor
        for name, (d_in, d_out) in shapes.modules()
        for factor in (
            (f"{name}.lora_A.weight", (shapes.rank, d_in)),
            (f"{name}.lora_B.weight", (d_out, shapes.rank)),
        )
    ]


def copies(shapes: Shapes, device: str) -> Named:
    """Random factors, each with a random gradient."""
    generator = torch.Generator().manual_seed(0)
    named = []
    for name, shape in factors(shapes):
        weight = torch.nn.Parameter(torch.randn(*shape, generator=generator).to(device))
        weight.grad = torch.randn(*shape, generator=generator).to(device)
        named.append((name, weight))
    return named


def measure(
    shapes: Shapes,
    names: list[str],
    rounds: int,
    device: str,
) -> dict[str, float]:
    """Median milliseconds a step of each optimiser, all of them in turn."""
    running = {name: OPTIMIZERS[name](copies(shapes, device)) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, optimizer in running.items():
            if name in SLOW and number % SLOW_EVERY and number != 1:
                continue
            began = time.perf_counter()
            optimizer.step()
            if device != "cpu":
                torch.cuda.synchronize()
            if number:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def fits(shapes: Shapes, count: int, device: str) -> bool:
    """Whether so many optimisers over the shapes fit into half of the free memory."""
    needed = 4 * COPIES * count * sum(rows * columns for _, (rows, columns) in factors(shapes))
    if device != "cpu":
        return needed < torch.cuda.mem_get_info()[0] / 2
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            free = next(
                1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration):
        return True
    return needed < free / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--only", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME"
    )
    options = parser.parse_args()
    set_up_process(options.threads)
    absent = EXTRA if find_spec("pytorch_optimizer") is None else set()
    names = [
        name
        for name in OPTIMIZERS
        if name not in absent and (name in options.only or name in ("adamw", "torch.optim.Muon"))
    ]
    if absent & set(options.only):
        print("the extra optimizers is not installed: its optimisers are left out", file=sys.stderr)
    print(
        f"torch {torch.__version__}, {options.device}, {platform.machine()}, {options.threads} "
        "threads\n"
    )
    print(
        "| shapes | optimiser | ms a step | times AdamW's | faster than torch's Muon |\n"
        "|---|---|---|---|---|"
    )
    for label in options.shapes:
        shapes = MODELS[label]
        if not fits(shapes, len(names), options.device):
            print(
                f"{label} is left out: {len(names)} optimisers do not fit into half of the free "
                "memory; name fewer with --only",
                file=sys.stderr,
            )
            continue
        milliseconds = measure(shapes, names, options.rounds, options.device)
        for name in names:
            print(
                f"| {label}, r = {shapes.rank} | {name} | {milliseconds[name]:.1f} | "
                f"{milliseconds[name] / milliseconds['adamw']:.2f} | "
                f"{milliseconds['torch.optim.Muon'] / milliseconds[name]:.1f} |",
                flush=True,
            )
        gc.collect()


if __name__ == "__main__":
    main()
