"""Fine-tuning of one run: find data and base, train or resume, write a run directory.

This module does not evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

from evilspectra.cards.record import training_record
from evilspectra.config.sections import Config
from evilspectra.data.batches import Batches, prepare
from evilspectra.errors import EvilspectraError, Interrupted
from evilspectra.model.adapter import attach
from evilspectra.model.base import Base
from evilspectra.model.device import memory_advice, set_up_process
from evilspectra.model.load import context_length, load_base, save_activations_sparsely
from evilspectra.model.packing import use_packed_attention
from evilspectra.model.reuse import Loaded, own_attention, take_off
from evilspectra.optim.extra import require
from evilspectra.store.run import RunFolder
from evilspectra.training.identity import locate
from evilspectra.training.loop import TrainingRun
from evilspectra.training.progress import Watcher, watching
from evilspectra.training.provenance import provenance
from evilspectra.training.signals import stop_signals

#: Gives a run's watcher, from the run's name and its number of steps.
Watch = Callable[[str, int], AbstractContextManager[Watcher]]


def train(
    config: Config,
    quiet: bool = True,
    loaded: Loaded | None = None,
    watch: Watch | None = None,
) -> RunFolder:
    """Trains one run, resumes it from where it stopped, or returns at once when it is done.

    `loaded` keeps the base for the runs after this one; a run's result does not depend on it.
    `watch` gives the receiver of its progress; without it that is what fits standard error, or with
    `quiet` nothing.

    Raises:
        InUse: another process is training it.
        BadInput: config, data or model cannot be used, or the run's directory holds another config;
            nothing was trained.
        RunFailed: the loss became non-finite, memory ran out, or the adapter does not move; the
            run's status says why.
        Interrupted: SIGINT or SIGTERM; the state was saved.
    """
    run, base = locate(config)
    if not _is_done(run, config):
        with run.locked():
            if not _is_done(run, config):
                with _prepared(config, run, base, loaded or Loaded()) as training:
                    _follow(training, watch or partial(watching, quiet=quiet))
    return run


def _is_done(run: RunFolder, config: Config) -> bool:
    """Whether there is nothing left to do; a run whose adapter was removed is trained again."""
    done = run.status().state == "done" and (run.adapter / "adapter_model.safetensors").is_file()
    if done:
        run.check(config)
        run.resume_file.unlink(missing_ok=True)
    return done


@contextmanager
def _prepared(
    config: Config,
    run: RunFolder,
    base: Base,
    loaded: Loaded,
) -> Iterator[TrainingRun]:
    """Loads model and data, and begins the run's directory; a refusal leaves no trace in it.

    At the end the base is restored.
    """
    require(config.optimizer)
    set_up_process(config.train.threads)
    with memory_advice(
        "set model.device_map: auto to spread the base over several devices, model.dtype: "
        "bfloat16, or take a smaller base"
    ):
        model, tokenizer = loaded.get(base, config.model, load_base)
    attention, adapted = own_attention(model), None
    try:
        data = prepare(config.data, tokenizer, context_length(model))
        batches = Batches(
            len(data.train),
            config.train.batch_size,
            config.train.seed,
            config.train.epochs,
            config.train.steps,
        )
        if config.train.packed:
            use_packed_attention(model)
        adapted = attach(model, config.lora, config.train.seed, base.public_name)
        if config.model.gradient_checkpointing:
            save_activations_sparsely(adapted)
        run.begin(
            config, provenance(config, base, data.report, str(model.device), str(model.dtype))
        )
        yield TrainingRun(config, run, adapted, tokenizer, data, batches)
    finally:
        take_off(adapted, model, attention)


def _follow(training: TrainingRun, watch: Watch) -> None:
    """Trains to the end, and records how it ended."""
    settings = training.config.train
    try:
        with memory_advice(
            f"raise train.accumulation (now {settings.accumulation}), set "
            "model.gradient_checkpointing: true, or lower train.batch_size (now "
            f"{settings.batch_size})"
        ):
            _train(training, watch)
    except EvilspectraError as error:
        if training.run.status().state != "done":
            with suppress(EvilspectraError):  # a full disk must not hide what filled it
                training.flush()
                training.set_status(
                    "interrupted" if isinstance(error, Interrupted) else "failed", str(error)
                )
        raise


def _train(training: TrainingRun, watch: Watch) -> None:
    config = training.config
    run = training.run
    total = training.batches.total_steps

    def save(folder: Path) -> None:
        training.flush()  # the card is made of what is stored
        record = training_record(run, training.step)
        training.save(folder, record)

    training.set_status("running")
    with watch(run.name, total) as watcher, stop_signals() as stop:
        watcher.note(f"{run.name}  {training.data.report.line()}")
        if training.resume():
            watcher.note(f"{run.name}  resumes after step {training.step} of {total}")
        else:
            training.begin()
        if training.step == 0 and 0 in training.checkpoints:
            save(run.checkpoint(0))
        while training.step < total:
            watcher.step(training.advance(), training.stable_rank)
            if training.step in training.checkpoints:
                save(run.checkpoint(training.step))
            if stop.wanted or training.step % config.train.resume_every == 0:
                training.save_state()
            if stop.wanted and training.step < total:
                raise Interrupted(
                    f"interrupted after step {training.step} of {total}; the state is saved, "
                    "run the same command again to go on"
                )
    save(run.adapter)
    run.merge()
    training.set_status("done")
    run.resume_file.unlink(missing_ok=True)
    if stop.wanted:
        raise Interrupted(
            "interrupted just as this run was done; run the same command again for the rest"
        )
