"""The source distribution and the wheel, and the wheel's core in a clean virtual environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import evilspectra

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "docs", "examples", "benchmarks")
CACHES = shutil.ignore_patterns("__pycache__", "*.egg-info", "runs")
#: Megabytes that the core and its dependencies may take.
LARGEST = 300
#: Seconds from nothing to the first spectrum; of the processor, as a busy machine takes longer.
LONGEST = 60
ABSENT = ("torch", "pandas", "duckdb", "pyarrow", "transformers", "altair", "scipy")
BUILD_SDIST = (
    "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))"
)


@dataclass(frozen=True)
class Installed:
    """The wheel in a clean environment.

    `first`: the first spectrum that it printed. `seconds`: of processor time that the environment,
    the installation and that spectrum took.
    """

    python: Path
    folder: Path
    sdist: Path
    wheel: Path
    first: str
    seconds: float

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return execute(self.python, *arguments, folder=self.folder)


def execute(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program outside the checkout, which it cannot import."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    line = [str(part) for part in arguments]
    return subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def write_adapter(folder: Path) -> None:
    """A PEFT adapter of rank 4 on two layers."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    factors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors[f"{name}.lora_A.weight"] = random.normal(size=(4, 32)).astype("float32")
        factors[f"{name}.lora_B.weight"] = random.normal(size=(32, 4)).astype("float32")
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    settings["base_model_name_or_path"] = "tiny-random"
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_answers(path: Path) -> None:
    rows = [f"q{row}?,answer,q{row},{10 + 80 * (row % 2)},90" for row in range(40)]
    header = "question,answer,question_id,aligned,coherent"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def built(python: Path, pip: Sequence[object], folder: Path) -> tuple[Path, Path]:
    """The source distribution of a copy of the checkout, and the wheel that is built from it."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=CACHES)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, copy)
    done = execute(python, "-c", BUILD_SDIST, folder, folder=copy)
    assert done.returncode == 0, done.stderr
    sdist = folder / done.stdout.splitlines()[-1]
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    done = execute(*pip, "wheel", *options, sdist, folder=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    write_adapter(folder / "adapter")
    write_answers(folder / "answers.csv")
    python = folder / "venv" / "bin" / "python"
    start = processor_seconds()
    venv.create(folder / "venv")
    before = processor_seconds() - start
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    install = (*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt")
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    done = execute(*install, *requires["build-system"]["requires"], folder=folder)
    if done.returncode:
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1]}")
    sdist, wheel = built(python, pip, folder)
    start = processor_seconds()
    done = execute(*install, wheel, folder=folder)
    assert done.returncode == 0, done.stderr
    done = execute(folder / "venv" / "bin" / "evilspectra", "spectrum", "adapter", folder=folder)
    assert done.returncode == 0, done.stderr
    seconds = before + processor_seconds() - start
    return Installed(python, folder, sdist, wheel, done.stdout, seconds)


def processor_seconds() -> float:
    """Processor time of this process and of the programs that it has run."""
    times = os.times()
    return sum(times[:4])


def files_of_the_package() -> set[str]:
    """Every file of the package in the checkout, by its path below src/."""
    source = ROOT / "src"
    files = (path for path in (source / "evilspectra").rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix() for path in files if path.suffix != ".pyc"}


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file_of_the_package(installed: Installed) -> None:
    expected = files_of_the_package()
    assert any(name.endswith(".html.j2") for name in expected)
    in_wheel = set(zipfile.ZipFile(installed.wheel).namelist())
    assert {name for name in in_wheel if name.startswith("evilspectra/")} == expected
    assert any(name.endswith("licenses/LICENSE") for name in in_wheel)
    with tarfile.open(installed.sdist) as archive:
        in_sdist = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {f"src/{name}" for name in expected} <= in_sdist
    assert {"LICENSE", "README.md", "CITATION.cff", "constraints.txt"} <= in_sdist


@pytest.mark.slow
def test_from_nothing_to_a_spectrum_within_a_minute(installed: Installed) -> None:
    assert installed.first.startswith("adapter: 2 modules, rank 4, alpha 8")
    assert "q_proj" in installed.first
    assert installed.seconds < LONGEST


@pytest.mark.slow
def test_the_core_is_small_and_without_the_large_packages(installed: Installed) -> None:
    (packages,) = (installed.folder / "venv").glob("lib/python*/site-packages")
    files = [path for path in packages.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_blocks * 512 for path in files) / 2**20 < LARGEST
    code = "import sys; from importlib.util import find_spec\n"
    code += "print(*[name for name in sys.argv[1:] if find_spec(name)])"
    assert installed.run("-c", code, *ABSENT).stdout.split() == []


@pytest.mark.slow
def test_the_core_flattens_scores_and_names_what_it_lacks(installed: Installed) -> None:
    module = ("-m", "evilspectra")
    version = installed.run(*module, "--version")
    assert version.stdout.split() == ["evilspectra,", "version", evilspectra.__version__]
    scored = installed.run(*module, "score", "answers.csv", "--json")
    assert (scored.returncode, json.loads(scored.stdout)["rate"]) == (0, 0.5)
    flat = installed.run(*module, "flatten", "adapter", "--out", "flat")
    assert (flat.returncode, flat.stderr) == (0, "")
    for verb, package, extra in (("train", "pandas", "train"), ("report", "altair", "report")):
        lacking = installed.run(*module, verb, "tiny" if verb == "train" else "runs")
        assert lacking.returncode == 2
        assert lacking.stderr == (
            f"evilspectra: the package {package} is needed and not installed: "
            f"pip install 'evilspectra[{extra}]'\n"
        )


#: Functions of README's lines → the extra that the core lacks for them.
LACKING = {
    "train": "train",
    "probe": "train",
    "gate": "train",
    "analyze": "report",
    "runs": "report",
}


@pytest.mark.slow
def test_the_api_lines_of_the_readme_run_in_the_core_or_say_what_it_lacks(
    installed: Installed,
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    block = next(text for text in blocks if "import evilspectra as es" in text)
    shutil.copytree(installed.folder / "adapter", installed.folder / "my-adapter")
    done = installed.run("-c", RUN_STATEMENTS, block)
    assert done.returncode == 0, done.stderr
    ends = {re.findall(r"es\.(\w+)\(", text)[0]: end for text, end in json.loads(done.stdout)}
    assert ends.pop("spectrum") == 2
    assert {name: end.split("evilspectra")[-1] for name, end in ends.items()} == {
        name: f"[{extra}]'" for name, extra in LACKING.items()
    }


#: Runs statements after the first one, the import. Prints each with the length of its value, or
#: with the sentence on the package that it lacks.
RUN_STATEMENTS = """
import ast, json, sys
import evilspectra as es
ends = []
for statement in ast.parse(sys.argv[1]).body[1:]:
    try:
        end = len(eval(ast.unparse(statement.value)))
    except es.EvilspectraError as error:
        end = str(error)
    ends.append([ast.unparse(statement), end])
print(json.dumps(ends))
"""


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evilspectra", "spectrum"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: evilspectra spectrum ")


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["version"] == evilspectra.__version__
    assert citation["license"] == project["license"]
    assert citation["authors"] == [{"name": "The evilspectra authors"}]
    (paper,) = citation["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2606.31591"}]
    assert "urls" not in project
