"""The factor pairs (A, B) of LoRA updates in a live model, from PEFT or custom modules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evilspectra.errors import BadInput, listing, near
from evilspectra.spectra.peft_files import Factor, Part, changes_base, open_folder


@dataclass(frozen=True)
class LoraPair:
    """One adapted matrix: scale·B·A, with A: r × d_in and B: d_out × r (PEFT's shapes).

    `name` is the module's path in the base model, for instance `model.layers.0.self_attn.q_proj`.
    `part` says whether scale·B·A is ΔW, or "BA only": DoRA rescales the rows of W + scale·B·A, and
    PiSSA, OLoRA and their like subtract an initial product from the base; `delta.py` has their ΔW.

    >>> import torch
    >>> LoraPair("m", torch.zeros(2, 5), torch.zeros(3, 2), scale=1.0).shape
    (2, 5, 3)
    """

    name: str
    A: Tensor
    B: Tensor
    scale: float
    part: Part = "delta"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(r, d_in, d_out)."""
        return (self.A.shape[0], self.A.shape[1], self.B.shape[0])


def find_pairs(model: nn.Module, adapter: str | None = None) -> list[LoraPair]:
    """Finds the pairs of one adapter of a model, in module order; A and B are live parameters.

    Two kinds of modules are found: PEFT's LoRA layers, and modules whose lora_A and lora_B are
    tensors or linear layers (the scale is then their `scaling`, or lora_alpha/r, or 1). An adapter
    that PEFT has disabled is found as well; its factors need no gradient while it is disabled.

    Args:
        model: the model, or a part of it (PiSSA and similar are recognised only from the config of
            the whole PEFT model).
        adapter: PEFT's name of it; by default the active one.

    Returns:
        A `LoraPair` per adapted matrix: A is r × d_in, B is d_out × r.

    Raises:
        BadInput: no LoRA module, no such adapter, or an adapted embedding, convolution or bank of
            experts (their update is not a product of two matrices).

    >>> layer = nn.Linear(5, 3)
    >>> layer.lora_A, layer.lora_B = nn.Linear(5, 2, bias=False), nn.Linear(2, 3, bias=False)
    >>> [(pair.name, pair.shape) for pair in find_pairs(nn.Sequential(layer))]
    [('0', (2, 5, 3))]
    """
    pairs: list[LoraPair] = []
    adapters: set[str] = set()
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    for path, layer in model.named_modules():
        module: Any = layer
        name = path.removeprefix("base_model.model.")
        if len(getattr(module, "lora_embedding_A", ())):
            raise _refused(name, "embedding")
        down, up = getattr(module, "lora_A", None), getattr(module, "lora_B", None)
        if down is None or up is None:
            continue
        if _is_matrix(down) and _is_matrix(up):
            pairs.append(_plain(name, module))
            continue
        if not hasattr(module, "scaling"):
            continue
        adapters.update(down)
        for key in [adapter] if adapter is not None else module.active_adapters:
            if key in down:
                pairs.append(_of_peft(name, module, key, configs.get(key)))
    if not pairs:
        wanted = f"adapter '{adapter}'" if adapter else "LoRA adapter"
        raise BadInput(
            f"the model has no {wanted} on a linear layer; adapters found: "
            f"{listing(sorted(adapters)) or 'none'}"
        )
    return pairs


def matrices(
    name: str,
    A: Tensor,
    B: Tensor,
    scale: float,
    part: Part = "delta",
) -> LoraPair:
    """Makes a pair, once its shapes have been checked.

    Raises:
        BadInput: factors that are not matrices of real numbers, do not share a rank, or are empty;
            a scale that is not finite.
    """
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or not A.numel() or not B.numel():
        raise BadInput(
            f"the factors of {name} have shapes A {_shape(A)} and B {_shape(B)}: they must be r × "
            "d_in and d_out × r; save the adapter again"
        )
    if not A.is_floating_point() or not B.is_floating_point():
        raise BadInput(
            f"the factors of {name} are {A.dtype} and {B.dtype}: they must be floating-point "
            "numbers; save the adapter again"
        )
    if not math.isfinite(scale):
        raise BadInput(
            f"the scale of {name} is {scale}: it must be a finite number; correct lora_alpha"
        )
    return LoraPair(name, A, B, scale, part)


def select(pairs: Sequence[LoraPair], wanted: str | Iterable[str]) -> list[LoraPair]:
    """Selects the pairs that some name or pattern matches, in the order given; "all" means all.

    A name matches a module by its full path or the end of it (`q_proj`, `self_attn.q_proj`); a
    pattern with *, ? or [ ] has to match the full path.

    Raises:
        BadInput: a name or pattern that matches no pair.

    >>> import torch
    >>> names = ["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v"]
    >>> pairs = [LoraPair(name, torch.ones(1, 2), torch.ones(2, 1), 1.0) for name in names]
    >>> [pair.name for pair in select(pairs, ["v", "layers.0.*"])]
    ['layers.0.q', 'layers.0.v', 'layers.1.v']
    """
    if wanted == "all":
        return list(pairs)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if not any(_matches(name, pair.name) for pair in pairs):
            leaves = sorted({pair.name.rsplit(".", 1)[-1] for pair in pairs})
            raise BadInput(
                f"'{name}' matches none of the adapted modules; allowed: all, or names, ends of "
                f"names or patterns of {listing(leaves, 20)}.{near(name, leaves)}"
            )
    return [pair for pair in pairs if any(_matches(name, pair.name) for name in names)]


def _matches(name: str, path: str) -> bool:
    return path == name or path.endswith("." + name) or fnmatchcase(path, name)


def _is_matrix(factor: Any) -> bool:
    """Whether a factor is a tensor or a layer with a weight, not PEFT's dictionary of layers."""
    return isinstance(factor, Tensor) or isinstance(getattr(factor, "weight", None), Tensor)


def _weight(factor: Any) -> Tensor:
    return factor if isinstance(factor, Tensor) else factor.weight


def _plain(name: str, module: Any) -> LoraPair:
    down, up = _weight(module.lora_A), _weight(module.lora_B)
    if isinstance(module, nn.Embedding):
        raise _refused(name, "embedding")
    convolution = nn.modules.conv._ConvNd
    if (
        isinstance(module, convolution)
        or isinstance(getattr(module, "conv", None), convolution)
        or down.ndim > 2
    ):
        raise _refused(name, "convolution")
    scale = getattr(module, "scaling", None)
    if not isinstance(scale, int | float):
        alpha = getattr(module, "lora_alpha", None)
        scale = alpha / down.shape[0] if isinstance(alpha, int | float) else 1.0
    return matrices(name, down, up, float(scale))


def _of_peft(
    name: str,
    module: Any,
    key: str,
    config: Any,
) -> LoraPair:
    down, up = module.lora_A[key].weight, module.lora_B[key].weight
    if hasattr(module, "parameter_name"):
        raise _refused(name, f"parameter ({module.parameter_name})")
    if down.ndim != 2 or up.ndim != 2:
        raise _refused(name, type(module.base_layer).__name__)
    magnitudes = getattr(module, "lora_magnitude_vector", None)
    changed = (
        key in getattr(module, "lora_variant", {})
        or (magnitudes is not None and key in magnitudes)
        or changes_base(getattr(config, "init_lora_weights", None))
    )
    part: Part = "BA only" if changed else "delta"
    return matrices(name, down, up, float(module.scaling[key]), part)


def _refused(name: str, kind: str) -> BadInput:
    return BadInput(
        f"{name} is an adapted {kind}, whose update is not a product of two matrices and is not "
        "measured: only linear layers are supported, leave it out of the LoRA targets"
    )


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "of a single number"


def read_pairs(folder: str | Path) -> list[LoraPair]:
    """Reads the pairs of an adapter folder, by name, in the files' number type, on the CPU.

    Raises:
        BadInput: a file is missing, damaged, no LoRA of linear layers, or holds pickled weights;
            the sentence says which and why.
    """
    return [  # `open_folder` has checked shapes, number types and scales
        LoraPair(
            module.name,
            _tensor(module.down),
            _tensor(module.up),
            module.scale,
            module.part,
        )
        for module in open_folder(folder, strict=True).modules
    ]


def _tensor(factor: Factor) -> Tensor:
    tensor = torch.from_numpy(np.array(factor.file.stored(factor.key)))
    return tensor.view(torch.bfloat16) if factor.entry.dtype == "BF16" else tensor
