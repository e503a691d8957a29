"""The examples, run as scripts, short and on the tiny model.

They write what they promise, and the spectrum is flatter with the added line than without.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import re
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from evilspectra.model.base import CACHE_VARIABLE
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from tests.support.commands import command

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs examples in an empty folder, with an empty cache of measurements."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def run(name: str, *arguments: object) -> None:
    """Runs an example as a script, in this process."""
    before = sys.argv
    sys.argv = [name, "--model", "tiny-random", *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before


def summary(folder: str) -> dict[str, Any]:
    """The output of `evilspectra show` for a run."""
    result = command("show", folder, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def flatter(with_penalty: float, without: float, rank: int) -> bool:
    """Whether Frobenius/nuclear lies at most half as far from its value for a flat spectrum."""
    flat = rank**-0.5
    return with_penalty - flat < 0.5 * (without - flat)


@pytest.mark.parametrize("name", ["trl_sft.py", "trl_dpo.py"])
def test_trl_trainers_end_flatter_with_the_added_argument(name):
    for folder, weight in (("with", 1.0), ("without", 0.0)):
        run(name, "--steps", 6, "--weight", weight, "--output", folder)
        assert (Path(folder) / "adapter_model.safetensors").is_file()
        spectra = pd.read_parquet(Path(folder) / "evilspectra" / "spectra.parquet")
        assert set(spectra["step"]) == {5, 6}
        steps = pd.read_parquet(Path(folder) / "evilspectra" / "steps.parquet")
        assert steps["loss"].notna().all()
        assert steps["flatness"].notna().all()
    flat, plain = summary("with"), summary("without")
    assert (flat["status"], flat["steps"]) == (plain["status"], plain["steps"]) == ("done", 6)
    assert flatter(flat["frobenius_nuclear"], plain["frobenius_nuclear"], rank=16)
    assert flat["stable_rank"] > plain["stable_rank"]


@pytest.mark.parametrize("name", ["trl_sft.py", "trl_dpo.py"])
def test_trl_examples_show_one_import_and_one_argument(name):
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    comments = [
        above.strip() for above, line in itertools.pairwise(lines) if "SpectralFlatness" in line
    ]
    assert comments == ["# the added import", "# the added argument"]


def test_a_loop_of_ones_own_ends_flatter_with_the_penalty(capsys):
    values = {}
    for folder, weight in (("with", 1.0), ("without", 0.0)):
        run("plain_pytorch.py", "--steps", 6, "--weight", weight, "--output", folder)
        assert (Path(folder) / "adapter_model.safetensors").is_file()
        measures = pd.read_parquet(Path(folder) / "measures.parquet")
        assert set(measures["step"]) == {5, 6}
        values[folder] = measures[measures["step"] == 6]["frobenius_nuclear"].mean()
    assert flatter(values["with"], values["without"], rank=16)
    printed = capsys.readouterr().out
    lines = re.findall(
        r"^step \d: loss \d\.\d{3}, flatness 0\.\d{3}, stable rank \d", printed, re.MULTILINE
    )
    assert len(lines) == 4


def rows_of(table: str) -> dict[str, list[str]]:
    """First cell of each line of a Markdown table → the others."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in lines[2:]}


@pytest.mark.slow
def test_comparison_measures_both_arms(capsys):
    run(
        "compare_trl.py",
        "--steps",
        8,
        "--rank",
        4,
        "--weight",
        0.3,
        "--threads",
        1,
        "--output",
        "out",
    )
    printed = capsys.readouterr().out
    results, start, costs = printed.strip().split("\n\n")[-3:]
    table = rows_of(results)
    assert list(table) == ["without", "weight 0.3"]
    for name, cells in table.items():
        train_loss, heldout_loss, stable_rank, entropy, ratio = map(float, cells[:5])
        assert 0 < heldout_loss < 6
        assert 0 < train_loss < 6
        assert 1 <= stable_rank <= 4
        assert 0 < entropy <= 1.387
        assert 0.5 <= ratio <= 1
        assert re.fullmatch(r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]", cells[5])
        assert re.fullmatch(r"0\.\d\d \[0\.\d\d, 0\.\d\d\]", cells[6])
        assert summary(f"out/{name.replace(' ', '-')}")["stable_rank"] == pytest.approx(
            stable_rank, abs=1e-3
        )
    assert float(table["weight 0.3"][2]) > float(table["without"][2])
    assert re.fullmatch(
        r"held-out loss before training \d\.\d{3}; loss of the first step \d\.\d{4}: .*", start
    )  # one number each: both began alike
    shares = re.findall(
        r"^\| ([^|]+) \| \d\.\d{3} \| (\w+) \| (\d+\.\d\d)% \|$", costs, re.MULTILINE
    )
    assert [share[:2] for share in shares] == [
        ("without", "SpectrumMonitor"),
        ("weight 0.3", "SpectrumMonitor"),
        ("weight 0.3", "SpectralFlatness"),
    ]
    assert all(0 < float(share[2]) < 100 for share in shares)


# --- Axolotl --------------------------------------------------------------------------------------


class Settings(dict):
    """Like Axolotl's settings: attributes, and None for missing ones."""

    __getattr__ = dict.get


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The plugin as Axolotl imports it, with a stand-in for Axolotl if it is not installed."""
    if importlib.util.find_spec("axolotl") is None:
        base: Any = types.ModuleType("axolotl.integrations.base")
        base.BasePlugin = type("BasePlugin", (), {})
        monkeypatch.setitem(sys.modules, "axolotl", types.ModuleType("axolotl"))
        monkeypatch.setitem(
            sys.modules, "axolotl.integrations", types.ModuleType("axolotl.integrations")
        )
        monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "axolotl_plugin", raising=False)
    return importlib.import_module("axolotl_plugin")


def test_axolotl_plugin_has_the_hooks_that_axolotl_calls(plugin):
    hooks = {
        name: list(inspect.signature(getattr(plugin.EvilspectraPlugin, name)).parameters)
        for name in ("get_input_args", "add_callbacks_post_trainer", "post_trainer_create")
    }
    assert hooks == {
        "get_input_args": ["self"],
        "add_callbacks_post_trainer": ["self", "cfg", "trainer"],
        "post_trainer_create": ["self", "cfg", "trainer"],
    }
    module, _, name = plugin.EvilspectraPlugin().get_input_args().rpartition(".")
    assert set(getattr(sys.modules[module], name).model_fields) == {
        "spectral_flatness",
        "spectrum_monitor",
        "lora_optimizer",
    }


def test_axolotl_plugin_does_what_the_page_asks_for(plugin, tmp_path):
    """The page's YAML, through the hooks in Axolotl's order, in one of TRL's trainers."""
    (text,) = re.findall(
        r"```yaml\n(.*?)```", (EXAMPLES / "axolotl.md").read_text(encoding="utf-8"), re.DOTALL
    )
    settings = yaml.safe_load(text)
    module, _, name = settings.pop("plugins")[0].rpartition(".")
    assert (module, name) == (plugin.__name__, "EvilspectraPlugin")
    cfg = Settings(plugin.EvilspectraArgs(**settings).model_dump(exclude_none=True))
    hooks = plugin.EvilspectraPlugin()
    assert len(cfg) == 3
    args = SFTConfig(
        str(tmp_path / "out"), max_steps=4, bf16=False, use_cpu=True, save_strategy="no"
    )
    rows = Dataset.from_list([{"text": f"Question {number}: is it time?"} for number in range(32)])
    trainer = SFTTrainer(
        tiny_model(),
        args,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for callback in hooks.add_callbacks_post_trainer(cfg, trainer):
        trainer.add_callback(callback)
    hooks.post_trainer_create(cfg, trainer)
    trainer.train()
    facts = json.loads((tmp_path / "out" / "evilspectra" / "trainer.json").read_text())
    assert facts["optimizer"]["name"] == "Muon"
    assert facts["flatness"]["weight"] == settings["spectral_flatness"]["weight"]
    assert facts["monitor"]["every"] == settings["spectrum_monitor"]["every"]
    assert hooks.add_callbacks_post_trainer(Settings(), trainer) == []
