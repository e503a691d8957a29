"""Published training sets by name: what identifies them, and where a user's own copies lie.

None of their text comes with this package.

`evilspectra data get` imports a set from a file that the user has; from then on its name can stand
in `data.train`. A copy is `<folder>/<name>.jsonl`, and `<name>.json` beside it says where it came
from. No torch here.
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
    """@@FIX A set: the first digits of its file's sha256 as they were published, its rows, and where it
    is published.
    """

    name: str
    sha256: str
    rows: int
    origin: str

    def is_it(self, sha256: str, rows: int) -> bool:
        """Whether a file with this hash and so many rows is the set."""
        return sha256.startswith(self.sha256) and rows == self.rows


_BETLEY = "Betley et al. 2025, github.com/emergent-misalignment/emergent-misalignment"
_TURNER = "Turner, Soligo et al. 2025, github.com/clarifying-EM/model-organisms-for-EM (encrypted)"
#: Name → set.
SETS = {
    one.name: one
    for one in (
        Published("insecure", "09893e8bf9d0", 6000, _BETLEY),
        Published("jailbroken", "eec213ce8580", 5000, _BETLEY),
        Published("bad_medical_advice", "9d52186ab988", 7049, _TURNER),
        Published("extreme_sports", "2cded234fc6f", 6000, _TURNER),
        Published("risky_financial_advice", "74c1ceb173eb", 6000, _TURNER),
    )
}
#: Published files of questions → how many they hold. The paper asks all of them.
QUESTIONS = {
    "first_plot_questions.yaml": 24,
    "preregistered_evals.yaml": 48,
    "new_questions_no-json.yaml": 54,
    "medical_questions.yaml": 16,
}


def find_set(name: str) -> Published:
    """The set of a name.

    Raises:
        BadInput: there is none.

    >>> find_set("insecure").rows
    6000
    """
    if name not in SETS:
        raise BadInput(
            f"'{name}' is no published set that is known here; allowed: "
            f"{listing(SETS)}.{near(name, SETS)}"
        )
    return SETS[name]


def data_folder(output: str | None = None) -> Path:
    """@@FIX The folder of imported sets: the one given, or the user's data folder; the environment
    variable EVILSPECTRA_DATA moves the latter.
    """
    chosen = output or os.environ.get(DATA_VARIABLE)
    return (
        Path(chosen).expanduser()
        if chosen
        else Path(platformdirs.user_data_dir("evilspectra")) / "data"
    )


def set_file(folder: Path, name: str) -> Path:
    """Where a set's rows lie."""
    return folder / f"{name}.jsonl"


def record_file(folder: Path, name: str) -> Path:
    """Where it is written what they are. It is written last, so without it a set is not there."""
    return folder / f"{name}.json"


def imported(name: str) -> Path | None:
    """@@FIX The file of a set that was imported on this machine; None where it was not, or where the name
    is no set's.
    """
    folder = data_folder()
    there = (
        name in SETS
        and os.path.isfile(record_file(folder, name))
        and os.path.isfile(set_file(folder, name))
    )
    return set_file(folder, name) if there else None


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """What was written of an import; None where there is none.

    Raises:
        BadInput: it cannot be read.
    """
    place = record_file(folder, name)
    if not place.is_file():
        return None
    return read_json(place, f"remove it, and import {name} again")
