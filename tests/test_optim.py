"""Lion and Muon against slow twins over many steps, torch's Optimizer semantics, schedules."""

import copy
from pathlib import Path

import pytest
import torch

from evilspectra.config import optimizers as c
from evilspectra.config.sections import ScheduleConfig
from evilspectra.errors import BadInput
from evilspectra.optim.build import build_optimizer
from evilspectra.optim.lion import Lion
from evilspectra.optim.muon import LR_RULES, Muon, lr_factor
from evilspectra.optim.orthogonal import orthogonalise
from evilspectra.optim.schedule import lr_at
from tests.reference.lion import lion_step
from tests.reference.muon import muon_step, newton_schulz
from tests.support.lora_factors import graded

#: The Gram form does the published iteration's arithmetic in another order: rounding, amplified by
#: 3.4445⁵ ≈ 485.
TWIN = {torch.float64: 1e-10, torch.float32: 1e-3}

SHAPES = [(16, 40), (48, 16), (16, 40), (1, 12), (12, 1), (16, 16)]


def gradients(
    shape: tuple[int, int],
    steps: int,
    dtype: torch.dtype,
    seed: int,
) -> list[torch.Tensor]:
    """Well and badly conditioned, rank-deficient and zero ones."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [
        lambda: torch.randn(*shape, dtype=torch.float64, generator=generator),
        lambda: graded(*shape, condition=1e4, generator=generator),
        lambda: torch.outer(
            torch.randn(shape[0], dtype=torch.float64, generator=generator),
            torch.randn(shape[1], dtype=torch.float64, generator=generator),
        ),
        lambda: torch.zeros(*shape, dtype=torch.float64),
    ]
    return [kinds[step % 4]().to(dtype) for step in range(steps)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("rule", "nesterov", "decay"),
    [("match_rms_adamw", True, 0.0), ("original", False, 0.1), ("spectral_unclamped", True, 0.1)],
)
def test_muon_equals_its_twin_over_50_steps(
    dtype,
    rule,
    nesterov,
    decay,
):
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype))
        for shape in SHAPES
    ]
    twins = [
        (weight.detach().double(), torch.zeros_like(weight, dtype=torch.float64))
        for weight in weights
    ]
    fed = [gradients(shape, 50, dtype, seed) for seed, shape in enumerate(SHAPES)]
    optimizer = Muon(weights, lr=0.02, lr_rule=rule, nesterov=nesterov, weight_decay=decay)
    for step in range(50):
        for index, weight in enumerate(weights):
            weight.grad = fed[index][step].clone()
            twins[index] = muon_step(
                twins[index][0],
                fed[index][step].double(),
                twins[index][1],
                0.02,
                rule,
                0.95,
                nesterov,
                decay,
            )
        optimizer.step()
    for weight, (want, _) in zip(weights, twins, strict=True):
        assert float((weight.detach().double() - want).norm() / want.norm()) < TWIN[dtype]


def test_one_update_is_near_that_of_torch():
    """torch.optim.Muon works in bfloat16, whose rounding over five steps is a few per cent."""
    generator = torch.Generator().manual_seed(2)
    start, gradient = (
        torch.randn(16, 64, generator=generator),
        torch.randn(16, 64, generator=generator),
    )
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    Muon([ours], lr=0.1, lr_rule="original").step()
    torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, adjust_lr_fn="original").step()
    assert float((ours - theirs).detach().norm() / (theirs.detach() - start).norm()) < 0.05


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (8, 8)])
def test_orthogonalise_lifts_all_directions_and_keeps_the_singular_vectors(shape):
    generator = torch.Generator().manual_seed(3)
    matrix = graded(*shape, condition=100, generator=generator)
    result = orthogonalise(matrix[None])[0]
    sigma = torch.linalg.svdvals(result)
    assert float(sigma.min()) > 0.6
    assert float(sigma.max()) < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ result @ vh.T
    assert float((core - torch.diag(torch.diag(core))).abs().max()) < 1e-10
    torch.testing.assert_close(result, newton_schulz(matrix), rtol=1e-10, atol=1e-10)


def test_orthogonalise_does_not_see_the_scale_and_keeps_zero():
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(3, 6, 10, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(orthogonalise(1e-9 * matrix), orthogonalise(matrix))
    assert not orthogonalise(torch.zeros(2, 4, 5)).any()


def test_lr_rules_as_tabulated():
    """RMS of the update of A (r × d) and B (d × r) for d = 4096, r = 32.

    An orthogonal update has RMS 1/√max(rows, columns).
    """
    d, r = 4096, 32
    rms = {
        rule: [lr_factor(rule, *shape) / max(shape) ** 0.5 for shape in ((r, d), (d, r))]
        for rule in LR_RULES
    }
    assert rms["match_rms_adamw"] == pytest.approx([0.2, 0.2])
    assert rms["original"] == pytest.approx([d**-0.5, r**-0.5])
    assert rms["original"][1] / rms["original"][0] == pytest.approx(11.3, abs=0.05)
    assert rms["spectral_unclamped"][1] / rms["spectral_unclamped"][0] == pytest.approx(128)


def test_lion_equals_its_twin_over_50_steps():
    generator = torch.Generator().manual_seed(5)
    weights = [
        torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=generator))
        for shape in SHAPES
    ]
    twins = [(weight.detach().clone(), torch.zeros_like(weight)) for weight in weights]
    optimizer = Lion(weights, lr=0.01, betas=(0.9, 0.99), weight_decay=0.3)
    for step in range(50):
        for index, weight in enumerate(weights):
            gradient = gradients(SHAPES[index], step + 1, torch.float64, index)[step]
            weight.grad = gradient
            twins[index] = lion_step(
                *[twins[index][0], gradient, twins[index][1]],
                lr=0.01,
                beta1=0.9,
                beta2=0.99,
                decay=0.3,
            )
        optimizer.step()
    for weight, (want, _) in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight.detach(), want, rtol=1e-12, atol=1e-12)


OPTIMIZERS = [c.SGD(lr=0.1, momentum=0.9), c.Adam(), c.AdamW(), c.Lion(), c.Muon()]
ids = [config.name for config in OPTIMIZERS]


def problem() -> tuple[list[torch.nn.Parameter], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(6)
    parameters = [
        torch.nn.Parameter(torch.randn(4, 6, generator=generator)),
        torch.nn.Parameter(torch.randn(5, 4, generator=generator)),
        torch.nn.Parameter(torch.randn(7, generator=generator)),
    ]
    return parameters, [
        torch.randn(parameter.shape, generator=generator) for parameter in parameters
    ]


def advance(
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    targets: list[torch.Tensor],
    steps: int,
) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(
            ((parameter - target) ** 2).sum()
            for parameter, target in zip(parameters, targets, strict=True)
        )  # type: ignore[assignment]
        loss.backward()
        optimizer.step()
    return float(loss)


@pytest.mark.parametrize("config", OPTIMIZERS, ids=ids)
def test_descends_including_one_dimensional_parameters(config):
    parameters, targets = problem()
    before = [
        float((parameter.detach() - target).norm())
        for parameter, target in zip(parameters, targets, strict=True)
    ]
    advance(build_optimizer(config, parameters), parameters, targets, 30)
    after = [
        float((parameter.detach() - target).norm())
        for parameter, target in zip(parameters, targets, strict=True)
    ]
    assert all(a < b for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("config", OPTIMIZERS, ids=ids)
def test_state_dict_resumes_bit_for_bit(config, tmp_path):
    parameters, targets = problem()
    optimizer = build_optimizer(config, parameters)
    advance(optimizer, parameters, targets, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twins = copy.deepcopy(parameters)
    advance(optimizer, parameters, targets, 3)
    second = build_optimizer(config, twins)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    advance(second, twins, targets, 3)
    assert all(torch.equal(a, b) for a, b in zip(parameters, twins, strict=True))


@pytest.mark.parametrize("config", OPTIMIZERS, ids=ids)
def test_missing_gradient_frozen_and_closure(config):
    parameters, _ = problem()
    optimizer = build_optimizer(config, parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    parameters[0].grad = torch.ones_like(parameters[0])
    assert optimizer.step(lambda: 7.0) == 7.0
    assert not torch.equal(parameters[0], before[0])
    assert torch.equal(parameters[1], before[1])
    assert torch.equal(parameters[2], before[2])


@pytest.mark.parametrize("config", [c.Lion(), c.Muon()], ids=["lion", "muon"])
def test_zero_gradient_moves_nothing(config):
    parameters, _ = problem()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = build_optimizer(config, parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_muon_on_bfloat16_parameters_keeps_float32_momentum():
    weight = torch.nn.Parameter(torch.randn(8, 20).bfloat16())
    optimizer = Muon([weight], lr=0.1, nesterov=False)
    for _ in range(3):
        weight.grad = torch.randn(8, 20).bfloat16()
        optimizer.step()
    assert optimizer.state[weight]["momentum"].dtype == torch.float32
    assert bool(torch.isfinite(weight).all())


def test_adam_and_adamw_differ_in_the_decay_alone():
    parameters, targets = problem()
    twins = copy.deepcopy(parameters)
    advance(build_optimizer(c.Adam(lr=1e-2), parameters), parameters, targets, 5)
    advance(build_optimizer(c.AdamW(lr=1e-2, weight_decay=0.0), twins), twins, targets, 5)
    assert all(torch.equal(a, b) for a, b in zip(parameters, twins, strict=True))
    assert c.Adam().betas == c.AdamW().betas
    assert c.Adam().eps == c.AdamW().eps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Muon(p, lr=0), "lr 0 and adamw_lr"),
        (
            lambda p: Muon(p, lr_rule="sqrt"),
            "lr_rule 'sqrt' is unknown; allowed: match_rms_adamw, original, spectral_unclamped",
        ),
        (lambda p: Muon(p, momentum=1.0), r"momentum 1.0 is not in \[0, 1\)"),
        (
            lambda p: Muon([torch.nn.Parameter(torch.zeros(2, 2, 2))]),
            r"\(2, 2, 2\) have more than two dimensions",
        ),
        (lambda p: Lion(p, lr=-1), "lr -1 is not positive"),
        (lambda p: Lion(p, betas=(0.9, 1.0)), "betas"),
        (lambda p: Lion(p, weight_decay=-0.1), "weight_decay -0.1 is negative"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make([torch.nn.Parameter(torch.zeros(2, 2))])


@pytest.mark.parametrize("name", c.OPTIMIZERS)
def test_every_optimizer_has_a_page(name):
    page = (
        Path(__file__).parents[1]
        / "docs"
        / "optimizers"
        / f"{'adamw' if name == 'adam' else name}.md"
    )
    text = page.read_text(encoding="utf-8")
    assert all(word in text for word in ("**Source**", "**lr rule**", "**When not**"))


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 50])
def test_schedule_equals_hugging_faces(name, warmup):
    from transformers import get_scheduler

    kind = "constant_with_warmup" if name == "constant" else name
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=30)
    for step in range(30):
        assert lr_at(ScheduleConfig(name=name, warmup_steps=warmup), step, 30) == pytest.approx(
            scheduler.get_last_lr()[0], abs=1e-12
        )
        optimizer.step()
        scheduler.step()
