"""Fine-tuning one run: find data and base, train or go on, leave a run directory. Knows nothing of evaluation."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from evilspectra import base as bases
from evilspectra.base import Base
from evilspectra.card import card
from evilspectra.config import Config, identity
from evilspectra.data import Batches, prepare
from evilspectra.device import memory_advice, set_up_process
from evilspectra.errors import EvilspectraError, Interrupted
from evilspectra.model import attach, context_length, load_base, save_activations_sparsely
from evilspectra.optim.extra import require
from evilspectra.packing import use_packed_attention
from evilspectra.progress import watching
from evilspectra.provenance import provenance
from evilspectra.rows import read_rows
from evilspectra.store import RunFolder, Store
from evilspectra.training_record import training_record
from evilspectra.work import Work


def locate(config: Config) -> tuple[RunFolder, Base]:
    """The run's directory, which depends on the content of data and base, and the base that was found.

    Raises:
        BadInput: data or base are missing or unusable.
    """
    base = bases.resolve(config.model)
    sha256 = [_content(config, source) for source in (config.data.train, config.data.heldout) if source]
    digest = identity(config, sha256[0], base.sha256, *sha256[1:])
    return Store(Path(config.output.folder)).run(config, digest), base


def _content(config: Config, source: str) -> str:
    """The content hash of a data source, which is read through to find its faults; a file once, however many runs share it."""
    stamp = (stat.st_size, stat.st_mtime_ns) if os.path.isfile(source) and (stat := os.stat(source)) else time.monotonic_ns()
    return _read_content(source, config.data.split, config.data.on_bad_row, config.data.local_files_only, stamp)


@lru_cache(maxsize=64)
def _read_content(source: str, split: str, on_bad_row: Literal["error", "skip"], local_files_only: bool, stamp: object) -> str:
    return read_rows(source, split=split, on_bad_row=on_bad_row, local_files_only=local_files_only).sha256


def train(config: Config, quiet: bool = True) -> RunFolder:
    """Trains one run, or goes on where it was interrupted, or returns at once when it is done.

    Raises:
        BadInput: config, data or model cannot be used, or the run's directory holds another config; nothing was trained.
        RunFailed: the loss became non-finite, memory ran out, or the adapter does not move; the run's status says why.
        Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    run, base = locate(config)
    if not _is_done(run, config):
        with run.locked():
            if not _is_done(run, config):
                _follow(_prepare(config, run, base), quiet)
    return run


def _is_done(run: RunFolder, config: Config) -> bool:
    """Whether there is nothing left to do; a run whose adapter was removed is trained again."""
    done = run.status().state == "done" and (run.adapter / "adapter_model.safetensors").is_file()
    if done:
        run.check(config)
        run.resume_file.unlink(missing_ok=True)
    return done


def _prepare(config: Config, run: RunFolder, base: Base) -> Work:
    """Loads model and data and begins the run's directory; a refusal leaves no trace in it."""
    require(config.optimizer)
    set_up_process(config.train.threads)
    with memory_advice("set model.device_map: auto to spread the base over several devices, model.dtype: bfloat16, or take a smaller base"):
        model, tokenizer = load_base(base, config.model)
    data = prepare(config.data, tokenizer, context_length(model))
    batches = Batches(len(data.train), config.train.batch_size, config.train.seed, config.train.epochs, config.train.steps)
    if config.train.packed:
        use_packed_attention(model)
    adapted = attach(model, config.lora, config.train.seed, base.public_name)
    if config.model.gradient_checkpointing:
        save_activations_sparsely(adapted)
    run.begin(config, provenance(config, base, data.report, str(model.device), str(model.dtype)))
    return Work(config, run, adapted, tokenizer, data, batches)


def _follow(work: Work, quiet: bool) -> None:
    """Trains to the end, and records how it ended."""
    settings = work.config.train
    try:
        with memory_advice(f"raise train.accumulation (now {settings.accumulation}), set model.gradient_checkpointing: true, or lower train.batch_size (now {settings.batch_size})"):
            _train(work, quiet)
    except EvilspectraError as error:
        if work.run.status().state != "done":
            with suppress(EvilspectraError):  # a full disk must not hide what filled it
                work.flush()
                work.set_status("interrupted" if isinstance(error, Interrupted) else "failed", str(error))
        raise


def _train(work: Work, quiet: bool) -> None:
    config, run, total = work.config, work.run, work.batches.total_steps

    def save(folder: Path) -> None:
        work.flush()  # the card is made of what is stored
        record = training_record(run, work.step)
        work.save(folder, card(record), record)

    work.set_status("running")
    with watching(run.name, total, quiet) as watcher, _stop_signals() as stop:
        watcher.note(f"{run.name}  {work.data.report.line()}")
        if work.resume():
            watcher.note(f"{run.name}  goes on after step {work.step} of {total}")
        else:
            work.begin()
        if work.step == 0 and 0 in work.checkpoints:
            save(run.checkpoint(0))
        while work.step < total:
            watcher.step(work.advance(), work.stable_rank)
            if work.step in work.checkpoints:
                save(run.checkpoint(work.step))
            if stop.wanted or work.step % config.train.resume_every == 0:
                work.save_state()
            if stop.wanted and work.step < total:
                raise Interrupted(f"interrupted after step {work.step} of {total}; the state is saved, run the same command again to go on")
    save(run.adapter)
    run.merge()
    work.set_status("done")
    run.resume_file.unlink(missing_ok=True)
    if stop.wanted:
        raise Interrupted("interrupted; this run was just done, run the same command again to go on with what is left")


@dataclass
class _Stop:
    wanted: bool = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM ask for a stop after the current step; a second one stops at once."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.wanted:
            raise KeyboardInterrupt
        stop.wanted = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
