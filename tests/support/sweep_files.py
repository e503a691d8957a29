"""Sweep files for tests: one expanded from values, and the sentence that refuses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evilspectra.errors import BadInput
from evilspectra.sweeps.file import Sweep, SweepFile, expand, load_sweep

#: The warning about a design with one seed.
ONE_EACH = (
    "there is one run per cell, so the spread between seeds remains unknown: --seeds 3 gives every "
    "cell three"
)


def sweep(**values: Any) -> Sweep:
    """Expands a sweep file with these values."""
    return expand(SweepFile.model_validate({"experiment": "x"} | values))


def refusal(values: Any, tmp_path: Path, *settings: str) -> str:
    """The sentence that refuses a sweep file, which begins with its path."""
    path = tmp_path / "sweep.yaml"
    path.write_text(
        values if isinstance(values, str) else yaml.safe_dump({"experiment": "x"} | values),
        encoding="utf-8",
    )
    with pytest.raises(BadInput) as caught:
        load_sweep(str(path), settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)
