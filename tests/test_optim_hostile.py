"""Muon and Lion under hostile input, and Muon's ways to orthogonalise against each other."""

import copy
import warnings

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from evilspectra.config import optimizers as c
from evilspectra.errors import BadInput
from evilspectra.optim.build import build_optimizer
from evilspectra.optim.lion import Lion
from evilspectra.optim.muon import Muon, lr_factor
from evilspectra.optim.orthogonal import METHODS, orthogonalise, orthogonalise_all
from tests.reference.muon import exact, muon_step, newton_schulz, polar_express
from tests.support.lora_factors import graded
from tests.support.tiny_runs import run_tiny

#: Over 50 updates: rounding, amplified by 3.4445⁵ ≈ 485 in Newton-Schulz.
TWIN = {torch.float64: 1e-10, torch.float32: 1e-3}

#: One matrix, float64, condition up to 1e3: rounding times the condition number.
SAME = 1e-11

#: Distance of a singular value of the update from 1: (lowest, highest) by way to orthogonalise, for
#: singular values from 0.005 of the Frobenius norm; Newton-Schulz leaves them scattered on purpose,
#: the others are off by float32 rounding.
SPREAD = {"newton_schulz": (0.35, 0.25), "polar_express": (1e-5, 1e-5), "exact": (1e-5, 1e-5)}

#: Polar Express against the decomposition, float32: rounding of the Gram matrix over the squared
#: condition (100).
AGREE = 1e-4

#: bfloat16 has eight bits: one update is right to half of the last.
BFLOAT16 = 2**-8


def parameter(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    )


def with_gradients(weights: list[torch.nn.Parameter], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)


# --- against the twin, and one way to orthogonalise against another -------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> list[list[torch.Tensor]]:
    """The gradients of 50 steps of AdamW on the tiny model, all factors; A's are zero at first."""
    steps: list[list[torch.Tensor]] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: steps.append(
            [weight.grad.clone() for weight in optimizer.param_groups[0]["params"]]
        )
    )
    try:
        run_tiny(tmp_path_factory.mktemp("recorded"), train={"steps": 50}, optimizer={"lr": 1e-3})
    finally:
        hook.remove()
    return steps


@pytest.mark.parametrize(
    ("dtype", "method"),
    [
        (torch.float64, "newton_schulz"),
        (torch.float32, "newton_schulz"),
        (torch.float64, "polar_express"),
        (torch.float64, "exact"),
    ],
)
def test_muon_equals_its_twin_on_50_recorded_gradients(recorded, dtype, method):
    assert len(recorded) == 50
    assert any(not gradient.any() for gradient in recorded[0])
    deficient = [
        gradient
        for gradient in recorded[1]
        if torch.linalg.matrix_rank(gradient) < min(gradient.shape)
    ]
    assert deficient or any(not gradient.any() for gradient in recorded[1])
    weights = [
        torch.nn.Parameter(torch.zeros_like(gradient, dtype=dtype)) for gradient in recorded[0]
    ]
    twins = [
        (
            torch.zeros_like(weight, dtype=torch.float64),
            torch.zeros_like(weight, dtype=torch.float64),
        )
        for weight in weights
    ]
    optimizer = Muon(weights, lr=0.01, orthogonalisation=method)
    for gradients in recorded:
        for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            weight.grad = gradient.to(dtype)
            twins[index] = muon_step(
                twins[index][0],
                gradient.double(),
                twins[index][1],
                0.01,
                "match_rms_adamw",
                0.95,
                True,
                0.0,
                method,
            )
        optimizer.step()
    for weight, (want, _) in zip(weights, twins, strict=True):
        assert float((weight.detach().double() - want).norm() / want.norm()) < TWIN[dtype]


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (8, 8), (1, 9), (9, 1)])
@pytest.mark.parametrize(
    ("method", "twin"),
    [("newton_schulz", newton_schulz), ("polar_express", polar_express), ("exact", exact)],
)
def test_each_way_equals_its_twin(shape, method, twin):
    matrix = graded(*shape, condition=1e3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        orthogonalise(matrix[None], method)[0], twin(matrix), rtol=SAME, atol=SAME
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(16, 200), (200, 16), (16, 16)])
def test_singular_values_of_the_update_are_near_one(shape, method):
    generator = torch.Generator().manual_seed(4)
    stack = torch.stack(
        [
            graded(*shape, condition=condition, generator=generator).float()
            for condition in (1.001, 10, 50)
        ]
    )
    sigma = torch.linalg.svdvals(orthogonalise(stack, method).double())
    low, high = SPREAD[method]
    assert float(sigma.min()) > 1 - low
    assert float(sigma.max()) < 1 + high


def test_polar_express_and_exact_agree():
    generator = torch.Generator().manual_seed(5)
    stack = torch.stack(
        [graded(16, 200, condition=100, generator=generator).float() for _ in range(4)]
    )
    difference = orthogonalise(stack, "polar_express") - orthogonalise(stack, "exact")
    assert float(difference.norm() / orthogonalise(stack, "exact").norm()) < AGREE


@pytest.mark.parametrize("method", METHODS)
def test_zero_stays_zero_rank_one_is_normalised_and_rank_is_kept(method):
    generator = torch.Generator().manual_seed(6)
    assert not orthogonalise(torch.zeros(2, 4, 7), method).any()
    row = torch.randn(3, 1, 12, dtype=torch.float64, generator=generator)
    size = torch.linalg.vector_norm(orthogonalise(row, method), dim=(1, 2))
    assert float((size - 1).abs().max()) < max(SPREAD[method])
    deficient = (
        torch.randn(6, 2, dtype=torch.float64, generator=generator)
        @ torch.randn(2, 9, dtype=torch.float64, generator=generator)
    )[None]
    assert int(torch.linalg.matrix_rank(orthogonalise(deficient, method)[0], rtol=1e-8)) == 2


@pytest.mark.parametrize("method", METHODS)
def test_many_stacks_at_once_give_what_each_gives(method):
    generator = torch.Generator().manual_seed(7)
    stacks = [
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((3, 4, 10), (2, 12, 4), (1, 2, 5))
    ]
    together = list(orthogonalise_all(stacks, method, 5, [1.0, -2.0, 0.5]))
    for stack, scale, update in zip(stacks, (1.0, -2.0, 0.5), together, strict=True):
        torch.testing.assert_close(
            update, scale * orthogonalise(stack, method), rtol=SAME, atol=SAME
        )


# --- hostile parameters and gradients -------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_spoils_its_own_parameter_alone(method, bad):
    weights = [parameter(4, 6, seed=seed) for seed in range(3)] + [parameter(5)]
    clean = copy.deepcopy(weights)
    for some in (weights, clean):
        with_gradients(some)
    assert weights[1].grad is not None
    weights[1].grad[2, 3] = bad
    Muon(weights, orthogonalisation=method).step()
    Muon(clean, orthogonalisation=method).step()
    assert bool(weights[1].isnan().all())
    for index in (0, 2, 3):
        assert torch.equal(weights[index], clean[index])


def test_lion_with_a_nan_stops_that_entry_alone():
    weight = parameter(3, 4)
    optimizer = Lion([weight], lr=0.1)
    before = weight.detach().clone()
    for step in range(3):
        with_gradients([weight], step)
        assert weight.grad is not None
        if step == 0:
            weight.grad[1, 1] = float("nan")
        optimizer.step()
    stopped = weight.detach() == before
    assert bool(stopped[1, 1])
    assert int(stopped.sum()) == 1
    assert int(optimizer.state[weight]["momentum"].isnan().sum()) == 1


@pytest.mark.parametrize("make", [Lion, Muon])
def test_frozen_parameters_and_those_without_gradient_stay_and_get_no_state(make):
    frozen, waiting, moving = (
        parameter(3, 4).requires_grad_(False),
        parameter(3, 4),
        parameter(3, 4),
    )
    before = [weight.detach().clone() for weight in (frozen, waiting, moving)]
    optimizer = make([frozen, waiting, moving], lr=0.1)
    with_gradients([moving])
    optimizer.step()
    assert [torch.equal(a, b) for a, b in zip((frozen, waiting, moving), before, strict=True)] == [
        True,
        True,
        False,
    ]
    assert list(optimizer.state) == [moving]


def test_gradients_that_come_and_go_move_each_parameter_as_if_it_were_alone():
    """The momenta of one shape lie in one tensor; who is in it changes from step to step."""
    together = [parameter(4, 6, seed=seed, dtype=torch.float64) for seed in range(4)]
    alone = copy.deepcopy(together)
    ours, singles = Muon(together, lr=0.1), [Muon([weight], lr=0.1) for weight in alone]
    for step, missing in enumerate([(), (0,), (), (1, 2), (0,), (), (3,), ()]):
        for some in (together, alone):
            with_gradients(some, step)
            for index in missing:
                some[index].grad = None
        ours.step()
        for single in singles:
            single.step()
        if step == 4:
            ours = copy.deepcopy(ours)
            together = ours.param_groups[0]["params"]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_ranks_move_as_if_each_were_alone(method):
    shapes = [(4, 20), (30, 4), (8, 20), (30, 8), (1, 20), (30, 1), (4, 20), (6, 6)]
    together = [
        parameter(*shape, seed=seed, dtype=torch.float64) for seed, shape in enumerate(shapes)
    ]
    alone = copy.deepcopy(together)
    with_gradients(together)
    with_gradients(alone)
    Muon(together, lr=0.1, orthogonalisation=method).step()
    for weight in alone:
        Muon([weight], lr=0.1, orthogonalisation=method).step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (7,)])
def test_bfloat16_parameters_are_moved_in_float32_and_rounded_once(shape):
    """The float32 twin's step rounded to bfloat16, also where decay alone would be rounded away."""
    short = parameter(*shape, dtype=torch.bfloat16)
    twin = torch.nn.Parameter(short.detach().float())
    with_gradients([short])
    assert short.grad is not None
    twin.grad = short.grad.float()
    Muon([short], lr=0.05, weight_decay=0.1).step()
    Muon([twin], lr=0.05, weight_decay=0.1).step()
    torch.testing.assert_close(short.detach(), twin.detach().bfloat16(), rtol=BFLOAT16, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Muon(p, lr=0.01, nesterov=False),
        lambda p: Muon(p, lr=0.01, orthogonalisation="exact"),
        lambda p: Lion(p, lr=0.01),
    ],
)
def test_bfloat16_state_resumes_bit_for_bit(make, tmp_path):
    weights = [parameter(8, 20, dtype=torch.bfloat16), parameter(7, dtype=torch.bfloat16)]
    optimizer = make(weights)
    for step in range(3):
        with_gradients(weights, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twins = copy.deepcopy(weights)
    second = make(twins)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        for some, running in ((weights, optimizer), (twins, second)):
            with_gradients(some, step)
            running.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, twins, strict=True))


def test_a_state_saved_before_a_setting_existed_takes_its_default():
    optimizer = Muon([parameter(2, 3)])
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["factors"], saved["param_groups"][0]["orthogonalisation"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["factors"] == "both"
    assert optimizer.param_groups[0]["orthogonalisation"] == "newton_schulz"


@pytest.mark.parametrize(
    "make",
    [Lion, Muon, lambda p: build_optimizer(c.SGD(), p), lambda p: build_optimizer(c.AdamW(), p)],
)
def test_an_empty_list_and_a_tied_parameter_are_refused(make):
    with pytest.raises(BadInput, match="there are no parameters to train"):
        make([])
    with pytest.raises(BadInput, match=r"not one tensor of shape \(2, 3\): put it in brackets"):
        make(parameter(2, 3))
    tied = parameter(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            BadInput, match="one tensor is passed twice, as embed, head: pass tied weights once"
        ):
            make([("embed", tied), ("other", parameter(2, 3)), ("head", tied)])
        with pytest.raises(BadInput, match="as parameter 0, parameter 1"):
            make([tied, tied])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            [("conv.lora_A", parameter(2, 2, 2))],
            r"conv.lora_A \(2, 2, 2\) have more than two dimensions: leave them out",
        ),
        (
            [parameter(2, 2), parameter(1, 2, 3, 4)],
            r"parameter 1 \(1, 2, 3, 4\) have more than two",
        ),
        (
            [("c", torch.zeros(2, 2, dtype=torch.complex64))],
            r"c \(torch.complex64\) are of another type",
        ),
    ],
)
def test_parameters_that_are_no_matrices_are_refused_by_name(parameters, message):
    with pytest.raises(BadInput, match=message):
        Muon(parameters)


# --- which rule moves what ------------------------------------------------------------------------


def lora(seed: int = 0) -> list[tuple[str, torch.nn.Parameter]]:
    return [
        ("q.lora_A.weight", parameter(4, 9, seed=seed)),
        ("q.lora_B.weight", parameter(7, 4, seed=seed + 1)),
        ("q.lora_magnitude_vector.weight", parameter(7, seed=seed + 2)),
    ]


def test_b_only_moves_a_by_adamw_and_b_as_with_both():
    ours, both, adamw = lora(), lora(), lora()
    optimizer = Muon(ours, lr=0.1, factors="b_only", adamw_lr=0.01)
    assert optimizer.rules() == {
        "muon": ["q.lora_B.weight"],
        "adamw": ["q.lora_A.weight", "q.lora_magnitude_vector.weight"],
    }
    assert Muon(both).rules()["adamw"] == ["q.lora_magnitude_vector.weight"]
    others = [Muon(both, lr=0.1), torch.optim.AdamW(adamw, lr=0.01, weight_decay=0.0)]
    for step in range(3):
        for named in (ours, both, adamw):
            with_gradients([weight for _, weight in named], step)
        for running in (optimizer, *others):
            running.step()
    assert torch.equal(ours[1][1], both[1][1])
    for index in (0, 2):
        torch.testing.assert_close(ours[index][1], adamw[index][1])


def test_b_only_needs_names_and_a_b_among_them():
    with pytest.raises(
        BadInput, match=r"tells A from B by their names: pass \(name, tensor\) pairs"
    ):
        Muon([parameter(2, 3)], factors="b_only")
    with pytest.raises(BadInput, match="no matrix has 'lora_B' in its name"):
        Muon([("weight", parameter(2, 3))], factors="b_only")


def test_b_only_trains_the_tiny_model(tmp_path):
    run = run_tiny(
        tmp_path,
        optimizer={
            "name": "muon",
            "factors": "b_only",
            "orthogonalisation": "polar_express",
            "lr": 3e-3,
            "adamw_lr": 3e-3,
        },
        train={"steps": 20},
    )
    losses = run.read("steps")["loss"]
    assert float(losses.iloc[-5:].mean()) < float(losses.iloc[:5].mean())


# --- torch's semantics ----------------------------------------------------------------------------


def test_groups_have_their_own_settings_and_one_can_be_added():
    weights = [parameter(4, 6, seed=seed, dtype=torch.float64) for seed in range(3)]
    before = [weight.detach().clone() for weight in weights]
    optimizer = Muon(
        [
            {"params": [weights[0]], "lr": 0.1},
            {"params": weights[1], "lr_rule": "original", "nesterov": False},
        ],
        lr=0.01,
    )
    optimizer.add_param_group(
        {"params": [weights[2]], "lr": 0.5, "adamw_lr": 0.25, "orthogonalisation": "exact"}
    )
    assert optimizer.param_groups[2]["adamw_ratio"] == 0.5
    with_gradients(weights)
    optimizer.step()
    for weight, start, (lr, rule, method) in zip(
        weights,
        before,
        [
            (0.1, "match_rms_adamw", "newton_schulz"),
            (0.01, "original", "newton_schulz"),
            (0.5, "match_rms_adamw", "exact"),
        ],
        strict=True,
    ):
        assert weight.grad is not None
        want = start - lr * lr_factor(rule, 4, 6) * orthogonalise(weight.grad[None], method)[0]
        torch.testing.assert_close(weight.detach(), want, rtol=SAME, atol=SAME)
    with pytest.raises(BadInput, match="momentum 2 is not in"):
        optimizer.add_param_group({"params": [parameter(2, 2)], "momentum": 2})
    with pytest.raises(
        BadInput,
        match="orthogonalisation 'svd' is unknown; allowed: newton_schulz, polar_express, exact",
    ):
        optimizer.add_param_group({"params": [parameter(2, 2)], "orthogonalisation": "svd"})
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("make", [Lion, Muon])
def test_a_scheduler_scales_every_step_and_zero_grad_clears(make):
    weight, bias = parameter(4, 6), parameter(6)
    optimizer = make([weight, bias], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: [1.0, 0.0, 0.5][min(step, 2)]
    )
    sizes = []
    for _ in range(3):
        before = [tensor.detach().clone() for tensor in (weight, bias)]
        with_gradients([weight, bias])
        optimizer.step()
        scheduler.step()
        sizes.append(
            [float((a.detach() - b).norm()) for a, b in zip((weight, bias), before, strict=True)]
        )
    assert sizes[1] == [0.0, 0.0]
    assert sizes[2] == pytest.approx([size / 2 for size in sizes[0]], rel=1e-3)
    optimizer.zero_grad()
    assert weight.grad is None


def test_a_closure_is_run_with_gradients_and_its_loss_returned():
    weight = parameter(3, 4)
    optimizer = Muon([weight], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
