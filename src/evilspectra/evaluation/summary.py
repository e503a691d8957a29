"""A run in one row: what `train --json`, `show`, the sweep's table and the report print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evilspectra.evaluation.measured import Measured, measured
from evilspectra.evaluation.run_rates import Rated, counting, flat, rates
from evilspectra.store.origin import Origin, origin
from evilspectra.store.records import RunSummary
from evilspectra.store.results import Results
from evilspectra.store.run import RunFolder, Status
from evilspectra.store.step_means import last_mean, module_summary, number

if TYPE_CHECKING:
    pass


def summarise(
    run: RunFolder,
    found: Measured | None = None,
    rated: Sequence[Rated] | None = None,
    made: Origin | None = None,
) -> RunSummary:
    """Everything that is known of a run so far; None where it is not known (yet).

    `found` and `rated`: what was measured on it, `made`: how it was made, if it is at hand.
    """
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
        "heldout_loss_start": number(heldout["loss"].iloc[0])
        if len(heldout) and heldout["step"].iloc[0] == 0
        else None,
        "tokens_per_s": number(steps["tokens"].sum() / seconds)
        if seconds > 0 and steps["tokens"].notna().all()
        else None,
        "seconds": seconds or None,
        **module_summary(measures[measures["step"] == measures["step"].max()]),
    }
    return summary(run, made, run.status(), {**training, **found.flat(), **flat(rated)})


def summary(
    run: RunFolder,
    made: Origin,
    status: Status,
    known: Mapping[str, Any],
) -> RunSummary:
    """@@FIX The row of a run of which `known` holds what training and measurements say: every field that
    does not come from the other arguments.
    """
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
