"""The training loop of a run: one optimiser step at a time, its records, its saved state.

A step is: data gradient over the step's rows, clipping, the flatness penalty's gradient in closed
form, the optimiser. The gradient is the mean over the step's supervised tokens, in however many
micro-batches it is computed.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from evilspectra.cards.record import write_description
from evilspectra.config.optimizers import Custom
from evilspectra.config.sections import Config
from evilspectra.data.batches import Batches, Dataset, checkpoint_steps, micro_batches
from evilspectra.data.mask import Row
from evilspectra.errors import BadInput, RunFailed
from evilspectra.model.adapter import adapter_state, restore_adapter, save_adapter
from evilspectra.model.device import mixed_precision
from evilspectra.model.packing import loss_sum, pack, separate_logits, supervised_logits
from evilspectra.optim.build import build_optimizer
from evilspectra.optim.own import relative_rates
from evilspectra.optim.schedule import lr_at
from evilspectra.spectra.grams import Grams, enqueue
from evilspectra.spectra.pairs import LoraPair, find_pairs, select
from evilspectra.spectra.penalty import Flatness
from evilspectra.store.files import write_atomically
from evilspectra.store.records import HeldoutRecord, MeasureRecord, SpectrumRecord, StepRecord
from evilspectra.store.run import RunFolder, Status
from evilspectra.training.flatness import penalise
from evilspectra.training.monitor import flatness_columns, observe
from evilspectra.training.own_optimizer import own_step, storable


@dataclass
class TrainingRun:
    """A run in progress, after `step` optimiser steps; records wait here until they are flushed."""

    config: Config
    run: RunFolder
    model: PeftModel
    tokenizer: Any
    data: Dataset
    batches: Batches
    step: int = 0
    stable_rank: float | None = None
    _steps: list[StepRecord] = field(default_factory=list)
    _heldout: list[HeldoutRecord] = field(default_factory=list)
    _spectra: list[SpectrumRecord] = field(default_factory=list)
    _measures: list[MeasureRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.train.seed)
        self.device: torch.device = self.model.device
        self.pairs: list[LoraPair] = find_pairs(self.model)
        self.flattened: list[LoraPair] = (
            select(self.pairs, self.config.flatness.modules) if self.config.flatness.weight else []
        )
        self.parameters: list[torch.nn.Parameter] = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]
        self.named: list[tuple[str, torch.nn.Parameter]] = [
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        ]
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.config.optimizer, self.named)
        self.ratios: list[float] = relative_rates(self.optimizer, self.config.optimizer)
        self.checkpoints: frozenset[int] = checkpoint_steps(
            self.config.train.checkpoints, self.batches.total_steps
        )

    def begin(self) -> None:
        """Drops earlier records and measures the held-out loss of the base."""
        self.run.truncate(-1)
        self._measure_heldout()

    # --- one step ---------------------------------------------------------------------------------

    def advance(self) -> StepRecord:
        """One optimiser step and its records.

        Raises:
            RunFailed: non-finite loss or gradient (before it reaches the adapter), or B still zero
                after two steps.
        """
        began = time.perf_counter()
        settings, flat = self.config.train, self.config.flatness
        grams = None
        if flat.weight and (flat.recipe, flat.coupling) == ("exact", "gradient"):
            grams = enqueue(self.flattened, flat.products == "float32")
        lr = self.config.optimizer.lr * lr_at(
            self.config.schedule, self.step, self.batches.total_steps
        )
        rows = [self.data.train[index] for index in self.batches.rows_of(self.step)]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        supervised = sum(int(row.supervised.sum()) for row in rows)
        loss = self._data_gradient(rows, supervised)
        norm = self._gradient_norm()
        self.step += 1
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise RunFailed(
                f"step {self.step}: loss {loss:g}, gradient norm {norm:g} are not finite; lower "
                f"optimizer.lr ({self.config.optimizer.lr:g}), or set train.clip_norm"
            )
        if settings.clip == "data":
            self._clip(norm)
        penalty = self._flatten(lr, grams) if flat.weight and flat.coupling == "gradient" else None
        if settings.clip == "total":
            self._clip(self._gradient_norm())
        for group, ratio in zip(self.optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = lr * ratio
        if isinstance(self.config.optimizer, Custom):
            own_step(self.config.optimizer, self.optimizer, self.named, self.step)
        else:
            self.optimizer.step()
        if flat.weight and flat.coupling == "decoupled":
            penalty = self._flatten(lr)
        record = StepRecord(
            self.step,
            loss,
            lr,
            norm,
            tokens=sum(len(row.tokens) for row in rows),
            supervised_tokens=supervised,
            seconds=time.perf_counter() - began,
            **flatness_columns(penalty),
        )
        self._steps.append(record)
        if self.step == min(2, self.batches.total_steps):
            self._check_moved()
        self._watch()
        return record

    def _data_gradient(self, rows: Sequence[Row], supervised: int) -> float:
        """Mean loss per supervised token of the step; micro-batches add up to its gradient."""
        total = torch.zeros((), dtype=torch.float64)
        for part in micro_batches(rows, self.config.train.accumulation):
            loss = self._loss_sum(part)
            (loss / supervised).backward()
            total = total + loss.detach().cpu().double()
        return float(total) / supervised

    def _loss_sum(self, rows: Sequence[Row]) -> Tensor:
        batch = pack(rows, self.device)
        with mixed_precision(self.model):
            logits = (
                supervised_logits(self.model, batch)
                if self.config.train.packed
                else separate_logits(self.model, batch)
            )
        return loss_sum(logits, batch.labels)

    def _gradient_norm(self) -> float:
        return float(torch.nn.utils.get_total_norm(self._gradients()))

    def _clip(self, norm: float) -> None:
        limit = self.config.train.clip_norm
        if limit is not None and norm > limit:
            torch._foreach_mul_(self._gradients(), limit / norm)

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _flatten(self, lr: float, grams: Grams | None = None) -> Flatness:
        try:
            flatness, _ = penalise(self.flattened, self.config.flatness, self.step - 1, lr, grams)
            return flatness
        except BadInput as error:
            raise RunFailed(f"step {self.step}: {error}") from None

    def _check_moved(self) -> None:
        if not any(bool(pair.B.detach().any()) for pair in self.pairs):
            raise RunFailed(
                f"after {self.step} steps no B has moved from zero: the adapter is frozen, the "
                "gradient is zero, optimizer.lr is too small for the number type, or the "
                "schedule's warm-up is as long as the run"
            )

    # --- records ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        every, last = self.config.monitor.every, self.batches.total_steps
        saved = self.step in self.checkpoints or self.step == last
        if saved or (every and self.step % every == 0):
            try:
                spectra, measures = observe(self.pairs, self.step)
            except BadInput as error:
                raise RunFailed(f"step {self.step}: {error}") from None
            self._spectra += spectra
            self._measures += measures
            defined = [row.stable_rank for row in measures if row.stable_rank is not None]
            self.stable_rank = float(np.mean(defined)) if defined else None
        if saved:
            self._measure_heldout()

    @torch.no_grad()
    def _measure_heldout(self) -> None:
        rows = self.data.heldout
        if not rows:
            return
        self.model.eval()
        size = max(1, self.config.train.batch_size // self.config.train.accumulation)
        parts = (rows[start : start + size] for start in range(0, len(rows), size))
        total = sum(float(self._loss_sum(part)) for part in parts)
        supervised = sum(int(row.supervised.sum()) for row in rows)
        self._heldout.append(HeldoutRecord(self.step, total / supervised, supervised))

    def flush(self) -> None:
        """Writes the waiting records as parts that end with the present step."""
        for table in ("steps", "heldout", "spectra", "measures"):
            waiting: list[Any] = getattr(self, f"_{table}")
            self.run.append(table, waiting, self.step)
            waiting.clear()

    # --- saving and resuming ----------------------------------------------------------------------

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Writes the adapter as it is now, with its card and its training record."""
        save_adapter(
            self.model, self.tokenizer, folder, lambda adapter: write_description(adapter, record)
        )

    def set_status(self, state: str, reason: str | None = None) -> None:
        """Writes the run's status: its state, the reason for it, and the step."""
        self.run.set_status(Status(state, reason, self.step, self.batches.total_steps))

    def save_state(self) -> None:
        """Flushes the records, then replaces the resume state, all that the next step needs."""
        if isinstance(self.config.optimizer, Custom):
            storable(self.config.optimizer, self.optimizer)
        self.flush()
        state = {
            "step": self.step,
            "stable_rank": self.stable_rank,
            "adapter": adapter_state(self.pairs),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        write_atomically(self.run.resume_file, lambda path: torch.save(state, path))
        self.set_status("running")

    def resume(self) -> bool:
        """Restores the resume state, if there is one, and drops records that are past it.

        Raises:
            BadInput: the file is damaged.
        """
        path = self.run.resume_file
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            restore_adapter(self.pairs, state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"]:
                torch.cuda.set_rng_state_all(state["cuda_rng"])
            self.step, self.stable_rank = state["step"], state["stable_rank"]
        except (
            OSError,
            EOFError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            pickle.UnpicklingError,
        ):
            raise BadInput(
                f"{path} is damaged or of another version: remove that file, and the run starts "
                "again from its first step"
            ) from None
        self.run.truncate(self.step)
        return True
