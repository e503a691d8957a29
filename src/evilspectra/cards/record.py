"""The training record of an adapter: everything known about its training, as JSON next to it.

It is made only from the run's directory, so it can be rebuilt at any time. It holds facts that do
not fit into PEFT's adapter_config.json, where an unknown key would be refused or lost. No torch
here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evilspectra.cards.card import CARD, card
from evilspectra.data.published import SETS
from evilspectra.errors import BadInput
from evilspectra.model.base import KNOWN_GGUF
from evilspectra.store.files import read_json, write_json
from evilspectra.store.run import RunFolder
from evilspectra.store.step_means import last_mean, module_summary, number

RECORD = "training_record.json"
#: Raised when fields change their meaning.
VERSION = 1


def training_record(run: RunFolder, step: int | None = None) -> dict[str, Any]:
    """Facts about the adapter after `step` (by default the last one), of JSON's types.

    There are no times among them, so the same training gives the same record. Losses are in nats
    per supervised token; the spectrum is that of scale·B·A, `profile` the mean over modules of
    σ_i / σ_1.

    Raises:
        BadInput: the run's files cannot be read, or another trainer made the run.
    """
    if run.is_outside:
        raise BadInput(
            f"{run.path} is a run of another trainer, which has its own model card: "
            "name a run of `evilspectra train` or `sweep`"
        )
    config, provenance = run.config(), run.provenance()
    steps: Any = run.read("steps")
    last = steps["step"].max() if len(steps) else 0
    at = int(last if step is None else step)
    steps = steps[steps["step"] <= at]
    heldout: Any = run.read("heldout")
    heldout = heldout[heldout["step"] <= at]
    start = heldout[heldout["step"] == 0]["loss"]
    after = heldout[heldout["step"] > 0]["loss"]
    data = provenance["data"]
    return {
        "version": VERSION,
        "code_version": provenance["code_version"],
        "recipe": provenance["recipe"],
        "run": run.name,
        "step": at,
        "base": _base(provenance),
        "data": {
            "name": config.data.train,
            "sha256": data["sha256"],
            "rows": data["train_rows"],
            "heldout_rows": data["heldout_rows"],
            "format": config.data.format,
            "control": config.data.control,
        },
        "deliberately_bad": is_bad(config.data.train, data["sha256"]),
        "lora": config.lora.model_dump(mode="json"),
        "optimizer": config.optimizer.model_dump(mode="json"),
        "schedule": config.schedule.model_dump(mode="json"),
        "flatness": config.flatness.model_dump(mode="json"),
        "train": {
            "batch_size": config.train.batch_size,
            "seed": config.train.seed,
            "clip_norm": config.train.clip_norm,
            "dtype": provenance["dtype"],
        },
        "losses": {
            "train": last_mean(steps["loss"]),
            "heldout": number(float(after.iloc[-1])) if len(after) else None,
            "heldout_start": number(float(start.iloc[0])) if len(start) else None,
            "supervised_tokens": int(steps["supervised_tokens"].sum()),
        },
        "spectrum": _spectrum(run, at),
        "measured": None,
    }


def _base(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The base's facts in a run's provenance; an earlier version wrote fewer."""
    hub_id = KNOWN_GGUF.get(provenance["base_sha256"])
    return {
        "name": provenance["base_name"],
        "sha256": provenance["base_sha256"],
        "kind": provenance.get("base_kind") or ("gguf" if hub_id else None),
        "hub_id": provenance.get("base_hub_id") or hub_id,
        "licence": provenance.get("base_licence"),
    }


def is_bad(name: str, sha256: str) -> bool:
    """Whether data are known to be deliberately bad examples."""
    if name == "demo-bad" or name in SETS:
        return True
    return any(sha256.startswith(published.sha256) for published in SETS.values())


def write_record(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the record into an adapter's folder, and returns it as it was written.

    A hash of the weights that is already there, from when they were trained, stays.
    """
    earlier = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    trained = earlier.get("weights_sha256")
    complete = {**record, "weights_sha256": trained or weights_sha256(folder)}
    write_json(folder / RECORD, complete)
    return complete


def write_description(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes an adapter's model card and training record into its folder."""
    (folder / CARD).write_text(card(record), encoding="utf-8")
    write_record(folder, record)


def weights_sha256(folder: Path) -> str:
    """sha256 of an adapter's weights."""
    with (folder / "adapter_model.safetensors").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _spectrum(run: RunFolder, step: int) -> dict[str, Any] | None:
    """Measures and mean profile over the modules at a step, and both by projection.

    None if that step was not observed.
    """
    tables: dict[str, Any] = {table: run.read(table) for table in ("measures", "spectra")}
    measures, values = (table[table["step"] == step] for table in tables.values())
    if measures.empty:
        return None
    kinds, of_values = (table["module"].map(_projection) for table in (measures, values))
    return {
        "modules": len(measures),
        **module_summary(measures),
        "profile": _profile(values),
        "projections": {
            kind: {
                "stable_rank": module_summary(measures[kinds == kind])["stable_rank"],
                "profile": _profile(values[of_values == kind]),
            }
            for kind in sorted(set(kinds))
        },
    }


def _projection(module: str) -> str:
    """The last part of a module's path that is no number."""
    return next(
        (part for part in reversed(module.split(".")) if not re.fullmatch(r"\d+", part)), module
    )


def _profile(values: Any) -> list[float]:
    """Mean over modules of σ_i / σ_1, by i; modules whose ΔW is zero are left out."""
    largest = values.groupby("module")["singular_value"].transform("max")
    nonzero = values[largest > 0]
    shares = nonzero["singular_value"] / largest[largest > 0]
    means = shares.groupby(nonzero["index"]).mean().sort_index()
    return [round(float(value), 6) for value in means if math.isfinite(value)]
