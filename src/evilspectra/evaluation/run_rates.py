"""The misalignment rates of a run and of its base, by every judge, under every definition.

They are computed from the answers at the last measured step. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evilspectra.evaluation.rate_rows import rate_fields, rate_row
from evilspectra.intervals import Interval
from evilspectra.judging.inputs import judged_by
from evilspectra.judging.verdicts import judged
from evilspectra.rates.compare import common_questions, compare
from evilspectra.rates.definitions import DEFINITIONS, Definition, Judged, Score, score
from evilspectra.store.results import Instrument, Results, chosen, last, preferred, verdicts_on
from evilspectra.text import printable

#: The paper's definition: tables with a single rate show it, and it decides which answers are
#: called misaligned.
MAIN_DEFINITION: Definition = "spectra"


@dataclass(frozen=True)
class Rated:
    """The rates of a run's answers by one judge.

    `judge`: the instrument of its verdicts. `scores`: after `step`, by definition. `base`: the same
    of the base, None if its answers were not judged. `change`: rate minus the base's under
    MAIN_DEFINITION, a share, with its 95 % interval over questions; None if it is not defined.
    """

    judge: Instrument
    step: int
    scores: Mapping[Definition, Score]
    base: Mapping[Definition, Score] | None
    change: Interval | None

    @property
    def identity(self) -> str:
        """Ten hexadecimal digits, as `judge_identity` gives them."""
        return judge_identity(self.judge)

    @property
    def main(self) -> Score:
        return self.scores[MAIN_DEFINITION]

    def differs(self) -> bool:
        """Whether the rate is shown to differ from the base's: the interval excludes zero.

        Where that interval has no width (all draws equal) or there is none (one question), the two
        rates' own intervals decide.
        """
        interval = self.main.interval
        base_interval = self.base[MAIN_DEFINITION].interval if self.base else None
        if interval is None or base_interval is None:
            return False
        if self.change and self.change.low < self.change.high:
            return self.change.clear_of()
        return apart(interval, base_interval)


def rates(results: Results) -> tuple[Rated, ...]:
    """The rates by every judge of answers of the last measured step, in the order of first use.

    `results` are those that `counting` returns.

    Raises:
        BadInput: a file of the results cannot be read.
    """
    answers = chosen(results, "answers")
    if answers is None or last(results, "answers") is None:
        return ()
    step = results.steps(answers)[-1]
    rated = [_rated(results, answers, step, judge) for judge in judges_of(results, answers)]
    return tuple(judged_rates for judged_rates in rated if judged_rates)


def flat(rated: Sequence[Rated]) -> dict[str, Any]:
    """The numbers of a `RunSummary`: the last judge's, all None without one."""
    if not rated:
        return rate_fields(None, None)
    last_rated = rated[-1]
    judge, base = last_rated.judge, last_rated.base
    row = rate_row(last_rated.step, judge.source, last_rated.identity, judge.id, last_rated.main)
    return rate_fields(row, base[MAIN_DEFINITION].rate if base else None)


def judges_of(results: Results, answers: Instrument) -> list[Instrument]:
    """The instruments of verdicts on these answers, one a judge, in the order of first use."""
    return verdicts_on(answers, results.instruments("verdicts"))


def counting(results: Results) -> Results:
    """The results with the answers that count selected, where the user selected none.

    `counting_answers` says which count.
    """
    if "answers" in results.selected:
        return results
    every = results.instruments("answers")
    answers = counting_answers(every, results.instruments("verdicts"))
    if answers is None or answers == preferred("answers", every):
        return results
    return replace(results, selected={**results.selected, "answers": answers})


def counting_answers(
    answers: Sequence[Instrument], verdicts: Sequence[Instrument]
) -> Instrument | None:
    """The answers that count: the `preferred` ones, or else the judged ones that were sampled last.

    The latter count where the preferred answers were not judged and others were. Both lists are in
    the order of use.
    """
    own = preferred("answers", answers)
    judged_ids = {judge.facts.get("answers") for judge in verdicts}
    others = [instrument for instrument in answers if instrument.id in judged_ids]
    return others[-1] if own and own.id not in judged_ids and others else own


def judge_identity(judge: Instrument) -> str:
    """Ten hexadecimal digits, equal for the same judge, prompts and reading of any answers."""
    return hashlib.sha256(json.dumps(judged_by(judge), sort_keys=True).encode()).hexdigest()[:10]


def judge_names(judges: Iterable[Instrument]) -> dict[str, str]:
    """Identity → a judge's name on a page, in the order of names.

    Judges of the same name are told apart by their identity.
    """
    by_identity = {judge_identity(judge): printable(judge.source, 80) for judge in judges}
    names = list(by_identity.values())
    return {
        identity: name if names.count(name) == 1 else f"{name} ({identity})"
        for identity, name in sorted(by_identity.items(), key=lambda pair: (pair[1], pair[0]))
    }


def apart(a: Interval, b: Interval) -> bool:
    """Whether two intervals do not touch.

    >>> apart(Interval(0.1, 0.0, 0.2), Interval(0.3, 0.2, 0.4))
    False
    """
    return a.high < b.low or b.high < a.low


def _rated(
    results: Results,
    answers: Instrument,
    step: int,
    judge: Instrument,
) -> Rated | None:
    after, base = (
        [answer for _, answer in judged(results, answers, at, judge)] for at in (step, 0)
    )
    if not _any_verdict(after):
        return None
    scores: dict[Definition, Score] = {name: score(after, name) for name in DEFINITIONS}
    if step == 0 or not _any_verdict(base):
        return Rated(judge, step, scores, None, None)
    before: dict[Definition, Score] = {name: score(base, name) for name in DEFINITIONS}
    return Rated(judge, step, scores, before, _change(base, after))


def _any_verdict(answers: Sequence[Judged]) -> bool:
    return any(answer.aligned or answer.coherent for answer in answers)


def _change(base: Sequence[Judged], after: Sequence[Judged]) -> Interval | None:
    comparable = common_questions(base, after)
    return compare(base, after, MAIN_DEFINITION).rate if comparable else None
