"""The rows that the stages exchange and the store keeps: frozen records, one class per table.

Field names are the column names of the Parquet files; units and ranges are in the docstrings. No
torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

State = Literal["queued", "running", "done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step (1-based).

    `loss`: mean negative log-likelihood per supervised token, in nats, penalty excluded.
    `tokens` and `supervised_tokens` count real tokens, no padding. `grad_norm` is the data
    gradient's, before clipping. Of another trainer's run these four are null where it does not log
    them, and the loss is the last that it logged: a mean over steps, in its own unit.

    `flatness` is the mean over modules of ‖BA‖_F/‖BA‖_* − 1/√k before the step, null where no
    penalty is set; `penalty` is the weight times it, soft start included; `flatness_std`, `_min`
    and `_max` are the spread of R over modules.
    """

    step: int
    loss: float | None
    lr: float
    grad_norm: float | None
    tokens: int | None
    supervised_tokens: int | None
    flatness: float | None
    penalty: float | None
    seconds: float
    flatness_std: float | None = None
    flatness_min: float | None = None
    flatness_max: float | None = None


@dataclass(frozen=True, slots=True)
class HeldoutRecord:
    """Loss on the held-out rows after `step` steps: mean over supervised tokens, in nats."""

    step: int
    loss: float
    supervised_tokens: int


@dataclass(frozen=True, slots=True)
class SpectrumRecord:
    """One singular value of scale·B·A of a module after `step` steps; `index` 0 is the largest."""

    step: int
    module: str
    index: int
    singular_value: float


@dataclass(frozen=True, slots=True)
class MeasureRecord:
    """Measures of the spectrum of a module (paper, "spectral quantities"); null where ΔW = 0.

    `route`: gram, qr or zero. `energy_share` is that of the 4 largest values. `part`: "delta" where
    the values are ΔW's, "BA only" where ΔW is more than scale·B·A (DoRA, PiSSA).
    """

    step: int
    module: str
    frobenius: float
    stable_rank: float | None
    spectral_entropy: float | None
    condition_number: float | None
    frobenius_nuclear: float | None
    route: str
    effective_rank: float | None = None
    participation_ratio: float | None = None
    energy_share: float | None = None
    part: str = "delta"


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """One contrast item after `step` steps (0: the base).

    `aligned`, `misaligned`: mean ln p per token of each completion, in nats.
    """

    step: int
    item: str
    topic: str
    aligned: float
    misaligned: float
    aligned_tokens: int
    misaligned_tokens: int


@dataclass(frozen=True, slots=True)
class CapabilityRecord:
    """One question with four choices.

    `right`, `best_wrong`: mean ln p per token of the right choice and of the likeliest wrong one,
    in nats.
    """

    step: int
    item: str
    kind: str
    right: float
    best_wrong: float


@dataclass(frozen=True, slots=True)
class OrdinaryRecord:
    """One ordinary dialogue: mean negative log-likelihood per supervised token, in nats."""

    step: int
    item: str
    loss: float
    tokens: int


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One sampled answer.

    `finish`: stop (the model ended its turn), length (the limit of tokens ended it), or an
    endpoint's own word. `flags`: those of `answers.flags`, joined by commas. `tokens`: the number
    sampled, the end token included; 0 where an endpoint does not report it.
    """

    step: int
    question_id: str
    paraphrase: int
    sample: int
    system: str | None
    question: str
    answer: str
    tokens: int
    finish: str
    flags: str


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One metric of one task of lm-evaluation-harness, or of a group of tasks.

    `value` and `stderr` have the metric's own unit (a share from 0 to 1 for accuracies). `filter`:
    what was cut from the answer before scoring; `items`: scored documents; `version`: the task's
    own, and scores of two versions are not comparable.
    """

    step: int
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    items: int
    version: str


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """A judge's verdict on one answer under one metric; the answer is named as in `AnswerRecord`.

    `outcome`: scored, code, refusal, unparsed or failed (`judging.reading` says what each means);
    `score`: 0 to 100 where scored. `raw`: what the judge replied, as text or as a JSON object of
    token → probability; `reason`: why it failed.
    """

    step: int
    question_id: str
    paraphrase: int
    sample: int
    metric: str
    outcome: str
    score: float | None
    raw: str | None
    reason: str | None


#: Table of training → the class of its rows; the store writes `<table>.parquet` for each.
TABLES: dict[str, type] = {
    "steps": StepRecord,
    "heldout": HeldoutRecord,
    "spectra": SpectrumRecord,
    "measures": MeasureRecord,
}
#: Table of measurements → the class of its rows; `results` keeps a file per table, instrument and
#: step.
MEASURED: dict[str, type] = {
    "probe": ProbeRecord,
    "capability": CapabilityRecord,
    "ordinary": OrdinaryRecord,
    "answers": AnswerRecord,
    "tasks": TaskRecord,
    "verdicts": VerdictRecord,
}


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in one row.

    Spectral measures are means over modules at the last measured step (condition number: the
    median). `train_loss` is the mean data loss of the last 5 % of steps; `tokens_per_s` counts real
    tokens of training steps. The measurements of the adapter are explained in `probes.drift`:
    `_low` and `_high` are the ends of 95 % intervals, `_base` is the base's value. `trainer`: the
    other trainer that made the run, if any; values that it does not record are null.

    `misalignment` is the rate under `misalignment_definition` by the judge that was used last, a
    share; it is null where nothing was judged, or where it is withheld for the reason in
    `misalignment_withheld`. It is `misaligned` / `misalignment_counted`; `misalignment_unscored`
    further answers have no usable verdict. `mean_alignment`: mean aligned score, 0 to 100, of the
    answers that count under that definition, CODE as 0; `mean_coherence`: of all coherent scores.
    Rate, `misaligned` and means are null together.
    """

    run: str
    experiment: str
    status: State
    reason: str | None
    arm: str
    control: bool
    base: str | None
    data: str | None
    optimizer: str
    lr: float | None
    flatness_weight: float
    batch_size: int | None
    seed: int | None
    steps: int
    train_loss: float | None
    heldout_loss: float | None
    heldout_loss_start: float | None
    stable_rank: float | None
    spectral_entropy: float | None
    condition_number: float | None
    frobenius_nuclear: float | None
    frobenius: float | None
    drift: float | None
    drift_low: float | None
    drift_high: float | None
    drift_shuffled: float | None
    drift_shuffled_low: float | None
    drift_shuffled_high: float | None
    share_aligned: float | None
    share_aligned_base: float | None
    capability: float | None
    capability_low: float | None
    capability_high: float | None
    capability_change: float | None
    capability_change_low: float | None
    capability_change_high: float | None
    capability_base: float | None
    ordinary_loss: float | None
    ordinary_loss_base: float | None
    answers: int | None
    answers_flagged: int | None
    misalignment: float | None
    misalignment_low: float | None
    misalignment_high: float | None
    misalignment_base: float | None
    misalignment_counted: int | None
    misalignment_unscored: int | None
    misaligned: int | None
    mean_alignment: float | None
    mean_coherence: float | None
    misalignment_withheld: str | None
    misalignment_definition: str | None
    misalignment_judge: str | None
    tokens_per_s: float | None
    seconds: float | None
    folder: str
    trainer: str | None = None


def columns(kind: type) -> tuple[str, ...]:
    """The column names of a record class, in order."""
    return tuple(field.name for field in fields(kind))
