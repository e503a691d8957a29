"""What judges' rates say, in sentences: how often the answers are misaligned, against the base and between arms.

Every rate is one judge's, under the definition that is named, with its 95 % interval over questions for one adapter. A difference counts as
shown where its interval is clear of zero (against the base), or where no two intervals overlap (between arms). Drift, which nobody judges, is never
set beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from evilspectra.evaluation.run_rates import MAIN_DEFINITION, Rated, apart, judge_names
from evilspectra.intervals import Interval
from evilspectra.rates.definitions import Score
from evilspectra.reporting.comparison import Row
from evilspectra.reporting.sentences.drift import FEW_RUNS, MOST, enumerated

_Arms = dict[str, list[tuple[Row, Rated]]]


def misalignment(done: Sequence[Row], comparable: bool = True) -> list[str]:
    """The sentences on finished runs; none where nothing was judged. `comparable`: whether arms may be ranked.

    The judge of most runs is told in full, a second one in one sentence; all of them are in the table.
    """
    names = judge_names(one.judge for row in done for one in row.rated)
    found = {
        name: [(row, one) for row in done for one in row.rated if one.identity == identity]
        for identity, name in names.items()
    }
    texts = []
    for place, name in enumerate(sorted(found, key=lambda name: -len(found[name]))[:2]):
        arms = _rated_arms(found[name])
        texts.append(_amounts(name, found[name], arms))
        if place == 0 and arms:
            coverage = (
                [f"{name} judged {len(found[name])} of {len(done)} finished runs."]
                if len(found[name]) < len(done)
                else []
            )
            texts.append(
                " ".join(
                    [
                        _against_base(arms),
                        *(_between(arms) if comparable else []),
                        *_caveats(arms),
                        *coverage,
                    ]
                )
            )
    if len(names) > 1:
        texts.append(
            f"{len(names)} judges were asked: judges differ in what they call misaligned, so rates of two judges are not set against each other."
        )
    return texts


def _rated_arms(found: Sequence[tuple[Row, Rated]]) -> _Arms:
    """Arm → its runs that have a rate, the arm with the highest rate first."""
    arms: _Arms = {}
    for row, one in found:
        if one.main.rate is not None:
            arms.setdefault(row.summary.arm, []).append((row, one))
    return dict(sorted(arms.items(), key=lambda item: -_highest(item[1])))


def _amounts(name: str, found: Sequence[tuple[Row, Rated]], arms: _Arms) -> str:
    """The arms' rates and the base's, and for which runs none is given."""
    held = [
        f"{row.name}: {in_words(one.main.withheld or '')}"
        for row, one in found
        if one.main.rate is None
    ]
    reasons = "; ".join(held[:MOST]) + (
        f"; and {len(held) - MOST} more" if len(held) > MOST else ""
    )
    if not arms:
        return f"Judged by {name}, no misalignment rate is given ({reasons})."
    bases = {
        percent(one.base[MAIN_DEFINITION])
        for _, one in found
        if one.base and one.base[MAIN_DEFINITION].rate is not None
    }
    base = f"; the base’s is {bases.pop()}" if len(bases) == 1 else ""
    withheld = (
        f" It is withheld for {len(held)} run{'' if len(held) == 1 else 's'} ({reasons})."
        if held
        else ""
    )
    return f"The misalignment rate (definition {MAIN_DEFINITION}, judged by {name}) is {enumerated([_amount(arm, runs) for arm, runs in arms.items()])}{base}.{withheld}"


def _against_base(arms: _Arms) -> str:
    """For which arms a rate above or below the base's is shown, and for which none."""
    kinds: dict[str, list[str]] = {"higher": [], "lower": [], "none": [], "unknown": []}
    for arm, runs in arms.items():
        with_base = [
            one for _, one in runs if one.base and one.base[MAIN_DEFINITION].rate is not None
        ]
        ways = {_way(one) for one in with_base}
        kind = "unknown" if len(with_base) < len(runs) else ways.pop() if len(ways) == 1 else "none"
        kinds[kind].append(arm + _difference(runs) if kind != "unknown" else arm)
    parts = [
        f"a {way} rate is shown for {enumerated(kinds[way])}"
        for way in ("higher", "lower")
        if kinds[way]
    ]
    if kinds["none"]:
        parts.append(f"a difference is not shown for {enumerated(kinds['none'])}")
    if kinds["unknown"]:
        parts.append(
            f"nothing is known for {enumerated(kinds['unknown'])}, as there is no rate of the base"
        )
    return f"Against the base on the same questions, {'; '.join(parts)}."


def _way(one: Rated) -> str:
    before = one.base[MAIN_DEFINITION].rate if one.base else None
    if not one.differs() or before is None or one.main.rate is None:
        return "none"
    return "higher" if one.main.rate > before else "lower"


def _difference(runs: Sequence[tuple[Row, Rated]]) -> str:
    """A single run's difference with its interval."""
    change = runs[0][1].change
    return f" ({_points(change)})" if len(runs) == 1 and change else ""


def _between(arms: _Arms) -> list[str]:
    """Which arms' rates are told apart; controls are ranked with nobody."""
    trained = {arm: runs for arm, runs in arms.items() if not runs[0][0].summary.control}
    if len(trained) < 2:
        return []
    if len({one.judge.id for runs in trained.values() for _, one in runs}) > 1:
        return [
            "The runs did not answer the same questions under the same settings, so arms are not set against each other."
        ]
    ranked = sorted(trained, key=lambda arm: _highest(trained[arm]))
    shown = [
        (a, b)
        for a, b in combinations(ranked, 2)
        if all(_clear(one, other) for _, one in trained[a] for _, other in trained[b])
    ]
    total = len(ranked) * (len(ranked) - 1) // 2
    if not shown:
        return [
            "Between arms a difference is not shown: no two arms’ intervals are clear of each other."
        ]
    rest = (
        f"; for the other {total - len(shown)} of {total} pairs of arms a difference is not shown, as intervals overlap"
        if len(shown) < total
        else ""
    )
    more = f", and {len(shown) - MOST} more" if len(shown) > MOST else ""
    return [
        f"Between arms, a lower rate is shown {enumerated([f'for {a} than for {b}' for a, b in shown[:MOST]])}{more}{rest}."
    ]


def _clear(one: Rated, other: Rated) -> bool:
    a, b = one.main.interval, other.main.interval
    return a is not None and b is not None and apart(a, b)


def _caveats(arms: _Arms) -> list[str]:
    warnings = dict.fromkeys(
        text for runs in arms.values() for _, one in runs for text in one.main.warnings
    )
    return [
        "Intervals are over the questions for one adapter, not over seeds.",
        *(f"{text[0].upper()}{text[1:]}." for text in list(warnings)[:1]),
    ]


# --- words ------------------------------------------------------------------------------------------------------------


def percent(found: Score) -> str:
    """A rate with its interval, in per cent; the score has one."""
    if found.rate is None:
        raise ValueError("the rate is withheld")
    return f"{100 * found.rate:.1f} %" + (f" {span(found.interval)}" if found.interval else "")


def in_words(text: str) -> str:
    """Why a rate is withheld, with a blank before the per cent sign as everywhere on the page.

    >>> in_words("6 of 72 answers (8.3%) are unscored")
    '6 of 72 answers (8.3 %) are unscored'
    """
    return re.sub(r"(?<=\d)%", " %", text)


def span(interval: Interval) -> str:
    """An interval of a share, in per cent.

    >>> span(Interval(0.1, 0.05, 0.2))
    '[5.0, 20.0]'
    """
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(change: Interval) -> str:
    value, low, high = (
        f"{round(100 * part, 1) + 0.0:+.1f}".replace("-", "−")
        for part in (change.value, change.low, change.high)
    )
    return f"{value} points [{low}, {high}]"


def _amount(arm: str, runs: Sequence[tuple[Row, Rated]]) -> str:
    """An arm with its rate: a single run's with its interval, several runs' one by one, many as their range."""
    values = [100 * one.main.rate for _, one in runs if one.main.rate is not None]
    if len(values) == 1:
        return f"{percent(runs[0][1].main)} for {arm}"
    if len(values) <= FEW_RUNS:
        return f"{enumerated([f'{value:.1f} %' for value in values])} for the runs of {arm}"
    return f"{min(values):.1f} to {max(values):.1f} % in {len(values)} runs of {arm}"


def _highest(runs: Sequence[tuple[Row, Rated]]) -> float:
    return max((one.main.rate or 0.0 for _, one in runs), default=0.0)
