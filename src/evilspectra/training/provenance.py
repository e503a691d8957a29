"""The origins of a result: code, packages, device, data and base; written when a run begins."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import evilspectra
from evilspectra.config.sections import RECIPE, Config
from evilspectra.data.batches import DataReport
from evilspectra.model.base import KNOWN_GGUF, Base
from evilspectra.model.licence import licence_of
from evilspectra.store.software import software


def provenance(
    config: Config,
    base: Base,
    data: DataReport,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    """The record of a run's origins, of JSON's types; it names no person and no machine."""
    changes = _git("status", "--porcelain")
    return {
        "code_version": evilspectra.__version__,
        "code_commit": _git("rev-parse", "HEAD"),
        "code_dirty": None if changes is None else bool(changes),
        "recipe": RECIPE,
        **software(),
        "device": device,
        "dtype": dtype,
        "threads": config.train.threads,
        "base_name": base.public_name,
        "base_sha256": base.sha256,
        "base_kind": base.kind,
        "base_hub_id": _hub_id(base, config.model.base),
        "base_licence": licence_of(base),
        "data": data.as_dict(),
    }


def _hub_id(base: Base, name: str) -> str | None:
    """The hub's name of the base; None for a model from elsewhere."""
    if base.kind == "folder" and not Path(name).expanduser().is_dir():
        return base.public_name
    return base.public_name if base.public_name in KNOWN_GGUF.values() else None


def _git(*arguments: str) -> str | None:
    """Git's output for the checkout that this package runs from.

    None for an installed package, or without git.
    """
    folder = Path(__file__).parents[1]
    if folder.parent.name != "src" or not (folder.parents[1] / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
