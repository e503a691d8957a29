"""adapter_config.json of a PEFT adapter: its settings, and the scale of every module.

The scale is alpha/r, or rank-stabilised alpha/√r, with `rank_pattern` and `alpha_pattern` by
module. Configs come from anywhere, so their size, their patterns and their numbers are bounded, and
links that lead out of the folder are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evilspectra.errors import BadInput, first_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Bounds on a config.
LARGEST_CONFIG = 1 << 24
_LARGEST_NUMBER = 1e12
_MOST_PATTERNS, _MOST_MATCHES, _LONGEST_PATTERN = 20_000, 10_000_000, 1000
#: Patterns in which nothing repeats, so that nothing can take long to match.
_PLAIN = re.compile(r"\^?[\w.\\-]*\$?", re.ASCII)


class Scales:
    """The scale of every module of an adapter; 1 where there is no config.

    Args:
        folder: of the adapter.
        settings: its config.
        count: of its modules.

    Raises:
        BadInput: patterns that cannot be used, or are too many.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], count: int) -> None:
        self._folder, self._settings = folder, settings
        self._ranks = _NumberByModule(folder, settings, "rank_pattern", "r", count)
        self._alphas = _NumberByModule(folder, settings, "alpha_pattern", "lora_alpha", count)

    def of(self, name: str, rank: int) -> float:
        """The scale of one module, whose factors have that rank.

        Raises:
            BadInput: the config contradicts the rank, or has no alpha.
        """
        if not self._settings:
            return 1.0
        configured = self._ranks.of(name)
        if configured is not None and configured != rank:
            raise BadInput(
                f"{name} has rank {rank} in {self._folder / WEIGHTS}, but {configured:g} by "
                f"{CONFIG}: the two belong to different adapters; save the adapter again"
            )
        alpha = self._alphas.of(name)
        if alpha is None:
            raise BadInput(
                f"{self._folder / CONFIG} has no lora_alpha, so the scale of {name} is unknown: "
                "add it"
            )
        return alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)


class _NumberByModule:
    """A number by module: that of the first pattern that matches its path, or the plain setting.

    Patterns are regular expressions for the end of the path, as PEFT reads them.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        patterns: str,
        plain: str,
        count: int,
    ) -> None:
        self._path = folder / CONFIG
        self._setting, self._plain = plain, settings.get(plain)
        numbers = settings.get(patterns) or {}
        if not isinstance(numbers, dict):
            raise BadInput(
                f"{patterns} in {self._path} must be an object of patterns and numbers: "
                "save the adapter again"
            )
        too_many = len(numbers) > _MOST_PATTERNS or len(numbers) * count > _MOST_MATCHES
        if too_many or any(len(pattern) > _LONGEST_PATTERN for pattern in numbers):
            raise BadInput(
                f"{patterns} in {self._path} has {len(numbers):,} patterns for {count:,} modules, "
                f"or a pattern of more than {_LONGEST_PATTERN} characters, which is more than is "
                "matched: save the adapter again"
            )
        self._numbers = [
            (_matcher(pattern, patterns, self._path), number) for pattern, number in numbers.items()
        ]

    def of(self, name: str) -> float | None:
        value = next((number for matches, number in self._numbers if matches(name)), self._plain)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= _LARGEST_NUMBER:
            raise BadInput(
                f"{self._setting} of {name} is {ascii(value)[:60]} in {self._path}: "
                "it must be a number; correct it"
            )
        return float(value)


def _matcher(pattern: str, patterns: str, path: Path) -> Callable[[str], object]:
    """Returns the function that says whether a pattern matches a module.

    Plain names are matched by Python; anything else by RE2, whose time is bounded.
    """
    expression = rf"^(.*\.)?({pattern})$"
    try:
        compiled = re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadInput(
            f"{patterns} in {path} holds '{ascii(pattern)[1:-1][:60]}', which is not a "
            f"regular expression ({first_line(error)}): correct it"
        ) from None
    if _PLAIN.fullmatch(pattern):
        return compiled.match
    import pyarrow as pa
    from pyarrow import compute

    options = compute.MatchSubstringOptions(expression)

    def matches(name: str) -> bool:  # RE2: linear in the name's length, whoever wrote the pattern
        try:
            matched = compute.call_function("match_substring_regex", [pa.scalar(name)], options)
        except pa.ArrowInvalid:
            raise BadInput(
                f"{patterns} in {path} holds '{ascii(pattern)[1:-1][:60]}', which cannot be "
                "matched in bounded time: write it without look-around and references"
            ) from None
        return bool(matched.as_py())

    return matches


# --- files ----------------------------------------------------------------------------------------


def inside(folder: Path, name: str) -> Path:
    """The path of a file in a folder, which no symbolic link may lead out of.

    The links of the hub's own cache, into its `blobs`, stay in it.

    Raises:
        BadInput: it leads out.
    """
    path = folder / name
    try:
        real, root = path.resolve(strict=True), folder.resolve(strict=True)
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name that is none
        raise BadInput(
            f"{path} cannot be followed ({first_line(error)}): put the file itself there"
        ) from None
    snapshots = [parent for parent in (root, *root.parents) if parent.name == "snapshots"]
    in_cache = bool(snapshots) and real.is_relative_to(snapshots[0].parent / "blobs")
    if not real.is_relative_to(root) and not in_cache:
        raise BadInput(
            f"{path} is a symbolic link that leads out of the folder: put the file itself there"
        )
    return path


def read_settings(folder: Path) -> dict[str, Any]:
    """The config of the adapter in a folder.

    Raises:
        BadInput: no config, or one of another kind of adapter than LoRA.
    """
    path = inside(folder, CONFIG)
    if not path.is_file():
        fault = f"has no {CONFIG}" if folder.is_dir() else "is not a folder"
        raise BadInput(f"{folder} {fault}: name a folder that PEFT has saved an adapter in")
    settings = read_json(path)
    if str(settings.get("peft_type", "LORA")).upper() != "LORA":
        kind = ascii(settings["peft_type"])[:40].strip("'")
        raise BadInput(f"{folder} is a {kind} adapter: only LORA is supported")
    return settings


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file of at most `LARGEST_CONFIG` bytes.

    Raises:
        BadInput: the file is larger, cannot be read, or holds no object.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_CONFIG:
            raise BadInput(
                f"{path} has {size:,} bytes, and at most {LARGEST_CONFIG:,} are read: "
                "save the adapter again"
            )
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{path} cannot be read as JSON ({first_line(error)}): save the adapter again"
        ) from None
    if not isinstance(values, dict):
        raise BadInput(f"{path} holds no JSON object: save the adapter again")
    return values
