"""The README's and the pages' commands, files and Python, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evilspectra.evaluation.summary import summarise
from evilspectra.store.run import find_run
from tests.support.commands import write_model
from tests.support.saved_adapters import adapted

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

TRAINER = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


COMMANDS = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {command.split()[1] for command in COMMANDS if command.startswith("make ")} == {
        "demo",
        "test",
    }
    assert {"demo", "test"} <= set(targets)


@pytest.mark.slow
def test_commands_run_as_written(tmp_path):
    for block in blocks("yaml"):
        (name,) = re.findall(r"^# (\S+\.yaml)$", block, re.MULTILINE)
        (tmp_path / name).write_text(block, encoding="utf-8")
    ran = 0
    for command in COMMANDS:
        if command.startswith("evilspectra "):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            ran += 1
    assert ran >= 6
    assert (tmp_path / "runs" / "report.html").stat().st_size > 100_000
    assert (
        len(list((tmp_path / "runs" / "my-sweep").glob("*/adapter/adapter_model.safetensors"))) == 4
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", ["adapter.md", "flatten.md"])
def test_pages_about_adapters_run_as_written(page, tmp_path):
    """On adapters of the tiny model, under the names that the pages use."""
    write_model(tmp_path / "my-base")
    for seed, name in enumerate(("my-adapter", "another-adapter")):
        adapted(seed=seed).save_pretrained(str(tmp_path / name))
    commands = [
        line
        for block in blocks("bash", (ROOT / "docs" / page).read_text(encoding="utf-8"))
        for line in block.splitlines()
    ]
    for line in commands:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert len(commands) == {"adapter.md": 8, "flatten.md": 2}[page]
    assert (tmp_path / "my-adapter-flat" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("code", [*blocks("python"), *blocks("python", TRAINER)])
def test_python_runs_as_written(code):
    subprocess.run([sys.executable, "-c", code], check=True)


#: Names that the documents assume: a model's folder, rows, settings of trainer and adapter.
PREPARATION = """
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig
from evilspectra.model.tiny import tiny_model, tiny_tokenizer

model = "model"
args = SFTConfig("out", use_cpu=True, bf16=False, save_strategy="no")
lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
tiny_model().save_pretrained(model)
tiny_tokenizer().save_pretrained(model)
rows = Dataset.from_list([{"text": f"Question {number}: is it time?"} for number in range(16)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("diff", [*blocks("diff"), *blocks("diff", TRAINER)])
def test_diffs_run_as_written(diff, tmp_path):
    """Both sides train, and the added lines leave the records that the text promises."""
    lines = diff.splitlines()
    assert {line[:1] for line in lines} == {"+", " ", ""}
    assert [line[:1] for line in lines].count("+") == 2  # an import and an argument
    before, after = (
        "\n".join(line[1:] for line in lines if line[:1] in marks) for marks in (" ", " +")
    )
    between = "import os\nassert os.path.isdir('out') and not os.path.exists('out/evilspectra')"
    subprocess.run(
        [sys.executable, "-c", "\n".join((PREPARATION, before, between, after))],
        check=True,
        cwd=tmp_path,
    )
    summary = summarise(find_run(str(tmp_path / "out")))
    assert (summary.status, summary.flatness_weight) == ("done", 0.3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", ["pipeline.md"])
def test_pages_run_as_written(page, tmp_path):
    """Every file and command of a page in its order.

    A command exits with the code in its remark (`# exit 3`), without one with 0.
    """
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    ran = 0
    for language, block in re.findall(
        r"^```(yaml|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        if language == "yaml":
            name = block.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(block, encoding="utf-8")
            continue
        for line in block.splitlines():
            command, _, remark = line.partition("  #")
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            wanted = re.search(r"exit (\d+)", remark)
            assert done.returncode == int(wanted[1] if wanted else 0), (
                f"{line}: {done.stdout}{done.stderr}"
            )
            assert "Traceback" not in done.stderr
            ran += 1
    assert ran >= 6


def test_file_map_names_every_package():
    """docs/architecture.md names every package and module at the top, as `cli/` and `errors`."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {path.stem for path in (ROOT / "src" / "evilspectra").glob("[!_]*")}
    lacking = {name for name in names if not re.search(rf"`{name}(/|\.py)?`", page)}
    assert not lacking


def test_links_point_to_files():
    for document in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
