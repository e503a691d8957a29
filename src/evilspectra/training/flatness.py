"""The flatness penalty in a training step, as the config's section `flatness` sets it."""

from __future__ import annotations

from collections.abc import Sequence

from evilspectra.config.sections import FlatnessConfig
from evilspectra.spectra.grams import Grams
from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.penalty import (
    Flatness,
    add_flatness_gradient,
    decay_flatness,
    weight_at,
)


def penalise(
    pairs: Sequence[LoraPair],
    settings: FlatnessConfig,
    step: int,
    lr: float,
    grams: Grams | None = None,
) -> tuple[Flatness, float]:
    """Flatness and its weight λ, after the penalty was applied to the pairs.

    The penalty is added to the gradients, or, decoupled, taken off the factors at the learning rate
    `lr`. `step`: steps that are finished; `grams`: of `enqueue`, started earlier in the step, for
    the gradient alone.

    Raises:
        BadInput: as for `add_flatness_gradient`.
    """
    weight = weight_at(settings.weight, settings.warmup_steps, step)
    fields = settings.model_dump(include={"soft_start", "measure", "recipe", "products"})
    if settings.coupling == "decoupled":
        return decay_flatness(pairs, weight, lr, **fields), weight
    return add_flatness_gradient(pairs, weight, grams=grams, **fields), weight
