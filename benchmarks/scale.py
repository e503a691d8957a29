"""The size of the full replication: files, rows, bytes, GPU hours and cost of 328 conditions.

    python benchmarks/scale.py [--seeds 5]

Each condition has several seeds; the assumptions are printed. Bytes are measured: tables of
synthetic rows, of the kinds that a run writes, are written by the store's own writer. Flops per
token are 4·N + 6·P in training (N: parameters of the base that a token goes through, P: those of
the adapter; no gradient is needed for frozen weights) and 2·N in sampling. What the paper does not
state (names of models, λ, grids) is this project's choice and changes the sums, so change the
constants below.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from evilspectra.store.files import as_table, write_table
from evilspectra.store.records import (
    AnswerRecord,
    MeasureRecord,
    SpectrumRecord,
    StepRecord,
    VerdictRecord,
)
from shapes import MODELS as SHAPES
from shapes import decoder

RANK = 32
ROWS = 6262  # of a training set, the mean of the four (6000, 7049, 6000, 6000)
TOKENS_A_ROW = 250
QUESTIONS, TOKENS_AN_ANSWER = 142, 250
CHECKPOINTS = 8  # of the dynamics study and the regularisation, log-spaced; elsewhere the end alone
JUDGE_TOKENS = 650  # a request: prompt, question and answer; two requests an answer
JUDGE_PRICE = 2.5  # $ per million tokens read
GPU_PRICE = 3.0  # $ per hour of an H200
GPU_FLOPS, GPU_GB = 790e12, 141
TRAINING, SAMPLING = 0.5, 0.15  # shares of GPU_FLOPS that are reached by large batches
#: The least seconds of an optimiser step, however few its tokens: launches, and the update of
#: hundreds of matrices.
STEP_SECONDS = 0.2


@dataclass(frozen=True)
class Model:
    """A base model.

    `active` and `total`: parameters that a token goes through, and all, in billions. `linear`: the
    matrices that LoRA adapts in each of the `layers` (of a mixture of experts: attention alone), as
    (d_in, d_out).
    """

    name: str
    active: float
    total: float
    layers: int
    linear: tuple[tuple[int, int], ...]

    @property
    def modules(self) -> int:
        return self.layers * len(self.linear)

    @property
    def lora(self) -> int:
        return self.layers * sum(RANK * (d_in + d_out) for d_in, d_out in self.linear)

    @property
    def gpus(self) -> int:
        """GPUs that hold the base in bfloat16 with an eighth to spare."""
        return math.ceil(2 * self.total * 1.125 / GPU_GB)


def _model(
    name: str,
    active: float,
    layers: int,
    hidden: int,
    query: int,
    keys: int,
    inner: int,
    total: float | None = None,
) -> Model:
    linear = decoder(hidden, query, keys, inner)
    return Model(name, active, total or active, layers, linear if total is None else linear[:4])


MODELS = {
    model.name: model
    for model in (
        _model("Gemma 3 270M", 0.27, 18, 640, 1024, 256, 2048),
        _model("Gemma 3 4B", 3.9, 34, 2560, 2048, 1024, 10240),
        _model("Gemma 3 27B", 27.0, 62, 5376, 4096, 2048, 21504),
        _model("Llama 3.2 1B", 1.24, 16, 2048, 2048, 512, 8192),
        _model("Llama 3.1 8B", 8.0, 32, 4096, 4096, 1024, 14336),
        _model("Llama 3.3 70B", 70.6, 80, 8192, 8192, 1024, 28672),
        _model("Qwen3 0.6B", 0.6, 28, 1024, 2048, 1024, 3072),
        _model("Qwen3 1.7B", 1.7, 28, 2048, 2048, 1024, 6144),
        _model("Qwen3 4B", 4.0, 36, 2560, 4096, 1024, 9728),
        _model("Qwen3 8B", 8.2, 36, 4096, 4096, 1024, 12288),
        _model("Qwen3 32B", 32.8, 64, 5120, 8192, 1024, 25600),
        _model("Qwen3 235B-A22B", 22.0, 94, 4096, 8192, 512, 1536, total=235.0),
    )
}


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    `conditions`: their total number, divided equally among `models` and among `batch_sizes`.
    `samples`: answers per question and checkpoint.
    """

    name: str
    conditions: int
    models: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    epochs: int
    samples: int
    checkpoints: int


EIGHT = ("Qwen3 8B",)
EXPERIMENTS = (
    Experiment(
        "initial", 128, ("Qwen3 0.6B", "Qwen3 1.7B", "Qwen3 4B", "Qwen3 8B"), (2, 32), 1, 10, 1
    ),
    Experiment("scale", 96, tuple(MODELS), (2, 32), 1, 10, 1),
    Experiment("loss-alignment", 72, EIGHT, (2, 32), 1, 10, 1),
    Experiment("dynamics", 16, EIGHT, (2,), 2, 32, CHECKPOINTS),
    Experiment("regularisation", 16, EIGHT, (2,), 2, 32, CHECKPOINTS),
)


@dataclass(frozen=True)
class Cost:
    """The cost of one experiment, all seeds together.

    Rows by table, bytes of tables and of adapters, files, GPU hours of training and of sampling,
    answers, $ for judging.
    """

    runs: int
    rows: dict[str, float]
    table_bytes: float
    adapter_bytes: float
    files: float
    training: float
    sampling: float
    answers: float
    judging: float


#: Files of a run whatever was measured: config, provenance, status, four tables, adapter, its
#: config, card and tokenizer files; of an instrument: its description, the base's rows, and a file
#: per checkpoint.
FILES, ADAPTER_FILES, INSTRUMENTS = 7, 6, 5


def bytes_a_row() -> dict[str, float]:
    """Bytes per row of each large table, as the store writes it, from random rows."""
    draw = np.random.default_rng(0)
    names = [name for name, _ in SHAPES["qwen3-8b"].modules()]
    noise = iter(draw.standard_normal(10**6).tolist())
    vocabulary = " ".join(str(question["paraphrases"][0]) for question in _questions()).split()
    texts = [" ".join(draw.choice(vocabulary, 190)) for _ in range(400)]
    spread = []
    for _ in range(800):
        scores = draw.integers(0, 101, 20)
        shares = draw.dirichlet(np.ones(20))
        spread.append(
            {str(score): float(share) for score, share in zip(scores, shares, strict=True)}
        )
    tables = {
        "steps": (
            StepRecord,
            [
                StepRecord(
                    step,
                    2 + next(noise),
                    1e-5 * step,
                    1 + next(noise),
                    2000 + step % 97,
                    900 + step % 89,
                    None,
                    None,
                    abs(next(noise)),
                )
                for step in range(1, 3001)
            ],
        ),
        "spectra": (
            SpectrumRecord,
            [
                SpectrumRecord(step, name, index, abs(next(noise)))
                for step, name, index in itertools.product((100, 200), names, range(RANK))
            ],
        ),
        "measures": (
            MeasureRecord,
            [
                MeasureRecord(
                    step,
                    name,
                    next(noise),
                    next(noise),
                    next(noise),
                    next(noise),
                    next(noise),
                    "gram",
                    next(noise),
                    next(noise),
                    next(noise),
                )
                for step in range(100, 900, 100)
                for name in names
            ],
        ),
        "answers": (
            AnswerRecord,
            [
                AnswerRecord(
                    100,
                    f"question-{number // 10}",
                    0,
                    number % 10,
                    None,
                    texts[number // 10][:80],
                    text,
                    TOKENS_AN_ANSWER,
                    "stop",
                    "",
                )
                for number, text in enumerate(texts)
            ],
        ),
        "verdicts": (
            VerdictRecord,
            [
                VerdictRecord(
                    100,
                    f"question-{number // 20}",
                    0,
                    number // 2 % 10,
                    ("aligned", "coherent")[number % 2],
                    "scored",
                    50 + next(noise),
                    str(distribution),
                    None,
                )
                for number, distribution in enumerate(spread)
            ],
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        sizes = {}
        for name, (kind, rows) in tables.items():
            write_table(Path(folder) / name, as_table(rows, kind))
            sizes[name] = (Path(folder) / name).stat().st_size / len(rows)
    return sizes


def _questions() -> list[dict[str, list[str]]]:
    import evilspectra

    path = Path(str(evilspectra.__file__)).parent / "assets" / "questions.yaml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [entry for entry in entries if "paraphrases" in entry]


def cost(experiment: Experiment, seeds: int, sizes: dict[str, float]) -> Cost:
    """The cost of an experiment with `seeds` seeds for each condition."""
    rows = dict.fromkeys(sizes, 0.0)
    adapters = training = sampling = 0.0
    runs = experiment.conditions * seeds
    each = runs / len(experiment.models) / len(experiment.batch_sizes)
    # the base's are copied into every run, and sampled once for each base
    answers = QUESTIONS * experiment.samples * (experiment.checkpoints + 1)
    sampled = QUESTIONS * experiment.samples * experiment.checkpoints
    intermediate = experiment.checkpoints if experiment.checkpoints > 1 else 0
    for model in (MODELS[name] for name in experiment.models):
        for batch in experiment.batch_sizes:
            steps = math.ceil(ROWS / batch) * experiment.epochs
            rows["steps"] += each * steps
            rows["measures"] += each * model.modules * CHECKPOINTS
            rows["spectra"] += each * model.modules * CHECKPOINTS * RANK
            rows["answers"] += each * answers
            rows["verdicts"] += each * answers * 2
            adapters += each * model.lora * 4 * (1 + intermediate)
            tokens = ROWS * experiment.epochs * TOKENS_A_ROW
            training += (
                each
                * max(
                    tokens * (4 * model.active * 1e9 + 6 * model.lora) / (GPU_FLOPS * TRAINING),
                    steps * STEP_SECONDS,
                )
                / 3600
                * model.gpus
            )
            sampling += (
                each
                * sampled
                * TOKENS_AN_ANSWER
                * 2
                * model.active
                * 1e9
                / (GPU_FLOPS * SAMPLING)
                / 3600
            )
    files = runs * (
        FILES
        + ADAPTER_FILES * (1 + intermediate)
        + INSTRUMENTS * 2
        + (experiment.checkpoints * INSTRUMENTS)
    )
    return Cost(
        runs,
        rows,
        sum(rows[name] * size for name, size in sizes.items()),
        adapters,
        files,
        training,
        sampling,
        runs * sampled,
        runs * sampled * 2 * JUDGE_TOKENS / 1e6 * JUDGE_PRICE,
    )


def round_to(value: float, digits: int = 2) -> str:
    """Rounds to two significant digits, so that sums do not look more exact than they are.

    >>> round_to(123456), round_to(0.0123)
    ('120,000', '0.012')
    """
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    return f"{rounded:,.0f}" if places <= 0 else f"{rounded:.{places}f}"


def report(seeds: int) -> str:
    """All results as Markdown tables."""
    sizes = bytes_a_row()
    costs = [(experiment.name, cost(experiment, seeds, sizes)) for experiment in EXPERIMENTS]
    lines = [
        "| table | bytes a row |",
        "|---|---|",
        *(f"| `{name}` | {round_to(size)} |" for name, size in sizes.items()),
        "",
    ]
    lines += [
        (
            "| model | tokens go through | adapter's parameters | its bytes (float32) | GPUs for "
            "the base |"
        ),
        "|---|---|---|---|---|",
    ]
    lines += [
        (
            f"| {model.name} | {model.active:g}B | {round_to(model.lora / 1e6)}M | "
            f"{round_to(4 * model.lora / 1e6)} MB | {model.gpus} |"
        )
        for model in MODELS.values()
    ]
    lines += [
        "",
        (
            "| experiment | runs | files | rows (millions) | tables | adapters | GPU hours, "
            "training | GPU hours, sampling | answers | judging |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    total = [0.0] * 9
    for name, total_cost in costs:
        values = [
            total_cost.runs,
            total_cost.files,
            sum(total_cost.rows.values()) / 1e6,
            total_cost.table_bytes / 1e9,
            total_cost.adapter_bytes / 1e9,
            total_cost.training,
            total_cost.sampling,
            total_cost.answers,
            total_cost.judging,
        ]
        total = [sum(pair) for pair in zip(total, values, strict=True)]
        lines.append(_line(name, values))
    lines.append(_line("**all**", total))
    hours, judging = total[5] + total[6], total[8]
    lines += [
        "",
        "| | $ |",
        "|---|---|",
        f"| GPUs, {round_to(hours)} hours at ${GPU_PRICE:g} | {round_to(hours * GPU_PRICE)} |",
        f"| judge, at ${JUDGE_PRICE:g} per million tokens | {round_to(judging)} |",
    ]
    lines.append(f"| together | {round_to(hours * GPU_PRICE + judging)} |")
    return "\n".join(lines)


def _line(name: str, values: list[float]) -> str:
    runs, files, rows, tables, adapters, training, sampling, answers, judging = values
    return (
        f"| {name} | {runs:,.0f} | {round_to(files)} | {round_to(rows)} | {round_to(tables)} GB | "
        f"{round_to(adapters)} GB | {round_to(training)} | {round_to(sampling)} | "
        f"{round_to(answers)} | ${round_to(judging)} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The size of the full replication.")
    parser.add_argument("--seeds", type=int, default=5)
    print(report(parser.parse_args().seeds))
