"""Learning rates, fairly: each optimiser of a sweep at its own best, by held-out loss, found by
trial runs.

A trial is an ordinary run in the store, under the sweep's own settings with another learning rate.
First come up to five rates spread evenly over the range, on a log scale, then those that Optuna's
TPE sampler proposes (Bergstra et al. 2011), rounded to two digits. The sampler is seeded and learns
from nothing but the losses of these runs, so the search needs no memory of its own: started again,
it proposes the same rates, finds them done, and goes on. A rate at which training fails is a bad
trial, not an error. No torch here before the first trial.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evilspectra.config.loading import build_section
from evilspectra.config.sections import Config, OutputConfig
from evilspectra.config.yaml_files import flat
from evilspectra.errors import BadInput, Interrupted, RunFailed, first_line, listing, near
from evilspectra.store.files import write_atomically
from evilspectra.store.run import RunFolder
from evilspectra.sweeps.file import Sweep
from evilspectra.sweeps.grid import check_path
from evilspectra.training.identity import locate

#: Rates that are tried before the sampler proposes any, and proposals per trial after which it has
#: nothing new to say.
COARSE, PATIENCE = 5, 10
_LR = "optimizer.lr"


@dataclass(frozen=True)
class Trial:
    """One learning rate.

    `loss`: held-out loss at the end, in nats per token, the mean over `runs`; None where one of
    them failed, and then `reason`.
    """

    lr: float
    loss: float | None
    runs: tuple[str, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Task:
    """What is tuned together: an optimiser's block without its rate, `when` it is meant in the
    sweep, and the runs of a trial but for the rate.
    """

    label: str
    when: dict[str, Any]
    configs: tuple[Config, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Tuned:
    """The best rate of an optimiser, None where every trial failed; `trials` from the lowest rate
    to the highest.
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
    """What a sweep asks to be tuned: every block of an optimiser (of those in `names`), and within
    it every value of the settings `per`.

    A trial is the first run of a task, or with `over` one run for each value of those settings. The
    range is `bounds`, or `factor` to either side of the sweep's rate.

    Raises:
        BadInput: an optimiser or a setting that the sweep does not have, several rates for one
            optimiser, no held-out rows, or an empty range.
    """
    for path in (*per, *over):
        check_path(path, f"'{path}'")
        if path.split(".")[0] == "optimizer":
            raise BadInput(
                f"'{path}' is of the optimiser, which is what is tuned: name a setting of another "
                "section, such as train.batch_size"
            )
    used = list(dict.fromkeys(config.optimizer.name for config in sweep.configs))
    if unknown := [name for name in names if name not in used]:
        raise BadInput(
            f"the sweep has no optimiser '{unknown[0]}'; it has "
            f"{listing(used)}.{near(unknown[0], used)}"
        )
    members: dict[str, list[Config]] = {}
    for config in sweep.configs:
        if not names or config.optimizer.name in names:
            members.setdefault(
                json.dumps(
                    [_block(config), {path: _value(config, path) for path in per}], sort_keys=True
                ),
                [],
            ).append(config)
    found = []
    for configs in members.values():
        first = configs[0]
        several = {
            json.dumps(_block(config))
            for config in sweep.configs
            if config.optimizer.name == first.optimizer.name
        }
        when = {
            f"optimizer.{name}": value
            for name, value in _block(first).items()
            if name == "name" or len(several) > 1
        } | {path: _value(first, path) for path in per}
        label = ", ".join(
            [
                first.optimizer.name,
                *(
                    f"{path.removeprefix('optimizer.')} {value}"
                    for path, value in when.items()
                    if path != "optimizer.name"
                ),
            ]
        )
        if len({config.optimizer.lr for config in configs}) > 1:
            raise BadInput(
                f"the sweep itself varies the learning rate of {label} "
                f"({listing(sorted({config.optimizer.lr for config in configs}))}): tune a sweep "
                "with one rate per optimiser, or name with --per what goes with the rate"
            )
        if first.data.heldout is None and not first.data.heldout_share:
            raise BadInput(
                "no rows are held out (data.heldout_share is 0, data.heldout null), so there is "
                "no loss to choose a rate by: set one of them"
            )
        low, high = bounds or (first.optimizer.lr / factor, first.optimizer.lr * factor)
        low, high = _rounded(low), _rounded(min(high, _most(first)))
        if not 0 < low < high:
            raise BadInput(
                f"the range from {low:g} to {high:g} holds no learning rate of {label}, which is "
                f"more than 0 and at most {_most(first):g}: give a lower and a higher bound, such "
                "as --range 1e-5 1e-2"
            )
        runs = [config for config in configs if _but(config, over) == _but(first, over)]
        kept = build_section(
            OutputConfig,
            {
                "folder": first.output.folder,
                "experiment": experiment or f"{first.output.experiment}-tune",
            },
            "--experiment",
        )
        moved = [config.model_copy(update={"output": kept}) for config in runs]
        found.append(Task(label, when, tuple(moved), low, high))
    return found


def tune(
    found: Sequence[Task],
    trials: int,
    *,
    seed: int = 0,
    quiet: bool = True,
    note: Callable[[str], object] = lambda text: None,
) -> list[Tuned]:
    """The best rate of every task.

    Raises:
        BadInput: Optuna is not installed, or data or base are missing or unusable: said before the
            first trial.
        Interrupted: a signal; what was done is kept.
    """
    if find_spec("optuna") is None:
        raise BadInput(
            "tuning needs the package optuna, which is not installed: pip install "
            "'evilspectra[tune]'"
        )
    for config in (config for task in found for config in task.configs):
        locate(config)
    return [
        _search(task, trials, seed, functools.partial(_attempt, task, quiet, note))
        for task in found
    ]


def _search(
    task: Task,
    trials: int,
    seed: int,
    attempt: Callable[[float], Trial],
) -> Tuned:
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
        asked = study.ask()
        lr = _rounded(asked.suggest_float("lr", task.low, task.high, log=True))
        if lr not in done:
            done[lr] = attempt(lr)
        loss = done[lr].loss
        study.tell(asked, math.inf if loss is None else loss)
    return best(task, list(done.values()))


def coarse(low: float, high: float, count: int) -> list[float]:
    """So many rates from `low` to `high`, both included, evenly spread on a log scale, to two
    digits.

    >>> coarse(1e-4, 1e-2, 3)
    [0.0001, 0.001, 0.01]
    """
    return [_rounded(float(value)) for value in np.geomspace(low, high, count)]


def best(task: Task, done: Sequence[Trial]) -> Tuned:
    """The trial with the lowest loss (of equals the lower rate), and a warning where nothing beyond
    it was tried.

    A rate at which training failed bounds the search as a worse one does.
    """
    ordered = tuple(sorted(done, key=lambda trial: trial.lr))
    trained = [(trial.loss, trial.lr) for trial in ordered if trial.loss is not None]
    if not trained:
        reason = ordered[0].reason if ordered else "there was none"
        return Tuned(
            task.label,
            task.when,
            None,
            None,
            task.low,
            task.high,
            ordered,
            f"every trial of {task.label} failed, the lowest rate because: {reason}",
        )
    loss, lr = min(trained)
    end = "highest" if lr == ordered[-1].lr else "lowest" if lr == ordered[0].lr else None
    warning = (
        (
            f"the best learning rate of {task.label}, {lr:g}, is the {end} that was tried, so a "
            f"better one may lie beyond it: widen the range, such as --range {lr / 30:.1g} "
            f"{lr * 30:.1g}"
        )
        if end
        else None
    )
    return Tuned(task.label, task.when, lr, loss, task.low, task.high, ordered, warning)


def _attempt(
    task: Task,
    quiet: bool,
    note: Callable[[str], object],
    lr: float,
) -> Trial:
    """Trains the runs of a trial, those that are done excepted."""
    from evilspectra.training.train import train

    names, losses = [], []
    for config in task.configs:
        tried = config.model_copy(
            update={"optimizer": config.optimizer.model_copy(update={"lr": lr})}
        )
        names.append(locate(tried)[0].name)
        try:
            losses.append(_heldout_loss(train(tried, quiet)))
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
            f"{run.path} has no held-out loss, for its data are too few to hold any out: name "
            "data.heldout, or a longer file"
        )
    return float(after["loss"].iloc[-1])


# --- what is written ------------------------------------------------------------------------------


def overrides(found: Sequence[Tuned]) -> list[dict[str, Any]]:
    """The best rates as the `overrides` of a sweep file."""
    return [{"when": one.when, "set": {_LR: one.lr}} for one in found if one.lr is not None]


def write_tuned(
    found: Sequence[Tuned],
    name: str,
    path: Path,
    said: str,
) -> None:
    """A sweep file that begins from `name`, a file or a preset, and has the best rates.

    `said`: how they were found, for its first line.
    """
    first = os.path.relpath(name, path.parent) if os.path.isfile(name) else name
    lines = [f"# {said}"]
    for one in found:
        lines.append(
            f"# {one.label}: "
            f"{f'lr {one.lr:g}, held-out loss {one.loss:.4f}, of {len(one.trials)} trials from {one.low:g} to {one.high:g}' if one.lr is not None else one.warning}"
        )
    text = (
        "\n".join(lines)
        + "\n"
        + yaml.safe_dump({"from": first, "overrides": overrides(found)}, sort_keys=False, width=200)
    )
    write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"), "--out")


# --- settings -------------------------------------------------------------------------------------


def _block(config: Config) -> dict[str, Any]:
    """The optimiser's settings but the rate."""
    return config.optimizer.model_dump(mode="json", exclude={"lr"})


def _value(config: Config, path: str) -> Any:
    return flat(config.model_dump(mode="json")).get(path)


def _but(config: Config, over: Sequence[str]) -> dict[str, Any]:
    """All settings but those that a trial runs over, and those of the optimiser."""
    return {
        path: value
        for path, value in flat(config.model_dump(mode="json", exclude={"optimizer": True})).items()
        if path not in over
    }


def _most(config: Config) -> float:
    """The largest rate that the optimiser takes."""
    rules = type(config.optimizer).model_fields["lr"].metadata
    return next(float(rule.le) for rule in rules if hasattr(rule, "le"))


def _rounded(lr: float) -> float:
    return float(f"{lr:.2g}")
