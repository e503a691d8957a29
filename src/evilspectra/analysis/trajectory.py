"""The optimiser's and the loss's share in explaining the outcome, checkpoint by checkpoint.

At each step partial R² of the group given ln(loss) and of ln(loss) given the group (module `loss`),
each with its noncentral F interval: each run is one row, so rows are independent there. The
comparison of the two, and of steps with each other, uses several rows of the same runs:

    A = ln(MSE of the pooled line / MSE of the group means),

positive where the group alone leaves less unexplained than the loss alone. Its interval leaves out
whole runs, one at a time and at all steps together: the bias-corrected jackknife within groups, and
t with Satterthwaite's degrees of freedom (Efron and Stein 1981; Satterthwaite 1946). In simulations
its coverage is better than that of a studentised bootstrap over runs (docs/statistics.md), and it
uses no random draws, so the same runs give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evilspectra.analysis.estimate import MethodEstimate, t_interval
from evilspectra.analysis.loss import fit_loss
from evilspectra.intervals import FEW_CLUSTERS


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
    """All steps, and how A changed from the first to the last.

    `warning`: that there are too few runs, else None.
    """

    group: str
    runs: int
    moments: tuple[Moment, ...]
    change: MethodEstimate | None
    warning: str | None


def trajectory(
    steps: Sequence[float],
    y: np.ndarray,
    loss: np.ndarray,
    groups: Sequence[str],
    group: str = "optimizer",
) -> Trajectory | None:
    """Moments of the outcome `y` and the `loss`, float64 [runs, steps], and the change of A.

    NaN where a run was not measured; None if no step has enough runs. The change is over runs
    that were measured at both ends.
    """
    names = np.asarray([str(name) for name in groups])
    moments, used = [], []
    for column, step in enumerate(steps):
        usable = np.isfinite(y[:, column]) & np.isfinite(loss[:, column]) & (loss[:, column] > 0)
        if not usable.any():
            continue
        fit = fit_loss(y[usable, column], loss[usable, column], names[usable].tolist(), group=group)
        if fit is None:
            continue
        enough = usable & np.array([(names[usable] == name).sum() >= 3 for name in names])
        log_loss = np.log(loss[enough, column])
        ahead = advantage(y[enough, column][:, None], log_loss[:, None], names[enough])[0]
        moments.append(Moment(float(step), fit.n, fit.given_loss, fit.given_group, ahead))
        used.append(column)
    if not moments:
        return None
    ends = [used[0], used[-1]]
    both = (np.isfinite(y[:, ends]) & np.isfinite(loss[:, ends]) & (loss[:, ends] > 0)).all(axis=1)
    both &= np.array([(names[both] == name).sum() >= 3 for name in names])
    change = None
    if len(moments) > 1 and len(set(names[both].tolist())) > 1:
        change = advantage(y[both][:, ends], np.log(loss[both][:, ends]), names[both])[-1]
    runs = int(min(moment.n for moment in moments))
    warning = (
        f"the intervals over runs rest on {runs} runs: below {FEW_CLUSTERS} they are too narrow"
        if runs < FEW_CLUSTERS
        else None
    )
    return Trajectory(group, runs, tuple(moments), change, warning)


def advantage(y: np.ndarray, x: np.ndarray, names: np.ndarray) -> list[MethodEstimate]:
    """A at each step of y, x [runs, steps], x being ln(loss), with intervals over runs.

    With two steps or more the last element is the change from the first to the last step.
    """
    codes = np.unique(names, return_inverse=True)[1]
    sizes = np.bincount(codes)
    member = np.eye(len(sizes))[codes]
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    products = np.stack([x, y, x * x, x * y, y * y], axis=-1)
    table = np.einsum("ng,nsk->ngsk", member, products)
    totals = table.sum(axis=0)
    estimate = _advantage(totals[None], sizes[None].astype(float))[0]
    gone = _advantage(totals[None] - table, sizes - member)
    return jackknife(estimate, gone, codes)


def _advantage(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A [draws, steps (+ change)] of sums over groups and of runs by group [draws, groups].

    `sums` [draws, groups, steps, 5]: of x, y, x², xy, y².
    """
    n, groups = counts.sum(axis=1)[:, None], counts.shape[1]
    counts = counts[:, :, None]
    inside = (sums[..., 4] - sums[..., 1] ** 2 / counts).sum(axis=1)
    x, y, xx, xy, yy = np.moveaxis(sums.sum(axis=1), -1, 0)
    pooled = yy - y**2 / n - (xy - x * y / n) ** 2 / (xx - x**2 / n)
    with np.errstate(divide="ignore", invalid="ignore"):
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
    means = (member.T @ gone) / sizes[:, None]
    bias = ((sizes - 1)[:, None] * (means - estimate)).sum(axis=0)
    parts = ((sizes - 1) / sizes)[:, None] * (member.T @ (gone - means[strata]) ** 2)
    variance = parts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = variance**2 / (parts**2 / (sizes - 1)[:, None]).sum(axis=0)
    return [
        t_interval(float(value - shift), float(np.sqrt(v)), float(freedom), method)
        for value, shift, v, freedom in zip(estimate, bias, variance, df, strict=True)
    ]
