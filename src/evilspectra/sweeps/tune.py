"""Fair learning rates: each optimiser of a sweep at its own best, by held-out loss.

A trial is an ordinary run in the store, under the sweep's own settings with another learning rate.
First come up to five rates spread evenly over the range, on a log scale, then those that Optuna's
TPE sampler proposes (Bergstra et al. 2011), rounded to two digits. The sampler is seeded and uses
only the losses of these runs, so the search needs no memory: started again, it proposes the same
rates, finds them done, and continues. A rate at which training fails is a bad trial, not an error.
No torch here before the first trial.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evilspectra.config.loading import build_section
from evilspectra.config.optimizers import short_label
from evilspectra.config.sections import Config, OutputConfig
from evilspectra.config.yaml_files import flat
from evilspectra.errors import BadInput, Interrupted, RunFailed, first_line, listing, near
from evilspectra.store.files import write_atomically
from evilspectra.store.run import RunFolder
from evilspectra.sweeps.file import Sweep
from evilspectra.sweeps.grid import check_path
from evilspectra.training.identity import locate

#: Rates that are tried before the sampler proposes any, and the number of proposals per trial after
#: which it has no new ones.
COARSE, PATIENCE = 5, 10
_LR = "optimizer.lr"


@dataclass(frozen=True)
class Trial:
    """One learning rate.

    `loss`: held-out loss at the end, in nats per token, the mean over `runs`; None if one of
    them failed, and then `reason`.
    """

    lr: float
    loss: float | None
    runs: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Task:
    """The unit of tuning: an optimiser's block without its rate, and the runs of a trial.

    `when`: which cells of the sweep the rate is meant for; `configs`: the runs of a trial except
    for their rate.
    """

    label: str
    when: dict[str, Any]
    configs: tuple[Config, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Tuned:
    """The best rate of an optimiser; None if every trial failed.

    `trials`: from the lowest rate to the highest.
    """

    label: str
    when: dict[str, Any]
    lr: float | None
    loss: float | None
    low: float
    high: float
    trials: tuple[Trial, ...]
    warning: str | None


def tasks(
    sweep: Sweep,
    *,
    names: Sequence[str] = (),
    per: Sequence[str] = (),
    over: Sequence[str] = (),
    factor: float = 30.0,
    bounds: tuple[float, float] | None = None,
    experiment: str | None = None,
) -> list[Task]:
    """Lists the tasks of tuning a sweep.

    There is one for every optimiser's block (of those in `names`), and within it for every value of
    the settings `per`. A trial is the first run of a task, or with `over` one run for each value of
    those settings. The range is `bounds`, or `factor` to either side of the sweep's rate.

    Raises:
        BadInput: an optimiser or a setting that the sweep does not have, several rates for one
            optimiser, no held-out rows, or an empty range.
    """
    for path in (*per, *over):
        check_path(path, f"'{path}'")
        if path.split(".")[0] == "optimizer":
            raise BadInput(
                f"'{path}' belongs to the optimiser, which is what is tuned: name a setting of "
                "another section, such as train.batch_size"
            )
    used = list(dict.fromkeys(short_label(config.optimizer) for config in sweep.configs))
    if unknown := [name for name in names if name not in used]:
        raise BadInput(
            f"the sweep has no optimiser '{unknown[0]}'; it has "
            f"{listing(used)}.{near(unknown[0], used)}"
        )
    groups: dict[str, list[Config]] = {}
    for config in sweep.configs:
        if not names or short_label(config.optimizer) in names:
            values = {path: _value(config, path) for path in per}
            key = json.dumps([_block(config), values], sort_keys=True)
            groups.setdefault(key, []).append(config)
    tasks = []
    for configs in groups.values():
        first = configs[0]
        when = _when(sweep, first, per)
        label = _label(first, when)
        _check_group(configs, label)
        low, high = bounds or (first.optimizer.lr / factor, first.optimizer.lr * factor)
        low, high = _rounded(low), _rounded(min(high, _largest(first)))
        if not 0 < low < high:
            raise BadInput(
                f"the range from {low:g} to {high:g} contains no learning rate for {label} (more "
                f"than 0 and at most {_largest(first):g}): give a lower and a higher bound, such "
                "as --range 1e-5 1e-2"
            )
        output = build_section(
            OutputConfig,
            {
                "folder": first.output.folder,
                "experiment": experiment or f"{first.output.experiment}-tune",
            },
            "--experiment",
        )
        runs = [config for config in configs if _but(config, over) == _but(first, over)]
        moved = [config.model_copy(update={"output": output}) for config in runs]
        tasks.append(Task(label, when, tuple(moved), low, high))
    return tasks


def _when(sweep: Sweep, first: Config, per: Sequence[str]) -> dict[str, Any]:
    """The settings by which an override of the sweep finds the cells of a task."""
    blocks = {
        json.dumps(_block(config))
        for config in sweep.configs
        if short_label(config.optimizer) == short_label(first.optimizer)
    }
    own = {
        f"optimizer.{name}": value
        for name, value in _block(first).items()
        if name in ("name", "class") or len(blocks) > 1
    }
    return own | {path: _value(first, path) for path in per}


def _label(first: Config, when: Mapping[str, Any]) -> str:
    """The name of a task: its optimiser, and the settings that distinguish it."""
    settings = [
        f"{path.removeprefix('optimizer.')} {value}"
        for path, value in when.items()
        if path not in ("optimizer.name", "optimizer.class")
    ]
    return ", ".join([short_label(first.optimizer), *settings])


def _check_group(configs: Sequence[Config], label: str) -> None:
    """Refuses a group of runs with several rates, or without held-out rows."""
    rates = {config.optimizer.lr for config in configs}
    if len(rates) > 1:
        raise BadInput(
            f"the sweep itself varies the learning rate of {label} ({listing(sorted(rates))}): "
            "tune a sweep with one rate per optimiser, or name with --per the setting that the "
            "rate depends on"
        )
    if configs[0].data.heldout is None and not configs[0].data.heldout_share:
        raise BadInput(
            "no rows are held out (data.heldout_share is 0, data.heldout null), so there is no "
            "loss to choose a rate by: set one of them"
        )


def tune(
    tasks: Sequence[Task],
    trials: int,
    *,
    seed: int = 0,
    quiet: bool = True,
    note: Callable[[str], object] = lambda text: None,
) -> list[Tuned]:
    """Finds the best rate of every task.

    Raises:
        BadInput: Optuna is not installed, or data or base are missing or unusable; raised before
            the first trial.
        Interrupted: a signal arrived; completed work is kept.
    """
    if find_spec("optuna") is None:
        raise BadInput(
            "tuning needs the package optuna, which is not installed: pip install "
            "'evilspectra[tune]'"
        )
    for config in (config for task in tasks for config in task.configs):
        locate(config)
    return [
        _search(task, trials, seed, functools.partial(_attempt, task, quiet, note))
        for task in tasks
    ]


def _search(
    task: Task,
    trials: int,
    seed: int,
    attempt: Callable[[float], Trial],
) -> Tuned:
    """Tries the coarse rates, then the sampler's proposals, and returns the best."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=COARSE)
    )
    for lr in coarse(task.low, task.high, min(trials, COARSE)):
        study.enqueue_trial({"lr": lr})
    done: dict[float, Trial] = {}
    for _ in range(trials * PATIENCE):
        if len(done) >= trials:
            break
        proposal = study.ask()
        lr = _rounded(proposal.suggest_float("lr", task.low, task.high, log=True))
        if lr not in done:
            done[lr] = attempt(lr)
        loss = done[lr].loss
        study.tell(proposal, math.inf if loss is None else loss)
    return best(task, list(done.values()))


def coarse(low: float, high: float, count: int) -> list[float]:
    """`count` rates from `low` to `high` inclusive, evenly spread on a log scale, two digits each.

    >>> coarse(1e-4, 1e-2, 3)
    [0.0001, 0.001, 0.01]
    """
    return [_rounded(float(value)) for value in np.geomspace(low, high, count)]


def best(task: Task, done: Sequence[Trial]) -> Tuned:
    """The trial with the lowest loss, and a warning where no rate beyond it was tried.

    Of equal losses the lower rate wins. A rate at which training failed bounds the search as a
    worse one does.
    """
    ordered = tuple(sorted(done, key=lambda trial: trial.lr))
    trained = [(trial.loss, trial.lr) for trial in ordered if trial.loss is not None]
    if not trained:
        reason = ordered[0].reason if ordered else "there was no trial"
        warning = f"every trial of {task.label} failed; at the lowest rate: {reason}"
        return Tuned(task.label, task.when, None, None, task.low, task.high, ordered, warning)
    loss, lr = min(trained)
    end = None
    if lr == ordered[0].lr:
        end = "lowest"
    if lr == ordered[-1].lr:
        end = "highest"
    warning = None
    if end:
        warning = (
            f"the best learning rate of {task.label}, {lr:g}, is the {end} that was tried, so a "
            "better one may lie beyond it: widen the range, such as "
            f"--range {lr / 30:.1g} {lr * 30:.1g}"
        )
    return Tuned(task.label, task.when, lr, loss, task.low, task.high, ordered, warning)


def _attempt(
    task: Task,
    quiet: bool,
    note: Callable[[str], object],
    lr: float,
) -> Trial:
    """Trains the runs of a trial, except those that are done."""
    from evilspectra.training.train import train

    names, losses = [], []
    for config in task.configs:
        trial = config.model_copy(
            update={"optimizer": config.optimizer.model_copy(update={"lr": lr})}
        )
        names.append(locate(trial)[0].name)
        try:
            losses.append(_heldout_loss(train(trial, quiet)))
        except Interrupted:
            raise
        except RunFailed as error:
            note(f"{task.label}, lr {lr:g}: failed: {first_line(error)}")
            return Trial(lr, None, tuple(names), first_line(error))
    loss = sum(losses) / len(losses)
    if not math.isfinite(loss):
        return Trial(lr, None, tuple(names), f"the held-out loss is {loss}")
    note(f"{task.label}, lr {lr:g}: held-out loss {loss:.4f}")
    return Trial(lr, loss, tuple(names))


def _heldout_loss(run: RunFolder) -> float:
    table: Any = run.read("heldout")
    after = table[table["step"] > 0]
    if not len(after):
        raise BadInput(
            f"{run.path} has no held-out loss, because its data set is too small to hold any rows "
            "out: name data.heldout, or a longer file"
        )
    return float(after["loss"].iloc[-1])


# --- the tuned sweep file -------------------------------------------------------------------------


def overrides(rates: Sequence[Tuned]) -> list[dict[str, Any]]:
    """The best rates as the `overrides` of a sweep file."""
    return [{"when": rate.when, "set": {_LR: rate.lr}} for rate in rates if rate.lr is not None]


def write_tuned(
    rates: Sequence[Tuned],
    name: str,
    path: Path,
    heading: str,
) -> None:
    """Writes a sweep file that begins from `name`, a file or a preset, and sets the best rates.

    `heading`: how they were found, for its first line.
    """
    first = os.path.relpath(name, path.parent) if os.path.isfile(name) else name
    lines = [f"# {heading}", *(f"# {rate.label}: {_summary(rate)}" for rate in rates)]
    values = {"from": first, "overrides": overrides(rates)}
    text = "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False, width=200)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"), "--out")


def _summary(rate: Tuned) -> str | None:
    if rate.lr is None:
        return rate.warning
    return (
        f"lr {rate.lr:g}, held-out loss {rate.loss:.4f}, of {len(rate.trials)} trials from "
        f"{rate.low:g} to {rate.high:g}"
    )


# --- settings -------------------------------------------------------------------------------------


def _block(config: Config) -> dict[str, Any]:
    """The optimiser's settings without the rate, and without the hash of its source."""
    return config.optimizer.model_dump(mode="json", exclude={"lr", "sha256"})


def _value(config: Config, path: str) -> Any:
    return flat(config.model_dump(mode="json")).get(path)


def _but(config: Config, over: Sequence[str]) -> dict[str, Any]:
    """All settings except the optimiser's and those that a trial runs over."""
    return {
        path: value
        for path, value in flat(config.model_dump(mode="json", exclude={"optimizer": True})).items()
        if path not in over
    }


def _largest(config: Config) -> float:
    """The largest rate that the optimiser accepts."""
    rules = type(config.optimizer).model_fields["lr"].metadata
    return next(float(rule.le) for rule in rules if hasattr(rule, "le"))


def _rounded(lr: float) -> float:
    return float(f"{lr:.2g}")
