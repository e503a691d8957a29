"""Flattening of an adapter after training: the training-free baseline for the penalty. No torch.

With ΔW = scale·B·A = U·diag(σ)·Vᵀ, its k leading directions (all above rounding error, or the first
`rank` of them) keep their vectors and get

    σ′ ∝ (1 − amount)·σ + amount·mean(σ)          amount 0: unchanged; 1: flat

scaled to keep the Frobenius or nuclear norm of the full ΔW, before any truncation, and then
multiplied by `scale`. The result is a plain PEFT adapter with the same alpha, with B′ = U·√(σ′/s)
and A′ = √(σ′/s)·Vᵀ; where σ is only multiplied, A stays and B′ = scale·B. Nothing is learnt: the
directions stay those of training and only their weights change, so the loss changes too. With a
penalty during training, the loss can choose the directions as well.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from evilspectra.errors import BadInput
from evilspectra.spectra import measures
from evilspectra.spectra.overlap import rank as resolved
from evilspectra.spectra.peft_files import (
    CONFIG,
    WEIGHTS,
    AdapterFolder,
    Module,
    open_folder,
)
from evilspectra.spectra.values_numpy import Matrix, orthogonal, streamed_values
from evilspectra.store.files import write_atomically
from evilspectra.text import printable

Keep = Literal["frobenius", "nuclear"]
Kind = Literal["F32", "BF16", "F16", "F64"]
#: Largest relative change of a kept norm that is not reported: the bound for float32 factors.
EXACT = 1e-6
_NAMES: dict[Kind, str] = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class _Change:
    """The change to every update: σ moved by `amount` at constant norm, cut, multiplied."""

    amount: float
    keep: Keep
    rank: int | None
    scale: float

    @property
    def only_scales(self) -> bool:
        return self.amount == 0 and self.rank is None and self.scale != 1


@dataclass(frozen=True)
class Flattened:
    """A flattened or scaled adapter, and the settings used.

    `norm_error`: largest relative difference of a module's norm from `scale` times what it was,
    read back from the files; stable ranks are means over modules; `unchanged`: the tensors that
    were copied.
    """

    folder: Path
    modules: int
    amount: float
    keep: Keep
    rank: int | None
    dtype: str
    norm_error: float
    stable_rank_before: float
    stable_rank_after: float
    scale: float
    unchanged: tuple[str, ...]


def flat_values(
    values: Matrix,
    amount: float,
    keep: Keep,
    rank: int | None = None,
) -> Matrix:
    """σ′ of one module: min(rank, k) values, k those of `values` that are more than rounding.

    There are none where the update is zero.

    >>> flat_values(np.array([3.0, 1.0]), 1.0, "nuclear").tolist()
    [2.0, 2.0]
    >>> flat_values(np.array([4.0, 3.0]), 0.0, "frobenius", rank=1).tolist()
    [5.0]
    """
    leading = values[: min(resolved(values), rank or len(values))]
    if not len(leading):
        return leading
    moved = (1 - amount) * leading + amount * leading.mean()
    return moved * _norm(values, keep) / _norm(moved, keep)


def _norm(values: Matrix, keep: Keep) -> float:
    return float(values.sum() if keep == "nuclear" else np.linalg.norm(values))


def flatten(
    source: AdapterFolder,
    out: Path,
    amount: float | None = None,
    keep: Keep = "frobenius",
    rank: int | None = None,
    dtype: Kind = "F32",
    scale: float | None = None,
) -> Flattened:
    """Writes the flattened adapter to the folder `out`, completely or not at all, and measures it.

    Without an `amount`, the spectrum is made flat (1), or with a `scale` left as it is (0).

    Raises:
        BadInput: an amount outside of 0 to 1, a scale that is not positive and finite or that the
            number type cannot hold, a folder that is not empty, an adapter without config, or one
            whose ΔW is more than scale·B·A.
    """
    if amount is None:
        amount = 1.0 if scale is None else 0.0
    scale = 1.0 if scale is None else scale
    if not 0 <= amount <= 1:
        raise BadInput(
            f"the amount is {amount:g}, but it must lie between 0 (unchanged) and 1 (flat)"
        )
    if not 0 < scale < math.inf:
        raise BadInput(
            f"the scale is {scale:g}, but it must be a positive number: 0.5 halves every update"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out} already exists: name a new folder")
    if not source.settings:
        raise BadInput(
            f"{source.folder} has no {CONFIG}, so the scale of its update is unknown: "
            "flatten needs the folder that PEFT has saved"
        )
    if other := next((module for module in source.modules if module.part != "delta"), None):
        raise BadInput(
            f"the update of {other.name} in {source.folder} is more than scale·B·A (DoRA, PiSSA "
            "and their like): only the update of plain LoRA can be flattened; convert the adapter "
            "to LoRA first (PEFT does so for PiSSA and OLoRA when it saves with "
            "path_initial_model_for_weight_conversion)"
        )
    change = _Change(amount, keep, rank, scale)
    settings = _settings(source.settings, rank)
    config = json.dumps(settings, indent=2, sort_keys=True) + "\n"

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / CONFIG).write_text(config, encoding="utf-8")
        _write(folder / WEIGHTS, source, change, dtype)
        (folder / "README.md").write_text(_card(source, change), encoding="utf-8")

    if out.is_dir():
        out.rmdir()
    write_atomically(out, write, "--out")
    error, before, after = _compared(source, open_folder(out), change)
    return Flattened(
        folder=out,
        modules=len(source.modules),
        amount=amount,
        keep=keep,
        rank=rank,
        dtype=dtype,
        norm_error=error,
        stable_rank_before=before,
        stable_rank_after=after,
        scale=scale,
        unchanged=tuple(factor.key for factor in source.others),
    )


def _compared(
    source: AdapterFolder, written: AdapterFolder, change: _Change
) -> tuple[float, float, float]:
    """Largest relative error of the norm; mean stable ranks before and after."""
    error, before, after = 0.0, [], []
    spectra = zip(streamed_values(source.modules), streamed_values(written.modules), strict=True)
    for old, new in spectra:
        if old.values[0] == 0:
            continue
        wanted = change.scale * _norm(old.values, change.keep)
        error = max(error, abs(_norm(new.values, change.keep) / wanted - 1))
        before.append(float(measures.stable_rank(old.values)))
        after.append(float(measures.stable_rank(new.values)))
    if not before:
        return error, math.nan, math.nan
    return error, float(np.mean(before)), float(np.mean(after))


def _settings(settings: Mapping[str, Any], rank: int | None) -> dict[str, Any]:
    """The adapter's config with ranks cut; alpha stays, the factors take up the change of scale."""
    changed: dict[str, Any] = {**settings, "inference_mode": True, "init_lora_weights": True}
    if rank is not None:
        if changed.get("r") is not None:
            changed["r"] = min(changed["r"], rank)
        pattern = changed.get("rank_pattern") or {}
        changed["rank_pattern"] = {name: min(value, rank) for name, value in pattern.items()}
    return changed


# --- the file -------------------------------------------------------------------------------------


def _write(
    path: Path,
    source: AdapterFolder,
    change: _Change,
    dtype: Kind,
) -> None:
    """Writes the header first, then module by module, so that no more than one is in memory."""
    shapes: list[tuple[str, str, tuple[int, ...], int]] = []
    width = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}[dtype]
    for module in source.modules:
        r, d_in, d_out = module.shape
        r = min(r, change.rank or r)
        shapes += [
            (module.down.key, dtype, (r, d_in), r * d_in * width),
            (module.up.key, dtype, (d_out, r), d_out * r * width),
        ]
    for other in source.others:
        entry = other.entry
        shapes.append((other.key, entry.dtype, entry.shape, entry.stop - entry.start))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for key, kind, shape, size in shapes:
        header[key] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    rslora = bool(source.settings.get("use_rslora"))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for module in source.modules:
            for factor in _factors(module, rslora, change):
                _check_range(factor, module, change, dtype)
                file.write(narrowed(factor, dtype).tobytes())
        for other in source.others:
            file.write(other.file.raw(other.key))


def _factors(
    module: Module,
    rslora: bool,
    change: _Change,
) -> Iterator[Matrix]:
    """A′ and B′, of the rank in the header; directions that the update lacks are zero in both."""
    if change.only_scales:
        yield module.down.wide()
        with np.errstate(over="ignore"):
            yield change.scale * module.up.wide()
        return
    old = module.shape[0]
    r = min(old, change.rank or old)
    scale = module.scale * (math.sqrt(old / r) if rslora else old / r)
    directions = orthogonal(module)
    values = change.scale * flat_values(directions.values, change.amount, change.keep, change.rank)
    k = len(values)
    share = np.sqrt(values / abs(scale)) if k else values
    down, up = np.zeros((r, module.shape[1])), np.zeros((module.shape[2], r))
    down[:k] = share[:, None] * directions.right[:, :k].T
    up[:, :k] = share * directions.left[:, :k]
    yield down
    # The scale's sign is in `left`, and again in PEFT's scale.
    yield up if scale >= 0 else -up


def _check_range(
    factor: Matrix,
    module: Module,
    change: _Change,
    dtype: Kind,
) -> None:
    """Refuses a scaled factor whose largest number is infinite, or not normal, in `dtype`."""
    largest = float(np.abs(factor).max(initial=0.0))
    limits = np.finfo({"F64": np.float64, "F16": np.float16}.get(dtype, np.float32))
    if change.scale != 1 and largest and not limits.tiny <= largest <= limits.max:
        raise BadInput(
            f"at scale {change.scale:g} a factor of {module.name} reaches {largest:.0e}, beyond "
            f"what {_NAMES[dtype]} holds: choose a scale nearer to 1, or another number type"
        )


def narrowed(values: Matrix, dtype: Kind) -> NDArray[Any]:
    """Numbers rounded to a number type, to the nearest, ties to even; bfloat16 as its 16 bits.

    >>> values = np.array([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8])
    >>> [hex(bits) for bits in narrowed(values, "BF16").tolist()]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])


def _card(source: AdapterFolder, change: _Change) -> str:
    """The model card: what was done to which adapter, and that nothing was trained."""
    model = source.settings.get("base_model_name_or_path")
    base = printable(model, 200) if isinstance(model, str) and model else None
    head = {
        "library_name": "peft",
        **({"base_model": base} if base else {}),
        "tags": ["lora", "evilspectra", "scaled" if change.only_scales else "flattened"],
    }
    name = printable(source.folder.resolve().name, 100)
    of_base = f" of {base}" if base else ""
    return f"""---
{yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()}
---

# {name}, {"scaled" if change.only_scales else "flattened"} after training

The LoRA adapter `{name}`{of_base}{_changed(change)}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base or "the base model"!r})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def _changed(change: _Change) -> str:
    """The rest of the card's sentence about the adapter, and what it means."""
    if change.only_scales:
        return f""", with every update ΔW multiplied by {change.scale:g}, by `evilspectra flatten`.
Nothing was trained on, and no data were seen. This is the control for everything that makes an
update weaker: measure it before you use it."""
    cut = f", cut to its {change.rank} leading directions" if change.rank else ""
    norm = "nuclear" if change.keep == "nuclear" else "Frobenius"
    level = "constant" if change.scale == 1 else f"{change.scale:g} times the"
    return f"""{cut}, with the singular values σ of \
every update ΔW moved towards their mean:

    σ′ ∝ (1 − {change.amount:g})·σ + {change.amount:g}·mean(σ)

at {level} {norm} norm of ΔW, by `evilspectra \
flatten`. The directions are those that training found; nothing was trained on,
and no data were seen. This is the training-free baseline to a flatness penalty in training: \
measure it before you use it."""
