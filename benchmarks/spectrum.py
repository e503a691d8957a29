"""Singular values of every LoRA update of Qwen3-8B (36 layers × 7 projections), three ways.

    python benchmarks/spectrum.py            # small dense SVDs only
    python benchmarks/spectrum.py --full     # one of 4096 × 4096 as well (minutes)

- evilspectra: `singular_values`, float64 Grams, batched eigenproblems.
- the paper's recipe: float32, one matrix at a time, chol(BᵀB + 1e-8·I), svdvals(Lᵀ·A).
- dense: svdvals(B·A) in float64, measured on k_proj (1024 × 4096) and carried over to the other
  shapes by m·n² (m ≥ n).

Errors are relative to QR of both factors in float64, over singular values of at least 1e-7 of the
largest. No model is loaded: the factors are random with the shapes of the model, A as PEFT draws
it, B graded to the condition number asked for.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.values import by_qr, singular_values
from shapes import MODELS

SHAPES = MODELS["qwen3-8b"]
COUNTED = 1e-7


def factors(
    name: str,
    rank: int,
    d_in: int,
    d_out: int,
    condition: float,
    generator: torch.Generator,
    device: str = "cpu",
) -> LoraPair:
    """float32 factors: A uniform in ±1/√d_in, B with log-spaced column sizes and ‖B‖ near 1."""
    A = (2 * torch.rand(rank, d_in, generator=generator) - 1) / d_in**0.5
    B = (
        torch.randn(d_out, rank, generator=generator)
        / d_out**0.5
        * torch.logspace(0, -torch.tensor(condition).log10().item(), rank)
    )
    return LoraPair(name, torch.nn.Parameter(A.to(device)), torch.nn.Parameter(B.to(device)), 1.0)


def by_paper(pair: LoraPair) -> Tensor:
    """The recipe in float32, ten times the jitter until the factorisation succeeds."""
    with torch.no_grad():
        gram = pair.B.mT @ pair.B
        jitter = 1e-8
        while True:
            root, failed = torch.linalg.cholesky_ex(
                gram + jitter * torch.eye(len(gram), device=gram.device)
            )
            if not int(failed):
                return torch.linalg.svdvals(root.mT @ pair.A)
            jitter *= 10


def clock_of(threads: int, device: str) -> Callable[[], float]:
    """The clock to measure by.

    With one thread it is the processor time of this process, which other processes disturb less;
    with more, the time of day; on CUDA, the time when all work enqueued is done.
    """
    if device == "cpu":
        return time.process_time if threads == 1 else time.perf_counter

    def when_done() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return when_done


def seconds(call: Callable[[], object], rounds: int, clock: Callable[[], float]) -> float:
    """Median seconds of `rounds` calls after one that is not counted."""
    call()
    durations = []
    for _ in range(rounds):
        began = clock()
        call()
        durations.append(clock() - began)
    return statistics.median(durations)


def worst(values: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest relative error of a value of at least `COUNTED` of its matrix's largest."""
    return max(
        float(((a.cpu().double() - b.cpu()).abs() / b.cpu())[b.cpu() >= COUNTED * b[0].cpu()].max())
        for a, b in zip(values, wanted, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=SHAPES.rank)
    parser.add_argument("--layers", type=int, default=SHAPES.layers)
    parser.add_argument("--condition", type=float, default=100.0, help="of B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--full", action="store_true", help="measure a dense SVD of 4096 × 4096 as well"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = clock_of(options.threads, options.device)
    generator = torch.Generator().manual_seed(0)
    pairs = [
        factors(name, options.rank, *shape, options.condition, generator, options.device)
        for name, shape in SHAPES.modules(options.layers)
    ]

    ours = seconds(lambda: singular_values(pairs), options.rounds, clock)
    paper = seconds(lambda: [by_paper(pair) for pair in pairs], options.rounds, clock)
    sample = ["k_proj", "q_proj"] if options.full else ["k_proj"]
    dense: dict[str, float] = {}
    for name in sample:
        pair = next(pair for pair in pairs if pair.name.endswith(name))
        product = (pair.B.double() @ pair.A.double()).detach()
        began = clock()
        torch.linalg.svdvals(product)
        dense[name] = clock() - began
    cost = {
        pair.name.partition(".")[2]: max(pair.shape[1:]) * min(pair.shape[1:]) ** 2
        for pair in pairs[:7]
    }
    rate = min(dense[name] / cost[name] for name in sample)
    dense_seconds = options.layers * rate * sum(cost.values())

    few = pairs[:14]
    wanted = [by_qr(pair) for pair in few]
    errors = (
        worst([spectrum.values for spectrum in singular_values(few)], wanted),
        worst([by_paper(pair) for pair in few], wanted),
    )
    print(
        f"{len(pairs)} pairs of Qwen3-8B's shapes, rank {options.rank}, κ(B) = "
        f"{options.condition:g}; {options.device}, {platform.machine()}, {options.threads} "
        f"threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| way | seconds | ratio | worst relative error |\n|---|---|---|---|")
    print(f"| evilspectra | {ours:.3f} | 1 | {errors[0]:.0e} |")
    print(f"| the paper's recipe | {paper:.3f} | {paper / ours:.1f} | {errors[1]:.0e} |")
    print(
        f"| dense, from {', '.join(f'{name} {took:.1f} s' for name, took in dense.items())} | "
        f"{dense_seconds:.0f} | {dense_seconds / ours:.0f} | |"
    )


if __name__ == "__main__":
    main()
