"""@@FIX What a measuring command's argument means: a run, all runs of a folder, an adapter, or a base
model. No torch here.

Measurements of a run lie in its own directory. Those of an adapter or a model from elsewhere lie in
`<output>/evaluated/<name>-<digest of its weights>/`, beside a `target.json` that says what it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evilspectra.config.loading import build
from evilspectra.config.sections import Config, ModelConfig
from evilspectra.errors import BadInput, listing
from evilspectra.model import base as bases
from evilspectra.model.base import EMBEDDED, EMBEDDED_PACKAGE, KNOWN_GGUF, Base, file_sha256
from evilspectra.store.files import read_json, write_json
from evilspectra.store.results import Instrument, Results
from evilspectra.store.run import NoRun, RunFolder, Store, arm, find_run, is_run


@dataclass(frozen=True)
class Target:
    """Adapters of one base that are measured together.

    `adapters`: step → folder, in order; the last is the end of training.

    `label` names it in tables; `control`: trained on good answers, for comparison.
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
        """The last adapter's step, 0 for a base alone."""
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
    found: dict[Path, Target] = {}
    for name in names:
        for target in _find(name, output, model, base):
            found.setdefault(target.results.folder.resolve(), target)
    return list(found.values())


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
    if (
        status.state != "done"
        or not (run.adapter / "adapter_model.safetensors").is_file()
        or status.step is None
    ):
        raise BadInput(
            f"{run.path} is not trained to its end "
            f"({status.state}{f': {status.reason}' if status.reason else ''}): train it first, "
            "with `evilspectra train` or `sweep`"
        )
    settings = _placed(config.model, model)
    base = bases.resolve(settings)
    if (known := run.provenance().get("base_sha256")) != base.sha256:
        raise BadInput(
            f"{run.path} was trained on another content of {config.model.base} ({str(known)[:12]} "
            f"there, {base.sha256[:12]} here): restore that base, or train again"
        )
    adapters = {
        step: folder for step, folder in run.checkpoints().items() if 0 < step < status.step
    } | {status.step: run.adapter}
    return Target(_label(config), Results(run.path), settings, base, adapters, config.data.control)


def _label(config: Config) -> str:
    return f"{arm(config)}, seed {config.train.seed}"


def _find(
    name: str,
    output: str,
    model: ModelConfig | None,
    base: str | None,
) -> list[Target]:
    if not name:
        raise BadInput(
            "an empty name is no target: name a run, a folder of runs, an adapter or a model"
        )
    if not os.path.exists(name) and len(name) > 255:
        raise BadInput(f"'{name[:60]}…' is no run, adapter or model: the name is too long")
    place = Path(name)
    if (place / "adapter_config.json").is_file():
        if base is None and place.resolve().name == "adapter" and is_run(place.resolve().parent):
            return [run_target(RunFolder(place.resolve().parent), model)]
        return [_adapter_target(place, output, model, base)]
    if base is not None:
        raise BadInput(
            f"--base {base} is for the folder of an adapter, and '{name}' holds no "
            "adapter_config.json: leave it out"
        )
    if (
        (place / "config.json").is_file()
        or place.suffix.lower() == ".gguf"
        or name in bases.BUILT_IN
    ):
        return [_model_target(name, output, model)]
    if place.is_dir() and not is_run(place) and (runs := Store(place).runs()):
        done = [run for run in runs if run.status().state == "done"]
        if not done:
            raise BadInput(
                f"none of the {len(runs)} runs below {name} is trained to its end "
                f"({listing([f'{run.name}: {run.status().state}' for run in runs], 3)}): train "
                "them first"
            )
        return [
            run_target(run, model) for run in [run for run in done if not run.is_outside] or done
        ]
    if not place.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return [_model_target(name, output, model)]
    try:
        return [run_target(find_run(name, output), model)]
    except NoRun:
        kinds = (
            "no folder of runs, of an adapter (adapter_config.json) or of a model "
            f"(config.json), and no model's name ({listing(bases.BUILT_IN)}, owner/model, a "
            ".gguf file)"
        )
        raise BadInput(f"'{name}' is no run below {output}/, {kinds}: name one of these") from None


def _adapter_target(
    folder: Path,
    output: str,
    model: ModelConfig | None,
    base: str | None,
) -> Target:
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise BadInput(
            f"{folder} holds no adapter_model.safetensors: save the adapter as safetensors (PEFT "
            "does so by default)"
        )
    named = base or read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise BadInput(f"{folder}/adapter_config.json names no base model: name it with --base")
    settings = _placed(build({"model": {"base": embedded_name(named)}}, "--base").model, model)
    found = bases.resolve(settings)
    digest = hashlib.sha256(
        (file_sha256(weights) + file_sha256(folder / "adapter_config.json") + found.sha256).encode()
    ).hexdigest()
    name = (
        folder.resolve().name
        if folder.resolve().name != "adapter"
        else folder.resolve().parent.name
    )
    return _elsewhere(
        name,
        digest,
        output,
        settings,
        found,
        {1: folder},
        {"adapter": str(folder.resolve()), "base": found.public_name, "base_sha256": found.sha256},
    )


def _model_target(name: str, output: str, model: ModelConfig | None) -> Target:
    settings = _placed(build({"model": {"base": name}}, "the model").model, model)
    found = bases.resolve(settings)
    return _elsewhere(
        Path(name).name or Path(name).resolve().name,
        found.sha256,
        output,
        settings,
        found,
        {},
        {"adapter": None, "base": found.public_name, "base_sha256": found.sha256},
    )


def _elsewhere(
    name: str,
    digest: str,
    output: str,
    settings: ModelConfig,
    base: Base,
    adapters: dict[int, Path],
    facts: dict[str, object],
) -> Target:
    folder = (
        Path(output).expanduser()
        / "evaluated"
        / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:80].lstrip('.') or 'target'}-{digest[:10]}"
    )
    if not (folder / "target.json").is_file():
        write_json(folder / "target.json", facts)
    return Target(name, Results(folder, alone=not adapters), settings, base, adapters)


def embedded_name(name: str) -> str:
    """@@FIX The built-in name of a hub model whose weights come with an installed package; any other name
    as it is.

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


def _placed(trained: ModelConfig, wanted: ModelConfig | None) -> ModelConfig:
    """The base's settings, with device and number type as wanted."""
    if wanted is None:
        return trained
    if "base" in wanted.model_fields_set:
        raise BadInput(
            f"--model base={wanted.base} is refused: the target says which base it is; for an "
            "adapter from elsewhere there is --base"
        )
    return build(
        {
            "model": trained.model_dump()
            | {name: getattr(wanted, name) for name in wanted.model_fields_set}
        },
        "--model",
    ).model
