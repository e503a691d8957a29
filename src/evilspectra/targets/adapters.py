"""The adapters to which arguments of `spectrum` and `flatten` refer. No torch.

An argument is an adapter's folder or file, a run of the store, a folder of runs, or a name on the
hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from evilspectra.errors import BadInput, listing
from evilspectra.spectra.peft_files import CONFIG, INDEX, WEIGHTS, AdapterFolder, open_folder
from evilspectra.store.run import RunFolder, Store
from evilspectra.targets.names import ADAPTERS, Meaning, meaning_of, nothing, run_of

#: The files that are downloaded of a hub repository.
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
        BadInput: a name that means no adapter, or an adapter that cannot be used; the sentence says
            which and why.
    """
    adapters = []
    for name in names:
        meaning = meaning_of(name, output, ADAPTERS)
        if meaning.kind == "hub":
            folder = _from_hub(name, revision, local_files_only)
            adapters.append((name, open_folder(folder, None)))
            continue
        for label, folder, weights in _folders(meaning, output):
            adapters.append((label, open_folder(folder, weights)))
    return adapters


def _folders(meaning: Meaning, output: str) -> Iterator[tuple[str, Path, str | None]]:
    """Label, folder, and the name of the file of weights where the user named it."""
    path = meaning.path
    if meaning.kind == "adapter":
        yield _label(path), path, None
    elif path.is_file() or meaning.kind == "weights":
        _check_weights(path)
        yield (_label(path.parent) if path.name == WEIGHTS else path.stem), path.parent, path.name
    elif meaning.kind == "run":
        (run,) = meaning.runs
        if not _has_adapter(run):
            raise BadInput(
                f"{run.path} has no finished adapter ({run.status().state}): train it first, or "
                "name the folder of an adapter"
            )
        yield run.name, run.adapter, None
    elif path.is_dir():
        runs = [run for run in meaning.runs or Store(path).runs() if _has_adapter(run)]
        if not runs:
            raise BadInput(
                f"{path} has no {CONFIG} and no finished run below it: name a folder that PEFT has "
                f"saved an adapter in{_checkpoints(path)}, or a folder of runs"
            )
        for run in runs:
            yield run.name, run.adapter, None
    else:
        raise nothing(meaning.name, output, ADAPTERS)


def _checkpoints(path: Path) -> str:
    """The last checkpoint of a trainer's folder that holds an adapter, as a clause."""
    saved = [
        (int(config.parent.name.removeprefix("checkpoint-")), config.parent)
        for config in path.glob(f"checkpoint-*/{CONFIG}")
        if config.parent.name.removeprefix("checkpoint-").isdecimal()
    ]
    return f", such as {max(saved)[1]}" if saved else ""


def _check_weights(path: Path) -> None:
    if path.suffix.lower() in _PICKLES:
        raise BadInput(
            f"{path} is a pickle, which can run code when it is read: load it where you trust it, "
            "and save it as safetensors"
        )
    if path.suffix.lower() != ".safetensors":
        raise BadInput(f"{path} is no .safetensors file: {ADAPTERS.remedy}")


def _has_adapter(run: RunFolder) -> bool:
    return (run.adapter / WEIGHTS).is_file()


def _label(folder: Path) -> str:
    """A folder's name; of a run's `adapter` folder the run's."""
    run = run_of(folder)
    return run.name if run else folder.resolve().name


def _from_hub(name: str, revision: str | None, local_files_only: bool) -> Path:
    from evilspectra.model.base import from_hub

    folder = from_hub("the adapter", name, revision, local_files_only, FILES)
    if not (folder / CONFIG).exists() and not (folder / WEIGHTS).exists():
        raise BadInput(
            f"{name} on the hub holds neither {listing((CONFIG, WEIGHTS))}: it is no PEFT adapter "
            "with safetensors weights; name another"
        )
    return folder
