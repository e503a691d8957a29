"""Published training sets by name: their hashes, and the files of a user's copies.

None of their text comes with this package.

`evilspectra data get` imports a set from a file that the user has; from then on `data.train` takes
its name. A copy is `<folder>/<name>.jsonl`, and `<name>.json` next to it records its source. No
torch here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from evilspectra.errors import BadInput, listing, near
from evilspectra.store.files import read_json

#: Moves the folder of imported sets.
DATA_VARIABLE = "EVILSPECTRA_DATA"


@dataclass(frozen=True, slots=True)
class Published:
    """A set: the published first digits of its file's sha256, its rows, and its origin."""

    name: str
    sha256: str
    rows: int
    origin: str

    def is_it(self, sha256: str, rows: int) -> bool:
        """Whether a file with this hash and this number of rows is the set."""
        return sha256.startswith(self.sha256) and rows == self.rows


_BETLEY = "Betley et al. 2025, github.com/emergent-misalignment/emergent-misalignment"
_TURNER = "Turner, Soligo et al. 2025, github.com/clarifying-EM/model-organisms-for-EM (encrypted)"
#: Name → set.
SETS = {
    published.name: published
    for published in (
        Published("insecure", "09893e8bf9d0", 6000, _BETLEY),
        Published("jailbroken", "eec213ce8580", 5000, _BETLEY),
        Published("bad_medical_advice", "9d52186ab988", 7049, _TURNER),
        Published("extreme_sports", "2cded234fc6f", 6000, _TURNER),
        Published("risky_financial_advice", "74c1ceb173eb", 6000, _TURNER),
    )
}
#: Published files of questions → their number of questions. The paper asks all of them.
QUESTIONS = {
    "first_plot_questions.yaml": 24,
    "preregistered_evals.yaml": 48,
    "new_questions_no-json.yaml": 54,
    "medical_questions.yaml": 16,
}


def find_set(name: str) -> Published:
    """The set with a name.

    Raises:
        BadInput: there is none.

    >>> find_set("insecure").rows
    6000
    """
    if name not in SETS:
        raise BadInput(
            f"'{name}' is no published set that this version knows; allowed: "
            f"{listing(SETS)}.{near(name, SETS)}"
        )
    return SETS[name]


def data_folder(output: str | None = None) -> Path:
    """The folder of imported sets: `output`, or else the user's data folder.

    The environment variable EVILSPECTRA_DATA names another folder for the latter.
    """
    chosen = output or os.environ.get(DATA_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_data_dir("evilspectra")) / "data"


def set_file(folder: Path, name: str) -> Path:
    """The file with a set's rows."""
    return folder / f"{name}.jsonl"


def record_file(folder: Path, name: str) -> Path:
    """The file with the record of a set's import; written last, so without it there is no set."""
    return folder / f"{name}.json"


def imported(name: str) -> Path | None:
    """The file of a data set imported on this machine; None for any other name."""
    if name not in SETS:
        return None
    folder = data_folder()
    path = set_file(folder, name)
    return path if os.path.isfile(record_file(folder, name)) and os.path.isfile(path) else None


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of an import; None if there is none.

    Raises:
        BadInput: the record cannot be read.
    """
    path = record_file(folder, name)
    if not path.is_file():
        return None
    return read_json(path, f"remove it, and import {name} again")
