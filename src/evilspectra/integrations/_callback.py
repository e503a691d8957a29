"""The base of the two callbacks: first place in the list, the records, and the trainer's log.

A trainer passes a log to its reporters (TensorBoard, W&B, …) before it passes it to the user's
callbacks. The callbacks' metrics must be in the log by then, so they move to the front of the list
when training begins. A callback does not receive that list, but it is called by the list's owner,
which is on the call stack. `attach` does the same by way of the trainer.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import SaveStrategy

from evilspectra.errors import BadInput, EvilspectraError, RunFailed
from evilspectra.integrations._description import described
from evilspectra.integrations._factors import learning_rates
from evilspectra.integrations._recording import Recording
from evilspectra.spectra.pairs import LoraPair

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)


class Recorded(TrainerCallback):
    """A callback that comes first, adds metrics to the trainer's log and records the training."""

    def __init__(self, adapter: str | None, record: bool) -> None:
        self.adapter: str | None = adapter
        self.record: bool = record
        self.pairs: list[LoraPair] = []
        self._recording: Recording | None = None
        self._metrics: dict[str, float] = {}
        self._began = 0.0

    def attach(self, trainer: Trainer) -> Self:
        """Puts the callback first in a trainer's list; a second call changes nothing."""
        put_first(trainer.callback_handler, self)
        return self

    def _begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        settings: Mapping[str, BaseModel],
        training: Mapping[str, Any],
    ) -> None:
        """Begins a training, once the pairs have been selected and nothing was refused.

        `settings`: the callback's, by the name of the config's section; `training`: the arguments
        that `on_train_begin` got from the trainer, the model and the optimizer among them.
        """
        self._metrics = {}
        self._recording = None
        handler = _handler(self)
        if handler is not None:
            put_first(handler, self)
        else:
            logger.warning(
                "%s could not reach the trainer's list of callbacks, so its metrics may not "
                "reach report_to: call .attach(trainer)",
                type(self).__name__,
            )
        if self.record and state.is_world_process_zero:
            self._recording = Recording.of(Path(str(args.output_dir)), state)
            model, optimizer = training["model"], training["optimizer"]
            loader = training.get("train_dataloader")
            facts = described(args, state, model, optimizer, loader, self.pairs, self.adapter)
            sections = {name: section.model_dump(mode="json") for name, section in settings.items()}
            self._recording.describe({**facts, **sections}, model, self)

    @contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        """Ends the training when a factor is no longer finite, and records why."""
        try:
            yield
        except BadInput as error:
            failed = RunFailed(f"step {step}: {error}")
            if self._recording:
                self._recording.fail(failed)
            raise failed from None
        except EvilspectraError as error:
            if self._recording:
                self._recording.fail(error)
            raise

    # --- events -----------------------------------------------------------------------------------

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._began = time.perf_counter()

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._recording:  # the schedule has not moved on yet
            self._recording.note(
                state.global_step + 1,
                lr=next(iter(learning_rates(kwargs["optimizer"], self.pairs)), 0.0),
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._recording:
            self._recording.note(state.global_step, seconds=time.perf_counter() - self._began)
            every = state.save_steps if args.save_strategy == SaveStrategy.STEPS else 0
            last = state.global_step >= state.max_steps
            if every > 0 and (last or state.global_step % every == 0):
                self._recording.flush(state.global_step)  # before the trainer saves

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Writes the waiting rows."""
        if self._recording and not self._recording.closed and state.global_step:
            self._recording.flush(state.global_step)

    def on_epoch_end(self, *event: Any, **kwargs: Any) -> None:
        Recorded.on_save(self, *event, **kwargs)

    on_evaluate = on_epoch_end

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._recording:
            self._recording.finish(self)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # an evaluation's, or the summary of a training
            return
        if self._recording:
            self._recording.logged(state.global_step, logs["loss"], logs.get("grad_norm"))
        metrics, self._metrics = self._metrics, {}
        logs.update(metrics)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(metrics)


def put_first(handler: CallbackHandler, callback: TrainerCallback) -> None:
    """Moves a callback to the front of a trainer's list, which is replaced by a new one.

    A loop over the old list is not disturbed.
    """
    handler.callbacks = [callback, *(other for other in handler.callbacks if other is not callback)]


def _handler(callback: TrainerCallback) -> CallbackHandler | None:
    """The trainer's list of callbacks, if its call has led here."""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler) and any(
            other is callback for other in owner.callbacks
        ):
            return owner
        frame = frame.f_back
    return None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are defined."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
