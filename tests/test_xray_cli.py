"""The command `spectrum`: its outputs, where it finds adapters, what it refuses and imports."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evilspectra.adapters.xray import layer_and_projection, xray
from evilspectra.errors import BadInput
from evilspectra.reporting.adapter_text import bars
from evilspectra.spectra.peft_files import open_folder
from evilspectra.targets.adapters import find_adapters
from tests.support.commands import command, write_config
from tests.support.saved_adapters import adapted, xrays

ROOT = Path(__file__).parents[1]


def test_text_csv_and_page(tmp_path):
    for seed in (0, 1):
        adapted(seed=seed).save_pretrained(str(tmp_path / f"ad<b>{seed}"))
    done = command(
        "spectrum",
        tmp_path / "ad<b>0",
        tmp_path / "ad<b>1",
        "--layers",
        "--csv",
        tmp_path / "a.csv",
        "--html",
        tmp_path / "a.html",
        "--directions",
        "2",
    )
    assert done.code == 0, done.err
    for text in (
        "14 modules, rank 4, alpha 8",
        "q_proj",
        "stable rank by layer",
        "steepest: ",
        "overlap of",
        "the 2 leading singular directions",
        "ad<b>1",
    ):
        assert text.replace("overlap of", "overlap") in done.out
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert len(lines) == 1 + 28
    assert lines[0].startswith("adapter,module,layer,projection,d_out,d_in,rank")
    page = (tmp_path / "a.html").read_text()
    assert "ad&lt;b&gt;1" in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")
    (first, second) = xrays(tmp_path / "ad<b>0", tmp_path / "ad<b>1")
    assert (first["compared"][0]["with"], second["compared"][0]["with"]) == ("ad<b>1", "ad<b>0")
    assert {"adapter", "config", "modules", "mean"} <= set(first)
    assert {
        "module",
        "shape",
        "rank",
        "singular_values",
        "stable_rank",
        "spectral_entropy",
        "condition_number",
        "frobenius_nuclear",
    } <= set(first["modules"][0])


def test_runs_and_folders_of_runs_are_found(tmp_path):
    config = write_config(tmp_path, steps=2)
    assert command("train", config, "--quiet").code == 0
    (run,) = (tmp_path / "runs" / "x").glob("adamw*")
    wanted = xrays(run / "adapter")[0]
    assert wanted["adapter"] == run.name
    for argument in (run, tmp_path / "runs", run / "adapter" / "adapter_model.safetensors"):
        assert xrays(argument)[0]["modules"] == wanted["modules"]
    assert xrays(run.name, "--output", tmp_path / "runs")[0]["adapter"] == run.name


def test_a_name_on_the_hub_is_fetched_without_pickles(tmp_path, monkeypatch):
    """The hub's cache is a folder of links into its blobs, which are followed; others are not."""
    import huggingface_hub

    snapshot, blobs = (
        tmp_path / "models--a--b" / "snapshots" / "1f",
        tmp_path / "models--a--b" / "blobs",
    )
    adapted().save_pretrained(str(snapshot))
    blobs.mkdir()
    shutil.move(snapshot / "adapter_model.safetensors", blobs / "0a")
    os.symlink("../../blobs/0a", snapshot / "adapter_model.safetensors")
    request = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **settings: request.update(settings, name=name) or str(snapshot),
    )
    assert find_adapters(["a/b"], str(tmp_path / "runs"), revision="r1")[0][0] == "a/b"
    assert (request["name"], request["revision"]) == ("a/b", "r1")
    assert not any("bin" in pattern for pattern in request["allow_patterns"])


REFUSED = {
    "": "'' is no name of an adapter",
    "nothing here": "'nothing here' is no file or folder here, no run below",
    "pickle.bin": "is a pickle, which can run code when it is read",
    "text.txt": "text.txt is no .safetensors file",
    "empty": "empty has no adapter_config.json and no finished run below it",
}


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_is_no_adapter_is_refused_in_a_sentence(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    for file in ("pickle.bin", "text.txt"):
        (tmp_path / file).write_text("x")
    done = command(
        "spectrum",
        tmp_path / name if (tmp_path / name).exists() and name else name,
        "--output",
        tmp_path / "runs",
    )
    assert (done.code, message in done.sentence) == (2, True), done.err


def test_neither_torch_nor_transformers_is_imported(tmp_path):
    adapted().save_pretrained(str(tmp_path / "adapter"))
    code = (
        "import sys\nfrom evilspectra.cli.main import main\ntry: main()\nexcept SystemExit as "
        "end: code = end.code\nsys.exit(code or ('torch' in sys.modules) or ('transformers' in "
        "sys.modules))"
    )
    for arguments in (
        ["spectrum", "adapter", "--html", "a.html"],
        ["flatten", "adapter", "--out", "flat"],
    ):
        subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, check=True, capture_output=True
        )


def test_layers_and_projections_are_read_off_the_names():
    assert layer_and_projection("transformer.h.3.attn.c_attn") == (3, "c_attn")
    assert bars([float("nan"), 5.0], 0, 1) == " █"


def test_a_note_for_every_module_beside_the_base(tmp_path):
    adapted().save_pretrained(str(tmp_path))
    lines: list[str] = []
    adapter = xray(
        "a",
        open_folder(tmp_path),
        weight=lambda module: np.ones((module.shape[2], module.shape[1])),
        note=lines.append,
    )
    assert len(lines) == len(adapter.modules) == 14
    with pytest.raises(BadInput, match="its update"):
        xray("a", open_folder(tmp_path), weight=lambda module: np.ones((1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "seconds"), [("qwen3-8b", 10), ("llama-70b", 60)])
def test_budgets_on_large_shapes(model, seconds):
    """Start-up included; pages of the mapped file do not count as memory."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "xray.py"),
            "--models",
            model,
            "--rounds",
            "1",
            "--json",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    (row,) = json.loads(done.stdout)
    assert row["modules"] == {"qwen3-8b": 252, "llama-70b": 560}[model]
    assert row["evilspectra"]["seconds"] < seconds
    assert 0 < row["evilspectra"]["anonymous_bytes"] < 1 << 30
