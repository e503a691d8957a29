"""An optimiser of the user's own: any subclass of torch.optim.Optimizer, by import path.

The class gets the parameters, `lr` and the settings of the config. With an attribute
`named_parameters = True` it gets (name, tensor) pairs instead of tensors. A group's learning rate
keeps its ratio to `lr` under the schedule. No torch here before a class is imported.
"""

from __future__ import annotations

import math
from typing import Any

from evilspectra.classes import OwnClass, check_arguments, explained, import_class
from evilspectra.config.optimizers import Custom, OptimizerConfig
from evilspectra.config.sections import Config
from evilspectra.errors import BadInput

_SETTING = "optimizer.class"


def pinned(config: Config, files: tuple[str, ...] | None = None) -> Config:
    """The config with the qualified name and the source's sha256 of the optimiser's class.

    A config with an optimiser of this package is returned unchanged. `files`: which files name the
    class, if others than the config says.

    Raises:
        BadInput: the class cannot be used, or its source is not the one that the config names.
    """
    optimizer = config.optimizer
    if not isinstance(optimizer, Custom):
        return config
    if files is not None:
        optimizer = optimizer.with_files(files)
    own = own_class(optimizer)
    changes = {"class": own.path, "sha256": own.sha256}
    return config.model_copy(update={"optimizer": optimizer.model_copy(update=changes)})


def own_class(optimizer: Custom) -> OwnClass:
    """The class of a config block.

    Raises:
        BadInput: as `pinned`.
    """
    who = f"{_SETTING} '{optimizer.path}'"
    own = import_class(optimizer.path, _SETTING, optimizer.version, optimizer.named_by)
    if not any(_is_torchs(base) for base in own.cls.__mro__):
        raise BadInput(f"{who} is no subclass of torch.optim.Optimizer: make it one")
    if optimizer.sha256 is not None and optimizer.sha256 != own.sha256:
        raise BadInput(
            f"{who}: its source here has sha256 {(own.sha256 or 'none')[:12]}, and this run is of "
            f"the source with {optimizer.sha256[:12]}: use the same file everywhere, or leave "
            "optimizer.sha256 out for a new run"
        )
    return own


def build_own(optimizer: Custom, parameters: list[Any]) -> Any:
    """Makes an instance of the class over tensors or (name, tensor) pairs.

    Raises:
        BadInput: it refuses the settings, or has groups without a rate.
    """
    own, who = own_class(optimizer), f"{_SETTING} '{optimizer.path}'"
    if not getattr(own.cls, "named_parameters", False):
        parameters = [entry[1] if isinstance(entry, tuple) else entry for entry in parameters]
    check_arguments(own.cls, who, parameters, lr=optimizer.lr, **optimizer.settings)
    try:
        built: Any = own.cls(parameters, lr=optimizer.lr, **optimizer.settings)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{who} refuses its settings: {explained(error)}") from None
    held = sum(len(group["params"]) for group in built.param_groups)
    if held != len(parameters):
        raise BadInput(
            f"{who} holds {held} of {len(parameters)} parameters: pass all of them on to "
            "torch.optim.Optimizer"
        )
    relative_rates(built, optimizer)
    return built


def relative_rates(built: Any, optimizer: OptimizerConfig) -> list[float]:
    """The ratio of every group's learning rate to the config's; 1 but for a user's own class.

    Raises:
        BadInput: a group has no rate, so that a schedule would not reach it.
    """
    if not isinstance(optimizer, Custom):
        return [1.0] * len(built.param_groups)
    ratios = []
    for group in built.param_groups:
        try:
            ratio = float(group["lr"]) / optimizer.lr
        except (KeyError, TypeError, ValueError):
            ratio = math.nan
        if not math.isfinite(ratio) or ratio < 0:
            raise BadInput(
                f"{_SETTING} '{optimizer.path}' has a parameter group without a learning rate, "
                "which a schedule could not reach: give every group an lr, and read it in step"
            )
        ratios.append(ratio)
    return ratios


def _is_torchs(cls: type) -> bool:
    return (cls.__module__, cls.__qualname__) == ("torch.optim.optimizer", "Optimizer")
