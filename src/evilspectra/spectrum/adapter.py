"""The factor pairs of an adapter's files, as tensors: a PEFT folder, read without its base model. `folder.py` says what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evilspectra.spectrum.folder import Factor, open_folder
from evilspectra.spectrum.pairs import LoraPair, matrices


def read_pairs(folder: str | Path) -> list[LoraPair]:
    """The pairs of an adapter folder, by name, in the files' number type, on the CPU.

    Raises:
        BadInput: a file is missing, damaged, no LoRA of linear layers, or holds pickled weights; the sentence says which and why.
    """
    found = open_folder(folder, strict=True).modules
    return [matrices(module.name, _tensor(module.down), _tensor(module.up), module.scale, module.part, None if module.magnitude is None else _tensor(module.magnitude)) for module in found]


def _tensor(factor: Factor) -> Tensor:
    tensor = torch.from_numpy(np.array(factor.file.stored(factor.key)))
    return tensor.view(torch.bfloat16) if factor.entry.dtype == "BF16" else tensor
