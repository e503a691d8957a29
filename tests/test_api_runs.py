"""Runs, sweeps, measurements, analyses and reports through the public functions."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import altair
import pandas as pd
import pytest

import evilspectra as es
from evilspectra.api.result import Result
from evilspectra.errors import BadInput, NothingMeasured, RunFailed
from evilspectra.store.records import StepRecord
from evilspectra.tables import tidy
from tests.support.commands import command

INPUTS = Path(__file__).parent / "golden" / "inputs"
TINY: dict[str, Any] = {
    "model": {"base": "tiny-random", "device": "cpu"},
    "data": {"train": INPUTS / "rows.jsonl"},
    "lora.rank": 2,
    "monitor.every": 2,
    "train": {"steps": 4, "batch_size": 4, "threads": 1, "checkpoints": (2,)},
}
SWEEP = {
    "experiment": "pair",
    "base": {
        "model": {"base": "tiny-random", "device": "cpu"},
        "data": {"train": str(INPUTS / "rows.jsonl")},
        "lora": {"rank": 2},
        "train": {"steps": 2, "batch_size": 4, "threads": 1},
    },
    "axes": {"optimizer.name": ["adamw", "lion"]},
}
PROBED = {"contrast": INPUTS / "contrast.jsonl", "capability": None, "ordinary": None, "threads": 1}
JUDGE: dict[str, Any] = {
    "judge": f"scripted:{INPUTS / 'judge.yaml'}",
    "questions": INPUTS / "questions.yaml",
    "max_new_tokens": 8,
    "settings": {"threads": 1},
}


def answer(*arguments: object) -> Any:
    """The JSON that a command prints."""
    return json.loads(command(*arguments, "--json").out)


@dataclasses.dataclass
class Trained:
    """A trained run, and what was heard of it."""

    folder: Path
    run: Any
    steps: list[StepRecord]
    lines: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("api")
    steps: list[StepRecord] = []
    lines: list[str] = []
    run = es.train(TINY, output=folder / "runs", on_step=steps.append, note=lines.append)
    return Trained(folder, run, steps, lines)


@pytest.fixture(autouse=True)
def own_cache(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(trained.folder / "cache"))
    monkeypatch.chdir(trained.folder)


@pytest.fixture(scope="module")
def swept(trained: Trained) -> Any:
    return es.sweep(SWEEP, seeds=[0, 1], output=str(trained.folder / "runs"), workers=1)


@pytest.fixture(scope="module")
def probed(trained: Trained) -> Any:
    return es.probe(trained.run, settings=PROBED, checkpoints=True, output=trained.folder / "runs")


@pytest.fixture(scope="module")
def rated(trained: Trained) -> Any:
    return es.evaluate([trained.run], output=trained.folder / "runs", **JUDGE)


@pytest.fixture(scope="module")
def analysed(swept: Any) -> Any:
    return es.analyze(swept, permutations=9, differences=0.5)


# --- configs --------------------------------------------------------------------------------------


def test_a_config_is_the_same_however_it_is_written(tmp_path: Path):
    written = es.load_config(TINY)
    file = tmp_path / "run.yaml"
    file.write_text(command("config", "show", *_assignments()).out, encoding="utf-8")
    assert es.load_config(str(file)) == es.load_config(file) == es.load_config(written) == written


def _assignments() -> list[str]:
    texts = (
        *("model.base=tiny-random", "model.device=cpu", f"data.train={INPUTS / 'rows.jsonl'}"),
        *("lora.rank=2", "monitor.every=2", "train.steps=4", "train.batch_size=4"),
        *("train.threads=1", "train.checkpoints=[2]"),
    )
    return [part for text in texts for part in ("--set", text)]


@pytest.mark.parametrize(
    "settings",
    [
        {"train.steps": 7, "optimizer": {"name": "lion"}},
        {"train": {"steps": 7}, "optimizer.name": "lion"},
        ["train.steps=7", "optimizer.name=lion"],
    ],
)
def test_settings_are_a_mapping_or_texts(settings: Any):
    config = es.load_config({"train": {"batch_size": 4}}, settings=settings)
    assert (config.train.steps, config.train.batch_size) == (7, 4)
    assert (config.optimizer.name, config.optimizer.lr) == ("lion", 5e-05)


# --- training and sweeps --------------------------------------------------------------------------


def test_every_step_is_told_and_stored(trained: Trained):
    assert [record.step for record in trained.steps] == [1, 2, 3, 4]
    frame = trained.run.to_frame()
    assert frame["loss"].tolist() == [record.loss for record in trained.steps]
    assert any("step 4/4" in line for line in trained.lines)
    assert sorted(set(trained.run.measures()["step"])) == [2, 4]
    assert set(trained.run.spectra()["index"]) == {0, 1}
    assert trained.run.heldout()["loss"].iloc[-1] == trained.run.heldout_loss
    assert (trained.run.adapter / "adapter_model.safetensors").is_file()


def test_a_finished_run_is_found_again_and_is_that_of_the_command(trained: Trained):
    heard: list[StepRecord] = []
    again = es.train(TINY, output=str(trained.folder / "runs"), on_step=heard.append)
    assert again == trained.run
    assert heard == []
    values = answer("show", trained.run.run, "--output", "runs")
    assert values == trained.run.flat() | {"folder": values["folder"]}
    assert Path(values["folder"]).resolve() == trained.run.folder.resolve()


def test_what_a_step_raises_ends_the_training_and_it_resumes(trained: Trained):
    def stop(record: StepRecord) -> None:
        if record.step == 3:
            raise ZeroDivisionError

    settings = {"train.seed": 5, "train.resume_every": 1}
    options: dict[str, Any] = {"settings": settings, "output": "stopped"}
    with pytest.raises(ZeroDivisionError):
        es.train(TINY, on_step=stop, **options)
    assert es.runs("stopped")["status"].tolist() == ["interrupted"]
    steps: list[StepRecord] = []
    assert es.train(TINY, on_step=steps.append, **options).summary.status == "done"
    assert [record.step for record in steps] == [3, 4]


def test_a_sweep_is_carried_out_once(trained: Trained, swept: Any):
    assert len(swept.runs) == 4
    assert swept.failed == swept.unjudged == ()
    assert all(run.trained for run in swept.runs)
    assert set(swept.to_frame()["optimizer"]) == {"adamw", "lion"}
    lines: list[str] = []
    again = es.sweep(SWEEP, seeds=2, output=trained.folder / "runs", workers=1, note=lines.append)
    assert [run.run for run in again.runs] == [run.run for run in swept.runs]
    assert not any(run.trained for run in again.runs)
    assert [line for line in lines if line.startswith("note: ")] == [
        f"note: {warning}" for warning in again.warnings
    ]
    assert again.headline in str(again)
    assert "4 done before" in again.headline


def test_a_run_that_fails_is_listed_and_stops_no_other(trained: Trained):
    worst = {"base": SWEEP["base"], "experiment": "worst", "axes": {"train.steps": [2, 1]}}
    outcome = es.sweep(worst, output="worst", workers=1)
    assert [bool(run.failed) for run in outcome.runs] == [False, True]
    assert outcome.failed[0].failed in outcome.details[0]
    with pytest.raises(RunFailed):
        es.train(TINY, settings={"train.steps": 1, "train.checkpoints": []}, output="worst")


def test_only_the_runs_that_are_named_are_carried_out(swept: Any):
    (name,) = [run.run for run in swept.runs if "lion" in run.run and "-s1-" in run.run]
    outcome = es.sweep(SWEEP, seeds=2, output="some", workers=1, only=[name])
    assert [run.run for run in outcome.runs] == [name]
    assert es.runs("some")["run"].tolist() == [name]


# --- measuring ------------------------------------------------------------------------------------


def test_a_probe_is_that_of_the_command(trained: Trained, probed: Any):
    (target,) = probed.targets
    assert target.drift
    assert target.drift.low <= target.drift.value <= target.drift.high
    assert probed.by_step()["step"].tolist() == [2, 4]
    (row,) = probed.rows()
    assert (row["drift"], row["drift_low"]) == (target.drift.value, target.drift.low)
    settings = ("contrast=null", "capability=null", "ordinary=null", "threads=1")
    options = [part for text in settings[1:] for part in ("--set", text)]
    items = ("--items", INPUTS / "contrast.jsonl")
    values = answer("probe", trained.run.folder, *items, *options, "--quiet")
    assert values["targets"][0]["drift"] == probed.flat()["targets"][0]["drift"]


def test_rates_are_those_of_the_command(trained: Trained, rated: Any):
    (target,) = rated.targets
    assert target.folder == trained.run.folder
    assert rated.incomplete is None
    scored = es.score(trained.run, output=trained.folder / "runs").targets[0]
    assert (scored.score, scored.base) == (target.score, target.base)


def test_a_target_that_fails_is_listed_and_none_at_all_is_an_error(trained: Trained):
    folder = Path("still")
    shutil.copytree(trained.run.adapter, folder)
    _empty(folder / "adapter_model.safetensors")
    failures: list[str] = []

    def listen(label: str, error: es.EvilspectraError) -> None:
        failures.append(f"{label}: {error}")

    options: dict[str, Any] = {"settings": PROBED, "output": "runs", "on_failure": listen}
    probed = es.probe([folder, trained.run], **options)
    assert [failure["target"] for failure in probed.failed] == ["still"]
    assert len(probed.targets) == 1
    assert probed.failed[0]["reason"] in failures[0]
    with pytest.raises(NothingMeasured, match="does not change the logits") as raised:
        es.probe(folder, **options)
    assert raised.value.exit_code == 2
    assert len(failures) == 2


def _empty(path: Path) -> None:
    """Sets every B of an adapter's file to zero."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    zeroed = {name: factor * ("lora_B" not in name) for name, factor in tensors.items()}
    save_file(zeroed, path, {"format": "pt"})


# --- tables, analysis, report ---------------------------------------------------------------------


def test_a_store_is_text_or_a_path_everywhere(trained: Trained, swept: Any):
    folder = trained.folder / "runs"
    pd.testing.assert_frame_equal(es.runs(str(folder)), es.runs(folder))
    assert len(es.runs(swept)) == 4
    for read in (tidy.runs_frame, tidy.checkpoints_frame, tidy.verdicts_frame, tidy.excluded):
        pd.testing.assert_frame_equal(read(str(folder)), read(folder))


def test_a_store_a_table_and_a_frame_are_analysed_alike(swept: Any, analysed: Any):
    frame = es.runs(swept)
    frame.to_csv("t.csv", index=False)
    theirs = frame.rename(columns={"optimizer": "opt"})
    before = theirs.copy()
    options: dict[str, Any] = {"permutations": 9, "factors": ["optimizer"], "differences": [0.5]}
    shares = [
        es.analyze(source, columns=columns, outcome=analysed.outcome, **options).rows()[0]["value"]
        for source, columns in (
            (swept, ()),
            ("t.csv", ()),
            (Path("t.csv"), {}),
            (theirs, {"optimizer": "opt"}),
            (theirs, ["optimizer=opt"]),
        )
    ]
    assert shares == pytest.approx([shares[0]] * 5)
    pd.testing.assert_frame_equal(theirs, before)
    assert analysed.sentences == analysed.details
    assert analysed.tables()
    assert analysed.flat()["outcome"] == analysed.outcome


def test_nothing_is_printed(trained: Trained, capfd: pytest.CaptureFixture[str]):
    run = es.train(TINY, settings={"train.steps": 2, "train.checkpoints": []}, output="silent")
    es.probe(run, settings=PROBED, output="silent")
    report = es.report(run, out=str(trained.folder / "page.html"))
    assert capfd.readouterr() == ("", "")
    assert run.run in Path(report).read_text(encoding="utf-8")
    assert report.figures == run.folder / "figures"
    assert {Path(row["file"]).suffix for row in report.rows()[1:]} == {".svg", ".png", ".pdf"}


# --- every result ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trained", "swept", "probed", "rated", "analysed"])
def test_a_result_is_frozen_displayed_and_drawn(name: str, request: pytest.FixtureRequest):
    value = request.getfixturevalue(name)
    result: Result = value.run if name == "trained" else value
    assert isinstance(result, Result)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, dataclasses.fields(result)[0].name, None)
    assert len(result.to_frame()) == len(result.rows()) > 0
    assert result.headline in str(result)
    assert "<table>" in result._repr_html_()
    figure: Any = result.figure()
    assert isinstance(figure, altair.TopLevelMixin)
    assert '"mark"' in figure.to_json()


MISTAKES: list[tuple[str, Any]] = [
    ("neither a file nor a preset", lambda: es.load_config("nothing.yaml")),
    ("not a field of train", lambda: es.load_config({"train": {"stepz": 3}})),
    ("at least 1", lambda: es.load_config({}, settings={"train.steps": 0})),
    ("section.field=value", lambda: es.load_config({}, settings="train.steps")),
    ("settings holds 3", lambda: es.load_config({}, settings=[3])),  # type: ignore[list-item]
    ("source is 3", lambda: es.load_config(3)),  # type: ignore[arg-type]
    ("is a sweep file", lambda: es.train("demo")),
    ("does not exist", lambda: es.train({"data.train": "no.jsonl"}, output="none")),
    ("neither a file nor a preset", lambda: es.sweep(Path("nothing.yaml"))),
    ("not a sweep file", lambda: es.sweep({"axes": {}})),
    ("for --executor ray", lambda: es.sweep(SWEEP, address="auto", output="none")),
    ("executor is 'kubernetes'", lambda: es.sweep(SWEEP, executor="kubernetes", output="none")),
    ("holds no runs", lambda: es.runs("nothing")),
    ("is no run below", lambda: es.probe("nothing", output="none")),
    ("targets is empty", lambda: es.probe([])),
    ("not a field of", lambda: es.probe("tiny-random", settings={"nothing": 3}, output="none")),
    ("judge", lambda: es.evaluate("tiny-random", judge="nobody:x", output="none")),
    ("betly", lambda: es.evaluate("x", definition="betly", **JUDGE)),
    ("given together", lambda: es.evaluate("x", endpoint="http://127.0.0.1:9/v1", **JUDGE)),
    ("there is no folder or file", lambda: es.analyze("nothing")),
    ("source is 3", lambda: es.analyze(3)),  # type: ignore[arg-type]
    ("has no rows", lambda: es.analyze(pd.DataFrame())),
    ("no column 'zzz'", lambda: es.analyze(pd.DataFrame({"a": [1]}), columns={"optimizer": "zzz"})),
    ("from 1 to 4", lambda: es.analyze(pd.DataFrame({"a": [1]}), order=9)),
    ("above 0", lambda: es.analyze(pd.DataFrame({"a": [1]}), at_loss=0)),
    ("holds no runs", lambda: es.report("nothing")),
    ("format is 'pdf'", lambda: es.report("nothing", format="pdf")),  # type: ignore[arg-type]
    ("is no such file", lambda: es.report("nothing", outcome="y")),
]


@pytest.mark.parametrize(("words_of", "mistake"), MISTAKES)
def test_a_mistake_is_one_sentence_of_the_family(words_of: str, mistake: Any):
    with pytest.raises(BadInput) as raised:
        mistake()
    assert words_of in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not Path("none").exists()
