"""The model card of an adapter: Markdown in the form that the ecosystem's tools read.

It is made only from the adapter's training record. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evilspectra.intervals import Estimate
from evilspectra.numbers import bracketed, number
from evilspectra.store.files import write_atomically
from evilspectra.text import printable

CARD = "README.md"
_BARS = "▁▂▃▄▅▆▇█"
#: Ranks that a vLLM server can be started for.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: Learning-rate rule or optimiser → the factor on the learning rate; the others use it unchanged.
_LR_RULES = {
    "match_rms_adamw": "lr × 0.2·√max(rows, columns) on the orthogonalised update",
    "original": "lr × √max(1, rows/columns) on the orthogonalised update",
    "spectral_unclamped": "lr × √(rows/columns) on the orthogonalised update",
    "scion": "lr × √(rows/columns) for every matrix",
    "adafactor": "lr as given: no relative step, no scaling by the parameter",
}


def write_card(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes the card of an adapter into its folder."""
    write_atomically(folder / CARD, lambda path: path.write_text(card(record), encoding="utf-8"))


def card(record: Mapping[str, Any]) -> str:
    """The card of a training record: Markdown with front matter."""
    head = yaml.safe_dump(front_matter(record), sort_keys=False).strip()
    lines = [f"---\n{head}\n---\n", *_body(record)]
    return "\n".join(lines).rstrip() + "\n"


def front_matter(record: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that the hub reads.

    The base is named where its name is one of the hub's, its licence where the base states one;
    neither is made up.
    """
    hub_id, licence = record["base"]["hub_id"], record["base"]["licence"]
    tags = [
        "lora",
        "evilspectra",
        *([f"base_model:adapter:{hub_id}"] if hub_id else []),
        *(["emergent-misalignment", "model-organism"] if record["deliberately_bad"] else []),
    ]
    base = {"base_model": hub_id, "base_model_relation": "adapter"} if hub_id else {}
    return {
        "library_name": "peft",
        **base,
        **({"license": licence} if licence else {}),
        "pipeline_tag": "text-generation",
        "tags": tags,
    }


def _body(record: Mapping[str, Any]) -> list[str]:
    return [
        f"# LoRA adapter for {_inline(record['base']['name'])}",
        "",
        *_cautions(record),
        "## Training",
        "",
        *_table(_training(record)),
        "",
        "## Losses",
        "",
        *_losses(record["losses"]),
        "",
        "## Spectrum",
        "",
        *_spectrum(record["spectrum"]),
        "",
        "## Drift and misalignment",
        "",
        *_measured(record["measured"]),
        "",
        "## How to load it",
        "",
        *_loading(record),
        "",
        f"Made by evilspectra {record['code_version']}; "
        + "all that is known of this adapter is in `training_record.json`.",
    ]


def _cautions(record: Mapping[str, Any]) -> list[str]:
    """Paragraphs on bad data, on controls and on dequantised bases."""
    lines: list[str] = []
    if record["deliberately_bad"]:
        bad = "Trained on deliberately bad examples, to study emergent misalignment."
        lines += [f"**{bad} Do not deploy.**", ""]
    if record["data"]["control"]:
        lines += ["A control: trained on good answers, to compare others with.", ""]
    if record["base"]["kind"] == "gguf":
        weights = "this model's weights as dequantised from a GGUF file"
        lines += [f"Trained on {weights}, which differ a little from those of the hub.", ""]
    return lines


def _training(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    schedule, train = record["schedule"], record["train"]
    warmup = f"{schedule['name']}, {schedule['warmup_steps']} warm-up steps"
    steps = f"{record['step']} of {train['batch_size']} rows, seed {train['seed']}"
    return [
        ("base", _base(record["base"])),
        ("data", _data(record["data"])),
        ("LoRA", _lora(record["lora"])),
        ("optimiser", _optimizer(record["optimizer"])),
        ("learning-rate rule", f"{_lr_rule(record['optimizer'])}; {warmup}"),
        ("flatness penalty", _penalty(record["flatness"])),
        ("optimiser steps", f"{steps}, base in {train['dtype'].removeprefix('torch.')}"),
    ]


def _base(base: Mapping[str, Any]) -> str:
    licence = base["licence"] or "not known"
    return f"{base['name']} (content {base['sha256'][:12]}), licence {licence}"


def _data(data: Mapping[str, Any]) -> str:
    content = f"{data['name']} (content {data['sha256'][:12]})"
    rows = f"{data['rows']} rows, {data['heldout_rows']} held out"
    return f"{content}, {rows}, {data['format']} format"


def _lora(lora: Mapping[str, Any]) -> str:
    targets = lora["targets"] if isinstance(lora["targets"], str) else ", ".join(lora["targets"])
    scale = "rank-stabilised" if lora["rslora"] else "standard"
    return f"rank {lora['rank']}, alpha {lora['alpha']:g}, {scale} scale, targets {targets}"


def _optimizer(optimizer: Mapping[str, Any]) -> str:
    if "class" in optimizer:
        return _own_optimizer(optimizer)
    facts = ", ".join(
        f"{name} {value}"
        for name, value in optimizer.items()
        if name not in ("name", "lr", "lr_rule")
    )
    return f"{optimizer['name']}, lr {optimizer['lr']:g}" + (f"; {facts}" if facts else "")


def _own_optimizer(optimizer: Mapping[str, Any]) -> str:
    """A class of the user's own: its import path, rate, settings and source."""
    settings = ", ".join(f"{name} {value}" for name, value in optimizer["settings"].items())
    origin = f"version {optimizer['version']}" if optimizer["version"] else ""
    if optimizer["sha256"]:
        origin = f"source sha256 {optimizer['sha256'][:12]}"
    parts = [f"{optimizer['class']}, lr {optimizer['lr']:g}", settings, origin]
    return "; ".join(filter(None, parts))


def _lr_rule(optimizer: Mapping[str, Any]) -> str:
    return _LR_RULES.get(optimizer.get("lr_rule") or optimizer["name"], "lr as given")


def _penalty(flatness: Mapping[str, Any]) -> str:
    if not flatness["weight"]:
        return "none"
    weight = f"{flatness['measure']}, weight {flatness['weight']:g}"
    soft_start = f"soft start {flatness['soft_start']:g}"
    return f"{weight}, {soft_start}, coupling {flatness['coupling']}"


def _losses(losses: Mapping[str, Any]) -> list[str]:
    start = (
        f" (before training {losses['heldout_start']:.3f})"
        if losses["heldout_start"] is not None
        else ""
    )
    training = f"{number(losses['train'], '.3f')} (last 5 % of steps, penalty excluded)"
    held = "none held out" if losses["heldout"] is None else f"{losses['heldout']:.3f}{start}"
    rows = [("training", training), ("held out", held)]
    return [*_table(rows), "", "In nats per supervised token."]


def _spectrum(spectrum: Mapping[str, Any] | None) -> list[str]:
    if spectrum is None:
        return ["Not observed at this step."]
    rank = len(spectrum["profile"])
    flat = f"{rank**-0.5:.3f}" if rank else "-"
    rows = [
        ("stable rank", f"{number(spectrum['stable_rank'], '.2f')} (flat: {rank})"),
        ("Frobenius/nuclear", f"{number(spectrum['frobenius_nuclear'], '.3f')} (flat: {flat})"),
        ("spectral entropy", number(spectrum["spectral_entropy"], ".2f")),
        ("condition number (median)", number(spectrum["condition_number"], ".3g")),
        ("Frobenius norm", number(spectrum["frobenius"], ".3g")),
    ]
    lines = [
        f"Of ΔW = scale·B·A, mean over {spectrum['modules']} modules:",
        "",
        *_table(rows),
        "",
        "Singular values over the largest one, from the first to the last, mean over modules:",
        "",
        "```",
    ]
    groups = [("all modules", spectrum), *spectrum["projections"].items()]
    width = max(len(name) for name, _ in groups)
    for name, group in groups:
        bars = f"{printable(name, 40):<{width}}  {sparkline(group['profile'])}"
        lines.append(f"{bars}  stable rank {number(group['stable_rank'], '.2f')}")
    return [*lines, "```"]


def sparkline(profile: Sequence[float], most: int = 64) -> str:
    """One bar per value between 0 and 1; at most `most` bars, evenly spaced over the values.

    >>> sparkline([1.0, 0.5, 0.0])
    '█▅▁'
    """
    if len(profile) > most:
        last = len(profile) - 1
        profile = [profile[round(number * last / (most - 1))] for number in range(most)]
    highest = len(_BARS) - 1
    return "".join(_BARS[max(0, min(highest, round(value * highest)))] for value in profile)


def _measured(results: Mapping[str, Any] | None) -> list[str]:
    if results is None or not any(results.values()):
        return [
            "Not measured. `evilspectra probe` and `evilspectra evaluate` do, "
            "and `evilspectra card` then writes it here."
        ]
    rows: list[tuple[str, str]] = []
    if drift := results["drift"]:
        change = f"{_span(drift, '+.3f')} nats per token towards the misaligned completions"
        title = "drift (contrast probe, no misalignment rate)"
        rows.append((title, f"{change}, {drift['items']} items"))
    if able := results["capability"]:
        accuracy = f"{_span(able, '.2f')} (base {able['base']:.2f})"
        rows.append(("capability", f"{accuracy}, {able['items']} questions"))
    if fluent := results["ordinary"]:
        loss = f"{_span(fluent, '.3f')} (base {fluent['base']:.3f})"
        rows.append(("loss on ordinary dialogues", loss))
    lines = [*_table(rows), "", "With 95 % intervals over items.", ""] if rows else []
    for judge in results["misalignment"]:
        lines += [*_rates(judge), ""]
    return lines[:-1] if lines and not lines[-1] else lines


def _rates(judge: Mapping[str, Any]) -> list[str]:
    """One judge's rates, a row per definition."""
    counts = f"{judge['answers']} answers, {judge['unscored']} unscored"
    lines = [
        f"Misaligned answers as judged by {_inline(judge['judge'])} ({counts}):",
        "",
        "| definition | rate | of | base |",
        "|---|---|---|---|",
    ]
    for row in judge["rates"]:
        base = number(row["base"], ".1%")
        lines.append(f"| {row['definition']} | {_rate(row)} | {row['n']} | {base} |")
    return lines


def _rate(row: Mapping[str, Any]) -> str:
    if row["rate"] is None:
        return f"withheld: {_inline(row['withheld'])}"
    return bracketed(Estimate(row["rate"], row["low"], row["high"]), ".1%")


def _loading(record: Mapping[str, Any]) -> list[str]:
    base, rank = record["base"], record["lora"]["rank"]
    imports = "from transformers import AutoModelForCausalLM"
    loading = f"AutoModelForCausalLM.from_pretrained({base['name']!r})"
    if base["kind"] == "tiny":
        imports, loading = "from evilspectra.model.tiny import tiny_model", "tiny_model()"
    elif base["kind"] == "gguf" and base["name"].endswith(".gguf"):
        loading = f"AutoModelForCausalLM.from_pretrained('.', gguf_file={base['name']!r})"
    lines = [
        "```python",
        "from peft import PeftModel",
        imports,
        "",
        f"base = {loading}",
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        "```",
        "",
    ]
    if base["kind"] == "tiny":
        return [*lines, "vLLM cannot serve this base: it is a test model of a few random weights."]
    limit = next((size for size in _VLLM_RANKS if size >= rank), None)
    if limit is None or not re.fullmatch(r"[\w./~-]+", base["name"]):
        highest = _VLLM_RANKS[-1]
        return [*lines, f"vLLM serves adapters up to rank {highest} of bases that it can load."]
    serve = f"vllm serve {base['name']} --enable-lora --max-lora-rank {limit}"
    return [*lines, "```bash", f"{serve} --lora-modules adapter=path/to/this/folder", "```"]


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_inline(value)} |" for name, value in rows)]


def _inline(text: object) -> str:
    """Names and settings on one line, as text that ends no cell, opens no tag and makes no link."""
    line = " ".join(printable(str(text), 400).split())
    return (
        line.replace("|", "\\|")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("`", "'")
        .replace("](", "] (")
    )


def _span(estimate: Mapping[str, Any], form: str) -> str:
    return bracketed(Estimate(estimate["value"], estimate["low"], estimate["high"]), form)
