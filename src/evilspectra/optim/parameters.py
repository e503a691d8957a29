"""What an optimiser is given: tensors, or (name, tensor) pairs as `named_parameters` gives them; what is refused, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from evilspectra.errors import BadInput, listing

#: What torch's optimisers take as well: all named, or none.
Parameters = list[Tensor] | list[tuple[str, Tensor]]


def listed(parameters: Iterable[Any], who: str) -> list[Any]:
    """The parameters, or parameter groups, as a list.

    Raises:
        BadInput: there are none, a bare tensor is given, or one is there twice (a tied weight, which would be moved twice a step).

    >>> listed([("a", w := Tensor([1.0])), ("b", w)], "sgd")
    Traceback (most recent call last):
    evilspectra.errors.BadInput: sgd: one tensor is given twice, as a, b: give tied weights once, or they would be moved twice a step
    """
    if isinstance(parameters, Tensor):
        raise BadInput(
            f"{who}: parameters come as a list, not as one tensor of shape {tuple(parameters.shape)}: put it in brackets"
        )
    items = list(parameters)
    if not items:
        raise BadInput(
            f"{who}: there are no parameters to train: adapt some layer (lora.targets), or pass those with requires_grad"
        )
    tensors = [item[1] if isinstance(item, tuple) else item for item in items]
    counts = Counter(map(id, tensors))
    twice = [place for place, tensor in enumerate(tensors) if counts[id(tensor)] > 1]
    if twice:
        shown = [
            item[0] if isinstance(item := items[place], tuple) else f"parameter {place}"
            for place in twice
        ]
        raise BadInput(
            f"{who}: one tensor is given twice, as {listing(shown, 4)}: give tied weights once, or they would be moved twice a step"
        )
    return items


def with_list(param_group: dict[str, Any], who: str) -> dict[str, Any]:
    """The group with its `params` as a checked list; a single tensor and a set, which torch refuses, are left to torch."""
    given = param_group["params"]
    return (
        param_group
        if isinstance(given, Tensor | set)
        else {**param_group, "params": listed(given, who)}
    )


def names_of(group: dict[str, Any]) -> list[str]:
    """Names of a group's parameters; `parameter <place>` where they were given without."""
    return list(
        group.get("param_names") or (f"parameter {place}" for place in range(len(group["params"])))
    )
