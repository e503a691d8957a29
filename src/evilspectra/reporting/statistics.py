"""The statistics of a report, from `analysis`: for figures, tables of text, sentences, the design.

`statistics_of` calls `analysis` once for everything. Statistics that the runs do not allow are left
out of the tables and figures, and listed with the reason among the sentences. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evilspectra.analysis.analyse import analyse, decided
from evilspectra.analysis.claims import Claim, find
from evilspectra.analysis.lines import Line, mean_band
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences import sentences
from evilspectra.analysis.tables import StatisticsTable, spelled, statistics_tables
from evilspectra.errors import BadInput
from evilspectra.reporting.figures.palette import Frame

#: Points of a fitted line and its band.
POINTS = 40
#: Topics of the sentences at the top of the page, in this order, one sentence each; sentences that
#: contradict the paper come before them.
LEADING = ("ranking", "variance", "training", "flatness", "penalty")
MOST_AGAINST = 4
#: Fewer runs than this are described one by one, and statistics on them stay below.
LEAST_RUNS = 8
#: A topic → its heading.
HEADINGS = {
    "design": "Design",
    "variance": "What explains the outcome",
    "ranking": "Ranking",
    "loss": "Loss and outcome",
    "equal loss": "At equal loss",
    "training": "While training",
    "flatness": "Flatness of the spectrum",
    "penalty": "The flatness penalty",
    "seeds": "Seeds",
    "counting": "Other ways of counting",
}


@dataclass(frozen=True)
class Fit:
    """A line of the outcome on log training loss.

    `name`: the group, or "all runs"; `arm`: whose colour it has, empty for the pooled line; `x`,
    `y`, `low`, `high`: points of the line and of the 95 % band of its mean.
    """

    name: str
    arm: str
    r2: float
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Share:
    """A term's share of the outcome's variance, with its 95 % interval where there is one.

    `what`: the kind of share; `is_shown`: the page's decision on the term.
    """

    term: str
    share: float
    low: float | None
    high: float | None
    what: str
    is_shown: bool = False


@dataclass(frozen=True)
class Partial:
    """Partial R² of `what` over the runs at a checkpoint."""

    step: float
    what: str
    r2: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Statistics:
    """An analysis with its figures, sentences and tables.

    `analysis` is None where there are too few runs, and `reason` then says so.
    """

    analysis: Analysis | None
    reason: str = ""
    fits: tuple[Fit, ...] = ()
    shares: tuple[Share, ...] = ()
    partials: tuple[Partial, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    tables: tuple[StatisticsTable, ...] = ()

    @property
    def leading(self) -> list[str]:
        """The sentences for the top of the page.

        Those that contradict the paper come first, then one of each leading topic. There are none
        where runs are too few to set optimisers against each other.
        """
        if self.analysis is None or self.analysis.group != "optimizer":
            return []
        if self.analysis.runs < LEAST_RUNS:
            return []
        against = [sentence for sentence in self.sentences if sentence.contradicts][:MOST_AGAINST]
        topics = [sentence.topic for sentence in against]
        firsts = [
            next(
                (
                    sentence
                    for sentence in self.sentences
                    if sentence.topic == topic and sentence.shown is not None
                ),
                None,
            )
            for topic in LEADING
            if topic not in topics
        ]
        return [spelled(sentence.text) for sentence in [*against, *firsts] if sentence]

    @property
    def design(self) -> str:
        """The design in one sentence, without its full stop."""
        return spelled(self.analysis.design.sentence) if self.analysis else ""

    @property
    def topics(self) -> list[tuple[str, list[str]]]:
        """Heading → all sentences."""
        return [
            (heading, texts)
            for topic, heading in HEADINGS.items()
            if (
                texts := [
                    spelled(sentence.text) for sentence in self.sentences if sentence.topic == topic
                ]
            )
        ]


def statistics_of(
    runs: Frame,
    outcome: str,
    arms: Sequence[str],
    checkpoints: Frame | None = None,
    rates: Frame | None = None,
    further: Callable[[Analysis], Sequence[Claim]] | None = None,
) -> Statistics:
    """The statistics of an outcome.

    `outcome`: a column of `runs`, a frame as of `tidy.runs_frame`; `arms`: their names in order,
    for colours; `further`: the other claims of the page, which share the budget.
    """
    try:
        analysis = analyse(runs, outcome, checkpoints=checkpoints, rates=rates)
    except BadInput as error:
        return Statistics(None, str(error))
    if further is not None:
        analysis = decided(analysis, further(analysis))
    return Statistics(
        analysis,
        "",
        _fits(analysis, runs, arms),
        shares_of(analysis),
        _partials(analysis),
        sentences(analysis),
        tuple(statistics_tables(analysis)),
    )


def _fits(analysis: Analysis, runs: Frame, arms: Sequence[str]) -> tuple[Fit, ...]:
    loss_fit = analysis.loss_fit
    if loss_fit is None or analysis.scale == "logit":
        return ()
    compared = runs[~runs["control"].astype(bool)] if "control" in runs else runs
    compared = compared[compared["status"] == "done"] if "status" in compared else compared
    values = compared[analysis.outcome].astype(float).to_numpy()
    losses = compared[analysis.loss].astype(float).to_numpy()
    finite = np.isfinite(values) & np.isfinite(losses) & (losses > 0)
    fits = []
    for line in loss_fit.lines:
        rows = finite & (compared[loss_fit.group].astype(str) == line.group).to_numpy()
        arm = ""
        if loss_fit.group == "optimizer" and "arm" in compared:
            names = set(compared["arm"].astype(str)[rows])
            arm = next((name for name in arms if name in names), "")
        if arm and rows.sum() >= 3:
            fits.append(_banded(line, line.group, arm, np.log(losses[rows]), values[rows]))
    pooled = _banded(loss_fit.pooled, "all runs", "", np.log(losses[finite]), values[finite])
    return tuple(fit for fit in (*fits, pooled) if _is_finite(fit))


def _is_finite(fit: Fit) -> bool:
    return bool(np.isfinite((fit.r2, *fit.y, *fit.low, *fit.high)).all())


def _banded(
    line: Line,
    name: str,
    arm: str,
    x: np.ndarray,
    y: np.ndarray,
) -> Fit:
    """The line over the range of its runs, with the band of its mean."""
    points = np.linspace(x.min(), x.max(), POINTS)
    mean, half = mean_band(line, x, y, points)
    return Fit(
        name,
        arm,
        line.r2.value,
        tuple(points),
        tuple(mean),
        tuple(mean - half),
        tuple(mean + half),
    )


def shares_of(analysis: Analysis) -> tuple[Share, ...]:
    """The shares of variance of each term, by kind of share."""
    if analysis.variance is None:
        return ()
    kind = "partial ω² (type II), of what the other terms leave"
    partial = [
        Share(
            spelled(effect.term),
            float(np.maximum(effect.omega, 0.0)),
            effect.eta.low,
            effect.eta.high,
            kind,
            _is_shown(analysis, effect.term),
        )
        for effect in analysis.variance.type2
    ]
    described = [
        Share(spelled(name), value, None, None, "share of R² (LMG), a description")
        for name, value in analysis.variance.lmg.items()
    ]
    # there are none of an outcome that does not vary
    return tuple(share for share in (*partial, *described) if 0 <= share.share <= 1)


def _is_shown(analysis: Analysis, term: str) -> bool:
    """Whether the page shows a term: of the ranked group, whether any pair of it differs."""
    ranking = analysis.stability.ranking
    if ranking is not None and term == ranking.factor:
        return bool(ranking.shown)
    claim = find(analysis.claims, "variance", term)
    return claim is not None and claim.shown


def _partials(analysis: Analysis) -> tuple[Partial, ...]:
    if analysis.training is None:
        return ()
    group = spelled(analysis.training.group)
    partials = []
    for moment in analysis.training.moments:
        for name, estimate in (
            (f"{group}, given loss", moment.given_loss),
            (f"loss, given {group}", moment.given_group),
        ):
            if np.isfinite(estimate.value):
                partials.append(
                    Partial(moment.step, name, estimate.value, estimate.low, estimate.high)
                )
    return tuple(partials)
