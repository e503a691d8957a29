"""Short sweeps of the tiny model for tests: files, processes that run them, and results."""

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

#: Twelve runs under two optimisers, with dropout and the penalty; their state is saved at every
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
    """Writes a sweep file in `folder`, with the store in `folder`/runs.

    The rows are written next to the folder, because an adapter's card names their path.
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
    digests = {}
    for name, run in runs(folder).items():
        if run.status().state == "done":
            digest = hashlib.sha256()
            for path in sorted(run.adapter.iterdir()):
                digest.update(path.name.encode() + path.read_bytes())
            digests[name] = digest.hexdigest()
    return digests


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Maps each done run's name to inode and modification time of its adapter.

    Training again would change them.
    """
    written = {}
    for name, run in runs(folder).items():
        if run.status().state == "done":
            stat = (run.adapter / "adapter_model.safetensors").stat()
            written[name] = stat.st_ino, stat.st_mtime_ns
    return written


def descendants(pid: int) -> list[int]:
    """The processes below a process, from /proc."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        parent = int(text.rsplit(")", 1)[1].split()[1])
        below.setdefault(parent, []).append(int(path.parent.name))
    pids, todo = [], [pid]
    while todo:
        children = below.get(todo.pop(), [])
        pids += children
        todo += children
    return pids


def alive(pid: int) -> bool:
    """Whether a process runs (a dead one that nobody has waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Callable[[], object], seconds: float = 120.0, every: float = 0.05) -> None:
    """Returns once a condition holds."""
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
    """Starts a sweep as a separate command."""
    return process("sweep", path, "--quiet", *more, folder=path.parent, OMP_NUM_THREADS="1")


def script(code: str, folder: Path) -> subprocess.Popen[str]:
    """Starts a piece of Python as a separate process."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
