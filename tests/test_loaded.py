"""A base that stays in memory from run to run: loaded once, and restored after each.

Every adapter has the same bytes as that of a separate run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.errors import BadInput, Interrupted, RunFailed
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.model.base import resolve
from evilspectra.model.reuse import Loaded, own_attention
from evilspectra.store.run import RunFolder
from evilspectra.targets.find import run_target
from evilspectra.training import train as training
from evilspectra.training.loop import TrainingRun
from evilspectra.training.train import train
from tests.support.commands import process
from tests.support.small_items import own
from tests.support.tiny_runs import tiny_config
from tests.support.tiny_sweeps import adapters

SHORT = {"train": {"steps": 4, "resume_every": 2}, "lora": {"dropout": 0.1}}
#: Runs on the same base, one after the other; each changes something else in it.
KINDS: list[dict[str, Any]] = [
    {"optimizer": {"name": "muon", "lr": 0.01}},
    {"train": {"packed": False}},
    {"model": {"gradient_checkpointing": True}},
    {"model": {"gradient_checkpointing": True}, "train": {"seed": 1}},
    {"lora": {"targets": ["q_proj", "down_proj"], "rslora": True}},
    {"flatness": {"weight": 0.3}, "train": {"seed": 3}},
]
EXPLODES = {
    "optimizer": {"name": "sgd", "lr": 1.0e4},
    "flatness": {"weight": 1.0e6, "soft_start": 0},
    "train": {"clip_norm": None},
    "schedule": {"name": "constant", "warmup_steps": 0},
    "lora": {"alpha": 65536},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


def config(folder: Path, kind: dict[str, Any], **sections: Any) -> sections.Config:
    return tiny_config(folder, **configs.merge(configs.merge(SHORT, kind), sections))


def elsewhere(folder: Path, kind: dict[str, Any]) -> sections.Config:
    return config(folder, kind, output={"folder": str(folder / "alone" / "runs")})


def test_runs_and_measurements_on_one_base_load_it_once_and_change_nothing(tmp_path: Path) -> None:
    shared = Loaded()
    for kind in KINDS:
        run = train(config(tmp_path, kind), loaded=shared)
        assert evaluate([run_target(run)], own(tmp_path), loaded=shared).failed == []
    assert shared.loads == 3  # settings of the base change twice
    for kind in KINDS:
        train(elsewhere(tmp_path, kind))
    assert adapters(tmp_path) == adapters(tmp_path / "alone")
    assert len(adapters(tmp_path)) == len(KINDS)


def test_the_base_is_loaded_once_for_runs_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = training.load_base
    monkeypatch.setattr(
        training, "load_base", lambda *arguments: (loads.append(1), load(*arguments))[1]
    )
    shared = Loaded()
    for seed in range(3):
        train(config(tmp_path, {"train": {"seed": seed}}), loaded=shared)
    assert (len(loads), shared.loads) == (1, 1)


@pytest.mark.slow
def test_the_last_of_several_runs_is_that_of_a_fresh_process(tmp_path: Path) -> None:
    shared = Loaded()
    for kind in KINDS:
        train(config(tmp_path, kind), loaded=shared)
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(elsewhere(tmp_path, KINDS[-1]).model_dump(mode="json"))
    )
    fresh = process("train", tmp_path / "run.yaml", "--quiet", folder=tmp_path)
    assert fresh.wait(120) == 0, fresh.communicate()
    ((name, digest),) = adapters(tmp_path / "alone").items()
    assert adapters(tmp_path)[name] == digest


def test_a_run_that_fails_leaves_the_base_clean(tmp_path: Path) -> None:
    shared = Loaded()
    with pytest.raises(RunFailed, match="not finite"):
        train(config(tmp_path, EXPLODES), loaded=shared)
    with pytest.raises(BadInput, match=r"lora\.rank 65"):
        train(config(tmp_path, {"lora": {"rank": 65}}), loaded=shared)
    train(config(tmp_path, KINDS[0]), loaded=shared)
    train(elsewhere(tmp_path, KINDS[0]))
    assert adapters(tmp_path) == adapters(tmp_path / "alone")
    assert shared.loads == 1


def test_a_run_that_is_interrupted_goes_on_on_the_same_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, advance = Loaded(), TrainingRun.advance

    def stopped(training_run: TrainingRun) -> Any:
        if training_run.step == 3:
            raise Interrupted("now")
        return advance(training_run)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "advance", stopped)
        with pytest.raises(Interrupted):
            train(config(tmp_path, KINDS[0]), loaded=shared)
    train(config(tmp_path, KINDS[0]), loaded=shared)
    train(elsewhere(tmp_path, KINDS[0]))
    assert adapters(tmp_path) == adapters(tmp_path / "alone")
    assert shared.loads == 1


def spoil_a_weight(model: Any) -> None:
    with torch.no_grad():
        next(model.parameters()).add_(1)


def spoil_a_mode(model: Any) -> None:
    next(model.children()).train()


def leave_a_hook(model: Any) -> None:
    next(model.children()).register_forward_hook(lambda *_: None)


def change_attention(model: Any) -> None:
    model.set_attn_implementation("eager" if own_attention(model) != "eager" else "sdpa")


def replace_a_module(model: Any) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.Linear):
                setattr(parent, name, torch.nn.Linear(child.in_features, child.out_features))
                return


def change_the_config(model: Any) -> None:
    model.config.use_cache = True


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_a_weight,
        spoil_a_mode,
        leave_a_hook,
        change_attention,
        replace_a_module,
        change_the_config,
    ],
)
def test_a_base_that_is_not_as_it_was_is_loaded_again(spoil: Any) -> None:
    settings = configs.build({"model": {"base": "tiny-random"}}).model
    base, shared = resolve(settings), Loaded()
    first, _ = shared.get(base, settings)
    assert shared.holds(base, settings)
    assert shared.get(base, settings)[0] is first
    spoil(first)
    assert not shared.holds(base, settings)
    assert shared.get(base, settings)[0] is not first
    assert shared.loads == 2


def test_one_base_at_a_time_is_kept() -> None:
    shared = Loaded()
    settings = [
        configs.build({"model": {"base": "tiny-random", "dtype": dtype}}).model
        for dtype in ("float32", "float64")
    ]
    for model in [*settings, *settings]:
        shared.get(resolve(model), model)
    assert shared.loads == 4


def test_a_run_s_own_directory_does_not_know_of_it(tmp_path: Path) -> None:
    run = train(config(tmp_path, KINDS[0]), loaded=Loaded())
    other = train(elsewhere(tmp_path, KINDS[0]))
    names = [
        sorted(
            str(path.relative_to(folder.path)) for path in RunFolder(folder.path).path.rglob("*")
        )
        for folder in (run, other)
    ]
    assert names[0] == names[1]
