"""The X-ray of adapters against a dense SVD of what PEFT itself does: stored forms, ΔW, numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from evilspectra.model.tiny import tiny_model
from evilspectra.spectra.intruders import compare_with_base
from evilspectra.spectra.overlap import overlap
from evilspectra.spectra.peft_files import open_folder
from evilspectra.spectra.values import singular_values
from evilspectra.spectra.values_numpy import orthogonal, streamed_values
from tests.support.commands import command, write_model
from tests.support.lora_factors import cancelling_pair, graded_pair
from tests.support.saved_adapters import adapted, moved, settings_of, stored, written, xrays

ROOT = Path(__file__).parents[1]

#: What is accepted of a singular value, as a share of the largest: PEFT multiplies in float32.
OF_THE_LARGEST = 1e-5


def held_to_peft(modules: list[dict], model: PeftModel) -> None:
    """Every module's values against the dense SVD of PEFT's own delta weight."""
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight") and len(layer.lora_A)
    }
    assert {module["module"] for module in modules} == set(layers)
    for module in modules:
        with torch.no_grad():
            delta = layers[module["module"]].get_delta_weight("default").double()
        close(module, torch.linalg.svdvals(delta).numpy())
        assert module["shape"] == list(delta.shape)


def close(module: dict, dense: np.ndarray) -> None:
    values = np.array(module["singular_values"])
    assert np.abs(values - dense[: len(values)]).max() <= OF_THE_LARGEST * dense[0]
    assert dense[len(values) :].max(initial=0) <= OF_THE_LARGEST * dense[0]


# --- the stored forms of LoRA ---------------------------------------------------------------------

CONFIGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 3},
        "alpha_pattern": {"model.layers.0.mlp.up_proj": 5},
    },
    "rank above the width": {"r": 80},
    "modules to save": {"target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_config_agrees_with_peft(config, tmp_path):
    model = adapted(**config)
    model.save_pretrained(str(tmp_path))
    (output,) = xrays(tmp_path)
    held_to_peft(output["modules"], model)
    assert output["part"] == "delta"
    assert [row["name"].split(".")[-2] for row in output["skipped"]] == (
        ["lm_head"] if "modules_to_save" in config else []
    )


def sharded(folder: Path) -> None:
    """Two shards and their index, as transformers writes them."""
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    names = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    parts = [dict(list(tensors.items())[number::2]) for number in (0, 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part},
    }
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))


FORMS = {
    "bf16": lambda at: stored(at, lambda name, tensor: (name, tensor.bfloat16())),
    "fp16": lambda at: stored(at, lambda name, tensor: (name, tensor.half())),
    "fp64": lambda at: stored(at, lambda name, tensor: (name, tensor.double())),
    "sharded": sharded,
    "adapter's name in the keys": lambda at: stored(
        at, lambda name, tensor: (name.replace(".weight", ".default.weight"), tensor)
    ),
    "no prefix": lambda at: stored(
        at, lambda name, tensor: (name.removeprefix("base_model.model."), tensor)
    ),
    "compiled and sharded by FSDP": lambda at: stored(
        at,
        lambda name, tensor: (
            name.replace("layers.0.", "layers.0._fsdp_wrapped_module.").replace(
                "base_model.", "_orig_mod.base_model."
            ),
            tensor,
        ),
    ),
    "Unsloth's settings": lambda at: settings_of(
        at,
        auto_mapping={"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        target_modules=r"(?:.*?(?:language|text).*?(?:q_proj|v_proj))|(?:\bmodel\.layers\.)",
        loftq_config={},
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_stored_form_agrees_with_peft(form, tmp_path):
    adapted().save_pretrained(str(tmp_path))
    form(tmp_path)
    original = tmp_path / "original"
    original.mkdir()
    tensors = {
        name: tensor
        for file in tmp_path.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    plain = {
        "base_model.model."
        + name.split("base_model.model.")[-1]
        .replace(".default", "")
        .replace("_fsdp_wrapped_module.", ""): tensor
        for name, tensor in tensors.items()
    }
    save_file(plain, original / "adapter_model.safetensors", {"format": "pt"})
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (original / "adapter_config.json").write_text(
        json.dumps(
            settings
            | {
                "target_modules": [
                    "q_proj",
                    "k_proj",
                    "v_proj",
                    "o_proj",
                    "gate_proj",
                    "up_proj",
                    "down_proj",
                ],
                "auto_mapping": None,
            }
        )
    )
    held_to_peft(
        xrays(tmp_path)[0]["modules"], PeftModel.from_pretrained(tiny_model(), str(original))
    )


def test_what_trl_trains_and_saves_agrees_with_peft(tmp_path):
    from tests.support.tiny_trainers import sft

    trainer = sft(tmp_path / "out", steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    held_to_peft(xrays(tmp_path / "saved")[0]["modules"], trainer.model)


def test_what_is_no_linear_layer_is_skipped_by_name(tmp_path):
    model = adapted(target_modules=["q_proj", "embed_tokens"])
    model.save_pretrained(str(tmp_path), save_embedding_layers=True)
    (output,) = xrays(tmp_path)
    skipped = {row["name"]: row["reason"] for row in output["skipped"]}
    assert skipped["model.embed_tokens"] == "an adapted embedding, whose update is not measured"
    assert {module["module"].split(".")[-1] for module in output["modules"]} == {"q_proj"}
    text = command("spectrum", tmp_path).out
    assert "skipped: " in text
    assert "model.embed_tokens: an adapted embedding" in text


def test_a_file_on_its_own_has_no_scale(tmp_path):
    model = adapted()
    model.save_pretrained(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "weights.safetensors")
    (tmp_path / "adapter_config.json").unlink()
    (output,) = xrays(tmp_path / "weights.safetensors")
    assert output["adapter"] == "weights"
    assert output["part"] == "BA only"
    assert "the scale is unknown and taken as 1" in output["notes"][0]
    name = output["modules"][0]["module"]
    with torch.no_grad():
        delta = (
            model.get_submodule(f"base_model.model.{name}").get_delta_weight("default").double() / 2
        )
    close(output["modules"][0], torch.linalg.svdvals(delta).numpy())


@pytest.mark.model
def test_smollm2_agrees_with_peft(tmp_path):
    from evilspectra.config.loading import build
    from evilspectra.model import base as bases
    from evilspectra.model.load import load_base

    config = build({"model": {"base": "smollm2-135m-instruct"}}, "the test").model
    model, _ = load_base(bases.resolve(config), config)
    peft = adapted(
        model, r=16, lora_alpha=32, use_rslora=True, target_modules=r".*layers\.(0|29)\..*_proj"
    )
    peft.save_pretrained(str(tmp_path))
    stored(tmp_path, lambda name, tensor: (name, tensor.bfloat16()))
    peft.load_state_dict(
        {
            name.replace(".weight", ".default.weight"): tensor.float()
            for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()
        },
        strict=False,
    )
    (output,) = xrays(tmp_path)
    assert len(output["modules"]) == 14
    held_to_peft(output["modules"], peft)


# --- ΔW that is more than scale·B·A ---------------------------------------------------------------


def merged_minus_base(model: PeftModel, base: nn.Module, names: list[str]) -> dict[str, np.ndarray]:
    """Singular values of what PEFT merges, less the base, all of it in float64."""
    weights = {name: base.get_submodule(name).weight.detach().double() for name in names}
    merged = model.double().merge_and_unload()
    return {
        name: torch.linalg.svdvals(
            merged.get_submodule(name).weight.detach() - weights[name]
        ).numpy()
        for name in names
    }


def test_dora_is_ba_only_without_its_base_and_exact_with_it(tmp_path):
    model = adapted(use_dora=True)
    model.save_pretrained(str(tmp_path / "adapter"))
    base = write_model(tmp_path / "base")
    (without,), (with_base,) = (
        xrays(tmp_path / "adapter"),
        xrays(tmp_path / "adapter", "--base", base),
    )
    assert (without["part"], with_base["part"]) == ("BA only", "delta")
    assert "--base MODEL gives ΔW" in without["notes"][0]
    dense = merged_minus_base(
        model, tiny_model(), [module["module"] for module in with_base["modules"]]
    )
    for module in with_base["modules"]:
        close(module, dense[module["module"]])
        assert len(module["singular_values"]) == min(module["shape"])


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_pissa_is_ba_only_without_its_initial_factors_and_exact_with_them(kind, tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model(),
        LoraConfig(target_modules="all-linear", r=4, lora_alpha=8, init_lora_weights=kind),
    )
    model.save_pretrained(str(tmp_path / "before"))
    moved(model).save_pretrained(str(tmp_path / "after"))
    (without,), (with_initial,) = (
        xrays(tmp_path / "after"),
        xrays(tmp_path / "after", "--initial", tmp_path / "before"),
    )
    assert (without["part"], with_initial["part"]) == ("BA only", "delta")
    assert "BA only" in command("spectrum", tmp_path / "after").out
    dense = merged_minus_base(
        model, tiny_model(), [module["module"] for module in with_initial["modules"]]
    )
    for module in with_initial["modules"]:
        close(module, dense[module["module"]])


def test_what_is_ba_only_is_not_set_beside_the_base(tmp_path):
    """W + scale·B·A is not the weight that PiSSA trained; with the initial factors it is W + ΔW."""
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model(), LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights="pissa")
    )
    model.save_pretrained(str(tmp_path / "before"))
    moved(model).save_pretrained(str(tmp_path / "after"))
    base = write_model(tmp_path / "base")
    (without,), (with_initial,) = (
        xrays(tmp_path / "after", "--base", base),
        xrays(tmp_path / "after", "--base", base, "--initial", tmp_path / "before"),
    )
    assert not any("beside_base" in module for module in without["modules"])
    assert "is not compared with the base" in without["notes"][1]
    weight = (
        tiny_model()
        .get_submodule(with_initial["modules"][0]["module"])
        .weight.detach()
        .double()
        .norm()
    )
    assert with_initial["modules"][0]["beside_base"]["frobenius"] == pytest.approx(
        with_initial["modules"][0]["frobenius"] / float(weight)
    )


def test_adapters_of_different_bases_are_shown_and_not_compared(tmp_path):
    for name, width in (("one", 8), ("other", 9)):
        written(tmp_path / name, graded_pair(2, width, 7))
    done = command("spectrum", tmp_path / "one", tmp_path / "other")
    assert done.code == 0
    assert "no two of them change a module of the same name and shape" in done.out


def test_initial_factors_are_for_adapters_that_have_them(tmp_path):
    adapted().save_pretrained(str(tmp_path))
    done = command("spectrum", tmp_path, "--initial", tmp_path)
    assert done.code == 2
    assert "was not made by PiSSA, OLoRA, CorDA or LoRA-GA" in done.sentence
    assert (
        "--initial belongs to one adapter, and 2 are named"
        in command("spectrum", tmp_path, tmp_path, "--initial", tmp_path).sentence
    )


# --- the numbers ----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20)),
    a=st.sampled_from([1.0, 1e3, 1e8]),
    b=st.sampled_from([1.0, 1e3, 1e8]),
    scale=st.sampled_from([1.0, -3.0]),
    cancel=st.booleans(),
    seed=st.integers(0, 99),
)
def test_streamed_values_are_those_of_the_torch_route(
    shape,
    a,
    b,
    scale,
    cancel,
    seed,
    tmp_path_factory,
):
    pair = (
        cancelling_pair(min(shape), 21, 22, a, seed)
        if cancel
        else graded_pair(*shape, condition_a=a, condition_b=b, scale=scale, seed=seed)
    )
    (module,) = open_folder(written(tmp_path_factory.mktemp("pair"), pair)).modules
    (got,), (want,) = list(streamed_values([module])), singular_values([pair])
    assert got.route == want.route
    # Both are exact to ε·‖A‖·‖B‖, which is all that may differ.
    size = abs(pair.scale) * float(
        torch.linalg.matrix_norm(pair.A, 2) * torch.linalg.matrix_norm(pair.B, 2)
    )
    assert np.abs(got.values - want.values.numpy()).max() <= 1e-8 * want.values[0] + 1e-13 * size
    directions = orthogonal(module)
    product = (directions.left * directions.values) @ directions.right.T
    assert np.abs(product - pair.scale * (pair.B @ pair.A).detach().numpy()).max() <= 1e-13 * size


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e170])
def test_sizes_whose_squares_leave_float64(size, tmp_path):
    (module,) = open_folder(written(tmp_path, graded_pair(3, 9, 7, size=size))).modules
    (spectrum,) = streamed_values([module])
    assert spectrum.route == "qr"
    np.testing.assert_allclose(
        spectrum.values / size, singular_values([graded_pair(3, 9, 7)])[0].values.numpy(), rtol=1e-9
    )


def test_an_untrained_adapter_is_zero_and_has_no_measures(tmp_path):
    get_peft_model(tiny_model(), LoraConfig(target_modules="all-linear")).save_pretrained(
        str(tmp_path)
    )
    (output,) = xrays(tmp_path)
    assert {module["route"] for module in output["modules"]} == {"zero"}
    assert output["mean"]["stable_rank"] is None
    assert output["notes"] == ["14 of 14 updates are zero, and count in no mean"]


def test_principal_angles_are_those_of_the_dense_svd(tmp_path):
    pairs = [graded_pair(5, 30, 20, condition_a=4.0, condition_b=4.0, seed=seed) for seed in (0, 1)]
    first, second = (
        open_folder(written(tmp_path / str(number), pair)).modules[0]
        for number, pair in enumerate(pairs)
    )
    angles = overlap(first, second, 3)
    assert angles is not None
    dense = [np.linalg.svd((pair.B @ pair.A).detach().numpy()) for pair in pairs]
    left = np.linalg.svd(dense[0][0][:, :3].T @ dense[1][0][:, :3], compute_uv=False)
    right = np.linalg.svd(dense[0][2][:3] @ dense[1][2][:3].T, compute_uv=False)
    assert angles.output == pytest.approx(np.square(left).mean(), abs=1e-12)
    assert angles.input == pytest.approx(np.square(right).mean(), abs=1e-12)
    assert angles.input_angle == pytest.approx(math.degrees(math.acos(right[0])), abs=1e-9)
    deltas = [(pair.B @ pair.A).detach().flatten() for pair in pairs]
    assert angles.cosine == pytest.approx(float(torch.cosine_similarity(*deltas, dim=0)), abs=1e-12)
    itself = overlap(first, first, 3)
    assert itself is not None
    assert (itself.output, itself.cosine) == (pytest.approx(1), pytest.approx(1))


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    seed=st.integers(0, 99),
    size=st.sampled_from([0.0, 0.1, 10.0]),
)
def test_intruders_by_their_definition(shape, seed, size):
    generator = np.random.default_rng(seed)
    base, change = (
        generator.standard_normal(shape),
        size * np.outer(generator.standard_normal(shape[0]), generator.standard_normal(shape[1])),
    )
    comparison = compare_with_base("m", base, change, k=3, threshold=0.6)
    untuned, tuned = np.linalg.svd(base)[0], np.linalg.svd(base + change)[0]
    counted = 0
    for leading in range(comparison.k):
        best = max(abs(float(untuned[:, other] @ tuned[:, leading])) for other in range(min(shape)))
        assert comparison.similarities[leading] == pytest.approx(best, abs=1e-9)
        counted += best < 0.6
    assert comparison.intruders == counted
    assert comparison.frobenius == pytest.approx(np.linalg.norm(change) / np.linalg.norm(base))
    assert size > 0 or (comparison.intruders, comparison.spectral) == (0, 0)


def test_the_base_is_found_under_other_beginnings_and_refused_where_it_does_not_fit(tmp_path):
    adapted().save_pretrained(str(tmp_path / "adapter"))
    base = write_model(tmp_path / "base")
    (want,) = xrays(tmp_path / "adapter", "--base", base)
    assert want["modules"][0]["beside_base"]["k"] == 10
    weights = load_file(base / "model.safetensors")
    save_file(
        {f"language_{name}": tensor for name, tensor in weights.items()}, base / "model.safetensors"
    )
    (renamed,) = xrays(tmp_path / "adapter", "--base", base)
    assert renamed["modules"][0]["beside_base"] == want["modules"][0]["beside_base"]
    save_file(
        {name: tensor for name, tensor in weights.items() if "layers.1" not in name},
        base / "model.safetensors",
    )
    assert (
        "has no weight of model.layers.1"
        in command("spectrum", tmp_path / "adapter", "--base", base, "--quiet").sentence
    )
