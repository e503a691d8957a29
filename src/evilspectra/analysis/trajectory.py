"""The optimiser's and the loss's share in explaining the outcome, checkpoint by checkpoint.

At each step partial R² of the group given ln(loss) and of ln(loss) given the group (module `loss`),
each with its noncentral F interval: each run is one row, so rows are independent there. The
comparison of the two, and of steps with each other, uses several rows of the same runs:

    A = ln(MSE of the pooled line / MSE of the group means),

positive where the group alone leaves less unexplained than the loss alone; of rates, with the
working response and weights of the binomial model of group and ln(loss). Its interval leaves out
whole runs, one at a time and at all steps together: the bias-corrected jackknife within groups
(Efron and Stein 1981). A is no mean, so that with Satterthwaite's (1946) degrees of freedom it errs
too often, the more so in the tails: in 0.4 % at a level of 0.08 %, even with 52 runs. So t has

- Satterthwaite's, but no more than a third of those that the groups have in all, if every group has
  at least 3 of its own (4 runs);
- otherwise those of the smallest group. With 2 runs in the widest of four groups Satterthwaite's
  would err in 17 % of tables at a level of 5 %.

Of rates with fewer than one misaligned (or other) answer a run on average there is no interval.
docs/statistics.md lists how often it errs. It uses no random draws: the same runs give the same
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evilspectra.analysis.claims import Claim
from evilspectra.analysis.contrasts import WELCH_FROM, fit
from evilspectra.analysis.estimate import MethodEstimate, t_interval
from evilspectra.analysis.linear import is_rounding
from evilspectra.analysis.lines import EXACT, group_means, losses_vary
from evilspectra.analysis.loss import FEWEST_RUNS, fit_loss
from evilspectra.analysis.outcome import Outcome

#: Of rates: working responses of runs that have hardly a misaligned answer are no measurements. At
#: 0.15 answers a run the jackknife errs in 2 % of tables at a level of 0.08 %.
RARE = "fewer than one misaligned answer a run"
#: Satterthwaite's degrees of freedom are used up to this share of all.
_TRUSTED = 1 / 3


@dataclass(frozen=True, slots=True)
class Moment:
    """One step.

    `given_loss`: partial R² of the group; `given_group`: of the loss; `advantage`: A, above 0 where
    the group explains more.
    """

    step: float
    n: int
    given_loss: MethodEstimate
    given_group: MethodEstimate
    advantage: MethodEstimate


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All steps, and how A changed from the first to the last; `runs`: the fewest at a step."""

    group: str
    runs: int
    moments: tuple[Moment, ...]
    change: MethodEstimate | None


def trajectory(
    steps: Sequence[float],
    outcomes: Sequence[Outcome],
    loss: np.ndarray,
    groups: Sequence[str],
    group: str = "optimizer",
) -> Trajectory | None:
    """Moments of the outcome and the loss, and the change of A.

    `outcomes`: of all runs at each step; `loss`: float64 [runs, steps]. Values are NaN where a run
    was not measured. None if no step has enough runs, or nothing varies. The change is over runs
    that were measured at both ends.
    """
    names = np.asarray([str(name) for name in groups])
    values = np.array([outcome.values for outcome in outcomes]).T
    measured = np.logical_and.reduce([np.isfinite(values), np.isfinite(loss), loss > 0])
    moments, used = [], []
    for column, step in enumerate(steps):
        enough = _in_enough(measured[:, column], names)
        own, own_loss = outcomes[column].take(enough), loss[enough, column]
        lines = fit_loss(own, own_loss, names[enough].tolist(), group=group)
        if lines is None:
            continue
        ahead = advantage([own], own_loss[:, None], names[enough])[0]
        moments.append(Moment(float(step), lines.n, lines.given_loss, lines.given_group, ahead))
        used.append(column)
    if not moments:
        return None
    ends = [used[0], used[-1]]
    both = _in_enough(measured[:, ends].all(axis=1), names)
    change = None
    if len(moments) > 1 and len(set(names[both].tolist())) > 1:
        at_ends = [outcomes[column].take(both) for column in ends]
        change = advantage(at_ends, loss[both][:, ends], names[both])[-1]
    return Trajectory(group, min(moment.n for moment in moments), tuple(moments), change)


def training_claims(path: Trajectory) -> list[Claim]:
    """List what the trajectory may show, undecided: A at the last step, and its change."""
    estimates = {"last": path.moments[-1].advantage, "change": path.change}
    return [
        Claim("training", (subject,), estimate.value, estimate.p, estimate.method, estimate.note)
        for subject, estimate in estimates.items()
        if estimate is not None
    ]


def _in_enough(usable: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Which runs [n] are usable, and of groups that have enough of those."""
    return usable & np.array([(names[usable] == name).sum() >= FEWEST_RUNS for name in names])


def advantage(
    outcomes: Sequence[Outcome],
    loss: np.ndarray,
    names: np.ndarray,
) -> list[MethodEstimate]:
    """A at each step of outcomes of n runs and losses [n, steps], with intervals over runs.

    With two steps or more the last element is the change from the first to the last step. Each
    group has three runs or more.
    """
    codes = np.unique(names, return_inverse=True)[1]
    sizes = np.bincount(codes)
    member = np.eye(len(sizes))[codes]
    x = np.log(loss)
    columns = [_response(outcome, x[:, k], codes) for k, outcome in enumerate(outcomes)]
    y, weights = (np.column_stack(part) for part in zip(*columns, strict=True))
    reasons = [
        _too_vague(outcome, y[:, k], loss[:, k], weights[:, k], names)
        for k, outcome in enumerate(outcomes)
    ]
    total = weights.sum(axis=0)
    x, y = x - (weights * x).sum(axis=0) / total, y - (weights * y).sum(axis=0) / total
    products = weights[..., None] * np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    table = np.einsum("ng,nsk->ngsk", member, products)
    totals = table.sum(axis=0)
    estimate = _advantage(totals[None], sizes[None].astype(float))[0]
    gone = _advantage(totals[None] - table, sizes - member)
    if len(reasons) > 1:
        reasons.append(reasons[0] or reasons[-1])
    return [
        MethodEstimate(np.nan, None, None, result.method, reason) if reason else result
        for reason, result in zip(reasons, jackknife(estimate, gone, codes), strict=True)
    ]


def _too_vague(
    outcome: Outcome,
    y: np.ndarray,
    loss: np.ndarray,
    weights: np.ndarray,
    names: np.ndarray,
) -> str | None:
    """Why A cannot be estimated from a step's runs; None if it can."""
    if outcome.misaligned is not None and outcome.counted is not None:
        bad = float(outcome.misaligned.sum())
        if min(bad, float(outcome.counted.sum()) - bad) < len(y):
            return RARE
    if outcome.constant is not None or not losses_vary(loss):
        return EXACT
    return EXACT if _is_exact(y, np.log(loss), weights, names) else None


def _response(outcome: Outcome, x: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Response and weights [n]; of rates those of the model of group and x."""
    if outcome.counted is None:
        return outcome.values, np.ones(len(x))
    columns = np.column_stack([np.eye(codes.max() + 1)[codes], x - group_means(x, codes)])
    model = fit(outcome, columns, np.zeros(len(x), int))
    return model.response, model.weights


def _is_exact(y: np.ndarray, x: np.ndarray, weights: np.ndarray, names: np.ndarray) -> bool:
    """Whether the pooled line or the group means leave rounding alone."""
    root = np.sqrt(weights)[:, None]
    member = np.unique(names)[None, :] == names[:, None]
    for columns in (np.column_stack([np.ones_like(x), x - x.mean()]), member.astype(float)):
        basis = np.linalg.qr(root * columns)[0]
        centred = root[:, 0] * (y - y.mean())
        if is_rounding(centred - basis @ (basis.T @ centred), root[:, 0] * y):
            return True
    return False


def _advantage(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A [draws, steps (+ change)] of sums over groups and of runs by group [draws, groups].

    `sums` [draws, groups, steps, 6]: of weights w, w·x, w·y, w·x², w·x·y, w·y².
    """
    n, groups = counts.sum(axis=1)[:, None], counts.shape[1]
    inside = (sums[..., 5] - sums[..., 2] ** 2 / sums[..., 0]).sum(axis=1)
    w, x, y, xx, xy, yy = np.moveaxis(sums.sum(axis=1), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = yy - y**2 / w - (xy - x * y / w) ** 2 / (xx - x**2 / w)
        advantages = np.log(pooled / (n - 2)) - np.log(inside / (n - groups))
    if advantages.shape[1] < 2:
        return advantages
    return np.hstack([advantages, advantages[:, -1:] - advantages[:, :1]])


def jackknife(
    estimate: np.ndarray,
    gone: np.ndarray,
    strata: np.ndarray,
    method: str = "cluster jackknife",
) -> list[MethodEstimate]:
    """Estimates [k] with intervals from their values without each cluster.

    `gone` [clusters, k]: the values without that cluster; `strata` [clusters]: the number of its
    stratum, which has two clusters or more.
    """
    sizes = np.bincount(strata).astype(float)
    member = np.eye(len(sizes))[strata]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = (member.T @ gone) / sizes[:, None]
        bias = ((sizes - 1)[:, None] * (means - estimate)).sum(axis=0)
        parts = ((sizes - 1) / sizes)[:, None] * (member.T @ (gone - means[strata]) ** 2)
        variance = parts.sum(axis=0)
        df = variance**2 / (parts**2 / (sizes - 1)[:, None]).sum(axis=0)
    smallest = float(sizes.min() - 1)
    most = _TRUSTED * float((sizes - 1).sum())
    df = np.minimum(df, most) if smallest >= WELCH_FROM else np.full_like(df, smallest)
    estimates = [
        t_interval(float(value - shift), float(np.sqrt(v)), float(freedom), method)
        for value, shift, v, freedom in zip(estimate, bias, variance, df, strict=True)
    ]
    return [
        replace(each, note="without one run, nothing is left unexplained")
        if each.p is None
        else each
        for each in estimates
    ]
