"""The factor pairs of an adapter's files: a PEFT folder, read without its base model.

adapter_config.json gives the scale, alpha/r or rank-stabilised alpha/√r with `rank_pattern` and `alpha_pattern` by module;
adapter_model.safetensors gives the factors. Pickled weights (adapter_model.bin) are refused: reading them can run code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from evilspectra.errors import BadInput, listing
from evilspectra.spectrum.pairs import LoraPair, changes_base, matrices

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

#: Settings under which the update is more than scale·B·A.
_VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config")

_FACTOR = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?$")


def read_pairs(folder: str | Path) -> list[LoraPair]:
    """The pairs of an adapter folder, by name, in the files' number type, on the CPU.

    Raises:
        BadInput: a file is missing, damaged, no LoRA of linear layers, or holds pickled weights; the sentence says which and why.
    """
    folder = Path(folder)
    settings = _settings(folder)
    factors = _factors(folder)
    if settings.get("target_parameters"):
        raise BadInput(f"{folder} adapts parameters of experts ({listing(settings['target_parameters'], 3)}), whose updates are no products of two matrices: only linear layers are supported")
    changed = any(settings.get(name) for name in _VARIANTS) or changes_base(settings.get("init_lora_weights"))
    pairs = []
    for name in sorted(factors):
        found = factors[name]
        if any(kind.startswith("embedding") for kind in found):
            raise BadInput(f"{name} in {folder} is an adapted embedding, whose update is not measured: leave embeddings out of the LoRA targets")
        if missing := [kind for kind in ("A", "B") if kind not in found]:
            raise BadInput(f"{folder / WEIGHTS} lacks factor {missing[0]} of {name}: save the adapter again")
        down, up = found["A"], found["B"]
        if down.ndim > 2 or up.ndim > 2:
            raise BadInput(f"{name} in {folder} is an adapted convolution, whose factors are not matrices: only linear layers are supported, leave it out of the LoRA targets")
        pairs.append(matrices(name, down, up, _scale(folder, settings, name, down.shape[0]), "BA only" if changed else "delta", found.get("magnitude_vector")))
    return pairs


def _settings(folder: Path) -> dict[str, Any]:
    place = folder / CONFIG
    try:
        settings = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "has no adapter_config.json" if folder.is_dir() else "is no folder"
        raise BadInput(f"{folder} {what}: name a folder that PEFT has saved an adapter in") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{place} cannot be read as JSON ({str(error).splitlines()[0]}): save the adapter again") from None
    if not isinstance(settings, dict):
        raise BadInput(f"{place} holds no JSON object: save the adapter again")
    if str(settings.get("peft_type", "LORA")).upper() != "LORA":
        raise BadInput(f"{folder} is a {settings['peft_type']} adapter: only LORA is supported")
    return settings


def _factors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Module name → A, B, and what else belongs to its update."""
    place = folder / WEIGHTS
    if not place.is_file():
        pickled = f" (its {PICKLED} is a pickle, which can run code when it is read: load it where you trust it and save it with safe_serialization=True)" if (folder / PICKLED).exists() else ""
        raise BadInput(f"{folder} has no {WEIGHTS}{pickled}: name a folder that holds one")
    factors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(place, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                if match := _FACTOR.match(key):
                    factors.setdefault(match["module"], {})[match["factor"]] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"{place} is damaged or no safetensors file ({str(error).splitlines()[0]}): copy or save the adapter again") from None
    if not factors:
        raise BadInput(f"{place} holds no LoRA factors: name the folder of a LoRA adapter")
    return factors


def _scale(folder: Path, settings: Mapping[str, Any], name: str, rank: int) -> float:
    r = _number(folder, settings, "rank_pattern", "r", name)
    if r is not None and r != rank:
        raise BadInput(f"{name} has rank {rank} in {folder / WEIGHTS}, but {r:g} by {CONFIG}: the two belong to different adapters; save the adapter again")
    alpha = _number(folder, settings, "alpha_pattern", "lora_alpha", name)
    if alpha is None:
        raise BadInput(f"{folder / CONFIG} has no lora_alpha, so the scale of {name} is unknown: add it")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _number(folder: Path, settings: Mapping[str, Any], patterns: str, plain: str, name: str) -> float | None:
    """The value of the first pattern that means the module (a regular expression for the end of its path, as PEFT reads it), or the plain setting."""
    given = settings.get(patterns) or {}
    if not isinstance(given, dict):
        raise BadInput(f"{patterns} in {folder / CONFIG} must be an object of patterns and numbers: save the adapter again")
    value = settings.get(plain)
    for pattern, number in given.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                value = number
                break
        except re.error as error:
            raise BadInput(f"{patterns} in {folder / CONFIG} holds '{pattern}', which is no regular expression ({error}): correct it") from None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadInput(f"{plain} of {name} is {value!r} in {folder / CONFIG}: it must be a number; correct it")
    return float(value)
