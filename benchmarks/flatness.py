"""The flatness penalty's value and gradient, beside autograd through the paper's recipe.

    python benchmarks/flatness.py [--threads 2] [--rounds 5] [--condition 8] [--device cuda]

The recipe as published: float32, one matrix at a time, autograd through chol and svdvals, one
backward pass for the mean over modules. Both add to the `.grad` of the same parameters. The shapes
are those of the LoRA factors of SmolLM2-135M at rank 16 (the demo), of Qwen3-0.6B at rank 32, and
of layers of Qwen3-8B at rank 32. What the penalty costs in training: `overhead.py`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable

import torch
from spectrum import clock_of, factors

from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.paper import JITTER, SKIP
from evilspectra.spectra.penalty import add_flatness_gradient
from shapes import MODELS


def by_paper(pairs: list[LoraPair]) -> None:
    total = torch.zeros((), device=pairs[0].A.device)
    for pair in pairs:
        if float(pair.B.detach().norm()) < SKIP:
            continue
        gram = pair.B.mT @ pair.B
        root, failed = torch.linalg.cholesky_ex(
            gram + JITTER * torch.eye(len(gram), device=gram.device)
        )
        if int(failed):
            root = torch.linalg.cholesky(
                gram + 10 * JITTER * torch.eye(len(gram), device=gram.device)
            )
        sigma = torch.linalg.svdvals(root.mT @ pair.A)
        total = total + sigma.square().sum().sqrt() / sigma.sum() - len(sigma) ** -0.5
    (total / len(pairs)).backward()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--condition", type=float, default=8.0, help="of B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=9, help="at most so many layers of Qwen3-8B")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = clock_of(options.threads, options.device)
    generator = torch.Generator().manual_seed(0)
    print(
        f"κ(B) = {options.condition:g}; {options.device}, {platform.machine()}, {options.threads} "
        f"threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n"
    )
    print(
        "| model | modules | way | ms | ratio, round by round | median | "
        "largest difference of gradients |\n"
        "|---|---|---|---|---|---|---|"
    )
    for label, shapes in MODELS.items():
        modules = shapes.modules(options.layers if label == "qwen3-8b" else None)
        pairs = [
            factors(name, shapes.rank, *shape, options.condition, generator, options.device)
            for name, shape in modules
        ]
        ways: dict[str, Callable[[], object]] = {
            "the paper's recipe": lambda pairs=pairs: by_paper(pairs),
            "evilspectra": lambda pairs=pairs: add_flatness_gradient(pairs, 1.0),
            "evilspectra, products: float64": lambda pairs=pairs: add_flatness_gradient(
                pairs, 1.0, products="float64"
            ),
        }
        grads = []  # there before, as after a backward pass
        for pair in pairs:
            pair.A.grad, pair.B.grad = torch.zeros_like(pair.A), torch.zeros_like(pair.B)
            grads += [pair.A.grad, pair.B.grad]
        times: dict[str, list[float]] = {way: [] for way in ways}
        gradients: dict[str, list[torch.Tensor]] = {}
        for number in range(options.rounds + 1):
            for way, call in ways.items():
                for grad in grads:
                    grad.zero_()
                began = clock()
                call()
                took = clock() - began
                if number:
                    times[way].append(1e3 * took)
                else:
                    gradients[way] = [grad.clone() for grad in grads]
        exact = gradients["evilspectra, products: float64"]
        for way, milliseconds in times.items():
            papers = times["the paper's recipe"]
            ratios = [paper / took for paper, took in zip(papers, milliseconds, strict=True)]
            apart = max(
                float((a - b).norm() / b.norm()) for a, b in zip(gradients[way], exact, strict=True)
            )
            print(
                f"| {label}, r = {shapes.rank} | {len(pairs)} | {way} | "
                f"{statistics.median(milliseconds):.1f} | "
                f"{', '.join(f'{ratio:.1f}' for ratio in ratios)} | "
                f"{statistics.median(ratios):.1f} | {apart:.0e} |"
            )


if __name__ == "__main__":
    main()
