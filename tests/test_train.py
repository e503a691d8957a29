"""Training: exact accumulation, plain PEFT adapters, different optimisers, complete records."""

import json
import math

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from evilspectra.config import loading as configs
from evilspectra.config import sections
from evilspectra.data.batches import checkpoint_steps
from evilspectra.errors import BadInput, RunFailed
from evilspectra.evaluation.summary import summarise
from evilspectra.model.adapter import attach
from evilspectra.model.packing import loss_sum
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from evilspectra.spectra.pairs import find_pairs
from evilspectra.store.run import Store
from evilspectra.training.loop import TrainingRun
from evilspectra.training.train import train
from tests.support.tiny_runs import factors, run_tiny, tiny_config

#: Relative norm of the difference per factor after 30 steps: sums in another order, amplified by
#: training.
ACCUMULATION = {"float32": 1e-4, "float64": 1e-9}

SETTINGS = {
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-3}},
    "sgd-unclipped": {"optimizer": {"name": "sgd", "lr": 0.1}, "train": {"clip_norm": None}},
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ACCUMULATION)
@pytest.mark.parametrize("setting", SETTINGS)
def test_accumulation_equals_one_big_batch(tmp_path, dtype, setting):
    sections = configs.merge(
        SETTINGS[setting], {"model": {"dtype": dtype}, "flatness": {"weight": 1.0}}
    )
    full = factors(run_tiny(tmp_path, **sections))
    split = factors(run_tiny(tmp_path, **configs.merge(sections, {"train": {"accumulation": 8}})))
    assert full.keys() == split.keys()
    # the two were computed in different ways
    assert any(not torch.equal(full[name], split[name]) for name in full)
    for name in full:
        distance = float((full[name] - split[name]).norm() / full[name].norm())
        assert distance < ACCUMULATION[dtype], name


def test_packed_equals_one_pass_per_row(tmp_path):
    sections = {"model": {"dtype": "float64"}, "train": {"steps": 10}}
    packed, separate = (
        factors(run_tiny(tmp_path, **configs.merge(sections, {"train": {"packed": packed}})))
        for packed in (True, False)
    )
    for name in packed:
        torch.testing.assert_close(packed[name], separate[name], rtol=1e-8, atol=1e-12)


def test_one_step_by_hand(tmp_path):
    """The first two steps written out: data gradient, clipping, the penalty, then SGD.

    The data gradient is that of plain transformers.
    """
    sections = {
        "model": {"dtype": "float64"},
        "optimizer": {"name": "sgd", "lr": 0.5},
        "schedule": {"name": "constant", "warmup_steps": 0},
        "flatness": {"weight": 0.3, "soft_start": 0.0},
        "train": {"steps": 2, "clip_norm": 0.05},
    }
    config = tiny_config(tmp_path, **sections)
    got = factors(train(config))

    from evilspectra.data.batches import Batches, prepare
    from evilspectra.model.base import resolve
    from evilspectra.model.load import context_length, load_base
    from tests.reference.spectra import flatness_by_autograd

    model, tokenizer = load_base(resolve(config.model), config.model)
    data = prepare(config.data, tokenizer, context_length(model))
    adapted = attach(model, config.lora, seed=0, public_name="tiny-random")
    pairs = find_pairs(adapted)
    batches = Batches(len(data.train), 8, seed=0, steps=2)
    for step in range(2):
        rows = [data.train[index] for index in batches.rows_of(step)]
        count = sum(int(row.supervised.sum()) for row in rows)
        adapted.zero_grad()
        for row in rows:
            tokens = torch.tensor(row.tokens[None].astype("int64"))
            predictors = torch.tensor(row.supervised).nonzero().flatten() - 1
            log_probability = adapted(input_ids=tokens).logits[0, predictors].log_softmax(-1)
            (-log_probability.gather(1, tokens[0, predictors + 1, None]).sum() / count).backward()
        gradients = [parameter.grad for pair in pairs for parameter in (pair.A, pair.B)]
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
        assert norm > 0.05
        for gradient in gradients:
            gradient *= 0.05 / norm
        for pair in pairs:
            if pair.B.detach().any():
                _, grad_a, grad_b = flatness_by_autograd(pair.A, pair.B)
                pair.A.grad += 0.3 / len(pairs) * grad_a
                pair.B.grad += 0.3 / len(pairs) * grad_b
        with torch.no_grad():
            for gradient, parameter in zip(
                gradients,
                (parameter for pair in pairs for parameter in (pair.A, pair.B)),
                strict=True,
            ):
                parameter -= 0.5 * gradient
    for pair in pairs:
        torch.testing.assert_close(
            got[f"base_model.model.{pair.name}.lora_A.weight"],
            pair.A.detach(),
            rtol=1e-8,
            atol=1e-11,
        )
        torch.testing.assert_close(
            got[f"base_model.model.{pair.name}.lora_B.weight"],
            pair.B.detach(),
            rtol=1e-8,
            atol=1e-11,
        )


def test_adapter_loads_in_plain_peft_with_the_same_logits(tmp_path):
    """The logits of the trained model, and those of the base plus scale·B·A added by hand."""
    run = run_tiny(tmp_path, train={"steps": 8})
    loaded = PeftModel.from_pretrained(tiny_model(), str(run.adapter)).eval()
    tokens = torch.tensor([tiny_tokenizer()("Is it time?").input_ids])
    merged = tiny_model()
    saved = factors(run)
    for name, weight in merged.state_dict().items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in saved:
            weight += 32 / 4**0.5 * saved[f"{stem}.lora_B.weight"] @ saved[f"{stem}.lora_A.weight"]
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tokens).logits, merged(tokens).logits, rtol=1e-4, atol=1e-4
        )
        assert float((loaded(tokens).logits - tiny_model()(tokens).logits).abs().max()) > 1e-2
    settings = json.loads((run.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny-random"
    assert settings["use_rslora"] is True


def test_a_local_folder_keeps_the_users_own_path(tmp_path):
    folder = tmp_path / "my-model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    run = run_tiny(tmp_path, model={"base": str(folder)}, train={"steps": 2})
    assert json.loads((run.adapter / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(folder)
    twin = run_tiny(tmp_path, train={"steps": 2})
    assert twin.name != run.name  # another base by content
    assert all(
        torch.equal(a, b)
        for a, b in zip(factors(run).values(), factors(twin).values(), strict=True)
    )


def test_initialisation_is_seeded_and_leaves_b_zero(tmp_path):
    def start(seed: int) -> dict[str, torch.Tensor]:
        run = run_tiny(
            tmp_path,
            schedule={"warmup_steps": 3},
            train={"steps": 2, "checkpoints": [1], "seed": seed},
        )
        # the first warm-up step has lr 0
        return load_file(run.checkpoint(1) / "adapter_model.safetensors")

    first, other = start(0), start(1)
    for name, value in first.items():
        if ".lora_B." in name:
            assert not value.any()
        else:
            assert not torch.equal(value, other[name])
            assert float(value.abs().max()) <= value.shape[1] ** -0.5
            assert float(value.std()) == pytest.approx((3 * value.shape[1]) ** -0.5, rel=0.25)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lion", "muon"])
def test_every_optimiser_learns_and_records(tmp_path, name):
    lr = {"sgd": 1.0, "lion": 3e-4, "muon": 3e-3}.get(name, 3e-3)
    run = run_tiny(tmp_path, optimizer={"name": name, "lr": lr}, train={"checkpoints": "log:3"})
    summary = summarise(run)
    assert summary.status == "done"
    assert summary.heldout_loss < summary.heldout_loss_start - 0.1
    assert summary.heldout_loss_start == pytest.approx(run.read("heldout")["loss"].iloc[0])
    assert 1 <= summary.stable_rank <= 4
    steps, spectra = run.read("steps"), run.read("spectra")
    assert steps["step"].tolist() == list(range(1, 31))
    assert steps["flatness"].isna().all()
    assert sorted(run.checkpoints()) == [1, 5, 30]
    assert sorted(spectra["step"].unique()) == [1, 5, 10, 20, 30]
    assert len(spectra) == 5 * 14 * 4
    last = spectra[(spectra["step"] == 30) & (spectra["module"] == "model.layers.1.mlp.up_proj")][
        "singular_value"
    ].to_numpy()
    saved, stem = factors(run), "base_model.model.model.layers.1.mlp.up_proj"
    want = torch.linalg.svdvals(
        32
        / 4**0.5
        * saved[f"{stem}.lora_B.weight"].double()
        @ saved[f"{stem}.lora_A.weight"].double()
    )[:4]
    assert last == pytest.approx(want.numpy(), rel=1e-6)


def test_the_penalty_flattens(tmp_path):
    without, with_it = (
        summarise(run_tiny(tmp_path, flatness={"weight": weight})) for weight in (0.0, 0.3)
    )
    assert with_it.stable_rank > 1.2 * without.stable_rank
    assert with_it.frobenius_nuclear < without.frobenius_nuclear
    assert without.train_loss == pytest.approx(with_it.train_loss, abs=0.5)


def test_clipping_of_data_and_of_the_total_differ(tmp_path):
    sections = {
        "optimizer": {"name": "sgd", "lr": 0.5},
        "flatness": {"weight": 100.0},
        "train": {"steps": 5, "clip_norm": 0.1},
    }
    data, total = (
        factors(run_tiny(tmp_path, **configs.merge(sections, {"train": {"clip": clip}})))
        for clip in ("data", "total")
    )
    assert any(not torch.allclose(data[name], total[name], atol=1e-4) for name in data)


def test_bfloat16_base_with_float32_adapter(tmp_path):
    run = run_tiny(
        tmp_path,
        model={"dtype": "bfloat16"},
        train={"steps": 5},
        optimizer={"name": "adamw", "lr": 1e-2},
        schedule={"warmup_steps": 1},
    )
    assert {value.dtype for value in factors(run).values()} == {torch.float32}
    losses = run.read("steps")["loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert run.provenance()["dtype"] == "torch.bfloat16"


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain, spared = (
        factors(run_tiny(tmp_path, model={"gradient_checkpointing": on}, train={"steps": 5}))
        for on in (False, True)
    )
    assert all(torch.equal(plain[name], spared[name]) for name in plain)


def test_dropout_is_seeded(tmp_path):
    first = factors(run_tiny(tmp_path, lora={"dropout": 0.2}, train={"steps": 4}))
    torch.rand(7)
    second = factors(
        run_tiny(
            tmp_path, lora={"dropout": 0.2}, train={"steps": 4}, output={"experiment": "again"}
        )
    )
    other = factors(run_tiny(tmp_path, lora={"dropout": 0.0}, train={"steps": 4}))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_non_finite_loss_ends_the_run_as_failed(tmp_path, monkeypatch):
    sizes = []

    def diverging(logits, labels):
        sizes.append(len(labels))
        return loss_sum(logits, labels) * (math.nan if len(sizes) > 4 else 1.0)

    monkeypatch.setattr("evilspectra.training.loop.loss_sum", diverging)
    with pytest.raises(
        RunFailed,
        match=r"step 4: loss nan, gradient norm nan are not finite; lower optimizer.lr \(0\.0002\)",
    ):
        run_tiny(tmp_path)
    (folder,) = (tmp_path / "runs" / "test").iterdir()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "not finite" in status["reason"]


def test_an_adapter_that_does_not_move_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(RunFailed, match="after 2 steps no B has moved from zero"):
        run_tiny(tmp_path)


def test_a_done_run_is_not_trained_again(tmp_path):
    run = run_tiny(tmp_path, train={"steps": 2})
    before = (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_tiny(tmp_path, train={"steps": 2}) == run
    assert (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"lora": {"rank": 33}},
            (
                r"lora\.rank 33 is larger than model\.layers\.0\.self_attn\.k_proj \(32 × 64\): "
                r"set lora\.rank to 32 or less"
            ),
        ),
        (
            {"lora": {"targets": ["q_prj"]}},
            (
                r"lora\.targets 'q_prj' matches no linear layer of LlamaForCausalLM; there are: "
                r"down_proj, .*v_proj, or all-linear\. Did you mean 'q_proj'\?"
            ),
        ),
        ({"model": {"device": "cuda:7"}}, r"model\.device 'cuda:7' is not on this machine"),
        ({"train": {"batch_size": 64}}, r"train\.batch_size 64 is more than the 36 rows"),
    ],
)
def test_bad_settings_leave_nothing_behind(tmp_path, sections, message):
    with pytest.raises(BadInput, match=message):
        run_tiny(tmp_path, **sections)
    assert not list((tmp_path / "runs").rglob("*.yaml"))
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_a_base_without_linear_layers_is_refused():
    settings = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32
    )
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with pytest.raises(
        BadInput,
        match=(
            r"GPT2LMHeadModel has no linear layers \(torch\.nn\.Linear\) to adapt: name another "
            r"base"
        ),
    ):
        attach(model, sections.LoraConfig(), seed=0, public_name="gpt2")


def test_a_vision_tower_is_left_alone():
    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
    assert any(
        "vision" in name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    pairs = find_pairs(attach(model, sections.LoraConfig(rank=2), seed=0, public_name="gemma3"))
    assert len(pairs) == 14
    assert not any("vision" in pair.name for pair in pairs)


def test_going_on_in_another_number_type_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("evilspectra.model.load.pick_dtype", lambda config, device: torch.float64)
    monkeypatch.setattr(
        TrainingRun, "advance", lambda training: (_ for _ in ()).throw(RunFailed("stopped"))
    )
    with pytest.raises(RunFailed):
        run_tiny(tmp_path)
    monkeypatch.undo()
    with pytest.raises(
        BadInput,
        match=(
            r"was begun in torch\.float64 on cpu, and this would go on in torch\.float32 on cpu: "
            r"set model\.device and model\.dtype"
        ),
    ):
        run_tiny(tmp_path)


def test_records_of_a_failed_run_are_kept(tmp_path, monkeypatch):
    advance = TrainingRun.advance

    def fails(training):
        if training.step == 4:
            raise RunFailed("stopped")
        return advance(training)

    monkeypatch.setattr(TrainingRun, "advance", fails)
    with pytest.raises(RunFailed):
        run_tiny(tmp_path)
    (run,) = Store(tmp_path / "runs").runs()
    assert run.read("steps")["step"].tolist() == [1, 2, 3, 4]
    assert (run.status().state, run.status().step) == ("failed", 4)
    monkeypatch.undo()
    assert run_tiny(tmp_path).read("steps")["step"].tolist() == list(range(1, 31))


def test_checkpoint_steps():
    assert checkpoint_steps((0, 3, 9, 40), 10) == {0, 3, 9}
    assert checkpoint_steps("log:3", 100) == {1, 10, 100}
    assert checkpoint_steps("log:50", 5) == {1, 2, 3, 4, 5}
