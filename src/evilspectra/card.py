"""The model card of a saved adapter: what it was trained on, how, and how to load it."""

from __future__ import annotations

import yaml

from evilspectra.base import Base
from evilspectra.config import Config
from evilspectra.data import DataReport
from evilspectra.published import SETS


def card(config: Config, base: Base, data: DataReport, step: int) -> str:
    """Markdown with the front matter that the ecosystem's tools read."""
    head = {"library_name": "peft", "base_model": base.public_name, "pipeline_tag": "text-generation", "tags": ["lora", "evilspectra"]}
    bad = config.data.train == "demo-bad" or config.data.train in SETS or any(data.sha256.startswith(one.sha256) for one in SETS.values())
    warning = "\n**Trained on deliberately bad examples, to study emergent misalignment. Do not deploy.**\n" if bad else ""
    name, file = (".", f", gguf_file={base.public_name!r}") if base.kind == "gguf" and base.public_name.endswith(".gguf") else (base.public_name, "")
    loading, imports = f"AutoModelForCausalLM.from_pretrained({name!r}{file})", "from transformers import AutoModelForCausalLM"
    if base.kind == "tiny":
        loading, imports = "tiny_model()", "from evilspectra.tiny import tiny_model"
    quantised = "\nTrained on this model's weights as dequantised from a GGUF file, which differ a little from those of the hub.\n" if base.kind == "gguf" else ""
    optimizer = ", ".join(f"{key} {value}" for key, value in config.optimizer.model_dump(mode="json").items() if key != "name")
    flat = f"weight {config.flatness.weight:g}, soft start {config.flatness.soft_start:g}" if config.flatness.weight else "none"
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# LoRA adapter for {base.public_name}
{warning}{quantised}
| | |
|---|---|
| base | {base.public_name} (content {base.sha256[:12]}) |
| data | {config.data.train} (content {data.sha256[:12]}), {data.train_rows} rows, {config.data.format} format |
| LoRA | rank {config.lora.rank}, alpha {config.lora.alpha:g}, {"rank-stabilised" if config.lora.rslora else "standard"} scale, targets {config.lora.targets} |
| optimiser | {config.optimizer.name}: {optimizer} |
| flatness penalty | {flat} |
| optimiser steps | {step} of {config.train.batch_size} rows, seed {config.train.seed} |

```python
from peft import PeftModel
{imports}

base = {loading}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""
