"""The penalty and its gradient against autograd through a dense SVD, and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from evilspectra.errors import BadInput
from evilspectra.model.tiny import tiny_model
from evilspectra.spectra.grams import enqueue
from evilspectra.spectra.pairs import LoraPair, find_pairs, select
from evilspectra.spectra.paper import paper_flatness
from evilspectra.spectra.penalty import (
    add_flatness_gradient,
    decay_flatness,
    flatness,
    weight_at,
)
from evilspectra.spectra.penalty_terms import FLOAT32_GRAM_LIMIT, FLOAT32_LIMIT
from tests.reference.paper_recipe import paper_by_autograd
from tests.reference.spectra import flatness_by_autograd, flatness_by_differences
from tests.support.lora_factors import cancelling_pair, graded_pair
from tests.support.tiny_runs import run_tiny

#: Error allowed relative to max(‖∇‖, 1/‖factor‖): the gradient's natural size.
GRADIENT = 1e-8

#: Error of float32 parameters' gradient, relative: products with K in float32 lose ε₃₂·κ* up to
#: FLOAT32_LIMIT, and `.grad` itself ε₃₂.
FLOAT32_GRADIENT = 1e-6

#: The same where the Grams are float32 products too (`products="float32"`): ε₃₂·κ*² up to
#: FLOAT32_GRAM_LIMIT.
FLOAT32_PRODUCTS = 1e-5

#: Exact recipe against the paper's, both in float64, where σ_min(B) ≥ 0.1: the jitter moves σ² by
#: 1e-8/σ_min(B)², a share of 1e-6.
PAPER = 1e-5

MEASURES = ["frobenius_nuclear", "entropy", "participation"]

shapes = st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40)).filter(
    lambda shape: min(shape) == shape[0]
)


def gradient_error(pair: LoraPair, measure: str = "frobenius_nuclear") -> float:
    value, grad_a, grad_b = flatness_by_autograd(pair.A, pair.B, measure)
    penalty = add_flatness_gradient([pair], weight=1.0, measure=measure)
    assert penalty.value == pytest.approx(value, abs=1e-9)
    errors = []
    for factor, want in ((pair.A, grad_a), (pair.B, grad_b)):
        assert factor.grad is not None
        errors.append(
            float((factor.grad - want).norm() / max(want.norm(), 1 / factor.detach().norm()))
        )
    return max(errors)


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=50, deadline=None)
@given(
    shape=shapes,
    a=st.sampled_from([1.0, 3.0, 100.0]),
    b=st.sampled_from([1.0, 30.0, 1e3, 2.9e3, 3.1e3, 1e4]),
    size=st.sampled_from([1.0, 1e-4, 1e3]),
    seed=st.integers(0, 99),
)
def test_gradient_equals_autograd_through_dense_svd(
    measure,
    shape,
    a,
    b,
    size,
    seed,
):
    assert (
        gradient_error(
            graded_pair(*shape, condition_a=a, condition_b=b, size=size, seed=seed), measure
        )
        < GRADIENT
    )


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("condition", [3.0, 1e4])
def test_gradient_equals_finite_differences(measure, condition):
    pair = graded_pair(5, 14, 11, condition_b=condition)
    add_flatness_gradient([pair], weight=1.0, measure=measure)
    A, B = pair.A.detach(), pair.B.detach()
    direction = B @ torch.randn(
        5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    want = flatness_by_differences(A, B, direction / direction.norm(), measure)
    assert float((pair.B.grad * direction).sum() / direction.norm()) == pytest.approx(
        want, rel=1e-5, abs=1e-8
    )


@pytest.mark.parametrize(("a", "b"), [(1e4, 1e4), (1e6, 1.0), (1.0, 1e6)])
def test_gradient_of_hard_factors_through_qr(a, b):
    assert gradient_error(graded_pair(8, 30, 40, condition_a=a, condition_b=b)) < 1e-7


def test_flat_product_of_ill_conditioned_factors_is_flat():
    assert abs(float(flatness([cancelling_pair(8, 40, 50, 1e8)]))) < 1e-9


def test_zero_b_has_value_and_gradient_zero():
    pair = LoraPair(
        "m", torch.nn.Parameter(torch.randn(4, 9)), torch.nn.Parameter(torch.zeros(7, 4)), 1.0
    )
    penalty = add_flatness_gradient([pair], weight=5.0)
    assert (penalty.value, penalty.penalty) == (0.0, 0.0)
    assert not pair.A.grad.any()
    assert not pair.B.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("r", [1, 4, 32])
@pytest.mark.parametrize("measure", MEASURES)
def test_rank_one_b_is_finite(dtype, r, measure):
    generator = torch.Generator().manual_seed(r)
    B = torch.outer(torch.randn(48, generator=generator), torch.randn(r, generator=generator)).to(
        dtype
    )
    pair = LoraPair(
        "m",
        torch.nn.Parameter(torch.randn(r, 64, generator=generator).to(dtype)),
        torch.nn.Parameter(B),
        1.0,
    )
    penalty = add_flatness_gradient([pair], weight=1.0, measure=measure)
    assert bool(torch.isfinite(pair.A.grad).all())
    assert bool(torch.isfinite(pair.B.grad).all())
    most = {"frobenius_nuclear": 1 - r**-0.5, "entropy": math.log(r), "participation": 1 - 1 / r}[
        measure
    ]
    error = 1e-4
    if dtype == torch.bfloat16:
        error = 0.25 if measure == "entropy" else 0.05
    assert penalty.value == pytest.approx(most, abs=error)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
def test_bounds_and_euler(shape, seed):
    """0 ≤ R ≤ 1 − 1/√k; R ignores the size of B and A, so its gradient is orthogonal to both."""
    pair = graded_pair(*shape, condition_b=50, seed=seed)
    value = float(flatness([pair]))
    assert -1e-12 <= value <= 1 - min(shape) ** -0.5 + 1e-12
    add_flatness_gradient([pair], weight=1.0)
    for factor in (pair.A, pair.B):
        assert abs(float((factor.grad * factor.detach()).sum())) < 1e-9


def test_descent_flattens():
    pair = graded_pair(6, 30, 20, condition_b=50)
    before = float(flatness([pair]))
    for _ in range(300):
        pair.A.grad = pair.B.grad = None
        add_flatness_gradient([pair], weight=1.0)
        with torch.no_grad():
            pair.A.sub_(pair.A.grad, alpha=0.3)
            pair.B.sub_(pair.B.grad, alpha=0.3)
    assert float(flatness([pair])) < 0.05 * before


def test_adds_to_what_is_there_averages_over_modules_and_respects_weight():
    pairs = [graded_pair(4, 10, 12, condition_b=9, seed=seed) for seed in range(3)] + [
        graded_pair(2, 8, 7, condition_b=5)
    ]
    singles = [flatness_by_autograd(pair.A, pair.B) for pair in pairs]
    for pair in pairs:
        pair.B.grad = torch.ones_like(pair.B)
    penalty = add_flatness_gradient(pairs, weight=8.0)
    assert penalty.value == pytest.approx(sum(single[0] for single in singles) / 4)
    assert penalty.penalty == pytest.approx(8 * penalty.value)
    for pair, (_, grad_a, grad_b) in zip(pairs, singles, strict=True):
        torch.testing.assert_close(pair.B.grad, 1 + 2 * grad_b)
        torch.testing.assert_close(pair.A.grad, 2 * grad_a)


def test_soft_start_scales_each_module_by_its_size():
    small, large = graded_pair(4, 10, 12, size=1e-3), graded_pair(4, 10, 12, size=10.0, seed=1)
    full = [flatness_by_autograd(pair.A, pair.B) for pair in (small, large)]
    factor = float((small.B @ small.A).norm()) / 0.05
    assert factor < 1
    penalty = add_flatness_gradient([small, large], weight=2.0, soft_start=0.05)
    torch.testing.assert_close(small.B.grad, factor * full[0][2])
    torch.testing.assert_close(large.B.grad, full[1][2])
    assert penalty.penalty == pytest.approx(factor * full[0][0] + full[1][0])


def test_frozen_factor_is_left_alone():
    pair = graded_pair(4, 10, 12, condition_b=9)
    pair.A.requires_grad_(False)
    add_flatness_gradient([pair], weight=1.0)
    assert pair.A.grad is None
    assert pair.B.grad is not None


def test_r_larger_than_a_side():
    pair = graded_pair(12, 5, 40, condition_b=3)
    value, _, grad_b = flatness_by_autograd(pair.A, pair.B)
    penalty = add_flatness_gradient([pair], weight=1.0)
    assert penalty.value == pytest.approx(value, abs=1e-9)
    assert float((pair.B.grad - grad_b).norm()) < GRADIENT * max(float(grad_b.norm()), 1.0)


# --- number types ---------------------------------------------------------------------------------


def in_type(pair: LoraPair, dtype: torch.dtype) -> LoraPair:
    return LoraPair(
        pair.name,
        torch.nn.Parameter(pair.A.detach().to(dtype)),
        torch.nn.Parameter(pair.B.detach().to(dtype)),
        pair.scale,
    )


def loss_against_float64(pair: LoraPair, products: str = "float64") -> float:
    """Largest relative difference of a float32 pair's gradients from those in float64."""
    wide = in_type(pair, torch.float64)
    add_flatness_gradient([pair], 1.0, products=products)
    add_flatness_gradient([wide], 1.0)
    return max(
        float((a.grad - b.grad).norm() / b.grad.norm())
        for a, b in ((pair.A, wide.A), (pair.B, wide.B))
    )


@settings(max_examples=25, deadline=None)
@given(
    condition=st.floats(1.5, 3e3),
    r=st.sampled_from([4, 16, 32]),
    size=st.sampled_from([1.0, 1e-3, 1e-12]),
    seed=st.integers(0, 99),
)
def test_float32_parameters_lose_what_is_accepted(
    condition,
    r,
    size,
    seed,
):
    pair = in_type(
        graded_pair(r, 80, 120, condition_a=1.5, condition_b=condition, size=size, seed=seed),
        torch.float32,
    )
    assert loss_against_float64(pair) < FLOAT32_GRADIENT


@settings(max_examples=25, deadline=None)
@given(condition=st.floats(1.5, 3e3), r=st.sampled_from([4, 16, 32]), seed=st.integers(0, 99))
def test_float32_products_lose_what_is_accepted(condition, r, seed):
    pair = in_type(
        graded_pair(r, 80, 120, condition_a=1.5, condition_b=condition, seed=seed), torch.float32
    )
    assert loss_against_float64(pair, "float32") < FLOAT32_PRODUCTS


def test_float32_limits_are_where_they_are_needed():
    """Just above each limit the float64 way is taken.

    The products are bit for bit those of float64 parameters, rounded once.
    """
    assert FLOAT32_GRAM_LIMIT < FLOAT32_LIMIT
    pair = in_type(
        graded_pair(8, 60, 70, condition_a=1.0, condition_b=3 * FLOAT32_LIMIT), torch.float32
    )
    wide = in_type(pair, torch.float64)
    add_flatness_gradient([pair], 1.0, products="float32")
    add_flatness_gradient([wide], 1.0)
    assert torch.equal(pair.B.grad, wide.B.grad.float())
    assert torch.equal(pair.A.grad, wide.A.grad.float())


def test_products_that_are_not_exact_are_never_used():
    pair = in_type(graded_pair(8, 60, 70, condition_b=4.0), torch.float32)
    wide = in_type(pair, torch.float64)
    add_flatness_gradient([wide], 1.0)
    torch.set_float32_matmul_precision("medium")
    try:
        add_flatness_gradient([pair], 1.0, products="float32")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(pair.B.grad, wide.B.grad.float())


def hard_inputs() -> dict[str, LoraPair]:
    generator = torch.Generator().manual_seed(0)
    deficient = torch.randn(60, 3, generator=generator, dtype=torch.float64) @ torch.randn(
        3, 8, generator=generator, dtype=torch.float64
    )
    plain = graded_pair(8, 50, 60)
    return {
        "random": plain,
        "deficient": LoraPair("m", plain.A, torch.nn.Parameter(deficient), 1.0),
        "graded": graded_pair(8, 50, 60, condition_a=1e8, condition_b=1e8),
        "zero": LoraPair(
            "m", plain.A, torch.nn.Parameter(torch.zeros(60, 8, dtype=torch.float64)), 1.0
        ),
        "zero A": LoraPair(
            "m", torch.nn.Parameter(torch.zeros(8, 50, dtype=torch.float64)), plain.B, 1.0
        ),
        "cancelling": cancelling_pair(8, 50, 60, 1e8),
        "tiny": graded_pair(8, 50, 60, size=1e-30),
        "wide rank": graded_pair(70, 50, 60),
    }


@pytest.mark.parametrize("name", hard_inputs())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ["exact", "paper"])
def test_value_and_gradient_are_finite_on_hard_inputs(name, dtype, recipe):
    for measure in MEASURES if recipe == "exact" else MEASURES[:1]:
        pair = in_type(hard_inputs()[name], dtype)
        penalty = add_flatness_gradient([pair], 1.0, measure=measure, recipe=recipe)
        assert math.isfinite(penalty.value)
        for factor in (pair.A, pair.B):
            assert bool(torch.isfinite(factor.grad).all())
            assert factor.grad.dtype == dtype


# --- the paper's recipe ---------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
def test_exact_recipe_equals_the_papers_in_float64(shape, seed):
    pair = graded_pair(*shape, condition_b=10.0, seed=seed)
    paper = paper_flatness(pair, torch.float64)
    exact = add_flatness_gradient([pair], 1.0)
    assert exact.value == pytest.approx(paper.value, abs=PAPER)
    for factor, want in zip((pair.B, pair.A), paper.gradients, strict=True):
        assert float((factor.grad - want).norm()) < PAPER * max(
            float(want.norm()), 1 / float(factor.detach().norm())
        )


def test_papers_recipe_is_the_published_one():
    pair = in_type(graded_pair(8, 40, 50, condition_b=30.0), torch.float32)
    value, grad_a, grad_b = paper_by_autograd(pair.A, pair.B)
    penalty = add_flatness_gradient([pair], 1.0, recipe="paper")
    assert (penalty.value, penalty.routes) == (value, {"plain": 1})
    torch.testing.assert_close(pair.A.grad, grad_a, rtol=1e-6, atol=0)
    torch.testing.assert_close(pair.B.grad, grad_b, rtol=1e-6, atol=0)


def test_papers_recipe_skips_and_raises_the_jitter_and_says_so():
    small = LoraPair(
        "m",
        torch.nn.Parameter(torch.ones(2, 5)),
        torch.nn.Parameter(torch.full((4, 2), 1e-13)),
        1.0,
    )
    generator = torch.Generator().manual_seed(0)
    flat = 30 * torch.randn(64, 1, generator=generator) * torch.ones(1, 16)
    hard = LoraPair(
        "m",
        torch.nn.Parameter(torch.randn(16, 40, generator=generator)),
        torch.nn.Parameter(flat),
        1.0,
    )
    penalty = add_flatness_gradient([small, hard], 1.0, recipe="paper")
    assert penalty.routes == {"skipped": 1, "jitter": 1}
    assert paper_flatness(hard).jitter > 1e-8
    assert not small.A.grad.any()
    assert bool(torch.isfinite(hard.B.grad).all())


def test_papers_recipe_has_one_measure():
    with pytest.raises(
        BadInput, match=r"the paper's recipe has no measure 'entropy': use frobenius_nuclear"
    ):
        add_flatness_gradient([graded_pair(2, 4, 5)], 1.0, measure="entropy", recipe="paper")


# --- coupling, weight, modules --------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_decoupled_is_a_step_along_the_gradient(measure):
    pair, twin = graded_pair(4, 10, 12, condition_b=9), graded_pair(4, 10, 12, condition_b=9)
    add_flatness_gradient([twin], 2.0, measure=measure)
    penalty = decay_flatness([pair], 2.0, lr=0.1, measure=measure)
    assert pair.A.grad is None
    assert penalty.value == pytest.approx(float(flatness([twin], measure)[0]))
    for factor, other in ((pair.A, twin.A), (pair.B, twin.B)):
        torch.testing.assert_close(factor.detach(), other.detach() - 0.1 * other.grad)


def test_decoupled_leaves_frozen_factors_and_zero_b_alone():
    pair = graded_pair(4, 10, 12, condition_b=9)
    pair.A.requires_grad_(False)
    before = pair.A.detach().clone()
    zero = LoraPair(
        "m", torch.nn.Parameter(torch.randn(2, 6)), torch.nn.Parameter(torch.zeros(5, 2)), 1.0
    )
    decay_flatness([pair, zero], 1.0, lr=1.0)
    assert torch.equal(pair.A.detach(), before)
    assert not zero.B.detach().any()


def test_weight_rises_from_zero_as_the_learning_rate_does():
    assert [weight_at(2.0, 4, step) for step in range(6)] == [0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert [weight_at(2.0, 0, step) for step in (0, 9)] == [2.0, 2.0]


def test_weight_zero_tells_the_value_and_touches_nothing():
    pair = graded_pair(4, 10, 12, condition_b=9)
    penalty = add_flatness_gradient([pair], 0.0)
    assert penalty.value > 0
    assert pair.A.grad is None


def test_spread_over_modules():
    pairs = [graded_pair(4, 10, 12, condition_b=condition) for condition in (2.0, 9.0, 50.0)]
    values = flatness(pairs)
    penalty = add_flatness_gradient(pairs, 1.0)
    assert (penalty.smallest, penalty.largest) == (float(values.min()), float(values.max()))
    assert penalty.std == pytest.approx(float(values.std(correction=0)))
    assert penalty.routes == {"gram": 3}


def test_a_selection_that_means_nothing_is_refused_by_name():
    pairs = [
        LoraPair(f"layers.{i}.self_attn.{leaf}", torch.ones(1, 2), torch.ones(2, 1), 1.0)
        for i in range(2)
        for leaf in ("q_proj", "v_proj")
    ]
    assert [pair.name for pair in select(pairs, "self_attn.q_proj")] == [
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.q_proj",
    ]
    assert [pair.name for pair in select(pairs, ["layers.1.*", "layers.0.self_attn.v_proj"])] == [
        pairs[1].name,
        pairs[2].name,
        pairs[3].name,
    ]
    assert select(pairs, "all") == pairs
    with pytest.raises(
        BadInput,
        match=(
            r"'qproj' matches none of the adapted modules; .* q_proj, v_proj\. Did you mean "
            r"'q_proj'\?"
        ),
    ):
        select(pairs, ["v_proj", "qproj"])


# --- hostile cases --------------------------------------------------------------------------------


def test_a_nan_that_is_already_in_a_gradient_stays_where_it_is():
    pairs = [graded_pair(4, 10, 12, condition_b=9, seed=seed) for seed in range(2)]
    pairs[0].B.grad = torch.full_like(pairs[0].B, math.nan)
    penalty = add_flatness_gradient(pairs, 1.0)
    assert math.isfinite(penalty.value)
    assert bool(pairs[0].B.grad.isnan().all())
    assert all(
        bool(torch.isfinite(factor.grad).all()) for factor in (pairs[0].A, pairs[1].A, pairs[1].B)
    )


def test_a_nan_in_a_factor_is_refused_by_name():
    pair = graded_pair(4, 10, 12)
    with torch.no_grad():
        pair.B[0, 0] = math.nan
    with pytest.raises(BadInput, match="factor B of layer holds a value that is not finite"):
        add_flatness_gradient([graded_pair(4, 10, 12), pair], 1.0)


def test_a_frozen_adapter_is_measured_and_left_alone():
    pair = graded_pair(4, 10, 12, condition_b=9)
    pair.A.requires_grad_(False)
    pair.B.requires_grad_(False)
    assert add_flatness_gradient([pair], 1.0).value > 0
    assert pair.A.grad is None
    assert pair.B.grad is None


def test_a_disabled_adapter_gets_no_gradient():
    model = get_peft_model(
        tiny_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    pairs = find_pairs(model)
    with model.disable_adapter():
        assert [pair.name for pair in find_pairs(model)] == [pair.name for pair in pairs]
        add_flatness_gradient(find_pairs(model), 1.0)
    assert all(factor.grad is None for pair in pairs for factor in (pair.A, pair.B))
    add_flatness_gradient(pairs, 1.0)
    assert all(bool(factor.grad.any()) for pair in pairs for factor in (pair.A, pair.B))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mixed_ranks_and_shapes_equal_one_by_one(dtype):
    shapes = [(4, 10, 12), (1, 10, 12), (8, 30, 9), (4, 12, 10), (16, 40, 50)]
    together, apart = (
        [
            in_type(graded_pair(*shape, condition_b=5, seed=seed), dtype)
            for seed, shape in enumerate(shapes)
        ]
        for _ in range(2)
    )
    add_flatness_gradient(together, 5.0)
    for pair, single in zip(together, apart, strict=True):
        add_flatness_gradient([single], 1.0)
        torch.testing.assert_close(pair.A.grad, single.A.grad)
        torch.testing.assert_close(pair.B.grad, single.B.grad)


def test_bf16_parameters_lose_their_own_rounding_only():
    pair = in_type(graded_pair(8, 60, 70, condition_b=20.0), torch.bfloat16)
    wide = in_type(pair, torch.float64)
    add_flatness_gradient([pair], 1.0)
    add_flatness_gradient([wide], 1.0)
    for factor, want in ((pair.A, wide.A), (pair.B, wide.B)):
        assert factor.grad.dtype == torch.bfloat16
        assert float((factor.grad.double() - want.grad).norm()) < 2**-8 * float(want.grad.norm())


@pytest.mark.parametrize("decoupled", [False, True])
def test_tied_factors_get_the_sum(decoupled):
    A = torch.nn.Parameter(graded_pair(4, 10, 12).A.detach().clone())
    ups = [graded_pair(4, 10, 12, condition_b=9, seed=seed).B for seed in range(2)]
    pairs = [LoraPair(f"m{index}", A, up, 1.0) for index, up in enumerate(ups)]
    want = sum(flatness_by_autograd(A, up)[1] for up in ups) / 2
    if decoupled:
        before = A.detach().clone()
        decay_flatness(pairs, 1.0, lr=0.1)
        torch.testing.assert_close(A.detach(), before - 0.1 * want)
    else:
        add_flatness_gradient(pairs, 1.0)
        torch.testing.assert_close(A.grad, want)


def test_grams_enqueued_before_give_the_same():
    pair, twin = graded_pair(4, 10, 12, condition_b=9), graded_pair(4, 10, 12, condition_b=9)
    grams = enqueue([pair])
    assert add_flatness_gradient([pair], 1.0, grams=grams) == add_flatness_gradient([twin], 1.0)
    assert torch.equal(pair.B.grad, twin.B.grad)


# --- in a run -------------------------------------------------------------------------------------

SHORT = {"train": {"steps": 4}, "schedule": {"name": "constant", "warmup_steps": 0}}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"coupling": "decoupled", "weight": 3.0},
        {"recipe": "paper", "soft_start": 0.0},
        {"measure": "entropy"},
        {"products": "float32"},
        {"warmup_steps": 3, "modules": ["q_proj"]},
    ],
    ids=str,
)
def test_every_setting_runs_and_is_recorded(settings, tmp_path):
    run = run_tiny(tmp_path, flatness={"weight": 0.3} | settings, **SHORT)
    steps, measures = run.read("steps"), run.read("measures")
    assert bool(
        (steps["flatness_min"] <= steps["flatness"]).all()
        and (steps["flatness"] <= steps["flatness_max"]).all()
    )
    assert bool((steps["flatness_std"] >= 0).all())
    assert steps["flatness"].iloc[-1] > 0
    assert set(measures["part"]) == {"delta"}
    assert bool(
        (
            measures["effective_rank"].between(1, 4)
            & measures["participation_ratio"].between(1, 4)
            & (measures["energy_share"] > 0.999)
        ).all()
    )


def test_warm_up_scales_the_penalty(tmp_path):
    steps = run_tiny(
        tmp_path, flatness={"weight": 0.3, "warmup_steps": 4, "soft_start": 0.0}, **SHORT
    ).read("steps")
    assert (steps["penalty"] / steps["flatness"])[1:].tolist() == pytest.approx(
        [0.3 * done / 4 for done in (1, 2, 3)]
    )


def test_a_module_that_is_not_adapted_is_refused_before_training(tmp_path):
    with pytest.raises(BadInput, match="'r_proj' matches none of the adapted modules"):
        run_tiny(tmp_path, flatness={"weight": 0.3, "modules": ["r_proj"]}, **SHORT)
