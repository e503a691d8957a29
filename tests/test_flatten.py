"""Flattening after training: the law of the spectrum, the kept norm, and that PEFT loads it."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file

from evilspectra.adapters.flatten import flat_values, narrowed
from evilspectra.model.tiny import tiny_model
from evilspectra.spectra.peft_files import open_folder
from evilspectra.spectra.values_numpy import streamed_values
from tests.support.commands import command
from tests.support.saved_adapters import adapted, stored

#: What a kept norm may change by, read back from the files.
NORM_ERROR = 1e-6

spectra = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(
    lambda values: np.sort(values)[::-1]
)
norms = {"frobenius": np.linalg.norm, "nuclear": np.sum}


@given(
    values=spectra,
    amount=st.floats(0, 1),
    keep=st.sampled_from(list(norms)),
    rank=st.none() | st.integers(1, 12),
)
def test_the_law_of_the_spectrum(
    values,
    amount,
    keep,
    rank,
):
    flattened = flat_values(values, amount, keep, rank)
    leading = values[: rank or len(values)]
    assert len(flattened) == len(leading)
    assert norms[keep](flattened) == pytest.approx(norms[keep](values), rel=1e-12)
    assert (np.diff(flattened) <= 1e-12 * flattened[0]).all()  # the order stays
    wanted = (1 - amount) * leading + amount * leading.mean()
    np.testing.assert_allclose(flattened / flattened[0], wanted / wanted[0], rtol=1e-12)


def test_the_ends_of_the_scale():
    values = np.array([5.0, 3.0, 1.0])
    np.testing.assert_allclose(flat_values(values, 0.0, "frobenius"), values)
    np.testing.assert_allclose(flat_values(values, 1.0, "nuclear"), [3.0, 3.0, 3.0])
    assert len(flat_values(np.zeros(3), 1.0, "nuclear")) == 0
    np.testing.assert_allclose(
        flat_values(np.array([2.0, 1e-17]), 1.0, "frobenius"), [2.0]
    )  # a direction that is rounding is not made one


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
@settings(max_examples=50)
def test_rounding_is_that_of_torch(values):
    for kind, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        want = torch.tensor(values, dtype=torch.float32).to(dtype)
        with np.errstate(over="ignore"):
            got = narrowed(np.array(values, dtype=np.float64), kind)
        assert torch.equal(torch.from_numpy(got.view("<i2")), want.view(torch.int16))


CONFIGS = {
    "plain": ({}, 0.5, None),
    "rslora": ({"use_rslora": True}, 1.0, None),
    "patterns, cut": (
        {
            "rank_pattern": {"q_proj": 2, "v_proj": 6},
            "alpha_pattern": {"model.layers.0.mlp.up_proj": 5},
        },
        0.25,
        3,
    ),
    "rslora, cut": ({"use_rslora": True, "r": 8}, 0.0, 2),
    "a negative alpha": ({"lora_alpha": -8}, 0.5, None),
    "modules to save": ({"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, 1.0, None),
}


@pytest.mark.parametrize("keep", list(norms))
@pytest.mark.parametrize(("config", "amount", "rank"), CONFIGS.values(), ids=CONFIGS)
def test_what_is_written_keeps_the_norm_and_loads_in_peft(
    config,
    amount,
    rank,
    keep,
    tmp_path,
):
    adapted(**config).save_pretrained(str(tmp_path / "adapter"))
    done = command(
        "flatten",
        tmp_path / "adapter",
        "--out",
        tmp_path / "flat",
        "--amount",
        amount,
        "--keep",
        keep,
        *(["--rank", rank] if rank else []),
        "--json",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["norm_error"] <= NORM_ERROR
    before, after = (
        PeftModel.from_pretrained(tiny_model(), str(tmp_path / name))
        for name in ("adapter", "flat")
    )
    count = 0
    for name, layer in before.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        old, new = (
            torch.linalg.svd(
                model.get_submodule(name).get_delta_weight("default").detach().double()
            )
            for model in (before, after)
        )
        rank_before = int((1e-6 * old.S[0] < old.S).sum())
        remaining = min(rank or rank_before, rank_before)
        wanted = flat_values(old.S[:rank_before].numpy(), amount, keep, rank)
        np.testing.assert_allclose(new.S[:remaining].numpy(), wanted, rtol=1e-5)
        assert float(norms[keep](new.S[:remaining].numpy())) == pytest.approx(
            float(norms[keep](old.S[:rank_before].numpy())), rel=1e-5
        )  # PEFT multiplies in float32
        assert (
            float(new.S[remaining:].max()) <= 1e-6 * float(new.S[0])
            if len(new.S) > remaining
            else True
        )
        if amount < 1:  # the first direction is where it was
            assert abs(float(old.U[:, 0] @ new.U[:, 0])) == pytest.approx(1, abs=1e-4)
        count += 1
    assert count == (2 if "modules_to_save" in config else 14)
    if "modules_to_save" in config:
        files = [
            load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "flat")
        ]
        (key,) = (key for key in files[0] if "lm_head" in key)
        assert torch.equal(files[0][key], files[1][key])
    card = (tmp_path / "flat" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "nothing was trained" in card


def test_an_amount_of_zero_changes_nothing(tmp_path):
    adapted().save_pretrained(str(tmp_path / "adapter"))
    assert (
        command(
            "flatten",
            tmp_path / "adapter",
            "--out",
            tmp_path / "same",
            "--amount",
            0,
            "--dtype",
            "float64",
        ).code
        == 0
    )
    for before, after in zip(
        *(streamed_values(open_folder(tmp_path / name).modules) for name in ("adapter", "same")),
        strict=True,
    ):
        np.testing.assert_allclose(before.values, after.values, rtol=1e-12)
    tensors = [
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "same")
    ]
    for key in tensors[0]:
        if "lora_A" in key:
            a, b = (
                (tensor[key.replace("lora_A", "lora_B")].double() @ tensor[key].double())
                for tensor in tensors
            )
            assert float((a - b).norm() / a.norm()) < 1e-7


def test_rounding_that_costs_the_norm_is_said(tmp_path):
    adapted().save_pretrained(str(tmp_path / "adapter"))
    stored(tmp_path / "adapter", lambda name, tensor: (name, tensor.bfloat16()))
    done = command(
        "flatten", tmp_path / "adapter", "--out", tmp_path / "flat", "--dtype", "bfloat16"
    )
    assert done.code == 0
    assert "(the rounding of bfloat16; float32 keeps it to 1e-6)" in done.out
    assert {
        tensor.dtype
        for tensor in load_file(tmp_path / "flat" / "adapter_model.safetensors").values()
    } == {torch.bfloat16}
    again = command("flatten", tmp_path / "adapter", "--out", tmp_path / "flat2", "--json")
    assert json.loads(again.out)["norm_error"] <= NORM_ERROR


def test_an_untrained_module_stays_zero(tmp_path):
    model = adapted()
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "lora_B" in name).zero_()
    model.save_pretrained(str(tmp_path / "adapter"))
    done = command("flatten", tmp_path / "adapter", "--out", tmp_path / "flat", "--json")
    assert done.code == 0
    assert math.isfinite(json.loads(done.out)["stable_rank_after"])
    assert (
        sum(
            spectrum.route == "zero"
            for spectrum in streamed_values(open_folder(tmp_path / "flat").modules)
        )
        == 1
    )


def test_what_cannot_be_flattened_is_refused(tmp_path):
    adapted(use_dora=True).save_pretrained(str(tmp_path / "dora"))
    done = command("flatten", tmp_path / "dora", "--out", tmp_path / "flat")
    assert done.code == 2
    assert "is more than scale·B·A" in done.sentence
    assert not (tmp_path / "flat").exists()
    adapted().save_pretrained(str(tmp_path / "adapter"))
    assert (
        "already exists: name a new folder"
        in command("flatten", tmp_path / "adapter", "--out", tmp_path / "adapter").sentence
    )
    assert (
        command("flatten", tmp_path / "adapter", "--out", tmp_path / "x", "--amount", 2).code == 2
    )
