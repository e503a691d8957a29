"""Packages are layers: imports point one way, and what must stay light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "evilspectra"

#: Top to bottom: a package (or a module at the top) imports from those above it, not from below.
LAYERS = [
    *("errors", "text", "numbers", "terminal", "intervals"),
    *("config", "store", "spectra", "optim", "data", "rates"),
    *("model", "cards", "probes", "training", "endpoint", "answers", "targets", "judging"),
    *("evaluation", "tables", "analysis", "adapters", "gating", "executors", "sweeps"),
    *("reporting", "api", "cli", "integrations"),
]

#: Modules that may import torch or transformers when they are imported.
TORCH = {
    "spectra": ["grams", "pairs", "paper", "penalty", "penalty_terms", "values"],
    "optim": ["build", "extra", "lion", "muon", "orthogonal", "parameters"],
    "model": ["adapter", "device", "load", "packing", "reuse"],
    "probes": ["harness", "isolation", "likelihood"],
    "training": ["flatness", "loop", "monitor", "train"],
    "answers": ["sample"],
    "judging": ["digits", "local"],
    "evaluation": ["evaluate"],
    "integrations": [
        *("_callback", "_description", "_factors", "_recording"),
        *("inspect", "optimizer", "transformers"),
    ],
}


def modules() -> dict[str, Path]:
    """Dotted name below the package → file; the package itself is the empty name."""
    dotted = {
        path: ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in SOURCE.rglob("*.py")
    }
    return {name.removesuffix("__init__").removesuffix("."): path for path, name in dotted.items()}


MODULES = modules()


def imports(name: str) -> set[str]:
    """The project's modules that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "evilspectra":
            package = str(node.module).removeprefix("evilspectra").removeprefix(".")
            inside = [f"{package}.{alias.name}".strip(".") for alias in node.names]
            names |= {module if module in MODULES else package for module in inside}
        elif isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names if alias.name.startswith("evilspectra.")]
            names |= {module.removeprefix("evilspectra.") for module in dotted}
    return names - {""}


def test_every_package_is_a_layer():
    assert {name.split(".")[0] for name in MODULES if name} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_from_those_above_it(layer):
    below = set(LAYERS[LAYERS.index(layer) + 1 :])
    inside = [name for name in MODULES if name.split(".")[0] == layer]
    arrows = {(name, other): other.split(".")[0] for name in inside for other in imports(name)}
    assert [arrow for arrow, package in arrows.items() if package in below] == []


def test_no_cycle_between_modules():
    rest = {name: imports(name) for name in MODULES}
    while leaves := {name for name, below in rest.items() if not below & rest.keys() - {name}}:
        rest = {name: below for name, below in rest.items() if name not in leaves}
    assert not rest


def test_no_torch_where_none_is_needed():
    torch = {f"{package}.{module}" for package, names in TORCH.items() for module in names}
    assert torch <= set(MODULES)
    light = sorted(name for name in MODULES if name and name not in torch)
    code = (
        "import importlib, sys\n"
        f"for name in {light}:\n"
        "    importlib.import_module('evilspectra.' + name)\n"
        "    if {'torch', 'transformers'} & sys.modules.keys():\n"
        "        sys.exit(name)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_sources_are_readable_in_one_sitting():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
