"""`probe` as a user meets it: tables, JSON, exit codes, and targets that fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from evilspectra.errors import RunFailed
from evilspectra.evaluation import evaluate as stage
from tests.support.commands import command
from tests.support.measuring import (
    FEW,
    SHORT,
    enter,
    forbid_models,
    pair_in,
    settings_of,
    train_pair,
)
from tests.support.small_items import (
    TRIPLES,
    write_adapter,
    write_lines,
    write_questions,
)


@pytest.fixture(autouse=True)
def _items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, its own cache, and a few items under the built-in names."""
    enter(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_pair(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[Path]:
    """The folders of a run and of a control, in ./runs."""
    shutil.copytree(trained, tmp_path / "runs")
    return pair_in(tmp_path / "runs")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "mine")


def test_a_table_of_runs_with_their_intervals(runs: list[Path]) -> None:
    done = command("probe", "runs", *SHORT)
    assert done.code == 0
    lines = done.out.splitlines()
    assert len(lines) == 4
    run, control = lines[2:]
    assert run.startswith("adamw, seed 0  ")
    assert control.startswith("control (adamw), seed 1  ")
    assert run.count("[") == 4  # drift, beyond the control, shuffled, capability
    assert control.count("[") == 3
    assert "→" in run
    assert len(done.err.splitlines()) == 9
    assert all("texts" in line for line in done.err.splitlines())


def test_a_word_about_controls_where_there_is_none(runs: list[Path]) -> None:
    assert "data.control: true" in command("probe", runs[0], *SHORT, "--quiet").out
    assert "data.control" not in command("probe", *runs, *SHORT, "--quiet").out


def test_one_json_object_for_machines(runs: list[Path], adapter: Path, tmp_path: Path) -> None:
    done = command("probe", *runs, adapter, *SHORT, "--checkpoints", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    printed = json.loads(done.out)
    assert printed["failed"] == []
    run, control, mine = printed["targets"]
    assert (run["target"], control["target"], mine["target"]) == (
        "adamw, seed 0",
        "control (adamw), seed 1",
        "mine",
    )
    assert [target["control"] for target in printed["targets"]] == [False, True, False]
    assert Path(run["folder"]).resolve() == runs[0]
    assert (tmp_path / mine["folder"]).parent == tmp_path / "runs" / "evaluated"
    assert list(run["trajectory"]) == ["2", "4"]
    assert run["trajectory"]["4"] == run["drift"]["drift"]
    assert set(run["drift"]["drift"]) == {"value", "low", "high"}
    assert run["beyond_control"]["value"] == pytest.approx(
        run["drift"]["drift"]["value"] - control["drift"]["drift"]["value"]
    )
    assert control["beyond_control"] is None
    assert (run["drift"]["items"], run["capability"]["items"], run["ordinary"]["items"]) == (
        6,
        5,
        3,
    )
    again = command("probe", *runs, adapter, *SHORT, "--checkpoints", "--json")
    assert json.loads(again.out) == printed
    assert again.err.count("measured before") == 3


def test_nothing_is_loaded_for_what_is_known(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command("probe", "runs", *SHORT, "--quiet")
    forbid_models(monkeypatch)
    assert command("probe", "runs", *SHORT, "--quiet") == first


def test_own_items_are_what_is_shown_whatever_was_measured_before(adapter: Path) -> None:
    write_lines(Path("own.jsonl"), TRIPLES[:4])
    assert command("probe", adapter, *SHORT, "--quiet").code == 0
    for how in (("--items", "own.jsonl"), ("--set", "contrast=own.jsonl")):
        (printed,) = json.loads(command("probe", adapter, *how, *SHORT, "--json", "--quiet").out)[
            "targets"
        ]
        assert printed["drift"]["items"] == 4
    (printed,) = json.loads(command("probe", adapter, *SHORT, "--json", "--quiet").out)["targets"]
    assert printed["drift"]["items"] == 6


def test_another_number_type_is_what_is_shown_whatever_was_measured_before(adapter: Path) -> None:
    margins = [
        json.loads(command("probe", adapter, *SHORT, "--json", "--quiet", *how).out)["targets"][0][
            "drift"
        ]["margin"]
        for how in ((), ("--model", "dtype=float64"))
    ]
    assert 0 < abs(margins[0] - margins[1]) < 1e-4


def test_an_instrument_that_is_left_out_is_a_dash(adapter: Path) -> None:
    done = command(
        "probe", adapter, *SHORT, "--quiet", "--set", "capability=null", "--set", "ordinary=null"
    )
    assert done.code == 0
    assert [cell.strip() for cell in done.out.splitlines()[2].split("  ") if cell.strip()][-2:] == [
        "-",
        "-",
    ]


def test_a_base_alone_shows_what_was_measured(tmp_path: Path) -> None:
    done = command("probe", "tiny-random", *SHORT, "--quiet")
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("tiny-random")]
    assert any(letter.isdigit() for letter in line), (
        "the capability and the ordinary loss of a base are numbers too"
    )


def test_a_label_that_looks_like_markup_is_printed_as_it_is(tmp_path: Path) -> None:
    done = command("probe", write_adapter(tmp_path / "[red]my[bold] adapter"), *SHORT, "--quiet")
    assert "[red]my[bold] adapter" in done.out


def test_results_of_other_adapters_go_where_output_says(adapter: Path, tmp_path: Path) -> None:
    assert command("probe", adapter, "--output", "elsewhere", *SHORT, "--quiet").code == 0
    assert not (tmp_path / "runs").exists()
    assert len(list((tmp_path / "elsewhere" / "evaluated").iterdir())) == 1


def test_settings_reach_the_measurement(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(
        monkeypatch,
        "probe",
        adapter,
        "--checkpoints",
        "--items",
        "é ü.jsonl",
        "--tasks",
        "arc_easy, hellaswag",
        "--set",
        "threads=3",
        "--set",
        "capability=null",
    )
    assert (settings.checkpoints, settings.contrast, settings.threads, settings.capability) == (
        True,
        "é ü.jsonl",
        3,
        None,
    )
    assert settings.harness.tasks == ("arc_easy", "hellaswag")
    assert settings.answers is None


@pytest.mark.parametrize(
    "name", ["😀.jsonl", "a 'quoted' \"name\".jsonl", "null", "3", "a: b", "#x"]
)
def test_any_file_name_reaches_the_measurement(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert settings_of(monkeypatch, "probe", adapter, "--items", name).contrast == name
    assert (
        settings_of(
            monkeypatch, "generate", adapter, "--questions", str(write_questions(Path(f"q{name}")))
        ).answers.questions
        == f"q{name}"
    )


# --- runs that fail -------------------------------------------------------------------------------


def test_one_target_that_fails_does_not_stop_the_others(runs: list[Path], tmp_path: Path) -> None:
    empty = write_adapter(tmp_path / "empty", size=0)
    done = command("probe", empty, runs[0], *SHORT, "--quiet", "--json")
    assert done.code == 1
    assert done.sentence.startswith(
        f"empty: the adapter in {empty} does not change the logits of tiny-random"
    )
    printed = json.loads(done.out)
    assert [target["target"] for target in printed["targets"]] == ["adamw, seed 0"]
    (failed,) = printed["failed"]
    assert failed["target"] == "empty"
    assert failed["reason"] == done.sentence.removeprefix("empty: ")


def test_where_all_fail_the_code_is_that_of_the_first(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = command("probe", write_adapter(tmp_path / "empty", size=0), *SHORT, "--quiet")
    assert (done.code, done.out) == (2, "")
    assert "does not change the logits" in done.sentence

    def hot(*arguments: object, **more: object) -> None:
        raise RunFailed("the model's logits are not finite")

    monkeypatch.setattr(stage, "token_log_probs", hot)
    done = command("probe", adapter, *SHORT, "--quiet")
    assert (done.code, done.out, done.sentence) == (
        1,
        "",
        "mine: the model's logits are not finite",
    )


def test_an_adapter_of_nan_is_a_failed_run(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(path).items()}, path)
    for verb in ("probe", "generate"):
        done = command(verb, adapter, *SHORT, "--quiet")
        assert (done.code, done.out) == (1, "")
        assert "the model's logits are not finite" in done.sentence


def test_interrupted(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "sample", stop)
        done = command("generate", adapter, *FEW, "--quiet")
    assert (done.code, done.out) == (130, "")
    assert (
        done.err.strip()
        == "evilspectra: interrupted; what was saved is kept, run the same command again to resume"
    )
    assert command("generate", adapter, *FEW, "--quiet").code == 0
