"""A store of very many synthetic runs, written fast.

A few runs are made through the store's own interface; every other one is a copy of their files with
another seed, learning rate and name. Clearly synthetic.
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
    """Writes eight different runs, two per optimiser, measured, sampled and judged."""
    folders = []
    for index, (optimizer, drift) in enumerate(OPTIMIZERS.items()):
        for seed in range(2):
            run = write_run(
                root,
                Arm(
                    optimizer,
                    spectrum=[4.0, 2.0 + index / 4, 1.0, 0.5 + index / 10],
                    end=1.4 + index / 20 + seed / 50,
                    seed=seed,
                    spread=0.1,
                ),
            )
            write_effect(
                run,
                Effect(
                    drift + seed / 50,
                    answers=tuple(TEXTS[(index + seed + other) % 8] for other in range(6)),
                    samples=4,
                ),
            )
            if judged:
                judge_run(run, suspicious)
            folders.append(run.path)
    return folders


def many_runs(root: Path, count: int, templates_in: Path) -> None:
    """Writes `count` runs in ten experiments below `root`.

    One in fifty has failed, one in fifty is not measured.
    """
    sources = [_files(folder) for folder in templates(templates_in)]
    for number in range(count):
        source = sources[number % len(sources)]
        optimizer = source["config.yaml"].decode().split("optimizer:\n  name: ")[1].split("\n")[0]
        digest = hashlib.sha256(str(number).encode()).hexdigest()[:10]
        folder = root / f"experiment-{number % 10}" / f"{optimizer}-b8-s{number}-{digest}"
        failed, bare = number % 50 == 13, number % 50 == 17
        parents = set()
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
            path = os.path.join(folder, name)
            if (parent := os.path.dirname(path)) not in parents:
                os.makedirs(parent, exist_ok=True)
                parents.add(parent)
            with open(path, "wb") as file:
                file.write(content)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
