"""Training of a run, and a trained run: its losses, spectra and adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evilspectra.api.arguments import PathLike, Settings, optional_name
from evilspectra.api.configs import config_of
from evilspectra.api.frames import plain_rows
from evilspectra.api.layers import assigned, layers
from evilspectra.api.result import Result, table
from evilspectra.errors import packages_explained
from evilspectra.numbers import number
from evilspectra.text import printable

if TYPE_CHECKING:
    from altair import VConcatChart
    from pandas import DataFrame

    from evilspectra.config.sections import Config
    from evilspectra.store.records import RunSummary, StepRecord
    from evilspectra.training.progress import Watcher

#: Fields of a summary that a notebook shows.
_SUMMARY = (
    *("run", "status", "steps", "train_loss", "heldout_loss", "stable_rank", "spectral_entropy"),
    *("frobenius_nuclear", "condition_number", "tokens_per_s"),
)


@dataclass(frozen=True, repr=False)
class TrainedRun(Result):
    """A run that was trained to its end; its rows are its steps.

    It may be given wherever a path to a run is expected, as in `probe(trained)`.

    Attributes:
        folder: the run's folder in the store.
        summary: the run in one row, the row that `runs` has for it.
    """

    folder: Path
    summary: RunSummary

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def run(self) -> str:
        """The run's id: a readable prefix, and a digest of all that determines the result."""
        return self.summary.run

    @property
    def adapter(self) -> Path:
        """The folder of the final adapter, in PEFT's format."""
        return self.folder / "adapter"

    @property
    def train_loss(self) -> float | None:
        """The mean data loss of the last 5 % of steps, in nats per supervised token."""
        return self.summary.train_loss

    @property
    def heldout_loss(self) -> float | None:
        """The loss on the held-out rows at the end, in nats per supervised token."""
        return self.summary.heldout_loss

    @property
    def headline(self) -> str:
        summary = self.summary
        return (
            f"{summary.run}: {summary.status}, {summary.steps} steps, "
            f"training loss {number(summary.train_loss, '.3f')}, "
            f"held-out loss {number(summary.heldout_loss, '.3f')}, "
            f"stable rank {number(summary.stable_rank, '.2f')}; in {self.folder}"
        )

    def rows(self) -> list[dict[str, Any]]:
        return plain_rows(self.to_frame())

    def to_frame(self) -> DataFrame:
        """The steps: loss, learning rate, gradient norm, flatness, penalty, tokens, seconds."""
        return self._table("steps")

    def flat(self) -> dict[str, Any]:
        """The summary in JSON's types, as `evilspectra train --json` prints it."""
        return asdict(self.summary)

    def heldout(self) -> DataFrame:
        """The losses on the held-out rows: before training, at checkpoints, at the end."""
        return self._table("heldout")

    def spectra(self) -> DataFrame:
        """The singular values of every adapted matrix's update, at each measured step."""
        return self._table("spectra")

    def measures(self) -> DataFrame:
        """The measures of these spectra: stable rank, spectral entropy, condition number, …"""
        return self._table("measures")

    def figure(self) -> VConcatChart:
        """Draws losses and measures of flatness over the steps."""
        from evilspectra.api.figures import figure_of_runs

        return figure_of_runs(self.folder)

    def _table(self, name: str) -> DataFrame:
        from evilspectra.store.run import RunFolder

        return RunFolder(self.folder).read(name)

    def _repr_html_(self) -> str:
        values = self.flat()
        headline = escape(printable(self.headline, 1000))
        cells = table([{name: values[name] for name in _SUMMARY}])
        return f"<p><strong>{headline}</strong></p>{cells}"


@packages_explained("train")
def train(
    config: PathLike | Mapping[str, Any] | Config,
    *,
    settings: Settings = (),
    output: PathLike | None = None,
    on_step: Callable[[StepRecord], object] | None = None,
    note: Callable[[str], object] | None = None,
    progress: bool = False,
) -> TrainedRun:
    """Trains one run, resumes it from where it stopped, or returns it at once when it is done.

    Everything about the run is written to a folder of its own, whose name depends on all that
    determines the result: calling it again with the same config gives the same run. An
    interruption (^C) saves the state first.

    Args:
        config: a YAML file, a preset's name, a mapping, or a config of `load_config`.
        settings: laid on top; a mapping such as {"train.steps": 30}, or texts "train.steps=30".
        output: the store, a folder of runs; without it the setting `output.folder`, which is
            `runs` unless the config says otherwise.
        on_step: called with the record of each optimiser step as it is done. What it raises ends
            the training, which then resumes from the last saved state.
        note: called with a line of text about every ten seconds.
        progress: draw on standard error what the command `train` draws there.

    Raises:
        BadInput: config, data or model cannot be used; nothing was trained.
        InUse: another process is training the same run.
        RunFailed: the loss became non-finite, memory ran out, or the adapter does not move.
        Interrupted: ^C or SIGTERM; the state was saved, and the same call resumes.
    """
    folder = assigned({"output.folder": optional_name(output, "output")})
    loaded = config_of(config, [*layers(settings), *folder])
    from evilspectra.evaluation.summary import summarise
    from evilspectra.training.progress import Lines, Several, Steps, watching
    from evilspectra.training.train import train as run_training

    @contextmanager
    def watch(label: str, total: int) -> Iterator[Watcher]:
        with watching(label, total, quiet=not progress) as terminal:
            watchers: list[Watcher] = [terminal]
            watchers += [Lines(label, total, note)] if note else []
            watchers += [Steps(on_step)] if on_step else []
            yield Several(watchers)

    run = run_training(loaded, watch=watch)
    return TrainedRun(run.path, summarise(run))
