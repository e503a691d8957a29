"""What the two callbacks share: standing first in the list, the records, and the trainer's log.

A trainer tells its reporters (TensorBoard, W&B, …) of a log before it tells the callbacks that a
user has given. What these add to it must be there first, so they move to the front of the list when
training begins. The list is not among what a callback is given; the call that reaches it comes from
the list's owner, and there it is found. `attach` does the same by way of the trainer.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn
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
    """A callback that stands first, adds metrics to the trainer's log and keeps records beside its
    output.
    """

    def __init__(self, adapter: str | None, record: bool) -> None:
        self.adapter, self.record = adapter, record
        self.pairs: list[LoraPair] = []
        self._recording: Recording | None = None
        self._metrics: dict[str, float] = {}
        self._began = 0.0

    def attach(self, trainer: Trainer) -> Self:
        """Puts the callback first in a trainer's list; a second time changes nothing."""
        put_first(trainer.callback_handler, self)
        return self

    def _begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        known: Mapping[str, Any],
        *,
        model: nn.Module,
        optimizer: Any,
        loader: Any,
    ) -> None:
        """What every training begins with, once the pairs are known; refusals have been made
        before.
        """
        self._metrics = {}
        self._recording = None
        handler = _handler(self)
        if handler is not None:
            put_first(handler, self)
        else:
            logger.warning(
                (
                    "%s could not reach the trainer's list of callbacks, so its metrics may not "
                    "reach report_to: call .attach(trainer)"
                ),
                type(self).__name__,
            )
        if self.record and state.is_world_process_zero:
            self._recording = Recording.of(Path(str(args.output_dir)), state)
            facts = described(args, state, model, optimizer, loader, self.pairs, self.adapter)
            self._recording.describe({**facts, **known}, model, self)

    @contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        """Turns a factor that is no longer finite into the end of training, and records it."""
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
            if every > 0 and (
                state.global_step % every == 0 or state.global_step >= state.max_steps
            ):
                self._recording.flush(state.global_step)  # before the trainer saves

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._flush(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._flush(state)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._flush(state)

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

    def _flush(self, state: TrainerState) -> None:
        if self._recording and not self._recording.closed and state.global_step:
            self._recording.flush(state.global_step)


def put_first(handler: CallbackHandler, callback: TrainerCallback) -> None:
    """Makes a callback the first of a trainer's list, where it stands once; who goes through the
    old list meanwhile is not disturbed.
    """
    handler.callbacks = [callback, *(other for other in handler.callbacks if other is not callback)]


def _handler(callback: TrainerCallback) -> CallbackHandler | None:
    """The trainer's list of callbacks, whose call has led here; None where something else has
    called.
    """
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
    """The mean of those that are defined."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
