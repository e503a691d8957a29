"""What a model card says of the measurements on its adapter."""

from __future__ import annotations

from typing import Any

from evilspectra.evaluation.run_rates import counting, rates
from evilspectra.intervals import Interval
from evilspectra.probes.drift import capability, drift, ordinary
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder


def measurements(run: RunFolder, step: int) -> dict[str, Any]:
    """@@FIX What was measured of the adapter after `step`, of JSON's types; None, or no judge, where
    nothing was. Answers are judged at the last measured step alone.

    Raises:
        BadInput: a file of it cannot be read.
    """
    results = counting(Results(run.path))
    found: dict[str, Any] = {}
    for table, name, read in (
        ("probe", "drift", drift),
        ("capability", "capability", capability),
        ("ordinary", "ordinary", ordinary),
    ):
        instrument = chosen(results, table)
        here = (
            instrument is not None and results.has(instrument, 0) and results.has(instrument, step)
        )
        found[name] = (
            _read(
                read(results.read(instrument, 0), results.read(instrument, step)), instrument.source
            )
            if instrument and here
            else None
        )
    judged = [one for one in rates(results) if one.step == step]
    return {
        **found,
        "misalignment": [
            {
                "judge": one.judge.source,
                "judge_id": one.judge.id,
                "answers": one.main.counts["answers"],
                "unscored": one.main.counts["unscored"],
                "rates": [
                    {
                        "definition": name,
                        "rate": score.rate,
                        "withheld": score.withheld,
                        "n": score.n,
                        **_ends(score.interval),
                        "base": one.base[name].rate if one.base else None,
                    }
                    for name, score in one.scores.items()
                ],
            }
            for one in judged
        ],
    }


def _read(found: Any, items: str) -> dict[str, Any]:
    """A probe's result with its interval; `base` is the base's value where it has one."""
    interval = next(
        getattr(found, name) for name in ("drift", "accuracy", "loss") if hasattr(found, name)
    )
    change = (
        {"change": {"value": found.change.value, **_ends(found.change)}}
        if hasattr(found, "change")
        else {}
    )
    return {
        "value": interval.value,
        **_ends(interval),
        "base": getattr(found, "base", None),
        "items": found.items,
        "source": items,
        **change,
    }


def _ends(interval: Interval | None) -> dict[str, float | None]:
    return {"low": interval and interval.low, "high": interval and interval.high}
