"""The optimisers of the extra `optimizers`: a missing package, LoRA's shapes, resumed runs."""

import copy
import importlib.util
import signal

import pytest
import torch

from evilspectra.config import optimizers as c
from evilspectra.errors import BadInput, Interrupted
from evilspectra.optim import extra
from evilspectra.optim.build import build_optimizer
from evilspectra.optim.extra import MODULE, in_pairs
from evilspectra.optim.muon import Muon
from evilspectra.training.train import train
from tests.support.tiny_runs import run_tiny, tiny_config
from tests.test_resume import same_results, signal_in_step

CONFIGS = [c.SOAP(lr=3e-3), c.Scion(lr=3e-3), c.LoraRite(lr=3e-3), c.Adafactor(lr=3e-3)]
each = pytest.mark.parametrize("config", CONFIGS, ids=[config.name for config in CONFIGS])
installed = pytest.mark.skipif(
    importlib.util.find_spec(MODULE) is None, reason="the extra optimizers is not installed"
)

#: The package orthogonalises in bfloat16: a few per cent over five steps.
BFLOAT16_ITERATION = 0.05

#: LoRA-RITE's ε enters beside second moments of about 1e-3 to 1.
INVARIANT = 1e-3


def factors(
    rank: int = 4, seed: int = 0, zero: bool = True
) -> list[tuple[str, torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        ("0.lora_A", (rank, 20)),
        ("0.lora_B", (30, rank)),
        ("1.lora_A", (rank, 12)),
        ("1.lora_B", (9, rank)),
    ]
    return [
        (
            name,
            torch.nn.Parameter(
                torch.randn(*shape, generator=generator) * (not (zero and "B" in name))
            ),
        )
        for name, shape in shapes
    ]


def with_gradients(named: list[tuple[str, torch.nn.Parameter]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, weight in named:
        weight.grad = 0.1 * torch.randn(weight.shape, generator=generator)


# --- without the package --------------------------------------------------------------------------


@each
def test_a_missing_package_is_one_sentence_and_leaves_no_trace(tmp_path, monkeypatch, config):
    monkeypatch.setattr(extra, "find_spec", lambda _: None)
    text = (
        f"optimizer.name '{config.name}' needs the package pytorch-optimizer, which is not "
        "installed: pip install --no-deps pytorch-optimizer, or name another optimiser"
    )
    with pytest.raises(BadInput) as refusal:
        build_optimizer(config, factors())
    assert str(refusal.value) == text
    with pytest.raises(BadInput) as refusal:
        run_tiny(tmp_path, optimizer={"name": config.name})
    assert str(refusal.value) == text
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_pairs_are_found_by_name_in_any_order_and_what_is_none_is_refused():
    named = factors()
    shuffled = [named[3], named[0], named[2], named[1]]
    assert [name for name, _ in in_pairs(shuffled)] == [
        "0.lora_A",
        "0.lora_B",
        "1.lora_A",
        "1.lora_B",
    ]
    assert in_pairs([weight for _, weight in named]) == [weight for _, weight in named]
    with pytest.raises(BadInput, match=r"0\.lora_magnitude_vector has no partner"):
        in_pairs([*named, ("0.lora_magnitude_vector", torch.zeros(3))])
    with pytest.raises(BadInput, match=r"1\.lora_B has no partner"):
        in_pairs(named[:3])
    with pytest.raises(BadInput, match=r"A \(r × d_in\) before B"):
        in_pairs([named[1][1], named[0][1]])
    with pytest.raises(BadInput, match=r"A \(r × d_in\) before B"):
        in_pairs([named[1][1]])


# --- with it --------------------------------------------------------------------------------------


@installed
@each
def test_trains_the_tiny_model_and_resumes_bit_for_bit(tmp_path, monkeypatch, config):
    sections = {
        "optimizer": config.model_dump(),
        "train": {"steps": 24, "resume_every": 3},
        "schedule": {"name": "constant", "warmup_steps": 0},
    }
    undisturbed = run_tiny(tmp_path, **sections, output={"folder": str(tmp_path / "undisturbed")})
    losses = undisturbed.read("steps")["loss"]
    assert float(losses.iloc[-5:].mean()) < float(losses.iloc[:5].mean()) - 0.02
    settings = tiny_config(tmp_path, **sections)
    signal_in_step(monkeypatch, 14, signal.SIGINT)
    with pytest.raises(Interrupted):
        train(settings)
    monkeypatch.undo()
    same_results(undisturbed, train(settings))


@installed
@each
def test_state_is_no_larger_than_the_factors_need(config):
    named = factors()
    optimizer = build_optimizer(config, named)
    for step in range(3):
        with_gradients(named, step)
        optimizer.step()
    leaves = torch.utils._pytree.tree_leaves([dict(state) for state in optimizer.state.values()])
    largest = max(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))
    assert largest <= max(weight.numel() for _, weight in named)


@installed
def test_scion_is_muon_with_the_unclamped_rule():
    theirs, ours = factors(zero=False), factors(zero=False)
    before = [weight.detach().clone() for _, weight in ours]
    pair = [
        build_optimizer(c.Scion(lr=0.1, momentum=0.9), theirs),
        Muon(ours, lr=0.1, momentum=0.9, nesterov=False, lr_rule="spectral_unclamped"),
    ]
    for named, optimizer in zip((theirs, ours), pair, strict=True):
        with_gradients(named, 1)
        optimizer.step()
    for (_, a), (_, b), start in zip(theirs, ours, before, strict=True):
        assert float((a - b).detach().norm() / (b.detach() - start).norm()) < BFLOAT16_ITERATION


@installed
def test_lora_rite_does_not_see_how_the_product_is_split():
    """B·A = (B·R⁻¹)·(R·A): gradients transform with the factors, the product's step is the same."""
    generator = torch.Generator().manual_seed(3)
    A, B, G = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 20), (30, 4), (30, 20))
    )
    R = torch.randn(4, 4, generator=generator, dtype=torch.float64) + 3 * torch.eye(
        4, dtype=torch.float64
    )
    steps = []
    for down, up in ((A, B), (R @ A, B @ R.inverse())):
        pair = [torch.nn.Parameter(down.clone()), torch.nn.Parameter(up.clone())]
        optimizer = build_optimizer(c.LoraRite(lr=1e-4, skip=0), pair)
        for _ in range(3):
            pair[0].grad, pair[1].grad = pair[1].detach().T @ G, G @ pair[0].detach().T
            optimizer.step()
        steps.append((pair[1] @ pair[0]).detach() - B @ A)
    assert float((steps[0] - steps[1]).norm() / steps[0].norm()) < INVARIANT


@installed
@each
def test_a_factor_whose_gradient_is_zero_stays(config):
    """A's gradient is zero as long as B is."""
    named = factors()
    before = copy.deepcopy(named)
    optimizer = build_optimizer(config, named)
    for step in range(2):
        with_gradients(named, step)
        for name, weight in named:
            if "lora_A" in name:
                weight.grad = torch.zeros_like(weight)
        optimizer.step()
    for (name, weight), (_, start) in zip(named, before, strict=True):
        assert torch.equal(weight, start) == ("lora_A" in name)
