"""Singular values and measures: laws, and agreement with the dense product."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from evilspectra.errors import BadInput
from evilspectra.model.tiny import tiny_model
from evilspectra.spectra import measures
from evilspectra.spectra.delta import delta_weight, minus_initial
from evilspectra.spectra.grams import enqueue
from evilspectra.spectra.pairs import LoraPair, find_pairs, read_pairs
from evilspectra.spectra.peft_files import open_folder
from evilspectra.spectra.values import singular_values
from evilspectra.spectra.values_numpy import streamed_spectrum
from tests.reference.spectra import dense_values
from tests.support.lora_factors import cancelling_pair, graded_pair, known_pair
from tests.support.saved_adapters import written

#: Relative error allowed for a singular value of at least 1e-7 of the largest.
EXACT = 1e-6

#: Share of ‖A‖·‖B‖ from which a value is held to EXACT: QR's absolute error is a few ε = 2e-16 of
#: it.
RESOLVED = 3e-9

#: Factors of κ 1e8 carry an error of ε·κ each into any algorithm that starts from them.
CANCELLING = 1e-6

shapes = st.tuples(st.integers(1, 24), st.integers(1, 40), st.integers(1, 40))
conditions = st.sampled_from([1.0, 10.0, 1e3, 1e5, 1e8])


def largest_error(pair: LoraPair) -> float:
    got, want = (
        singular_values([pair])[0].values,
        dense_values(pair.A.detach(), pair.B.detach(), pair.scale),
    )
    assert got.shape == want.shape
    counted = want >= 1e-7 * want[0]
    return float(((got - want).abs() / want)[counted].max())


@settings(max_examples=60, deadline=None)
@given(
    shape=shapes,
    a=conditions,
    b=conditions,
    scale=st.sampled_from([1.0, 0.25, -3.0, 1e-6]),
    seed=st.integers(0, 99),
)
def test_equal_to_dense_svd(
    shape,
    a,
    b,
    scale,
    seed,
):
    pair = graded_pair(*shape, condition_a=a, condition_b=b, scale=scale, seed=seed)
    # The dense product in float64 has itself an error of about 1e-16·‖A‖·‖B‖, which counts where
    # both factors are graded.
    if a * b <= 1e8:
        assert largest_error(pair) < EXACT


@settings(max_examples=60, deadline=None)
@given(
    r=st.sampled_from([1, 2, 3, 8, 16, 32, 64, 128]),
    a=st.sampled_from([1.0, 30.0, 1e4, 1e8]),
    b=st.sampled_from([1.0, 30.0, 1e4, 1e8]),
    order=st.sampled_from(["graded", "cancelling", "shuffled"]),
    seed=st.integers(0, 99),
)
def test_values_that_are_known_by_construction(
    r,
    a,
    b,
    order,
    seed,
):
    """A dense SVD resolves 1e-16 of ‖A‖·‖B‖ only.

    Here the values are a·b, up to what rounding the factors does to them (ε·κ(A) + ε·κ(B)).
    """
    down = torch.logspace(0, -math.log10(a), r, dtype=torch.float64)
    up = torch.logspace(0, -math.log10(b), r, dtype=torch.float64)
    up = {
        "graded": up,
        "cancelling": up.flip(0),
        "shuffled": up[torch.randperm(r, generator=torch.Generator().manual_seed(seed))],
    }[order]
    pair, want = known_pair(r, r + 20, r + 30, down, up, seed)
    got = singular_values([pair])[0].values
    # Either route rounds the product of two r × r matrices, so nothing below RESOLVED·‖A‖·‖B‖ is
    # known to 1e-6.
    counted = (want >= 1e-7 * want[0]) & (want >= RESOLVED)
    assert not bool(counted.any()) or float(((got - want).abs() / want)[counted].max()) < EXACT


@settings(max_examples=40, deadline=None)
@given(a=st.lists(st.floats(-4.6, 0), min_size=3, max_size=6), data=st.data())
def test_a_product_small_against_its_factors_is_seen(a, data):
    """κ(A), κ(B) and κ(BA) may all be below the limit while σ_r is lost against ‖A‖·‖B‖.

    The route must not be the Gram's then.
    """
    b = data.draw(st.lists(st.floats(-4.6, 0), min_size=len(a), max_size=len(a)))
    pair, want = known_pair(
        len(a),
        30,
        40,
        10 ** torch.tensor(a, dtype=torch.float64),
        10 ** torch.tensor(b, dtype=torch.float64),
    )
    got = singular_values([pair])[0].values
    counted = want >= RESOLVED * 10 ** (max(a) + max(b))
    assert not bool(counted.any()) or float(((got - want).abs() / want)[counted].max()) < EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_factors_are_read_without_loss(dtype):
    plain = graded_pair(8, 40, 50, condition_b=1e3)
    pair = LoraPair("m", plain.A.detach().to(dtype), plain.B.detach().to(dtype), 1.0)
    assert largest_error(pair) < EXACT


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e170])
def test_sizes_whose_squares_leave_float64(size):
    pair = graded_pair(3, 9, 7, size=size)
    spectrum = singular_values([pair])[0]
    assert spectrum.route == "qr"
    torch.testing.assert_close(
        spectrum.values / size, singular_values([graded_pair(3, 9, 7)])[0].values, rtol=1e-9, atol=0
    )


class FakeDevice:
    """A copy engine like a device's: a copy arrives when it is waited for, and not before."""

    def __init__(self) -> None:
        self.waits = 0

    def copy(self, stack: torch.Tensor):
        host = torch.full_like(stack, math.nan)

        def wait() -> torch.Tensor:
            self.waits += 1
            return host.copy_(stack)

        return wait


def test_nothing_is_waited_for_until_the_result_is_asked_for():
    """The path that CUDA takes, with a stand-in for the device.

    Products and copies are enqueued, and the only wait is for the small copy.
    """
    device = FakeDevice()
    pairs = [graded_pair(4, 9, 7), graded_pair(2, 9, 7), graded_pair(4, 12, 5, seed=1)]
    grams = enqueue(pairs, copy=device.copy)
    assert device.waits == 0
    later = singular_values(pairs, grams)
    assert device.waits == 2
    for spectrum, want in zip(later, singular_values(pairs), strict=True):
        assert torch.equal(spectrum.values, want.values)


@pytest.mark.parametrize("r", [1, 2, 8, 32, 128])
def test_cancelling_factors_go_through_qr(r):
    pair = cancelling_pair(r, 160, 140, condition=1e8 if r > 1 else 1.0)
    spectrum = singular_values([pair])[0]
    assert spectrum.route == ("qr" if r > 1 else "gram")
    assert float((spectrum.values - 1).abs().max()) < CANCELLING


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(1, 8), seed=st.integers(0, 99))
def test_rank_deficient_factors(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(30, rank, generator=generator) @ torch.randn(rank, 16, generator=generator)
    pair = LoraPair("m", torch.randn(16, 40, generator=generator), B, 1.0)
    values = singular_values([pair])[0].values
    assert len(values) == 16
    assert largest_error(pair) < EXACT
    assert bool((values[rank:] < 1e-5 * values[0]).all())


def test_zero_b_gives_zeros():
    spectrum = singular_values([LoraPair("m", torch.randn(4, 9), torch.zeros(7, 4), 2.0)])[0]
    assert spectrum.route == "zero"
    assert spectrum.values.tolist() == [0.0] * 4


def test_mixed_shapes_keep_order_and_names():
    pairs = [
        LoraPair(f"m{i}", torch.randn(r, d), torch.randn(o, r), 1.0)
        for i, (r, d, o) in enumerate([(4, 9, 7), (2, 9, 7), (4, 9, 7), (8, 5, 30)])
    ]
    together = singular_values(pairs)
    assert [spectrum.name for spectrum in together] == ["m0", "m1", "m2", "m3"]
    for pair, spectrum in zip(pairs, together, strict=True):
        torch.testing.assert_close(
            spectrum.values, singular_values([pair])[0].values, rtol=1e-12, atol=0
        )


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99), factor=st.sampled_from([-2.0, 0.5, 1e4]))
def test_invariance(shape, seed, factor):
    """Rotations of either side and gauge changes (B·M, M⁻¹·A) change nothing.

    The scale multiplies all values.
    """
    pair = graded_pair(*shape, condition_a=10, condition_b=10, seed=seed)
    values = singular_values([pair])[0].values
    generator = torch.Generator().manual_seed(seed + 1)
    left = torch.linalg.qr(
        torch.randn(shape[2], shape[2], dtype=torch.float64, generator=generator)
    ).Q
    mix = torch.eye(shape[0], dtype=torch.float64) + 0.1 * torch.randn(
        shape[0], shape[0], dtype=torch.float64, generator=generator
    ) / math.sqrt(shape[0])
    other = LoraPair(
        "m", torch.linalg.solve(mix, pair.A.detach()), left @ pair.B.detach() @ mix, factor
    )
    torch.testing.assert_close(
        singular_values([other])[0].values,
        abs(factor) * values,
        rtol=1e-8,
        atol=1e-10 * abs(factor),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_non_finite_factor_is_refused_by_name(bad, factor):
    good, broken = graded_pair(2, 5, 6), graded_pair(2, 5, 6, seed=1)
    broken = LoraPair("layers.3.v_proj", broken.A.detach().clone(), broken.B.detach().clone(), 1.0)
    getattr(broken, factor)[0, 0] = bad
    with pytest.raises(
        BadInput, match=rf"factor {factor} of layers\.3\.v_proj holds a value that is not finite"
    ):
        singular_values([good, broken])


spectra = (
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40)
    .map(lambda values: np.sort(values)[::-1])
    .filter(lambda values: values[0] > 0)
)
FUNCTIONS = [
    measures.stable_rank,
    measures.spectral_entropy,
    measures.condition_number,
    measures.frobenius_nuclear,
]
FUNCTIONS += [measures.effective_rank, measures.participation_ratio, measures.energy_share]


@settings(max_examples=200, deadline=None)
@given(spectra)
def test_measures_stay_in_their_bounds(sigma):
    k = len(sigma)
    slack = 1e-12
    assert 1 - slack <= measures.stable_rank(sigma) <= k + slack * k
    assert -slack <= measures.spectral_entropy(sigma) <= math.log(k) + slack
    assert measures.condition_number(sigma) >= 1 - slack
    assert 1 / math.sqrt(k) - slack <= measures.frobenius_nuclear(sigma) <= 1 + slack
    assert 1 - slack <= measures.effective_rank(sigma) <= k + slack * k
    assert 1 - slack <= measures.participation_ratio(sigma) <= k + slack * k
    for top in (1, 4, k, k + 3):
        assert min(top, k) / k - slack <= measures.energy_share(sigma, top) <= 1 + slack
    assert measures.energy_share(sigma, 1) == pytest.approx(1 / measures.stable_rank(sigma))


@settings(max_examples=100, deadline=None)
@given(spectra, st.floats(1e-150, 1e150))
def test_measures_do_not_see_the_scale(sigma, factor):
    sigma = np.where(sigma < 1e-100, 0, sigma)
    for measure in FUNCTIONS:
        np.testing.assert_allclose(measure(sigma * factor), measure(sigma), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 32])
def test_measures_of_flat_and_of_one_direction(k):
    flat, single = np.full(k, 0.3), np.eye(1, k)[0]
    assert [float(measure(flat)) for measure in FUNCTIONS] == pytest.approx(
        [k, math.log(k), 1, k**-0.5, k, k, min(4, k) / k], abs=1e-12
    )
    assert [float(measure(single)) for measure in FUNCTIONS] == pytest.approx(
        [1, 0, 1 if k == 1 else math.inf, 1, 1, 1, 1], abs=1e-12
    )


def test_paper_values_at_rank_32():
    flat = np.ones(32)
    assert [round(float(measure(flat)), 5) for measure in FUNCTIONS[:4]] == [
        32,
        3.46574,
        1,
        0.17678,
    ]


def test_zero_spectrum_has_no_measures():
    with np.errstate(invalid="raise"):
        assert all(math.isnan(float(measure(np.zeros(4)))) for measure in FUNCTIONS)


def test_measures_take_batches():
    sigma = np.array([[3.0, 1.0], [2.0, 2.0]])
    for measure in FUNCTIONS:
        np.testing.assert_allclose(measure(sigma), [float(measure(row)) for row in sigma])


# --- where pairs come from ------------------------------------------------------------------------


def adapted(**settings) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(
        tiny_model(),
        LoraConfig(
            target_modules="all-linear",
            init_lora_weights=settings.pop("init_lora_weights", False),
            **settings,
        ),
    )


SCALES = [
    {"r": 4, "lora_alpha": 8},
    {"r": 4, "lora_alpha": 8, "use_rslora": True},
    {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 3},
        "alpha_pattern": {"model.layers.0.mlp.up_proj": 5},
    },
    {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"^model.layers.0.self_attn.k_proj": 1},
        "alpha_pattern": {"o_proj": 1},
    },
]


@pytest.mark.parametrize("settings", SCALES)
def test_files_give_what_the_live_model_gives(settings, tmp_path):
    model = adapted(**settings)
    model.save_pretrained(str(tmp_path))
    live, read = sorted(find_pairs(model), key=lambda pair: pair.name), read_pairs(tmp_path)
    assert [(pair.name, pair.scale, pair.shape, pair.part) for pair in live] == [
        (pair.name, pair.scale, pair.shape, pair.part) for pair in read
    ]
    for pair, stored, layer in zip(live, read, live, strict=True):
        assert torch.equal(pair.A.detach(), stored.A)
        assert torch.equal(pair.B.detach(), stored.B)
        want = (
            model.get_submodule(f"base_model.model.{layer.name}")
            .get_delta_weight("default")
            .double()
        )
        torch.testing.assert_close(
            pair.scale * (pair.B.double() @ pair.A.double()), want, rtol=1e-5, atol=1e-7
        )


class Plain(nn.Module):
    """A layer of one's own, with factors as tensors or as linear layers."""

    def __init__(self, linear: bool, **scale: float) -> None:
        super().__init__()
        self.lora_A = nn.Linear(6, 2, bias=False) if linear else nn.Parameter(torch.randn(2, 6))
        self.lora_B = nn.Linear(2, 5, bias=False) if linear else nn.Parameter(torch.randn(5, 2))
        for name, value in scale.items():
            setattr(self, name, value)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    ("scale", "want"), [({}, 1.0), ({"scaling": 0.5}, 0.5), ({"lora_alpha": 8}, 4.0)]
)
def test_modules_of_ones_own_are_found(linear, scale, want):
    (pair,) = find_pairs(nn.ModuleDict({"layer": Plain(linear, **scale)}))
    assert (pair.name, pair.scale, pair.shape, pair.part) == ("layer", want, (2, 6, 5), "delta")


def test_factors_that_share_no_rank_are_refused_by_name():
    broken = Plain(False)
    broken.lora_B = nn.Parameter(torch.randn(5, 3))
    with pytest.raises(
        BadInput,
        match=(
            r"the factors of layer have shapes A 2 × 6 and B 5 × 3: they must be r × d_in and "
            r"d_out × r"
        ),
    ):
        find_pairs(nn.ModuleDict({"layer": broken}))


class Convolution(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(2, 9)), nn.Parameter(torch.randn(12, 2))


def test_embeddings_and_convolutions_are_refused_by_name():
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["embed_tokens"]))
    with pytest.raises(
        BadInput,
        match=r"^model\.embed_tokens is an adapted embedding, .* leave it out of the LoRA targets",
    ):
        find_pairs(model)
    with pytest.raises(BadInput, match=r"^conv is an adapted Conv2d, .* only linear layers"):
        find_pairs(
            get_peft_model(
                nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3)}), LoraConfig(target_modules=["conv"])
            )
        )
    with pytest.raises(BadInput, match=r"^conv is an adapted convolution"):
        find_pairs(nn.ModuleDict({"conv": Convolution()}))


def rewrite(folder, tensors=None, **changes) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    if tensors is not None:
        save_file(tensors, folder / "adapter_model.safetensors")


KEY = "base_model.model.layer.q_proj.lora_"
GOOD = {f"{KEY}A.weight": torch.ones(2, 5), f"{KEY}B.weight": torch.ones(3, 2)}
MALFORMED = [
    (
        lambda at: rewrite(at, GOOD | {f"{KEY}B.weight": torch.ones(3, 4)}),
        "the factors of layer.q_proj have shapes A 2 × 5 and B 3 × 4",
    ),
    (
        lambda at: rewrite(at, {f"{KEY}A.weight": torch.ones(2, 5)}),
        "lacks factor B of layer.q_proj",
    ),
    (lambda at: rewrite(at, {"x": torch.ones(2)}), "holds no LoRA factors"),
    (
        lambda at: rewrite(at, {name: tensor.int() for name, tensor in GOOD.items()}),
        "must be floating-point numbers",
    ),
    (
        lambda at: rewrite(
            at, {f"{KEY}embedding_A": torch.ones(2, 5), f"{KEY}embedding_B": torch.ones(3, 2)}
        ),
        "layer.q_proj in .* is an adapted embedding",
    ),
    (
        lambda at: rewrite(
            at, {f"{KEY}A.weight": torch.ones(2, 5, 3, 3), f"{KEY}B.weight": torch.ones(3, 2, 1, 1)}
        ),
        "layer.q_proj in .* is an adapted convolution",
    ),
    (
        lambda at: rewrite(at, GOOD, r=7),
        "layer.q_proj has rank 2 in .*, but 7 by adapter_config.json",
    ),
    (
        lambda at: rewrite(at, lora_alpha="many"),
        "lora_alpha of layer.q_proj is 'many' .*: it must be a number",
    ),
    (lambda at: rewrite(at, lora_alpha=None), "has no lora_alpha"),
    (lambda at: rewrite(at, rank_pattern=[1]), "rank_pattern in .* must be an object"),
    (
        lambda at: rewrite(at, alpha_pattern={"(": 2}),
        "alpha_pattern in .* holds '\\(', which is not a regular expression",
    ),
    (lambda at: rewrite(at, peft_type="IA3"), "is a IA3 adapter: only LORA is supported"),
    (lambda at: rewrite(at, target_parameters=["mlp.experts"]), "adapts parameters of experts"),
    (lambda at: (at / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
    (lambda at: (at / "adapter_config.json").write_text("[1]"), "holds no JSON object"),
    (lambda at: (at / "adapter_config.json").unlink(), "has no adapter_config.json"),
    (
        lambda at: (at / "adapter_model.safetensors").write_bytes(b"\x00" * 40),
        "is damaged or not a safetensors file",
    ),
    (
        lambda at: (at / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors: name a folder that holds one",
    ),
    (
        lambda at: (at / "adapter_model.safetensors").rename(at / "adapter_model.bin"),
        "is a pickle, which can run code",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), MALFORMED, ids=[message[:30] for _, message in MALFORMED]
)
def test_a_malformed_folder_is_refused_in_a_sentence(damage, message, tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    )
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    assert [(pair.name, pair.scale) for pair in read_pairs(tmp_path)] == [("layer.q_proj", 2.0)]
    damage(tmp_path)
    with pytest.raises(BadInput, match=message) as caught:
        read_pairs(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is not a folder"):
        read_pairs(tmp_path / "nowhere")


# --- what scale·B·A is ----------------------------------------------------------------------------


def test_dora_is_said_to_be_ba_only_and_exact_with_its_base(tmp_path):
    model = adapted(r=4, use_dora=True)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].weight.mul_(1.3)
    model.save_pretrained(str(tmp_path))
    live = next(
        pair for pair in find_pairs(model) if pair.name == "model.layers.0.self_attn.q_proj"
    )
    read = next(pair for pair in read_pairs(tmp_path) if pair.name == live.name)
    base = layer.base_layer.weight.detach().clone()
    x = torch.randn(7, base.shape[1])
    with torch.no_grad():
        want = layer(x) - x @ base.T
    for pair in (live, read):
        assert (pair.part, singular_values([pair])[0].part) == ("BA only", "BA only")
    module = next(module for module in open_folder(tmp_path).modules if module.name == live.name)
    change = torch.from_numpy(delta_weight(module, base.double().numpy()))
    torch.testing.assert_close((x.double() @ change.T).float(), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match=r"the base weight of .*q_proj is 3 × 3, its update"):
        delta_weight(module, np.ones((3, 3)))
    plain = graded_pair(2, 4, 5, scale=-3.0)
    (module,) = open_folder(written(tmp_path / "plain", plain)).modules
    product = plain.scale * (plain.B @ plain.A).detach().numpy()
    np.testing.assert_allclose(delta_weight(module, np.ones((5, 4))), product, atol=1e-12)


def test_a_magnitude_that_does_not_fit_its_module_is_refused(tmp_path):
    adapted(r=4, use_dora=True).save_pretrained(str(tmp_path))
    (module, *_) = open_folder(tmp_path).modules
    _, d_in, d_out = module.shape
    broken = replace(module, magnitude=module.down)
    with pytest.raises(BadInput, match=rf"the magnitude of .* must be {d_out} finite"):
        delta_weight(broken, np.ones((d_out, d_in)))


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_2", "olora"])
def test_pissa_is_said_to_be_ba_only_and_exact_with_its_initial_factors(kind, tmp_path):
    before = {name: weight.clone() for name, weight in tiny_model().state_dict().items()}
    model = adapted(r=4, init_lora_weights=kind)
    model.save_pretrained(str(tmp_path / "initial"))
    pairs = find_pairs(model)
    with torch.no_grad():
        for pair in pairs:
            pair.B.add_(0.1 * torch.randn_like(pair.B))
    model.save_pretrained(str(tmp_path / "trained"))
    for folder in ("initial", "trained"):
        rewrite(tmp_path / folder, init_lora_weights=kind)
    read = read_pairs(tmp_path / "initial")
    assert {pair.part for pair in (*read, *pairs)} == {"BA only"}
    initial, trained = (open_folder(tmp_path / folder) for folder in ("initial", "trained"))
    (exact, *_) = minus_initial(trained, initial)
    layer = model.get_submodule(f"base_model.model.{exact.name}")
    now = layer.base_layer.weight + layer.get_delta_weight("default")
    torch.testing.assert_close(
        torch.from_numpy(exact.scale * (exact.up.wide() @ exact.down.wide())).float(),
        (now - before[f"{exact.name}.weight"]).detach(),
        rtol=1e-3,
        atol=1e-5,
    )
    spectrum = streamed_spectrum(exact)
    assert (spectrum.part, len(spectrum.values)) == ("delta", 8)
    with pytest.raises(BadInput, match="has no initial factors"):
        minus_initial(trained, replace(initial, modules=initial.modules[:1]))
