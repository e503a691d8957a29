"""At every checkpoint: does the optimiser say more of the outcome than the loss does?

At each step partial R² of the group given ln(loss) and of ln(loss) given the group (module `loss`), each with its noncentral F interval: one row a run, so rows are independent there.
What compares the two, and steps with each other, has rows that belong to the same runs:

    A = ln(MSE of the pooled line / MSE of the group means),

positive where the group alone leaves less unexplained than the loss alone. Its interval leaves out whole runs, one at a time and at all steps together: the jackknife within groups with
its bias taken off and t with Satterthwaite's degrees of freedom (Efron and Stein 1981; Satterthwaite 1946). Simulated against a studentised bootstrap over runs it covers better
(docs/statistics.md), and it draws nothing, so that the same runs give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evilspectra.analysis.estimate import Estimate, plain, t_interval
from evilspectra.analysis.loss import LossFit, fit_loss

#: With fewer runs than this an interval over clusters is too narrow to be taken at its word.
FEW_CLUSTERS = 20


@dataclass(frozen=True, slots=True)
class Moment:
    """One step. `given_loss`: partial R² of the group; `given_group`: of the loss; `advantage`: A, above 0 where the group says more."""

    step: float
    n: int
    given_loss: Estimate
    given_group: Estimate
    advantage: Estimate


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All steps, and how A changed from the first to the last. `warning`: where there are too few runs."""

    group: str
    runs: int
    moments: tuple[Moment, ...]
    change: Estimate | None
    warning: str | None

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


def trajectory(
    steps: Sequence[float],
    y: np.ndarray,
    loss: np.ndarray,
    groups: Sequence[str],
    group: str = "optimizer",
) -> Trajectory | None:
    """`y`, `loss` float64 [runs, steps], NaN where a run was not measured; None where no step has enough runs. The change is over runs measured at both ends."""
    names = np.asarray([str(one) for one in groups])
    moments, used = [], []
    for place, step in enumerate(steps):
        known = np.isfinite(y[:, place]) & np.isfinite(loss[:, place]) & (loss[:, place] > 0)
        fit: LossFit | None = (
            fit_loss(y[known, place], loss[known, place], names[known].tolist(), group=group)
            if known.any()
            else None
        )
        if fit is None:
            continue
        enough = known & np.array([(names[known] == one).sum() >= 3 for one in names])
        moments.append(
            Moment(
                float(step),
                fit.n,
                fit.given_loss,
                fit.given_group,
                advantage(
                    y[enough, place][:, None], np.log(loss[enough, place])[:, None], names[enough]
                )[0],
            )
        )
        used.append(place)
    if not moments:
        return None
    ends = [used[0], used[-1]]
    both = (np.isfinite(y[:, ends]) & np.isfinite(loss[:, ends]) & (loss[:, ends] > 0)).all(axis=1)
    both &= np.array([(names[both] == one).sum() >= 3 for one in names])
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


def advantage(y: np.ndarray, x: np.ndarray, names: np.ndarray) -> list[Estimate]:
    """A at each step of y, x [runs, steps], x being ln(loss), with intervals over runs; with two steps or more, last the change from the first to the last."""
    places = np.unique(names, return_inverse=True)[1]
    sizes = np.bincount(places)
    member = np.eye(len(sizes))[places]
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    products = np.stack([x, y, x * x, x * y, y * y], axis=-1)
    table = np.einsum("ng,nsk->ngsk", member, products)
    whole = table.sum(axis=0)
    estimate = _advantage(whole[None], sizes[None].astype(float))[0]
    gone = _advantage(whole[None] - table, sizes - member)
    return jackknife(estimate, gone, places)


def _advantage(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A [draws, steps (+ change)] of sums over groups [draws, groups, steps, 5] and runs by group [draws, groups]."""
    n, groups, counts = counts.sum(axis=1)[:, None], counts.shape[1], counts[:, :, None]
    inside = (sums[..., 4] - sums[..., 1] ** 2 / counts).sum(axis=1)
    x, y, xx, xy, yy = np.moveaxis(sums.sum(axis=1), -1, 0)
    pooled = yy - y**2 / n - (xy - x * y / n) ** 2 / (xx - x**2 / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(pooled / (n - 2)) - np.log(inside / (n - groups))
    return np.hstack([found, found[:, -1:] - found[:, :1]]) if found.shape[1] > 1 else found


def jackknife(
    estimate: np.ndarray,
    gone: np.ndarray,
    places: np.ndarray,
    method: str = "cluster jackknife",
) -> list[Estimate]:
    """Estimates [k] with intervals from their values without each cluster [clusters, k], clusters being drawn within strata `places` [clusters] of two or more."""
    sizes = np.bincount(places).astype(float)
    member = np.eye(len(sizes))[places]
    means = (member.T @ gone) / sizes[:, None]
    bias = ((sizes - 1)[:, None] * (means - estimate)).sum(axis=0)
    parts = ((sizes - 1) / sizes)[:, None] * (member.T @ (gone - means[places]) ** 2)
    variance = parts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = variance**2 / (parts**2 / (sizes - 1)[:, None]).sum(axis=0)
    return [
        t_interval(float(value - shift), float(np.sqrt(v)), float(one), method)
        for value, shift, v, one in zip(estimate, bias, variance, df, strict=True)
    ]
