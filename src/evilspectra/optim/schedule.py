"""The factor on the learning rate at each step: linear warm-up, then cosine, linear or constant."""

from __future__ import annotations

import math

from evilspectra.config.sections import ScheduleConfig


def lr_at(config: ScheduleConfig, step: int, total: int) -> float:
    """Factor in [0, 1] for the step after `step` finished ones, of `total`.

    It is that of Hugging Face's schedules, so the first warm-up step has lr 0.

    >>> config = ScheduleConfig(name="linear", warmup_steps=2)
    >>> [round(lr_at(config, step, 6), 2) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    warmup = config.warmup_steps
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1, total - warmup)
    match config.name:
        case "cosine":
            return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))
        case "linear":
            return max(0.0, 1 - done)
        case "constant":
            return 1.0
