"""Imports point one way, and what must stay light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "evilspectra"

#: Bottom to top: a module imports from levels below its own, or from earlier ones of its own level.
LEVELS = [
    ["", "errors", "records", "settings", "waits", "asking", "endpoint_settings", "config", "tiny"],
    ["store", "published", "origin", "rows", "mask", "data", "base", "items", "cues", "questions", "results", "drift", "measured", "flags", "answers", "probe", "targets"],
    ["judging", "judging.reading", "intervals", "score", "paired", "calibrate", "judging.exchange", "judging.prompts", "judging.judge", "judging.settings", "judging.pace", "judging.endpoint", "judging.scripted"],
    ["judging.journal", "judging.verdicts", "judging.places", "judging.rounds", "rates", "summary", "licence", "training_record", "card"],
    ["spectrum", "spectrum.pairs", "spectrum.adapter", "spectrum.grams", "spectrum.values", "spectrum.exact", "spectrum.measures", "spectrum.paper", "spectrum.flatness"],
    ["archives", "download", "obtain", "endpoint", "remote"],
    ["optim", "optim.parameters", "optim.orthogonal", "optim.lion", "optim.muon", "optim.extra", "optim.build", "optim.schedule"],
    ["device", "packing", "likelihood", "model", "generate", "harness", "monitor", "progress", "provenance"],
    ["integrations", "integrations.factors", "integrations.optimizer", "integrations.description", "integrations.recording", "integrations.callback", "integrations.transformers"],
    ["judging.digits", "judging.local", "judging.build"],
    ["work", "train", "evaluate"],
    ["policy", "gate", "evidence", "gate_output"],
    ["data_cli", "card_cli", "gate_cli"],
    ["sweep"],
    ["palette", "comparison", "findings", "misalignment", "headline", "charts", "effects", "figures", "spoken", "selection", "transcripts", "page", "judged", "table", "scoreboard", "report"],
    ["judge_cli", "cli"],
    ["integrations.inspect"],
]
ORDER = {name: place for place, name in enumerate(name for level in LEVELS for name in level)}

#: Modules that work where torch is slow to import or absent.
WITHOUT_TORCH = [
    "waits", "asking", "published", "archives", "download", "obtain", "endpoint_settings", "endpoint", "remote", "data_cli",
    "errors", "settings", "config", "records", "store", "origin", "rows", "mask", "data", "base", "items", "cues", "questions", "results", "drift", "measured", "summary", "flags", "answers", "probe", "targets", "sweep",
    "palette", "comparison", "findings", "misalignment", "headline", "charts", "effects", "figures", "spoken", "selection", "transcripts", "page", "judged", "table", "scoreboard", "report", "judge_cli", "cli",
    "judging.reading", "intervals", "score", "paired", "calibrate", "judging.exchange", "judging.prompts", "judging.judge", "judging.settings", "judging.pace", "judging.endpoint", "judging.scripted",
    "judging.journal", "judging.verdicts", "judging.places", "judging.rounds", "judging.build", "rates",
    "licence", "training_record", "card", "card_cli", "policy", "gate", "evidence", "gate_output", "gate_cli",
]


def modules() -> dict[str, Path]:
    names = {path: ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in SOURCE.rglob("*.py")}
    return {name.removesuffix("__init__").removesuffix("."): path for path, name in names.items()}


def imported(path: Path) -> set[str]:
    """The project's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "evilspectra":
            stem = node.module.removeprefix("evilspectra").removeprefix(".")
            below = [f"{stem}.{alias.name}".strip(".") for alias in node.names]
            found |= {name if name in ORDER else stem for name in below}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("evilspectra").removeprefix(".") for alias in node.names if alias.name.split(".")[0] == "evilspectra"}
    return found


#: All of the project that runs inside other people's trainers.
INSIDE_TRAINERS = {"", "errors", "config", "records", "store", "monitor", "spectrum", "optim", "integrations"}


def test_every_module_has_a_level():
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name):
    upwards = {other for other in imported(modules()[name]) if ORDER[other] >= ORDER[name]}
    assert not upwards, f"{name or 'the package'} imports {upwards}, which stand above it"


@pytest.mark.parametrize("name", [name for name in sorted(ORDER) if name.startswith("integrations") and name != "integrations.inspect"])
def test_trainer_integrations_use_the_core_alone(name):
    assert {other.split(".")[0] for other in imported(modules()[name])} <= INSIDE_TRAINERS


def test_light_modules_import_no_torch():
    lines = "; ".join(f"import evilspectra.{name}" for name in WITHOUT_TORCH)
    subprocess.run([sys.executable, "-c", f"{lines}; import sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"], check=True)


def test_sources_are_readable_in_one_sitting():
    long = {name: count for name, path in modules().items() if (count := len(path.read_text(encoding="utf-8").splitlines())) > 460}
    assert not long
