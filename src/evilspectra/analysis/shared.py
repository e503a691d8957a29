"""Runs that share noise: the same settings and seed, with and without the flatness penalty.

Such runs see the same batches from the same start, so what chance does to one it largely does to
the other. They are one cluster: pairs of them show the penalty's effect (module `penalty`), and
everything else counts a cluster once (module `contrasts`).
"""

from __future__ import annotations

import numpy as np

from evilspectra.analysis.estimate import Frame
from evilspectra.analysis.linear import text_columns

#: The column of the penalty's weight λ.
WEIGHT = "flatness_weight"
#: Settings that make runs the same but for the penalty, where a table has no dotted columns.
_SETTINGS = ("base", "data", "optimizer", "lr", "batch_size", "seed")
#: Dotted settings that do not change a result, or are the penalty's.
_APART = ("flatness.", "output.")


def keys_but_penalty(frame: Frame) -> list[str]:
    """Each run's settings and seed as one text, the penalty's left out."""
    dotted = [name for name in frame if isinstance(name, str) and "." in name]
    same = [name for name in dotted if not name.startswith(_APART)]
    texts = text_columns(frame, sorted({*same, *(name for name in _SETTINGS if name in frame)}))
    return ["\x1f".join(texts[name][row] for name in texts) for row in range(len(frame))]


def clusters_of(frame: Frame) -> np.ndarray | None:
    """The cluster [n] of each run, numbered from 0; None where no two runs share their noise.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"seed": [0, 0, 1], "flatness_weight": [0.0, 1.0, 0.0]})
    >>> clusters_of(frame).tolist()
    [0, 0, 1]
    """
    if WEIGHT not in frame or "seed" not in frame:
        return None
    weights = text_columns(frame, [WEIGHT])[WEIGHT]
    if len(set(weights)) < 2:
        return None
    codes = np.unique(np.asarray(keys_but_penalty(frame)), return_inverse=True)[1]
    return codes if len(set(codes.tolist())) < len(codes) else None
