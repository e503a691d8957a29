"""Steps of an optimiser of the user's own: guarded, and checked to resume to the same bytes.

Whatever decides a step must be in `state_dict`, because a resumed run has nothing else. So the
second step is taken twice: by the optimiser, and by a new instance that loaded its saved state. If
their parameters differ in a single bit, the run fails and says so. The check sees what matters in
the second step; an attribute that begins to matter later escapes it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evilspectra.classes import explained
from evilspectra.config.optimizers import Custom
from evilspectra.errors import EvilspectraError, RunFailed
from evilspectra.optim.build import build_optimizer

Named = Sequence[tuple[str, Tensor]]


def own_step(config: Custom, optimizer: torch.optim.Optimizer, named: Named, number: int) -> None:
    """Takes a step, the second one twice.

    Raises:
        RunFailed: the class raised an error, left a parameter that is not finite, or would not
            resume to the same bytes.
    """
    twin = _Twin(config, optimizer, named) if number == 2 else None
    _guarded(config, number, optimizer)
    if not all(bool(tensor.detach().isfinite().all()) for _, tensor in named):
        raise RunFailed(
            f"step {number}: optimizer.class '{config.path}' left parameters that are not finite; "
            f"lower optimizer.lr ({config.lr:g}), or correct its step"
        )
    if twin:
        twin.check(named)


def storable(config: Custom, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state as a resumed run reads it.

    Raises:
        RunFailed: it holds something that a resume state cannot.
    """
    file = io.BytesIO()
    try:
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        return torch.load(file, weights_only=True)
    except Exception as error:
        raise RunFailed(
            f"optimizer.class '{config.path}' has a state_dict that a resumed run could not read "
            f"({explained(error)}): keep tensors, numbers, texts, lists and dicts in it"
        ) from None


def _guarded(config: Custom, number: int, optimizer: torch.optim.Optimizer) -> None:
    try:
        optimizer.step()
    except (EvilspectraError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise RunFailed(
            f"step {number}: optimizer.class '{config.path}' failed: {explained(error)}"
        ) from None


class _Twin:
    """An optimiser made from the saved state, and copies of parameters and gradients."""

    def __init__(self, config: Custom, optimizer: torch.optim.Optimizer, named: Named) -> None:
        self.config = config
        self.state = storable(config, optimizer)
        self.random = _random_state()
        self.named = [(name, torch.nn.Parameter(tensor.detach().clone())) for name, tensor in named]
        for (_, copy), (_, tensor) in zip(self.named, named, strict=True):
            copy.grad = None if tensor.grad is None else tensor.grad.detach().clone()

    def check(self, named: Named) -> None:
        """Takes the step from the saved state, and compares."""
        after = _random_state()
        try:
            optimizer = build_optimizer(self.config, self.named)
            optimizer.load_state_dict(self.state)
            _set_random_state(self.random)
            _guarded(self.config, 2, optimizer)
        except (MemoryError, torch.OutOfMemoryError, RunFailed):
            raise
        except Exception as error:
            raise RunFailed(
                f"optimizer.class '{self.config.path}' cannot load its own state_dict: "
                f"{explained(error)}"
            ) from None
        finally:
            _set_random_state(after)
        different = [
            name
            for (name, copy), (_, tensor) in zip(self.named, named, strict=True)
            if not torch.equal(copy, tensor)
        ]
        if different:
            raise RunFailed(
                f"optimizer.class '{self.config.path}' would not resume to the same result: its "
                f"second step from a saved state moves {different[0]} elsewhere; keep all that "
                "decides a step in self.state or in param_groups, and draw at random with torch's "
                "own generator only"
            )


def _random_state() -> tuple[Tensor, list[Tensor]]:
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), cards


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
