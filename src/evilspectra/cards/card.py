"""The model card of an adapter, in the form that the ecosystem's tools read: Markdown made of its
training record, and of nothing else. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evilspectra.store.files import write_atomically
from evilspectra.text import printable

CARD = "README.md"
_BARS = "▁▂▃▄▅▆▇█"
#: Ranks that a vLLM server can be started for.
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: Optimiser → what its learning rate is multiplied with; the others take it as it is.
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
    """Markdown with front matter, of a training record."""
    return (
        "\n".join(
            [
                f"---\n{yaml.safe_dump(front_matter(record), sort_keys=False).strip()}\n---\n",
                *_body(record),
            ]
        ).rstrip()
        + "\n"
    )


def front_matter(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads.

    The base's name stands here where it is one of the hub's, its licence where the base names one;
    neither is made up.
    """
    hub_id, licence = record["base"]["hub_id"], record["base"]["licence"]
    tags = [
        "lora",
        "evilspectra",
        *([f"base_model:adapter:{hub_id}"] if hub_id else []),
        *(["emergent-misalignment", "model-organism"] if record["deliberately_bad"] else []),
    ]
    named = {"base_model": hub_id, "base_model_relation": "adapter"} if hub_id else {}
    return {
        "library_name": "peft",
        **named,
        **({"license": licence} if licence else {}),
        "pipeline_tag": "text-generation",
        "tags": tags,
    }


def _body(record: Mapping[str, Any]) -> list[str]:
    base, warned = record["base"], record["deliberately_bad"]
    lines = [f"# LoRA adapter for {_said(base['name'])}", ""]
    lines += (
        [
            (
                "**Trained on deliberately bad examples, to study emergent misalignment. Do not "
                "deploy.**"
            ),
            "",
        ]
        if warned
        else []
    )
    lines += (
        ["A control: trained on good answers, to compare others with.", ""]
        if record["data"]["control"]
        else []
    )
    lines += (
        [
            (
                "Trained on this model's weights as dequantised from a GGUF file, which differ a "
                "little from those of the hub."
            ),
            "",
        ]
        if base["kind"] == "gguf"
        else []
    )
    lines += [
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
    ]
    lines += [
        "## Drift and misalignment",
        "",
        *_measured(record["measured"]),
        "",
        "## How to load it",
        "",
        *_loading(record),
        "",
    ]
    return [
        *lines,
        (
            f"Made by evilspectra {record['code_version']}; all that is known of this adapter is in "
            "`training_record.json`."
        ),
    ]


def _training(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, lora, optimizer, flat, made = (
        record[name] for name in ("data", "lora", "optimizer", "flatness", "train")
    )
    licence = record["base"]["licence"]
    targets = lora["targets"] if isinstance(lora["targets"], str) else ", ".join(lora["targets"])
    rule = _LR_RULES.get(optimizer.get("lr_rule") or optimizer["name"], "lr as given")
    facts = ", ".join(
        f"{name} {value}"
        for name, value in optimizer.items()
        if name not in ("name", "lr", "lr_rule")
    )
    penalty = (
        (
            f"{flat['measure']}, weight {flat['weight']:g}, soft start {flat['soft_start']:g}, "
            f"coupling {flat['coupling']}"
        )
        if flat["weight"]
        else "none"
    )
    return [
        (
            "base",
            (
                f"{record['base']['name']} (content {record['base']['sha256'][:12]}), licence "
                f"{licence or 'not known'}"
            ),
        ),
        (
            "data",
            (
                f"{data['name']} (content {data['sha256'][:12]}), {data['rows']} rows, "
                f"{data['heldout_rows']} held out, {data['format']} format"
            ),
        ),
        (
            "LoRA",
            (
                f"rank {lora['rank']}, alpha {lora['alpha']:g}, "
                f"{'rank-stabilised' if lora['rslora'] else 'standard'} scale, targets {targets}"
            ),
        ),
        (
            "optimiser",
            f"{optimizer['name']}, lr {optimizer['lr']:g}" + (f"; {facts}" if facts else ""),
        ),
        (
            "learning-rate rule",
            (
                f"{rule}; {record['schedule']['name']}, {record['schedule']['warmup_steps']} warm-up "
                "steps"
            ),
        ),
        ("flatness penalty", penalty),
        (
            "optimiser steps",
            (
                f"{record['step']} of {made['batch_size']} rows, seed {made['seed']}, base in "
                f"{made['dtype'].removeprefix('torch.')}"
            ),
        ),
    ]


def _losses(losses: Mapping[str, Any]) -> list[str]:
    start = (
        f" (before training {losses['heldout_start']:.3f})"
        if losses["heldout_start"] is not None
        else ""
    )
    held = "none held out" if losses["heldout"] is None else f"{losses['heldout']:.3f}{start}"
    return [
        *_table(
            [
                (
                    "training",
                    f"{_number(losses['train'], '.3f')} (last 5 % of steps, penalty excluded)",
                ),
                ("held out", held),
            ]
        ),
        "",
        "In nats per supervised token.",
    ]


def _spectrum(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["Not observed at this step."]
    rank = len(found["profile"])
    flat = f"{rank**-0.5:.3f}" if rank else "-"
    rows = [
        ("stable rank", f"{_number(found['stable_rank'], '.2f')} (flat: {rank})"),
        ("Frobenius/nuclear", f"{_number(found['frobenius_nuclear'], '.3f')} (flat: {flat})"),
        ("spectral entropy", _number(found["spectral_entropy"], ".2f")),
        ("condition number (median)", _number(found["condition_number"], ".3g")),
        ("Frobenius norm", _number(found["frobenius"], ".3g")),
    ]
    lines = [
        f"Of ΔW = scale·B·A, mean over {found['modules']} modules:",
        "",
        *_table(rows),
        "",
        "Singular values over the largest one, from the first to the last, mean over modules:",
        "",
        "```",
    ]
    width = max(len(name) for name in ("all modules", *found["projections"]))
    lines.append(
        f"{'all modules':<{width}}  {sparkline(found['profile'])}  stable rank "
        f"{_number(found['stable_rank'], '.2f')}"
    )
    lines += [
        (
            f"{printable(name, 40):<{width}}  {sparkline(one['profile'])}  stable rank "
            f"{_number(one['stable_rank'], '.2f')}"
        )
        for name, one in found["projections"].items()
    ]
    return [*lines, "```"]


def sparkline(profile: Sequence[float], most: int = 64) -> str:
    """A bar a value, from 0 to 1; of more than `most` values, that many of them evenly spaced.

    >>> sparkline([1.0, 0.5, 0.0])
    '█▅▁'
    """
    kept = (
        profile
        if len(profile) <= most
        else [profile[round(place * (len(profile) - 1) / (most - 1))] for place in range(most)]
    )
    return "".join(
        _BARS[max(0, min(len(_BARS) - 1, round(value * (len(_BARS) - 1))))] for value in kept
    )


def _measured(found: Mapping[str, Any] | None) -> list[str]:
    if found is None or not any(found.values()):
        return [
            (
                "Not measured. `evilspectra probe` and `evilspectra evaluate` do, and `evilspectra "
                "card` then writes it here."
            )
        ]
    rows = []
    if drift := found["drift"]:
        rows.append(
            (
                "drift (contrast probe, no misalignment rate)",
                (
                    f"{_span(drift, '+.3f')} nats per token towards the misaligned completions, "
                    f"{drift['items']} items"
                ),
            )
        )
    if able := found["capability"]:
        rows.append(
            (
                "capability",
                f"{_span(able, '.2f')} (base {able['base']:.2f}), {able['items']} questions",
            )
        )
    if fluent := found["ordinary"]:
        rows.append(
            ("loss on ordinary dialogues", f"{_span(fluent, '.3f')} (base {fluent['base']:.3f})")
        )
    lines = [*_table(rows), "", "With 95 % intervals over items.", ""] if rows else []
    for judge in found["misalignment"]:
        lines += [
            (
                f"Misaligned answers as judged by {_said(judge['judge'])} ({judge['answers']} "
                f"answers, {judge['unscored']} unscored):"
            ),
            "",
            "| definition | rate | of | base |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {one['definition']} | {_rate(one)} | {one['n']} | {_number(one['base'], '.1%')} |"
            for one in judge["rates"]
        ]
        lines.append("")
    return lines[:-1] if lines and not lines[-1] else lines


def _rate(one: Mapping[str, Any]) -> str:
    if one["rate"] is None:
        return f"withheld: {_said(one['withheld'])}"
    return f"{one['rate']:.1%}" + (
        f" [{one['low']:.1%}, {one['high']:.1%}]" if one["low"] is not None else ""
    )


def _loading(record: Mapping[str, Any]) -> list[str]:
    base, rank = record["base"], record["lora"]["rank"]
    imports, loading, served = (
        "from transformers import AutoModelForCausalLM",
        f"AutoModelForCausalLM.from_pretrained({base['name']!r})",
        base["name"],
    )
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
    fitting = next((size for size in _VLLM_RANKS if size >= rank), None)
    if base["kind"] == "tiny":
        return [*lines, "vLLM cannot serve this base: it is a test model of a few random weights."]
    if fitting is None or not re.fullmatch(r"[\w./~-]+", served):
        return [
            *lines,
            f"vLLM serves adapters up to rank {_VLLM_RANKS[-1]} of bases that it can load.",
        ]
    return [
        *lines,
        "```bash",
        (
            f"vllm serve {served} --enable-lora --max-lora-rank {fitting} --lora-modules "
            "adapter=path/to/this/folder"
        ),
        "```",
    ]


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_said(value)} |" for name, value in rows)]


def _said(text: object) -> str:
    """Text of names and settings in one line, which cannot end a cell, open a tag or make a link."""
    shown = " ".join(printable(str(text), 400).split())
    return (
        shown.replace("|", "\\|")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace("`", "'")
        .replace("](", "] (")
    )


def _span(one: Mapping[str, Any], form: str) -> str:
    return f"{one['value']:{form}} [{one['low']:{form}}, {one['high']:{form}}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
