"""The meaning of a measuring command's argument, and names that mean nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput
from evilspectra.model import base as bases
from evilspectra.model.base import EMBEDDED
from evilspectra.store.run import RunFolder, Status
from evilspectra.targets.adapters import find_adapters
from evilspectra.targets.find import embedded_name, find_targets, run_target
from tests.support.commands import write_model
from tests.support.small_items import one_target, write_adapter
from tests.support.tiny_runs import run_tiny, tiny_config


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two runs in one experiment, one of them a control with checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    run_tiny(folder, train={"steps": 4, "checkpoints": [0, 2, 3]}, data={"control": True})
    run_tiny(folder, train={"steps": 4, "seed": 1})
    return folder / "runs"


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def runs(store: Path) -> tuple[RunFolder, RunFolder]:
    """The control and the other."""
    first, second = sorted(
        (RunFolder(path) for path in (store / "test").iterdir() if path.is_dir()),
        key=lambda run: run.config().train.seed,
    )
    return first, second


def refusal(*names: object, output: Path | str = "runs", **more: Any) -> str:
    with pytest.raises(BadInput) as caught:
        find_targets([str(name) for name in names], str(output), **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_s_folder_has_its_checkpoints_and_its_end(store: Path) -> None:
    run, _ = runs(store)
    target = one_target(run.path, store)
    assert target.adapters == {2: run.checkpoint(2), 3: run.checkpoint(3), 4: run.adapter}
    assert (target.label, target.control, target.last) == ("control (adamw), seed 0", True, 4)
    assert target.results.folder.resolve() == run.path.resolve()
    assert target.base == bases.resolve(ModelConfig(base="tiny-random"))


@pytest.mark.parametrize("way", ["id", "digest", "adapter", "slash", "relative", "inside", "link"])
def test_other_names_of_a_run(store: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = runs(store)
    want = one_target(run.path, store)
    monkeypatch.chdir(run.path if way == "inside" else store.parent)
    (store.parent / "link").symlink_to(run.path)
    name = {
        "id": run.name,
        "digest": run.name.rsplit("-", 1)[-1],
        "adapter": str(run.adapter),
        "slash": f"{run.path}/",
        "relative": str(run.path.relative_to(store.parent)),
        "inside": ".",
        "link": "link",
    }[way]
    target = one_target(name, store)
    assert (target.label, target.base, target.last) == (want.label, want.base, want.last)
    assert target.results.folder.resolve() == want.results.folder.resolve()
    assert {step: folder.resolve() for step, folder in target.adapters.items()} == {
        step: folder.resolve() for step, folder in want.adapters.items()
    }


def test_a_folder_of_runs_is_all_of_them_and_each_once(store: Path) -> None:
    first, second = runs(store)
    targets = find_targets(
        [str(store / "test"), str(store), first.name, str(second.adapter)], str(store)
    )
    assert sorted(target.results.folder.name for target in targets) == sorted(
        [first.name, second.name]
    )
    assert len(find_targets([str(store)], "elsewhere")) == 2


def test_runs_of_a_folder_that_are_not_done_are_left_out(store: Path) -> None:
    first, second = runs(store)
    first.set_status(Status("interrupted", "stopped", 2, 4))
    assert one_target(store / "test", store).results.folder == second.path
    second.set_status(Status("failed", "too hot", 2, 4))
    text = refusal(store / "test", output=store)
    assert text.startswith(f"none of the 2 runs below {store}/test is trained to its end (")
    assert f"{first.name}: interrupted" in text
    assert f"{second.name}: failed" in text
    assert text.endswith("): train them first")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status("interrupted", "stopped by hand", 2, 4), "interrupted: stopped by hand"),
        (Status("failed", None, 2, 4), "failed"),
        (Status("queued"), "queued"),
    ],
)
def test_a_run_that_is_not_done(store: Path, status: Status, reason: str) -> None:
    run, _ = runs(store)
    run.set_status(status)
    for name in (run.path, run.name, run.adapter):
        assert refusal(name, output=store) == (
            f"{run.path} is not trained to its end ({reason}): train it first, with "
            "`evilspectra train` or `sweep`"
        )


def test_a_run_whose_adapter_was_removed(store: Path) -> None:
    run, _ = runs(store)
    shutil.rmtree(run.adapter)
    assert "is not trained to its end" in refusal(run.path, output=store)


def test_a_run_on_a_base_that_was_changed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    run = run_tiny(tmp_path, model={"base": str(model)}, train={"steps": 2})
    assert run_target(run).base.path == model
    path = model / "config.json"
    path.write_text(path.read_text() + "\n")
    text = refusal(run.path)
    assert text.startswith(f"{run.path} was trained on another content of {model} (")
    assert text.endswith(" here): restore that base, or train again")


def test_a_run_whose_records_are_damaged(store: Path) -> None:
    run, _ = runs(store)
    provenance = run.path / "provenance.json"
    provenance.write_text("{")
    assert str(provenance) in refusal(run.path, output=store)
    provenance.write_text("{}")
    assert "was trained on another content of tiny-random (None there, " in refusal(
        run.path, output=store
    )


def test_device_and_number_type_as_wanted(store: Path) -> None:
    run, _ = runs(store)
    target = one_target(run.path, store, model=ModelConfig(dtype="float64", device="cpu"))
    assert (target.model.dtype, target.model.device, target.model.base) == (
        "float64",
        "cpu",
        "tiny-random",
    )


def test_what_is_not_wanted_otherwise_stays_as_it_was_trained(tmp_path: Path) -> None:
    """--model device=cpu says nothing about the number type."""
    run = run_tiny(tmp_path, model={"dtype": "float64"}, train={"steps": 2})
    target = one_target(run.path, tmp_path, model=ModelConfig(device="cpu"))
    assert (target.model.dtype, target.model.device) == ("float64", "cpu")


@pytest.mark.parametrize("setting", [{"revision": "v2"}, {"trust_remote_code": True}])
def test_how_a_model_is_loaded_is_not_forgotten(tmp_path: Path, setting: dict[str, Any]) -> None:
    """A setting that is taken and then left out measures another model than was asked for."""
    model = write_model(tmp_path / "model")
    target = one_target(model, tmp_path, model=ModelConfig(**setting))
    assert target.model.model_dump()[next(iter(setting))] == next(iter(setting.values()))


# --- adapters from elsewhere ----------------------------------------------------------------------


def test_a_foreign_adapter_is_measured_in_a_folder_named_by_its_content(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "my adapter!")
    target = one_target(folder, tmp_path / "store")
    results = target.results.folder
    assert results.parent == tmp_path / "store" / "evaluated"
    assert results.name.rsplit("-", 1)[0] == "my-adapter-"
    assert (target.label, target.adapters, target.control) == ("my adapter!", {1: folder}, False)
    assert json.loads((results / "target.json").read_text()) == {
        "adapter": str(folder),
        "base": "tiny-random",
        "base_sha256": target.base.sha256,
    }
    shutil.copytree(folder, tmp_path / "moved" / "my adapter!")
    assert (
        one_target(tmp_path / "moved" / "my adapter!", tmp_path / "store").results.folder == results
    )


def test_other_weights_and_another_scale_are_another_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    places = [one_target(folder, tmp_path).results.folder]
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"lora_alpha": 2 * settings["lora_alpha"]})
    )
    places.append(one_target(folder, tmp_path).results.folder)
    write_adapter(folder, seed=2)
    places.append(one_target(folder, tmp_path).results.folder)
    assert len(set(places)) == 3


def test_a_checkpoint_s_folder_is_an_adapter(store: Path) -> None:
    run, _ = runs(store)
    target = one_target(run.checkpoint(2), store)
    assert target.adapters == {1: run.checkpoint(2)}
    assert target.results.folder.parent == store / "evaluated"
    assert "evaluated" not in str(one_target(run.adapter, store).results.folder)


def test_an_adapter_in_a_folder_of_that_name_outside_a_run_takes_its_parent_s_name(
    tmp_path: Path,
) -> None:
    target = one_target(write_adapter(tmp_path / "mine" / "adapter"), tmp_path)
    assert target.label == "mine"
    assert target.results.folder.parent == tmp_path / "evaluated"


def test_base_names_another_base_and_its_results_lie_apart(tmp_path: Path) -> None:
    model, folder = write_model(tmp_path / "model"), write_adapter(tmp_path / "a")
    target = one_target(folder, tmp_path, base=str(model))
    assert target.base.path == model
    assert target.results.folder != one_target(folder, tmp_path).results.folder


def test_an_adapter_that_names_no_base(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    settings = json.loads((folder / "adapter_config.json").read_text())
    for value in (None, "", 3):
        (folder / "adapter_config.json").write_text(
            json.dumps(settings | {"base_model_name_or_path": value})
        )
        assert (
            refusal(folder)
            == f"{folder}/adapter_config.json names no base model: name it with --base"
        )
        assert one_target(folder, tmp_path, base="tiny-random").base.kind == "tiny"
    (folder / "adapter_config.json").write_text("{")
    assert f"{folder}/adapter_config.json cannot be read" in refusal(folder)


def test_an_adapter_that_names_a_base_that_is_not_here(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "/models/gone"})
    )
    assert "model.base '/models/gone' is no file or folder here" in refusal(folder)


def test_a_pickled_adapter(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert refusal(folder) == (
        f"{folder} holds no adapter_model.safetensors: save the adapter as safetensors "
        "(PEFT does so by default)"
    )


def test_base_for_what_is_no_adapter(store: Path) -> None:
    run, _ = runs(store)
    for name in (run.path, run.name, store, "tiny-random", "nothing"):
        assert refusal(name, output=store, base="tiny-random") == (
            f"--base tiny-random is for the folder of an adapter, and '{name}' holds no "
            "adapter_config.json: leave it out"
        )


def test_base_is_refused_or_taken_for_an_adapter_inside_a_run(store: Path, tmp_path: Path) -> None:
    """Never passed over: the numbers would be of another base than was asked for."""
    run, model = runs(store)[0], write_model(tmp_path / "model")
    with contextlib.suppress(BadInput):
        assert one_target(run.adapter, store, base=str(model)).base.path == model


def test_the_hub_name_of_the_model_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: None)
    assert embedded_name("HuggingFaceTB/SmolLM2-135M-Instruct") == EMBEDDED
    assert (
        embedded_name("HuggingFaceTB/SmolLM2-360M-Instruct")
        == "HuggingFaceTB/SmolLM2-360M-Instruct"
    )
    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    assert (
        embedded_name("HuggingFaceTB/SmolLM2-135M-Instruct")
        == "HuggingFaceTB/SmolLM2-135M-Instruct"
    )


# --- models ---------------------------------------------------------------------------------------


def test_a_model_s_folder_and_a_built_in_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model")
    target = one_target(model, tmp_path)
    assert (target.label, target.adapters, target.last, target.base.path) == ("model", {}, 0, model)
    assert target.results.folder.parent == tmp_path / "evaluated"
    assert one_target("tiny-random", tmp_path).base.kind == "tiny"
    monkeypatch.chdir(model)
    here = one_target(".", tmp_path)
    assert (
        here.results.folder.name.rsplit("-", 1)[1] == target.results.folder.name.rsplit("-", 1)[1]
    )
    assert here.label == "model"


def test_a_hub_model_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, requested = write_model(tmp_path / "model"), []
    monkeypatch.setattr(
        bases,
        "_from_hub",
        lambda name, config: (requested.append((name, config.local_files_only)), model)[1],
    )
    target = one_target("owner/some.model-1", tmp_path, model=ModelConfig(local_files_only=True))
    assert requested == [("owner/some.model-1", True)]
    assert (target.label, target.base.public_name) == ("some.model-1", "owner/some.model-1")


@pytest.mark.parametrize("name", ["x.gguf", "missing/x.gguf"])
def test_a_gguf_file_that_is_not_there(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"model.base '{name}' does not exist" in refusal(name)


# --- nonsense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "",
        "-",
        "😀",
        "a" * 5000,
        "x/" * 600,
        "\0",
        "a\nb",
        "../../nothing",
        "owner/model/more",
        "~nobody",
        "*",
    ],
    ids=lambda name: repr(name)[:12],
)
def test_nonsense(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        find_targets([name], "runs")
    assert "Traceback" not in str(caught.value)
    if name in ("nonsense", "😀"):
        kinds = (
            "no folder of runs, of an adapter (adapter_config.json) or of a model "
            "(config.json), and no model's name (smollm2-135m-instruct, tiny-random, "
            "owner/model, a .gguf file)"
        )
        assert str(caught.value) == f"'{name}' is no run below runs/, {kinds}: name one of these"


def test_no_name_is_not_all_runs_of_this_folder(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `probe "$RUN"` asks for where RUN is not set."""
    monkeypatch.chdir(store)
    refusal("", output=store)


def test_folders_and_files_that_are_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "README.md").write_text("hello")
    (tmp_path / "file.txt").write_text("hello")
    for name in ("empty", "text", "file.txt"):
        assert f"'{tmp_path / name}' is no run below runs/" in refusal(tmp_path / name)


def test_an_id_that_means_two_runs(store: Path) -> None:
    first, second = runs(store)
    assert "means 2 runs" in refusal("adamw", output=store)
    assert len(find_targets([first.name, second.name], str(store))) == 2


def test_nothing_is_written_for_what_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    refusal(folder, output=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    text = refusal(write_adapter(tmp_path / "a"), output=tmp_path / "store")
    assert "output" in text
    assert str(tmp_path / "store") in text


def test_measurements_are_no_runs_and_runs_stay_what_they_are(store: Path) -> None:
    run, _ = runs(store)
    one_target(run.checkpoint(2), store)
    assert len(find_targets([str(store)], str(store))) == 2
    assert tiny_config(store.parent).output.experiment == "test"


def test_a_trainers_last_checkpoint_is_named(tmp_path):
    for step in (5, 10):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BadInput, match=r"such as \S*checkpoint-10, or a folder of runs"):
        list(find_adapters([str(tmp_path / "out")], "runs"))
