"""The measurements of an adapter, as its model card holds them."""

from __future__ import annotations

from typing import Any

from evilspectra.evaluation.run_rates import Rated, counting, rates
from evilspectra.intervals import Interval
from evilspectra.probes.drift import capability, drift, ordinary
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder


def measurements(run: RunFolder, step: int) -> dict[str, Any]:
    """The results of the adapter after `step`, of JSON's types.

    A probe that was not read is None, and without a judge there are no rates. Answers are judged at
    the last measured step only.

    Raises:
        BadInput: a file of the results cannot be read.
    """
    results = counting(Results(run.path))
    probes: dict[str, Any] = {}
    for table, name, read in (
        ("probe", "drift", drift),
        ("capability", "capability", capability),
        ("ordinary", "ordinary", ordinary),
    ):
        probes[name] = None
        instrument = chosen(results, table)
        if instrument and results.has(instrument, 0) and results.has(instrument, step):
            base, after = results.read(instrument, 0), results.read(instrument, step)
            probes[name] = _probe_result(read(base, after), instrument.source)
    judged = [_judge_rates(rated) for rated in rates(results) if rated.step == step]
    return {**probes, "misalignment": judged}


def _judge_rates(rated: Rated) -> dict[str, Any]:
    """The rates by one judge, under every definition."""
    return {
        "judge": rated.judge.source,
        "judge_id": rated.judge.id,
        "answers": rated.main.counts["answers"],
        "unscored": rated.main.counts["unscored"],
        "rates": [
            {
                "definition": name,
                "rate": score.rate,
                "withheld": score.withheld,
                "n": score.n,
                **_ends(score.interval),
                "base": rated.base[name].rate if rated.base else None,
            }
            for name, score in rated.scores.items()
        ],
    }


def _probe_result(result: Any, items: str) -> dict[str, Any]:
    """A probe's result with its interval; `base` is the base's value where it has one."""
    names = [name for name in ("drift", "accuracy", "loss") if hasattr(result, name)]
    interval = getattr(result, names[0])
    change = {}
    if hasattr(result, "change"):
        change = {"change": {"value": result.change.value, **_ends(result.change)}}
    return {
        "value": interval.value,
        **_ends(interval),
        "base": getattr(result, "base", None),
        "items": result.items,
        "source": items,
        **change,
    }


def _ends(interval: Interval | None) -> dict[str, float | None]:
    return {"low": interval and interval.low, "high": interval and interval.high}
