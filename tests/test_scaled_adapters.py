"""Scaling of an adapter after training: ΔW is multiplied, whatever its scale is made of."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

from evilspectra.adapters.flatten import flat_values, flatten
from evilspectra.model.tiny import tiny_model
from evilspectra.spectra.pairs import LoraPair
from evilspectra.spectra.peft_files import open_folder
from evilspectra.spectra.values_numpy import orthogonal, streamed_values
from tests.support.commands import command
from tests.support.saved_adapters import adapted, settings_of, stored, written

#: The rounding of float32 factors, relative to the largest singular value.
SCALE_ERROR = 1e-6

CONFIGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, "v_proj": 6},
        "alpha_pattern": {"model.layers.0.mlp.up_proj": 5},
    },
    "rslora with patterns": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"v_proj": 3},
    },
    "a negative alpha": {"lora_alpha": -8},
}

scales = st.floats(1e-3, 1e3)


def pair(seed: int, r: int, d_in: int, d_out: int) -> LoraPair:
    draw = torch.Generator().manual_seed(seed)
    return LoraPair(
        "m", torch.randn(r, d_in, generator=draw), torch.randn(d_out, r, generator=draw), 2.0
    )


def products(folder: Path) -> list[np.ndarray]:
    return [orthogonal(module).product() for module in open_folder(folder).modules]


def assert_multiplied(before: Path, after: Path, scale: float, tolerance: float) -> None:
    for old, new in zip(products(before), products(after), strict=True):
        assert np.linalg.norm(new - scale * old) <= tolerance * scale * np.linalg.norm(old)


@given(
    seed=st.integers(0, 99),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    first=scales,
    second=scales,
)
@settings(max_examples=40, deadline=None)
def test_updates_are_multiplied_and_scales_compose(
    seed,
    shape,
    first,
    second,
):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = written(folder / "adapter", pair(seed, *shape))
        done = flatten(open_folder(source), folder / "once", scale=first)
        assert (done.amount, done.rank, done.scale) == (0, None, first)
        assert done.norm_error <= SCALE_ERROR
        assert done.stable_rank_after == pytest.approx(done.stable_rank_before, rel=1e-6)
        assert_multiplied(source, folder / "once", first, SCALE_ERROR)
        flatten(open_folder(folder / "once"), folder / "twice", scale=second)
        assert_multiplied(source, folder / "twice", first * second, SCALE_ERROR)
        flatten(open_folder(source), folder / "moved", 0.5, scale=first)
        flatten(open_folder(source), folder / "kept", 0.5)
        assert_multiplied(folder / "kept", folder / "moved", first, SCALE_ERROR)


@given(scale=scales, amount=st.floats(0, 1), rank=st.none() | st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_the_norm_of_a_flattened_or_cut_update_is_multiplied(scale, amount, rank):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = open_folder(written(folder / "adapter", pair(0, 4, 9, 7)))
        done = flatten(source, folder / "new", amount, "nuclear", rank, scale=scale)
        assert done.norm_error <= SCALE_ERROR
        (old,) = streamed_values(source.modules)
        (new,) = streamed_values(open_folder(folder / "new").modules)
        wanted = scale * flat_values(old.values, amount, "nuclear", rank)
        np.testing.assert_allclose(new.values, wanted, rtol=1e-5)
        assert new.values.sum() == pytest.approx(scale * old.values.sum(), rel=SCALE_ERROR)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_peft_loads_the_multiplied_update(config, tmp_path):
    adapted(**config).save_pretrained(str(tmp_path / "adapter"))
    done = command("flatten", tmp_path / "adapter", "--out", tmp_path / "new", "--scale", 0.3)
    assert done.code == 0, done.err
    assert "frobenius norm 0.3 times the original's, to " in done.out
    before, after = (
        PeftModel.from_pretrained(tiny_model(), str(tmp_path / name)) for name in ("adapter", "new")
    )
    count = 0
    for name, layer in before.named_modules():
        if hasattr(layer, "get_delta_weight"):
            old, new = (
                model.get_submodule(name).get_delta_weight("default").detach().double()
                for model in (before, after)
            )
            assert float((new - 0.3 * old).norm()) <= SCALE_ERROR * 0.3 * float(old.norm())
            count += 1
    assert count == 14
    card = (tmp_path / "new" / "README.md").read_text()
    assert "scaled after training" in card
    assert "multiplied by 0.3" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_powers_of_two_are_exact(dtype, tmp_path):
    adapted().save_pretrained(str(tmp_path / "adapter"))
    stored(tmp_path / "adapter", lambda name, tensor: (name, tensor.bfloat16()))
    done = command(
        "flatten",
        tmp_path / "adapter",
        "--out",
        tmp_path / "new",
        "--scale",
        0.5,
        "--dtype",
        dtype,
        "--json",
    )
    assert json.loads(done.out)["norm_error"] < 1e-12
    old, new = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "new")
    )
    for key, tensor in old.items():
        wanted = tensor / 2 if "lora_B" in key else tensor
        assert torch.equal(new[key], wanted.to(new[key].dtype))


def test_the_amount_is_stated_beside_the_scale(tmp_path):
    adapted().save_pretrained(str(tmp_path / "adapter"))
    results = {}
    for name, options in {
        "scaled": ["--scale", 0.5],
        "also scaled": ["--scale", 0.5, "--amount", 0],
        "flat": [],
        "flat and scaled": ["--scale", 0.5, "--amount", 1],
    }.items():
        done = command(
            "flatten", tmp_path / "adapter", "--out", tmp_path / name, *options, "--json"
        )
        results[name] = json.loads(done.out)
    stated = {name: (result["amount"], result["scale"]) for name, result in results.items()}
    assert stated == {
        "scaled": (0, 0.5),
        "also scaled": (0, 0.5),
        "flat": (1, 1),
        "flat and scaled": (1, 0.5),
    }
    ranks = {name: result["stable_rank_after"] for name, result in results.items()}
    before = results["flat"]["stable_rank_before"]
    assert ranks["scaled"] == pytest.approx(before, rel=1e-6)
    assert ranks["flat and scaled"] == pytest.approx(4, rel=1e-5)
    for name in ("adapter_model.safetensors", "README.md"):
        first, second = (
            (tmp_path / folder / name).read_bytes() for folder in ("scaled", "also scaled")
        )
        assert first == second
    assert (
        "0.5 times the Frobenius norm" in (tmp_path / "flat and scaled" / "README.md").read_text()
    )


@pytest.mark.parametrize("value", ["0", "-0.5", "inf", "nan"])
def test_scales_that_are_refused(value, tmp_path):
    adapted().save_pretrained(str(tmp_path / "adapter"))
    done = command("flatten", tmp_path / "adapter", "--out", tmp_path / "new", "--scale", value)
    assert done.code == 2
    assert f"the scale is {value}, but it must be a positive number" in done.sentence
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("value", "amount", "dtype"),
    [
        ("1e60", 0, "float32"),
        ("1e-60", 0, "float32"),
        ("1e9", 0, "float16"),
        ("1e100", 1, "float32"),  # either factor takes a share of √scale
        ("1e-100", 1, "float32"),
        ("1e300", 0, "bfloat16"),
    ],
)
def test_scales_beyond_the_number_type_are_refused(
    value,
    amount,
    dtype,
    tmp_path,
):
    source = written(tmp_path / "adapter", pair(0, 2, 5, 5))
    options = ["--scale", value, "--amount", amount, "--dtype", dtype]
    done = command("flatten", source, "--out", tmp_path / "new", *options)
    assert done.code == 2, done.out
    assert f"at scale {float(value):g} a factor of" in done.sentence
    assert f"beyond what {dtype} holds" in done.sentence
    assert not (tmp_path / "new").exists()


def test_more_than_plain_lora_is_not_scaled(tmp_path):
    adapted(use_dora=True).save_pretrained(str(tmp_path / "dora"))
    adapted().save_pretrained(str(tmp_path / "pissa"))
    settings_of(tmp_path / "pissa", init_lora_weights="pissa")
    for name in ("dora", "pissa"):
        done = command("flatten", tmp_path / name, "--out", tmp_path / "new", "--scale", 0.5)
        assert done.code == 2
        assert "is more than scale·B·A" in done.sentence
        assert not (tmp_path / "new").exists()


def test_a_zero_update_stays_zero(tmp_path):
    model = adapted()
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "lora_B" in name).zero_()
    model.save_pretrained(str(tmp_path / "adapter"))
    done = command("flatten", tmp_path / "adapter", "--out", tmp_path / "new", "--scale", 0.5)
    assert done.code == 0
    routes = [each.route for each in streamed_values(open_folder(tmp_path / "new").modules)]
    assert routes.count("zero") == 1
