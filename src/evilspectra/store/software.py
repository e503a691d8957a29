"""Python, platform and versions of packages, for the record of a run's origins."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

#: Packages whose versions are recorded where they are installed.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "numpy",
)
#: Those that only other trainers use.
_OF_TRAINERS = ("trl", "accelerate")


def software(trainers: bool = False) -> dict[str, Any]:
    """Python, platform and versions of packages, of those that only `trainers` use on request."""
    names = [name for name in PACKAGES if trainers or name not in _OF_TRAINERS]
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in names if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
