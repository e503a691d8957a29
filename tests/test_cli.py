"""The command line: exit codes, JSON, one sentence for a mistake, nothing heavy for help."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

import evilspectra
from evilspectra.cli.main import EXIT_CODES, cli, main
from evilspectra.errors import BadInput, EvilspectraError, Interrupted, RunFailed, Undecided
from evilspectra.store.run import Store
from tests.support.commands import command, left_in, process, write_config

VERBS = [
    ["train"],
    ["sweep"],
    ["probe"],
    ["generate"],
    ["evaluate"],
    ["judge"],
    ["score"],
    ["compare"],
    ["calibrate"],
    ["demo"],
    ["report"],
    ["show"],
]
VERBS += [
    ["config"],
    ["config", "schema"],
    ["config", "show"],
    ["data"],
    ["data", "get"],
    ["data", "list"],
    ["sweep", "status"],
    ["sweep", "retry"],
    ["sweep", "run"],
]
VERBS += [["tune"], ["query"], ["analyze"], ["spectrum"], ["flatten"], ["gate"], ["card"]]

NEEDED = {
    "run",
    "status",
    "train_loss",
    "heldout_loss",
    "stable_rank",
    "spectral_entropy",
    "condition_number",
    "frobenius_nuclear",
    "tokens_per_s",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a config and its run, and what `train --json` printed."""
    folder = tmp_path_factory.mktemp("trained")
    done = command("train", write_config(folder, train={"checkpoints": [1]}), "--json")
    assert done.code == 0
    return folder, json.loads(done.out)


# --- help and what is imported --------------------------------------------------------------------


@pytest.mark.parametrize("verb", [[], *VERBS], ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_verb(verb: list[str], flag: str) -> None:
    done = command(*verb, flag)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: evilspectra {' '.join(verb)}".rstrip())
    assert len(done.out.splitlines()) > 5


def test_every_verb_is_in_this_test() -> None:
    assert isinstance(cli, click.Group)
    assert {verb[0] for verb in VERBS} == set(cli.commands)


def test_every_option_and_command_says_what_it_does() -> None:
    def check(item: click.Command) -> None:
        assert item.help
        for option in item.params:
            assert not isinstance(option, click.Option) or option.help, (item.name, option.name)
        for child in item.commands.values() if isinstance(item, click.Group) else ():
            check(child)

    check(cli)


def test_the_exit_codes_of_the_help_are_those_of_the_errors() -> None:
    assert " ".join(command("--help").out.split()).endswith(EXIT_CODES)
    for code in (
        0,
        EvilspectraError.exit_code,
        RunFailed.exit_code,
        BadInput.exit_code,
        Undecided.exit_code,
        Interrupted.exit_code,
    ):
        assert f" {code} " in EXIT_CODES


LIGHT = """
import sys, json
from evilspectra.cli.main import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
    heavy = {"torch", "transformers", "peft", "datasets"} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
"""


def light(*commands: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_help_and_config_import_no_torch() -> None:
    light(
        *[[*verb, "--help"] for verb in [[], *VERBS]],
        ["--version"],
        ["config", "schema"],
        ["config", "show"],
        ["config", "show", "tiny"],
    )


@pytest.mark.slow
def test_show_and_report_import_no_torch(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(trained[0] / "runs", tmp_path / "runs")
    light(
        ["show", str(tmp_path / "runs" / "x" / trained[1]["run"])],
        ["show", trained[1]["run"], "--output", str(tmp_path / "runs"), "--json"],
        ["report", str(tmp_path / "runs")],
    )
    assert (tmp_path / "runs" / "report.html").is_file()


def test_the_version_is_the_package_s() -> None:
    assert command("--version").out == f"evilspectra, version {evilspectra.__version__}\n"


# --- what comes out -------------------------------------------------------------------------------


def no_constant(name: str) -> None:
    raise AssertionError(f"JSON has no {name}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "{config}", "--json"],
        ["train", "{config}", "--json", "--quiet"],
        ["show", "{run}", "--json", "--output", "{runs}"],
        ["show", "{folder}", "--json"],
    ],
)
def test_json_is_one_object_with_the_promised_keys_and_nothing_else_on_the_output(
    trained: tuple[Path, dict[str, Any]], arguments: list[str]
) -> None:
    folder, first = trained
    names = {
        "config": folder / "run.yaml",
        "run": first["run"],
        "runs": folder / "runs",
        "folder": folder / "runs" / "x" / first["run"],
    }
    done = command(*[argument.format_map(names) for argument in arguments])
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out, parse_constant=no_constant)
    assert printed.keys() >= NEEDED
    assert printed["status"] == "done"
    assert all(isinstance(printed[name], float) for name in NEEDED - {"run", "status"})
    assert {name: printed[name] for name in printed if name != "folder"} == {
        name: first[name] for name in first if name != "folder"
    }


def test_json_of_a_run_without_numbers_has_nulls(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source = trained[0] / "runs" / "x" / trained[1]["run"]
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "status.json"):
        shutil.copy(source / name, run)
    printed = json.loads(command("show", run, "--json").out, parse_constant=no_constant)
    assert printed["train_loss"] is printed["stable_rank"] is printed["tokens_per_s"] is None
    assert "-" in command("show", run).out


def test_text_tells_the_numbers_the_adapter_and_the_checkpoints(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    folder, printed = trained
    run = folder / "runs" / "x" / printed["run"]
    text = command("train", folder / "run.yaml").out
    assert f"{printed['heldout_loss']:.3f}" in text
    assert f"adapter: {run}/adapter\n" in text
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    text = command("show", run).out
    assert f"status: done, 2 steps\nfolder: {run}\ncheckpoints: 1\n" in text


def test_progress_goes_to_standard_error_and_quiet_silences_it(tmp_path: Path) -> None:
    loud = command("train", write_config(tmp_path))
    assert "step 1/2" in loud.err
    assert "tokens/s" in loud.err
    assert "step" not in loud.out
    assert command("train", write_config(tmp_path), "--quiet", "--set", "train.seed=1").err == ""


def test_the_schema_command_prints_the_schema_and_show_prints_what_it_takes() -> None:
    schema = json.loads(command("config", "schema").out, parse_constant=no_constant)
    for arguments in (
        [],
        ["tiny"],
        ["tiny", "--set", "optimizer={name: muon}"],
        ["--set", "train.checkpoints=log:5"],
    ):
        config = yaml.safe_load(command("config", "show", *arguments).out)
        jsonschema.Draft202012Validator(schema).validate(config)
        assert config["model"].keys() >= {"base", "dtype"}


def test_what_show_prints_can_be_trained_and_is_the_same_run(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    complete = tmp_path / "whole.yaml"
    complete.write_text(command("config", "show", trained[0] / "run.yaml").out, encoding="utf-8")
    assert json.loads(command("train", complete, "--json").out)["run"] == trained[1]["run"]


def test_output_moves_the_store_wherever_it_is_written(tmp_path: Path) -> None:
    store = tmp_path / "späce 😀: [x]"
    done = command("train", write_config(tmp_path), "--output", store, "--json", "--quiet")
    assert done.code == 0
    assert Path(json.loads(done.out)["folder"]).parent.parent == store
    assert command("train", "tiny", "--output", "").code == 2


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (EvilspectraError("a"), 1, "evilspectra: a\n"),
        (RunFailed("b"), 1, "evilspectra: b\n"),
        (BadInput("c"), 2, "evilspectra: c\n"),
        (Undecided("d"), 3, "evilspectra: d\n"),
        (Interrupted("e"), 130, "evilspectra: e\n"),
        (
            KeyboardInterrupt(),
            130,
            (
                "evilspectra: interrupted; what was saved is kept, "
                "run the same command again to resume\n"
            ),
        ),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    text: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("evilspectra.config.loading.schema", fail)
    done = command("config", "schema")
    assert (done.code, done.out, done.err.lstrip()) == (
        code,
        "",
        text,
    )  # click ends the terminal's line after ^C


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train"],
        ["train", "tiny", "--st", "a=1"],
        ["show"],
        ["sweep"],
        ["report"],
        ["config"],
        ["train", "tiny", "extra"],
        ["demo", "--json"],
    ],
)
def test_wrong_usage_exits_two_on_standard_error(arguments: list[str]) -> None:
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: evilspectra" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "nope.yaml"],
        ["sweep", "nope.yaml"],
        ["show", "nope"],
        ["show", ""],
        ["report", "nope"],
        ["config", "show", "nope"],
        ["config", "show", ""],
        ["train", "demo"],
        ["train", "tiny", "--set", "x"],
    ],
)
def test_bad_input_exits_two_in_one_sentence(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.sentence
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("error", [ZeroDivisionError, EOFError])
def test_an_unexpected_error_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("evilspectra.config.loading.schema", fail)
    with pytest.raises(error):
        main(["config", "schema"])


@pytest.mark.parametrize(
    "arguments", [["config", "schema"], ["config", "show", "tiny"], ["--help"]]
)
def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path, arguments: list[str]) -> None:
    running = process(*arguments, folder=tmp_path)
    assert running.stdout
    assert running.stderr
    running.stdout.close()
    assert running.wait(60) in (0, 1)
    assert running.stderr.read() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    done = command("train", write_config(tmp_path))
    assert done.code == 2
    assert (
        "cannot be written (Permission denied): choose another output.folder, or correct the "
        "folder's rights"
    ) in done.sentence


@pytest.mark.parametrize("name", ["file", "file/below", "/dev/null/x", "x" * 300])
def test_a_store_that_cannot_be_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    done = command("train", write_config(tmp_path), "--output", tmp_path / name)
    assert done.code == 2
    assert "cannot be made (" in done.sentence
    assert "set output.folder to a folder, or to a name that is free" in done.sentence
    assert (tmp_path / "file").read_text() == "mine"


# --- interruption ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = write_config(tmp_path, steps=100_000)
    running = process("train", path, "--set", "monitor.every=0", folder=tmp_path)
    deadline = time.monotonic() + 60
    while not any(run.resume_file.exists() for run in Store(tmp_path / "runs").runs()):
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    (run,) = Store(tmp_path / "runs").runs()
    assert run.status().state == "running"
    assert (
        "is being written by another process"
        in command("train", path, "--set", "monitor.every=0").sentence
    )
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    last = err.splitlines()[-1]
    assert last.startswith("evilspectra: interrupted after step ")
    assert last.endswith(" of 100000; the state is saved, run the same command again to go on")
    assert "Traceback" not in err
    step = int(last.split("after step ")[1].split()[0])
    assert run.status().state == "interrupted"
    assert run.read("steps")["step"].tolist() == list(range(1, step + 1))
    assert json.loads(command("show", run.path, "--json").out)["status"] == "interrupted"


@pytest.mark.slow
def test_a_run_stopped_on_the_way_and_started_again_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evilspectra.training.loop import TrainingRun

    path = write_config(tmp_path, steps=6)
    advance = TrainingRun.advance

    def stop_at_three(self: TrainingRun) -> Any:
        record = advance(self)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "advance", stop_at_three)
        done = command("train", path)
    assert done.code == 130
    assert done.err.splitlines()[-1] == (
        "evilspectra: interrupted after step 3 of 6; the state is saved, run the same "
        "command again to go on"
    )
    done = command("train", path, "--json")
    assert done.code == 0
    assert "resumes after step 3 of 6" in done.err
    assert json.loads(done.out)["steps"] == 6
    (run,) = Store(tmp_path / "runs").runs()
    assert run.read("steps")["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert not run.resume_file.exists()
