"""The evaluation stage, one adapter after another: none is ever in another's numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from evilspectra.errors import BadInput, EvilspectraError, RunFailed
from evilspectra.evaluation import evaluate as stage
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.evaluation.measured import measured
from evilspectra.model.packing import ATTENTION
from evilspectra.model.tiny import tiny_model
from evilspectra.targets.find import Target
from tests.support.evaluations import (
    adapter_maker,
    copied_targets,
    counted_loads,
    done,
    tables,
    train_two,
    why,
)
from tests.support.small_items import (
    answers,
    files,
    own,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    "cut": (cut, "is damaged or not a safetensors file", BadInput),
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
