"""Imports point one way, and what must stay light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "evilspectra"

#: Bottom to top: a module imports from levels below its own, or from earlier ones of its own level.
LEVELS = [
    [
        "answering", "", "errors", "records", "settings", "answering.waits", "answering.asking", "answering.endpoint_settings", "config", "tiny",
    ],
    [
        "sweeps", "probing", "corpus", "store", "corpus.published", "origin", "corpus.rows", "corpus.mask", "corpus.data", "base", "probing.items", "answering.cues", "answering.questions", "results",
        "probing.drift", "probing.measured", "answering.flags", "answering.answers", "probing.probe", "targets", "locate", "sweeps.pace", "stopping", "sweeps.ledger", "licence",
    ],
    [
        "judging", "judging.reading", "intervals", "score", "paired", "calibrate", "judging.exchange", "judging.prompts", "judging.judge", "judging.settings", "judging.pace", "judging.endpoint",
        "judging.scripted",
    ],
    [
        "tables", "judging.journal", "judging.verdicts", "judging.places", "judging.rounds", "rates", "summary", "tables.digest", "tables.inventory", "tables.bulk", "tables.index", "tables.tidy",
        "tables.views", "tables.rowtext", "tables.query", "training_record",
    ],
    [
        "spectrum", "spectrum.mapped", "spectrum.folder", "spectrum.measures", "spectrum.streamed", "spectrum.initial", "spectrum.overlap", "spectrum.intruders", "spectrum.pairs",
        "spectrum.adapter", "spectrum.grams", "spectrum.values", "spectrum.exact", "spectrum.paper", "spectrum.flatness",
    ],
    [
        "corpus.archives", "corpus.download", "corpus.obtain", "answering.endpoint", "answering.remote",
    ],
    [
        "optim", "optim.parameters", "optim.orthogonal", "optim.lion", "optim.muon", "optim.extra", "optim.build", "optim.schedule",
    ],
    [
        "device", "packing", "probing.likelihood", "answering.generate", "probing.harness", "monitor", "progress", "provenance", "card", "model", "loaded",
    ],
    [
        "integrations", "integrations.factors", "integrations.optimizer", "integrations.description", "integrations.recording", "integrations.callback", "integrations.transformers",
    ],
    [
        "judging.digits", "judging.local", "judging.build",
    ],
    [
        "adapters", "gating", "work", "train", "evaluate", "gating.policy", "gating.gate", "gating.gate_output", "adapters.base_weights", "adapters.found", "gating.evidence", "adapters.flatten",
        "adapters.xray", "adapters.xray_text",
    ],
    [
        "verbs", "verbs.options", "verbs.data_cli", "verbs.query_cli",
    ],
    [
        "sweeps.grid", "sweeps.aliasing", "sweeps.sweep", "sweeps.forecast", "sweeps.plan", "sweeps.tune", "sweeps.standing", "executors.stages", "judging.beside", "executors", "executors.worker",
        "executors.local", "executors.on_ray", "executors.on_slurm", "sweeps.execution",
    ],
    [
        "analysis.estimate", "analysis.linear", "analysis.outcome", "analysis.design", "analysis.variance", "analysis.components", "analysis.loss", "analysis.training", "analysis.mediation",
        "analysis.stability", "analysis.result", "analysis.words", "analysis.whole", "analysis.text", "analysis",
    ],
    [
        "reporting", "reporting.palette", "reporting.comparison", "reporting.findings", "reporting.misalignment", "reporting.headline", "reporting.outcomes", "reporting.statistics",
        "reporting.charts", "reporting.effects", "reporting.figures_sweep", "reporting.figures_statistics", "reporting.figures_modules", "reporting.figures", "adapters.xray_page",
    ],
    [
        "reporting.spoken", "reporting.selection", "reporting.transcripts", "reporting.samples", "reporting.page", "reporting.details", "reporting.panel", "reporting.judged", "reporting.foreign",
        "reporting.appendix", "reporting.table", "reporting.scoreboard", "reporting.report", "reporting.aggregate", "reporting.summary_page",
    ],
    [
        "verbs.judge_cli", "verbs.analyze_cli", "verbs.report_cli", "verbs.plan_cli", "verbs.sweep_cli", "verbs.tune_cli", "verbs.card_cli", "verbs.gate_cli", "verbs.xray_cli", "cli",
    ],
    [
        "integrations.inspect",
    ],
]
ORDER = {name: place for place, name in enumerate(name for level in LEVELS for name in level)}

#: Modules that work where torch is slow to import or absent.
WITHOUT_TORCH = [
    "answering", "errors", "records", "settings", "answering.waits", "answering.asking", "answering.endpoint_settings", "config", "tiny", "spectrum.mapped", "spectrum.folder", "spectrum.initial",
    "spectrum.streamed", "spectrum.intruders", "spectrum.overlap", "sweeps", "probing", "corpus", "store", "corpus.published", "origin", "corpus.rows", "corpus.mask", "corpus.data", "base",
    "probing.items", "answering.cues", "answering.questions", "results", "probing.drift", "probing.measured", "answering.flags", "answering.answers", "probing.probe", "targets", "locate",
    "sweeps.pace", "stopping", "sweeps.ledger", "licence", "judging", "judging.reading", "intervals", "score", "paired", "calibrate", "judging.exchange", "judging.prompts", "judging.judge",
    "judging.settings", "judging.pace", "judging.endpoint", "judging.scripted", "tables", "judging.journal", "judging.verdicts", "judging.places", "judging.rounds", "rates", "summary",
    "tables.digest", "tables.inventory", "tables.bulk", "tables.index", "tables.tidy", "tables.views", "tables.rowtext", "tables.query", "training_record", "spectrum", "spectrum.measures",
    "corpus.archives", "corpus.download", "corpus.obtain", "answering.endpoint", "answering.remote", "optim", "optim.schedule", "progress", "provenance", "card", "integrations", "judging.build",
    "adapters", "gating", "gating.policy", "gating.gate", "gating.gate_output", "adapters.base_weights", "adapters.found", "gating.evidence", "adapters.flatten", "adapters.xray",
    "adapters.xray_text", "verbs", "verbs.options", "verbs.data_cli", "verbs.query_cli", "sweeps.grid", "sweeps.aliasing", "sweeps.sweep", "sweeps.forecast", "sweeps.plan", "sweeps.tune", "sweeps.standing",
    "executors.stages", "judging.beside", "executors", "executors.worker", "executors.local", "executors.on_ray", "executors.on_slurm", "sweeps.execution", "analysis.estimate", "analysis.linear",
    "analysis.outcome", "analysis.design", "analysis.variance", "analysis.components", "analysis.loss", "analysis.training", "analysis.mediation", "analysis.stability", "analysis.result",
    "analysis.words", "analysis.whole", "analysis.text", "analysis", "reporting", "reporting.palette", "reporting.comparison", "reporting.findings", "reporting.misalignment", "reporting.headline",
    "reporting.outcomes", "reporting.statistics", "reporting.charts", "reporting.effects", "reporting.figures_sweep", "reporting.figures_statistics", "reporting.figures_modules", "reporting.figures",
    "adapters.xray_page", "reporting.spoken", "reporting.selection", "reporting.transcripts", "reporting.samples", "reporting.page", "reporting.details", "reporting.panel", "reporting.judged",
    "reporting.foreign", "reporting.appendix", "reporting.table", "reporting.scoreboard", "reporting.report", "reporting.aggregate", "reporting.summary_page", "verbs.judge_cli", "verbs.analyze_cli",
    "verbs.report_cli", "verbs.plan_cli", "verbs.sweep_cli", "verbs.tune_cli", "verbs.card_cli", "verbs.gate_cli", "verbs.xray_cli", "cli",
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
