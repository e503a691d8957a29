"""The evaluation stage: it loads every base once, and attaches its adapters one by one.

Existing results are not measured again. Before an adapter is measured, a check confirms that it
changes the logits. The base is measured once per content of base and instrument; its results are
kept in the user's cache and copied to step 0 of every target, so that a target's folder is
complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evilspectra.answers.questions import read_questions
from evilspectra.answers.sample import batches, prompts, record, sample, stop_tokens
from evilspectra.config.evaluation import Evaluation
from evilspectra.config.sections import ModelConfig
from evilspectra.data.mask import Row, prompt_tokens
from evilspectra.data.rows import Message
from evilspectra.errors import BadInput, EvilspectraError, Interrupted, RunFailed
from evilspectra.evaluation.remote import Remote
from evilspectra.model.adapter import detach, load_adapter
from evilspectra.model.base import CACHE_VARIABLE, Base, cache_folder
from evilspectra.model.device import (
    memory_advice,
    mixed_precision,
    pick_device,
    pick_dtype,
    set_up_process,
)
from evilspectra.model.load import context_length, load_base
from evilspectra.model.reuse import Loaded
from evilspectra.probes.harness import harness_version, run_tasks
from evilspectra.probes.likelihood import packed_attention_on, token_log_probs
from evilspectra.probes.probe import Probe, probes
from evilspectra.store.records import TaskRecord
from evilspectra.store.results import Instrument, Results
from evilspectra.targets.find import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Raised whenever the way that answers are sampled changes.
_SAMPLING = 1
#: An adapter that moves no logit by more than this share of their spread has changed nothing.
_UNCHANGED = 1e-6
_PROOF = [Message("user", "A friend asks me for advice. What matters most?")]


@dataclass
class Evaluated:
    """The outcome of an evaluation.

    `failed`: the targets that could not be measured, and why: an adapter that does not fit its base
    or leaves its logits unchanged, logits that are not finite, memory that ran out. `used`: folder
    of a target's results → table → the instrument that it was measured with.
    """

    failed: list[tuple[Target, EvilspectraError]]
    used: dict[Path, dict[str, Instrument]]


def evaluate(
    targets: Sequence[Target],
    settings: Evaluation,
    note: Callable[[str], object] = lambda text: None,
    loaded: Loaded | None = None,
) -> Evaluated:
    """Measures everything in `settings` that is missing on every target and on its base.

    `note` receives a line about each measurement. `loaded` keeps the base for use after this call.
    A target that fails does not stop the others, and its earlier results are kept.

    Raises:
        BadInput: items or a base that cannot be read.
    """
    set_up_process(settings.threads)
    over_http = settings.answers is not None and settings.answers.endpoint is not None
    here = settings.model_copy(update={"answers": None}) if over_http else settings
    outcome = Evaluated([], {})
    loaded = loaded or Loaded()
    groups: dict[tuple[Base, ModelConfig], list[Target]] = {}
    for target in targets:
        groups.setdefault((target.base, target.model), []).append(target)
    for (base, model), group in groups.items():
        local = _Stage(base, model, here, note, loaded)
        stages: list[_Stage | Remote] = [local] if local.instruments else []
        stages += [Remote(base, settings, note)] if over_http else []
        instruments = {
            table: instrument for stage in stages for table, instrument in stage.instruments.items()
        }
        for target in group:
            try:
                with memory_advice(
                    "lower answers.batch_size, set model.dtype: bfloat16, or take a smaller base"
                ):
                    for stage in stages:
                        stage.measure(target)
            except Interrupted:
                raise
            except EvilspectraError as error:
                outcome.failed.append((target, error))
            outcome.used[target.results.folder] = dict(instruments)
    return outcome


class _Stage:
    """One base, loaded when it is first needed, and the instruments that are read on it."""

    def __init__(
        self,
        base: Base,
        model: ModelConfig,
        settings: Evaluation,
        note: Callable[[str], object],
        loaded: Loaded,
    ) -> None:
        self.base = base
        self.model_settings = model
        self.settings = settings
        self.note = note
        self.loaded = loaded
        self.cache = Results(cache_folder() / "measured" / base.sha256[:20], CACHE_VARIABLE)
        device = pick_device(model)
        conditions = {
            "dtype": str(pick_dtype(model, device)).removeprefix("torch."),
            "device": device.type,
            "enable_thinking": settings.enable_thinking,
        }
        self.probes = probes(settings, conditions)
        self.questions = read_questions(settings.answers.questions) if settings.answers else None
        self.answers: Instrument | None = None
        if settings.answers and self.questions:
            facts = {
                "version": _SAMPLING,
                "sha256": self.questions.asked_sha256,
                **settings.answers.model_dump(exclude={"questions", "checkpoints"}),
                **conditions,
            }
            self.answers = Instrument("answers", settings.answers.questions, facts)
        self.tasks: Instrument | None = None
        if settings.harness:
            facts = {
                "lm_eval": harness_version(),
                **settings.harness.model_dump(mode="json", exclude={"batch_size"}),
                **conditions,
            }
            self.tasks = Instrument("tasks", ", ".join(settings.harness.tasks), facts)

    @property
    def instruments(self) -> dict[str, Instrument]:
        """Table → the instrument that it is measured with."""
        instruments = [*(probe.instrument for probe in self.probes), self.answers, self.tasks]
        return {instrument.table: instrument for instrument in instruments if instrument}

    # --- the missing measurements -----------------------------------------------------------------

    def measure(self, target: Target) -> None:
        """Measures everything that is missing of a target, the base first."""
        missing = [
            (instrument, step)
            for instrument, step in self._wanted(target)
            if not target.results.has(instrument, step)
        ]
        if not missing:
            self.note(f"{target.label}  measured before")
            return
        for instrument in [instrument for instrument, step in missing if step == 0]:
            if not self.cache.has(instrument, 0):
                self._read(self.model, self.cache, instrument, 0, f"base {self.base.public_name}")
            target.results.copy(self.cache, instrument, 0)
        for step in sorted({step for _, step in missing if step}):
            self._on_adapter(target, step, [instrument for instrument, at in missing if at == step])

    def _wanted(self, target: Target) -> list[tuple[Instrument, int]]:
        """Instrument and step of every measurement that the settings name for a target."""
        ends, every = sorted({0, target.last}), [0, *target.adapters]
        wanted: list[tuple[Instrument, int]] = []
        for probe in self.probes:
            at_checkpoints = self.settings.checkpoints and probe.instrument.table == "probe"
            wanted += [(probe.instrument, step) for step in (every if at_checkpoints else ends)]
        if self.answers and self.settings.answers:
            steps = every if self.settings.answers.checkpoints else ends
            wanted += [(self.answers, step) for step in steps]
        return wanted + [(self.tasks, step) for step in ends if self.tasks]

    def _on_adapter(self, target: Target, step: int, instruments: Sequence[Instrument]) -> None:
        before = self._proof_logits
        try:
            adapted = load_adapter(self.model, target.adapters[step])
        except EvilspectraError:
            self._forget()
            raise
        try:
            self._check_changed(before, self._logits(adapted), target.adapters[step])
            label = f"{target.label}  step {step}"
            for instrument in instruments:
                self._read(adapted, target.results, instrument, step, label)
        finally:
            detach(adapted)
            if not torch.equal(before, self._logits(self.model)):  # the adapter changed the base
                self._forget()

    # --- reading ----------------------------------------------------------------------------------

    def _read(
        self,
        model: Any,
        results: Results,
        instrument: Instrument,
        step: int,
        label: str,
    ) -> None:
        began = time.monotonic()
        if instrument.table not in ("answers", "tasks"):
            (probe,) = [probe for probe in self.probes if probe.instrument == instrument]
            with packed_attention_on(self.model) as packed:
                scores = token_log_probs(model, self._rows(probe), packed=packed)
            results.write(instrument, step, probe.records(step, scores))
            done = f"{len(scores)} texts"
        elif instrument.table == "tasks":
            done = self._run_tasks(model, results, instrument, step)
        else:
            done = self._sample(model, results, instrument, step, label)
        self.note(f"{label}  {instrument.table}: {done}, {time.monotonic() - began:.0f} s")

    def _sample(
        self,
        model: Any,
        results: Results,
        instrument: Instrument,
        step: int,
        label: str,
    ) -> str:
        """Samples answers, batch by batch; batches that exist already are kept."""
        settings, questions = self.settings.answers, self.questions
        if not settings or not questions:
            raise ValueError("the settings name no answers")
        context, thinking = context_length(self.model), self.settings.enable_thinking
        planned = prompts(questions.questions, settings.samples, self.tokenizer, context, thinking)
        stops = stop_tokens(self.model, self.tokenizer, thinking)
        parts = batches(planned, settings.batch_size)
        for number, part in enumerate(parts):
            if results.has_part(instrument, step, number):
                continue
            began = time.monotonic()
            samples = sample(model, part, settings, stops, context)
            rows = [
                record(prompt, sampled, self.tokenizer, step)
                for prompt, sampled in zip(part, samples, strict=True)
            ]
            results.write_part(instrument, step, number, rows)
            if len(parts) > 1:
                count = min((number + 1) * settings.batch_size, len(planned))
                tokens = sum(len(sampled.tokens) for sampled in samples)
                self.note(
                    f"{label}  answers: {count} of {len(planned)}, "
                    f"{tokens / (time.monotonic() - began):.0f} tokens/s"
                )
        results.join(instrument, step, len(parts))
        return f"{len(planned)} answers"

    def _run_tasks(
        self,
        model: Any,
        results: Results,
        instrument: Instrument,
        step: int,
    ) -> str:
        if not self.settings.harness:
            raise ValueError("the settings name no tasks")
        options = self.settings.harness.model_dump()
        folder = options.pop("include_path")
        scores = run_tasks(
            model,
            self.tokenizer,
            list(options.pop("tasks")),
            include_path=Path(folder) if folder else None,
            **options,
        )
        results.write(instrument, step, [TaskRecord(step, **asdict(score)) for score in scores])
        return ", ".join(f"{score.task} {score.metric} {score.value:.3f}" for score in scores)

    def _rows(self, probe: Probe) -> list[Row]:
        return probe.rows(self.tokenizer, context_length(self.model), self.settings.enable_thinking)

    # --- the base ---------------------------------------------------------------------------------

    @cached_property
    def _pair(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return self.loaded.get(self.base, self.model_settings, load_base)

    def _forget(self) -> None:
        """Drops a base that an adapter has changed."""
        self.__dict__.pop("_pair")
        self.loaded.drop()

    @property
    def model(self) -> PreTrainedModel:
        return self._pair[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._pair[1]

    @cached_property
    def _proof_logits(self) -> Tensor:
        return self._logits(self.model)

    @torch.no_grad()
    def _logits(self, model: Any) -> Tensor:
        """Logits after a fixed question, on the host."""
        tokens = torch.tensor(
            [prompt_tokens(_PROOF, self.tokenizer, self.settings.enable_thinking)],
            device=self.model.device,
        )
        with mixed_precision(self.model):
            return model(input_ids=tokens, logits_to_keep=1, use_cache=False).logits.cpu().double()

    def _check_changed(self, before: Tensor, after: Tensor, folder: Path) -> None:
        if not bool(after.isfinite().all()):
            raise RunFailed(
                f"with the adapter in {folder} the model's logits are not finite: use model.dtype "
                "float32, or an adapter that was trained with a lower learning rate"
            )
        if not bool((after - before).abs().max() > _UNCHANGED * before.std()):
            raise BadInput(
                f"the adapter in {folder} does not change the logits of {self.base.public_name}: "
                "it is empty (B = 0), or made for another base; name another adapter"
            )
