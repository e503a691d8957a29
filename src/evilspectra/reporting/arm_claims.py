"""Claims between the arms of a store, by the inference of the analysis and within its budget.

Arms differ from seed to seed, so they are compared over their runs: each arm has a spread of its
own (`analysis.contrasts`), and every claim is decided together with those of the analysis
(`analysis.claims`). An interval over items or questions is about one adapter and decides nothing
here. What the analysis compares itself, its outcome and the penalty's effects, is taken from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evilspectra.analysis.claims import Claim, decide, find
from evilspectra.analysis.linear import text_columns
from evilspectra.analysis.outcome import COUNTED, MISALIGNED, read, usual_factors
from evilspectra.analysis.penalty import COMPARED, Paired, Penalty, penalty, penalty_claims
from evilspectra.analysis.ranking import Ranking, rank_frame
from evilspectra.analysis.result import Analysis
from evilspectra.reporting.comparison import Row, by_judge, incomparable
from evilspectra.reporting.figures.palette import Frame

#: Measures in which the page compares arms.
MEASURES = ("drift", "misalignment", "stable_rank", "heldout_loss")
#: Measures whose change by the penalty the page states.
PENALISED = ("stable_rank", "heldout_loss")
#: The columns that an arm consists of.
_OF_ARMS = ("optimizer", "flatness_weight")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms (or levels of the analysis' group) and the claim that decides about them."""

    first: str
    second: str
    claim: Claim

    @property
    def ordered(self) -> tuple[str, str]:
        """Both, the larger first."""
        pair = (self.first, self.second)
        return pair if self.claim.value > 0 else (self.second, self.first)


@dataclass(frozen=True)
class ArmClaims:
    """The comparisons of a page between arms: pairs by measure, and the penalty's effects.

    `groups`: measure → what its pairs are of: arms, or the groups that the analysis ranks.
    `claims`: those that the analysis does not make itself. `all_claims`: those of the whole page,
    decided, once `settled`.
    """

    pairs: dict[str, tuple[Comparison, ...]]
    effects: tuple[Paired, ...] = ()
    groups: dict[str, str] | None = None
    claims: tuple[Claim, ...] = ()
    all_claims: tuple[Claim, ...] = ()

    def settled(self, decided: Sequence[Claim] | None = None) -> ArmClaims:
        """The same with decisions: those of the page, or of these claims alone."""
        page = tuple(decide(self.claims) if decided is None else decided)
        pairs = {
            measure: tuple(replace(pair, claim=_settled(pair.claim, page)) for pair in of_measure)
            for measure, of_measure in self.pairs.items()
        }
        return replace(self, pairs=pairs, all_claims=page)

    def tested(self, measure: str) -> list[Comparison]:
        """The pairs that can be tested: both sides have runs enough for a spread."""
        return [pair for pair in self.pairs.get(measure, ()) if pair.claim.p is not None]

    def differing(self, measure: str) -> list[tuple[str, str]]:
        """The pairs shown to differ, the larger first."""
        return [pair.ordered for pair in self.tested(measure) if pair.claim.shown]

    def noun(self, measure: str) -> str:
        """The name of the things that a measure's pairs are of, in the plural."""
        return (self.groups or {}).get(measure, "arms")

    def of_effect(self, effect: Paired) -> Claim | None:
        """The claim on an effect of the penalty."""
        subject = (effect.optimizer, effect.treatment, effect.measure)
        return find(self.all_claims, "penalty, other measures", *subject)


def _settled(claim: Claim, page: Sequence[Claim]) -> Claim:
    return find(page, claim.section, *claim.subject) or claim


def arm_claims(rows: Sequence[Row], runs: Frame, analysis: Analysis | None = None) -> ArmClaims:
    """The claims between arms of finished runs that are no controls, not decided yet.

    `runs`: the frame of `outcomes.runs_table`, a row per run; `analysis`: that of the same page.
    """
    done = [row for row in rows if row.summary.status == "done" and not row.summary.control]
    frame = runs.set_index("run", drop=False).loc[[row.label for row in done]]
    frame = frame.reset_index(drop=True)
    effects, further = _effects(done, frame, analysis)
    pairs: dict[str, tuple[Comparison, ...]] = {}
    groups: dict[str, str] = {}
    comparable = bool(done) and incomparable(done) is None
    for measure in MEASURES if comparable else ():
        own = analysis is not None and analysis.outcome == measure
        ranking = analysis.stability.ranking if analysis is not None and own else None
        if not own:
            ranking = _ranking(done, frame, measure, rows)
        if ranking is not None:
            names, groups[measure] = _names(frame, ranking.factor)
            compared = _compared(ranking, names, None if own else measure)
            pairs[measure] = tuple(_by_penalty(pair, frame, measure, effects) for pair in compared)
    compared = [pair.claim for some in pairs.values() for pair in some]
    claims = [claim for claim in compared if claim.section == "arms"]
    return ArmClaims(pairs, effects, groups, (*claims, *further))


def _ranking(
    done: Sequence[Row], frame: Frame, measure: str, rows: Sequence[Row]
) -> Ranking | None:
    """The optimisers ranked by a measure, as the analysis would; the arms where they are one."""
    values, further = _values(done, measure, rows)
    usable = np.isfinite(values)
    part = frame.assign(**{measure: values, **further})[usable].reset_index(drop=True)
    factors = usual_factors(part, measure)
    group = "optimizer" if "optimizer" in factors else "arm"
    sizes = Counter(part[group])
    if len(sizes) < 2 or max(sizes.values()) < 2:
        return None
    outcome = read(part, measure)
    if outcome.constant is not None:
        return None
    return rank_frame(part, outcome, group, [name for name in factors if name != "arm"])


def _names(frame: Frame, factor: str) -> tuple[dict[str, str], str]:
    """A name for each level of a factor, and what they are: arms where each level is one."""
    levels = text_columns(frame, [factor])[factor]
    together = set(zip(levels, frame["arm"], strict=True))
    if len(together) == len(set(levels)) == frame["arm"].nunique():
        return dict(together), "arms"
    noun = "optimisers" if factor == "optimizer" else f"levels of {factor}"
    return {level: level for level in levels}, noun


def _compared(
    ranking: Ranking, names: Mapping[str, str], measure: str | None
) -> Iterator[Comparison]:
    """The pairs of a ranking; with a measure, their claims are of this page alone."""
    for pair in ranking.differences:
        claim = find(ranking.claims, "ranking", *pair)
        if claim is None:
            continue
        if measure is not None:
            claim = replace(claim, section="arms", subject=(measure, *pair))
        yield Comparison(names[pair[0]], names[pair[1]], claim)


def _by_penalty(
    pair: Comparison, frame: Frame, measure: str, effects: Sequence[Paired]
) -> Comparison:
    """The pair decided as the penalty's effect where it differs in the penalty alone."""
    arms = frame.drop_duplicates("arm").set_index("arm")
    sides = [name for name in (pair.first, pair.second) if name in arms.index]
    if pair.claim.section != "arms" or len(sides) < 2:
        return pair
    optimizers, weights = ([arms.at[name, key] for name in sides] for key in _OF_ARMS)
    if optimizers[0] != optimizers[1] or min(weights) > 0:
        return pair
    treated, plain = sides if weights[0] > 0 else sides[::-1]
    for effect in effects:
        if (effect.measure, effect.optimizer, effect.weight) == (
            measure,
            optimizers[0],
            max(weights),
        ):
            subject = (effect.optimizer, effect.treatment, measure)
            value, p = effect.difference.value, effect.difference.p
            section = "penalty, other measures"
            return Comparison(treated, plain, Claim(section, subject, value, p, ""))
    return pair


def _values(
    done: Sequence[Row], measure: str, rows: Sequence[Row]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A measure by run, NaN where there is none, and the counts behind a rate.

    Drifts of different probes and rates on different questions are not compared: none then.
    """
    if measure != "misalignment":
        if measure == "drift" and len({row.instruments["probe"].id for row in _probed(rows)}) > 1:
            return np.full(len(done), np.nan), {}
        values = [getattr(row.summary, measure) for row in done]
        return np.array([np.nan if value is None else value for value in values], float), {}
    finished = [row for row in rows if row.summary.status == "done"]
    judged = by_judge(finished)
    rated = {row.label: rated for row, rated in judged[0][1]} if judged else {}
    mine = {row.label: rated[row.label] for row in done if row.label in rated}
    mine = {label: rated for label, rated in mine.items() if rated.main.rate is not None}
    if len({rated.judge.id for rated in mine.values()}) > 1:
        mine = {}
    columns = np.full((3, len(done)), np.nan)
    for number, row in enumerate(done):
        if row.label in mine:
            main = mine[row.label].main
            columns[:, number] = main.rate, main.counts["misaligned"], main.n
    return columns[0], {MISALIGNED: columns[1], COUNTED: columns[2]}


def _probed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.summary.status == "done" and row.measured.drift]


def _effects(
    done: Sequence[Row], frame: Frame, analysis: Analysis | None
) -> tuple[tuple[Paired, ...], list[Claim]]:
    """The penalty's effects, and their claims where the analysis has not made them."""
    if analysis is not None and analysis.mediation is not None:
        return analysis.mediation.penalty.effects, []
    with_facts = [None not in row.ground().values() for row in done]
    part = frame.assign(**{"ground.facts": [repr(row.ground()) for row in done]})[with_facts]
    if not len(part):
        return (), []
    part = part.drop(columns=[name for name in COMPARED if name not in PENALISED and name in part])
    effects = penalty(part.reset_index(drop=True)).effects
    return effects, list(penalty_claims(Penalty(effects, {}), ""))


def page_claims(rows: Sequence[Row], runs: Frame, analysis: Analysis | None) -> ArmClaims:
    """The claims between arms with the decisions of the page; `analysis` is decided with them."""
    claims = arm_claims(rows, runs, analysis)
    return claims.settled(None if analysis is None else analysis.claims)
