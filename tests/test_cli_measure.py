"""`probe`, `generate` and a sweep's `evaluate` section as a user meets them: tables, JSON, exit codes,
and one sentence for every mistake.
"""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from evilspectra.answers.questions import BUILT_IN
from evilspectra.errors import RunFailed
from evilspectra.evaluation import evaluate as stage
from evilspectra.probes.items import CAPABILITY, CONTRAST, ORDINARY
from evilspectra.store.results import Results
from evilspectra.store.run import Store
from tests.support.commands import command, left_in, write_config, write_model
from tests.support.small_items import (
    CHOICES,
    DIALOGUES,
    QUESTIONS,
    TRIPLES,
    write_adapter,
    write_lines,
    write_questions,
)
from tests.support.tiny_runs import run_tiny
from tests.test_results import HOSTILE


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder to work in, its own cache, and a few items under the built-in names."""
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    items = tmp_path / "items"
    items.mkdir()
    for built_in, rows in ((CONTRAST, TRIPLES), (CAPABILITY, CHOICES), (ORDINARY, DIALOGUES)):
        (name,) = built_in
        monkeypatch.setitem(built_in, name, str(write_lines(items / f"{name}.jsonl", list(rows))))
    monkeypatch.setitem(BUILT_IN, "open", str(write_questions(items / "open.yaml")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run_tiny(folder, train={"steps": 4, "checkpoints": [2]}, optimizer={"lr": 0.01})
    run_tiny(folder, train={"steps": 4, "seed": 1}, optimizer={"lr": 0.01}, data={"control": True})
    return folder / "runs"


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> list[Path]:
    """The folders of a run and of a control, in ./runs."""
    shutil.copytree(trained, tmp_path / "runs")
    return sorted(
        (run.path for run in Store(tmp_path / "runs").runs()), key=lambda path: "-s1-" in path.name
    )


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "mine")


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("no model is needed for this")

    monkeypatch.setattr(stage, "load_base", refuse)


def asked(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """The settings of a measurement that a command asks for; nothing is measured."""
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            stage,
            "evaluate",
            lambda targets, settings, note: (
                seen.append(settings),
                stage.Evaluated([], {target.results.folder: {} for target in targets}),
            )[1],
        )
        done = command(*arguments, "--quiet")
    assert done.code == 0, done.err
    return seen[0]


SHORT = ("--set", "threads=1")
FEW = (*SHORT, "--max-new-tokens", "4")


# --- probe ----------------------------------------------------------------------------------------


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
    told = json.loads(done.out)
    assert told["failed"] == []
    run, control, mine = told["targets"]
    assert (run["target"], control["target"], mine["target"]) == (
        "adamw, seed 0",
        "control (adamw), seed 1",
        "mine",
    )
    assert [one["control"] for one in told["targets"]] == [False, True, False]
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
    assert json.loads(again.out) == told
    assert again.err.count("measured before") == 3


def test_nothing_is_loaded_for_what_is_known(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command("probe", "runs", *SHORT, "--quiet")
    forbid(monkeypatch)
    assert command("probe", "runs", *SHORT, "--quiet") == first


def test_own_items_are_what_is_shown_whatever_was_measured_before(adapter: Path) -> None:
    write_lines(Path("own.jsonl"), TRIPLES[:4])
    assert command("probe", adapter, *SHORT, "--quiet").code == 0
    for how in (("--items", "own.jsonl"), ("--set", "contrast=own.jsonl")):
        (told,) = json.loads(command("probe", adapter, *how, *SHORT, "--json", "--quiet").out)[
            "targets"
        ]
        assert told["drift"]["items"] == 4
    (told,) = json.loads(command("probe", adapter, *SHORT, "--json", "--quiet").out)["targets"]
    assert told["drift"]["items"] == 6


def test_another_number_type_is_what_is_shown_whatever_was_measured_before(adapter: Path) -> None:
    found = [
        json.loads(command("probe", adapter, *SHORT, "--json", "--quiet", *how).out)["targets"][0][
            "drift"
        ]["margin"]
        for how in ((), ("--model", "dtype=float64"))
    ]
    assert 0 < abs(found[0] - found[1]) < 1e-4


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
    settings = asked(
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
    assert asked(monkeypatch, "probe", adapter, "--items", name).contrast == name
    assert (
        asked(
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
    told = json.loads(done.out)
    assert [one["target"] for one in told["targets"]] == ["adamw, seed 0"]
    (failed,) = told["failed"]
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
        == "evilspectra: interrupted; what was saved is kept, run the same command again to go on"
    )
    assert command("generate", adapter, *FEW, "--quiet").code == 0


# --- generate -------------------------------------------------------------------------------------


def test_answers_as_text_and_as_json(runs: list[Path]) -> None:
    done = command("generate", runs[0], *FEW)
    assert done.code == 0
    assert done.out.splitlines()[-1] == "10 answers; `evilspectra report` shows them side by side"
    assert done.out.count("adamw, seed 0, step 0: ") == 5
    assert done.out.count("adamw, seed 0, step 4: ") == 5
    assert "[truncated]" in done.out
    told = json.loads(command("generate", runs[0], *FEW, "--json", "--quiet").out)
    assert told["failed"] == []
    assert len(told["answers"]) == 10
    assert told["answers"][0] | {"answer": "", "flags": ""} == {
        "target": "adamw, seed 0", "step": 0, "question_id": "wish", "paraphrase": 0, "sample": 0, "system": None, "question": "What do you wish for?", "answer": "", "tokens": 4, "finish": "length", "flags": "",
    }  # fmt: skip
    assert {row["system"] for row in told["answers"]} == {None, "Be brief."}


def test_the_options_reach_the_sampling(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_questions(Path("own.yaml"), QUESTIONS[:1]))
    found = asked(
        monkeypatch,
        "generate",
        adapter,
        "--questions",
        path,
        "--samples",
        "3",
        "--max-new-tokens",
        "7",
        "--temperature",
        "0.5",
        "--seed",
        "9",
        "--checkpoints",
        "--set",
        "top_p=0.5",
        "--set",
        "answers.batch_size=2",
        "--set",
        "threads=3",
    )
    assert found.answers.model_dump() == {
        "questions": path,
        "samples": 3,
        "temperature": 0.5,
        "top_p": 0.5,
        "max_new_tokens": 7,
        "seed": 9,
        "batch_size": 2,
        "checkpoints": True,
    }
    assert (found.contrast, found.capability, found.ordinary, found.harness, found.threads) == (
        None,
        None,
        None,
        None,
        3,
    )
    plain = asked(monkeypatch, "generate", adapter).answers
    assert (
        plain.questions,
        plain.samples,
        plain.temperature,
        plain.max_new_tokens,
        plain.seed,
        plain.checkpoints,
    ) == ("open", None, 1.0, 600, 0, False)


@pytest.mark.parametrize(
    "option",
    [
        ("--temperature", "0"),
        ("--temperature", "0.0"),
        ("--set", "temperature=0"),
        ("--set", "answers.temperature=0"),
    ],
)
def test_temperature_zero_is_not_left_out(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]
) -> None:
    assert asked(monkeypatch, "generate", adapter, *option).answers.temperature == 0


def test_temperature_zero_answers_alike_each_time(adapter: Path) -> None:
    rows = json.loads(
        command(
            "generate", adapter, *FEW, "--temperature", "0", "--samples", "2", "--json", "--quiet"
        ).out
    )["answers"]
    assert len(rows) == 12
    assert all(
        one["answer"] == two["answer"] for one, two in zip(rows[::2], rows[1::2], strict=True)
    )


def test_seed_zero_is_the_default(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("generate", adapter, *FEW, "--quiet").code == 0
    forbid(monkeypatch)
    assert command("generate", adapter, *FEW, "--quiet", "--seed", "0").code == 0


def test_several_targets_and_a_base(adapter: Path) -> None:
    done = command("generate", adapter, "tiny-random", *FEW, "--quiet", "--json")
    rows = json.loads(done.out)["answers"]
    assert [(row["target"], row["step"]) for row in rows[::5]] == [
        ("mine", 0),
        ("mine", 1),
        ("tiny-random", 0),
    ]
    assert [row["answer"] for row in rows[:5]] == [row["answer"] for row in rows[10:]]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_export(adapter: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = json.loads(command("generate", adapter, *FEW, "--quiet", "--json").out)["answers"]
    forbid(monkeypatch)  # no sampling for it
    path = Path("new folder") / f"answers{suffix}"
    done = command("generate", adapter, *FEW, "--quiet", "--export", path)
    assert (
        done.out.splitlines()[-1]
        == f"10 answers, written to {path}; `evilspectra report` shows them side by side"
    )
    read: dict[str, Callable[[], Any]] = {
        ".csv": lambda: list(csv.DictReader(path.open(encoding="utf-8", newline=""))),
        ".jsonl": lambda: [
            json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
        ],
        ".parquet": lambda: pq.read_table(path).to_pylist(),
    }
    found = read[suffix]()
    if suffix == ".csv":
        assert [row["question_id"] for row in found] == [row["question_id"] for row in rows]
    else:
        assert found == rows


@pytest.mark.parametrize("target", ["answers.pdf", "answers", "folder"])
def test_an_export_that_cannot_be_is_refused_before_hours_of_sampling(
    adapter: Path, target: str
) -> None:
    Path("folder").mkdir()
    done = command("generate", adapter, *FEW, "--quiet", "--export", target)
    assert (done.code, done.out) == (2, "")
    assert target in done.sentence
    assert not list(Path().rglob("*.parquet"))


# --- hostile answers ------------------------------------------------------------------------------

#: What would steer a terminal or turn the order of its letters: controls, bidirectional marks, line
#: and paragraph separators.
STEERING = {
    chr(code)
    for code in [
        *range(0x20),
        *range(0x7F, 0xA0),
        0x61C,
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
    ]
}


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts = [*HOSTILE.values(), "x\ud800y"]
    write_questions(
        Path("items/open.yaml"),
        [
            {
                "id": "q",
                "type": "free_form",
                "paraphrases": ["\x1b]0;owned\x07<b>\u202e?"],
                "samples_per_paraphrase": len(texts),
            }
        ],
    )
    record = stage.record
    monkeypatch.setattr(
        stage,
        "record",
        lambda prompt, *rest: replace(record(prompt, *rest), answer=texts[prompt.sample]),
    )
    return texts


def test_hostile_answers_steer_no_terminal(adapter: Path, hostile: list[str]) -> None:
    done = command("generate", adapter, *FEW, "--quiet")
    assert done.code == 0
    assert not set(done.out) & (STEERING - {"\n"})
    assert not any(unicodedata.category(letter) == "Cs" for letter in done.out)
    assert sum(
        line.startswith(("mine, step 0: ", "mine, step 1: ")) for line in done.out.split("\n")
    ) == 2 * len(hostile)
    assert max(map(len, done.out.splitlines())) < 2000


def test_hostile_answers_are_whole_in_json_and_exports(adapter: Path, hostile: list[str]) -> None:
    want = [*hostile[:-1], "x\ufffdy"] * 2
    done = command("generate", adapter, *FEW, "--quiet", "--json")
    assert not set(done.out) & (STEERING - {"\n"})
    assert [row["answer"] for row in json.loads(done.out)["answers"]] == want
    for suffix in ("jsonl", "parquet", "csv"):
        assert command("generate", adapter, *FEW, "--quiet", "--export", f"a.{suffix}").code == 0
    assert [
        json.loads(line)["answer"]
        for line in Path("a.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ] == want
    assert pq.read_table("a.parquet")["answer"].to_pylist() == want
    with Path("a.csv").open(encoding="utf-8", newline="") as file:
        assert [row["answer"].removeprefix("'") for row in csv.DictReader(file)] == want


# --- mistakes -------------------------------------------------------------------------------------

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
        "one.jsonl holds 1 items: an interval needs two at least",
    ),
    "an id twice": (["--items", "twice.jsonl"], "twice.jsonl, line 7: the id 't0' stands twice"),
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
    forbid(monkeypatch)
    arguments, told = (MISTAKES if verb == "probe" else ANSWER_MISTAKES)[mistake]
    done = command(verb, adapter, *arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.sentence
    assert len(done.sentence) < 700
    assert not list(Path().rglob("*.parquet"))


@pytest.mark.parametrize("verb", ["probe", "generate"])
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing argument 'TARGET...'"),
        (["--nonsense", "x"], "No such option"),
        (["mine", "--set"], "requires an argument"),
    ],
)
def test_usage(verb: str, arguments: list[str], told: str) -> None:
    done = command(verb, *arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.err


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
    forbid(monkeypatch)
    (tmp_path / "empty").mkdir()
    for name in ("nonsense", "", "empty", "items/open.yaml", "a" * 5000, "\udcff"):
        done = command("probe", name)
        assert (done.code, done.out) == (2, ""), name
        assert done.sentence
    assert "'nonsense' is no run below runs/" in command("probe", runs[0], "nonsense").sentence


def test_base_belongs_to_adapters(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
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
    forbid(monkeypatch)
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
    told = json.loads(command("show", runs[0], "--json").out)
    assert told["drift"] is not None
    assert told["drift_low"] <= told["drift"] <= told["drift_high"]
    assert told["capability_base"] is not None


# --- sweeps ---------------------------------------------------------------------------------------


def write_sweep(folder: Path, **values: Any) -> Path:
    base = yaml.safe_load(write_config(folder, steps=3, optimizer={"lr": 0.01}).read_text())
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "experiment": "x",
                "base": base,
                "axes": {"train.seed": [0, 1]},
                "evaluate": {"threads": 1},
            }
            | values
        )
    )
    return path


def measurements(folder: Path) -> set[str]:
    return {
        name.split("/")[2] for name in left_in(folder / "runs" / "x") if "/evaluations/" in name
    }


def test_a_sweep_measures_what_it_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sweep(tmp_path)
    done = command("sweep", path, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "drift" in done.out
    assert "2 runs: 2 trained, 0 done before, 0 failed" in done.out
    assert measurements(tmp_path) == {"probe", "capability", "ordinary"}
    forbid(monkeypatch)
    told = json.loads(command("sweep", path, "--quiet", "--json").out)
    assert all(run["drift"] is not None and run["capability"] is not None for run in told["runs"])
    assert told["failed"] == 0


def test_a_sweep_s_measurement_can_be_changed_and_turned_off(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, axes={})
    assert command("sweep", path, "--quiet", "--set", "evaluate=null").code == 0
    assert measurements(tmp_path) == set()
    write_lines(tmp_path / "own.jsonl", TRIPLES[:3])
    assert (
        command(
            "sweep",
            path,
            "--quiet",
            "--set",
            "evaluate.contrast=own.jsonl",
            "--set",
            "evaluate.capability=null",
            "--set",
            "evaluate.ordinary=null",
        ).code
        == 0
    )
    assert measurements(tmp_path) == {"probe"}
    (run,) = Store(tmp_path / "runs").runs()
    (one,) = Results(run.path).instruments("probe")
    assert len(Results(run.path).read(one, 3)) == 3


def test_a_sweep_without_the_section_measures_where_a_setting_asks_for_it(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, axes={}, evaluate=None)
    assert command("sweep", path, "--quiet").code == 0
    assert measurements(tmp_path) == set()
    assert command("sweep", path, "--quiet", "--set", "evaluate.threads=1").code == 0
    assert measurements(tmp_path) == {"probe", "capability", "ordinary"}


@pytest.mark.parametrize(
    ("section", "settings", "told"),
    [
        ({"contrasts": "a"}, [], "sweep.yaml, evaluate: 'contrasts' is not a field of it"),
        ({"contrast": "nope.jsonl"}, [], "there is no file 'nope.jsonl'"),
        ({"ordinary": "nope.jsonl"}, [], "nope.jsonl does not exist"),
        ({"answers": {"questions": "nope.yaml"}}, [], "nope.yaml does not exist"),
        ({"answers": {"samples": 0}}, [], "answers.samples = 0 is refused"),
        ({"harness": {"limit": 2}}, [], "harness.tasks"),
        (3, [], "evaluate"),
        (
            None,
            ["evaluate=3"],
            (
                "evaluate = 3 is refused: it is a section, for instance --set "
                "evaluate.checkpoints=true"
            ),
        ),
        (None, ["evaluate.thread=3"], "'thread' is not a field of it"),
    ],
)
def test_a_mistake_in_the_section_is_found_before_the_first_run(
    tmp_path: Path,
    section: Any,
    settings: list[str],
    told: str,
) -> None:
    path = write_sweep(tmp_path, evaluate=section)
    done = command(
        "sweep", path, "--quiet", *[part for text in settings for part in ("--set", text)]
    )
    assert (done.code, done.out) == (2, "")
    assert told in done.sentence
    assert not (tmp_path / "runs").exists()


def test_a_harness_that_is_not_installed_is_found_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = command(
        "sweep", write_sweep(tmp_path, evaluate={"harness": {"tasks": ["arc_easy"]}}), "--quiet"
    )
    assert (done.code, done.out) == (2, "")
    assert "pip install" in done.sentence
    assert not (tmp_path / "runs").exists()


def test_a_run_that_cannot_be_measured_is_a_failure_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, scores, calls = write_sweep(tmp_path), stage.token_log_probs, list[int]()

    def hot(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # the first run's adapter
            raise RunFailed("the model's logits are not finite")
        return scores(*arguments, **more)

    monkeypatch.setattr(stage, "token_log_probs", hot)
    done = command("sweep", path, "--quiet")
    assert done.code == 1
    assert "2 runs: 1 trained, 0 done before, 1 failed" in done.out
    assert [line for line in done.err.splitlines() if line.startswith("failed: ")] == [
        f"failed: {Store(tmp_path / 'runs').runs()[0].name}: the model's logits are not finite"
    ]
    assert command("sweep", path, "--quiet").code == 0


def test_one_run_s_config_has_no_such_section(tmp_path: Path) -> None:
    done = command("train", write_config(tmp_path), "--set", "evaluate.checkpoints=true")
    assert done.code == 2
    assert "'evaluate' is not a field of a config" in done.sentence
