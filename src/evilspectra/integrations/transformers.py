"""Callbacks and optimisers for Hugging Face's `Trainer` and its subclasses (TRL's SFT, DPO, …).

    from evilspectra.integrations.transformers import SpectralFlatness
    trainer = SFTTrainer(..., callbacks=[SpectralFlatness(weight=0.3)])

The penalty's gradient is added when the trainer has accumulated, reduced over processes, unscaled
and clipped the data gradient, just before the optimizer's step, once per step. This package's
training does the same under `train.clip: data`, by the same function. Metrics appear in the
trainer's log, and so wherever `report_to` sends it; spectra, measures and steps are Parquet files
in `<output_dir>/evilspectra/`.
"""

from __future__ import annotations

import statistics
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from evilspectra.config.loading import build
from evilspectra.config.sections import FlatnessConfig, MonitorConfig
from evilspectra.errors import BadInput, listing
from evilspectra.integrations._callback import Recorded, mean
from evilspectra.integrations._factors import learning_rates, observed_pairs, trained_pairs
from evilspectra.integrations.optimizer import build_for, lora_optimizer
from evilspectra.spectra.grams import Grams, enqueue
from evilspectra.spectra.pairs import LoraPair, select
from evilspectra.spectra.penalty import Measure, Products, Recipe
from evilspectra.store.records import MeasureRecord
from evilspectra.training.flatness import penalise
from evilspectra.training.monitor import flatness_columns, observe

__all__ = ["SpectralFlatness", "SpectrumMonitor", "build_for", "lora_optimizer"]
_FLATNESS, _MONITOR = FlatnessConfig(), MonitorConfig()
#: Measures in the monitor's log, as means over modules (condition number: median).
_LOGGED = (
    "stable_rank",
    "spectral_entropy",
    "condition_number",
    "frobenius_nuclear",
    "frobenius",
    "effective_rank",
    "participation_ratio",
    "energy_share",
)


class SpectralFlatness(Recorded):
    """The flatness penalty in a Hugging Face trainer: `callbacks=[SpectralFlatness(weight=0.3)]`.

    It flattens scale·B·A, also where an adapter's change to the model is more than that (DoRA,
    PiSSA and similar).

    Args:
        weight: λ ≥ 0; at 0 flatness is logged and nothing is changed.
        soft_start, measure, recipe, products, coupling, warmup_steps, modules: fields of the
            config's section `flatness`, with its defaults and bounds. Warm-up counts the trainer's
            steps, so it continues after a resume.
        adapter: PEFT's name of the adapter; by default the active one.
        record: keep records in `<output_dir>/evilspectra/`.

    Raises:
        BadInput: a value out of bounds, here; and when training begins, before its first step: no
            LoRA on linear layers, several active adapters, a name in `modules` without a match,
            factors that are sharded, offloaded, quantised, frozen or unknown to the optimizer, an
            engine that steps by itself (DeepSpeed, FSDP, Megatron-LM, layer-wise optimizers),
            several learning rates under `coupling="decoupled"`.
        RunFailed: during training, a factor is no longer finite.

    Source: Evil Spectra (arXiv 2606.31591), spectral regularisation; docs/penalty.md.

    >>> SpectralFlatness(weight=0.3).settings.soft_start
    0.01
    """

    def __init__(
        self,
        weight: float,
        *,
        soft_start: float = _FLATNESS.soft_start,
        measure: Measure = _FLATNESS.measure,
        recipe: Recipe = _FLATNESS.recipe,
        products: Products = _FLATNESS.products,
        coupling: str = _FLATNESS.coupling,
        warmup_steps: int = _FLATNESS.warmup_steps,
        modules: str | tuple[str, ...] | list[str] = "all",
        adapter: str | None = None,
        record: bool = True,
    ) -> None:
        super().__init__(adapter, record)
        fields = {
            "weight": weight,
            "soft_start": soft_start,
            "measure": measure,
            "recipe": recipe,
            "products": products,
            "coupling": coupling,
            "warmup_steps": warmup_steps,
            "modules": modules,
        }
        self.settings: FlatnessConfig = build({"flatness": fields}, type(self).__name__).flatness
        self._grams: Grams | None = None
        self._scale = 1.0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        who = type(self).__name__
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        pairs = trained_pairs(model, optimizer, self.adapter, who)
        self.pairs: list[LoraPair] = select(pairs, self.settings.modules)
        decoupled = self.settings.coupling == "decoupled"
        if decoupled and len(rates := learning_rates(optimizer, self.pairs)) > 1:
            raise BadInput(
                f"{who}: the factors have {len(rates)} learning rates "
                f"({listing(f'{rate:g}' for rate in rates)}), and the decoupled penalty needs one: "
                "give all factors the same, or set coupling='gradient'"
            )
        self._begin(args, state, {"flatness": self.settings}, kwargs)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Starts the small products early: on CUDA they are ready before the backward pass ends."""
        super().on_step_begin(args, state, control, **kwargs)
        if (self.settings.recipe, self.settings.coupling) == ("exact", "gradient"):
            self._grams = enqueue(self.pairs, self.settings.products == "float32")

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Adds the penalty's gradient to the data gradient.

        A gradient that is not finite stays so, and a loss scaler has already decided by then
        whether it skips the step.
        """
        if self.settings.coupling == "decoupled":
            self._scale = _loss_scale(kwargs["optimizer"])
            return
        grams, self._grams = self._grams, None
        self._flatten(state, 0.0, grams)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        super().on_optimizer_step(args, state, control, **kwargs)
        optimizer = kwargs["optimizer"]
        # the scale falls when, and only when, the step is skipped
        if self.settings.coupling != "decoupled" or _loss_scale(optimizer) < self._scale:
            return
        self._flatten(state, learning_rates(optimizer, self.pairs)[0])

    def _flatten(self, state: TrainerState, lr: float, grams: Grams | None = None) -> None:
        """The penalty's part in a step, in the trainer's log and in the records."""
        with self._failing(state.global_step + 1):
            flatness, weight = penalise(self.pairs, self.settings, state.global_step, lr, grams)
        self._metrics = {
            "flatness/mean": flatness.value,
            "flatness/std": flatness.std,
            "flatness/min": flatness.smallest,
            "flatness/max": flatness.largest,
            "flatness/penalty": flatness.penalty,
            "flatness/weight": weight,
        }
        if self._recording:
            self._recording.note(state.global_step + 1, **flatness_columns(flatness))


class SpectrumMonitor(Recorded):
    """Singular values of every adapted matrix during training, as a trainer's callback.

    For example `callbacks=[SpectrumMonitor(every=10)]`.

    The means over modules appear in the next log, the whole spectra as Parquet in
    `<output_dir>/evilspectra/`. They are those of scale·B·A; the records say "BA only" where an
    adapter changes the model by more (DoRA, PiSSA and similar).

    Args:
        every: steps between measurements, besides those at every save and at the end; 0: only
            these.
        adapter: PEFT's name of the adapter; by default the active one.
        record: keep records in `<output_dir>/evilspectra/`.

    Raises:
        BadInput: `every` out of bounds; when training begins, as `SpectralFlatness`, except for
            frozen factors.
        RunFailed: during training, a factor is no longer finite.

    Source: Evil Spectra (arXiv 2606.31591), its spectral measures; docs/measures.md.

    >>> SpectrumMonitor(every=10).settings.every
    10
    """

    def __init__(
        self, every: int = _MONITOR.every, *, adapter: str | None = None, record: bool = True
    ) -> None:
        super().__init__(adapter, record)
        config = build({"monitor": {"every": every}}, type(self).__name__)
        self.settings: MonitorConfig = config.monitor
        self._last = -1

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        self._last = -1
        who = type(self).__name__
        self.pairs: list[LoraPair] = observed_pairs(model, optimizer, self.adapter, who)
        self._begin(args, state, {"monitor": self.settings}, kwargs)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        step, every = state.global_step, self.settings.every
        if (every and step % every == 0) or step >= state.max_steps:
            self._measure(state)
        super().on_step_end(args, state, control, **kwargs)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._measure(state)
        super().on_save(args, state, control, **kwargs)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if not args.load_best_model_at_end:  # the factors are then no longer those of the last step
            self._measure(state)
        super().on_train_end(args, state, control, **kwargs)

    def _measure(self, state: TrainerState) -> None:
        if self._last == state.global_step or not state.global_step:
            return
        if not state.is_world_process_zero:
            return
        with self._failing(state.global_step):
            spectra, measures = observe(self.pairs, state.global_step)
        self._last = state.global_step
        means = {f"spectrum/{name}": _over_modules(measures, name) for name in _LOGGED}
        self._metrics = {name: value for name, value in means.items() if value is not None}
        if self._recording:
            self._recording.measured(state.global_step, spectra, measures)


def _loss_scale(optimizer: Any) -> float:
    """The loss scale of float16 training; 1 without.

    accelerate's own `step_was_skipped` misses steps that a fused optimizer skips.
    """
    scaler = getattr(optimizer, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def _over_modules(measures: list[MeasureRecord], name: str) -> float | None:
    """A measure's mean over modules (condition number: median); None if all are undefined."""
    values = [value for row in measures if (value := getattr(row, name)) is not None]
    if not values:
        return None
    return statistics.median(values) if name == "condition_number" else mean(values)
