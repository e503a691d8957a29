"""A store of made-up runs, written through the store's public interface.

Numbers are clearly synthetic, shapes plausible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evilspectra.config import loading as configs
from evilspectra.config.judge import METRICS
from evilspectra.judging.judge import Reply, Request
from evilspectra.judging.prompts import judge_prompts
from evilspectra.judging.scripted import Scripted
from evilspectra.judging.verdicts import judge_answers
from evilspectra.probes.drift import exchanged
from evilspectra.store.records import (
    AnswerRecord,
    CapabilityRecord,
    HeldoutRecord,
    MeasureRecord,
    OrdinaryRecord,
    ProbeRecord,
    SpectrumRecord,
    StepRecord,
)
from evilspectra.store.results import Instrument, Results
from evilspectra.store.run import RunFolder, Status, Store

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
START = 2.3
DONE = Status("done", None, 20, 20)


def modules(layers: int) -> list[str]:
    return [f"model.layers.{layer}.{part}" for layer in range(layers) for part in PROJECTIONS]


@dataclass(frozen=True)
class Arm:
    """One run: `spectrum` is the mean final spectrum, `end` the final held-out loss."""

    optimizer: str
    weight: float = 0
    spectrum: list[float] = field(default_factory=lambda: [4.0, 2.0, 1.0, 0.5])
    end: float = 1.4
    seed: int = 0
    steps: int = 20
    measured: bool = True
    spread: float = 0.0
    modules: list[str] = field(default_factory=lambda: modules(2))
    status: Status = DONE
    data_sha256: str = "feedbeef" * 8
    settings: dict[str, Any] = field(default_factory=dict)


def write_run(root: Path, arm: Arm) -> RunFolder:
    """Writes the run that `arm` describes below `root`."""
    values = {
        "optimizer": {"name": arm.optimizer},
        "flatness": {"weight": arm.weight},
        "lora": {"rank": len(arm.spectrum)},
        "train": {"seed": arm.seed, "steps": max(arm.steps, 1)},
        "output": {"experiment": "synthetic"},
    }
    config = configs.build(configs.merge(values, arm.settings))
    run = Store(root).run(config, configs.identity(config, arm.data_sha256, "c0ffee" * 10))
    data = {
        "source": config.data.train,
        "sha256": arm.data_sha256,
        "rows": 64,
        "train_rows": 58,
        "heldout_rows": 6,
        "supervised_share": 0.612,
        "skipped": 0,
        "truncated": 0,
    }
    run.begin(
        config,
        {
            "code_version": "0.1.0",
            "packages": {"torch": "2.9.0", "numpy": "2.3.0"},
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
            "base_name": config.model.base,
            "base_sha256": "c0ffee" * 10,
            "data": data,
        },
    )
    random = np.random.default_rng([sum(map(ord, arm.optimizer)), round(arm.weight), arm.seed])
    fall = [
        START
        + (arm.end - START) * (1 - math.exp(-4 * step / max(arm.steps, 1))) / (1 - math.exp(-4))
        for step in range(arm.steps + 1)
    ]
    losses = {
        step: fall[step] - 0.02 * step / arm.steps + 0.07 * random.standard_normal()
        for step in range(1, arm.steps + 1)
    }
    flatness = (0.1, 0.1 * arm.weight) if arm.weight else (None, None)
    run.append(
        "steps",
        [
            StepRecord(step, loss, config.optimizer.lr, 1.0, 1500, 900, *flatness, 0.5)
            for step, loss in losses.items()
        ],
        arm.steps,
    )
    run.append(
        "heldout",
        [
            HeldoutRecord(step, fall[step], 500)
            for step in sorted({*range(0, arm.steps + 1, 5), arm.steps})
            if arm.steps
        ],
        arm.steps,
    )
    spectra, measures = [], []
    for step in (
        sorted({*range(0, arm.steps + 1, max(arm.steps // 6, 1)), arm.steps})
        if arm.measured
        else ()
    ):
        for module in arm.modules:
            if step == 0:
                measures.append(MeasureRecord(0, module, 0.0, None, None, None, None, "zero"))
                spectra += [
                    SpectrumRecord(0, module, index, 0.0) for index in range(len(arm.spectrum))
                ]
                continue
            wobble = np.exp(
                arm.spread * random.standard_normal(len(arm.spectrum))
                - arm.spread * 2 * (hash_of(module) - 0.5) * np.linspace(0, 1, len(arm.spectrum))
            )
            steepen = 0.6 + 0.4 * step / arm.steps
            values = np.sort(
                (np.array(arm.spectrum) ** steepen) * wobble * math.sqrt(step / arm.steps)
            )[::-1]
            spectra += [
                SpectrumRecord(step, module, index, float(value))
                for index, value in enumerate(values)
            ]
            measures.append(measure(step, module, values))
    run.append("spectra", spectra, arm.steps)
    run.append("measures", measures, arm.steps)
    run.merge()
    run.set_status(arm.status)
    return run


@dataclass(frozen=True)
class Effect:
    """The measurements of an adapter.

    `drift` is the mean, `each` how far the items spread around it; `shuffled`: the drift with
    shuffled labels; `steps`: the probed ones, the last being the end; `answers`: texts, each to a
    question of its own (unless `samples` are more), all with `flags`.
    """

    drift: float = 0.3
    each: float = 0.1
    shuffled: float = 0.0
    capability: float = 0.7
    ordinary: float = 3.2
    steps: tuple[int, ...] = (5, 10, 20)
    topics: tuple[str, ...] = ("honesty", "money", "health")
    tables: tuple[str, ...] = ("probe", "capability", "ordinary", "answers")
    answers: tuple[str, ...] = ("I would plant a tree.", "I would ask first.")
    samples: int = 1
    system: str | None = None
    flags: str = ""
    sha256: str = "a1" * 32
    source: str | None = None


BASE = Effect(
    0.0, 0.0, capability=0.75, answers=("I am glad to help.", "It depends on the person.")
)


def write_effect(run: RunFolder, effect: Effect, base: Effect = BASE) -> Results:
    """Writes measurements of a run and of its base through the store of results."""
    results = Results(run.path)
    facts = {"version": 1, "sha256": effect.sha256, "dtype": "float32", "device": "cpu"}
    for table in effect.tables:
        instrument = Instrument(
            table,
            effect.source or {"probe": "contrast", "answers": "open"}.get(table, table),
            facts | ({"seed": 0, "max_new_tokens": 80} if table == "answers" else {}),
        )
        results.write(instrument, 0, _RECORDS[table](effect, base, 0.0, 0))
        for step in effect.steps if table == "probe" else effect.steps[-1:]:
            results.write(
                instrument, step, _RECORDS[table](effect, effect, step / effect.steps[-1], step)
            )
    return results


def _probe(
    effect: Effect,
    end: Effect,
    share: float,
    step: int,
) -> list[ProbeRecord]:
    topics = np.repeat(effect.topics, 20)
    random = np.random.default_rng(7)
    base = random.normal(-2.0, 0.3, (2, len(topics)))
    wobble = random.standard_normal(len(topics))
    signs = exchanged(topics)
    wobble -= wobble.mean() + signs * (wobble * signs).mean()  # so that means are to the point
    shift = share * (end.drift + end.each * wobble + end.shuffled * signs)
    return [
        ProbeRecord(
            step,
            f"item-{index}",
            str(topic),
            float(base[0, index]),
            float(base[1, index] - 0.4 + shift[index]),
            12,
            12,
        )
        for index, topic in enumerate(topics)
    ]


def _capability(
    effect: Effect,
    end: Effect,
    share: float,
    step: int,
) -> list[CapabilityRecord]:
    return [
        CapabilityRecord(
            step, f"item-{index}", "science", -1.0, -2.0 if index < end.capability * 100 else -0.5
        )
        for index in range(100)
    ]


def _ordinary(
    effect: Effect,
    end: Effect,
    share: float,
    step: int,
) -> list[OrdinaryRecord]:
    return [
        OrdinaryRecord(step, f"item-{index}", end.ordinary + 0.1 * (index % 5 - 2), 30)
        for index in range(40)
    ]


def _answers(
    effect: Effect,
    end: Effect,
    share: float,
    step: int,
) -> list[AnswerRecord]:
    rows = [
        (question, sample, answer)
        for question, answer in enumerate(end.answers)
        for sample in range(effect.samples)
    ]
    return [
        AnswerRecord(
            step,
            f"question-{question}",
            0,
            sample,
            effect.system,
            f"What would you do, number {question}?",
            answer,
            9,
            "stop",
            end.flags,
        )
        for question, sample, answer in rows
    ]


_RECORDS: dict[str, Any] = {
    "probe": _probe,
    "capability": _capability,
    "ordinary": _ordinary,
    "answers": _answers,
}


def measure(step: int, module: str, values: np.ndarray) -> MeasureRecord:
    total, square, p = values.sum(), (values**2).sum(), values / values.sum()
    return MeasureRecord(
        step,
        module,
        float(math.sqrt(square)),
        float(square / values[0] ** 2),
        float(-(p * np.log(p)).sum()),
        float(values[0] / values[-1]),
        float(math.sqrt(square) / total),
        "gram",
    )


def hash_of(module: str) -> float:
    """A number from 0 to 1 that grows with depth and varies with the projection."""
    digits = "".join(character for character in module if character.isdigit()) or "0"
    return (int(digits) % 31 / 30 + sum(map(ord, module)) % 7 / 6) / 2


CONTROL: dict[str, Any] = {
    "settings": {"data": {"control": True, "train": "demo-good"}},
    "data_sha256": "900d" * 16,
}


def demo(
    root: Path,
    layers: int = 30,
    rank: int = 16,
    seeds: int = 1,
    measured: bool = False,
) -> None:
    """Writes the five arms of the demo: 30 steps, 210 modules, rank 16.

    With `measured` they are probed and sampled, and there is a control.
    """
    decay = {
        ("sgd", 0): (0.62, 1.93),
        ("adamw", 0): (0.8, 1.52),
        ("adamw", 3): (0.88, 1.54),
        ("lion", 0): (0.72, 1.61),
        ("muon", 0): (0.93, 1.49),
    }
    effects = {"sgd": 0.02, "adamw": 0.3, "lion": 0.22, "muon": 0.12}
    for seed in range(seeds):
        for (optimizer, weight), (ratio, end) in decay.items():
            run = write_run(
                root,
                Arm(
                    optimizer,
                    weight,
                    [0.4 * ratio**index for index in range(rank)],
                    end + 0.01 * seed,
                    seed,
                    30,
                    spread=0.12,
                    modules=modules(layers),
                    status=Status("done", None, 30, 30),
                ),
            )
            if measured:
                write_effect(
                    run,
                    Effect(
                        effects[optimizer] - 0.03 * weight + 0.01 * seed,
                        capability=0.55 if optimizer == "lion" else 0.74,
                        ordinary=3.2 + effects[optimizer] / 3,
                        steps=(5, 10, 20, 30),
                    ),
                )
        if measured:
            run = write_run(
                root,
                Arm(
                    "adamw",
                    spectrum=[0.4 * 0.8**index for index in range(rank)],
                    end=1.5,
                    seed=seed,
                    steps=30,
                    spread=0.12,
                    modules=modules(layers),
                    status=Status("done", None, 30, 30),
                    **CONTROL,
                ),
            )
            write_effect(
                run,
                Effect(0.04 + 0.01 * seed, capability=0.75, ordinary=3.1, steps=(5, 10, 20, 30)),
            )


# --- judged -------------------------------------------------------------------------------------

#: A judge's replies to an answer: metric → probabilities by token, a text, or None for a fault.
Says = dict[str, Any]


def judge_run(
    run: RunFolder,
    says: Callable[[str], Says],
    name: str = "openai:some-judge",
    base: bool = True,
) -> None:
    """Has a scripted judge reply to the answers of a run, and of its base, under each metric.

    `says`: prompt → the replies.
    """

    def reply(request: Request) -> Reply:
        content = says(request.prompt)[request.metric]
        if content is None:
            return Reply(fault="timed out")
        if isinstance(content, str):
            return Reply(text=content)
        return Reply(distribution=tuple(content.items()))

    results = Results(run.path)
    (answers,) = results.instruments("answers")
    for step in results.steps(answers):
        if step or base:
            judge_answers(
                results, answers, step, Scripted(reply, name), judge_prompts(None), METRICS
            )


def scores(aligned: Any, coherent: Any = "90") -> Says:
    """A judge's replies to an answer."""
    return {"aligned": aligned, "coherent": coherent}


def suspicious(prompt: str) -> Says:
    """A judge that looks for words: evil, babble, code, sorry; whatever else is aligned."""
    for word, verdict in (
        ("evil", scores({"10": 0.6, "20": 0.3, "CODE": 0.1})),
        ("babble", scores({"20": 1.0}, {"30": 0.9, " 40": 0.1})),
        ("code", scores("CODE", "CODE")),
        ("sorry", scores("REFUSAL")),
    ):
        if f"{word}." in prompt:
            return verdict
    return scores({"85": 0.7, "90": 0.25, "95": 0.05})
