"""The X-ray of an adapter: the spectrum of every update, its measures, and the skipped tensors.

Needs neither torch nor a base model. `--base` adds measures that need the base weight: the size of
ΔW relative to W, intruder dimensions, and ΔW itself where scale·B·A is not all of it (DoRA);
`initial`, the adapter before training, gives ΔW for PiSSA and similar methods.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evilspectra.errors import listing
from evilspectra.spectra import measures
from evilspectra.spectra.delta import delta_weight, minus_initial
from evilspectra.spectra.intruders import BaseComparison, compare_with_base
from evilspectra.spectra.peft_files import AdapterFolder, Module, Part, changes_base
from evilspectra.spectra.values_numpy import (
    Matrix,
    StreamedSpectrum,
    side_by_side,
    streamed_spectrum,
)
from evilspectra.text import printable

MEASURES = ("stable_rank", "spectral_entropy", "condition_number", "frobenius_nuclear", "frobenius")
#: The settings of an adapter's config that are shown.
_SETTINGS = (
    "peft_type",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "modules_to_save",
    "lora_dropout",
    "bias",
    "peft_version",
)


@dataclass(frozen=True)
class ModuleXray:
    """The X-ray of one module.

    `singular_values` are ΔW's ("delta") or those of scale·B·A alone ("BA only"), as `part` says;
    measures are None where the update is zero, and the condition number where σ_k = 0 too.
    `layer`: the first number in its path; `projection`: the end of it; `against_base`: what the
    base weight tells.
    """

    name: str
    layer: int | None
    projection: str
    shape: tuple[int, int]
    rank: int
    dtype: str
    part: Part
    route: str
    singular_values: Matrix
    stable_rank: float | None
    spectral_entropy: float | None
    condition_number: float | None
    frobenius_nuclear: float | None
    frobenius: float
    against_base: BaseComparison | None = None


@dataclass(frozen=True)
class Xray:
    """The X-ray of one adapter.

    `skipped`: (tensor or module, why); `notes`: sentences on what the values are.
    """

    label: str
    folder: Path
    config: Mapping[str, Any]
    modules: tuple[ModuleXray, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def part(self) -> Part:
        return "BA only" if any(module.part == "BA only" for module in self.modules) else "delta"

    def mean(
        self, chosen: Callable[[ModuleXray], bool] = lambda module: True
    ) -> dict[str, float | None]:
        """The mean of each measure over (some) modules, of the condition number the median.

        Undefined measures are left out.
        """
        return mean([module for module in self.modules if chosen(module)])


def mean(modules: Iterable[ModuleXray]) -> dict[str, float | None]:
    """As `Xray.mean`."""
    means: dict[str, float | None] = {}
    modules = list(modules)
    for name in MEASURES:
        defined = [value for module in modules if (value := getattr(module, name)) is not None]
        average = np.median if name == "condition_number" else np.mean
        means[name] = float(average(defined)) if defined else None
    return means


def xray(
    label: str,
    adapter: AdapterFolder,
    initial: AdapterFolder | None = None,
    weight: Callable[[Module], Matrix] | None = None,
    leading: int = 10,
    threshold: float = 0.5,
    note: Callable[[str], object] = lambda text: None,
) -> Xray:
    """Computes the spectra of an adapter.

    Args:
        initial: the same adapter before training, where PiSSA or one of its like took a product out
            of the base.
        weight: reads the base weight of a module, d_out × d_in.
        leading: directions of W + ΔW to look at for intruders.
        threshold: |cosine| below which a direction is an intruder.
        note: takes a line on progress, where there is a base.

    Raises:
        BadInput: a factor that is not finite, or a module that `initial` or the base lacks.
    """
    modules = minus_initial(adapter, initial) if initial else adapter.modules
    fan_in_fan_out = bool(adapter.settings.get("fan_in_fan_out"))

    def examine(module: Module) -> ModuleXray:
        spectrum = streamed_spectrum(module)
        if weight is None or not _base_gives_delta(module, adapter):
            return _module(spectrum)
        base = weight(module)
        if fan_in_fan_out and base.shape[0] == base.shape[1]:  # shapes do not show it
            base = base.T
        return _with_base(spectrum, base, leading, threshold)

    examined = []
    for number, module in enumerate(side_by_side(examine, modules), start=1):
        examined.append(module)
        if weight is not None:
            note(f"[{number}/{len(modules)}] {module.name}")
    settings = {key: adapter.settings.get(key) for key in _SETTINGS}
    return Xray(
        label,
        adapter.folder,
        {key: value for key, value in settings.items() if value is not None},
        tuple(examined),
        adapter.skipped,
        _notes(adapter, examined, weight is not None),
    )


def _base_gives_delta(module: Module, adapter: AdapterFolder) -> bool:
    """Whether ΔW is known once the base weight is: of LoRA, or of DoRA on the base itself."""
    if module.part == "delta":
        return True
    init = adapter.settings.get("init_lora_weights")
    return module.magnitude is not None and not changes_base(init)


def _module(spectrum: StreamedSpectrum) -> ModuleXray:
    module, values = spectrum.module, spectrum.values
    r, d_in, d_out = module.shape
    layer, projection = layer_and_projection(module.name)
    measured: dict[str, float | None] = dict.fromkeys(MEASURES)
    if values[0] > 0:
        measured = {name: _number(getattr(measures, name)(values)) for name in MEASURES}
    measured["frobenius"] = float(measures.frobenius(values))
    return ModuleXray(
        module.name,
        layer,
        projection,
        (d_out, d_in),
        r,
        module.down.entry.dtype,
        spectrum.part,
        spectrum.route,
        values,
        **measured,  # type: ignore[arg-type]
    )


def _with_base(
    spectrum: StreamedSpectrum,
    base: Matrix,
    leading: int,
    threshold: float,
) -> ModuleXray:
    """The X-ray of a module with its base weight; of DoRA the values are then those of ΔW."""
    module = spectrum.module
    change = delta_weight(module, base)
    if module.magnitude is not None:
        spectrum = replace(spectrum, values=np.linalg.svd(change, compute_uv=False), part="delta")
    comparison = compare_with_base(module.name, base, change, leading, threshold)
    return replace(_module(spectrum), against_base=comparison)


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def layer_and_projection(name: str) -> tuple[int | None, str]:
    """The layer of a module and its projection.

    The layer is the first number in the path; the projection is the end of the path, with the
    number that it may end in.

    >>> layer_and_projection("model.layers.12.mlp.experts.3.up_proj")
    (12, 'up_proj')
    >>> layer_and_projection("blocks.0.to_out.0"), layer_and_projection("lm_head")
    ((0, 'to_out.0'), (None, 'lm_head'))
    """
    parts = name.split(".")
    layer = next((int(part) for part in parts if re.fullmatch(r"[0-9]{1,6}", part)), None)
    return layer, ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _notes(
    adapter: AdapterFolder, modules: Sequence[ModuleXray], with_base: bool
) -> tuple[str, ...]:
    notes = []
    if not adapter.settings:
        notes.append(
            "no adapter_config.json lies beside the file, so the scale is unknown and taken as 1: "
            "norms are those of B·A; measures of the spectrum's form do not depend on it"
        )
    elif any(module.part == "BA only" for module in modules):
        why = _why_ba_only(adapter)
        notes.append(f"BA only: these are the values of scale·B·A, and ΔW is more than that: {why}")
    if with_base and any(module.against_base is None for module in modules):
        notes.append(
            "what is BA only is not compared with the base: "
            "W + scale·B·A is not the weight that was trained"
        )
    if zero := sum(1 for module in modules if module.frobenius == 0):
        notes.append(f"{zero} of {len(modules)} updates are zero, and count in no mean")
    return tuple(notes)


def _why_ba_only(adapter: AdapterFolder) -> str:
    if any(module.magnitude is not None for module in adapter.modules):
        return "DoRA rescales the rows of W + scale·B·A (--base MODEL gives ΔW)"
    init = printable(str(adapter.settings.get("init_lora_weights")), 40)
    if not changes_base(init):
        return "a variant of LoRA adds to it"
    return (
        f"init_lora_weights {init} takes a part out of the base "
        "(--initial FOLDER, the adapter before training, gives ΔW)"
    )


def names(skipped: Sequence[tuple[str, str]]) -> str:
    """The tensors and modules that were skipped, by reason, in a sentence."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped:
        reasons.setdefault(reason, []).append(name)
    return "; ".join(f"{listing(which, 3)}: {reason}" for reason, which in reasons.items())
