"""What a callback learns of a run, as Parquet tables beside the trainer's output: those of the own
run directory, in the same form.

One recording per trainer and process, shared by its callbacks, and made on the main process only.
Rows wait in memory and are written as parts that end where the trainer saves, so that tables and
checkpoint always stand at the same step; on resume what is past the checkpoint is dropped. The rows
of a part stay at hand until the next step begins, for the trainer logs the loss of a step after the
step has ended: the part is then written again.
"""

from __future__ import annotations

import importlib.metadata
import platform
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

#: Steps after which waiting rows are written even though the trainer does not save.
MOST_WAITING = 500
#: Packages whose versions are recorded where they are installed.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
)
#: The recordings under way in this process, by folder.
_OPEN: dict[Path, Recording] = {}


class Recording:
    """The tables of one run under way."""

    def __init__(self, run: RunFolder, state: Any) -> None:
        self.run, self.state = run, state
        self._known: dict[str, Any] = {}
        self._steps: dict[int, dict[str, Any]] = {}
        self._spectra: list[SpectrumRecord] = []
        self._measures: list[MeasureRecord] = []
        self._written = False
        self._users: set[int] = set()
        self._lock = ExitStack()

    @classmethod
    def of(cls, output: Path, state: Any) -> Recording:
        """The recording of the training whose `TrainerState` this is, in the trainer's output
        folder; begun, or gone on with after a resume, by the first caller.

        Raises:
            BadInput: another process is writing there, or the folder cannot be written.
        """
        run = RunFolder.of_trainer(output)
        found = _OPEN.get(run.path)
        if found is not None and found.state is state:
            return found
        if found is not None:
            found._lock.close()  # of a training in this process that ended in an error
        new = cls(run, state)
        new._lock.enter_context(run.locked())
        run.truncate(state.global_step or -1)
        _OPEN[run.path] = new
        return new

    @property
    def closed(self) -> bool:
        return _OPEN.get(self.run.path) is not self

    def describe(self, known: Mapping[str, Any], model: nn.Module, user: object) -> None:
        """Writes what is known of the run, together with what other users of the recording have
        said; `user` has to call `finish`.
        """
        self._users.add(id(user))
        self._known |= known
        self.run.describe(self._known, provenance(self._known, model))
        self._status("running")

    # --- rows -------------------------------------------------------------------------------------

    def note(self, step: int, **fields: Any) -> None:
        """Fields of the step's record; the first of a new step lets go of what has been written."""
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
        """What the trainer has logged for a step."""
        if step in self._steps:
            self._steps[step] |= {"loss": _number(loss), "grad_norm": _number(grad_norm)}
            if self._written:
                self.flush(step)

    def measured(
        self, step: int, spectra: list[SpectrumRecord], measures: list[MeasureRecord]
    ) -> None:
        """A step's spectra and measures."""
        self._spectra += spectra
        self._measures += measures
        if self._written:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Writes the waiting rows as parts that end with `step`."""
        steps = [
            _step(number, fields) for number, fields in self._steps.items() if "seconds" in fields
        ]  # those that have ended
        for table, rows in (
            ("steps", steps),
            ("spectra", self._spectra),
            ("measures", self._measures),
        ):
            self.run.append(table, rows, step)
        self._written = True
        self._status("running")

    # --- the end ----------------------------------------------------------------------------------

    def finish(self, user: object) -> None:
        """Merges the parts and lets the folder go, once all users have called this."""
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


def provenance(known: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The record of a run's origins, with the keys of the own loop's; null is what is not known
    here.
    """
    weight = next(model.parameters())
    return {
        "code_version": evilspectra.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": str(weight.device),
        "dtype": str(weight.dtype),
        "threads": torch.get_num_threads(),
        "base_name": known.get("model", {}).get("base"),
        "base_sha256": None,
        "data": known.get("data"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


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
