"""@@FIX How a run was made, as far as it is known: all of it by the own loop's config, some of it where
another trainer made the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import flat
from evilspectra.store.run import RunFolder, arm


@dataclass(frozen=True)
class Origin:
    """What results are labelled and compared by; None is what is not known.

    `settings`: dotted path → value.

    `trainer`: whose trainer made the run, such as trl.SFTConfig (the class of its arguments); None
    for the own loop.
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
        BadInput: what says so cannot be read.
    """
    return _outside(run.outside()) if run.is_outside else own_origin(run.config())


def own_origin(config: Config) -> Origin:
    """How a run of the own loop was made: all of it is in its config."""
    return Origin(
        arm=arm(config),
        control=config.data.control,
        base=config.model.base,
        data=config.data.train,
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        flatness_weight=config.flatness.weight,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        rank=config.lora.rank,
        settings=flat(config.model_dump(mode="json", exclude={"output"})),
    )


def _outside(known: Mapping[str, Any]) -> Origin:
    settings = flat(known)
    optimizer, weight = str(settings.get("optimizer.name")), settings.get("flatness.weight") or 0.0
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
    """@@FIX The dotted paths in which some of the runs' settings differ, where they were written left
    out.
    """
    found = [one.settings for one in origins]
    return [
        path
        for path in dict.fromkeys(key for one in found for key in one)
        if len({repr(one.get(path)) for one in found}) > 1
    ]
