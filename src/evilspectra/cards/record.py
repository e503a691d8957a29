"""What this project knows of an adapter that it trained, as JSON beside the adapter.

Made of the run's directory alone, so it can be made again at any time.

It holds what has no place in PEFT's own adapter_config.json, where an unknown key would be refused
or lost. No torch here.
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
    """Facts of the adapter after `step` (without one: the last), of JSON's types; no times, so that
    the same training gives the same record.

    Losses are in nats per supervised token; the spectrum is that of scale·B·A, `profile` the mean
    over modules of σ_i / σ_1.

    Raises:
        BadInput: the run's files cannot be read, or another trainer made the run.
    """
    if run.is_outside:
        raise BadInput(
            f"{run.path} is a run of another trainer, which has a card of its own: name a run of "
            "`evilspectra train` or `sweep`"
        )
    config, made = run.config(), run.provenance()
    steps: Any = run.read("steps")
    at = int(step if step is not None else steps["step"].max() if len(steps) else 0)
    steps = steps[steps["step"] <= at]
    heldout: Any = run.read("heldout")
    heldout = heldout[heldout["step"] <= at]
    start = heldout[heldout["step"] == 0]["loss"]
    data = made["data"]
    return {
        "version": VERSION,
        "code_version": made["code_version"],
        "recipe": made["recipe"],
        "run": run.name,
        "step": at,
        "base": _base(made),
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
            "dtype": made["dtype"],
        },
        "losses": {
            "train": last_mean(steps["loss"]),
            "heldout": number(float(after.iloc[-1]))
            if len(after := heldout[heldout["step"] > 0]["loss"])
            else None,
            "heldout_start": number(float(start.iloc[0])) if len(start) else None,
            "supervised_tokens": int(steps["supervised_tokens"].sum()),
        },
        "spectrum": _spectrum(run, at),
        "measured": None,
    }


def _base(made: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's provenance; one of an earlier version says less."""
    known = KNOWN_GGUF.get(made["base_sha256"])
    return {
        "name": made["base_name"],
        "sha256": made["base_sha256"],
        "kind": made.get("base_kind") or ("gguf" if known else None),
        "hub_id": made.get("base_hub_id") or known,
        "licence": made.get("base_licence"),
    }


def is_bad(name: str, sha256: str) -> bool:
    """Whether data are known to be deliberately bad examples."""
    return (
        name == "demo-bad"
        or name in SETS
        or any(sha256.startswith(one.sha256) for one in SETS.values())
    )


def write_record(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the record into an adapter's folder; what was said of its weights when they were trained
    is kept. Gives what was written.
    """
    known = (
        read_json(folder / RECORD).get("weights_sha256") if (folder / RECORD).is_file() else None
    )
    whole = {**record, "weights_sha256": known or weights_sha256(folder)}
    write_json(folder / RECORD, whole)
    return whole


def write_description(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes an adapter's model card and training record into its folder."""
    (folder / CARD).write_text(card(record), encoding="utf-8")
    write_record(folder, record)


def weights_sha256(folder: Path) -> str:
    """sha256 of an adapter's weights."""
    with (folder / "adapter_model.safetensors").open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _spectrum(run: RunFolder, step: int) -> dict[str, Any] | None:
    """Of the modules at the step, where it was observed: measures, mean profile, and both by
    projection.
    """
    found: dict[str, Any] = {table: run.read(table) for table in ("measures", "spectra")}
    measures, values = (table[table["step"] == step] for table in found.values())
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
    kept = values[largest > 0]
    means = (
        (kept["singular_value"] / largest[largest > 0]).groupby(kept["index"]).mean().sort_index()
    )
    return [round(float(value), 6) for value in means if math.isfinite(value)]
