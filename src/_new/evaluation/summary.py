"""A run in one row: what `train --json`, `show`, the sweep's table and the report print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evilspectra.origin import Origin, origin
from evilspectra.probing.measured import Measured, measured
from evilspectra.rates import Rated, counting, flat, rates
from evilspectra.records import RunSummary
from evilspectra.results import Results
from evilspectra.store import RunFolder, Status

if TYPE_CHECKING:
    import pandas as pd

#: "Training loss" is the mean data loss over this last share of the steps.
LAST_SHARE = 0.05

MEASURES = ("stable_rank", "spectral_entropy", "condition_number", "frobenius_nuclear", "frobenius")


def last_mean(losses: pd.Series) -> float | None:
    """Mean of the last 5 % of the values, at least one; None where there are none.

    >>> import pandas
    >>> last_mean(pandas.Series(range(100)))
    97.0
    """
    if losses.empty:
        return None
    return number(float(losses.iloc[-max(1, round(LAST_SHARE * len(losses))) :].mean()))


def number(value: float) -> float | None:
    """The value as a float, or None where it is not finite (JSON has no NaN)."""
    return float(value) if math.isfinite(value) else None


def module_summary(measures: Any) -> dict[str, float | None]:
    """Mean over modules of each spectral measure (condition number: median) of one step's rows; undefined ones left out."""
    return {name: number(measures[name].median() if name == "condition_number" else measures[name].mean()) for name in MEASURES}


def summarise(run: RunFolder, found: Measured | None = None, rated: Sequence[Rated] | None = None, made: Origin | None = None) -> RunSummary:
    """Everything that is known of a run so far; None where it is not known (yet). `found` and `rated`: what was measured on it, `made`: how it was made, if it is at hand."""
    if found is None or rated is None:
        results = counting(Results(run.path))
        found, rated = found or measured(results), rates(results) if rated is None else rated
    steps: Any = run.read("steps")
    heldout: Any = run.read("heldout")
    measures: Any = run.read("measures")
    made = made or origin(run)
    seconds = float(steps["seconds"].sum())
    after = heldout[heldout["step"] > 0]
    training = {
        "steps": len(steps),
        "train_loss": last_mean(steps["loss"].dropna() if made.trainer else steps["loss"]),
        "heldout_loss": number(after["loss"].iloc[-1]) if len(after) else None,
        "heldout_loss_start": number(heldout["loss"].iloc[0]) if len(heldout) and heldout["step"].iloc[0] == 0 else None,
        "tokens_per_s": number(steps["tokens"].sum() / seconds) if seconds > 0 and steps["tokens"].notna().all() else None,
        "seconds": seconds or None,
        **module_summary(measures[measures["step"] == measures["step"].max()]),
    }
    return summary(run, made, run.status(), {**training, **found.flat(), **flat(rated)})


def summary(run: RunFolder, made: Origin, status: Status, known: Mapping[str, Any]) -> RunSummary:
    """The row of a run of which `known` holds what training and measurements say: every field that does not come from the other arguments."""
    return RunSummary(
        run=run.name,
        experiment=run.experiment,
        status=status.state,  # type: ignore[arg-type]
        reason=status.reason,
        arm=made.arm,
        control=made.control,
        base=made.base,
        data=made.data,
        optimizer=made.optimizer,
        lr=made.lr,
        flatness_weight=made.flatness_weight,
        batch_size=made.batch_size,
        seed=made.seed,
        folder=str(run.path),
        trainer=made.trainer,
        **known,
    )
