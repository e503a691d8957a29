"""`evilspectra spectrum` on the shapes of large models, side by side with AdapterSentry.

Measured are time with start-up and anonymous memory.

    python benchmarks/xray.py --models qwen3-8b llama-70b --sentry path/to/another/venv/bin/python

Adapters are random numbers in bfloat16, written to a temporary folder and deleted. Every round
starts each tool once, in turn, as a process of its own. AdapterSentry (pip install adaptersentry,
2.0) is run by the Python that --sentry names, and is left out without it; its values are compared
with ours: σ₁, stable rank and participation ratio of every module (it reports no others).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from shapes import LARGE, MODELS, PROJECTIONS, Shapes

SHAPES = MODELS | LARGE
_BLOCKS: dict[str, str] = {
    name: "self_attn" if name in PROJECTIONS[:4] else "mlp" for name in PROJECTIONS
}


def write_adapter(folder: Path, shapes: Shapes, seed: int = 0) -> int:
    """A LoRA adapter of these shapes with random bfloat16 factors; how many modules it has."""
    header: dict[str, Any] = {}
    at = 0
    for name, (d_in, d_out) in shapes.modules():
        block, projection = name.split(".")
        for factor, shape in (("A", [shapes.rank, d_in]), ("B", [d_out, shapes.rank])):
            size = 2 * math.prod(shape)
            header[
                f"base_model.model.model.layers.{block}.{_BLOCKS[projection]}.{projection}"
                f".lora_{factor}.weight"
            ] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(seed)
    pool = ((0.02 * generator.standard_normal(1 << 23)).astype("<f4").view("<u4") >> 16).astype(
        "<u2"
    )
    folder.mkdir(parents=True)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():  # each from another place of the pool
            count = math.prod(entry["shape"])
            start = int(generator.integers(0, len(pool) - count))
            file.write(pool[start : start + count].tobytes())
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": shapes.rank,
                "lora_alpha": 2 * shapes.rank,
                "base_model_name_or_path": None,
            }
        )
    )
    return len(header) // 2


def run(command: list[str], out: Path) -> tuple[float, int]:
    """Seconds and the largest anonymous memory of a process that writes to `out`.

    The memory, in bytes, is polled every 20 ms.
    """
    began, peak = time.perf_counter(), 0
    with out.open("wb") as file:
        process = subprocess.Popen(command, stdout=file)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return time.perf_counter() - began, peak


def anonymous(pid: int) -> int:
    """RssAnon of a process in bytes; 0 where it cannot be read (any more)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def compared(ours: Path, theirs: Path) -> dict[str, float]:
    """Largest relative difference of each value that both tell, over modules that both have."""
    ours_by_module = {}
    for module in json.loads(ours.read_text())[0]["modules"]:
        values = np.array(module["singular_values"])
        ours_by_module[tuple(module["module"].split(".")[i] for i in (2, 4))] = (
            values[0],
            module["stable_rank"],
            float(np.square(np.square(values).sum()) / np.square(np.square(values)).sum()),
            len(values),
        )
    worst = {"σ₁": 0.0, "stable rank": 0.0, "participation ratio": 0.0, "modules": 0.0}
    for module in json.loads(theirs.read_text())["modules"]:
        sigma, rank, participation, r = ours_by_module[(str(module["layer"]), module["module"])]
        features = module["features"]
        ratios = (
            math.exp(features["log_sigma1"]) / sigma,
            features["srank_r"] * r / rank,
            features["pr_r"] * r / participation,
        )
        for name, ratio in zip(worst, ratios, strict=False):
            worst[name] = max(worst[name], abs(ratio - 1))
        worst["modules"] += 1
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=list(SHAPES), default=["qwen3-8b", "llama-70b"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentry", metavar="PYTHON", help="a Python that has adaptersentry")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "adapter")
            modules = write_adapter(folder, SHAPES[model])
            ours, theirs = Path(temporary, "ours.json"), Path(temporary, "theirs.json")
            commands = {
                "evilspectra": (
                    [
                        sys.executable,
                        "-c",
                        "from evilspectra.cli.main import main; main()",
                        "spectrum",
                        str(folder),
                        "--json",
                    ],
                    ours,
                )
            }
            if options.sentry:
                commands["AdapterSentry"] = (
                    [
                        options.sentry,
                        "-m",
                        "adaptersentry",
                        "scan",
                        str(folder / "adapter_model.safetensors"),
                        "--format",
                        "full-json",
                    ],
                    theirs,
                )
            measured: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
            for _ in range(options.rounds):
                for name, (command, out) in commands.items():
                    measured[name].append(run(command, out))
            row: dict[str, Any] = {
                "model": model,
                "modules": modules,
                "rank": SHAPES[model].rank,
                "bytes": (folder / "adapter_model.safetensors").stat().st_size,
            }
            for name, runs in measured.items():
                row[name] = {
                    "seconds": statistics.median(seconds for seconds, _ in runs),
                    "anonymous_bytes": max(peak for _, peak in runs),
                }
            if options.sentry:
                row["compared"] = compared(ours, theirs)
            rows.append(row)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, median of "
        f"{options.rounds}; start-up included\n"
    )
    print(
        "| shapes | modules | file | tool | seconds | ratio | anonymous memory |\n"
        "|---|---|---|---|---|---|---|"
    )
    for row in rows:
        for name in ("evilspectra", "AdapterSentry"):
            if name in row:
                result = row[name]
                print(
                    f"| {row['model']}, r {row['rank']} | {row['modules']} | "
                    f"{row['bytes'] / 1e9:.2f} GB | {name} | {result['seconds']:.2f} | "
                    f"{result['seconds'] / row['evilspectra']['seconds']:.1f} | "
                    f"{result['anonymous_bytes'] / 2**20:.0f} MiB |"
                )
        if "compared" in row:
            print(
                f"\nlargest relative difference on {row['compared'].pop('modules'):.0f} modules: "
                + ", ".join(f"{name} {value:.0e}" for name, value in row["compared"].items())
                + "\n"
            )
    if not options.sentry:
        print("\nAdapterSentry left out: name a Python that has it with --sentry")


if __name__ == "__main__":
    main()
