"""Answers per second against `model.generate` for one question at a time, and the probe's time.

    python benchmarks/evaluation.py --tokens 64 --rounds 2

All is measured in one process. Both sides answer the package's own questions at temperature 1 with
the embedded model, under the same random adapter, with the same limit of tokens; the ratio is of
tokens per second. The probe reads all built-in triples, with and without sharing the pass over a
prompt.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from evilspectra.answers.questions import read_questions
from evilspectra.answers.sample import Prompt, batches, prompts, sample, stop_tokens
from evilspectra.config.evaluation import Answers
from evilspectra.config.loading import build
from evilspectra.model.adapter import attach
from evilspectra.model.base import resolve
from evilspectra.model.device import set_up_process
from evilspectra.model.load import context_length, load_base
from evilspectra.probes.likelihood import packed_attention_on, token_log_probs
from evilspectra.probes.probe import contrast


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    options = parser.parse_args()
    set_up_process(options.threads)
    config = build({"model": {"base": options.base}})
    base, tokenizer = load_base(resolve(config.model), config.model)
    model = attach(base, config.lora, seed=0, public_name="base")
    with torch.no_grad():  # B away from zero, so that no side can leave the adapter out
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 1e-3, generator=torch.Generator(weight.device).manual_seed(0))
    model.eval()
    settings = Answers(max_new_tokens=options.tokens, batch_size=64)
    planned = prompts(
        read_questions("open").questions, None, tokenizer, context_length(base), False
    )
    stops = stop_tokens(base, tokenizer, False)

    def in_batches() -> list[int]:
        return [
            len(answer.tokens)
            for part in batches(planned, settings.batch_size)
            for answer in sample(model, part, settings, stops, context_length(base))
        ]

    def separately() -> list[int]:
        return [_generate(model, prompt, options.tokens, stops) for prompt in planned]

    together, alone = [], []
    for _ in range(options.rounds):
        together.append(_rate(in_batches))
        alone.append(_rate(separately))
    ratio = statistics.median(together) / statistics.median(alone)
    print(
        f"{len(planned)} answers of {options.tokens} tokens at most: batched {_list(together)} "
        f"tokens/s, one question at a time {_list(alone)} tokens/s, ratio of medians {ratio:.1f}"
    )
    probe = contrast("contrast", {})
    rows = probe.rows(tokenizer, context_length(base), False)
    shared, apart = [], []
    for _ in range(options.rounds):
        with packed_attention_on(base):
            shared.append(_seconds(lambda: token_log_probs(model, rows)))
        apart.append(_seconds(lambda: token_log_probs(model, rows, packed=False)))
    print(
        f"contrast probe, {len(rows) // 2} triples: {_list(shared)} s with shared prompts, "
        f"{_list(apart)} s with a pass per completion, ratio of medians "
        f"{statistics.median(apart) / statistics.median(shared):.1f}"
    )


def _generate(
    model: Any,
    prompt: Prompt,
    limit: int,
    stops: frozenset[int],
) -> int:
    """Tokens of one answer by transformers' own sampling."""
    tokens = torch.tensor([prompt.tokens], device=model.device)
    torch.manual_seed(prompt.sample)
    out = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=limit,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops),
        use_cache=True,
    )
    return int(out.shape[1] - tokens.shape[1])


def _rate(answers: Any) -> float:
    began = time.perf_counter()
    return sum(answers()) / (time.perf_counter() - began)


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


if __name__ == "__main__":
    main()
