"""Short sweeps of the tiny model for tests: files, processes that carry them out, and what came of
them.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from evilspectra.store.run import RunFolder, Store
from tests.support.commands import process
from tests.support.tiny_runs import write_rows

#: Twelve runs under two optimisers, with dropout and the penalty, whose state is saved at every
#: fourth step.
TWELVE = {
    "optimizer": [{"name": "adamw", "lr": 3e-3}, {"name": "muon", "lr": 3e-3}],
    "train.seed": [0, 1, 2],
    "flatness.weight": [0.0, 0.1],
}


def write_sweep(
    folder: Path,
    steps: int,
    axes: dict[str, list[Any]] | None = None,
    **values: Any,
) -> Path:
    """A sweep file in `folder`; its store is `folder`/runs.

    The rows lie beside the folder, for their path stands on an adapter's card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = {
        "model": {"base": "tiny-random"},
        "data": {"train": str(write_rows(folder.parent / "rows.jsonl"))},
        "lora": {"rank": 4, "dropout": 0.1},
        "monitor": {"every": 10},
        "train": {"steps": steps, "batch_size": 4, "threads": 1, "resume_every": 4},
        "output": {"folder": str(folder / "runs")},
    }
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(
            {"experiment": "x", "base": base, "axes": TWELVE if axes is None else axes} | values,
            sort_keys=False,
        ),
        encoding="utf-8",
    )
    return path


def runs(folder: Path) -> dict[str, RunFolder]:
    """Name → run, of those that have begun."""
    return {run.name: run for run in Store(folder / "runs").runs()}


def adapters(folder: Path) -> dict[str, str]:
    """Name of a run that is done → digest of every byte of its adapter's folder."""
    found = {}
    for name, run in runs(folder).items():
        if run.status().state == "done":
            digest = hashlib.sha256()
            for path in sorted(run.adapter.iterdir()):
                digest.update(path.name.encode() + path.read_bytes())
            found[name] = digest.hexdigest()
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Name of a run that is done → inode and time of writing of its adapter, which training again
    would change.
    """
    found = {}
    for name, run in runs(folder).items():
        if run.status().state == "done":
            stat = (run.adapter / "adapter_model.safetensors").stat()
            found[name] = stat.st_ino, stat.st_mtime_ns
    return found


def descendants(pid: int) -> list[int]:
    """The processes below a process, by /proc."""
    below: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = place.read_text()
        except OSError:
            continue
        parent = int(text.rsplit(")", 1)[1].split()[1])
        below.setdefault(parent, []).append(int(place.parent.name))
    found, todo = [], [pid]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += children
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Callable[[], object], seconds: float = 120.0, every: float = 0.05) -> None:
    """Returns when something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(every)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def sweep_process(path: Path, *more: object) -> subprocess.Popen[str]:
    """A sweep as a command of its own."""
    return process("sweep", path, "--quiet", *more, folder=path.parent, OMP_NUM_THREADS="1")


def script(code: str, folder: Path) -> subprocess.Popen[str]:
    """A piece of Python as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
