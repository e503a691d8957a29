"""Single weights of a base model, read from its files in float64 without building the model.

Torch is imported only for GGUF files and the test model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from evilspectra.config.loading import build
from evilspectra.errors import BadInput, listing
from evilspectra.model import base as bases
from evilspectra.spectra.peft_files import Factor, Module, inside
from evilspectra.spectra.safetensors_files import REAL, Mapped
from evilspectra.spectra.values_numpy import Matrix
from evilspectra.targets.find import embedded_name


def base_weights(
    name: str, revision: str | None = None, local_files_only: bool = False
) -> Callable[[Module], Matrix]:
    """Returns the function that reads the base weight of a module, d_out × d_in.

    Raises:
        BadInput: no such base, or files that cannot be used. The function returned raises it where
            the base has no such weight, or of another shape.
    """
    model = {
        "base": embedded_name(name),
        "revision": revision,
        "local_files_only": local_files_only,
    }
    base = bases.resolve(build({"model": model}, "--base").model)
    if base.kind == "tiny":
        from evilspectra.model.tiny import tiny_model

        tensors = tiny_model().state_dict()
        weights = {key: tensor.detach().double().numpy() for key, tensor in tensors.items()}
        return lambda module: _fitting(module, weights[_key(module.name, weights, name)], name)
    folder = base.path
    if base.kind == "gguf":
        from evilspectra.model.load import weights_folder

        folder = weights_folder(base)
    stored = _stored(folder)
    return lambda module: _fitting(module, _read(stored[_key(module.name, stored, name)]), name)


def _stored(folder: Path) -> dict[str, Factor]:
    factors: dict[str, Factor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = Mapped(inside(folder, path.name))
        factors.update({key: Factor(file, key) for key in file.entries})
    return factors


def _read(factor: Factor) -> Matrix:
    if factor.entry.dtype not in REAL:
        raise BadInput(
            f"{factor.key} of the base has the number type {factor.entry.dtype}: name the base in "
            f"{listing(REAL)}, not a quantised one"
        )
    return factor.wide()


def _key(name: str, weights: dict[str, Factor] | dict[str, Matrix], base: str) -> str:
    """The base's name of a module's weight: the same, or the only one whose path ends alike.

    Models are stored under several beginnings.

    >>> weights = {"language_model.model.layers.0.mlp.up_proj.weight": np.eye(1)}
    >>> _key("model.layers.0.mlp.up_proj", weights, "m")
    'language_model.model.layers.0.mlp.up_proj.weight'
    """
    path = f"{name}.weight"
    if path in weights:
        return path
    parts = path.split(".")
    for start in range(len(parts) - 3):
        end = ".".join(parts[start:])
        fitting = [key for key in weights if key == end or key.endswith(f".{end}")]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    raise BadInput(f"{base} has no weight of {name}: name the base that the adapter was trained on")


def _fitting(module: Module, weight: Matrix, base: str) -> Matrix:
    _, d_in, d_out = module.shape
    if weight.shape == (d_out, d_in):
        return weight
    if weight.shape == (d_in, d_out):  # GPT-2's layers store their weights the other way round
        return np.ascontiguousarray(weight.T)
    raise BadInput(
        f"{module.name} is {' × '.join(map(str, weight.shape))} in {base}, and the adapter changes "
        f"{d_out} × {d_in}: name the base that it was trained on"
    )
