"""The records of another trainer's run, in its output folder, as tables like a run directory's.

There is one recording per trainer, shared by its callbacks, and only in the main process. Rows wait
in memory and are written as parts that end where the trainer saves, so that tables and checkpoint
always end at the same step; on resume, rows past the checkpoint are dropped. The rows of a part
stay in memory until the next step begins, because the trainer logs the loss of a step after the
step has ended: the part is then written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

import evilspectra
from evilspectra.errors import EvilspectraError
from evilspectra.store.records import MeasureRecord, SpectrumRecord, StepRecord
from evilspectra.store.run import RunFolder, Status
from evilspectra.store.software import software

#: Steps after which waiting rows are written even if the trainer does not save.
MOST_WAITING = 500
#: The recordings under way in this process, by folder.
_OPEN: dict[Path, Recording] = {}


class Recording:
    """The tables of one unfinished run."""

    def __init__(self, run: RunFolder, state: Any) -> None:
        self.run, self.state = run, state
        self._facts: dict[str, Any] = {}
        self._steps: dict[int, dict[str, Any]] = {}
        self._spectra: list[SpectrumRecord] = []
        self._measures: list[MeasureRecord] = []
        self._written = False
        self._users: set[int] = set()
        self._lock = ExitStack()

    @classmethod
    def of(cls, output: Path, state: Any) -> Recording:
        """The recording of the training with this `TrainerState`, in the trainer's output folder.

        The first caller begins it, or continues it after a resume.

        Raises:
            BadInput: another process is writing there, or the folder cannot be written.
        """
        run = RunFolder.of_trainer(output)
        recording = _OPEN.get(run.path)
        if recording is not None and recording.state is state:
            return recording
        if recording is not None:
            recording._lock.close()  # of a training in this process that ended in an error
        recording = cls(run, state)
        recording._lock.enter_context(run.locked())
        run.truncate(state.global_step or -1)
        _OPEN[run.path] = recording
        return recording

    @property
    def closed(self) -> bool:
        return _OPEN.get(self.run.path) is not self

    def describe(self, facts: Mapping[str, Any], model: nn.Module, user: object) -> None:
        """Writes facts about the run, together with those that other users have added.

        `user` has to call `finish`.
        """
        self._users.add(id(user))
        self._facts |= facts
        self.run.describe(self._facts, trainer_provenance(self._facts, model))
        self._status("running")

    # --- rows -------------------------------------------------------------------------------------

    def note(self, step: int, **fields: Any) -> None:
        """Adds fields to the step's record; the first of a new step drops the written rows."""
        if step not in self._steps:
            if len(self._steps) >= MOST_WAITING and not self._written:
                self.flush(step - 1)
            if self._written:
                self._steps.clear()
                self._spectra.clear()
                self._measures.clear()
                self._written = False
        self._steps.setdefault(step, {}).update(fields)

    def logged(self, step: int, loss: Any, grad_norm: Any) -> None:
        """Adds the trainer's log of a step."""
        if step in self._steps:
            self._steps[step] |= {"loss": _number(loss), "grad_norm": _number(grad_norm)}
            if self._written:
                self.flush(step)

    def measured(
        self, step: int, spectra: list[SpectrumRecord], measures: list[MeasureRecord]
    ) -> None:
        """Adds a step's spectra and measures."""
        self._spectra += spectra
        self._measures += measures
        if self._written:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Writes the waiting rows as parts that end with `step`."""
        ended = {number: fields for number, fields in self._steps.items() if "seconds" in fields}
        self.run.append("steps", [_step(number, fields) for number, fields in ended.items()], step)
        self.run.append("spectra", self._spectra, step)
        self.run.append("measures", self._measures, step)
        self._written = True
        self._status("running")

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, user: object) -> None:
        """Merges the parts and releases the folder, once all users have called this."""
        self._users.discard(id(user))
        if not self._users and not self.closed:
            self.flush(self.state.global_step)
            self.run.merge()
            self._close("done")

    def fail(self, error: EvilspectraError) -> None:
        """Records why training ends here."""
        if not self.closed:
            self.flush(self.state.global_step)
            self._close("failed", str(error))

    def _close(self, state: str, reason: str | None = None) -> None:
        self._status(state, reason)
        del _OPEN[self.run.path]
        self._lock.close()

    def _status(self, state: str, reason: str | None = None) -> None:
        self.run.set_status(Status(state, reason, self.state.global_step, self.state.max_steps))


def trainer_provenance(facts: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The record of a run's origins, with the keys of this package's; unknown values are null."""
    weight = next(model.parameters())
    return {
        "code_version": evilspectra.__version__,
        **software(trainers=True),
        "device": str(weight.device),
        "dtype": str(weight.dtype),
        "threads": torch.get_num_threads(),
        "base_name": facts.get("model", {}).get("base"),
        "base_sha256": None,
        "data": facts.get("data"),
    }


def _step(number: int, fields: Mapping[str, Any]) -> StepRecord:
    unknown: dict[str, Any] = {
        "loss": None,
        "grad_norm": None,
        "tokens": None,
        "supervised_tokens": None,
        "flatness": None,
        "penalty": None,
    }
    return StepRecord(**(unknown | {"step": number} | dict(fields)))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
