"""Names of runs: the arm that tables and figures show, and the folder's name."""

from __future__ import annotations

from evilspectra.config.optimizers import label, short_label
from evilspectra.config.sections import Config


def arm(config: Config) -> str:
    """A short label of a run: optimiser, the penalty's weight if not 0, whether it is a control.

    >>> from evilspectra.config.loading import build
    >>> arm(build({"flatness": {"weight": 3}}))
    'adamw + flatness 3'
    """
    flat = f" + flatness {config.flatness.weight:g}" if config.flatness.weight else ""
    name = label(config.optimizer) + flat
    return f"control ({name})" if config.data.control else name


def run_id(config: Config, digest: str) -> str:
    """Readable prefix and digest: `adamw-flat-b8-s0-1f3a9c04d2`."""
    name = short_label(config.optimizer) + ("-flat" if config.flatness.weight else "")
    return f"{name}-b{config.train.batch_size}-s{config.train.seed}-{digest}"
