"""Entry point of the analysis: a table of runs in, every part of the analysis out.

A part that the data do not allow is replaced by the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evilspectra.analysis.cells import cell_columns, cells_of, unlisted
from evilspectra.analysis.claims import Claim, decide
from evilspectra.analysis.components import JUDGE, Components, components, judge_effect
from evilspectra.analysis.contrasts import fit
from evilspectra.analysis.counts import fit_counts
from evilspectra.analysis.design import SEED, describe
from evilspectra.analysis.estimate import Frame
from evilspectra.analysis.linear import lay_out, text_columns
from evilspectra.analysis.loss import LossFit, fit_loss, loss_claims, why_no_fit
from evilspectra.analysis.mediation import flatness_claims, mediation
from evilspectra.analysis.outcome import (
    COUNTED,
    MARGINS,
    Outcome,
    check_factors,
    choose,
    constants,
    numbers,
    read,
    select,
    usual_factors,
)
from evilspectra.analysis.penalty import penalty_claims
from evilspectra.analysis.ranking import Ranking, rank_frame, settle
from evilspectra.analysis.result import Analysis
from evilspectra.analysis.sentences import sentences
from evilspectra.analysis.shared import WEIGHT
from evilspectra.analysis.stability import Needed, Stability, seeds_needed, spreads
from evilspectra.analysis.trajectory import Trajectory, training_claims, trajectory
from evilspectra.analysis.variance import PERMUTATIONS, decompose
from evilspectra.analysis.variants import JUDGED, judged_rows, variants
from evilspectra.errors import BadInput, near
from evilspectra.evaluation.run_rates import MAIN_DEFINITION

#: Parts that need an outcome that varies.
_PARTS = ("variance", "components", "loss", "training")
#: Columns within whose levels runs are matched at equal loss.
_STRATA = ("base", "data", "batch_size", WEIGHT)


def analyse(
    frame: Frame,
    outcome: str | None = None,
    factors: Sequence[str] | None = None,
    checkpoints: Frame | None = None,
    loss: str = "train_loss",
    order: int = 2,
    rates: Frame | None = None,
    blocks: str | None = None,
    at: float | None = None,
    differences: Sequence[float] = (),
    permutations: int = PERMUTATIONS,
    margin: float | None = None,
) -> Analysis:
    """Every part for one outcome of the runs of a frame (columns as of `tidy.runs_frame`).

    `checkpoints`: rows of runs by step (`tidy.checkpoints_frame`); `rates`: rows by judge and
    definition (`tidy.rates_frame`); `blocks`: a column within whose levels permutations exchange;
    `at`: the loss to compare at; `differences`: those whose power is to be found; `margin`: the
    largest difference between two groups that is of no importance, on the scale of analysis;
    without it that of MARGINS.

    Raises:
        BadInput: an unknown outcome, factor or loss, an outcome that is not a number, a constant
            factor, too few runs.

    >>> import pandas as pd
    >>> columns = {"optimizer": list("aabb"), "mean_alignment": [80.0, 81, 60, 61]}
    >>> table = pd.DataFrame(columns | {"seed": [0, 1, 0, 1]})
    >>> analyse(table).variance.type2[0].term
    'optimizer'
    """
    name = choose(frame, outcome)
    runs, left_out = select(frame, name)
    if factors:
        check_factors(runs, factors)
    chosen = tuple(dict.fromkeys(factors)) if factors else usual_factors(runs, name)
    if blocks is not None and blocks not in runs:
        raise BadInput(
            f"there is no column '{blocks}' to exchange runs within.{near(blocks, runs)}"
        )
    if loss not in runs and loss != "train_loss":
        raise BadInput(f"there is no loss '{loss}': name a column with --loss.{near(loss, runs)}")
    measured = read(runs, name)
    group = _group(chosen)
    factors_of_design = chosen
    reasons: dict[str, str] = {}
    constant = measured.constant
    if constant is not None:
        chosen, group, checkpoints = (), None, None
        reasons = dict.fromkeys(_PARTS, constant)
    variance = decompose(runs, measured, chosen, order, blocks, permutations) if chosen else None
    if variance is None and constant is None:
        reasons["variance"] = (
            "no factor varies between these runs and repeats: vary the optimiser, the data or the "
            "base, or name one with --factor"
        )
    cell = cell_columns(runs, chosen)
    parts = _components(runs, measured, cell, rates) if constant is None else None
    if parts is None and constant is None:
        reasons["components"] = "the table has no column 'seed'"
    levelled = [*chosen]
    if "optimizer" in runs and "optimizer" not in chosen:
        levelled.append("optimizer")
    analysis = Analysis(
        outcome=name,
        label=measured.label,
        scale=measured.scale,
        better=measured.better,
        factors=chosen,
        group=group,
        loss=loss,
        runs=len(runs),
        left_out=left_out,
        design=describe(runs, factors_of_design, order),
        unlisted=tuple(unlisted(runs, cell)) if SEED in runs else (),
        constant=constants(frame, name) if outcome is None else {},
        variance=variance,
        components=parts,
        loss_fit=_loss(runs, measured, loss, group, at, reasons) if constant is None else None,
        training=(
            _training(checkpoints, runs, name, loss, group, reasons) if constant is None else None
        ),
        mediation=mediation(runs, measured, loss) if name != loss and constant is None else None,
        stability=Stability.without(constant)
        if constant is not None
        else _stability(runs, measured, group, chosen, cell, rates, differences, margin),
        reasons=reasons,
        levels={
            factor: tuple(sorted(set(text_columns(runs, [factor])[factor]))) for factor in levelled
        },
    )
    return decided(analysis)


def decided(analysis: Analysis, further: Sequence[Claim] = ()) -> Analysis:
    """The analysis with its claims decided over the page, and the sentences on them.

    `further`: claims of the same page that are not of the analysis; they come last.
    """
    ranking = analysis.stability.ranking
    claims: list[Claim] = []
    if ranking is not None:
        claims += ranking.claims
    if analysis.variance is not None:
        claims += [
            claim for claim in analysis.variance.claims if claim.subject != (analysis.group,)
        ]
    if analysis.loss_fit is not None:
        claims += loss_claims(analysis.loss_fit)
    if analysis.training is not None:
        claims += training_claims(analysis.training)
    if analysis.mediation is not None:
        claims += flatness_claims(analysis.mediation)
        claims += penalty_claims(analysis.mediation.penalty, analysis.outcome)
    analysis = replace(analysis, claims=decide([*claims, *further]))
    if ranking is not None:
        stability = replace(analysis.stability, ranking=settle(ranking, analysis.claims))
        analysis = replace(analysis, stability=stability)
    return replace(analysis, sentences=sentences(analysis))


def _group(factors: Sequence[str]) -> str | None:
    """The factor whose levels are compared at equal loss and ranked."""
    if "optimizer" in factors:
        return "optimizer"
    return factors[0] if factors else None


def _by_cell(outcome: Outcome, cells: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Values [n] and weights for the spread within cells; of rates their working response."""
    if outcome.misaligned is None or outcome.counted is None:
        return outcome.values, None
    names = sorted(set(cells))
    member = np.eye(len(names))[[names.index(cell) for cell in cells]]
    model = fit_counts(
        outcome.misaligned, outcome.counted, member, np.zeros(len(cells), int), sampling=True
    )
    return model.response, model.weights


def _components(
    runs: Frame,
    outcome: Outcome,
    cell: Sequence[str],
    rates: Frame | None,
) -> Components | None:
    """The components of the runs.

    With the judge's share where several judged the same runs under the paper's definition.
    """
    if SEED not in runs:
        return None
    values, weights = _by_cell(outcome, cells_of(runs, cell))
    parts = components(runs, values, cell, weights=weights)
    rows = judged_rows(runs, outcome.name, rates)
    if rows is None or parts.judge is not None:
        return parts
    rows = rows[rows["definition"] == MAIN_DEFINITION]
    if rows["judge_id"].nunique() < 2 or rows["folder"].duplicated().sum() < 2:
        return parts
    table = rows.assign(**{COUNTED: rows["counted"]}) if outcome.scale == "logit" else rows
    folders, judges = list(rows["folder"]), list(rows["judge_id"])
    main = lay_out({"run": folders, "judge": judges}, 1)
    model = fit(read(table, outcome.name), main.basis(main.terms), np.zeros(len(rows), int))
    effect = judge_effect(model.response, folders, judges, model.weights)
    if effect is None:
        return parts
    reasons = {part: reason for part, reason in parts.reasons.items() if part != JUDGE}
    return replace(parts, judge=effect, reasons=reasons)


def _loss(
    runs: Frame,
    outcome: Outcome,
    loss: str,
    group: str | None,
    at: float | None,
    reasons: dict[str, str],
) -> LossFit | None:
    if outcome.name == loss:
        reasons["loss"] = "the outcome is the loss itself"
        return None
    if loss not in runs:
        reasons["loss"] = f"the table has no column '{loss}'"
        return None
    if group is None:
        reasons["loss"] = "there are no groups to compare"
        return None
    losses = numbers(runs, loss)
    usable = np.isfinite(losses) & (losses > 0)
    names = np.asarray(text_columns(runs, [group])[group])
    strata_columns = [column for column in _STRATA if column in runs and column != group]
    texts = text_columns(runs, strata_columns)
    strata = np.asarray(
        ["|".join(texts[column][row] for column in strata_columns) for row in range(len(runs))]
    )
    own, own_losses, own_names = outcome.take(usable), losses[usable], names[usable].tolist()
    if (reason := why_no_fit(own, own_losses, own_names, group)) is not None:
        reasons["loss"] = reason
        return None
    fit = fit_loss(own, own_losses, own_names, strata[usable].tolist(), at, group)
    left = int((~usable).sum())
    if fit is None or not left:
        return fit
    return replace(fit, notes=(*fit.notes, f"{left} runs without a loss above 0 are left out"))


def _training(
    checkpoints: Frame | None,
    runs: Frame,
    name: str,
    loss: str,
    group: str | None,
    reasons: dict[str, str],
) -> Trajectory | None:
    if checkpoints is None:
        reasons["training"] = "no table of checkpoints was given"
        return None
    if group is None:
        reasons["training"] = "there are no groups to compare"
        return None
    key = "folder" if "folder" in checkpoints and "folder" in runs else "run"
    if lacking := sorted({key, "step", name, loss} - set(checkpoints)):
        reasons["training"] = f"the table of checkpoints lacks {', '.join(lacking)}"
        return None
    groups = dict(zip(runs[key], text_columns(runs, [group])[group], strict=True))
    rows = checkpoints[checkpoints[key].isin(list(groups)) & (checkpoints["step"] > 0)]
    rows = rows[np.isfinite(numbers(rows, name))]
    measured = read(rows, name)
    steps, keys = sorted(set(rows["step"])), list(groups)
    row_of = np.full((len(keys), len(steps)), -1)
    for row, (run, step) in enumerate(zip(rows[key], rows["step"], strict=True)):
        row_of[keys.index(run), steps.index(step)] = row
    outcomes = [measured.spread(row_of[:, column]) for column in range(len(steps))]
    losses = np.where(row_of < 0, np.nan, np.append(numbers(rows, loss), np.nan)[row_of])
    path = trajectory(
        [float(step) for step in steps], outcomes, losses, [groups[run] for run in keys], group
    )
    if path is None:
        reasons["training"] = (
            f"no step has three runs of two groups of {group} with {name} and {loss}: evaluate the "
            "checkpoints"
        )
    return path


def _stability(
    runs: Frame,
    outcome: Outcome,
    group: str | None,
    factors: Sequence[str],
    cell: Sequence[str],
    rates: Frame | None,
    differences: Sequence[float],
    margin: float | None,
) -> Stability:
    reasons: dict[str, str] = {}
    cells = cells_of(runs, cell)
    values, weights = _by_cell(outcome, cells)
    seeds, pooled = spreads(values, cells, weights) if SEED in runs else ((), None)
    if pooled is None:
        reasons["seeds"] = (
            "no two runs differ in the seed alone: add seeds to the sweep"
            if SEED in runs
            else "the table has no column 'seed'"
        )
    margin = MARGINS.get(outcome.name) if margin is None else margin
    ranking = rank_frame(runs, outcome, group, factors, margin)
    if ranking is None:
        reasons["ranking"] = "there are no groups to rank"
    ways = (
        variants(runs, outcome.name, rates, group, factors) if rates is not None and group else ()
    )
    if not ways:
        reasons["variants"] = (
            "nothing was judged, so there is one way of counting alone"
            if outcome.name not in JUDGED or rates is None
            else "no rates by judge and definition were found"
        )
    needed = _needed(outcome, pooled.value if pooled else None, ranking, differences)
    return Stability(seeds, pooled, needed, ranking, ways, reasons)


def _needed(
    outcome: Outcome,
    sd: float | None,
    ranking: Ranking | None,
    differences: Sequence[float],
) -> tuple[Needed, ...]:
    """Seeds for the differences, or else for the smallest and largest between two groups.

    With counts: at as many answers a run, and at four times as many.
    """
    if sd is None or not sd > 0:
        return ()
    wanted = [d for d in list(differences) or _differences_of_interest(ranking, sd) if d > 0]
    if outcome.counted is None or outcome.misaligned is None:
        return tuple(Needed(d, None, seeds_needed(d, sd)) for d in wanted)
    every = outcome.counted.sum()
    rate = np.clip(outcome.misaligned.sum() / every, 0.5 / every, 1 - 0.5 / every)
    answers = round(float(outcome.counted.mean()))
    answer_sd = float((rate * (1 - rate)) ** -0.5)
    between = max(0.0, sd**2 - answer_sd**2 / answers) ** 0.5
    return tuple(
        Needed(d, m, seeds_needed(d, between, answer_sd, m))
        for d in wanted
        for m in (answers, 4 * answers)
    )


def _differences_of_interest(ranking: Ranking | None, sd: float) -> list[float]:
    """The smallest and largest difference between two groups; without groups `sd` and 2·`sd`."""
    if ranking is None or not ranking.differences:
        return [sd, 2 * sd]
    apart = sorted(abs(difference.value) for difference in ranking.differences.values())
    return [apart[0], apart[-1]] if len(apart) > 1 else apart
