"""ln p of tokens, one row per pass, every token of it, with the model's own attention."""

from collections.abc import Sequence

import numpy as np
import torch

from evilspectra.data.mask import Row


@torch.no_grad()
def log_probs_one_by_one(model: torch.nn.Module, rows: Sequence[Row]) -> list[np.ndarray]:
    """Per row ln p of each supervised token given all before it, float64."""
    log_probs = []
    for row in rows:
        tokens = torch.tensor([row.tokens.tolist()])
        scores = torch.log_softmax(model(input_ids=tokens, use_cache=False).logits[0].double(), -1)
        log_probs.append(
            np.array(
                [
                    float(scores[position - 1, row.tokens[position]])
                    for position in range(1, len(row.tokens))
                    if row.supervised[position]
                ]
            )
        )
    return log_probs
