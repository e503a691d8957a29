"""What a design cannot tell, said before it is run: settings that never vary apart from each other,
and cells with one run.

A setting is fixed by another where it has one value for each of the other's. What a choice brings
with it by its nature is not reported: the other fields of an optimiser's block, of a model, of a
data set; the number of steps where the rows that are seen stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from evilspectra.config.loading import NOT_IDENTITY
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import flat
from evilspectra.errors import listing

#: Section → the setting in it that the others belong to.
_HEADS = {
    "optimizer": "optimizer.name",
    "model": "model.base",
    "data": "data.train",
    "schedule": "schedule.name",
    "flatness": "flatness.weight",
}
#: What does not change what is computed, or only in the last digits.
_ASIDE = {
    *(
        "data.control",
        "data.local_files_only",
        "model.device",
        "model.device_map",
        "model.gradient_checkpointing",
        "model.local_files_only",
    ),
    *(
        "monitor.every",
        "train.accumulation",
        "train.checkpoints",
        "train.packed",
        "train.resume_every",
        "train.threads",
    ),
}
_SEED, _LR, _NAME = "train.seed", "optimizer.lr", "optimizer.name"


def varied(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Setting → its value in every config, of the settings that are not the same in all; None where
    an optimiser has no such setting.

    >>> from evilspectra.config.loading import build
    >>> varied([build({"train": {"seed": seed}}) for seed in (0, 1)])
    {'train.seed': [0, 1]}
    """
    rows = [flat(config.model_dump(mode="json", exclude={"output": True})) for config in configs]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {
        name: values
        for name, values in columns.items()
        if any(value != values[0] for value in values)
    }


def cautions(configs: Sequence[Config]) -> tuple[str, ...]:
    """The sentences on a design, in a fixed order; none where there is nothing to say."""
    found = varied(configs)
    codes = {
        name: [repr(value) for value in values]
        for name, values in found.items()
        if name not in _ASIDE
    }
    return (*_aliased(codes, configs), *_own_rates(codes), *_unreplicated(configs))


def _aliased(codes: Mapping[str, Sequence[str]], configs: Sequence[Config]) -> list[str]:
    sentences = []
    for one, two in combinations(
        [name for name in codes if name != _LR and not _belongs(name, codes)], 2
    ):
        if {one, two} == {"train.batch_size", "train.steps"} and len(
            {config.train.batch_size * (config.train.steps or 0) for config in configs}
        ) == 1:
            continue
        forth, back = _fixes(codes[one], codes[two]), _fixes(codes[two], codes[one])
        if forth and back:
            sentences.append(
                f"{one} and {two} always change together, so what either of them does cannot be "
                "told apart: cross them, or conclude about the two as one"
            )
        elif forth or back:
            inner, outer = (two, one) if forth else (one, two)
            sentences.append(
                f"{inner} never varies apart from {outer}: each value of {outer} has one value of "
                f"{inner}, so compare the values of {outer} within one {inner}"
            )
    if _LR in codes and not _rate_of_its_own(codes):
        others = [name for name in codes if name not in (_LR, _NAME) and not _belongs(name, codes)]
        if same := [
            name
            for name in others
            if _fixes(codes[name], codes[_LR]) and _fixes(codes[_LR], codes[name])
        ]:
            sentences.append(
                f"{_LR} and {listing(same)} always change together, so what either of them does "
                "cannot be told apart: cross them, or conclude about the two as one"
            )
    return sentences


def _own_rates(codes: Mapping[str, Sequence[str]]) -> list[str]:
    """One learning rate per optimiser is how optimisers are compared; what that comparison then
    means is worth a sentence.
    """
    if _rate_of_its_own(codes):
        return [
            (
                "each optimiser has one learning rate of its own, so optimisers are compared at "
                "these rates: `evilspectra tune` finds each one's best, and losses should be set "
                "beside the results"
            )
        ]
    return []


def _rate_of_its_own(codes: Mapping[str, Sequence[str]]) -> bool:
    return _LR in codes and _NAME in codes and _fixes(codes[_NAME], codes[_LR])


def _belongs(name: str, codes: Mapping[str, Sequence[str]]) -> bool:
    """Whether a setting comes with the choice that heads its section."""
    head = _HEADS.get(name.split(".")[0])
    return (
        head is not None
        and name != head
        and head in codes
        and name != _LR
        and _fixes(codes[head], codes[name])
    )


def _fixes(outer: Sequence[str], inner: Sequence[str]) -> bool:
    """Whether every value of `outer` goes with one value of `inner`."""
    return len(set(zip(outer, inner, strict=True))) == len(set(outer))


def _unreplicated(configs: Sequence[Config]) -> list[str]:
    exclude = {
        **NOT_IDENTITY,
        "model": {"local_files_only"},
        "data": {"local_files_only", "control"},
        "train": {"resume_every", "seed"},
    }
    runs = Counter(config.model_dump_json(exclude=exclude) for config in configs)
    single = sum(count == 1 for count in runs.values())
    if single == len(runs):
        return [
            (
                "there is one run per cell, so the spread between seeds stays unknown: --seeds 3 "
                "gives every cell three"
            )
        ]
    if single:
        return [
            (
                f"{single} of {len(runs)} cells have one run, so their spread between seeds stays "
                "unknown"
            )
        ]
    return []
