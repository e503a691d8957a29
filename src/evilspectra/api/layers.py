"""Settings of a call as layers: what the caller gives, and what the function's options add."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from evilspectra.api.arguments import Settings, settings_mapping

#: Assignments as texts, or nested mappings; a later layer is laid over an earlier one.
Layers: TypeAlias = list[str | Mapping[str, Any]]


def layers(settings: Settings, argument: str = "settings") -> Layers:
    """The caller's settings. Texts are read later, where their source is known.

    Raises:
        BadInput: neither a mapping nor assignments.

    >>> layers({"train.steps": 3}), layers(["train.steps=3"])
    ([{'train': {'steps': 3}}], ['train.steps=3'])
    """
    if isinstance(settings, str):
        return [settings]
    if isinstance(settings, Iterable) and not isinstance(settings, Mapping):
        texts = list(settings)
        if all(isinstance(text, str) for text in texts):
            return [*texts]
        settings = texts
    return [settings_mapping(settings, argument)]


def assigned(values: Mapping[str, Any]) -> list[str]:
    """Options as assignments, without those that are None.

    >>> assigned({"checkpoints": True, "contrast": None})
    ['checkpoints=true']
    """
    return [
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
        if value is not None
    ]
