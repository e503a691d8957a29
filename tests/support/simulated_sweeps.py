"""Made-up sweeps with known effects, and a table of 54 runs with the published R²."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import brentq

OPTIMIZERS = ("adamw", "lion", "muon", "sgd")
DATA = ("a", "b", "c")

#: Read off the paper: R² of mean alignment on ln(loss) within each optimiser, pooled, and adjusted
#: with the optimiser as stratum.
PUBLISHED = {"sgd": 0.90, "adam": 0.93, "adamw": 0.91, "lion": 0.92, "muon": 0.94}
POOLED, STRATIFIED = 0.74, 0.94
#: 54 runs under five optimisers: 11 each but for one.
_RUNS = {"sgd": 11, "adam": 11, "adamw": 11, "lion": 11, "muon": 10}


def sweep(
    seeds: int = 2,
    effects: dict[str, float] | None = None,
    slope: float = 12.0,
    noise: float = 2.0,
    seed: int = 0,
    unbalanced: bool = False,
) -> pd.DataFrame:
    """Runs of 4 optimisers × 3 data sets × seeds; losses overlap.

    Mean alignment = 75 + optimiser + data + slope·ln(loss) + noise.
    """
    draw = np.random.default_rng(seed)
    effects = effects or {"adamw": 0.0, "lion": -8.0, "muon": 6.0, "sgd": 3.0}
    rows = []
    for optimizer in OPTIMIZERS:
        for position, data in enumerate(DATA):
            for replicate in range(seeds + (unbalanced and optimizer == "lion")):
                loss = float(np.exp(0.3 * position - 0.3 + 0.15 * draw.standard_normal()))
                mean = 75 + effects[optimizer] + 2 * position + slope * np.log(loss)
                name = f"{optimizer}-{data}-{replicate}"
                settings = {"optimizer": optimizer, "data": data, "seed": replicate, "lr": 1e-3}
                rows.append(
                    {
                        "folder": name,
                        "run": name,
                        "status": "done",
                        "control": False,
                        **settings,
                        "train_loss": loss,
                        "mean_alignment": mean + noise * draw.standard_normal(),
                    }
                )
    return pd.DataFrame(rows)


def published_table() -> pd.DataFrame:
    """54 runs under five optimisers whose R² are the published ones.

    Every other number in it is made up, by this recipe and without chance: ln(loss) is evenly
    spaced over a range of one width, centred at c·u for optimiser pattern u. Alignment is
    70 + 6·ln(loss) + s·v + residuals: v a pattern across u, the residuals waves made orthogonal to
    1 and ln(loss) and scaled so that R² within each optimiser is exact. s is solved (Brent) for the
    pooled R², and c for the adjusted R² with the optimiser as stratum and separate slopes.
    """

    def table(centre: float, spread: float) -> pd.DataFrame:
        rows = []
        for position, (name, count) in enumerate(_RUNS.items()):
            u, v = _PATTERNS[name]
            inside = np.linspace(-0.6, 0.6, count)
            wave = np.cos(2.7 * np.arange(count) + position)
            basis = np.linalg.qr(np.stack([np.ones(count), inside], axis=1))[0]
            wave -= basis @ (basis.T @ wave)
            wave *= np.sqrt(
                ((6 * inside) ** 2).sum() * (1 - PUBLISHED[name]) / PUBLISHED[name] / (wave @ wave)
            )
            x = inside + centre * u
            rows += [
                {
                    "run": f"{name}-{number}",
                    "optimizer": name,
                    "train_loss": float(np.exp(log_loss)),
                    "mean_alignment": float(value),
                }
                for number, (log_loss, value) in enumerate(
                    zip(x, 70 + 6 * x + spread * v + wave, strict=True)
                )
            ]
        return pd.DataFrame(rows)

    def pooled(centre: float) -> pd.DataFrame:
        def excess(spread: float) -> float:
            return pooled_r2(table(centre, spread)) - POOLED

        return table(centre, float(brentq(excess, 0.0, 60.0, xtol=1e-12)))

    def excess(centre: float) -> float:
        return separate_r2_adjusted(pooled(centre)) - STRATIFIED

    return pooled(float(brentq(excess, 0.0, 3.0, xtol=1e-12)))


#: Optimiser → where its losses lie, and its share of what the loss does not explain.
_PATTERNS = {
    "sgd": (1.0, 0.4),
    "adam": (-0.2, 0.1),
    "adamw": (0.0, 0.2),
    "lion": (-0.6, -1.0),
    "muon": (-0.2, 0.6),
}


def pooled_r2(frame: pd.DataFrame) -> float:
    return float(np.corrcoef(np.log(frame["train_loss"]), frame["mean_alignment"])[0, 1] ** 2)


def separate_r2_adjusted(frame: pd.DataFrame) -> float:
    """1 − (SSE/(n − 2·groups))/(SST/(n − 1)), a line per optimiser."""
    sse = sum(
        float((group["mean_alignment"].var() * (len(group) - 1)) * (1 - pooled_r2(group)))
        for _, group in frame.groupby("optimizer")
    )
    n, groups = len(frame), frame["optimizer"].nunique()
    return float(1 - (sse / (n - 2 * groups)) / frame["mean_alignment"].var())


def trajectories(late: float) -> pd.DataFrame:
    """Two checkpoints: at the first optimisers do not differ, at the second by `late` times."""
    frames = [
        sweep(
            seeds=3,
            seed=step,
            effects={"adamw": 0.0, "lion": -3.0 * times, "muon": 3.0 * times, "sgd": 0.0},
            slope=3.0 if times else 12.0,
        ).assign(step=step)
        for step, times in ((10, 0.0), (20, late))
    ]
    return pd.concat(frames, ignore_index=True)
