"""The section `evaluate` of a sweep: what it measures, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evilspectra.errors import RunFailed
from evilspectra.evaluation import evaluate as stage
from evilspectra.store.results import Results
from evilspectra.store.run import Store
from tests.support.commands import command, left_in, write_config
from tests.support.measuring import (
    enter,
    forbid_models,
)
from tests.support.small_items import (
    TRIPLES,
    write_lines,
)


@pytest.fixture(autouse=True)
def _items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, its own cache, and a few items under the built-in names."""
    enter(tmp_path, monkeypatch)


def write_sweep(folder: Path, **values: Any) -> Path:
    base = yaml.safe_load(write_config(folder, steps=3, optimizer={"lr": 0.01}).read_text())
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "experiment": "x",
                "base": base,
                "axes": {"train.seed": [0, 1]},
                "evaluate": {"threads": 1},
            }
            | values
        )
    )
    return path


def measurements(folder: Path) -> set[str]:
    return {
        name.split("/")[2] for name in left_in(folder / "runs" / "x") if "/evaluations/" in name
    }


def test_a_sweep_measures_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sweep(tmp_path)
    done = command("sweep", path, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "drift" in done.out
    assert "2 runs: 2 trained, 0 done before, 0 failed" in done.out
    assert measurements(tmp_path) == {"probe", "capability", "ordinary"}
    forbid_models(monkeypatch)
    printed = json.loads(command("sweep", path, "--quiet", "--json").out)
    assert all(
        run["drift"] is not None and run["capability"] is not None for run in printed["runs"]
    )
    assert printed["failed"] == 0


def test_a_sweep_s_measurement_can_be_changed_and_turned_off(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, axes={})
    assert command("sweep", path, "--quiet", "--set", "evaluate=null").code == 0
    assert measurements(tmp_path) == set()
    write_lines(tmp_path / "own.jsonl", TRIPLES[:3])
    assert (
        command(
            "sweep",
            path,
            "--quiet",
            "--set",
            "evaluate.contrast=own.jsonl",
            "--set",
            "evaluate.capability=null",
            "--set",
            "evaluate.ordinary=null",
        ).code
        == 0
    )
    assert measurements(tmp_path) == {"probe"}
    (run,) = Store(tmp_path / "runs").runs()
    (instrument,) = Results(run.path).instruments("probe")
    assert len(Results(run.path).read(instrument, 3)) == 3


def test_a_sweep_without_the_section_measures_where_a_setting_asks_for_it(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, axes={}, evaluate=None)
    assert command("sweep", path, "--quiet").code == 0
    assert measurements(tmp_path) == set()
    assert command("sweep", path, "--quiet", "--set", "evaluate.threads=1").code == 0
    assert measurements(tmp_path) == {"probe", "capability", "ordinary"}


@pytest.mark.parametrize(
    ("section", "settings", "printed"),
    [
        ({"contrasts": "a"}, [], "sweep.yaml, evaluate: 'contrasts' is not a field of it"),
        ({"contrast": "nope.jsonl"}, [], "there is no file 'nope.jsonl'"),
        ({"ordinary": "nope.jsonl"}, [], "nope.jsonl does not exist"),
        ({"answers": {"questions": "nope.yaml"}}, [], "nope.yaml does not exist"),
        ({"answers": {"samples": 0}}, [], "answers.samples = 0 is refused"),
        ({"harness": {"limit": 2}}, [], "harness.tasks"),
        (3, [], "evaluate"),
        (
            None,
            ["evaluate=3"],
            (
                "evaluate = 3 is refused: it is a section, for instance --set "
                "evaluate.checkpoints=true"
            ),
        ),
        (None, ["evaluate.thread=3"], "'thread' is not a field of it"),
    ],
)
def test_a_mistake_in_the_section_is_found_before_the_first_run(
    tmp_path: Path,
    section: Any,
    settings: list[str],
    printed: str,
) -> None:
    path = write_sweep(tmp_path, evaluate=section)
    done = command(
        "sweep", path, "--quiet", *[part for text in settings for part in ("--set", text)]
    )
    assert (done.code, done.out) == (2, "")
    assert printed in done.sentence
    assert not (tmp_path / "runs").exists()


def test_a_harness_that_is_not_installed_is_found_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = command(
        "sweep", write_sweep(tmp_path, evaluate={"harness": {"tasks": ["arc_easy"]}}), "--quiet"
    )
    assert (done.code, done.out) == (2, "")
    assert "pip install" in done.sentence
    assert not (tmp_path / "runs").exists()


def test_a_run_that_cannot_be_measured_is_a_failure_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, scores, calls = write_sweep(tmp_path), stage.token_log_probs, list[int]()

    def hot(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the first run's adapter
            raise RunFailed("the model's logits are not finite")
        return scores(*arguments, **more)

    monkeypatch.setattr(stage, "token_log_probs", hot)
    done = command("sweep", path, "--quiet")
    assert done.code == 1
    assert "2 runs: 1 trained, 0 done before, 1 failed" in done.out
    assert [line for line in done.err.splitlines() if line.startswith("failed: ")] == [
        f"failed: {Store(tmp_path / 'runs').runs()[0].name}: the model's logits are not finite"
    ]
    assert command("sweep", path, "--quiet").code == 0


def test_one_run_s_config_has_no_such_section(tmp_path: Path) -> None:
    done = command("train", write_config(tmp_path), "--set", "evaluate.checkpoints=true")
    assert done.code == 2
    assert "'evaluate' is not a field of a config" in done.sentence
