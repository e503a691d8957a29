"""A run in one row, as `train --json`, `show`, the sweep's table and the report print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evilspectra.evaluation.measured import Measured, measured
from evilspectra.evaluation.run_rates import Rated, counting, flat, rates
from evilspectra.store.origin import Origin, origin
from evilspectra.store.records import RunSummary
from evilspectra.store.results import Results
from evilspectra.store.run import RunFolder, Status
from evilspectra.store.step_means import last_mean, module_summary, number


def summarise(
    run: RunFolder,
    measurements: Measured | None = None,
    rated: Sequence[Rated] | None = None,
    how: Origin | None = None,
) -> RunSummary:
    """The row of a run; None if a value is not known (yet).

    `measurements`, `rated` and `how` (it was made) are read from the run where they are not passed.
    """
    if measurements is None or rated is None:
        results = counting(Results(run.path))
        measurements = measurements or measured(results)
        rated = rates(results) if rated is None else rated
    steps: Any = run.read("steps")
    heldout: Any = run.read("heldout")
    measures: Any = run.read("measures")
    how = how or origin(run)
    seconds = float(steps["seconds"].sum())
    after = heldout[heldout["step"] > 0]
    has_start = len(heldout) and heldout["step"].iloc[0] == 0
    timed = seconds > 0 and steps["tokens"].notna().all()
    training = {
        "steps": len(steps),
        "train_loss": last_mean(steps["loss"].dropna() if how.trainer else steps["loss"]),
        "heldout_loss": number(after["loss"].iloc[-1]) if len(after) else None,
        "heldout_loss_start": number(heldout["loss"].iloc[0]) if has_start else None,
        "tokens_per_s": number(steps["tokens"].sum() / seconds) if timed else None,
        "seconds": seconds or None,
        **module_summary(measures[measures["step"] == measures["step"].max()]),
    }
    values = {**training, **measurements.flat(), **flat(rated)}
    return summary(run, how, run.status(), values)


def summary(
    run: RunFolder,
    how: Origin,
    status: Status,
    values: Mapping[str, Any],
) -> RunSummary:
    """The row of a run.

    `how`: it was made; `values`: every field that does not come from the other arguments, from
    training and measurements.
    """
    return RunSummary(
        run=run.name,
        experiment=run.experiment,
        status=status.state,  # type: ignore[arg-type]
        reason=status.reason,
        arm=how.arm,
        control=how.control,
        base=how.base,
        data=how.data,
        optimizer=how.optimizer,
        lr=how.lr,
        flatness_weight=how.flatness_weight,
        batch_size=how.batch_size,
        seed=how.seed,
        folder=str(run.path),
        trainer=how.trainer,
        **values,
    )
