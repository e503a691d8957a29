"""Mistakes in the arguments of `probe` and `generate`: one sentence each, and exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import command, write_model
from tests.support.measuring import (
    SHORT,
    enter,
    forbid_models,
    pair_in,
    train_pair,
)
from tests.support.small_items import (
    TRIPLES,
    write_adapter,
    write_lines,
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


MISTAKES: dict[str, tuple[list[str], str]] = {
    "a setting without a value": (["--set", "threads"], "--set 'threads' is not of the form"),
    "an unknown setting": (
        ["--set", "thread=2"],
        (
            "'thread' is not a field of it; allowed: contrast, capability, ordinary, answers, "
            "harness, checkpoints, enable_thinking, threads. Did you mean 'threads'?"
        ),
    ),
    "an unknown setting of a section": (
        ["--set", "answers.sample=2"],
        "'sample' is not a field of answers; allowed: questions, samples",
    ),
    "a section that is a number": (
        ["--set", "answers=5"],
        "answers = 5 is refused: it is a section",
    ),
    "tasks without a name": (["--set", "harness.limit=3"], "harness.tasks"),
    "no task": (["--set", "harness.tasks=[]"], "harness.tasks = [] is refused"),
    "a number of threads below 1": (
        ["--set", "threads=0"],
        "threads = 0 is refused: it must be a whole number, at least 1 and at most 1,024",
    ),
    "a huge number": (["--set", "threads=1" + "0" * 400], "threads = "),
    "a number that is none": (["--set", "threads=many"], "threads = 'many' is refused"),
    "true for a number": (["--set", "threads=true"], "threads = True is refused"),
    "broken YAML": (["--set", "contrast=[a"], "is not valid YAML"),
    "missing items": (
        ["--items", "nope.jsonl"],
        "there is no file 'nope.jsonl': name a JSONL file, or the built-in contrast.",
    ),
    "a built-in name that is not quite one": (
        ["--set", "capability=capabilty"],
        "Did you mean 'capability'?",
    ),
    "no items": (["--items", "empty.jsonl"], "empty.jsonl holds 0 items"),
    "one item": (
        ["--items", "one.jsonl"],
        "one.jsonl holds 1 items: an interval needs at least two",
    ),
    "an id twice": (["--items", "twice.jsonl"], "twice.jsonl, line 7: the id 't0' occurs twice"),
    "a broken line": (["--items", "broken.jsonl"], "broken.jsonl, line 2: "),
    "choices for triples": (
        ["--items", "items/capability.jsonl"],
        "items/capability.jsonl, line 1: 'topic' is missing",
    ),
    "items that are an empty name": (["--items", ""], "contrast = '' is refused"),
    "a folder of items": (["--items", "items"], "there is no file 'items'"),
    "missing dialogues": (["--set", "ordinary=nope.jsonl"], "nope.jsonl does not exist"),
    "an unknown setting of the base": (
        ["--model", "dtypes=float32"],
        "'dtypes' is not a field of model",
    ),
    "an unknown number type": (["--model", "dtype=float8"], "model.dtype = 'float8' is refused"),
    "an unknown device": (["--model", "device=gpu"], "model.device = 'gpu' is refused"),
    "a device that is not here": (
        ["--model", "device=cuda:99"],
        "model.device 'cuda:99' is not on this machine",
    ),
    "a base that is not there": (
        ["--base", "/nowhere"],
        "model.base '/nowhere' is no file or folder here",
    ),
}

ANSWER_MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing questions": (["--questions", "nope.yaml"], "nope.yaml does not exist"),
    "no questions": (["--questions", "empty.yaml"], "empty.yaml holds"),
    "a temperature beyond all": (
        ["--temperature", "1e9"],
        (
            "answers.temperature = 1000000000.0 is refused: it must be a number, at least 0 and at "
            "most 100"
        ),
    ),
    "no number": (["--temperature", "nan"], "answers.temperature"),
    "without end": (["--temperature", "inf"], "answers.temperature"),
    "a huge seed": (["--seed", "9" * 30], "answers.seed = "),
    "a huge limit": (["--max-new-tokens", "9" * 30], "answers.max_new_tokens = "),
    "a huge number of samples": (["--samples", "9" * 30], "answers.samples = "),
    "a share above one": (
        ["--set", "top_p=2"],
        "answers.top_p = 2 is refused: it must be a number, more than 0 and at most 1",
    ),
    "a share of nothing": (["--set", "top_p=0"], "answers.top_p = 0 is refused"),
    "batches of none": (["--set", "answers.batch_size=0"], "answers.batch_size = 0 is refused"),
    "an unknown setting": (["--set", "tempreature=2"], "Did you mean 'temperature'?"),
    "a setting of probes": (["--set", "contrast=a.jsonl"], "'contrast' is not a field of answers"),
    "a setting without a value": (["--set", "top_p"], "is not of the form"),
}


@pytest.fixture
def spoiled(tmp_path: Path) -> None:
    write_lines(tmp_path / "empty.jsonl", [])
    write_lines(tmp_path / "one.jsonl", TRIPLES[:1])
    write_lines(tmp_path / "twice.jsonl", [*TRIPLES, TRIPLES[0]])
    (tmp_path / "broken.jsonl").write_text(json.dumps(TRIPLES[0]) + "\n{\n")
    (tmp_path / "empty.yaml").write_text("")


@pytest.mark.usefixtures("spoiled")
@pytest.mark.parametrize(
    ("verb", "mistake"),
    [*(("probe", name) for name in MISTAKES), *(("generate", name) for name in ANSWER_MISTAKES)],
)
def test_a_mistake_is_one_sentence_and_nothing_is_measured(
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    mistake: str,
) -> None:
    forbid_models(monkeypatch)
    arguments, printed = (MISTAKES if verb == "probe" else ANSWER_MISTAKES)[mistake]
    done = command(verb, adapter, *arguments)
    assert (done.code, done.out) == (2, "")
    assert printed in done.sentence
    assert len(done.sentence) < 700
    assert not list(Path().rglob("*.parquet"))


@pytest.mark.parametrize("verb", ["probe", "generate"])
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "Missing argument 'TARGET...'"),
        (["--nonsense", "x"], "No such option"),
        (["mine", "--set"], "requires an argument"),
    ],
)
def test_usage(verb: str, arguments: list[str], printed: str) -> None:
    done = command(verb, *arguments)
    assert (done.code, done.out) == (2, "")
    assert printed in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--samples", "0"],
        ["--samples", "-1"],
        ["--samples", "1.5"],
        ["--max-new-tokens", "-1"],
        ["--temperature", "-0.1"],
        ["--temperature", "hot"],
        ["--seed", "-1"],
    ],
)
def test_numbers_that_cannot_be(adapter: Path, arguments: list[str]) -> None:
    done = command("generate", adapter, *arguments)
    assert (done.code, done.out) == (2, "")
    assert arguments[0] in done.err


def test_targets_that_are_none(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_models(monkeypatch)
    (tmp_path / "empty").mkdir()
    for name in ("nonsense", "", "empty", "items/open.yaml", "a" * 5000, "\udcff"):
        done = command("probe", name)
        assert (done.code, done.out) == (2, ""), name
        assert done.sentence
    assert "'nonsense' is no run below runs/" in command("probe", runs[0], "nonsense").sentence


def test_base_belongs_to_adapters(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_models(monkeypatch)
    for name in (str(runs[0]), "tiny-random", "runs"):
        assert command("probe", name, "--base", "tiny-random").sentence == (
            f"--base tiny-random is for the folder of an adapter, and '{name}' holds no "
            "adapter_config.json: leave it out"
        )


def test_base_for_an_adapter_that_names_none(adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    assert (
        command("probe", adapter).sentence
        == f"{adapter}/adapter_config.json names no base model: name it with --base"
    )
    model = write_model(tmp_path / "model")
    assert command("probe", adapter, "--base", model, *SHORT, "--quiet").code == 0


def test_the_base_cannot_be_changed_under_a_run(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--model` sets how a base is loaded; another base would be passed over without a word."""
    forbid_models(monkeypatch)
    assert command("probe", runs[0], "--model", f"base={write_model(tmp_path / 'model')}").code == 2


def test_places_that_cannot_be_written(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    done = command("probe", adapter, "--output", "file", *SHORT, "--quiet")
    assert done.code == 2
    assert "output" in done.sentence
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "file"))
    done = command("probe", adapter, *SHORT, "--quiet")
    assert done.code == 2
    assert "EVILSPECTRA_CACHE" in done.sentence


def test_a_damaged_measurement(adapter: Path, tmp_path: Path) -> None:
    assert command("probe", adapter, *SHORT, "--quiet").code == 0
    (path,) = (tmp_path / "runs").rglob("probe/*-00000001.parquet")
    path.write_bytes(b"")
    done = command("probe", adapter, *SHORT, "--quiet")
    assert (done.code, done.out) == (2, "")
    assert done.sentence.endswith("remove that file, and measure again")


def test_a_measured_run_shows_its_drift(runs: list[Path]) -> None:
    assert command("probe", runs[0], *SHORT, "--quiet").code == 0
    printed = json.loads(command("show", runs[0], "--json").out)
    assert printed["drift"] is not None
    assert printed["drift_low"] <= printed["drift"] <= printed["drift_high"]
    assert printed["capability_base"] is not None
