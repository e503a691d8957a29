"""@@FIX What an argument of `spectrum` and `flatten` means: an adapter's folder or file, a run of the
store, a folder of runs, or a name on the hub. No torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from evilspectra.errors import BadInput, listing
from evilspectra.spectra.peft_files import CONFIG, INDEX, WEIGHTS, AdapterFolder, open_folder

#: What is fetched of a hub repository.
FILES = (CONFIG, WEIGHTS, INDEX, "adapter_model-*.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def find_adapters(
    names: Sequence[str],
    output: str = "runs",
    revision: str | None = None,
    local_files_only: bool = False,
) -> list[tuple[str, AdapterFolder]]:
    """Label and adapter of every argument, in order.

    Raises:
        BadInput: a name that is nothing of the kind, or an adapter that cannot be used; the
            sentence says which and why.
    """
    return [
        (label, open_folder(folder, weights))
        for name in names
        for label, folder, weights in _places(name, output, revision, local_files_only)
    ]


def _places(
    name: str,
    output: str,
    revision: str | None,
    local_files_only: bool,
) -> list[tuple[str, Path, str | None]]:
    """Label, folder, and the name of the file of weights where that was named."""
    if not name or len(name) > 4000 or "\0" in name:
        raise BadInput(
            f"{name[:60]!a} is no name of an adapter: name its folder, its .safetensors file, a "
            "run, or owner/model on the hub"
        )
    place = Path(name).expanduser()
    try:
        there = place.exists()
    except OSError as error:
        raise BadInput(
            f"{name[:60]!a} cannot be looked up ({error.strerror}): name an adapter's folder, its "
            ".safetensors file, a run, or owner/model on the hub"
        ) from None
    if there and not place.is_dir():
        return [_file(place)]
    if there and any(os.path.lexists(place / file) for file in (CONFIG, WEIGHTS, INDEX)):
        return [(_label(place), place, None)]
    return _from_store(name, place, output) or [_from_hub(name, revision, local_files_only)]


def _file(place: Path) -> tuple[str, Path, str]:
    if place.suffix.lower() in _PICKLES:
        raise BadInput(
            f"{place} is a pickle, which can run code when it is read: load it where you trust "
            "it, and save it as safetensors"
        )
    if place.suffix.lower() != ".safetensors":
        raise BadInput(
            f"{place} is no .safetensors file: name an adapter's folder, its .safetensors file, a "
            "run, or owner/model on the hub"
        )
    return (_label(place.parent) if place.name == WEIGHTS else place.stem), place.parent, place.name


def _label(folder: Path) -> str:
    """A folder's name; of a run's `adapter` folder the run's."""
    real = folder.resolve()
    return (
        real.parent.name
        if real.name == "adapter" and (real.parent / "config.yaml").is_file()
        else real.name
    )


def _from_store(name: str, place: Path, output: str) -> list[tuple[str, Path, str | None]]:
    from evilspectra.store.run import NoRun, Store, find_run, is_run

    if place.is_dir() and not is_run(place):
        runs = [run for run in Store(place).runs() if (run.adapter / WEIGHTS).is_file()]
        if not runs:
            raise BadInput(
                f"{place} has no {CONFIG} and no finished run below it: name a folder that PEFT "
                "has saved an adapter in, or a folder of runs"
            )
        return [(run.name, run.adapter, None) for run in runs]
    try:
        run = find_run(name, output)
    except NoRun:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
            return []
        raise BadInput(
            f"'{name[:200]}' is no file or folder here, no run below {output}/, and no hub name "
            "of the form owner/model: name one of these"
        ) from None
    if not (run.adapter / WEIGHTS).is_file():
        raise BadInput(
            f"{run.path} has no finished adapter ({run.status().state}): train it first, or name "
            "the folder of an adapter"
        )
    return [(run.name, run.adapter, None)]


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> tuple[str, Path, None]:
    from evilspectra.model.base import from_hub

    folder = from_hub("the adapter", name, revision, local_files_only, FILES)
    if not (folder / CONFIG).exists() and not (folder / WEIGHTS).exists():
        raise BadInput(
            f"{name} on the hub holds neither {listing((CONFIG, WEIGHTS))}: it is no PEFT adapter "
            "with safetensors weights; name another"
        )
    return name, folder, None
