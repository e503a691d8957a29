"""The flatness penalty's value and gradient, and what watching and flattening cost in training.

    python benchmarks/flatness.py

Compared with the paper's recipe as published: float32, one matrix at a time, autograd through chol and svdvals, one backward
pass for the mean over modules. Both add to the `.grad` of the same parameters. The shapes are those of SmolLM2-135M at rank 16
(210 modules: the demo) and of layers of Qwen3-8B at rank 32. The last line sets the cost against the demo's training step.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable

import torch
from spectrum import SHAPES as QWEN
from spectrum import clock_of, factors

from evilspectra.monitor import observe
from evilspectra.spectrum.flatness import add_flatness_gradient
from evilspectra.spectrum.pairs import LoraPair
from evilspectra.spectrum.paper import JITTER, SKIP

#: SmolLM2-135M: hidden 576, 9 heads and 3 key-value heads of 64, MLP 1536; (d_in, d_out).
SMOL = {"q_proj": (576, 576), "k_proj": (576, 192), "v_proj": (576, 192), "o_proj": (576, 576), "gate_proj": (576, 1536), "up_proj": (576, 1536), "down_proj": (1536, 576)}

#: Seconds of the demo's training step on two cores, and steps between observations.
STEP, EVERY = 2.4, 10


def by_paper(pairs: list[LoraPair]) -> None:
    total = torch.zeros(())
    for pair in pairs:
        if float(pair.B.detach().norm()) < SKIP:
            continue
        gram = pair.B.mT @ pair.B
        root, failed = torch.linalg.cholesky_ex(gram + JITTER * torch.eye(len(gram)))
        if int(failed):
            root = torch.linalg.cholesky(gram + 10 * JITTER * torch.eye(len(gram)))
        sigma = torch.linalg.svdvals(root.mT @ pair.A)
        total = total + sigma.square().sum().sqrt() / sigma.sum() - len(sigma) ** -0.5
    (total / len(pairs)).backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", type=float, default=8.0, help="of B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4, help="layers of Qwen3-8B")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = clock_of(options.threads)
    generator = torch.Generator().manual_seed(0)
    print(f"κ(B) = {options.condition:g}; {platform.machine()}, {options.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    print("| model | modules | way | ms | ratio, round by round | median | largest difference of gradients |\n|---|---|---|---|---|---|---|")
    watched = flattened = 0.0
    for name, shapes, layers, rank in (("SmolLM2-135M", SMOL, 30, 16), ("Qwen3-8B", QWEN, options.layers, 32)):
        pairs = [factors(f"{layer}.{leaf}", rank, *shape, options.condition, generator) for layer in range(layers) for leaf, shape in shapes.items()]
        ways: dict[str, Callable[[], object]] = {
            "the paper's recipe": lambda pairs=pairs: by_paper(pairs),
            "evilspectra": lambda pairs=pairs: add_flatness_gradient(pairs, 1.0),
            "evilspectra, products float32": lambda pairs=pairs: add_flatness_gradient(pairs, 1.0, products="float32"),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        gradients: dict[str, list[torch.Tensor]] = {}
        for number in range(options.rounds + 1):
            for way, call in ways.items():
                for pair in pairs:
                    pair.A.grad, pair.B.grad = torch.zeros_like(pair.A), torch.zeros_like(pair.B)
                began = clock()
                call()
                took = clock() - began
                if number:
                    times[way].append(1e3 * took)
                else:
                    gradients[way] = [factor.grad.clone() for pair in pairs for factor in (pair.A, pair.B) if factor.grad is not None]
        exact = gradients["evilspectra"]
        for way, found in times.items():
            ratios = [paper / took for paper, took in zip(times["the paper's recipe"], found, strict=True)]
            apart = max(float((a - b).norm() / b.norm()) for a, b in zip(gradients[way], exact, strict=True))
            print(f"| {name}, rank {rank} | {len(pairs)} | {way} | {statistics.median(found):.1f} | {', '.join(f'{ratio:.1f}' for ratio in ratios)} | {statistics.median(ratios):.1f} | {apart:.0e} |")
        if name.startswith("Smol"):
            flattened = statistics.median(times["evilspectra"]) / 1e3
            seen = []
            for step in range(options.rounds + 1):
                began = clock()
                observe(pairs, step)
                seen.append(clock() - began)
            watched = statistics.median(seen[1:])
    share = (flattened + watched / EVERY) / STEP
    print(f"\nSmolLM2-135M: the penalty takes {1e3 * flattened:.0f} ms a step, an observation {1e3 * watched:.0f} ms; together, observing every {EVERY} steps, {100 * share:.1f} % of a training step of {STEP} s")


if __name__ == "__main__":
    main()
