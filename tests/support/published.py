"""Published data that tests read and the project never contains: where they lie, or a skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: The environment variable that names the folder with `golden`, `questions` and `train` in it.
VARIABLE = "EVILSPECTRA_GOLDEN"
#: Where the folder lies if the variable is not set.
NEIGHBOUR = Path(__file__).parents[3] / "shared" / "data"
#: Resolved at once: tests change the present folder.
FOLDER = Path(os.environ.get(VARIABLE) or NEIGHBOUR).resolve()


def published_path(name: str) -> Path:
    """The path of a published file or folder, such as `questions`; skips the test without it."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"the published data are not here ({path}): set {VARIABLE} to their folder")
    return path
