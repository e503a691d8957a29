"""Refusals of callbacks and optimisers in other people's trainers, and the imports they need.

They come before the first step, as one sentence that says what to do.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from evilspectra.errors import BadInput, RunFailed
from evilspectra.integrations._factors import observed_pairs, trained_pairs
from evilspectra.integrations.optimizer import build_for, lora_optimizer
from evilspectra.integrations.transformers import SpectralFlatness, SpectrumMonitor
from evilspectra.model.tiny import tiny_model
from evilspectra.spectra.pairs import find_pairs
from tests.support.tiny_trainers import adapted, sft
from tests.test_layers import MODULES, imports

#: Packages and modules that a callback or optimiser in another trainer may import.
LIGHT = {
    *("errors", "text", "intervals", "config", "store", "spectra", "optim", "integrations"),
    *("training.flatness", "training.monitor"),
}


def over(model: nn.Module, **facts: Any) -> Any:
    """An optimizer over a model, with more attributes."""
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad]
        or [nn.Parameter(torch.zeros(1))],
        lr=0.1,
    )
    for name, value in facts.items():
        setattr(optimizer, name, value)
    return optimizer


def refused(model: nn.Module, optimizer: Any = None, adapter: str | None = None) -> str:
    """The message with which a training is refused."""
    with pytest.raises(BadInput) as error:
        trained_pairs(model, optimizer or over(model), adapter, "SpectralFlatness")
    return str(error.value)


@pytest.mark.parametrize(
    "name", sorted(name for name in MODULES if name.startswith("integrations."))
)
def test_another_trainer_imports_little_of_this_package(name):
    if name != "integrations.inspect":
        beyond = {module for module in imports(name) - LIGHT if module.split(".")[0] not in LIGHT}
        assert not beyond


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"weight": -0.5},
            (
                "SpectralFlatness: flatness.weight = -0.5 is refused: it must be a number, at "
                "least 0 and at most 1,000,000"
            ),
        ),
        (
            {"weight": True},
            (
                "SpectralFlatness: flatness: weight = True is refused: true and false stand for no "
                "number"
            ),
        ),
        (
            {"weight": 1, "measure": "rank"},
            (
                "SpectralFlatness: flatness.measure = 'rank' is refused: it must be "
                "'frobenius_nuclear', 'entropy' or 'participation'"
            ),
        ),
        (
            {"weight": 1, "coupling": "none"},
            (
                "SpectralFlatness: flatness.coupling = 'none' is refused: it must be 'gradient' or "
                "'decoupled'"
            ),
        ),
        (
            {"weight": 1, "recipe": "paper", "measure": "entropy"},
            "SpectralFlatness: flatness: recipe paper has no measure entropy",
        ),
    ],
)
def test_settings_have_the_configs_bounds(settings, sentence):
    with pytest.raises(BadInput) as error:
        SpectralFlatness(**settings)
    assert str(error.value).startswith(sentence)


def test_settings_of_the_others():
    with pytest.raises(
        BadInput,
        match=(
            r"^SpectrumMonitor: monitor.every = -1 is refused: it must be a whole number, at least "
            r"0"
        ),
    ):
        SpectrumMonitor(every=-1)
    with pytest.raises(
        BadInput,
        match=(
            r"^lora_optimizer: optimizer.name 'muno' is unknown; allowed: sgd, .* Did you mean "
            r"'muon'\?"
        ),
    ):
        lora_optimizer("muno")
    with pytest.raises(BadInput, match=r"^lora_optimizer: 'beta' is not a field of optimizer"):
        lora_optimizer("lion", beta=0.9)
    with pytest.raises(
        BadInput,
        match=(
            r"^build_for: the model has no LoRA adapter on a linear layer; adapters found: none; "
            r"adapt the model first \(get_peft_model,"
        ),
    ):
        build_for(tiny_model(), "muon", lr=1e-3)
    with pytest.raises(
        BadInput,
        match=(
            r"this version of transformers takes optimizer classes only: pass "
            r"optimizers=\(build_for\(model, ...\), None\) instead"
        ),
    ):
        lora_optimizer("muon")[0]([{"params": []}], config=None)


def test_a_model_without_lora():
    other = get_peft_model(
        tiny_model(), IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    )
    assert (
        refused(other)
        == "SpectralFlatness: the model has no LoRA adapter on a linear layer; adapters found: none"
    )
    assert refused(adapted(), adapter="second") == (
        "SpectralFlatness: the model has no adapter 'second' on a linear layer; adapters "
        "found: default"
    )


def test_modules_that_mean_none(tmp_path):
    with pytest.raises(
        BadInput,
        match=(
            r"^'query' matches none of the adapted modules; allowed: all, or names, ends of names "
            r"or patterns of down_proj, "
        ),
    ):
        sft(tmp_path, [SpectralFlatness(weight=1.0, modules="query")], steps=1).train()
    assert not (tmp_path / "evilspectra").exists()


def test_the_active_adapter_is_meant_or_the_one_that_is_named():
    model = adapted(r=2)
    model.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"]))
    assert {pair.shape[0] for pair in trained_pairs(model, over(model), None, "x")} == {2}
    model.set_adapter("second")
    assert {pair.shape[0] for pair in trained_pairs(model, over(model), None, "x")} == {3}
    assert (
        "no factor of adapter 'default' requires a gradient, so it is not being trained"
        in refused(model, adapter="default")
    )
    assert {pair.shape[0] for pair in observed_pairs(model, over(model), "default", "x")} == {
        2
    }  # it may be looked at
    model.base_model.set_adapter(["default", "second"])
    assert refused(model) == (
        "SpectralFlatness: 2 adapters are active (default, second), and the mean over modules "
        "would mix them: name one with adapter=..."
    )
    assert {pair.shape[0] for pair in trained_pairs(model, over(model), "second", "x")} == {3}


def test_an_optimizer_that_does_not_hold_the_factors():
    model = adapted()
    elsewhere = over(adapted())
    assert refused(model, elsewhere) == (
        "SpectralFlatness: the optimizer holds no factor of the active adapter, so a gradient "
        "added to them would have no effect: "
        "build the optimizer after the adapter, or name the one that is trained with adapter=..."
    )


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            DistributedType.DEEPSPEED,
            (
                "under DeepSpeed the backward pass already steps the engine, before a callback can "
                "add a gradient: train on one device or under plain data parallelism (DDP)"
            ),
        ),
        (DistributedType.MEGATRON_LM, "under Megatron-LM the engine steps by itself"),
        (
            DistributedType.FSDP,
            (
                "under FSDP a process holds only a part of every factor, and a spectrum needs the "
                "whole"
            ),
        ),
    ],
)
def test_engines_are_refused_by_name(kind, sentence):
    model = adapted()
    assert sentence in refused(
        model, over(model, accelerator_state=SimpleNamespace(distributed_type=kind))
    )
    with pytest.raises(BadInput, match=r"^SpectrumMonitor: under"):
        SpectrumMonitor().on_train_begin(
            None,
            None,
            None,
            model=model,
            optimizer=over(model, accelerator_state=SimpleNamespace(distributed_type=kind)),
        )


def test_fsdp_is_known_by_its_wrapper_too():
    wrapper = type("FullyShardedDataParallel", (nn.Sequential,), {})
    model = wrapper(adapted())
    assert "under FSDP" in refused(model)


@pytest.mark.parametrize("name", ["LayerWiseDummyOptimizer", "Lomo", "AdaLomo"])
def test_optimisers_that_step_in_the_backward_pass(name):
    model = adapted()
    inside = type(name, (torch.optim.SGD,), {})(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1
    )
    expected = (
        f"SpectralFlatness: {name} moves the weights during the backward pass, before a callback "
        "can add a gradient: choose an optim that steps once per step, such as adamw_torch"
    )
    assert refused(model, inside) == expected
    assert refused(model, over(model, optimizer=inside)) == expected  # as accelerate wraps it


def test_other_ways_of_stepping_early():
    model = adapted()
    assert (
        "Apex's amp keeps gradients scaled until its own step: use the trainer's bf16 or fp16 "
        "instead"
    ) in refused(model, over(model, _amp_stash=object()))
    find_pairs(model)[0].A._in_backward_optimizers = [object()]
    assert "an optimizer is applied in the backward pass" in refused(model)


def test_factors_that_are_not_whole_numbers_in_memory():
    model = adapted()
    layer: Any = model.base_model.model.model.layers[0].self_attn.q_proj
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default"
    weight = layer.lora_A["default"].weight

    layer.lora_A["default"].weight = nn.Parameter(
        torch.zeros(128, 1, dtype=torch.uint8), requires_grad=False
    )
    assert refused(model) == (
        f"SpectralFlatness: {name} is quantised (Parameter, torch.uint8): keep the adapter in "
        "float32, bfloat16 or float16; the base may be quantised"
    )
    layer.lora_A["default"].weight = nn.Parameter(
        weight.detach().to(torch.float8_e4m3fn), requires_grad=False
    )
    assert "is quantised (Parameter, torch.float8_e4m3fn)" in refused(model)
    layer.lora_A["default"].weight = nn.Parameter(weight.detach().to("meta"))
    assert refused(model, over(adapted())) == (
        f"SpectralFlatness: {name} is offloaded and has no values when a callback is called: "
        "keep the adapter in memory"
    )
    layer.lora_A["default"].weight = weight
    layer.lora_A["default"]._parameters["weight"] = type("DTensor", (nn.Parameter,), {})(
        weight.detach()
    )
    assert (
        f"{name} is sharded over processes (a DTensor), and a spectrum needs the whole factor"
        in refused(model)
    )


def test_the_decoupled_penalty_needs_one_learning_rate(tmp_path):
    model = adapted()
    groups = [
        {"params": [getattr(pair, side) for pair in find_pairs(model)], "lr": lr}
        for side, lr in (("A", 1e-3), ("B", 1e-2))
    ]
    callback = SpectralFlatness(weight=1.0, coupling="decoupled")
    with pytest.raises(BadInput) as error:
        callback.on_train_begin(None, None, None, model=model, optimizer=torch.optim.SGD(groups))
    assert str(error.value) == (
        "SpectralFlatness: the factors have 2 learning rates (0.001, 0.01), and the decoupled "
        "penalty needs one: give all factors the same, or set coupling='gradient'"
    )


def test_wrappers_are_looked_through():
    model = adapted()
    names = [pair.name for pair in find_pairs(model)]
    for wrapped in (
        torch.compile(model, backend="eager"),
        nn.DataParallel(model),
        nn.DataParallel(torch.compile(model, backend="eager")),
    ):
        assert [pair.name for pair in trained_pairs(wrapped, over(model), None, "x")] == names
    model.base_model.model.model.layers[0] = torch.compile(
        model.base_model.model.model.layers[0], backend="eager"
    )
    assert [pair.name for pair in trained_pairs(model, over(model), None, "x")] == names


@pytest.mark.parametrize(
    "callback",
    [
        SpectralFlatness(weight=1.0),
        SpectralFlatness(weight=1.0, coupling="decoupled"),
        SpectrumMonitor(every=1),
    ],
    ids=["gradient", "decoupled", "monitor"],
)
def test_factors_that_are_no_longer_finite_end_the_training(tmp_path, callback):
    class Spoiler(TrainerCallback):
        def on_step_end(
            self,
            args,
            state,
            control,
            **kwargs,
        ):
            if state.global_step == 2:
                find_pairs(kwargs["model"])[1].B.data[0, 0] = float("nan")

    with pytest.raises(RunFailed) as error:
        sft(tmp_path, [Spoiler(), callback], steps=4).train()
    assert str(error.value).startswith("step 3: factor ")

    from evilspectra.store.run import RunFolder

    run = RunFolder.of_trainer(tmp_path)
    status = run.status()
    assert (status.state, status.step) == (
        "failed",
        3 if isinstance(callback, SpectrumMonitor) else 2,
    )
    assert status.reason == str(error.value)
    assert list(run.read("steps")["step"])[:2] == [1, 2]
