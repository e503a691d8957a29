"""@@FIX The evaluation stage: every base is loaded once, its adapters come and go, and what is measured
already is left alone.

Before an adapter is measured it is shown to change the logits. What the base scores is measured
once per content of base and instrument, kept in the user's cache, and copied to step 0 of every
target, so that a target's folder is complete.
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
from evilspectra.model.base import CACHE_VARIABLE, Base, cache_folder
from evilspectra.model.device import (
    memory_advice,
    mixed_precision,
    pick_device,
    pick_dtype,
    set_up_process,
)
from evilspectra.model.load import context_length, detach, load_adapter, load_base
from evilspectra.model.reuse import Loaded
from evilspectra.probes.harness import harness_version, run_tasks
from evilspectra.probes.likelihood import packed_attention_on, token_log_probs
from evilspectra.probes.probe import Probe, probes
from evilspectra.store.records import TaskRecord
from evilspectra.store.results import Instrument, Results
from evilspectra.targets.find import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Raised whenever how answers are sampled changes.
_SAMPLING = 1
#: An adapter that moves no logit by more than this share of their spread has changed nothing.
_UNCHANGED = 1e-6
_PROOF = [Message("user", "A friend asks me for advice. What matters most?")]


@dataclass
class Evaluated:
    """What became of the targets.

    `failed`: those that could not be measured, and why: an adapter that does not fit its base or
    leaves its logits as they are, logits that are not finite, memory that ran out. `used`: folder
    of a target's results → table → what it was measured with.
    """

    failed: list[tuple[Target, EvilspectraError]]
    used: dict[Path, dict[str, Instrument]]


def evaluate(
    targets: Sequence[Target],
    settings: Evaluation,
    note: Callable[[str], object] = lambda text: None,
    loaded: Loaded | None = None,
) -> Evaluated:
    """@@FIX Measures what is missing of `settings` on every target and on its base; `note` is told, line
    by line, what was done.

    `loaded` keeps the base for what comes after this call. A target that fails does not stop the
    others, and what was measured before is kept.

    Raises:
        BadInput: items or a base that cannot be read.
    """
    set_up_process(settings.threads)
    over_http = settings.answers is not None and settings.answers.endpoint is not None
    here = settings.model_copy(update={"answers": None}) if over_http else settings
    done, kept = Evaluated([], {}), loaded or Loaded()
    groups: dict[tuple[Base, ModelConfig], list[Target]] = {}
    for target in targets:
        groups.setdefault((target.base, target.model), []).append(target)
    for (base, model), group in groups.items():
        stage = _Stage(base, model, here, note, kept)
        stages = [
            one
            for one in (
                stage if stage.instruments else None,
                Remote(base, settings, note) if over_http else None,
            )
            if one
        ]
        for target in group:
            try:
                with memory_advice(
                    "lower answers.batch_size, set model.dtype: bfloat16, or take a smaller base"
                ):
                    for one in stages:
                        one.measure(target)
            except Interrupted:
                raise
            except EvilspectraError as error:
                done.failed.append((target, error))
            done.used[target.results.folder] = {
                table: instrument for one in stages for table, instrument in one.instruments.items()
            }
    return done


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
        self.base, self.model_settings, self.settings, self.note, self.loaded = (
            base,
            model,
            settings,
            note,
            loaded,
        )
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
            sampling = settings.answers.model_dump(exclude={"questions", "checkpoints"})
            self.answers = Instrument(
                "answers",
                settings.answers.questions,
                {
                    "version": _SAMPLING,
                    "sha256": self.questions.asked_sha256,
                    **sampling,
                    **conditions,
                },
            )
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
        """Table → what it is measured with."""
        return {
            one.table: one
            for one in (*(probe.instrument for probe in self.probes), self.answers, self.tasks)
            if one
        }

    # --- what is to be done -----------------------------------------------------------------------

    def measure(self, target: Target) -> None:
        """Everything that is missing of a target, the base first."""
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
        """Instrument and step of all that settings ask for on a target."""
        ends, every = sorted({0, target.last}), [0, *target.adapters]
        wanted = [
            (probe.instrument, step)
            for probe in self.probes
            for step in (
                every if self.settings.checkpoints and probe.instrument.table == "probe" else ends
            )
        ]
        if self.answers and self.settings.answers:
            wanted += [
                (self.answers, step)
                for step in (every if self.settings.answers.checkpoints else ends)
            ]
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
            for instrument in instruments:
                self._read(
                    adapted, target.results, instrument, step, f"{target.label}  step {step}"
                )
        finally:
            detach(adapted)
            if not torch.equal(
                before, self._logits(self.model)
            ):  # an adapter that left something behind
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
        """Answers, batch by batch; batches that are there already are kept."""
        settings, questions = self.settings.answers, self.questions
        if not settings or not questions:
            raise ValueError("no answers were asked for")
        context, thinking = context_length(self.model), self.settings.enable_thinking
        planned = prompts(questions.questions, settings.samples, self.tokenizer, context, thinking)
        stops = stop_tokens(self.model, self.tokenizer, thinking)
        parts = batches(planned, settings.batch_size)
        for number, part in enumerate(parts):
            if results.has_part(instrument, step, number):
                continue
            began = time.monotonic()
            found = sample(model, part, settings, stops, context)
            results.write_part(
                instrument,
                step,
                number,
                [
                    record(prompt, one, self.tokenizer, step)
                    for prompt, one in zip(part, found, strict=True)
                ],
            )
            if len(parts) > 1:
                tokens = sum(len(one.tokens) for one in found)
                self.note(
                    f"{label}  answers: {min((number + 1) * settings.batch_size, len(planned))} "
                    f"of {len(planned)}, {tokens / (time.monotonic() - began):.0f} tokens/s"
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
            raise ValueError("no tasks were asked for")
        asked = self.settings.harness.model_dump()
        place = asked.pop("include_path")
        found = run_tasks(
            model,
            self.tokenizer,
            list(asked.pop("tasks")),
            include_path=Path(place) if place else None,
            **asked,
        )
        results.write(instrument, step, [TaskRecord(step, **asdict(one)) for one in found])
        return ", ".join(f"{one.task} {one.metric} {one.value:.3f}" for one in found)

    def _rows(self, probe: Probe) -> list[Row]:
        return probe.rows(self.tokenizer, context_length(self.model), self.settings.enable_thinking)

    # --- the base ---------------------------------------------------------------------------------

    @cached_property
    def _pair(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return self.loaded.get(self.base, self.model_settings, load_base)

    def _forget(self) -> None:
        """Lets a base go that an adapter has spoilt."""
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
