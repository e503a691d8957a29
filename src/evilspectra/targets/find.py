"""The targets to which arguments of measuring commands refer. No torch here.

An argument is a run, a folder of runs, an adapter or a base model (`targets.names`).

Measurements of a run are kept in its folder. Those of an adapter or a model from outside the store
are kept in `<output>/evaluated/<name>-<digest of its weights>/`, with a `target.json` that names
them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evilspectra.config.loading import build
from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput, listing
from evilspectra.model import base as bases
from evilspectra.model.base import EMBEDDED, EMBEDDED_PACKAGE, KNOWN_GGUF, Base, file_sha256
from evilspectra.spectra.peft_files import CONFIG, WEIGHTS
from evilspectra.store.files import read_json, write_json
from evilspectra.store.labels import arm
from evilspectra.store.results import Instrument, Results
from evilspectra.store.run import RunFolder
from evilspectra.targets.names import TARGETS, meaning_of, nothing, run_of


@dataclass(frozen=True)
class Target:
    """Adapters of one base that are measured together.

    `adapters`: step → folder, in order; the last is the end of training. `label`: its name in
    tables. `control`: trained on good answers, for comparison.
    """

    label: str
    results: Results
    model: ModelConfig
    base: Base
    adapters: dict[int, Path]
    control: bool = False

    def showing(self, instruments: Mapping[str, Instrument]) -> Target:
        """The same, its results read with these instruments."""
        return replace(self, results=replace(self.results, selected=instruments))

    @property
    def last(self) -> int:
        """The last adapter's step; 0 for a base without adapters."""
        return max(self.adapters, default=0)


def find_targets(
    names: Sequence[str],
    output: str = "runs",
    model: ModelConfig | None = None,
    base: str | None = None,
) -> list[Target]:
    """The targets that arguments mean, each of them once.

    `model` holds device and number type, `base` names the base of adapters that lie outside a run.

    Raises:
        BadInput: a name that is nothing of the kind, a run without a finished adapter, or a base
            that is not the one trained on.
    """
    targets: dict[Path, Target] = {}
    for name in names:
        for target in _find(name, output, model, base):
            targets.setdefault(target.results.folder.resolve(), target)
    return list(targets.values())


def run_target(run: RunFolder, model: ModelConfig | None = None) -> Target:
    """A run's adapters: its checkpoints and the end.

    Raises:
        BadInput: it has not been trained to its end, or its base is no longer what it was trained
            on.
    """
    if run.is_outside:
        raise BadInput(
            f"{run.path} holds the spectra of a run of another trainer, and no adapter: name the "
            "folder of its adapter (adapter_config.json) instead"
        )
    status, config = run.status(), run.config()
    done = status.state == "done" and (run.adapter / WEIGHTS).is_file()
    if not done or status.step is None:
        reason = f": {status.reason}" if status.reason else ""
        raise BadInput(
            f"{run.path} is not trained to its end ({status.state}{reason}): train it first, with "
            "`evilspectra train` or `sweep`"
        )
    settings = _on_device(config.model, model)
    base = bases.resolve(settings)
    recorded = run.provenance().get("base_sha256")
    if recorded != base.sha256:
        raise BadInput(
            f"{run.path} was trained on another content of {config.model.base} "
            f"({str(recorded)[:12]} there, {base.sha256[:12]} here): restore that base, or train "
            "again"
        )
    checkpoints = run.checkpoints().items()
    adapters = {step: folder for step, folder in checkpoints if 0 < step < status.step}
    adapters[status.step] = run.adapter
    label = f"{arm(config)}, seed {config.train.seed}"
    return Target(label, Results(run.path), settings, base, adapters, config.data.control)


def _find(
    name: str,
    output: str,
    model: ModelConfig | None,
    base: str | None,
) -> list[Target]:
    meaning = meaning_of(name, output, TARGETS)
    path = meaning.path
    if meaning.takes_base:
        run = run_of(path)
        if run and base is None:
            return [run_target(run, model)]
        return [_adapter_target(path, output, model, base)]
    if base is not None:
        raise BadInput(
            f"--base {base} is for the folder of an adapter, and '{name}' holds no "
            f"{CONFIG}: leave it out"
        )
    if meaning.kind in ("model", "hub"):
        return [_model_target(name, output, model)]
    if meaning.kind == "run":
        return [run_target(run, model) for run in meaning.runs]
    if meaning.kind == "runs":
        return [run_target(run, model) for run in _finished(meaning.runs, name)]
    raise nothing(name, output, TARGETS)


def _finished(runs: Sequence[RunFolder], name: str) -> Sequence[RunFolder]:
    """The runs below a folder that are trained to their end.

    Runs of other trainers, which hold no adapter, are left out where there are others.

    Raises:
        BadInput: none is.
    """
    done = [run for run in runs if run.status().state == "done"]
    if not done:
        states = [f"{run.name}: {run.status().state}" for run in runs]
        raise BadInput(
            f"none of the {len(runs)} runs below {name} is trained to its end "
            f"({listing(states, 3)}): train them first"
        )
    return [run for run in done if not run.is_outside] or done


def _adapter_target(
    folder: Path,
    output: str,
    model: ModelConfig | None,
    base: str | None,
) -> Target:
    weights, config = folder / WEIGHTS, folder / CONFIG
    if not weights.is_file():
        raise BadInput(
            f"{folder} holds no {WEIGHTS}: save the adapter as safetensors (PEFT does so by "
            "default)"
        )
    base_name = base or read_json(config).get("base_model_name_or_path")
    if not isinstance(base_name, str) or not base_name:
        raise BadInput(f"{config} names no base model: name it with --base")
    trained = build({"model": {"base": embedded_name(base_name)}}, "--base").model
    settings = _on_device(trained, model)
    resolved = bases.resolve(settings)
    contents = file_sha256(weights) + file_sha256(config) + resolved.sha256
    real = folder.resolve()
    return _outside_target(
        name=real.parent.name if real.name == "adapter" else real.name,
        digest=hashlib.sha256(contents.encode()).hexdigest(),
        output=output,
        settings=settings,
        base=resolved,
        adapter=folder,
    )


def _model_target(name: str, output: str, model: ModelConfig | None) -> Target:
    settings = _on_device(build({"model": {"base": name}}, "the model").model, model)
    resolved = bases.resolve(settings)
    return _outside_target(
        name=Path(name).name or Path(name).resolve().name,
        digest=resolved.sha256,
        output=output,
        settings=settings,
        base=resolved,
        adapter=None,
    )


def _outside_target(
    name: str,
    digest: str,
    output: str,
    settings: ModelConfig,
    base: Base,
    adapter: Path | None,
) -> Target:
    """The target of an adapter, or of a base alone, that lies outside the store.

    Its `target.json` is written where there is none.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80].lstrip(".") or "target"
    folder = outside_folder(output, stem, digest)
    facts = {
        "adapter": str(adapter.resolve()) if adapter else None,
        "base": base.public_name,
        "base_sha256": base.sha256,
    }
    describe_outside(folder, facts)
    adapters = {1: adapter} if adapter else {}
    return Target(name, Results(folder, alone=not adapters), settings, base, adapters)


def outside_folder(output: str, stem: str, digest: str) -> Path:
    """The folder in a store for the results of something from outside it.

    >>> outside_folder("runs", "mine", "0123456789abcdef").as_posix()
    'runs/evaluated/mine-0123456789'
    """
    return Path(output).expanduser() / "evaluated" / f"{stem}-{digest[:10]}"


def describe_outside(folder: Path, facts: dict[str, Any]) -> None:
    """Writes what the results in such a folder are about, unless it says so already."""
    if not (folder / "target.json").is_file():
        write_json(folder / "target.json", facts)


def embedded_name(name: str) -> str:
    """The built-in name of a hub model whose weights come with an installed package.

    Any other name is returned unchanged.

    >>> embedded_name("./my-model")
    './my-model'
    """
    if name not in KNOWN_GGUF.values():
        return name
    try:
        importlib.metadata.distribution(EMBEDDED_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return name
    return EMBEDDED


def _on_device(trained: ModelConfig, wanted: ModelConfig | None) -> ModelConfig:
    """The base's settings, with the device and the number type of `wanted`."""
    if wanted is None:
        return trained
    if "base" in wanted.model_fields_set:
        raise BadInput(
            f"--model base={wanted.base} is refused: the target says which base it is; for an "
            "adapter from elsewhere there is --base"
        )
    changes = {name: getattr(wanted, name) for name in wanted.model_fields_set}
    return build({"model": trained.model_dump() | changes}, "--model").model
