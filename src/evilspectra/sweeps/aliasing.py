"""Warnings about a design before it is run: aliased settings, and cells with one run.

Two settings are aliased if one never varies apart from the other. A setting is fixed by another if
it has one value for each of the other's. Settings that change with a choice by necessity are not
reported: the other fields of an optimiser's block, of a model, of a data set; the number of steps
if the rows stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from evilspectra.config.loading import NOT_IDENTITY
from evilspectra.config.optimizers import label
from evilspectra.config.sections import Config
from evilspectra.config.yaml_files import flat
from evilspectra.errors import listing

#: Section → the setting in it that determines the others.
_HEADS = {
    "optimizer": "optimizer.name",
    "model": "model.base",
    "data": "data.train",
    "schedule": "schedule.name",
    "flatness": "flatness.weight",
}
#: Settings that do not change what is computed, or only its last digits.
_ASIDE = {
    *(
        "data.control",
        "data.local_files_only",
        "model.device",
        "model.device_map",
        "model.gradient_checkpointing",
        "model.local_files_only",
    ),
    *("optimizer.class", "optimizer.sha256", "optimizer.version"),
    *(
        "monitor.every",
        "train.accumulation",
        "train.checkpoints",
        "train.packed",
        "train.resume_every",
        "train.threads",
    ),
}
_LR, _NAME = "optimizer.lr", "optimizer.name"


def varied(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """Maps each setting that varies to its value in every config.

    The value is None where an optimiser has no such setting.

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
    """The sentences on a design, in a fixed order; empty where there is nothing to report."""
    columns = varied(configs)
    labels = [label(config.optimizer) for config in configs]
    if len(set(labels)) > 1:  # two classes of the user's own are two optimisers
        columns = columns | {_NAME: labels}
    codes = {
        name: [repr(value) for value in values]
        for name, values in columns.items()
        if name not in _ASIDE
    }
    return (*_aliased(codes, configs), *_own_rates(codes), *_unreplicated(configs))


def _aliased(codes: Mapping[str, Sequence[str]], configs: Sequence[Config]) -> list[str]:
    """The sentences on settings that never vary apart from each other."""
    sentences = []
    rows_seen = {config.train.batch_size * (config.train.steps or 0) for config in configs}
    heads = [name for name in codes if name != _LR and not _belongs(name, codes)]
    for first, second in combinations(heads, 2):
        if {first, second} == {"train.batch_size", "train.steps"} and len(rows_seen) == 1:
            continue
        forth = _fixes(codes[first], codes[second])
        back = _fixes(codes[second], codes[first])
        if forth and back:
            sentences.append(_always_together(first, second))
        elif forth or back:
            inner, outer = (second, first) if forth else (first, second)
            sentences.append(
                f"{inner} never varies apart from {outer}: each value of {outer} occurs with one "
                f"value of {inner} only, so compare values of {outer} within one {inner}"
            )
    if _LR in codes and not _one_rate_each(codes):
        others = [name for name in heads if name != _NAME]
        same = [
            name
            for name in others
            if _fixes(codes[name], codes[_LR]) and _fixes(codes[_LR], codes[name])
        ]
        if same:
            sentences.append(_always_together(_LR, listing(same)))
    return sentences


def _always_together(first: str, second: str) -> str:
    return (
        f"{first} and {second} always change together, so their effects cannot be separated: "
        "cross them, or draw conclusions about the two jointly"
    )


def _own_rates(codes: Mapping[str, Sequence[str]]) -> list[str]:
    """The sentence on one learning rate per optimiser.

    This is how optimisers are compared, but what the comparison then means deserves a sentence.
    """
    if not _one_rate_each(codes):
        return []
    return [
        "each optimiser has a single learning rate, so optimisers are compared at these rates: "
        "`evilspectra tune` finds the best one for each, and losses should be reported with the "
        "results"
    ]


def _one_rate_each(codes: Mapping[str, Sequence[str]]) -> bool:
    """Whether every optimiser has a single learning rate."""
    return _LR in codes and _NAME in codes and _fixes(codes[_NAME], codes[_LR])


def _belongs(name: str, codes: Mapping[str, Sequence[str]]) -> bool:
    """Whether a setting is determined by the choice that heads its section."""
    head = _HEADS.get(name.split(".")[0])
    return (
        head is not None
        and name != head
        and head in codes
        and name != _LR
        and _fixes(codes[head], codes[name])
    )


def _fixes(outer: Sequence[str], inner: Sequence[str]) -> bool:
    """Whether every value of `outer` occurs with one value of `inner`."""
    return len(set(zip(outer, inner, strict=True))) == len(set(outer))


def _unreplicated(configs: Sequence[Config]) -> list[str]:
    """The sentence on cells with one run."""
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
                "there is one run per cell, so the spread between seeds remains unknown: --seeds 3 "
                "gives every cell three"
            )
        ]
    if single:
        return [
            (
                f"{single} of {len(runs)} cells have one run, so their spread between seeds "
                "remains unknown"
            )
        ]
    return []
