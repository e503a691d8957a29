"""The runs of a store as a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evilspectra.api.arguments import PathLike, file
from evilspectra.errors import packages_explained

if TYPE_CHECKING:
    from pandas import DataFrame


@packages_explained()
def runs(store: PathLike = "runs") -> DataFrame:
    """Reads every run of a store, done or not: one row each, in the order of folders.

    The columns, which docs/tables.md lists, are a run's name and state (`run`, `status`), its
    settings, losses in nats per supervised token, spectral measures, drift with its interval, and
    rates of misaligned answers; then each setting in which the runs differ, under its dotted path.
    Missing values are NaN or `<NA>`.

    Args:
        store: a folder of runs: a store, an experiment of it, or one run.

    Raises:
        BadInput: there is no run in it.
    """
    from evilspectra.tables.tidy import runs_frame

    return runs_frame(file(store, "store"))
