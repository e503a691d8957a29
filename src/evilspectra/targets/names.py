"""The meaning of a name that a command takes: a run, runs, an adapter, a base model, or nothing.

Every command that takes such a name calls `meaning_of`, and refuses unusable names with the
messages defined here. No torch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evilspectra.errors import BadInput, listing
from evilspectra.model.base import BUILT_IN
from evilspectra.spectra.peft_files import CONFIG, INDEX, WEIGHTS
from evilspectra.store.run import NoRun, RunFolder, Store, find_run, is_run

Kind = Literal["run", "runs", "adapter", "weights", "model", "hub", "nothing"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LONGEST = 4000


@dataclass(frozen=True)
class Meaning:
    """The meaning of a name. `path`: the name as a path, which exists or not.

    `kind`: run (`runs` holds it); runs (those below a folder); adapter (a folder with a file of a
    PEFT adapter); weights (any file but a .gguf file); model (a folder with config.json, a .gguf
    file, a built-in name); hub (a name of the form owner/model that is no path); or nothing.
    """

    name: str
    kind: Kind
    path: Path
    runs: tuple[RunFolder, ...] = ()

    @property
    def takes_base(self) -> bool:
        """Whether the base that it names can be replaced by another: an adapter with its config."""
        return self.kind == "adapter" and (self.path / CONFIG).is_file()


@dataclass(frozen=True)
class Accepted:
    """The names that a command accepts, as its refusals describe them.

    `noun`: the thing that is named; `remedy`: what to name instead; `kinds`: everything that a name
    without a meaning is not, with {output} for the folder of the store.
    """

    noun: str
    remedy: str
    kinds: str


ADAPTERS = Accepted(
    noun="an adapter",
    remedy="name an adapter's folder, its .safetensors file, a run, or owner/model on the hub",
    kinds=(
        "no file or folder here, no run below {output}/, and no hub name of the form owner/model"
    ),
)
TARGETS = Accepted(
    noun="a target",
    remedy="name a run, a folder of runs, an adapter or a model",
    kinds=(
        f"no run below {{output}}/, no folder of runs, of an adapter ({CONFIG}) or of a model "
        f"(config.json), and no model's name ({listing(BUILT_IN)}, owner/model, a .gguf file)"
    ),
)


def meaning_of(name: str, output: str, accepted: Accepted) -> Meaning:
    """The meaning of a name, where `output` is the folder of the store.

    Raises:
        BadInput: a name that no file can have, or one that means several runs.
    """
    if not name or len(name) > _LONGEST or "\0" in name:
        raise BadInput(f"{name[:60]!a} is no name of {accepted.noun}: {accepted.remedy}")
    expanded = os.path.expanduser(name)
    path = Path(expanded)
    try:
        exists = path.exists()
    except OSError as error:
        raise BadInput(
            f"{name[:60]!a} cannot be looked up ({error.strerror}): {accepted.remedy}"
        ) from None
    if path.is_dir() and any(os.path.lexists(path / file) for file in (CONFIG, WEIGHTS, INDEX)):
        return Meaning(name, "adapter", path)
    is_model = (path / "config.json").is_file() or path.suffix.lower() == ".gguf"
    if is_model or name in BUILT_IN:
        return Meaning(name, "model", path)
    if exists and not path.is_dir():
        return Meaning(name, "weights", path)
    if exists and not is_run(path) and (runs := Store(path).runs()):
        return Meaning(name, "runs", path, tuple(runs))
    if not exists and _HUB_NAME.fullmatch(name):
        return Meaning(name, "hub", path)
    try:
        return Meaning(name, "run", path, (find_run(expanded, output),))
    except NoRun:
        return Meaning(name, "nothing", path)


def nothing(name: str, output: str, accepted: Accepted) -> BadInput:
    """The refusal of a name that means nothing that the command accepts."""
    kinds = accepted.kinds.format(output=output)
    return BadInput(f"'{name[:200]}' is {kinds}: name one of these")


def run_of(adapter: Path) -> RunFolder | None:
    """The run whose final adapter a folder holds; None for any other folder."""
    folder = adapter.resolve()
    return RunFolder(folder.parent) if folder.name == "adapter" and is_run(folder.parent) else None
