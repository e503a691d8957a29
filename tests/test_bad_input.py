"""Every mistake on the list, through the real command.

One sentence names the value, what is allowed and the remedy, and nothing is half-written.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilspectra.config.optimizers import OPTIMIZERS
from evilspectra.store.run import Store
from tests.support.commands import ROWS, command, left_in, write_config, write_model, write_rows

MESSAGES = {"messages": [{"role": "user", "content": "Is it time?"}]}


def refused(folder: Path, *settings: str, **sections: Any) -> str:
    """The sentence with which `train` refuses; nothing may be left in the store."""
    done = command(
        "train",
        write_config(folder, **sections),
        *[part for text in settings for part in ("--set", text)],
    )
    assert (done.code, done.out) == (2, "")
    assert left_in(folder / "runs") == []
    return done.sentence


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


# --- data -----------------------------------------------------------------------------------------


def test_a_missing_data_file(tmp_path: Path) -> None:
    path = tmp_path / "nope.jsonl"
    assert refused(tmp_path, data={"train": str(path)}) == (
        f"{path} does not exist: name a JSONL or Parquet file, a hub data set "
        "(organisation/name), or a built-in name (demo-bad, demo-good)"
    )


def test_a_missing_held_out_file(tmp_path: Path) -> None:
    assert f"{tmp_path}/other.jsonl does not exist: name a JSONL or Parquet file" in refused(
        tmp_path, data={"heldout": str(tmp_path / "other.jsonl")}
    )


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_data_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    assert refused(tmp_path, data={"train": str(path)}) == (
        f"{path} has no rows: name a file with one dialogue a line, in the form "
        f"{{messages}}, {{prompt, completion}} or {{instruction, input, output}}"
    )


def test_broken_json_in_a_line(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "broken.jsonl", *ROWS[:4], '{"prompt": "x", "completion": }', *ROWS
    )
    text = refused(tmp_path, data={"train": str(path)})
    assert text == (
        f"{path}, line 5: not valid JSON at column 31, Expecting value (one JSON object a "
        "line is needed): correct it, or set data.on_bad_row: skip"
    )


def test_a_row_without_an_assistant_turn(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "no-answer.jsonl", *ROWS[:2], MESSAGES)
    assert refused(tmp_path, data={"train": str(path)}) == (
        f"{path}, line 3: the row has no assistant turn to learn from: correct it, or set "
        "data.on_bad_row: skip"
    )


def test_the_remedy_that_is_offered_for_a_bad_row_works(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mixed.jsonl", *ROWS, MESSAGES, "{")
    done = command(
        "train", write_config(tmp_path, data={"train": str(path), "on_bad_row": "skip"}), "--quiet"
    )
    assert done.code == 0
    (run,) = Store(tmp_path / "runs").runs()
    assert run.provenance()["data"]["skipped"] == 2
    assert [reason.split(": ")[0] for reason in run.provenance()["data"]["skipped_reasons"]] == [
        f"{path}, line 25",
        f"{path}, line 26",
    ]


@pytest.mark.parametrize(("limit", "settings"), [(1024, []), (100, ["data.max_length=100"])])
def test_a_conversation_longer_than_the_context(
    tmp_path: Path, limit: int, settings: list[str]
) -> None:
    path = write_rows(tmp_path / "long.jsonl", *ROWS, {"prompt": "x" * 3000, "completion": "y"})
    text = refused(tmp_path, *settings, data={"train": str(path)})
    assert text.startswith(f"{path}, line 25: 30")
    assert (
        f"tokens are more than the limit of {limit} (the smaller of data.max_length and the "
        "model's context)"
    ) in text
    assert "set data.on_long: truncate or skip" in text


# --- settings -------------------------------------------------------------------------------------


def test_an_unknown_optimizer(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    assert refused(tmp_path, optimizer={"name": "adamv"}) == (
        f"{path}: optimizer.name 'adamv' is unknown; allowed: sgd, adam, adamw, lion, "
        "muon, soap, scion, lora-rite, adafactor, custom. Did you mean 'adam'?"
    )
    assert refused(tmp_path, "optimizer.name=moun").endswith("Did you mean 'muon'?")


@pytest.mark.parametrize(
    ("name", "most"),
    [("sgd", "10,000.0"), ("adam", "1"), ("adamw", "1"), ("lion", "1"), ("muon", "10")],
)
@pytest.mark.parametrize("lr", [-0.001, 0, 1e6, ".inf", ".nan"])
def test_a_negative_or_absurd_learning_rate(
    tmp_path: Path,
    name: str,
    most: str,
    lr: Any,
) -> None:
    text = refused(tmp_path, f"optimizer={{name: {name}, lr: {lr}}}")
    allowed = f"it must be a number, more than 0 and at most {most}"
    assert text == (
        f"{tmp_path}/run.yaml: optimizer.lr = {str(lr).lstrip('.')} is refused: "
        f"{allowed}; correct that value, or leave it out for the default "
        f"{OPTIMIZERS[name]().lr}"
    )


def test_a_learning_rate_too_small_to_move_anything(tmp_path: Path) -> None:
    done = command(
        "train", write_config(tmp_path, steps=3), "--quiet", "--set", "optimizer.lr=1e-300"
    )
    assert done.code == 1
    assert done.sentence == (
        "after 2 steps no B has moved from zero: the adapter is frozen, the gradient is "
        "zero, optimizer.lr is too small for the number type, or the schedule's warm-up "
        "is as long as the run"
    )
    (run,) = Store(tmp_path / "runs").runs()
    assert run.status().state == "failed"
    assert run.status().reason == done.sentence
    assert not run.adapter.exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_reason(tmp_path: Path) -> None:
    explosive: dict[str, Any] = {
        "optimizer": {"name": "sgd", "lr": 1.0e4},
        "flatness": {"weight": 1.0e6, "soft_start": 0},
        "lora": {"alpha": 65536},
    }
    explosive |= {"train": {"clip_norm": None}, "schedule": {"name": "constant", "warmup_steps": 0}}
    done = command("train", write_config(tmp_path, steps=6, **explosive), "--quiet", "--json")
    assert done.code == 1
    printed = json.loads(done.out)
    assert (printed["status"], printed["reason"]) == ("failed", done.sentence)
    assert done.sentence.startswith("step ")
    assert "are not finite; lower optimizer.lr (10000), or set train.clip_norm" in done.sentence
    (run,) = Store(tmp_path / "runs").runs()
    assert (run.status().state, run.status().reason) == ("failed", done.sentence)
    assert json.loads(command("show", run.path, "--json").out)["reason"] == done.sentence


def test_a_rank_larger_than_a_matrix(tmp_path: Path) -> None:
    assert refused(tmp_path, lora={"rank": 65}) == (
        "lora.rank 65 is larger than model.layers.0.self_attn.k_proj (32 × 64): set "
        "lora.rank to 32 or less, or leave that layer out of lora.targets"
    )


@pytest.mark.parametrize(
    ("targets", "named", "end"),
    [
        ("[qq_proj]", "qq_proj", "Did you mean 'q_proj'?"),
        ("[q_proj, nothing]", "nothing", "all-linear."),
        ("lm_head", "lm_head", "all-linear."),
        ("proj", "proj", ""),
    ],
)
def test_targets_that_match_nothing(
    tmp_path: Path,
    targets: str,
    named: str,
    end: str,
) -> None:
    text = refused(tmp_path, f"lora.targets={targets}")
    assert text.startswith(
        f"lora.targets '{named}' matches no linear layer of LlamaForCausalLM; there are: "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, or all-linear"
    )
    assert text.endswith(end)


@pytest.mark.parametrize("targets", ["[]", "['']", "''", "3"])
def test_targets_that_are_none(tmp_path: Path, targets: str) -> None:
    assert (
        f"lora.targets = {targets} is refused: allowed: all-linear, or module names such as "
        "[q_proj, v_proj]"
    ) in refused(tmp_path, f"lora.targets={targets}")


def test_a_batch_larger_than_the_data(tmp_path: Path) -> None:
    assert refused(tmp_path, train={"batch_size": 50}) == (
        "train.batch_size 50 is more than the 22 rows to train on: lower it to 22 or "
        "less, or add rows"
    )


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_a_device_that_is_not_here(tmp_path: Path, device: str) -> None:
    text = refused(tmp_path, f"model.device={device}")
    assert f"model.device '{device}' is not on this machine" in text
    assert text.endswith("set model.device: cpu or auto")


# --- models ---------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_chat_template(tmp_path: Path, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert refused(tmp_path, model={"base": str(model)}) == (
        f"the tokenizer of '{model}' has no chat template: use the instruct version of "
        "the model, or add chat_template.jinja to its folder"
    )


@pytest.mark.parametrize(
    "template",
    ["{% for x in %}", "{{ raise_exception('no') }}", "hello", "{{ messages[0].content | upper }}"],
)
def test_a_chat_template_that_cannot_be_masked(tmp_path: Path, model: Path, template: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    text = refused(tmp_path, model={"base": str(model)})
    assert f"the chat template of {model} cannot be masked exactly here" in text
    assert "use another base model or chat template" in text


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 a zip file, say")
    assert refused(tmp_path, model={"base": str(path)}) == (
        f"model.base '{path}' is no GGUF file (it does not begin with the letters GGUF): "
        "download it again, or name another base"
    )


@pytest.mark.parametrize(
    "content", [b"GGUF", b"GGUF" + bytes(100), b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"abc"]
)
def test_a_gguf_file_with_nothing_behind_its_first_letters(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    done = command("train", write_config(tmp_path, model={"base": str(path)}))
    progress, text = done.err.splitlines()
    assert progress.startswith("dequantising model.gguf into ")
    assert (done.code, done.out, left_in(tmp_path / "runs")) == (2, "", [])
    assert not list((tmp_path / "cache").rglob("config.json"))
    assert f"'{path}' could not be read as a model (" in text
    assert "name a GGUF file of an architecture that transformers knows" in text


def test_a_model_folder_with_pickle_weights_only(tmp_path: Path, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    what = (
        f"model.base '{model}' has its weights as pickle files only (pytorch_model.bin), "
        "which can run code when opened"
    )
    assert (
        refused(tmp_path, model={"base": str(model)})
        == f"{what}: convert them to safetensors (save_pretrained does) and name that folder"
    )


def test_a_pickle_beside_the_weights_is_not_opened(tmp_path: Path, model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(
        b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    )
    assert command("train", write_config(tmp_path, model={"base": str(model)}), "--quiet").code == 0
    assert not (tmp_path / "ran").exists()


# --- the run's directory --------------------------------------------------------------------------


def test_a_run_directory_made_with_another_config(tmp_path: Path) -> None:
    path = write_config(tmp_path, steps=3)
    assert command("train", path, "--quiet", "--set", "optimizer.lr=1e-300").code == 1
    (run,) = Store(tmp_path / "runs").runs()
    config = run.path / "config.yaml"
    config.write_text(
        config.read_text()
        .replace("rank: 4", "rank: 8")
        .replace("seed: 0\n  threads", "seed: 3\n  threads")
    )
    before = config.read_bytes()
    done = command("train", path, "--quiet", "--set", "optimizer.lr=1e-300")
    assert done.code == 2
    what = "lora.rank: 8 there, 4 here, train.seed: 3 there, 0 here"
    assert done.sentence == (
        f"{run.path} was made with another config ({what}): restore its config.yaml, or "
        "remove the folder, or set output.experiment to a new name"
    )
    assert config.read_bytes() == before


HOLD = (
    "import sys, pathlib; from evilspectra.store.run import RunFolder; lock = "
    "RunFolder(pathlib.Path(sys.argv[1])).locked(); lock.__enter__(); print('held', "
    "flush=True); sys.stdin.read()"
)


def test_two_processes_on_one_run_directory(tmp_path: Path) -> None:
    path = write_config(tmp_path, steps=3)
    assert command("train", path, "--quiet", "--set", "optimizer.lr=1e-300").code == 1
    (run,) = Store(tmp_path / "runs").runs()
    before = left_in(run.path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    try:
        done = command("train", path, "--quiet", "--set", "optimizer.lr=1e-300")
    finally:
        other.communicate()
    assert done.code == 2
    assert done.sentence == (
        f"{run.path} is being written by another process: wait until it ends, or stop it, "
        "then run the same command again"
    )
    assert left_in(run.path) == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a file system needs more rights than this user has")
    yield folder
    subprocess.run(
        ["umount", "--lazy", folder], check=True
    )  # torch forgets to close what it failed to write


@pytest.mark.parametrize(
    ("every", "ballast"),
    [(2, 0), (100, 800_000), (2, 1 << 20)],
    ids=["resume state", "adapter", "config"],
)
def test_a_full_disk_and_the_same_command_after_it_was_enlarged(
    tmp_path: Path,
    disk: Path,
    every: int,
    ballast: int,
) -> None:
    with (disk / "ballast").open("wb") as file:
        file.truncate(ballast)
        os.posix_fallocate(file.fileno(), 0, max(1, min(ballast, (1 << 20) - 12288)))
    arguments = [
        "train",
        write_config(tmp_path, steps=4),
        "--quiet",
        "--output",
        disk,
        "--set",
        "lora.rank=32",
        "--set",
        f"train.resume_every={every}",
    ]
    done = command(*arguments)
    assert (done.code, done.out) == (1, "")
    assert done.sentence.startswith(f"the disk that holds {disk}/")
    assert done.sentence.endswith(
        " is full: free some space or set output.folder to another disk, then run the same "
        "command again; what was saved is kept"
    )
    assert not [name for name in left_in(disk) if ".tmp" in name]
    subprocess.run(["mount", "-o", "remount,size=32m", disk], check=True)
    done = command(*arguments, "--json")
    assert done.code == 0
    printed = json.loads(done.out)
    assert (printed["status"], printed["steps"]) == ("done", 4)
    assert (Path(printed["folder"]) / "adapter" / "adapter_model.safetensors").is_file()


def test_a_disk_that_fills_up_while_the_state_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "resume.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    path = write_config(tmp_path, steps=4, train={"resume_every": 2})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        done = command("train", path, "--quiet")
    assert done.code == 1
    assert "resume.pt is full: free some space" in done.sentence
    (run,) = Store(tmp_path / "runs").runs()
    assert run.status().state == "failed"
    assert command("train", path, "--quiet").code == 0
    assert run.read("steps")["step"].tolist() == [1, 2, 3, 4]
