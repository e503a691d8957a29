"""A store that earlier code wrote is read, named and gone on with, by the command line alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.golden.make import COMMAND, GOLDEN, digests, environment, processor, versions

pytestmark = pytest.mark.slow

EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
ARMS = sorted(run for run in EXPECTED["runs"] if run != EXPECTED["stopped"])
PARTS = ("inputs", "store", "trainer")
#: Names of what reading commands may add: a cache that may be removed, and reports.
ADDED = {".index", "figures", "report.html"}
#: Largest relative norm of a factor's difference from the twin's, on another CPU or with other
#: packages. Sums in another order moved factors by 4e-7; without the saved moments of AdamW, or the
#: state of the random numbers, they move by more than 3e-2.
CLOSE = 1e-4


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command that succeeds, in a folder."""
    line = [str(part) for part in (COMMAND, *arguments)]
    done = subprocess.run(line, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def answer(folder: Path, *arguments: object) -> Any:
    """The JSON that a command prints."""
    return json.loads(run(folder, *arguments, "--json").stdout)


def files(folder: Path) -> dict[str, str]:
    """Path and sha256 of every file of a copy, but for locks, which are empty."""
    every = {
        f"{part}/{path}": sha for part in PARTS for path, sha in digests(folder / part).items()
    }
    return {path: sha for path, sha in every.items() if not path.endswith(".lock")}


def changes(folder: Path) -> set[str]:
    """Files of a copy that were changed, removed or added, but for those that may be added."""
    now = files(folder)
    before = {path: sha for path, sha in EXPECTED["files"].items() if not path.endswith(".lock")}
    names = {path for path in now.keys() | before.keys() if now.get(path) != before.get(path)}
    return {path for path in names if path in before or not ADDED & set(Path(path).parts)}


def flat(values: Any, name: str = "") -> dict[str, Any]:
    """Dotted name and value of everything in nested JSON."""
    if isinstance(values, dict):
        pairs = [(f"{name}.{key}", value) for key, value in values.items()]
    elif isinstance(values, list):
        pairs = [(f"{name}.{number}", value) for number, value in enumerate(values)]
    else:
        return {name: values}
    return {key: value for path, inner in pairs for key, value in flat(inner, path).items()}


def agree(now: Any, before: Any) -> None:
    """Everything that was recorded is there and the same; more may be there."""
    recorded, present = flat(before), flat(now)
    numbers = {key for key, value in recorded.items() if isinstance(value, float)}
    assert {key: present[key] for key in recorded.keys() - numbers} == {
        key: recorded[key] for key in recorded.keys() - numbers
    }
    assert {key: present[key] for key in numbers} == pytest.approx(
        {key: recorded[key] for key in numbers}, rel=1e-9, abs=1e-12
    )


def copy(folder: Path) -> Path:
    """A copy of everything, by which the stored files stay as they are."""
    return shutil.copytree(GOLDEN, folder / GOLDEN.name)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(tmp_path_factory.mktemp("read"))


@pytest.fixture
def stored(shared: Path) -> Iterator[Path]:
    """A copy that is only read: after every test each of its bytes is what it was."""
    yield shared
    assert changes(shared) == set()


def test_the_files_are_those_that_were_written() -> None:
    assert changes(GOLDEN) == set()
    assert not [path for path in GOLDEN.rglob("*") if ADDED & set(path.parts)]


def test_runs_have_the_names_that_their_configs_give(stored: Path) -> None:
    plan = answer(stored, "sweep", "inputs/sweep.yaml", "--dry-run")
    assert {line["id"]: line["state"] for line in plan["runs"]} == dict.fromkeys(ARMS, "done")
    assert not any(line["by_name"] for line in plan["runs"])


@pytest.mark.parametrize("name", sorted(EXPECTED["runs"]))
def test_a_stored_config_means_what_it_meant(stored: Path, name: str) -> None:
    (path,) = stored.glob(f"store/*/{name}/config.yaml")
    now = yaml.safe_load(run(stored, "config", "show", path).stdout)
    agree(now, yaml.safe_load(path.read_text(encoding="utf-8")))


def test_stages_are_read_from_the_ledger(stored: Path) -> None:
    now = answer(stored, "sweep", "status", "inputs/sweep.yaml")
    assert now["counts"] == {"done": len(ARMS)}
    assert {line["run"] for line in now["runs"]} == set(ARMS)
    stages = {"train": "done", "measure": "done", "judge": "done"}
    assert all(line["stages"] == stages for line in now["runs"])
    assert answer(stored, "sweep", "status", "store")["counts"] == {
        "interrupted": 1,
        "done": len(ARMS),
    }


@pytest.mark.parametrize("name", sorted(EXPECTED["runs"]))
def test_show_gives_the_recorded_numbers(stored: Path, name: str) -> None:
    agree(answer(stored, "show", name, "--output", "store"), EXPECTED["runs"][name])


@pytest.mark.parametrize("name", ARMS)
def test_score_gives_the_recorded_numbers(stored: Path, name: str) -> None:
    agree(answer(stored, "score", f"store/arms/{name}"), EXPECTED["scores"][name])


def test_query_and_analyze_read_every_run(stored: Path) -> None:
    fields = ("status", "train_loss", "heldout_loss", "drift", "misalignment")
    rows = answer(stored, "query", f"SELECT run, {', '.join(fields)} FROM runs", "--store", "store")
    expected = {
        run: [values[field] for field in fields] for run, values in EXPECTED["runs"].items()
    }
    agree({row["run"]: [row[field] for field in fields] for row in rows}, expected)
    analysis = answer(stored, "analyze", "store", "--permutations", "19")
    assert analysis["outcome"] == "mean_alignment"
    assert analysis["design"]["runs"] == len(ARMS)


def test_a_report_names_every_run(stored: Path) -> None:
    run(stored, "report", "store")
    page = (stored / "store" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in EXPECTED["runs"])


def test_another_trainers_folder_is_shown_and_reported(stored: Path) -> None:
    agree(answer(stored, "show", "trainer"), EXPECTED["trainer"])
    run(stored, "report", "trainer")
    assert "AdamW" in (stored / "trainer" / "report.html").read_text(encoding="utf-8")


def test_finished_runs_are_not_trained_again(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    done = run(folder, "sweep", "inputs/sweep.yaml", "--workers", "1", "--quiet")
    assert f"{len(ARMS)} runs: 0 trained, {len(ARMS)} done before, 0 failed" in done.stdout
    assert {Path(path).suffix for path in changes(folder)} <= {".jsonl"}  # the sweep's diary


def test_an_interrupted_run_goes_on_to_what_its_twin_gave(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    name, twin = EXPECTED["stopped"], EXPECTED["twin"]
    step = EXPECTED["runs"][name]["steps"]
    done = run(folder, "train", "inputs/stopped.yaml")
    assert f"{name}  resumes after step {step} of {twin['show']['steps']}" in done.stderr
    now = answer(folder, "show", f"store/stopped/{name}")
    assert (now["run"], now["status"], now["steps"]) == (name, "done", twin["show"]["steps"])
    weights = digests(folder / "store" / "stopped" / name)
    weights = {path: sha for path, sha in weights.items() if path in twin["weights"]}
    assert weights.keys() == twin["weights"].keys()
    here = {"cpu": processor(), "packages": versions()}
    if here == {key: EXPECTED[key] for key in here}:
        assert weights == twin["weights"]
        numbers = ("train_loss", "heldout_loss", "stable_rank", "frobenius", "condition_number")
        assert [now[key] for key in numbers] == [twin["show"][key] for key in numbers]
    first = load_file(GOLDEN / "twin" / "adapter_model.safetensors")
    second = load_file(
        folder / "store" / "stopped" / name / "adapter" / "adapter_model.safetensors"
    )
    assert first.keys() == second.keys()
    apart = {key: np.linalg.norm(first[key] - second[key]) for key in first}
    assert all(apart[key] <= CLOSE * np.linalg.norm(first[key]) for key in first)
    assert now["heldout_loss"] == pytest.approx(twin["show"]["heldout_loss"], rel=CLOSE)
