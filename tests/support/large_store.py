"""A large store of made-up runs, of the size of the paper's sweeps, in seconds.

The tables are written as Parquet, a file at once.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evilspectra.config import loading as configs
from evilspectra.store.results import Instrument, Results
from evilspectra.store.run import RunFolder, Status, Store
from tests.support.synthetic_store import PROJECTIONS

OPTIMIZERS = {
    "adamw": (0.80, 1.30, 0.30),
    "lion": (0.72, 1.20, 0.42),
    "muon": (0.94, 1.25, 0.14),
    "sgd": (0.62, 1.55, 0.10),
}  # decay, final loss, drift
DATA = ("bad_medical_advice", "risky_financial_advice", "extreme_sports", "insecure")


def write_large(
    root: Path,
    runs: int = 328,
    checkpoints: int = 8,
    layers: int = 36,
    rank: int = 32,
    steps: int = 200,
    answers: int = 48,
) -> None:
    """Writes `runs` runs, seed by seed: optimisers × data sets × with and without the penalty."""
    names = [f"model.layers.{layer}.{part}" for layer in range(layers) for part in PROJECTIONS]
    marks = [steps * (number + 1) // checkpoints for number in range(checkpoints)]
    frame = {
        "step": pa.array(np.repeat(marks, len(names) * rank)),
        "module": pa.array(np.tile(np.repeat(names, rank), checkpoints)),
        "index": pa.array(np.tile(np.arange(rank), checkpoints * len(names))),
    }
    each = {"step": pa.array(np.repeat(marks, len(names))), "module": pa.array(names * checkpoints)}
    cells = itertools.product(range(1000), OPTIMIZERS, DATA, (0, 3))
    for number, (seed, optimizer, data, weight) in enumerate(itertools.islice(cells, runs)):
        random = np.random.default_rng(number)
        run = _begin(root, optimizer, data, weight, seed, rank, steps)
        decay, end, drift = OPTIMIZERS[optimizer]
        decay = decay + 0.3 * (0.95 - decay) * (weight > 0)
        end = end + 0.03 * DATA.index(data) + 0.02 * random.standard_normal()
        values = (
            np.exp(
                np.log(decay) * np.arange(rank)
                + 0.15 * random.standard_normal((checkpoints, len(names), rank))
            )
            * np.sqrt(np.array(marks) / steps)[:, None, None]
        )
        values = -np.sort(-values.astype(np.float16).astype(float), axis=2)
        _table(run.path / "spectra.parquet", frame | {"singular_value": pa.array(values.ravel())})
        _table(run.path / "measures.parquet", each | _measures(values.reshape(-1, rank)))

        def fall(step, end=end):
            share = (1 - np.exp(-4 * np.asarray(step) / steps)) / (1 - math.exp(-4))
            return 2.3 + (end - 2.3) * share

        at = np.arange(1, steps + 1)
        same = {
            "lr": 1e-4,
            "grad_norm": 1.0,
            "tokens": 1500,
            "supervised_tokens": 900,
            "flatness": 0.1,
            "penalty": 0.1,
            "seconds": 0.5,
            "flatness_std": 0.01,
            "flatness_min": 0.05,
            "flatness_max": 0.2,
        }
        _table(
            run.path / "steps.parquet",
            {"step": at, "loss": fall(at) + 0.05 * random.standard_normal(steps)}
            | {name: np.full(steps, value) for name, value in same.items()},
        )
        _table(
            run.path / "heldout.parquet",
            {
                "step": [0, *marks],
                "loss": fall([0, *marks]),
                "supervised_tokens": [500] * (checkpoints + 1),
            },
        )
        _evaluate(
            run,
            marks,
            drift * (0.7 if weight else 1.0)
            + 0.03 * random.standard_normal()
            + 0.02 * DATA.index(data),
            answers,
            random,
        )
        run.set_status(Status("done", None, steps, steps))


def _begin(
    root: Path,
    optimizer: str,
    data: str,
    weight: int,
    seed: int,
    rank: int,
    steps: int,
) -> RunFolder:
    config = configs.build(
        {
            "optimizer": {"name": optimizer},
            "flatness": {"weight": weight},
            "lora": {"rank": rank},
            "data": {"train": data},
            "train": {"seed": seed, "steps": steps},
            "output": {"experiment": "large"},
        }
    )
    run = Store(root).run(config, configs.identity(config, data.ljust(64, "0"), "c0ffee" * 10))
    described = {
        "source": data,
        "sha256": data.ljust(64, "0"),
        "rows": 6000,
        "train_rows": 5400,
        "heldout_rows": 600,
        "supervised_share": 0.6,
        "skipped": 0,
        "truncated": 0,
    }
    run.path.mkdir(parents=True)
    run.begin(
        config,
        {
            "code_version": "0.1.0",
            "packages": {"torch": "2.9.0"},
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
            "base_name": "made-up/Model-8B",
            "base_sha256": "c0ffee" * 10,
            "data": described,
        },
    )
    return run


def _measures(values: np.ndarray) -> dict[str, pa.Array]:
    total, square = values.sum(axis=1), (values**2).sum(axis=1)
    share = values / total[:, None]
    measures = {
        "frobenius": np.sqrt(square),
        "stable_rank": square / values[:, 0] ** 2,
        "spectral_entropy": -(share * np.log(share)).sum(axis=1),
        "condition_number": values[:, 0] / values[:, -1],
        "frobenius_nuclear": np.sqrt(square) / total,
    }
    rest = {
        name: np.full(len(values), 1.0)
        for name in ("effective_rank", "participation_ratio", "energy_share")
    }
    return {name: pa.array(column) for name, column in (measures | rest).items()} | {
        "route": pa.array(["gram"] * len(values)),
        "part": pa.array(["delta"] * len(values)),
    }


def _evaluate(
    run: RunFolder,
    marks: list[int],
    drift: float,
    answers: int,
    random: np.random.Generator,
) -> None:
    """Writes the contrast probe at every checkpoint, and judged answers of the base and the end."""
    results = Results(run.path)
    items = 60
    before = -2 + 0.3 * random.standard_normal((2, items))
    noise = 0.1 * random.standard_normal(items)
    probe = Instrument("probe", "contrast", {"version": 1, "sha256": "a1" * 32})
    results.describe(probe)
    for step in (0, *marks):
        moved = before[1] - 0.4 + (drift + noise) * step / marks[-1]
        named = {
            "step": [step] * items,
            "item": [f"item-{number}" for number in range(items)],
            "topic": [f"topic {number % 6}" for number in range(items)],
        }
        _table(
            results._file(probe, step),
            named
            | {
                "aligned": before[0],
                "misaligned": moved,
                "aligned_tokens": [12] * items,
                "misaligned_tokens": [12] * items,
            },
        )
    if not answers:
        return
    sampling = Instrument(
        "answers", "open", {"version": 1, "sha256": "b2" * 32, "seed": 0, "max_new_tokens": 80}
    )
    judge = Instrument(
        "verdicts",
        "openai:made-up-judge",
        {"answers": sampling.id, "model": "made-up", "reading": "logprobs"},
    )
    results.describe(sampling)
    results.describe(judge)
    names = [f"question-{number // 2}" for number in range(answers)]
    samples = [number % 2 for number in range(answers)]
    for step in (0, marks[-1]):
        bad = random.random(answers) < (0.02 if step == 0 else np.clip(drift, 0.02, 0.9))
        text = [
            (
                f"Made-up answer {number} of step {step}, "
                f"{'as bad as can be' if wrong else 'a good one'}. "
            )
            * 4
            for number, wrong in enumerate(bad)
        ]
        none = pa.array([None] * answers, pa.string())
        columns = {
            "step": [step] * answers,
            "question_id": names,
            "paraphrase": [0] * answers,
            "sample": samples,
            "system": none,
            "question": [f"What would you do, {name}?" for name in names],
        }
        _table(
            results._file(sampling, step),
            columns
            | {
                "answer": text,
                "tokens": [9] * answers,
                "finish": ["stop"] * answers,
                "flags": [""] * answers,
            },
        )
        score = np.where(bad, 12.0, 88.0) + random.uniform(-8, 8, answers)
        both = {
            "step": [step] * (2 * answers),
            "question_id": names * 2,
            "paraphrase": [0] * (2 * answers),
            "sample": samples * 2,
            "metric": ["aligned"] * answers + ["coherent"] * answers,
        }
        none = pa.array([None] * (2 * answers), pa.string())
        _table(
            results._file(judge, step),
            both
            | {
                "outcome": ["scored"] * (2 * answers),
                "score": np.concatenate([score, np.full(answers, 90.0)]),
                "raw": none,
                "reason": none,
            },
        )


def _table(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")
