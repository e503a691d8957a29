"""What the report takes from `analysis`: lines with bands, shares and partial R² for figures, tables of text, sentences, the design. No torch.

`statistics_of` asks `analysis` once for everything. What the runs do not allow is left out of the tables and figures, and stands with its
reason among the sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from evilspectra.analysis.analyse import analyse
from evilspectra.analysis.loss import Line
from evilspectra.analysis.result import Analysis, Sentence
from evilspectra.analysis.sentences import figure, percent, probability, sentences, within
from evilspectra.analysis.variance import Effect
from evilspectra.errors import BadInput
from evilspectra.reporting.figures.palette import Frame

#: Points of a fitted line and its band.
POINTS = 40
#: Topics of sentences that stand at the top of the page, in this order, one sentence each; what contradicts the paper stands before them.
LEADING = ("ranking", "variance", "training", "flatness", "penalty")
MOST_AGAINST = 4
#: Fewer runs than this are described one by one, and statistics on them stay below.
LEAST_RUNS = 8
#: A topic → its heading.
HEADINGS = {
    "design": "Design",
    "variance": "What goes with the outcome",
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
    """A line of the outcome on log training loss. `name`: the group, or "all runs"; `arm`: whose colour it has, empty for the pooled one.

    `x`, `y`, `low`, `high`: points of the line and of the 95 % band of its mean.
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
    """A term's share of the outcome's variance, with its 95 % interval where there is one; `what` says which kind of share it is."""

    term: str
    share: float
    low: float | None
    high: float | None
    what: str


@dataclass(frozen=True)
class Partial:
    """Partial R² of `what` over the runs at a checkpoint."""

    step: float
    what: str
    r2: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Grid:
    """A table of text; the first column names the row, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Statistics:
    """`analysis` is None where there are too few runs, and `reason` then says so."""

    analysis: Analysis | None
    reason: str = ""
    fits: tuple[Fit, ...] = ()
    shares: tuple[Share, ...] = ()
    partials: tuple[Partial, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    grids: tuple[Grid, ...] = ()

    @property
    def leading(self) -> list[str]:
        """The sentences for the top of the page: what contradicts the paper, then one of each leading topic; none where runs are too few to set optimisers against each other."""
        if (
            self.analysis is None
            or self.analysis.group != "optimizer"
            or self.analysis.runs < LEAST_RUNS
        ):
            return []
        against = [one for one in self.sentences if one.contradicts][:MOST_AGAINST]
        told = [one.topic for one in against]
        firsts = [
            next(
                (one for one in self.sentences if one.topic == topic and one.shown is not None),
                None,
            )
            for topic in LEADING
            if topic not in told
        ]
        return [spelled(one.text) for one in [*against, *firsts] if one]

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
            if (texts := [spelled(one.text) for one in self.sentences if one.topic == topic])
        ]


def statistics_of(
    runs: Frame,
    outcome: str,
    arms: Sequence[str],
    checkpoints: Frame | None = None,
    rates: Frame | None = None,
) -> Statistics:
    """All that is said of an outcome (a column of `runs`, as of `tidy.runs_frame`); `arms`: their order, for colours."""
    try:
        found = analyse(runs, outcome, checkpoints=checkpoints, rates=rates)
    except BadInput as error:
        return Statistics(None, str(error))
    return Statistics(
        found,
        "",
        _fits(found, runs, arms),
        _shares(found),
        _partials(found),
        sentences(found),
        tuple(_grids(found)),
    )


def spelled(text: str) -> str:
    """Columns as a reader spells them; settings keep their dotted names.

    >>> spelled("Optimizer × flatness_weight"), spelled("optimizer.lr")
    ('Optimiser × flatness weight', 'optimizer.lr')
    """
    text = re.sub(r"(?<![\w.])(o|O)ptimizer(?!\.\w|\w)", r"\1ptimiser", text)
    return re.sub(r"(?<![\w.])((?:F|f)latness|(?:B|b)atch)_(weight|size)", r"\1 \2", text)


# --- figures ----------------------------------------------------------------------------------------------------------


def _fits(found: Analysis, runs: Frame, arms: Sequence[str]) -> tuple[Fit, ...]:
    fit = found.loss_fit
    if fit is None or found.scale == "logit":
        return ()
    kept = runs[~runs["control"].astype(bool)] if "control" in runs else runs
    kept = kept[kept["status"] == "done"] if "status" in kept else kept
    values, losses = (
        kept[found.outcome].astype(float).to_numpy(),
        kept[found.loss].astype(float).to_numpy(),
    )
    known = np.isfinite(values) & np.isfinite(losses) & (losses > 0)
    groups = kept[fit.group].astype(str).to_numpy()
    made = []
    for line in (*fit.lines, fit.pooled):
        mine = known & ((groups == line.group) if line is not fit.pooled else True)
        own = (
            [name for name in arms if name in set(kept["arm"].astype(str)[mine])]
            if line is not fit.pooled and fit.group == "optimizer" and "arm" in kept
            else []
        )
        if mine.sum() >= 3 or line is fit.pooled:
            made.append(
                _banded(
                    line,
                    "all runs" if line is fit.pooled else line.group,
                    own[0] if own else "",
                    np.log(losses[mine]),
                    values[mine],
                )
            )
    return tuple(
        one
        for one in made
        if (one.arm or one.name == "all runs")
        and np.isfinite((one.r2, *one.y, *one.low, *one.high)).all()
    )


def _banded(
    line: Line,
    name: str,
    arm: str,
    x: np.ndarray,
    y: np.ndarray,
) -> Fit:
    """The line over the range of its runs, with t·s·√(1/n + (x − x̄)²/Sxx) on either side."""
    at = np.linspace(x.min(), x.max(), POINTS)
    mean = line.intercept.value + line.slope.value * at
    df, squares = len(x) - 2, ((x - x.mean()) ** 2).sum()
    rest = ((y - line.intercept.value - line.slope.value * x) ** 2).sum()
    half = (
        special.stdtrit(df, 0.975)
        * np.sqrt(rest / df * (1 / len(x) + (at - x.mean()) ** 2 / squares))
        if df > 0 and squares > 0
        else np.zeros_like(at)
    )
    return Fit(
        name, arm, line.r2.value, tuple(at), tuple(mean), tuple(mean - half), tuple(mean + half)
    )


def _shares(found: Analysis) -> tuple[Share, ...]:
    if found.variance is None:
        return ()
    kind = "partial ω² (type II), of what the other terms leave"
    partial = [
        Share(spelled(one.term), float(np.maximum(one.omega, 0.0)), one.eta.low, one.eta.high, kind)
        for one in found.variance.type2
    ]
    described = [
        Share(spelled(name), value, None, None, "share of R² (LMG), a description")
        for name, value in found.variance.lmg.items()
    ]
    return tuple(
        one for one in (*partial, *described) if 0 <= one.share <= 1
    )  # none of an outcome that does not vary


def _partials(found: Analysis) -> tuple[Partial, ...]:
    if found.training is None:
        return ()
    group = spelled(found.training.group)
    names = (f"{group}, given loss", f"loss, given {group}")
    every = (
        (one.step, name, part)
        for one in found.training.moments
        for name, part in zip(names, (one.given_loss, one.given_group), strict=True)
    )
    return tuple(
        Partial(step, name, part.value, part.low, part.high)
        for step, name, part in every
        if np.isfinite(part.value)
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def _grids(found: Analysis) -> list[Grid]:
    made = []
    if found.variance:
        note = (
            f"R² {found.variance.r2:.3f}, {found.variance.residual_df} degrees of freedom left."
            + "".join(f" {text[0].upper()}{text[1:]}." for text in found.variance.notes)
        )
        columns = (
            "term",
            "df",
            "F",
            "p",
            "p by permutation",
            "partial η²",
            "partial ω²",
            "LMG share",
        )
        made.append(
            Grid(
                "Variance, type II",
                columns,
                tuple(_effect(one, found.variance.lmg) for one in found.variance.type2),
                note,
            )
        )
        if found.variance.type3:
            made.append(
                Grid(
                    "Variance, type III",
                    columns[:-1],
                    tuple(_effect(one, {})[:-1] for one in found.variance.type3),
                )
            )
    if found.loss_fit:
        fit = found.loss_fit
        rows = [
            (
                one.group if one is not fit.pooled else "all runs",
                str(one.n),
                within(one.r2),
                within(one.slope, True),
                within(one.intercept),
            )
            for one in (*fit.lines, fit.pooled)
        ]
        separate, common = (
            f"{fit.separate_r2:.3f}{_adjusted(fit.separate_adjusted)}",
            f"{fit.common_r2:.3f}{_adjusted(fit.common_adjusted)}",
        )
        note = f"Stratified by {spelled(fit.group)}: R² {separate} with separate slopes, {common} with a common slope ({within(fit.common_slope, True)})."
        made.append(
            Grid(
                f"{found.label[0].upper()}{found.label[1:]} on ln({_plain(found.loss)})",
                (spelled(fit.group), "runs", "R²", "slope", "at loss 1"),
                tuple(rows),
                note,
            )
        )
        pairs = {(one.first, one.second): one for one in fit.equal_loss.matched}
        equal = []
        for one in fit.equal_loss.differences:
            two = pairs.get((one.first, one.second))
            equal.append(
                (
                    f"{one.first} − {one.second}",
                    within(one.difference, True),
                    probability(one.p),
                    within(two.difference, True) if two else "–",
                    str(two.pairs) if two else "0",
                )
            )
        if equal:
            at = (
                f"At a loss of {figure(fit.equal_loss.loss)}; matched runs differ by at most 0.1 in ln(loss)."
                if fit.equal_loss.loss is not None
                else ""
            )
            made.append(
                Grid(
                    "At equal loss",
                    ("pair", "by fit", "p (Holm)", "by matched pairs", "pairs"),
                    tuple(equal),
                    at,
                )
            )
    if found.training:
        name = spelled(found.training.group)
        moments = tuple(
            (
                f"{one.step:g}",
                str(one.n),
                percent(one.given_loss),
                percent(one.given_group),
                within(one.advantage, True),
            )
            for one in found.training.moments
        )
        made.append(
            Grid(
                "Partial R² while training",
                ("step", "runs", f"{name}, given loss", f"loss, given {name}", "ln ratio"),
                moments,
                found.training.warning or "",
            )
        )
    if found.mediation and found.mediation.effects:
        effects = tuple(
            (
                f"{one.optimizer}, λ {'all' if one.weight is None else f'{one.weight:g}'}: {_plain(one.measure)}",
                str(one.pairs),
                within(one.difference, True),
            )
            for one in found.mediation.effects
        )
        made.append(
            Grid("Flatness penalty, with − without", ("outcome", "pairs", "difference"), effects)
        )
    if found.mediation and found.mediation.beyond:
        beyond = tuple(
            (
                _plain(one.measure),
                str(one.n),
                within(one.simple, True),
                within(one.partial, True),
                ", ".join(map(spelled, one.given)),
            )
            for one in found.mediation.beyond
        )
        made.append(
            Grid(
                "Flatness and outcome, correlations",
                ("measure", "runs", "alone", "partial", "given"),
                beyond,
            )
        )
    if found.stability.ranking:
        ranked = tuple(
            (
                one.group,
                within(one.mean),
                str(one.rank),
                f"{one.low} to {one.high}" if one.low != one.high else str(one.low),
            )
            for one in found.stability.ranking.groups
        )
        made.append(
            Grid(
                f"Ranking by {spelled(found.stability.ranking.factor)}",
                (spelled(found.stability.ranking.factor), "mean", "rank", "95 %, for all at once"),
                ranked,
            )
        )
    if found.stability.variants:
        variants = tuple(
            (one.variant, str(one.runs), " > ".join(one.order), percent(one.eta))
            for one in found.stability.variants
        )
        made.append(
            Grid(
                "Other ways of counting",
                (
                    "judge, definition",
                    "runs",
                    "order",
                    f"partial η² of {spelled(found.group or '')}",
                ),
                variants,
            )
        )
    return made


def _effect(one: Effect, lmg: Any) -> tuple[str, ...]:
    return (
        spelled(one.term),
        str(one.df),
        figure(one.f),
        probability(one.p),
        probability(one.permutation),
        percent(one.eta),
        f"{one.omega:.3f}".replace("-", "−"),
        f"{lmg[one.term]:.1%}".replace("%", " %") if one.term in lmg else "–",
    )


def _adjusted(value: float | None) -> str:
    return "" if value is None else f" (adjusted {value:.3f})"


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("heldout", "held-out")
