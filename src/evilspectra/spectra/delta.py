"""ΔW of adapters for which it is not just scale·B·A, if the missing part is supplied; no torch.

| adapter | ΔW | needs |
|---|---|---|
| PiSSA, OLoRA, CorDA, LoRA-GA | scale·(B·A − B₀·A₀) | the initial factors: a pair of rank 2r |
| DoRA | m ⊙ (W + scale·B·A)/‖W + scale·B·A‖ (by rows) − W | the base weight: of full rank |

The former store W − scale·B₀·A₀ in the base; A₀ and B₀ are those of the adapter before training,
saved right after initialisation. Their ΔW has factors [B, −B₀] and [A; A₀], so all of `spectra/`
applies to it; DoRA's needs a dense SVD. Sources: PiSSA (arXiv 2404.02948), DoRA (arXiv 2402.09353),
as PEFT computes them. Without the missing part the result stays "BA only".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evilspectra.errors import BadInput
from evilspectra.spectra.peft_files import INITIAL_PRODUCT, AdapterFolder, Factor, Module
from evilspectra.spectra.safetensors_files import Entry
from evilspectra.spectra.values_numpy import Matrix, orthogonal


@dataclass(frozen=True)
class Joined(Factor):
    """A factor and `sign` times another, one after the other along `axis`."""

    other: Factor
    axis: int
    sign: float

    @property
    def entry(self) -> Entry:
        entry = self.file.entries[self.key]
        shape = list(entry.shape)
        shape[self.axis] += self.other.entry.shape[self.axis]
        return Entry(entry.dtype, tuple(shape), entry.start, entry.stop)

    def wide(self) -> NDArray[np.float64]:
        return np.concatenate(
            [self.file.wide(self.key), self.sign * self.other.wide()], axis=self.axis
        )

    def blocks(self, axis: int) -> Iterator[NDArray[np.float64]]:
        yield self.wide()


def minus_initial(adapter: AdapterFolder, initial: AdapterFolder) -> tuple[Module, ...]:
    """Subtracts the adapter before training, module by module; ranks are up to twice the adapter's.

    Args:
        adapter: one that took an initial product out of the base.
        initial: the same adapter before training, matched by the modules' names.

    Raises:
        BadInput: an adapter that takes nothing out of the base, or no fixed product (DoRA, LoftQ);
            a module that `initial` lacks, or has with another shape or scale.
    """
    _refuse_without_initial_product(adapter)
    before = {module.name: module for module in initial.modules}
    modules = []
    for module in adapter.modules:
        other = before.get(module.name)
        if other is None:
            raise BadInput(
                f"{module.name} has no initial factors in {initial.folder}: "
                "name the folder of the same adapter before training"
            )
        if (other.shape[1:], other.scale) != (module.shape[1:], module.scale):
            raise BadInput(
                f"the initial factors of {module.name} are {other.shape} with scale "
                f"{other.scale:g}, the trained ones {module.shape} with scale {module.scale:g}: "
                "they belong to different adapters"
            )
        down = Joined(module.down.file, module.down.key, other.down, axis=0, sign=1.0)
        up = Joined(module.up.file, module.up.key, other.up, axis=1, sign=-1.0)
        modules.append(replace(module, down=down, up=up, part="delta"))
    return tuple(modules)


def delta_weight(module: Module, base: Matrix) -> Matrix:
    """Computes ΔW in full, d_out × d_in, float64; of a DoRA module the norms are those of rows.

    Args:
        module: one of plain LoRA, of DoRA, or one that `minus_initial` returned.
        base: W, d_out × d_in, float64.

    Raises:
        BadInput: a base or a magnitude of another shape, or a value that is not finite.
    """
    update = orthogonal(module).product()
    if base.shape != update.shape:
        raise BadInput(
            f"the base weight of {module.name} is {base.shape[0]} × {base.shape[1]}, "
            f"its update {update.shape[0]} × {update.shape[1]}: "
            "name the base that the adapter was trained on"
        )
    if module.magnitude is None:
        return update
    magnitude = module.magnitude.wide().reshape(-1, 1)
    if len(magnitude) != len(base) or not np.isfinite(magnitude).all():
        raise BadInput(
            f"the magnitude of {module.name} must be {len(base)} finite numbers: "
            "the adapter is damaged; save it again"
        )
    moved = base + update
    return magnitude * moved / np.linalg.norm(moved, axis=1, keepdims=True) - base


def _refuse_without_initial_product(adapter: AdapterFolder) -> None:
    init = adapter.settings.get("init_lora_weights")
    fixed = isinstance(init, str) and init.lower().startswith(INITIAL_PRODUCT)
    if not fixed or any(module.magnitude is not None for module in adapter.modules):
        raise BadInput(
            f"{adapter.folder} was not made by PiSSA, OLoRA, CorDA or LoRA-GA "
            f"(init_lora_weights is {ascii(init)[:40]}), so it has no initial product: "
            "leave --initial out"
        )
