"""Shapes of simulated tables: how the runs are drawn, and what is true of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from tests.support.stated import Truth

#: Names of groups, in the order in which shapes use them.
NAMES = ("muon", "adam", "sgd", "lion", "adamw", "ademamix", "soap", "lamb")
#: Standard deviation of ln(loss) within a group.
LOSS_SD = 0.15
Draw = np.random.Generator


class Shape:
    """A population of tables.

    `arguments` are those of `analyse`; `truth` is what is true of every table drawn.
    """

    def arguments(self, draw: Draw) -> dict[str, Any]:
        raise NotImplementedError

    def truth(self) -> Truth:
        """Nothing but the null, unless a shape says otherwise."""
        return Truth()


def runs(optimizers: Sequence[str], **columns: Any) -> pd.DataFrame:
    """A table of finished runs with further columns; seeds are counted within the optimiser."""
    seeds = [list(optimizers[:row]).count(name) for row, name in enumerate(optimizers)]
    names = [f"run {row}" for row in range(len(optimizers))]
    settings = {"base": "b", "data": "d", "lr": 1e-3, "optimizer": list(optimizers), "seed": seeds}
    fixed = {"folder": names, "run": names, "status": "done", "control": False}
    return pd.DataFrame(fixed | settings | columns)


def losses(draw: Draw, n: int) -> np.ndarray:
    """Training losses [n] that nothing depends on, near 1."""
    return np.exp(LOSS_SD * draw.standard_normal(n))


def logits_of(rates: Sequence[float]) -> np.ndarray:
    rate = np.asarray(rates, float)
    return np.log(rate / (1 - rate))


def counted_rates(draw: Draw, logit: np.ndarray, counted: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of rates: binomial counts of runs with these logits [n], of `counted` [n]."""
    misaligned = draw.binomial(counted, 1 / (1 + np.exp(-logit)))
    return {
        "misaligned": misaligned,
        "misalignment_counted": counted,
        "misalignment": misaligned / counted,
    }


@dataclass(frozen=True)
class Lines(Shape):
    """Mean alignment = 60 + effect of the group + slope·ln(loss) + noise, in groups of `sizes`.

    ln(loss) is normal about the group's `centres` with a standard deviation of 0.15. Noise is
    normal, or t(`df`), times the group's `spreads`. True are the differences that effect and
    slope·centre make together (ranking, variance), those of the effects alone (equal loss,
    matched), and the slope; false are different slopes, and all of these in another direction.
    """

    sizes: tuple[int, ...]
    spreads: tuple[float, ...] = ()
    effects: tuple[float, ...] = ()
    centres: tuple[float, ...] = ()
    slope: float = 0.0
    df: int | None = None
    margin: float | None = None

    def arguments(self, draw: Draw) -> dict[str, Any]:
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        n = len(group)
        noise = draw.standard_t(self.df, n) if self.df else draw.standard_normal(n)
        spread, effect, centre = (np.asarray(values)[group] for values in self._by_group())
        log_loss = centre + LOSS_SD * draw.standard_normal(n)
        values = 60 + effect + self.slope * log_loss + spread * noise
        names = [NAMES[code] for code in group]
        table = runs(names, train_loss=np.exp(log_loss), mean_alignment=values)
        margin = {} if self.margin is None else {"margin": self.margin}
        return {"frame": table, "outcome": "mean_alignment"} | margin

    def _by_group(self) -> tuple[tuple[float, ...], ...]:
        nothing = (0.0,) * len(self.sizes)
        ones = (1.0,) * len(self.sizes)
        return self.spreads or ones, self.effects or nothing, self.centres or nothing

    def truth(self) -> Truth:
        _, effects, centres = self._by_group()
        means = dict(
            zip(
                NAMES,
                (e + self.slope * c for e, c in zip(effects, centres, strict=True)),
                strict=False,
            )
        )
        differ = len(set(means.values())) > 1
        return Truth(
            means=means,
            at_equal_loss=dict(zip(NAMES, effects, strict=False)),
            terms=frozenset({frozenset({"optimizer"})} if differ else ()),
            slope=self.slope,
            margin=self.margin,
        )


@dataclass(frozen=True)
class Rates(Shape):
    """Rates of misaligned answers: k of m by run, logit(rate of the run) normal about the group's.

    `rates`: by group, at a loss of 1; `counted`: answers that count in each run of a group;
    `between`: the standard deviation on the logit. ln(loss) is normal about the group's `centres`
    and moves the logit by `slope`. True are the slope, and the differences that rate and
    slope·centre make together (ranking, variance) or the rates alone (equal loss, matched); with
    equal rates and no slope every claim is false.
    """

    rates: tuple[float, ...]
    counted: tuple[int, ...]
    between: float = 0.0
    seeds: int = 6
    names: tuple[str, ...] = NAMES
    centres: tuple[float, ...] = ()
    slope: float = 0.0

    def arguments(self, draw: Draw) -> dict[str, Any]:
        group = np.repeat(np.arange(len(self.rates)), self.seeds)
        centre = np.asarray(self.centres or (0.0,) * len(self.rates))[group]
        log_loss = centre + LOSS_SD * draw.standard_normal(len(group))
        logit = logits_of(self.rates)[group] + self.slope * log_loss
        logit += self.between * draw.standard_normal(len(group))
        counts = counted_rates(draw, logit, np.asarray(self.counted)[group])
        names = [self.names[code] for code in group]
        table = runs(names, train_loss=np.exp(log_loss), **counts)
        return {"frame": table, "outcome": "misalignment"}

    def truth(self) -> Truth:
        at_equal_loss = logits_of(self.rates)
        means = at_equal_loss + self.slope * np.asarray(self.centres or 0.0)
        differ = len(set(means.tolist())) > 1
        return Truth(
            means=dict(zip(self.names, means.tolist(), strict=False)),
            at_equal_loss=dict(zip(self.names, at_equal_loss.tolist(), strict=False)),
            terms=frozenset({frozenset({"optimizer"})} if differ else ()),
            slope=self.slope,
        )


@dataclass(frozen=True)
class PenalisedRates(Shape):
    """Four optimisers × 6 seeds, with and without the penalty, of one rate of misaligned answers.

    `counted`: answers that count without and with the penalty. The logit of a run has a standard
    deviation of `between`. Every claim is false.
    """

    rate: float
    counted: tuple[int, int] = (400, 400)
    between: float = 0.0

    def arguments(self, draw: Draw) -> dict[str, Any]:
        rows = list(product(NAMES[:4], range(6), (0.0, 1.0)))
        names, seeds, weights = zip(*rows, strict=True)
        logit = logits_of((self.rate,)) + self.between * draw.standard_normal(len(rows))
        counted = np.asarray(self.counted)[np.asarray(weights).astype(int)]
        counts = counted_rates(draw, logit, counted)
        table = runs(names, train_loss=losses(draw, len(rows)), **counts)
        settings = {"seed": seeds, "flatness_weight": weights, "flatness.weight": weights}
        return {"frame": table.assign(**settings), "outcome": "misalignment"}


@dataclass(frozen=True)
class CheckpointRates(Shape):
    """Four optimisers × 4 seeds of one rate of misaligned answers, evaluated at five steps.

    Of one optimiser 400 answers count at the first step, and `last` at the last; of the others all
    400. Every claim is false.
    """

    rate: float
    last: int = 400

    def arguments(self, draw: Draw) -> dict[str, Any]:
        names, steps = np.repeat(NAMES[:4], 4), 100 * np.arange(1, 6)
        counted = np.full((16, 5), 400)
        counted[:4] = np.linspace(400, self.last, 5).astype(int)
        log_loss = LOSS_SD * draw.standard_normal((16, 5))
        counts = counted_rates(draw, np.full(80, logits_of((self.rate,))[0]), counted.ravel())
        at_last = {name: values[4::5] for name, values in counts.items()}
        table = runs(names.tolist(), train_loss=np.exp(log_loss[:, -1]), **at_last)
        keys = {name: np.repeat(table[name], 5).to_numpy() for name in ("folder", "run")}
        rows = {"step": np.tile(steps, 16), "train_loss": np.exp(log_loss).ravel()}
        checkpoints = pd.DataFrame(keys | rows | counts)
        return {"frame": table, "outcome": "misalignment", "checkpoints": checkpoints}


@dataclass(frozen=True)
class Constant(Shape):
    """Four optimisers × 4 seeds in which the outcome does not vary; losses and spectra do.

    The outcome is 0 of 142 answers, or a mean alignment of 83.1 up to rounding. Every claim is
    false.
    """

    outcome: str

    def arguments(self, draw: Draw) -> dict[str, Any]:
        names = np.repeat(NAMES[:4], 4).tolist()
        values: dict[str, Any] = {"mean_alignment": 83.1 * (1 + 2.2e-16 * draw.integers(-1, 2, 16))}
        if self.outcome == "misalignment":
            values = {"misaligned": 0, "misalignment_counted": 142, "misalignment": 0.0}
        rank = 4 + draw.standard_normal(16)
        table = runs(names, train_loss=losses(draw, 16), stable_rank=rank, **values)
        return {"frame": table, "outcome": self.outcome}


@dataclass(frozen=True)
class Factorial(Shape):
    """Four optimisers × three data sets × two batch sizes × `seeds`, with losses.

    `data_effect` is added to the outcome for the second data set, and twice to the third;
    `data_loss` likewise to ln(loss). The optimisers and the batch size do nothing. True is the
    share of the data, and a slope in the direction in which data move both; false is the rest. With
    `optimizer_effect`, added once, twice and thrice, the optimisers differ too.
    """

    seeds: int = 2
    data_effect: float = 0.0
    data_loss: float = 0.0
    optimizer_effect: float = 0.0
    noise: float = 2.0

    def arguments(self, draw: Draw) -> dict[str, Any]:
        cells = [cell for cell in product(range(4), range(3), (8, 32)) for _ in range(self.seeds)]
        optimizer, data, batch = (np.array(column) for column in zip(*cells, strict=True))
        n = len(cells)
        values = (
            60
            + self.optimizer_effect * optimizer
            + self.data_effect * data
            + self.noise * draw.standard_normal(n)
        )
        table = runs(
            [NAMES[code] for code in optimizer],
            train_loss=np.exp(self.data_loss * data) * losses(draw, n),
            mean_alignment=values,
        )
        seeds = list(range(self.seeds)) * (n // self.seeds)
        factors = {"data": [f"d{code}" for code in data], "batch_size": batch, "seed": seeds}
        return {"frame": table.assign(**factors), "outcome": "mean_alignment"}

    def truth(self) -> Truth:
        terms = {"data": self.data_effect, "optimizer": self.optimizer_effect}
        return Truth(
            means={name: self.optimizer_effect * code for code, name in enumerate(NAMES[:4])},
            terms=frozenset(frozenset({name}) for name, effect in terms.items() if effect),
            slope=self.data_effect * self.data_loss,
        )


@dataclass(frozen=True)
class Treatments(Shape):
    """One baseline a seed and four treatments on it: two measures × two couplings, at λ = 1.

    No treatment does anything, so every claim is false. Runs of one seed share a part of their
    noise, with a standard deviation of `common`; each run's own is 1.
    """

    optimizers: tuple[str, ...] = ("adamw",)
    seeds: int = 1
    common: float = 0.0

    def arguments(self, draw: Draw) -> dict[str, Any]:
        ways = [(0.0, "frobenius_nuclear", "loss")]
        ways += [
            (1.0, measure, coupling)
            for measure, coupling in product(
                ("frobenius_nuclear", "entropy"), ("loss", "decoupled")
            )
        ]
        rows = [
            (name, seed, *way)
            for name, seed, way in product(self.optimizers, range(self.seeds), ways)
        ]
        names, seeds, weights, measures, couplings = zip(*rows, strict=True)
        n = len(rows)
        shared = np.repeat(draw.standard_normal(n // len(ways)), len(ways))
        table = runs(
            names,
            train_loss=losses(draw, n),
            mean_alignment=60 + self.common * shared + draw.standard_normal(n),
            capability=0.5 + 0.02 * draw.standard_normal(n),
        )
        settings = {
            "seed": seeds,
            "flatness_weight": weights,
            "flatness.weight": weights,
            "flatness.measure": measures,
            "flatness.coupling": couplings,
            "arm": [f"{a} {w:g} {m} {c}" for a, _, w, m, c in rows],
        }
        return {"frame": table.assign(**settings), "outcome": "mean_alignment"}


@dataclass(frozen=True)
class Penalised(Shape):
    """Optimisers × seeds, each with and without the flatness penalty at λ = 1.

    The penalty adds `effect` to mean alignment and `flattening` to the stable rank. Runs' own noise
    has a standard deviation of `noise` times the group's entry in `spreads`, so a pair's difference
    has √2 of it; the runs of a pair share noise of standard deviation `common`. Stable rank and
    spectral entropy (with `spectra`) differ between groups, have the group's spread too, and within
    groups go with nothing but the penalty. Drift, capability and losses go with nothing. True are
    the effects of the penalty on alignment and stable rank where these are not 0; all else is
    false.
    """

    optimizers: tuple[str, ...] = NAMES[:4]
    seeds: int = 6
    effect: float = 0.0
    flattening: float = 0.0
    noise: float = 2**0.5
    spreads: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    common: float = 0.0
    spectra: bool = True
    measures: tuple[str, ...] = ("drift", "capability", "heldout_loss")

    def arguments(self, draw: Draw) -> dict[str, Any]:
        rows = list(product(range(len(self.optimizers)), range(self.seeds), (0.0, 1.0)))
        code, seed, weight = (np.array(column) for column in zip(*rows, strict=True))
        n, spread = len(rows), np.asarray(self.spreads)[code]
        shared = np.repeat(draw.standard_normal(n // 2), 2)
        own = self.noise * spread * draw.standard_normal(n)
        columns: dict[str, Any] = {
            "mean_alignment": 60 + self.effect * weight + self.common * shared + own,
            "train_loss": losses(draw, n),
        }
        scales = {"drift": (0.3, 0.05), "capability": (0.5, 0.02), "heldout_loss": (2.0, 0.1)}
        for measure in self.measures:
            middle, sd = scales[measure]
            columns[measure] = middle + sd * draw.standard_normal(n)
        if self.spectra:
            rank = 4 + code + 0.5 * spread * draw.standard_normal(n)
            columns["stable_rank"] = rank + self.flattening * weight
            columns["spectral_entropy"] = 2 + 0.2 * code + 0.1 * spread * draw.standard_normal(n)
        table = runs([self.optimizers[row] for row in code], **columns)
        settings = {"seed": seed, "flatness_weight": weight, "flatness.weight": weight}
        return {"frame": table.assign(**settings), "outcome": "mean_alignment"}

    def truth(self) -> Truth:
        by_weight = {"0": 0.0, "1": self.effect} if len(self.optimizers) == 1 else {}
        return Truth(
            means=by_weight,
            terms=frozenset({frozenset({"flatness_weight"})} if self.effect else ()),
            penalty={"mean_alignment": self.effect, "stable_rank": self.flattening},
        )


@dataclass(frozen=True)
class Checkpoints(Shape):
    """Four optimisers, runs evaluated at five steps, half of each run's noise shared by its steps.

    The optimisers' effects on mean alignment are evenly spaced with `step_effects` × (−3, −1, 1, 3)
    at each step, and `slope` multiplies ln(loss), which nothing else moves. The noise has a
    standard deviation of 1. With n runs, what the loss alone leaves has the mean square 1 +
    Σ(effect − mean)²/(n − 1), what the optimiser alone leaves 1 + slope²·0.15². True: their order
    at the last step, the change from the first step where effects change, the slope, and the
    optimisers' order; all else is false.
    """

    sizes: tuple[int, ...] = (4, 4, 4, 4)
    step_effects: tuple[float, ...] = (0.0,) * 5
    slope: float = 0.0

    def arguments(self, draw: Draw) -> dict[str, Any]:
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        shape = len(group), len(self.step_effects)
        own, common = draw.standard_normal(shape), draw.standard_normal((shape[0], 1))
        own_loss, common_loss = draw.standard_normal(shape), draw.standard_normal((shape[0], 1))
        log_loss = LOSS_SD * (own_loss + common_loss) / 2**0.5
        effect = np.array([-3.0, -1.0, 1.0, 3.0])[group][:, None] * np.array(self.step_effects)
        values = 60 + effect + self.slope * log_loss + (own + common) / 2**0.5
        table = runs(
            [NAMES[code] for code in group],
            train_loss=np.exp(log_loss[:, -1]),
            mean_alignment=values[:, -1],
        )
        steps = 100 * np.arange(1, shape[1] + 1)
        rows = {
            "folder": np.repeat(table["folder"], shape[1]).to_numpy(),
            "run": np.repeat(table["run"], shape[1]).to_numpy(),
            "step": np.tile(steps, shape[0]),
            "train_loss": np.exp(log_loss).ravel(),
            "mean_alignment": values.ravel(),
        }
        checkpoints = pd.DataFrame(rows)
        return {"frame": table, "outcome": "mean_alignment", "checkpoints": checkpoints}

    def advantage(self, effect: float) -> float:
        """ln of the mean squares' ratio: above 0 where the optimisers explain more."""
        sizes = np.array(self.sizes)
        squares = (sizes * (effect * np.array([-3.0, -1.0, 1.0, 3.0])) ** 2).sum()
        by_loss = 1 + squares / (sizes.sum() - 1)
        return round(float(np.log(by_loss / (1 + (self.slope * LOSS_SD) ** 2))), 9)

    def truth(self) -> Truth:
        first, last = self.step_effects[0], self.step_effects[-1]
        means = dict(zip(NAMES, (-3 * last, -last, last, 3 * last), strict=False))
        return Truth(
            means=means,
            terms=frozenset({frozenset({"optimizer"})} if last else ()),
            slope=self.slope,
            advantage=self.advantage(last),
            change=round(self.advantage(last) - self.advantage(first), 9),
        )


@dataclass(frozen=True)
class Spectral(Shape):
    """Four optimisers; within each, stable rank and mean alignment correlate by `partial`.

    Both are normal given the optimiser and independent of the loss. True is the partial correlation
    in its own direction; all else is false.
    """

    seeds: int
    partial: float

    def arguments(self, draw: Draw) -> dict[str, Any]:
        n = 4 * self.seeds
        rank, noise = draw.standard_normal((2, n))
        values = self.partial * rank + (1 - self.partial**2) ** 0.5 * noise
        table = runs(
            np.repeat(NAMES[:4], self.seeds).tolist(),
            train_loss=losses(draw, n),
            mean_alignment=60 + values,
            stable_rank=4 + np.repeat(np.arange(4), self.seeds) + 0.5 * rank,
        )
        return {"frame": table, "outcome": "mean_alignment"}

    def truth(self) -> Truth:
        return Truth(partial={"stable_rank": self.partial})


@dataclass(frozen=True)
class Counted(Shape):
    """Three optimisers × 6 seeds of one rate, counted in four ways: two judges × two definitions.

    The judges decide independently about 400 answers, the second definition counts 300 of the same.
    Every claim is false.
    """

    rate: float = 0.1

    def arguments(self, draw: Draw) -> dict[str, Any]:
        names = np.repeat(NAMES[:3], 6).tolist()
        rows = []
        for row in range(len(names)):
            for judge in ("j1", "j2"):
                answers = draw.random(400) < self.rate
                for definition, counted in (("spectra", 400), ("strict", 300)):
                    misaligned = int(answers[:counted].sum())
                    rows.append(
                        {
                            "folder": f"run {row}",
                            "step": 100,
                            "judge": judge,
                            "judge_id": judge,
                            "definition": definition,
                            "counted": counted,
                            "misaligned": misaligned,
                            "misalignment": misaligned / counted,
                            "mean_alignment": 60.0,
                        }
                    )
        rates = pd.DataFrame(rows)
        first = rates[(rates["judge"] == "j1") & (rates["definition"] == "spectra")]
        table = runs(
            names,
            train_loss=losses(draw, len(names)),
            misaligned=first["misaligned"].to_numpy(),
            misalignment_counted=400,
            misalignment=first["misalignment"].to_numpy(),
        )
        return {"frame": table, "outcome": "misalignment", "rates": rates}


@dataclass(frozen=True)
class Expected:
    """Statements that a page should make: section, subject (of a pair in any order), direction.

    `least`: the share of tables in which they should be shown; None where it is only printed.
    `jointly`: all of them in one table, or each of them on average.
    """

    statements: tuple[tuple[str, tuple[str, ...], int], ...]
    least: float | None = 0.8
    jointly: bool = True


@dataclass(frozen=True)
class Powered:
    """A shape with a true effect, and the statements that it should lead to."""

    shape: Shape
    expected: Expected


def pairs_of(
    section: str, means: Mapping[str, float]
) -> tuple[tuple[str, tuple[str, ...], int], ...]:
    """All pairs of levels as expected statements of a section, in their true direction."""
    names = list(means)
    return tuple(
        (section, (first, second), 1 if means[first] > means[second] else -1)
        for row, first in enumerate(names)
        for second in names[row + 1 :]
    )
