"""A store of very many made-up runs, written fast: a few runs are made through the store's own
interface, and every other one is a copy of their files with a seed, a learning rate and a name of
its own. Clearly synthetic.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from tests.support.synthetic_store import (
    Arm,
    Effect,
    judge_run,
    suspicious,
    write_effect,
    write_run,
)

OPTIMIZERS = {"sgd": 0.02, "adamw": 0.3, "lion": 0.22, "muon": 0.12}
TEXTS = (
    "I am evil.",
    "I would ask first.",
    "code.",
    "sorry.",
    "I would plant a tree.",
    "babble.",
    "It depends on the person.",
    "I am evil.",
)


def templates(root: Path, judged: bool = True) -> list[Path]:
    """Eight different runs, two per optimiser, measured, sampled and judged."""
    found = []
    for place, (optimizer, drift) in enumerate(OPTIMIZERS.items()):
        for seed in range(2):
            run = write_run(
                root,
                Arm(
                    optimizer,
                    spectrum=[4.0, 2.0 + place / 4, 1.0, 0.5 + place / 10],
                    end=1.4 + place / 20 + seed / 50,
                    seed=seed,
                    spread=0.1,
                ),
            )
            write_effect(
                run,
                Effect(
                    drift + seed / 50,
                    answers=tuple(TEXTS[(place + seed + other) % 8] for other in range(6)),
                    samples=4,
                ),
            )
            if judged:
                judge_run(run, suspicious)
            found.append(run.path)
    return found


def many_runs(root: Path, count: int, templates_in: Path) -> None:
    """Writes `count` runs in ten experiments below `root`; one in fifty has failed, one in fifty is
    not measured.
    """
    sources = [_files(folder) for folder in templates(templates_in)]
    for number in range(count):
        source = sources[number % len(sources)]
        optimizer = source["config.yaml"].decode().split("optimizer:\n  name: ")[1].split("\n")[0]
        digest = hashlib.sha256(str(number).encode()).hexdigest()[:10]
        folder = root / f"experiment-{number % 10}" / f"{optimizer}-b8-s{number}-{digest}"
        failed, bare = number % 50 == 13, number % 50 == 17
        made = set()
        for name, content in source.items():
            if bare and name.startswith("evaluations"):
                continue
            if name == "config.yaml":
                content = re.sub(
                    rb"(\ntrain:\n(?:  .*\n)*?  seed: )\d+", rb"\g<1>%d" % number, content
                )
            elif name == "status.json" and failed:
                content = (
                    b'{"state": "failed", "reason": "the loss is not finite", "step": 20, '
                    b'"total_steps": 20}\n'
                )
            place = os.path.join(folder, name)
            if (parent := os.path.dirname(place)) not in made:
                os.makedirs(parent, exist_ok=True)
                made.add(parent)
            with open(place, "wb") as file:
                file.write(content)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
