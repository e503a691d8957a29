"""What the files of a PEFT adapter hold: which factors belong to which module, at which scale. Nothing is loaded, and no torch.

adapter_config.json gives the scale, alpha/r or rank-stabilised alpha/√r with `rank_pattern` and `alpha_pattern` by module;
adapter_model.safetensors, or shards of it that an index names, gives the factors. Keys are those that PEFT writes, and what else writes
PEFT adapters: with or without `base_model.model.`, with an adapter's name after the factor's (`lora_A.default.weight`), and with the wrappers
of torch.compile, DDP and FSDP in the path. Adapters come from anywhere: pickles, and links that lead out of the folder, are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evilspectra.errors import BadInput, first_line, listing
from evilspectra.spectra.safetensors_files import REAL, Entry, Mapped

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
INDEX = f"{WEIGHTS}.index.json"
#: What scale·B·A is of a pair: the whole change ΔW, or one part of a change that has others.
Part = Literal["delta", "BA only"]
#: PEFT's `init_lora_weights` that take something out of the base, so that ΔW is scale·B·A less an initial product or residue.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
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
#: Bounds on what a config may ask for; ranks in use end at about 1000.
LARGEST_CONFIG = 1 << 24
LARGEST_RANK = 8192
_LARGEST_NUMBER = 1e12
_MOST_PATTERNS, _MOST_MATCHES, _LONGEST_PATTERN = 20_000, 10_000_000, 1000
_FACTOR = re.compile(
    r"^(?P<module>.+)\.lora_(?P<factor>A|B|embedding_A|embedding_B|magnitude_vector)(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?:\.weight)?$"
)
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


@dataclass(frozen=True)
class Factor:
    """A stored tensor."""

    file: Mapped
    key: str

    @property
    def entry(self) -> Entry:
        return self.file.entries[self.key]

    def wide(self) -> NDArray[np.float64]:
        """The numbers in float64, whole."""
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
    """An adapter that was found. `skipped`: (tensor or module, why it is not measured); `others`: the tensors that are no factors of linear layers."""

    folder: Path
    settings: Mapping[str, Any]
    modules: tuple[Module, ...]
    skipped: tuple[tuple[str, str], ...]
    others: tuple[Factor, ...]


def changes_base(init_lora_weights: object) -> bool:
    """Whether adapters so initialised are trained on a base other than the one named (see `CHANGES_BASE`).

    >>> changes_base("pissa_niter_16"), changes_base(True), changes_base("gaussian")
    (True, False, False)
    """
    return isinstance(init_lora_weights, str) and init_lora_weights.lower().startswith(CHANGES_BASE)


def open_folder(
    folder: str | Path, weights: str | None = None, strict: bool = False
) -> AdapterFolder:
    """The adapter in a folder, its modules by name.

    Args:
        weights: the file of weights, where it has a name of its own; a config beside it may then be missing, and the scale is taken as 1.
        strict: refuse an adapted embedding or convolution, rather than skip it.

    Raises:
        BadInput: a file is missing, damaged or leads out of the folder, no LoRA of linear layers, or pickled weights; the sentence says which and why.
    """
    folder = Path(folder)
    settings = {} if weights and not (folder / CONFIG).exists() else _settings(folder)
    if experts := settings.get("target_parameters"):
        raise BadInput(
            f"{folder} adapts parameters of experts ({_shown(experts)}), whose updates are no products of two matrices: only linear layers are supported"
        )
    found, others = _factors(folder, weights)
    changed = any(settings.get(name) for name in _VARIANTS) or changes_base(
        settings.get("init_lora_weights")
    )
    ranks, alphas = (
        _Numbers(folder, settings, *names, count=len(found))
        for names in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    modules: list[Module] = []
    skipped = [
        (
            factor.key,
            "no LoRA factor: a whole weight (modules_to_save, a resized embedding) or a bias, whose change is not measured",
        )
        for factor in others
    ]
    for name in sorted(found):
        kinds = found[name]
        if what := _not_linear(kinds):
            sentence = f"{name} in {folder} is an adapted {what[0]}, {what[1]}"
            if strict:
                raise BadInput(sentence)
            skipped.append((name, f"an adapted {what[0]}, whose update is not measured"))
            others.extend(kinds.values())
            continue
        if missing := [kind for kind in ("A", "B") if kind not in kinds]:
            raise BadInput(
                f"{folder / (weights or WEIGHTS)} lacks factor {missing[0]} of {name}: save the adapter again"
            )
        down, up, magnitude = kinds["A"], kinds["B"], kinds.get("magnitude_vector")
        _check(name, down.entry, up.entry)
        part: Part = "BA only" if changed or magnitude is not None or not settings else "delta"
        modules.append(
            Module(
                name,
                down,
                up,
                _scale(folder, settings, ranks, alphas, name, down.entry.shape[0]),
                part,
                magnitude,
            )
        )
    if not modules:
        raise BadInput(
            f"{folder / (weights or WEIGHTS)} holds no LoRA factors of linear layers{f' ({skipped[0][0]} is {skipped[0][1]})' if skipped else ''}: name the folder of a LoRA adapter"
        )
    return AdapterFolder(folder, settings, tuple(modules), tuple(skipped), tuple(others))


def _shown(names: object) -> str:
    """Names out of a config, in ASCII, and not more of them than a sentence bears."""
    return listing(
        [ascii(name)[:60].strip("'") for name in (names if isinstance(names, list) else [names])], 3
    )


def _not_linear(kinds: Mapping[str, Factor]) -> tuple[str, str] | None:
    if any(kind.startswith("embedding") for kind in kinds):
        return "embedding", "whose update is not measured: leave embeddings out of the LoRA targets"
    if any(len(kinds[kind].entry.shape) > 2 for kind in ("A", "B") if kind in kinds):
        return (
            "convolution",
            "whose factors are not matrices: only linear layers are supported, leave it out of the LoRA targets",
        )
    return None


def _check(name: str, down: Entry, up: Entry) -> None:
    if (
        len(down.shape) != 2
        or len(up.shape) != 2
        or down.shape[0] != up.shape[1]
        or 0 in (*down.shape, *up.shape)
    ):
        shown = [" × ".join(map(str, entry.shape)) or "of a single number" for entry in (down, up)]
        raise BadInput(
            f"the factors of {name} have shapes A {shown[0]} and B {shown[1]}: they must be r × d_in and d_out × r; save the adapter again"
        )
    if not {down.dtype, up.dtype} <= set(REAL):
        raise BadInput(
            f"the factors of {name} are {down.dtype} and {up.dtype}: they must be floating-point numbers ({listing(REAL)}); save the adapter again"
        )
    if min(down.shape[0], *down.shape[1:], up.shape[0]) > LARGEST_RANK:
        raise BadInput(
            f"{name} has rank {down.shape[0]}, and at most {LARGEST_RANK} is read: no LoRA adapter needs so much; name another file"
        )


# --- files --------------------------------------------------------------------------------------------------------------


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, which no symbolic link may lead out of; the links of the hub's own cache, into its `blobs`, stay in it.

    Raises:
        BadInput: it leads out.
    """
    place = folder / name
    try:
        real, root = place.resolve(strict=True), folder.resolve(strict=True)
    except FileNotFoundError:
        return place
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that is none
        raise BadInput(
            f"{place} cannot be followed ({first_line(error)}): put the file itself there"
        ) from None
    cache = next(
        (parent.parent / "blobs" for parent in (root, *root.parents) if parent.name == "snapshots"),
        None,
    )
    if not real.is_relative_to(root) and not (cache and real.is_relative_to(cache)):
        raise BadInput(
            f"{place} is a symbolic link that leads out of the folder: put the file itself there"
        )
    return place


def _settings(folder: Path) -> dict[str, Any]:
    place = inside(folder, CONFIG)
    if not place.is_file():
        what = f"has no {CONFIG}" if folder.is_dir() else "is no folder"
        raise BadInput(f"{folder} {what}: name a folder that PEFT has saved an adapter in")
    settings = _json(place)
    if str(settings.get("peft_type", "LORA")).upper() != "LORA":
        raise BadInput(
            f"{folder} is a {ascii(settings['peft_type'])[:40].strip(chr(39))} adapter: only LORA is supported"
        )
    return settings


def _json(place: Path) -> dict[str, Any]:
    try:
        if (size := place.stat().st_size) > LARGEST_CONFIG:
            raise BadInput(
                f"{place} has {size:,} bytes, and at most {LARGEST_CONFIG:,} are read: save the adapter again"
            )
        values = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{place} cannot be read as JSON ({first_line(error)}): save the adapter again"
        ) from None
    if not isinstance(values, dict):
        raise BadInput(f"{place} holds no JSON object: save the adapter again")
    return values


def _files(folder: Path, weights: str | None) -> list[Mapped]:
    place = inside(folder, weights or WEIGHTS)
    if weights or place.is_file():
        return [Mapped(place)]
    index = inside(folder, INDEX)
    if not index.is_file():
        pickled = (
            f" (its {PICKLED} is a pickle, which can run code when it is read: load it where you trust it and save it with safe_serialization=True)"
            if (folder / PICKLED).exists()
            else ""
        )
        raise BadInput(f"{folder} has no {WEIGHTS}{pickled}: name a folder that holds one")
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not all(
        isinstance(shard, str) and re.fullmatch(r"\w[\w.-]*\.safetensors", shard)
        for shard in named.values()
    ):
        raise BadInput(
            f"{index} does not name the .safetensors files beside it by tensor: save the adapter again"
        )
    shards = sorted(set(named.values()))
    if lost := [shard for shard in shards if not inside(folder, shard).is_file()]:
        raise BadInput(
            f"{folder} lacks {listing(lost, 3)}, which {INDEX} names: copy the adapter again"
        )
    files = [Mapped(folder / shard) for shard in shards]
    for file, shard in zip(files, shards, strict=True):
        if wrong := set(file.entries) ^ {key for key, at in named.items() if at == shard}:
            raise BadInput(
                f"{folder / shard} and {INDEX} disagree on {ascii(min(wrong))[:80]}: copy the adapter again"
            )
    return files


def _factors(
    folder: Path, weights: str | None
) -> tuple[dict[str, dict[str, Factor]], list[Factor]]:
    """Module name → A, B, and what else belongs to its update; and all other tensors."""
    factors: dict[str, dict[str, Factor]] = {}
    others, adapters = [], set()
    for file in _files(folder, weights):
        for key in file.entries:
            if not (match := _FACTOR.match(key)):
                others.append(Factor(file, key))
                continue
            adapters.add(match["adapter"] or "default")
            kinds = factors.setdefault(plain_name(match["module"]), {})
            if match["factor"] in kinds and len(adapters) == 1:
                raise BadInput(
                    f"{file.place} holds factor {match['factor']} of {plain_name(match['module'])} twice, under two names: save the adapter again"
                )
            kinds[match["factor"]] = Factor(file, key)
    if len(adapters) > 1:
        raise BadInput(
            f"{folder} holds {len(adapters)} adapters in one file ({listing(sorted(adapters), 3)}): save them one by one"
        )
    return factors, others


def plain_name(path: str) -> str:
    """A module's path in the base model, without what PEFT, torch.compile, DDP and FSDP put around it.

    >>> plain_name("base_model.model.model.layers.0._fsdp_wrapped_module.mlp.up_proj")
    'model.layers.0.mlp.up_proj'
    """
    return _WRAPPERS.sub("", path).removeprefix("module.").removeprefix("base_model.model.")


# --- numbers ------------------------------------------------------------------------------------------------------------


class _Numbers:
    """A number by module: that of the first pattern which means it (a regular expression for the end of its path, as PEFT reads it), or the plain setting."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        patterns: str,
        plain: str,
        count: int,
    ) -> None:
        given = settings.get(patterns) or {}
        self._place, self._setting, self._plain = folder / CONFIG, plain, settings.get(plain)
        if not isinstance(given, dict):
            raise BadInput(
                f"{patterns} in {self._place} must be an object of patterns and numbers: save the adapter again"
            )
        if (
            len(given) > _MOST_PATTERNS
            or len(given) * count > _MOST_MATCHES
            or any(len(pattern) > _LONGEST_PATTERN for pattern in given)
        ):
            raise BadInput(
                f"{patterns} in {self._place} has {len(given):,} patterns for {count:,} modules, or a pattern of more than {_LONGEST_PATTERN} characters, which is more than is matched: save the adapter again"
            )
        self._given = [
            (_matcher(pattern, patterns, self._place), value) for pattern, value in given.items()
        ]

    def of(self, name: str) -> float | None:
        value = next((number for matches, number in self._given if matches(name)), self._plain)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(min(value, _LARGEST_NUMBER))
            or abs(value) > _LARGEST_NUMBER
        ):
            raise BadInput(
                f"{self._setting} of {name} is {ascii(value)[:60]} in {self._place}: it must be a number; correct it"
            )
        return float(value)


def _matcher(pattern: str, patterns: str, place: Path) -> Callable[[str], object]:
    """What says whether a pattern means a module: Python's own matching for plain names, and one whose time is bounded for all else."""
    whole = rf"^(.*\.)?({pattern})$"
    try:
        compiled = re.compile(whole)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(
            f"{patterns} in {place} holds '{ascii(pattern)[1:-1][:60]}', which is no regular expression ({first_line(error)}): correct it"
        ) from None
    if re.fullmatch(
        r"\^?[\w.\\-]*\$?", pattern, re.ASCII
    ):  # nothing that repeats, so nothing that can take long
        return compiled.match
    import pyarrow as pa
    from pyarrow import compute

    def matches(name: str) -> bool:  # RE2: linear in the name's length, whoever wrote the pattern
        try:
            return bool(
                compute.call_function(
                    "match_substring_regex", [pa.scalar(name)], compute.MatchSubstringOptions(whole)
                ).as_py()
            )
        except pa.ArrowInvalid:
            raise BadInput(
                f"{patterns} in {place} holds '{ascii(pattern)[1:-1][:60]}', which cannot be matched in bounded time: write it without look-around and references"
            ) from None

    return matches


def _scale(
    folder: Path,
    settings: Mapping[str, Any],
    ranks: _Numbers,
    alphas: _Numbers,
    name: str,
    rank: int,
) -> float:
    if not settings:
        return 1.0
    r = ranks.of(name)
    if r is not None and r != rank:
        raise BadInput(
            f"{name} has rank {rank} in {folder / WEIGHTS}, but {r:g} by {CONFIG}: the two belong to different adapters; save the adapter again"
        )
    alpha = alphas.of(name)
    if alpha is None:
        raise BadInput(
            f"{folder / CONFIG} has no lora_alpha, so the scale of {name} is unknown: add it"
        )
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
