"""An adapter seen through: the spectrum of every update, its measures, their means, and what was left out. No torch, no base model.

`--base` adds what needs the base weight: how large ΔW is beside W, intruder dimensions, and ΔW itself where scale·B·A is not all of
it (DoRA); `initial`, the adapter before training, does the same for PiSSA and its like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from evilspectra.errors import listing
from evilspectra.spectra import measures
from evilspectra.spectra.initial import minus_initial
from evilspectra.spectra.intruders import Beside, beside, dora_change, product
from evilspectra.spectra.overlap import Overlap, overlap
from evilspectra.spectra.peft_files import AdapterFolder, Module, Part, changes_base
from evilspectra.spectra.values_numpy import (
    Matrix,
    StreamedSpectrum,
    orthogonal,
    side_by_side,
    streamed_spectrum,
)
from evilspectra.text import printable

MEASURES = ("stable_rank", "spectral_entropy", "condition_number", "frobenius_nuclear", "frobenius")
#: What is told of an adapter's config.
_TOLD = (
    *(
        "peft_type",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "init_lora_weights",
    ),
    *(
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "modules_to_save",
        "lora_dropout",
        "bias",
        "peft_version",
    ),
)


@dataclass(frozen=True)
class ModuleXray:
    """One module. `singular_values` are ΔW's ("delta") or those of scale·B·A alone ("BA only"), as `part` says; measures are None where the update is zero, and the condition number where σ_k = 0 too.

    `layer`: the first number in its path; `projection`: the end of it. `beside`: what the base weight tells.
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
    beside: Beside | None = None


@dataclass(frozen=True)
class Xray:
    """One adapter. `skipped`: (tensor or module, why); `notes`: sentences on what the values are."""

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
        """The mean of each measure over (some) modules, of the condition number the median; undefined ones are left out."""
        return mean([module for module in self.modules if chosen(module)])


def mean(modules: Iterable[ModuleXray]) -> dict[str, float | None]:
    """As `Xray.mean`."""
    found: dict[str, float | None] = {}
    kept = list(modules)
    for name in MEASURES:
        values = [value for module in kept if (value := getattr(module, name)) is not None]
        found[name] = (
            (float(np.median(values)) if name == "condition_number" else float(np.mean(values)))
            if values
            else None
        )
    return found


def xray(
    label: str,
    adapter: AdapterFolder,
    initial: AdapterFolder | None = None,
    weight: Callable[[Module], Matrix] | None = None,
    leading: int = 10,
    threshold: float = 0.5,
    note: Callable[[str], object] = lambda text: None,
) -> Xray:
    """The spectra of an adapter.

    Args:
        initial: the same adapter before training, where PiSSA or one of its like took a product out of the base.
        weight: gives the base weight of a module, d_out × d_in.
        leading, threshold: of the intruder dimensions.
        note: takes a line on progress, where there is a base.

    Raises:
        BadInput: a factor that is not finite, or a module that `initial` or the base does not have.
    """
    modules = minus_initial(adapter, initial) if initial else adapter.modules

    def one(module: Module) -> ModuleXray:
        spectrum = streamed_spectrum(module)
        if weight is None or not _known(module, adapter):
            return _module(spectrum)
        base = weight(module)
        turned = (
            bool(adapter.settings.get("fan_in_fan_out")) and base.shape[0] == base.shape[1]
        )  # where the shapes do not tell
        return _with_base(spectrum, base.T if turned else base, leading, threshold)

    found = []
    for number, seen in enumerate(side_by_side(one, modules)):
        found.append(seen)
        if weight is not None:
            note(f"[{number + 1}/{len(modules)}] {seen.name}")
    told = {key: adapter.settings[key] for key in _TOLD if adapter.settings.get(key) is not None}
    return Xray(
        label,
        adapter.folder,
        told,
        tuple(found),
        adapter.skipped,
        _notes(adapter, found, weight is not None),
    )


def _known(module: Module, adapter: AdapterFolder) -> bool:
    """Whether ΔW is known once the base weight is: the update of LoRA, or of DoRA on the base itself."""
    return module.part == "delta" or (
        module.magnitude is not None and not changes_base(adapter.settings.get("init_lora_weights"))
    )


def _module(spectrum: StreamedSpectrum) -> ModuleXray:
    module, values = spectrum.module, spectrum.values
    r, d_in, d_out = module.shape
    layer, projection = layer_and_projection(module.name)
    sized = (
        {name: _number(getattr(measures, name)(values)) for name in MEASURES}
        if values[0] > 0
        else dict.fromkeys(MEASURES)
    )
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
        **sized | {"frobenius": float(measures.frobenius(values))},  # type: ignore[arg-type]
    )


def _with_base(
    spectrum: StreamedSpectrum,
    base: Matrix,
    leading: int,
    threshold: float,
) -> ModuleXray:
    """Beside its base weight; of DoRA the values are ΔW's own then."""
    module = spectrum.module
    change = product(orthogonal(module))
    if module.magnitude is not None:
        change = dora_change(orthogonal(module), module.magnitude.wide(), base)
        spectrum = replace(spectrum, values=np.linalg.svd(change, compute_uv=False), part="delta")
    return replace(_module(spectrum), beside=beside(module.name, base, change, leading, threshold))


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def layer_and_projection(name: str) -> tuple[int | None, str]:
    """The layer of a module (the first number in its path) and its projection (the end of the path, with the number that it may end in).

    >>> layer_and_projection("model.layers.12.mlp.experts.3.up_proj"), layer_and_projection("blocks.0.to_out.0"), layer_and_projection("lm_head")
    ((12, 'up_proj'), (0, 'to_out.0'), (None, 'lm_head'))
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
            "no adapter_config.json lies beside the file, so the scale is unknown and taken as 1: norms are those of B·A; measures of the spectrum's form do not depend on it"
        )
    elif any(module.part == "BA only" for module in modules):
        why = "DoRA rescales the rows of W + scale·B·A (--base MODEL gives ΔW)"
        if all(module.magnitude is None for module in adapter.modules):
            how = printable(str(adapter.settings.get("init_lora_weights")), 40)
            why = (
                f"init_lora_weights {how} takes a part out of the base (--initial FOLDER, the adapter before training, gives ΔW)"
                if changes_base(how)
                else "a variant of LoRA adds to it"
            )
        notes.append(f"BA only: these are the values of scale·B·A, and ΔW is more than that: {why}")
    if with_base and any(module.beside is None for module in modules):
        notes.append(
            "what is BA only is not set beside the base: W + scale·B·A is not the weight that was trained"
        )
    if zero := sum(1 for module in modules if module.frobenius == 0):
        notes.append(f"{zero} of {len(modules)} updates are zero, and count in no mean")
    return tuple(notes)


# --- several ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Two adapters on the modules that both adapt. `output` and `input`: mean overlap of the `k` leading directions, `chance` that of random ones; `cosine`: mean cosine of the updates."""

    one: str
    other: str
    k: int
    modules: int
    output: float
    input: float
    chance: tuple[float, float]
    cosine: float
    each: tuple[Overlap, ...]


def compare(adapters: Sequence[tuple[str, AdapterFolder]], k: int) -> list[Comparison]:
    """Every two of the adapters that have modules of the same name and shape.

    Raises:
        BadInput: a factor is not finite.
    """
    found = []
    for (one, first), (other, second) in combinations(adapters, 2):
        each = _overlaps(first, second, k)
        if each:
            means = [
                float(np.mean([value(pair) for pair in each]))
                for value in (
                    lambda pair: pair.output,
                    lambda pair: pair.input,
                    lambda pair: pair.chance[0],
                    lambda pair: pair.chance[1],
                    lambda pair: pair.cosine,
                )
            ]
            found.append(
                Comparison(
                    one,
                    other,
                    max(pair.k for pair in each),
                    len(each),
                    means[0],
                    means[1],
                    (means[2], means[3]),
                    means[4],
                    each,
                )
            )
    return found


def _overlaps(first: AdapterFolder, second: AdapterFolder, k: int) -> tuple[Overlap, ...]:
    other = {(module.name, module.shape[1:]): module for module in second.modules}
    common = [module for module in first.modules if (module.name, module.shape[1:]) in other]
    return tuple(
        pair
        for pair in side_by_side(
            lambda module: overlap(module, other[module.name, module.shape[1:]], k), common
        )
        if pair
    )


# --- as data ------------------------------------------------------------------------------------------------------------


def as_json(found: Xray, comparisons: Sequence[Comparison] = ()) -> dict[str, Any]:
    """The form of `spectrum --json`: docs/adapter.md lists the keys."""
    modules = []
    for module in found.modules:
        row = {
            "module": module.name,
            "shape": list(module.shape),
            "rank": module.rank,
            "part": module.part,
            "route": module.route,
            "singular_values": module.singular_values.tolist(),
            "stable_rank": module.stable_rank,
            "spectral_entropy": module.spectral_entropy,
            "condition_number": module.condition_number,
            "frobenius_nuclear": module.frobenius_nuclear,
            "frobenius": module.frobenius,
        }
        if module.beside:
            row["beside_base"] = {
                key: value for key, value in asdict(module.beside).items() if key != "module"
            }
        modules.append(row)
    return {
        "adapter": found.label,
        "folder": str(found.folder),
        "config": dict(found.config),
        "part": found.part,
        "modules": modules,
        "mean": found.mean(),
        "skipped": [{"name": name, "reason": reason} for name, reason in found.skipped],
        "notes": list(found.notes),
        "compared": [
            {
                **{
                    key: value for key, value in asdict(pair).items() if key not in ("one", "other")
                },
                "with": pair.other if pair.one == found.label else pair.one,
            }
            for pair in comparisons
            if found.label in (pair.one, pair.other)
        ],
    }


def rows(found: Sequence[Xray]) -> list[dict[str, Any]]:
    """The form of `spectrum --csv`: a row per module."""
    return [
        {
            "adapter": one.label,
            "module": module.name,
            "layer": module.layer,
            "projection": module.projection,
            "d_out": module.shape[0],
            "d_in": module.shape[1],
            "rank": module.rank,
            "dtype": module.dtype,
            "part": module.part,
            "route": module.route,
            "stable_rank": module.stable_rank,
            "spectral_entropy": module.spectral_entropy,
            "condition_number": module.condition_number,
            "frobenius_nuclear": module.frobenius_nuclear,
            "frobenius": module.frobenius,
            "beside_frobenius": module.beside.frobenius if module.beside else None,
            "beside_spectral": module.beside.spectral if module.beside else None,
            "intruders": module.beside.intruders if module.beside else None,
            "singular_values": " ".join(repr(float(value)) for value in module.singular_values),
        }
        for one in found
        for module in one.modules
    ]


def distinct(labels: Sequence[str]) -> list[str]:
    """The labels, numbered where two are the same.

    >>> distinct(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: dict[str, int] = {}
    out = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        out.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return out


def names(found: Sequence[tuple[str, str]]) -> str:
    """What was skipped, in a sentence."""
    reasons: dict[str, list[str]] = {}
    for name, reason in found:
        reasons.setdefault(reason, []).append(name)
    return "; ".join(f"{listing(which, 3)}: {reason}" for reason, which in reasons.items())
