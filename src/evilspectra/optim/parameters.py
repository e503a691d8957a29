"""The parameters of an optimiser: tensors, or (name, tensor) pairs as of `named_parameters`.

Parameters that cannot be trained are refused by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from evilspectra.errors import BadInput, listing

#: What torch's optimisers take as well: all named, or none.
Parameters = list[Tensor] | list[tuple[str, Tensor]]


def listed(parameters: Iterable[Any], who: str) -> list[Any]:
    """The parameters, or parameter groups, as a list.

    Raises:
        BadInput: there are none, a bare tensor is passed, or one is there twice (a tied weight,
            which would be moved twice a step).

    >>> listed([("a", w := Tensor([1.0])), ("b", w)], "sgd")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    evilspectra.errors.BadInput: sgd: one tensor is passed twice, as a, b: pass tied weights ...
    """
    if isinstance(parameters, Tensor):
        raise BadInput(
            f"{who}: parameters must be a list, not one tensor of shape "
            f"{tuple(parameters.shape)}: put it in brackets"
        )
    entries = list(parameters)
    if not entries:
        raise BadInput(
            f"{who}: there are no parameters to train: adapt some layer (lora.targets), or pass "
            "those with requires_grad"
        )
    tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
    counts = Counter(map(id, tensors))
    twice = [index for index, tensor in enumerate(tensors) if counts[id(tensor)] > 1]
    if twice:
        names = [
            entry[0] if isinstance(entry := entries[index], tuple) else f"parameter {index}"
            for index in twice
        ]
        raise BadInput(
            f"{who}: one tensor is passed twice, as {listing(names, 4)}: pass tied weights once, "
            "or they would be moved twice a step"
        )
    return entries


def with_list(param_group: dict[str, Any], who: str) -> dict[str, Any]:
    """The group with its `params` as a checked list.

    A single tensor and a set, which torch refuses, are left to torch.
    """
    parameters = param_group["params"]
    if isinstance(parameters, Tensor | set):
        return param_group
    return {**param_group, "params": listed(parameters, who)}


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """The value of a step's `closure`, evaluated with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def names_of(group: dict[str, Any]) -> list[str]:
    """Names of a group's parameters; `parameter <number>` where they have none."""
    if names := group.get("param_names"):
        return list(names)
    return [f"parameter {index}" for index in range(len(group["params"]))]
