"""ΔW of adapters that took an initial product out of the base: scale·(B·A − B₀·A₀), as factors [B, −B₀] and [A; A₀], still in their files.

What `exact.minus_initial` does with tensors. PiSSA (arXiv 2404.02948), OLoRA, CorDA and LoRA-GA store W − scale·B₀·A₀ in the base; A₀ and B₀ are
those of the adapter before training, saved right after it was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evilspectra.errors import BadInput
from evilspectra.spectra.peft_files import AdapterFolder, Factor, Module
from evilspectra.spectra.safetensors_files import Entry


@dataclass(frozen=True)
class Joined(Factor):
    """A factor and `sign` times another, one after the other along `axis`."""

    other: Factor
    axis: int
    sign: float

    @property
    def entry(self) -> Entry:
        one, two = self.file.entries[self.key], self.other.entry
        shape = list(one.shape)
        shape[self.axis] += two.shape[self.axis]
        return Entry(one.dtype, tuple(shape), one.start, one.stop)

    def wide(self) -> NDArray[np.float64]:
        return np.concatenate(
            [self.file.wide(self.key), self.sign * self.other.wide()], axis=self.axis
        )

    def blocks(self, axis: int) -> Iterator[NDArray[np.float64]]:
        yield self.wide()


def minus_initial(adapter: AdapterFolder, initial: AdapterFolder) -> tuple[Module, ...]:
    """The modules of an adapter less those of the same adapter before training, of up to twice the rank.

    Raises:
        BadInput: an adapter that takes nothing out of the base, or no fixed product (DoRA, LoftQ); a module that `initial` lacks, or has with another shape or scale.
    """
    how = adapter.settings.get("init_lora_weights")
    if (
        not isinstance(how, str)
        or not how.lower().startswith(("pissa", "olora", "corda", "lora_ga"))
        or any(module.magnitude is not None for module in adapter.modules)
    ):
        raise BadInput(
            f"{adapter.folder} was not made by PiSSA, OLoRA, CorDA or LoRA-GA (init_lora_weights is {ascii(how)[:40]}), so it has no initial product: leave --initial out"
        )
    before = {module.name: module for module in initial.modules}
    found = []
    for module in adapter.modules:
        other = before.get(module.name)
        if other is None:
            raise BadInput(
                f"{module.name} has no initial factors in {initial.folder}: name the folder of the same adapter before training"
            )
        if (other.shape[1:], other.scale) != (module.shape[1:], module.scale):
            raise BadInput(
                f"the initial factors of {module.name} are {other.shape} with scale {other.scale:g}, the trained ones {module.shape} with scale {module.scale:g}: they belong to different adapters"
            )
        down = Joined(module.down.file, module.down.key, other.down, 0, 1.0)
        up = Joined(module.up.file, module.up.key, other.up, 1, -1.0)
        found.append(replace(module, down=down, up=up, part="delta"))
    return tuple(found)
