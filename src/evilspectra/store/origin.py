"""The origin of a run: all settings of a run of this package, the known ones of any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.config.optimizers import label
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import flat
from evilspectra.store.labels import arm
from evilspectra.store.run import RunFolder


@dataclass(frozen=True)
class Origin:
    """The settings by which results are labelled and compared; None if one is unknown.

    `settings`: dotted path → value. `trainer`: the class of the arguments of the trainer that made
    the run, such as trl.SFTConfig; None for the loop of this package.
    """

    arm: str
    control: bool
    base: str | None
    data: str | None
    optimizer: str
    lr: float | None
    flatness_weight: float
    batch_size: int | None
    seed: int | None
    rank: int | None
    settings: Mapping[str, Any]
    trainer: str | None = None


def origin(run: RunFolder) -> Origin:
    """How a run was made.

    Raises:
        BadInput: the file with the settings cannot be read.
    """
    return _outside(run.outside()) if run.is_outside else own_origin(run.config())


def own_origin(config: Config) -> Origin:
    """How a run of this package's loop was made, from its config."""
    return Origin(
        arm=arm(config),
        control=config.data.control,
        base=config.model.base,
        data=config.data.train,
        optimizer=label(config.optimizer),
        lr=config.optimizer.lr,
        flatness_weight=config.flatness.weight,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        rank=config.lora.rank,
        settings=flat(config.model_dump(mode="json", exclude={"output"})),
    )


def _outside(sections: Mapping[str, Any]) -> Origin:
    settings = flat(sections)
    optimizer = str(settings.get("optimizer.name"))
    weight = settings.get("flatness.weight") or 0.0
    return Origin(
        arm=f"{optimizer} + flatness {weight:g}" if weight else optimizer,
        control=False,
        base=settings.get("model.base"),
        data=None,
        optimizer=optimizer,
        lr=settings.get("optimizer.lr"),
        flatness_weight=weight,
        batch_size=settings.get("train.batch_size"),
        seed=settings.get("train.seed"),
        rank=settings.get("lora.rank"),
        settings=settings,
        trainer=str(settings.get("trainer.arguments")),
    )


def differing(origins: Sequence[Origin]) -> list[str]:
    """The dotted paths of settings that differ between runs, the output section left out.

    A setting that is not known of a run is None there.
    """
    return differing_paths([origin.settings for origin in origins])


def differing_paths(runs: Sequence[Mapping[str, Any]], absent: object = None) -> list[str]:
    """The dotted paths whose values differ, in the order in which they first appear.

    `absent`: the value of a path that a run does not have.

    >>> differing_paths([{"a": 1, "b": [2]}, {"a": 1, "b": [3]}])
    ['b']
    """
    paths = dict.fromkeys(path for settings in runs for path in settings)
    return [
        path for path in paths if len({repr(settings.get(path, absent)) for settings in runs}) > 1
    ]
