"""One entry for everything: a table of runs in, every part of the analysis out, each with a reason where the data cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evilspectra.analysis.components import JUDGE, Components, components
from evilspectra.analysis.design import SEED, describe
from evilspectra.analysis.estimate import Frame
from evilspectra.analysis.linear import text_columns
from evilspectra.analysis.loss import LossFit, fit_loss
from evilspectra.analysis.mediation import WEIGHT, mediation
from evilspectra.analysis.outcome import (
    COUNTED,
    MISALIGNED,
    Outcome,
    check_factors,
    choose,
    logits,
    numbers,
    read,
    select,
    usual_factors,
)
from evilspectra.analysis.result import Analysis
from evilspectra.analysis.sentences import sentences
from evilspectra.analysis.stability import (
    Needed,
    Ranking,
    Stability,
    Variant,
    rank_frame,
    seeds_needed,
    spreads,
)
from evilspectra.analysis.trajectory import Trajectory, trajectory
from evilspectra.analysis.variance import PERMUTATIONS, decompose, weighted_layout
from evilspectra.errors import BadInput, near
from evilspectra.evaluation.run_rates import MAIN_DEFINITION

#: Settings that tell cells apart beside the factors; seeds and what does not change a result are no setting here.
_CELL = ("base", "data", "optimizer", "lr", "batch_size", WEIGHT, "arm")
#: Within which levels runs are matched at equal loss.
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
) -> Analysis:
    """All parts for one outcome of the runs of a frame (columns as of `tidy.runs_frame`).

    `checkpoints`: rows of runs by step (`tidy.checkpoints_frame`); `rates`: rows by judge and definition (`tidy.rates_frame`); `blocks`: a column within whose levels
    permutations exchange; `at`: the loss to compare at; `differences`: those whose power is asked for.

    Raises:
        BadInput: an unknown outcome, factor or loss, an outcome that is no number, a constant factor, too few runs.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"optimizer": list("aabb"), "mean_alignment": [80.0, 81, 60, 61], "seed": [0, 1, 0, 1]})
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
    found = read(runs, name)
    group = "optimizer" if "optimizer" in chosen else chosen[0] if chosen else None
    reasons: dict[str, str] = {}
    design = describe(runs, chosen, order)
    variance = decompose(runs, found, chosen, order, blocks, permutations) if chosen else None
    if variance is None:
        reasons["variance"] = (
            "no factor varies between these runs and repeats: vary the optimiser, the data or the base, or name one with --factor"
        )
    cell = cell_columns(runs, chosen)
    parts = _components(runs, found, cell, rates)
    if parts is None:
        reasons["components"] = "the table has no column 'seed'"
    fit = _loss(runs, found, loss, group, at, reasons)
    path = _training(checkpoints, runs, name, loss, group, reasons)
    whole = Analysis(
        outcome=name, label=found.label, scale=found.scale, better=found.better, factors=chosen, group=group, loss=loss, runs=len(runs), left_out=left_out, design=design, variance=variance, components=parts,
        loss_fit=fit, training=path, mediation=mediation(runs, name, found.values, loss) if name != loss else None,
        stability=_stability(runs, found, group, chosen, cell, rates, differences), reasons=reasons, levels={one: tuple(sorted(set(text_columns(runs, [one])[one]))) for one in {*chosen, *(["optimizer"] if "optimizer" in runs else [])}},
    )  # fmt: skip
    return replace(whole, sentences=sentences(whole))


def cell_columns(frame: Frame, factors: Sequence[str]) -> list[str]:
    """The columns that are equal between replicates: factors, and every setting but seeds, folders and the arm's name."""
    dotted = [
        one
        for one in frame
        if isinstance(one, str)
        and "." in one
        and not one.endswith("seed")
        and not one.startswith("output.")
    ]
    return list(dict.fromkeys([*factors, *(one for one in _CELL if one in frame), *dotted]))


def _components(
    runs: Frame,
    found: Outcome,
    cell: Sequence[str],
    rates: Frame | None,
) -> Components | None:
    """The components of the runs, with the judge's share where several judged the same runs under the paper's definition."""
    if SEED not in runs:
        return None
    parts = components(runs, found.values, cell)
    rows = _rated(runs, found.name, rates)
    if rows is None or parts.judge is not None:
        return parts
    rows = rows[rows["definition"] == MAIN_DEFINITION]
    long = runs.drop(columns=[one for one in rows if one in runs and one != "folder"]).merge(
        rows, on="folder"
    )
    if long["judge_id"].nunique() < 2 or long["folder"].duplicated().sum() < 2:
        return parts
    values = (
        logits(numbers(long, MISALIGNED), numbers(long, "counted"))
        if found.scale == "logit"
        else numbers(long, found.name)
    )
    judged = components(long.assign(**{JUDGE: long["judge_id"]}), values, cell)
    return replace(
        parts,
        judge=judged.judge,
        reasons={name: why for name, why in parts.reasons.items() if name != JUDGE},
    )


def _rated(runs: Frame, name: str, rates: Frame | None) -> Frame | None:
    """The rows of rates of these runs at their last judged step, with a value of the outcome; None where the outcome is not judged, or nothing was."""
    if (
        rates is None
        or name not in ("misalignment", "mean_alignment")
        or "folder" not in runs
        or not len(rates)
    ):
        return None
    rows = rates[rates["folder"].isin(list(runs["folder"])) & (rates["step"] > 0)]
    rows = rows[rows["step"] == rows.groupby(["folder", "judge_id"])["step"].transform("max")]
    return rows[rows[name].notna() & (rows["counted"] > 0)]


def _loss(
    runs: Frame,
    found: Outcome,
    loss: str,
    group: str | None,
    at: float | None,
    reasons: dict[str, str],
) -> LossFit | None:
    if found.name == loss:
        reasons["loss"] = "the outcome is the loss itself"
        return None
    if loss not in runs or group is None:
        reasons["loss"] = (
            f"the table has no column '{loss}'"
            if loss not in runs
            else "there are no groups to compare"
        )
        return None
    losses = numbers(runs, loss)
    known = np.isfinite(losses) & (losses > 0)
    names = np.asarray(text_columns(runs, [group])[group])
    strata_of = [one for one in _STRATA if one in runs and one != group]
    texts = text_columns(runs, strata_of)
    strata = np.asarray(
        ["|".join(texts[one][row] for one in strata_of) for row in range(len(runs))]
    )
    fit = (
        fit_loss(
            found.values[known],
            losses[known],
            names[known].tolist(),
            strata[known].tolist(),
            at,
            group,
        )
        if known.any()
        else None
    )
    if fit is None:
        reasons["loss"] = (
            f"a line needs three runs at two losses in each of two groups of {group}: train with more seeds, data sets or learning rates"
        )
        return None
    left = int((~known).sum())
    return (
        replace(fit, notes=(*fit.notes, f"{left} runs without a loss above 0 are left out"))
        if left
        else fit
    )


def _training(
    checkpoints: Frame | None,
    runs: Frame,
    name: str,
    loss: str,
    group: str | None,
    reasons: dict[str, str],
) -> Trajectory | None:
    if checkpoints is None or group is None:
        reasons["training"] = (
            "no table of checkpoints was given"
            if checkpoints is None
            else "there are no groups to compare"
        )
        return None
    key = "folder" if "folder" in checkpoints and "folder" in runs else "run"
    if not {key, "step", name, loss} <= set(checkpoints):
        reasons["training"] = (
            f"the table of checkpoints lacks {', '.join(sorted({key, 'step', name, loss} - set(checkpoints)))}"
        )
        return None
    groups = dict(zip(runs[key], text_columns(runs, [group])[group], strict=True))
    rows = checkpoints[checkpoints[key].isin(list(groups)) & (checkpoints["step"] > 0)]
    y = numbers(rows, name)
    if name == "misalignment" and {MISALIGNED, COUNTED} <= set(rows):
        y = logits(numbers(rows, MISALIGNED), numbers(rows, COUNTED))
    known = np.isfinite(y)
    steps, keys = sorted(set(rows["step"][known])), list(groups)
    outcomes, losses = (np.full((len(keys), len(steps)), np.nan) for _ in range(2))
    for one, step, value, at_loss, there in zip(
        rows[key], rows["step"], y, numbers(rows, loss), known, strict=True
    ):
        if there:
            (
                outcomes[keys.index(one), steps.index(step)],
                losses[keys.index(one), steps.index(step)],
            ) = value, at_loss
    found = trajectory(
        [float(step) for step in steps], outcomes, losses, [groups[one] for one in keys], group
    )
    if found is None:
        reasons["training"] = (
            f"no step has three runs of two groups of {group} with {name} and {loss}: evaluate the checkpoints"
        )
    return found


def _stability(
    runs: Frame,
    found: Outcome,
    group: str | None,
    factors: Sequence[str],
    cell: Sequence[str],
    rates: Frame | None,
    differences: Sequence[float],
) -> Stability:
    reasons: dict[str, str] = {}
    texts = text_columns(runs, cell)
    shown = [one for one in cell if len(set(texts[one])) > 1]
    cells = [", ".join(texts[one][row] for one in shown) or "all" for row in range(len(runs))]
    seeds, pooled = spreads(found.values, cells) if SEED in runs else ((), None)
    if pooled is None:
        reasons["seeds"] = (
            "no two runs differ in the seed alone: add seeds to the sweep"
            if SEED in runs
            else "the table has no column 'seed'"
        )
    ranking = _ranking(runs, found, group, factors)
    if ranking is None:
        reasons["ranking"] = (
            "there are no groups to rank, or nothing is left to estimate the error from"
        )
    variants = _variants(runs, found, rates, group, factors) if rates is not None and group else ()
    if not variants:
        reasons["variants"] = (
            "nothing was judged, so there is one way of counting alone"
            if found.name not in ("misalignment", "mean_alignment") or rates is None
            else "no rates by judge and definition were found"
        )
    return Stability(
        seeds,
        pooled,
        _needed(found, pooled.value if pooled else None, ranking, differences),
        ranking,
        variants,
        reasons,
    )


def _ranking(
    runs: Frame,
    found: Outcome,
    group: str | None,
    factors: Sequence[str],
) -> Ranking | None:
    if group is None:
        return None
    weights = None
    if found.counted is not None:
        layout = weighted_layout(text_columns(runs, factors), 1, found)
        weights = layout.root**2
    return rank_frame(runs, found.values, group, factors, found.better, weights)


def _needed(
    found: Outcome,
    sd: float | None,
    ranking: Ranking | None,
    differences: Sequence[float],
) -> tuple[Needed, ...]:
    """Seeds for the asked differences, or for the smallest and largest between two groups; with counts, at as many answers and at four times as many."""
    if sd is None or not sd > 0:
        return ()
    apart = sorted(abs(one.value) for one in ranking.differences.values()) if ranking else []
    wanted = list(differences) or (
        [apart[0], apart[-1]] if len(apart) > 1 else apart or [sd, 2 * sd]
    )
    if found.counted is None or found.misaligned is None:
        return tuple(Needed(d, None, seeds_needed(d, sd)) for d in wanted if d > 0)
    rate = np.clip(
        found.misaligned.sum() / found.counted.sum(),
        0.5 / found.counted.sum(),
        1 - 0.5 / found.counted.sum(),
    )
    answers, answer_sd = round(float(found.counted.mean())), float((rate * (1 - rate)) ** -0.5)
    between = max(0.0, sd**2 - answer_sd**2 / answers) ** 0.5
    return tuple(
        Needed(d, m, seeds_needed(d, between, answer_sd, m))
        for d in wanted
        if d > 0
        for m in (answers, 4 * answers)
    )


def _variants(
    runs: Frame,
    found: Outcome,
    rates: Frame,
    group: str,
    factors: Sequence[str],
) -> tuple[Variant, ...]:
    """The ranking and the share of the group under every judge and definition; for mean alignment under every judge."""
    rows = _rated(runs, found.name, rates)
    if rows is None:
        return ()
    made = []
    for (judge_id, definition), kept in rows.groupby(["judge_id", "definition"], sort=True):
        columns = {
            "folder": kept["folder"],
            "misalignment": kept["misalignment"],
            "mean_alignment": kept["mean_alignment"],
            MISALIGNED: kept["misaligned"],
            COUNTED: kept["counted"],
        }
        table = runs.drop(
            columns=[one for one in columns if one in runs and one != "folder"]
        ).merge(type(runs)(columns), on="folder")
        usable = [one for one in factors if one in table and table[one].nunique() > 1]
        if len(table) < 4 or group not in usable or table[found.name].nunique() < 2:
            continue
        one = read(table, found.name)
        ranking, share = (
            _ranking(table, one, group, usable),
            decompose(table, one, usable, 1, permutations=0),
        )
        effect = next((effect for effect in share.type2 if group in effect.term), None)
        if ranking is None or effect is None:
            continue
        means = {ranked.group: ranked.mean.value for ranked in ranking.groups}
        made.append(
            Variant(
                f"{kept['judge'].iloc[0]} ({judge_id}), {definition}",
                len(table),
                tuple(means),
                tuple(ranking.shown()),
                effect.eta,
                means,
            )
        )
    return tuple(made)
