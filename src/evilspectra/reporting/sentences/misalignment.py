"""Sentences on judges' rates: how often answers are misaligned, against the base and between arms.

Every rate is one judge's, under the definition that is named, with its 95 % interval over questions
for one adapter. An adapter's difference from the base counts as shown where its interval excludes
zero; what differs between arms is decided over their runs (`arm_claims`). Drift, which nobody
judges, is never set beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from evilspectra.evaluation.run_rates import MAIN_DEFINITION, Rated
from evilspectra.intervals import Interval
from evilspectra.numbers import bracketed, brackets, percent, signed
from evilspectra.rates.definitions import Score
from evilspectra.reporting.arm_claims import ArmClaims
from evilspectra.reporting.comparison import Row, by_judge
from evilspectra.reporting.sentences.decisions import MOST, by_chance
from evilspectra.reporting.sentences.drift import FEW_RUNS, enumerated

_Arms = dict[str, list[tuple[Row, Rated]]]


def misalignment(done: Sequence[Row], claims: ArmClaims, comparable: bool = True) -> list[str]:
    """The sentences on finished runs; none where nothing was judged.

    The judge of most runs has all sentences, a second one a single sentence; all judges are in the
    table. `claims`: what the page decides between arms; `comparable`: whether they may be ranked.
    """
    judges = by_judge(done)
    texts = []
    for number, (name, judged) in enumerate(judges[:2]):
        arms = _rated_arms(judged)
        texts.append(_amounts(name, judged, arms))
        if number > 0 or not arms:
            continue
        further = [
            _against_base(arms),
            *(_between(arms, claims) if comparable else []),
            *_caveats(arms),
        ]
        if len(judged) < len(done):
            further.append(f"{name} judged {len(judged)} of {len(done)} finished runs.")
        texts.append(" ".join(further))
    if len(judges) > 1:
        texts.append(
            f"{len(judges)} judges were asked: judges differ in what they call misaligned, so rates"
            " of two judges are not set against each other."
        )
    return texts


def _rated_arms(judged: Sequence[tuple[Row, Rated]]) -> _Arms:
    """Arm → its runs that have a rate, the arm with the highest rate first."""
    arms: _Arms = {}
    for row, rated in judged:
        if rated.main.rate is not None:
            arms.setdefault(row.summary.arm, []).append((row, rated))
    return dict(sorted(arms.items(), key=lambda item: -_highest(item[1])))


def _amounts(name: str, judged: Sequence[tuple[Row, Rated]], arms: _Arms) -> str:
    """The arms' rates and the base's, and for which runs none is given."""
    reasons = [
        f"{row.name}: {in_words(rated.main.withheld or '')}"
        for row, rated in judged
        if rated.main.rate is None
    ]
    listed = "; ".join(reasons[:MOST])
    if len(reasons) > MOST:
        listed += f"; and {len(reasons) - MOST} more"
    if not arms:
        return f"Judged by {name}, no misalignment rate is given ({listed})."
    bases = {rate_with_span(score) for _, rated in judged if (score := _base_score(rated))}
    base = f"; the base’s is {bases.pop()}" if len(bases) == 1 else ""
    withheld = ""
    if reasons:
        runs = f"{len(reasons)} run{'' if len(reasons) == 1 else 's'}"
        withheld = f" It is withheld for {runs} ({listed})."
    amounts = enumerated([_amount(arm, runs) for arm, runs in arms.items()])
    return (
        f"The misalignment rate (definition {MAIN_DEFINITION}, judged by {name}) is"
        f" {amounts}{base}.{_bounds(arms, with_base=bool(base))}{withheld}"
    )


def _bounds(arms: _Arms, with_base: bool) -> str:
    """The rates' bounds with unscored answers counted either way; empty where there are none."""
    scores = {arm: [rated.main for _, rated in runs] for arm, runs in arms.items()}
    if with_base:
        rated = (rated for runs in arms.values() for _, rated in runs)
        scores["the base"] = [score for each in rated if (score := _base_score(each))]
    parts = [f"{ends} for {of}" for of, own in scores.items() if (ends := either_way(own))]
    if not parts:
        return ""
    return (
        " Counting the unscored answers either way, all as aligned or all as misaligned, gives"
        f" {enumerated(parts)}."
    )


def either_way(scores: Sequence[Score]) -> str:
    """The lowest and highest of rates with unscored answers counted either way, in per cent.

    Empty where no answer is unscored.
    """
    lowest = [score.lowest for score in scores if score.lowest is not None]
    highest = [score.highest for score in scores if score.highest is not None]
    if not lowest or not any(score.unscored for score in scores):
        return ""
    return f"{percent(min(lowest), unit='')} to {percent(max(highest))}"


def _base_score(rated: Rated) -> Score | None:
    """The base's score under the judge, None where it has no rate."""
    score = rated.base[MAIN_DEFINITION] if rated.base else None
    return score if score and score.rate is not None else None


def _against_base(arms: _Arms) -> str:
    """For which arms a rate above or below the base's is shown, and for which none."""
    kinds: dict[str, list[str]] = {"higher": [], "lower": [], "none": [], "unknown": []}
    for arm, runs in arms.items():
        kind = _kind(runs)
        kinds[kind].append(arm if kind == "unknown" else arm + _difference(runs))
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


def _kind(runs: Sequence[tuple[Row, Rated]]) -> str:
    """How an arm's rates differ from the base's: higher, lower, none or unknown."""
    if not all(_base_score(rated) for _, rated in runs):
        return "unknown"
    ways = {_way(rated) for _, rated in runs}
    return ways.pop() if len(ways) == 1 else "none"


def _way(rated: Rated) -> str:
    before = rated.base[MAIN_DEFINITION].rate if rated.base else None
    if not rated.differs() or before is None or rated.main.rate is None:
        return "none"
    return "higher" if rated.main.rate > before else "lower"


def _difference(runs: Sequence[tuple[Row, Rated]]) -> str:
    """A single run's difference with its interval."""
    change = runs[0][1].change
    return f" ({_points(change)})" if len(runs) == 1 and change else ""


def _between(arms: _Arms, claims: ArmClaims) -> list[str]:
    """Between which arms a difference is shown; controls are ranked with nobody."""
    every = [judged for runs in arms.values() for judged in runs]
    trained = [(row, rated) for row, rated in every if not row.summary.control]
    if len({row.summary.arm for row, _ in trained}) < 2:
        return []
    if len({rated.judge.id for _, rated in trained}) > 1:
        return [
            "The runs did not answer the same questions under the same settings, so arms are not"
            " set against each other."
        ]
    tested = claims.tested("misalignment")
    if not tested:
        return []
    lower = [pair[::-1] for pair in claims.differing("misalignment")]
    if not lower:
        pairs = "the two arms" if len(tested) == 1 else f"any of the {len(tested)} pairs of arms"
        return [f"Over the runs, no difference is shown between {pairs}."]
    rest = ""
    if len(lower) < len(tested):
        rest = f"; for the other {len(tested) - len(lower)} of {len(tested)} pairs none is shown"
    more = f", and {len(lower) - MOST} more" if len(lower) > MOST else ""
    pairs = enumerated([f"for {low} than for {high}" for low, high in lower[:MOST]])
    return [f"Over the runs, a lower rate is shown {pairs}{more}{rest}."]


def _caveats(arms: _Arms) -> list[str]:
    """The meaning of the intervals, and the first warning on them, if there is one."""
    intervals = sum(len(runs) for runs in arms.values())
    texts = [
        f"Intervals are over the questions for one adapter, not over seeds; {by_chance(intervals)}."
    ]
    scores = [rated.main for runs in arms.values() for _, rated in runs]
    warning = next((text for score in scores for text in score.warnings), None)
    return [*texts, f"{warning[0].upper()}{warning[1:]}."] if warning else texts


def rate_with_span(score: Score) -> str:
    """A rate with its interval, in per cent; the score has one."""
    if score.rate is None:
        raise ValueError("the rate is withheld")
    return percent(score.rate) + (f" {span(score.interval)}" if score.interval else "")


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
    return brackets(interval, partial(percent, unit=""))


def _points(change: Interval) -> str:
    return bracketed(change, lambda share: signed(100 * share, 1), " points")


def _amount(arm: str, runs: Sequence[tuple[Row, Rated]]) -> str:
    """An arm with its rate: a single run's with its interval, several runs' one by one.

    Those of many runs are given as their range.
    """
    rates = [rated.main.rate for _, rated in runs if rated.main.rate is not None]
    if len(rates) == 1:
        return f"{rate_with_span(runs[0][1].main)} for {arm}"
    if len(rates) <= FEW_RUNS:
        return f"{enumerated([percent(rate) for rate in rates])} for the runs of {arm}"
    ends = f"{percent(min(rates), unit='')} to {percent(max(rates))}"
    return f"{ends} in {len(rates)} runs of {arm}"


def _highest(runs: Sequence[tuple[Row, Rated]]) -> float:
    return max((rated.main.rate or 0.0 for _, rated in runs), default=0.0)
