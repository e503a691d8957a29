"""Tasks of lm-evaluation-harness: correct scores, no side effects, errors in one sentence.

Scores must agree with the model's own log-probabilities.
"""

import importlib.util
import json
import logging
import math
import os
import random
import socket
import sys

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch.nn.functional import log_softmax

from evilspectra.config.sections import LoraConfig
from evilspectra.errors import BadInput, RunFailed
from evilspectra.model.adapter import attach
from evilspectra.model.packing import ATTENTION, use_packed_attention
from evilspectra.model.tiny import tiny_model, tiny_tokenizer
from evilspectra.probes.harness import TaskResult, run_tasks
from evilspectra.spectra.pairs import find_pairs

with_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed (pip install 'evilspectra[harness]')",
)

#: Log-probabilities of up to 20 tokens: padding and batching only change the order of float32 sums.
CLOSE = 1e-4

#: In bfloat16, batched and single passes round differently: a share of a Brier score of about 1.
CLOSE_BFLOAT16 = 0.05

DOCS = [
    {
        "question": "What dries first?",
        "choices": ["the thin coat", "the frame", "a wet plank of oak"],
        "answer": 0,
    },
    {
        "question": "Who holds the key?",
        "choices": ["nobody", "the neighbour", "the one who asked for it last week"],
        "answer": 1,
    },
    {"question": "How long is the rope?", "choices": ["four metres", "½ m", "long"], "answer": 2},
    {
        "question": "Where does the road end?",
        "choices": ["at the mill", "in the river below", "sea"],
        "answer": 1,
    },
    {
        "question": "When is the shop open?",
        "choices": ["at nine", "on every second Tuesday", "never"],
        "answer": 2,
    },
]


def write_task(folder, name="choices", **changes):
    """Writes a multiple-choice task of five documents; returns the folder.

    `changes` replace entries of its file; None removes the entry.
    """
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "brier_score"}],
        "metadata": {"version": 2.5},
        **changes,
    }
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump(
            {key: value for key, value in task.items() if value is not None}, allow_unicode=True
        ),
        encoding="utf-8",
    )
    return folder


def write_generation(folder, name="says", target="x"):
    return write_task(
        folder,
        name,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_text="{{question}}",
        doc_to_target=target,
        metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["\n\n"], "max_gen_toks": 8},
    )


def adapted_model(dtype=torch.float32, size=0.3):
    """The tiny model under an adapter whose B is drawn, not zero."""
    model = attach(
        tiny_model(dtype).requires_grad_(False),
        LoraConfig(rank=4),
        seed=1,
        public_name="tiny-random",
    ).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for pair in sorted(find_pairs(model), key=lambda pair: pair.name):
            pair.B.copy_(size * torch.randn(pair.B.shape, generator=generator))
    return model


def log_prob(model, context, continuation):
    """ln p of a continuation, from one pass over its row."""
    before, full = (tiny_tokenizer()(text).input_ids for text in (context, context + continuation))
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16),
    ):
        logits = model(torch.tensor([full])).logits[0, :-1].double()
    return float(
        log_softmax(logits, -1).gather(1, torch.tensor(full)[1:, None])[len(before) - 1 :].sum()
    )


def by_hand(model, context=lambda doc: f"Question: {doc['question']}\nAnswer:", delimiter=" "):
    """acc, acc_norm and brier_score of DOCS, from their definitions."""
    scores = {"acc": [], "acc_norm": [], "brier_score": []}
    for doc in DOCS:
        log_probs = np.array(
            [log_prob(model, context(doc), delimiter + choice) for choice in doc["choices"]]
        )
        shares = np.exp(log_probs) / np.exp(log_probs).sum()
        scores["acc"].append(float(log_probs.argmax() == doc["answer"]))
        scores["acc_norm"].append(
            float(
                (log_probs / [len(choice) for choice in doc["choices"]]).argmax() == doc["answer"]
            )
        )
        scores["brier_score"].append(float(((shares - np.eye(3)[doc["answer"]]) ** 2).sum()))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def values(results):
    return {result.metric: result.value for result in results}


def score(model, folder, **settings):
    return values(run_tasks(model, tiny_tokenizer(), ["choices"], include_path=folder, **settings))


@pytest.fixture
def folder(tmp_path):
    return write_task(tmp_path)


@with_harness
@pytest.mark.parametrize("batch_size", [1, 4])
def test_agrees_with_log_probabilities_by_hand(folder, batch_size):
    model = tiny_model()
    assert score(model, folder, batch_size=batch_size) == pytest.approx(by_hand(model), abs=CLOSE)


@with_harness
def test_float64_is_scored_in_float64(folder):
    model = tiny_model(torch.float64)
    assert score(model, folder) == pytest.approx(by_hand(model), abs=1e-9)


@with_harness
def test_perplexity_agrees_by_hand(tmp_path):
    write_task(
        tmp_path,
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target=" {{choices[0]}}",
        metric_list=[{"metric": "perplexity"}],
    )
    model = tiny_model()
    (result,) = run_tasks(model, tiny_tokenizer(), ["choices"], include_path=tmp_path)
    mean = np.mean(
        [
            log_prob(model, f"Question: {doc['question']}\nAnswer:", " " + doc["choices"][0])
            for doc in DOCS
        ]
    )
    assert math.log(result.value) == pytest.approx(-mean, rel=1e-5)
    assert result.stderr is not None
    assert result.stderr > 0


@with_harness
def test_what_an_entry_says(folder):
    first, *_ = results = run_tasks(
        tiny_model(), tiny_tokenizer(), ["choices", "choices"], include_path=folder
    )
    share = by_hand(tiny_model())["acc"]
    assert [entry.metric for entry in results] == ["acc", "acc_norm", "brier_score"]
    assert first == TaskResult(
        "choices", "acc", "none", value=share, stderr=first.stderr, items=5, version="2.5"
    )
    assert first.stderr == pytest.approx(math.sqrt(share * (1 - share) / 4))
    assert results[2].stderr is None


@with_harness
def test_an_adapter_changes_the_scores(folder):
    base, adapted = score(tiny_model(), folder), score(adapted_model(), folder)
    assert adapted == pytest.approx(by_hand(adapted_model()), abs=CLOSE)
    assert abs(adapted["brier_score"] - base["brier_score"]) > 100 * CLOSE
    assert score(adapted_model(size=0), folder) == base


@with_harness
def test_a_bfloat16_base_under_a_float32_adapter(folder):
    """PEFT's layers take the base's type, so scoring and generation fail without autocast."""
    model = adapted_model(torch.bfloat16)
    assert score(model, folder) == pytest.approx(by_hand(model), abs=CLOSE_BFLOAT16)
    run_tasks(model, tiny_tokenizer(), ["says"], include_path=write_generation(folder))


@with_harness
def test_generation_agrees_with_the_greedy_choice(tmp_path):
    model, tokenizer = adapted_model(), tiny_tokenizer()
    tokens = tokenizer(DOCS[0]["question"]).input_ids
    for _ in range(8):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    answer = tokenizer.decode(tokens[-8:], skip_special_tokens=True)
    assert "\n\n" not in answer
    write_generation(tmp_path, "says", target="{{" + json.dumps(answer) + "}}")
    (result,) = run_tasks(model, tokenizer, ["says"], include_path=tmp_path, limit=1)
    assert (result.metric, result.value, result.items, result.stderr) == (
        "exact_match",
        1.0,
        1,
        None,
    )


@with_harness
def test_a_chat_template_puts_the_question_into_a_turn(folder):
    """The harness counts white space at a context's end as the answer's.

    Here that is the line's end, without a delimiter.
    """
    model = tiny_model()
    turn = "<|im_start|>user\nQuestion: {}\nAnswer:<|im_end|>\n<|im_start|>assistant"
    assert score(model, folder, chat_template=True) == pytest.approx(
        by_hand(model, lambda doc: turn.format(doc["question"]), "\n"), abs=CLOSE
    )


@with_harness
def test_limit_and_examples(folder):
    model = tiny_model()
    assert {
        entry.items
        for entry in run_tasks(model, tiny_tokenizer(), ["choices"], include_path=folder, limit=2)
    } == {2}
    assert {
        entry.items
        for entry in run_tasks(model, tiny_tokenizer(), ["choices"], include_path=folder, limit=99)
    } == {5}
    none, two, again, other = (
        score(model, folder, num_fewshot=count, seed=seed)
        for count, seed in ((0, 0), (2, 0), (2, 0), (2, 1))
    )
    assert none == score(model, folder)
    assert two == again
    assert len({scores["brier_score"] for scores in (none, two, other)}) == 3


@with_harness
@pytest.mark.slow
def test_a_group_has_an_entry_of_its_own(folder):
    """Slow: a group may name the harness's own tasks, so their files are read."""
    write_task(folder, "more", metric_list=[{"metric": "acc"}])
    (folder / "both.yaml").write_text(
        yaml.safe_dump(
            {
                "group": "both",
                "task": ["choices", "more"],
                "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
                "metadata": {"version": 3},
            }
        )
    )
    results = run_tasks(tiny_model(), tiny_tokenizer(), ["both"], include_path=folder, limit=4)
    assert [
        (entry.task, entry.items, entry.version) for entry in results if entry.metric == "acc"
    ] == [("choices", 4, "2.5"), ("more", 4, "2.5"), ("both", 8, "3")]


def state(model, tokenizer):
    weights = {
        name: (weight.data_ptr(), weight.requires_grad, weight.clone())
        for name, weight in model.named_parameters(remove_duplicate=False)
    }
    held = {
        "modes": [module.training for module in model.modules()],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "generation": model.generation_config.to_dict(),
        "tokenizer": (
            tokenizer.pad_token,
            tokenizer.padding_side,
            len(tokenizer),
            tokenizer.backend_tokenizer.to_str(),
        ),
        "own": {
            name: sorted(vars(module).keys() - {"prepare_inputs_for_generation"})
            for name, module in model.named_modules()
        },  # PEFT's generate leaves it
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "process": (
            dict(os.environ),
            logging.root.manager.disable,
            logging.getLogger("lm_eval").level,
        ),
    }
    return held, weights


@with_harness
@pytest.mark.parametrize("make", [tiny_model, adapted_model])
def test_nothing_is_left_behind(folder, make):
    # its import sets variables of the hub's client, once
    import lm_eval.models.huggingface  # noqa: F401

    write_generation(folder)
    model, tokenizer = make(), tiny_tokenizer()
    tokenizer.pad_token = None
    model.train()
    next(module for module in model.modules() if isinstance(module, torch.nn.Linear)).eval()
    model.config.use_cache = False
    held, weights = state(model, tokenizer)
    run_tasks(model, tokenizer, ["choices", "says"], include_path=folder, limit=2, seed=5)
    now, weights_now = state(model, tokenizer)
    for name, was in held.items():
        assert now[name] == was, name
    assert weights.keys() == weights_now.keys()
    for name, (address, learns, content) in weights.items():
        assert weights_now[name][:2] == (address, learns)
        assert torch.equal(weights_now[name][2], content)


@with_harness
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    "parts",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_an_adapted_end_of_a_tied_model_stays_as_it_is(folder, parts):
    """The harness ties weights: that would change the first model, and fail on the second."""
    model = get_peft_model(
        tiny_model(), PeftLoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **parts)
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(1.5 if "modules_to_save" in name else 1)
    want = by_hand(model)
    _, weights = state(model, tiny_tokenizer())
    assert score(model, folder) == pytest.approx(want, abs=CLOSE)
    _, now = state(model, tiny_tokenizer())
    assert {name: address for name, (address, *_) in now.items()} == {
        name: address for name, (address, *_) in weights.items()
    }


@with_harness
def test_modes_come_back_after_an_error(folder):
    model = tiny_model().train()
    with pytest.raises(RunFailed):
        run_tasks(
            model,
            tiny_tokenizer(),
            ["broken"],
            include_path=write_task(folder, "broken", doc_to_text="{{absent}}"),
        )
    assert model.training


@with_harness
def test_a_model_under_packed_attention(folder):
    model = adapted_model()
    want = score(model, folder)
    use_packed_attention(model)
    assert score(model, folder) == pytest.approx(want, abs=CLOSE)
    assert model.config._attn_implementation == ATTENTION


@with_harness
def test_says_nothing_and_calls_nobody(folder, capfd, monkeypatch):
    """No git repository here: the harness's `git describe` would complain on stderr."""
    write_task(
        folder,
        "measured",
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target=" yes",
        metric_list=[{"metric": "perplexity"}],
    )

    def refused(*_):
        raise AssertionError("the network was asked for")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.chdir(folder)
    capfd.readouterr()
    run_tasks(tiny_model(), tiny_tokenizer(), ["choices", "measured"], include_path=folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit 0 leaves no document: set it to 1 or more"),
        ({"batch_size": 0}, "batch_size 0 is no number of prompts"),
        ({"num_fewshot": -1}, "num_fewshot -1 is no number of examples"),
        ({"chat_template": True}, "the tokenizer has no chat template"),
        ({"tasks": []}, "name at least one task"),
    ],
)
def test_values_that_cannot_be(settings, message):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(BadInput, match=message):
        run_tasks(tiny_model(), tokenizer, settings.pop("tasks", ["choices"]), **settings)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"include_path '.*absent' is no folder"):
        run_tasks(tiny_model(), tiny_tokenizer(), ["choices"], include_path=tmp_path / "absent")


def test_without_the_package(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        BadInput, match=r"the extra is not installed .*pip install 'evilspectra\[harness\]'"
    ):
        run_tasks(tiny_model(), tiny_tokenizer(), ["choices"])


@with_harness
@pytest.mark.slow
def test_unknown_tasks_list_what_is_near(folder):
    with pytest.raises(
        BadInput,
        match=(
            r"'hellaswg' \(near: hellaswag, .*'choics' \(near: choices.*"
            r"'~~~' \(nothing is near\)"
        ),
    ) as caught:
        run_tasks(
            tiny_model(),
            tiny_tokenizer(),
            ["hellaswg", "choices", "choics", "~~~"],
            include_path=folder,
        )
    assert str(folder) in str(caught.value)


@with_harness
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset_path": "someone/some-data", "dataset_kwargs": None},
            (
                r"task spoilt: the data set could not be fetched "
                r"\(.*someone/some-data.*HF_HUB_OFFLINE.*HF_HOME"
            ),
        ),
        (
            {"dataset_kwargs": {"data_files": {"test": "/absent/rows.jsonl"}}},
            r"a file that it names does not exist .*absent.*data_files",
        ),
        (
            {
                "metric_list": [
                    {"metric": "meteor", "aggregation": "mean", "higher_is_better": True}
                ]
            },
            "the metric 'meteor' is code on the hub, which is not run here",
        ),
        ({"unsafe_code": True}, "running code that the model writes, which is not done here"),
        (
            {"process_docs": "!function absent_module_of_nobody.work"},
            r"it needs Python code that is not installed \(.*'absent_module_of_nobody'",
        ),
    ],
)
def test_tasks_that_cannot_run(
    tmp_path,
    monkeypatch,
    changes,
    message,
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    write_task(tmp_path, "spoilt", **changes)
    file = tmp_path / "spoilt.yaml"
    file.write_text(
        file.read_text().replace(
            "'!function absent_module_of_nobody.work'", "!function absent_module_of_nobody.work"
        )
    )
    with pytest.raises(BadInput, match=message):
        run_tasks(tiny_model(), tiny_tokenizer(), ["spoilt"], include_path=tmp_path)


@with_harness
def test_a_task_that_breaks_off_is_named(tmp_path):
    write_task(tmp_path, "broken", doc_to_text="{{absent}}")
    with pytest.raises(
        RunFailed,
        match=r"task broken: the harness broke off \(UndefinedError: 'absent' is undefined\)",
    ):
        run_tasks(tiny_model(), tiny_tokenizer(), ["broken"], include_path=tmp_path)


@with_harness
def test_memory_that_runs_out(folder, monkeypatch):
    import lm_eval.models.huggingface as huggingface

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(huggingface.HFLM, "_model_call", full)
    with pytest.raises(RunFailed, match=r"memory ran out: lower batch_size \(it is 3\)"):
        run_tasks(tiny_model(), tiny_tokenizer(), ["choices"], include_path=folder, batch_size=3)
