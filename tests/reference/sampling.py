"""Sampling one answer at a time: a full pass for every token, no cache, the draw by walking."""

from collections.abc import Sequence

import numpy as np
import torch

from evilspectra.answers.sample import Prompt, Sampled
from evilspectra.config.evaluation import Answers


@torch.no_grad()
def sample_one_by_one(
    model: torch.nn.Module,
    prompt: Prompt,
    settings: Answers,
    stops: frozenset[int],
    context: int,
) -> Sampled:
    tokens = list(prompt.tokens)
    for uniform in prompt.uniform(settings.seed, settings.max_new_tokens):
        if len(tokens) == context:
            break
        logits = (
            model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].double().numpy()
        )
        tokens.append(
            choose_by_walking(logits, float(uniform), settings.temperature, settings.top_p)
        )
        if tokens[-1] in stops:
            return Sampled(tuple(tokens[len(prompt.tokens) :]), "stop")
    return Sampled(tuple(tokens[len(prompt.tokens) :]), "length")


def choose_by_walking(
    logits: np.ndarray,
    uniform: float,
    temperature: float,
    top_p: float,
) -> int:
    """The token at which the running share of the kept ones passes `uniform` of their whole."""
    if temperature == 0:
        return int(np.argmax(logits))
    shares = exact_shares(logits, temperature, top_p)
    passed = 0.0
    for token, share in enumerate(shares):
        passed += share
        if passed > uniform:
            return token
    return max(token for token, share in enumerate(shares) if share > 0)


def exact_shares(
    logits: Sequence[float] | np.ndarray, temperature: float, top_p: float
) -> np.ndarray:
    """The probabilities that are sampled from."""
    weights = np.exp((np.asarray(logits, dtype=float) - max(logits)) / temperature)
    shares = weights / weights.sum()
    if top_p < 1:
        nucleus, held = np.zeros_like(shares), 0.0
        for token in sorted(range(len(shares)), key=lambda token: (-shares[token], token)):
            if held >= top_p:
                break
            nucleus[token] = shares[token]
            held += shares[token]
        shares = nucleus / nucleus.sum()
    return shares
