"""Makes the golden store: runs, a trainer's folder and `expected.json`, by the command line alone.

    python -m tests.golden.make

It refuses to write over what is there: the store stands for what earlier code has left.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent
COMMAND = Path(sys.executable).parent / "evilspectra"
#: Versions on which the bytes of an adapter may depend.
PACKAGES = ("torch", "transformers", "peft", "numpy", "safetensors", "tokenizers")
#: Beginnings of the names of instruction sets by which numerical libraries choose their code.
INSTRUCTIONS = ("sse", "ssse", "avx", "fma", "amx", "f16c", "bmi", "asimd", "sve", "bf16")
#: Fields of `show --json` that say where a run lies.
LOCATION = ("folder",)


def environment(folder: Path) -> dict[str, str]:
    """Variables for a process: a cache of its own below `folder`, no hub, one thread."""
    own = {"EVILSPECTRA_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    return os.environ | own | {"OMP_NUM_THREADS": "1"}


def processor() -> dict[str, Any]:
    """The CPU's name and the instruction sets that arithmetic may use."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {"name": f"{platform.processor()} {platform.machine()}", "instructions": []}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, _, value in lines}
    parts = [facts.get(key, "?") for key in ("model name", "cpu family", "model")]
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "name": "{}, family {}, model {}".format(*parts),
        "instructions": sorted(flag for flag in flags if flag.startswith(INSTRUCTIONS)),
    }


def versions() -> dict[str, str]:
    """The installed version of each of the packages."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def digests(folder: Path) -> dict[str, str]:
    """Relative path of every file below a folder, and the sha256 of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def command(folder: Path, *arguments: object) -> str:
    """Runs a command in a folder, and gives its standard output."""
    line = [str(part) for part in (COMMAND, *arguments)]
    done = subprocess.run(
        line, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def stop_early(folder: Path) -> None:
    """Begins the run of inputs/stopped.yaml, and stops it by a signal when its state was saved."""
    process = subprocess.Popen(
        [str(COMMAND), "train", "inputs/stopped.yaml"], cwd=folder, env=environment(folder)
    )
    while not list(folder.glob("store/stopped/*/resume.pt")):
        assert process.poll() is None, "the run ended before its state was saved"
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, "the run was over before it could be stopped"


def summary(folder: Path, run: str) -> dict[str, Any]:
    """The answer of `show --json`, but for where the run lies."""
    values = json.loads(command(folder, "show", run, "--json"))
    return {key: value for key, value in values.items() if key not in LOCATION}


def expectations(folder: Path) -> dict[str, Any]:
    """The contents of expected.json."""
    arms = sorted(path for path in folder.glob("store/arms/*-*") if path.is_dir())
    (stopped,) = folder.glob("store/stopped/*-*")
    (twin,) = folder.glob("twin-store/stopped/*-*")
    weights = sorted(twin.rglob("adapter_model.safetensors"))
    runs = {path.name: summary(folder, str(path.relative_to(folder))) for path in (*arms, stopped)}
    provenance = json.loads((stopped / "provenance.json").read_text(encoding="utf-8"))
    return {
        "commit": provenance["code_commit"],
        "cpu": processor(),
        "threads": 1,
        "packages": versions(),
        "runs": runs,
        "scores": {
            path.name: json.loads(command(folder, "score", path.relative_to(folder), "--json"))
            for path in arms
        },
        "trainer": summary(folder, "trainer"),
        "stopped": stopped.name,
        "twin": {
            "show": summary(folder, str(twin.relative_to(folder))),
            "weights": {
                path.relative_to(twin).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in weights
            },
        },
        "files": {
            f"{name}/{path}": digest
            for name in ("inputs", "store", "trainer")
            for path, digest in digests(folder / name).items()
        },
    }


def make(folder: Path) -> None:
    """Makes everything in a scratch folder, in which all paths are relative."""
    shutil.copytree(GOLDEN / "inputs", folder / "inputs")  # makes the folder too
    command(folder, "sweep", "inputs/sweep.yaml", "--workers", "1", "--quiet")
    shutil.rmtree(folder / "store" / ".index", ignore_errors=True)
    command(folder, "train", "inputs/stopped.yaml", "--output", "twin-store", "--quiet")
    stop_early(folder)
    script = [sys.executable, str(GOLDEN / "other_trainer.py"), "trainer"]
    subprocess.run(script, cwd=folder, env=environment(folder), check=True)
    (twin,) = folder.glob("twin-store/stopped/*-*/adapter/adapter_model.safetensors")
    (folder / "twin").mkdir()
    shutil.copy(twin, folder / "twin")
    text = json.dumps(expectations(folder), indent=1, sort_keys=True)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Makes the golden store where there is none."""
    if (GOLDEN / "expected.json").exists():
        sys.exit("the golden store is there, and is never written again")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / GOLDEN.name
        make(folder)
        for path in folder.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            assert scratch.encode() not in content, f"{path} holds the scratch folder's path"
        for name in ("store", "trainer", "twin"):
            shutil.copytree(folder / name, GOLDEN / name)
        shutil.copy(folder / "expected.json", GOLDEN)


if __name__ == "__main__":
    main()
