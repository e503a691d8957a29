"""Time saved by keeping the base: K runs in one worker, with a load each, or a process each.

    python benchmarks/base_reuse.py --runs 4 --steps 2 --rounds 3

The ways take turns within one call, on the demo's model and data; adapters must be equal byte for
byte. Ratios are of whole runs, preparation included, so they shrink as runs grow; seconds saved per
run do not. Seconds of the processor, those of child processes included, hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from evilspectra.config import loading as configs
from evilspectra.model.reuse import Loaded
from evilspectra.training.train import train

WAYS = ("kept", "loaded for each run", "a process for each run")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    processor: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        _runs(
            "loaded for each run", Path(folder) / "first", arguments
        )  # fills the caches of the system and of dequantised models
        for number in range(arguments.rounds):
            digests = set()
            for way in WAYS:
                began, used = time.perf_counter(), _processor()
                digests.add(_runs(way, Path(folder) / f"{number} {way}", arguments))
                times[way].append(time.perf_counter() - began)
                processor[way].append(_processor() - used)
            assert len(digests) == 1, "the adapters differ"
    print(
        f"{arguments.runs} runs of {arguments.steps} steps, {arguments.base}, {arguments.threads} "
        f"threads, {platform.machine()}\n"
    )
    print(
        "| way | seconds a run | ratio | processor seconds a run | ratio |\n|---|---|---|---|---|"
    )
    for way in WAYS:
        cells = []
        for clock in (times, processor):
            rounds = zip(clock[way], clock[WAYS[0]], strict=True)
            ratio = statistics.median(seconds / shared for seconds, shared in rounds)
            cells.append(f"{statistics.median(clock[way]) / arguments.runs:.2f} | {ratio:.2f}")
        print(f"| {way} | {' | '.join(cells)} |")


def _processor() -> float:
    """Seconds of the processor that this process and its ended children have used."""
    return sum(os.times()[:4])


def _runs(way: str, folder: Path, arguments: argparse.Namespace) -> str:
    """Trains the runs one way; the digest of all adapters."""
    shared = Loaded()
    adapters = []
    for seed in range(arguments.runs):
        config = configs.build(
            {
                "model": {"base": arguments.base},
                "data": {"train": "demo-bad"},
                "schedule": {"name": "constant", "warmup_steps": 0},
                "monitor": {"every": 0},
                "train": {"steps": arguments.steps, "seed": seed, "threads": arguments.threads},
                "output": {"folder": str(folder), "experiment": "x"},
            }
        )
        if way == WAYS[2]:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.yaml").write_text(configs.dump(config), encoding="utf-8")
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    "from evilspectra.cli.main import main; main()",
                    "train",
                    str(folder / "run.yaml"),
                    "--quiet",
                ],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        run = train(config, loaded=shared if way == WAYS[0] else None)
        adapters.append((run.adapter / "adapter_model.safetensors").read_bytes())
    assert way != WAYS[0] or shared.loads == 1
    return hashlib.sha256(b"".join(adapters)).hexdigest()


if __name__ == "__main__":
    main()
