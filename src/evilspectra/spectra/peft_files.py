"""The files of a PEFT adapter: which factors belong to which module. Nothing is loaded; no torch.

adapter_config.json gives the scale, alpha/r or rank-stabilised alpha/√r with `rank_pattern` and
`alpha_pattern` by module; adapter_model.safetensors, or shards of it that an index names, gives the
factors. Keys are those of PEFT and of other tools that write PEFT adapters: with or without
`base_model.model.`, with an adapter's name after the factor's (`lora_A.default.weight`), and with
the wrappers of torch.compile, DDP and FSDP in the path. Adapters come from anywhere: pickles, and
links that lead out of the folder, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evilspectra.errors import BadInput, listing
from evilspectra.spectra.peft_config import (
    CONFIG,
    WEIGHTS,
    Scales,
    inside,
    read_json,
    read_settings,
)
from evilspectra.spectra.safetensors_files import REAL, Entry, Mapped

PICKLED = "adapter_model.bin"
INDEX = f"{WEIGHTS}.index.json"
#: What scale·B·A is of a pair: the full change ΔW, or one part of a change that has others.
Part = Literal["delta", "BA only"]
#: Beginnings of PEFT's `init_lora_weights` that take a fixed product out of the base, so that ΔW is
#: scale·B·A less that product; LoftQ takes out a residue.
INITIAL_PRODUCT = ("pissa", "olora", "corda", "lora_ga")
CHANGES_BASE = (*INITIAL_PRODUCT, "loftq")
#: Settings under which the update is more than scale·B·A.
_VARIANTS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
#: Ranks in use end at about 1000.
LARGEST_RANK = 8192
_FACTOR = re.compile(
    r"^(?P<module>.+)"
    r"\.lora_(?P<factor>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?"
    r"(?:\.weight)?$"
)
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_SHARD = re.compile(r"\w[\w.-]*\.safetensors")


@dataclass(frozen=True)
class Factor:
    """A stored tensor."""

    file: Mapped
    key: str

    @property
    def entry(self) -> Entry:
        return self.file.entries[self.key]

    def wide(self) -> NDArray[np.float64]:
        """All numbers, in float64."""
        return self.file.wide(self.key)

    def blocks(self, axis: int) -> Iterator[NDArray[np.float64]]:
        """A matrix in float64, block after block of rows (`axis` 0) or columns (1)."""
        return self.file.blocks(self.key, axis)


@dataclass(frozen=True)
class Module:
    """One adapted matrix, as `LoraPair` has it, its factors still in the file."""

    name: str
    down: Factor
    up: Factor
    scale: float
    part: Part = "delta"
    magnitude: Factor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(r, d_in, d_out)."""
        return (self.down.entry.shape[0], self.down.entry.shape[1], self.up.entry.shape[0])


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter in its folder.

    `skipped`: (tensor or module, why it is not measured); `others`: the tensors that are not
    factors of linear layers.
    """

    folder: Path
    settings: Mapping[str, Any]
    modules: tuple[Module, ...]
    skipped: tuple[tuple[str, str], ...]
    others: tuple[Factor, ...]


def changes_base(init_lora_weights: object) -> bool:
    """Whether adapters with this initialisation have a different base from the one they name.

    >>> changes_base("pissa_niter_16"), changes_base(True), changes_base("gaussian")
    (True, False, False)
    """
    return isinstance(init_lora_weights, str) and init_lora_weights.lower().startswith(CHANGES_BASE)


def open_folder(
    folder: str | Path, weights: str | None = None, strict: bool = False
) -> AdapterFolder:
    """Opens the adapter in a folder, its modules by name.

    Args:
        weights: the file of weights, where it is not named as PEFT names it; the config may then be
            missing, and the scale is taken as 1.
        strict: refuse an adapted embedding or convolution, rather than skip it.

    Raises:
        BadInput: a file is missing, damaged or leads out of the folder, no LoRA of linear layers,
            or pickled weights; the sentence says which and why.
    """
    folder = Path(folder)
    settings = {} if weights and not (folder / CONFIG).exists() else read_settings(folder)
    if experts := settings.get("target_parameters"):
        raise BadInput(
            f"{folder} adapts parameters of experts ({_names(experts)}), whose updates are not "
            "products of two matrices: only linear layers are supported"
        )
    file = folder / (weights or WEIGHTS)
    factors, others = _factors(folder, weights)
    init = settings.get("init_lora_weights")
    changed = changes_base(init) or any(settings.get(name) for name in _VARIANTS)
    scales = Scales(folder, settings, count=len(factors))
    modules: list[Module] = []
    reason = (
        "not a LoRA factor: a full weight (modules_to_save, a resized embedding) or a bias, "
        "whose change is not measured"
    )
    skipped = [(factor.key, reason) for factor in others]
    for name in sorted(factors):
        kinds = factors[name]
        if layer := _not_linear(kinds):
            kind, remedy = layer
            if strict:
                raise BadInput(f"{name} in {folder} is an adapted {kind}, {remedy}")
            skipped.append((name, f"an adapted {kind}, whose update is not measured"))
            others.extend(kinds.values())
            continue
        if missing := [kind for kind in ("A", "B") if kind not in kinds]:
            raise BadInput(f"{file} lacks factor {missing[0]} of {name}: save the adapter again")
        down, up, magnitude = kinds["A"], kinds["B"], kinds.get("magnitude_vector")
        _check(name, down.entry, up.entry)
        part: Part = "BA only" if changed or magnitude is not None or not settings else "delta"
        scale = scales.of(name, down.entry.shape[0])
        modules.append(Module(name, down, up, scale, part, magnitude))
    if not modules:
        example = f" ({skipped[0][0]} is {skipped[0][1]})" if skipped else ""
        raise BadInput(
            f"{file} holds no LoRA factors of linear layers{example}: "
            "name the folder of a LoRA adapter"
        )
    return AdapterFolder(folder, settings, tuple(modules), tuple(skipped), tuple(others))


def _names(names: object) -> str:
    """Names out of a config, in ASCII, and not more of them than a sentence bears."""
    names = names if isinstance(names, list) else [names]
    return listing([ascii(name)[:60].strip("'") for name in names], 3)


def _not_linear(kinds: Mapping[str, Factor]) -> tuple[str, str] | None:
    """The kind of a layer that is not linear, and the rest of a sentence about it."""
    if any(kind.startswith("embedding") for kind in kinds):
        return "embedding", "whose update is not measured: leave embeddings out of the LoRA targets"
    if any(len(kinds[kind].entry.shape) > 2 for kind in ("A", "B") if kind in kinds):
        return (
            "convolution",
            "whose factors are not matrices: only linear layers are supported, leave it out of "
            "the LoRA targets",
        )
    return None


def _check(name: str, down: Entry, up: Entry) -> None:
    matrices = len(down.shape) == 2 and len(up.shape) == 2
    if not matrices or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        a, b = (" × ".join(map(str, entry.shape)) or "of a single number" for entry in (down, up))
        raise BadInput(
            f"the factors of {name} have shapes A {a} and B {b}: they must be r × d_in and "
            "d_out × r; save the adapter again"
        )
    if not {down.dtype, up.dtype} <= set(REAL):
        raise BadInput(
            f"the factors of {name} are {down.dtype} and {up.dtype}: they must be floating-point "
            f"numbers ({listing(REAL)}); save the adapter again"
        )
    if min(down.shape[0], *down.shape[1:], up.shape[0]) > LARGEST_RANK:
        raise BadInput(
            f"{name} has rank {down.shape[0]}, and at most {LARGEST_RANK} is read: no LoRA "
            "adapter needs so much; name another file"
        )


# --- files ----------------------------------------------------------------------------------------


def _files(folder: Path, weights: str | None) -> list[Mapped]:
    path = inside(folder, weights or WEIGHTS)
    if weights or path.is_file():
        return [Mapped(path)]
    index = inside(folder, INDEX)
    if not index.is_file():
        pickled = (
            f" (its {PICKLED} is a pickle, which can run code when it is read: load it where you "
            "trust it and save it with safe_serialization=True)"
        )
        remark = pickled if (folder / PICKLED).exists() else ""
        raise BadInput(f"{folder} has no {WEIGHTS}{remark}: name a folder that holds one")
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(map(_is_shard, shard_of.values())):
        raise BadInput(
            f"{index} does not name the .safetensors files beside it by tensor: "
            "save the adapter again"
        )
    shards = sorted(set(shard_of.values()))
    if missing := [shard for shard in shards if not inside(folder, shard).is_file()]:
        raise BadInput(
            f"{folder} lacks {listing(missing, 3)}, which {INDEX} names: copy the adapter again"
        )
    files = [Mapped(folder / shard) for shard in shards]
    for file, shard in zip(files, shards, strict=True):
        keys = {key for key, name in shard_of.items() if name == shard}
        if wrong := set(file.entries) ^ keys:
            raise BadInput(
                f"{folder / shard} and {INDEX} disagree on {ascii(min(wrong))[:80]}: "
                "copy the adapter again"
            )
    return files


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and _SHARD.fullmatch(name) is not None


def _factors(
    folder: Path, weights: str | None
) -> tuple[dict[str, dict[str, Factor]], list[Factor]]:
    """Module name → A, B and the magnitude, by their names; and all other tensors."""
    factors: dict[str, dict[str, Factor]] = {}
    others, adapters = [], set()
    for file in _files(folder, weights):
        for key in file.entries:
            if not (match := _FACTOR.match(key)):
                others.append(Factor(file, key))
                continue
            adapters.add(match["adapter"] or "default")
            name = plain_name(match["module"])
            kinds = factors.setdefault(name, {})
            if match["factor"] in kinds and len(adapters) == 1:
                raise BadInput(
                    f"{file.path} holds factor {match['factor']} of {name} twice, under two "
                    "names: save the adapter again"
                )
            kinds[match["factor"]] = Factor(file, key)
    if len(adapters) > 1:
        raise BadInput(
            f"{folder} holds {len(adapters)} adapters in one file "
            f"({listing(sorted(adapters), 3)}): save them one by one"
        )
    return factors, others


def plain_name(path: str) -> str:
    """A module's path in the base model, without the wrappers of PEFT, torch.compile, DDP and FSDP.

    >>> plain_name("base_model.model.model.layers.0._fsdp_wrapped_module.mlp.up_proj")
    'model.layers.0.mlp.up_proj'
    """
    return _WRAPPERS.sub("", path).removeprefix("module.").removeprefix("base_model.model.")
