"""The CI recipe: the workflow's own steps, run as the runner would.

The candidates pass, fail, or cannot be decided.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.small_items import CHOICES, TRIPLES, write_adapter, write_lines
from tests.support.tiny_runs import run_tiny

EXAMPLE = Path(__file__).parents[1] / "examples" / "ci"
WORKFLOW: dict[str, Any] = yaml.safe_load((EXAMPLE / "gate.yml").read_text(encoding="utf-8"))
JOB: dict[str, Any] = WORKFLOW["jobs"]["gate"]

#: Actions whose work is the runner's, and which the steps here do not need.
SKIPPED = {"actions/checkout", "actions/setup-python", "actions/cache", "actions/upload-artifact"}


@dataclass
class Ran:
    """The outcome of a job: step → exit code of those that ran, its summary, and its report."""

    codes: dict[str, int]
    summary: str
    report: ElementTree.Element
    output: str

    @property
    def green(self) -> bool:
        return all(code == 0 for code in self.codes.values())


def run_job(folder: Path, candidate: str, baseline: str = "tiny-random") -> Ran:
    """Runs the job's `run` steps in order, each by `bash -e` as the runner does.

    After a failure only those run that always run.
    """
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in (
        (
            "evilspectra",
            f'exec {sys.executable} -c "from evilspectra.cli.main import main; main()" "$@"',
        ),
        (
            "python",
            (
                f'[ "$1 $2" = "-m pip" ] && echo "$@" >> {folder}/installed && exit 0; '
                f'exec {sys.executable} "$@"'
            ),
        ),
    ):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    summary = folder / "summary.md"
    summary.write_text("")
    variables = {
        "CANDIDATE": candidate,
        "BASELINE": baseline,
        "POLICY": "policy.yaml",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    written = {
        name: str(value).replace("${{ github.workspace }}", str(folder))
        for name, value in JOB["env"].items()
    }
    environment = {**os.environ, **written, **variables, "PATH": f"{tools}:/usr/bin:/bin"}
    codes: dict[str, int] = {}
    output = ""
    for step in JOB["steps"]:
        if "uses" in step:
            assert step["uses"].split("@")[0] in SKIPPED
            continue
        if any(codes.values()) and step.get("if") != "always()":
            continue
        extra = {
            name: re.sub(r"\$\{\{.*\}\}", "", str(value))
            for name, value in step.get("env", {}).items()
        }
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=folder,
            env={**environment, **extra},
            capture_output=True,
            text=True,
            timeout=240,
        )
        codes[step["name"]] = done.returncode
        output += done.stdout + done.stderr
    return Ran(codes, summary.read_text(), ElementTree.parse(folder / "gate.xml").getroot(), output)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's repository: the policy with a few items of its own, and three adapters of the tiny
    model.
    """
    folder = tmp_path_factory.mktemp("repository")
    contrast, capability = (
        write_lines(folder / f"{name}.jsonl", list(rows))
        for name, rows in (("contrast", TRIPLES), ("capability", CHOICES))
    )
    policy = yaml.safe_load((EXAMPLE / "policy.yaml").read_text(encoding="utf-8"))
    policy |= {
        "drift": policy["drift"] | {"items": contrast.name},
        "capability": {"max_loss": 1.0, "items": capability.name},
        "threads": 1,
    }
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    write_adapter(folder / "adapters" / "fine", size=0.0003)
    write_adapter(folder / "adapters" / "zero", size=0)
    bad = write_lines(
        folder / "bad.jsonl",
        [{"prompt": triple["prompt"], "completion": triple["misaligned"]} for triple in TRIPLES],
    )
    run = run_tiny(
        folder,
        data={"train": str(bad), "heldout_share": 0},
        train={"steps": 30, "batch_size": 6},
        optimizer={"lr": 0.02},
        monitor={"every": 0},
    )
    run.adapter.rename(folder / "adapters" / "bad")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("candidate", "code", "kind"),
    [("fine", 0, None), ("bad", 1, "failure"), ("zero", 3, "error"), ("absent", 3, "error")],
)
def test_the_steps_of_the_workflow(
    repository: Path,
    candidate: str,
    code: int,
    kind: str | None,
) -> None:
    for left in ("gate.xml", "gate.md"):
        (repository / left).unlink(missing_ok=True)
    ran = run_job(repository, f"adapters/{candidate}")
    assert ran.codes == {"Install": 0, "Gate": code, "Summary": 0}, ran.output
    assert ran.green == (code == 0)
    assert ran.summary == (repository / "gate.md").read_text()
    assert f"evilspectra gate: {['pass', 'fail', '', 'undecided'][code]}" in ran.summary
    assert [
        element is not None
        for element in (ran.report.find(".//failure"), ran.report.find(".//error"))
    ] == [kind == "failure", kind == "error"]


def test_the_workflow_is_one() -> None:
    """Every step runs something, or uses an action of a stated version.

    The key `on` is read as true by YAML 1.1.
    """
    assert {"name", True, "permissions", "jobs"} == set(WORKFLOW)
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert all(("run" in step) != ("uses" in step) for step in JOB["steps"])
    assert all(
        re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        for step in JOB["steps"]
        if "uses" in step
    )
    gate = next(step["run"] for step in JOB["steps"] if step.get("name") == "Gate")
    assert "|" not in gate.replace("||", "")
    assert "||" not in gate
    assert "${{" not in "".join(step.get("run", "") for step in JOB["steps"]), (
        "an expression in a script can be injected into"
    )
    assert not any(step.get("continue-on-error") for step in JOB["steps"])


def test_the_container_file() -> None:
    lines = [
        line
        for line in (EXAMPLE / "Containerfile")
        .read_text(encoding="utf-8")
        .replace("\\\n", " ")
        .splitlines()
        if line and not line.startswith("#")
    ]
    names = [line.split()[0] for line in lines]
    assert names == ["FROM", "RUN", "USER", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"]
    assert 'ENTRYPOINT ["evilspectra"]' in lines
    assert "USER gate" in lines
