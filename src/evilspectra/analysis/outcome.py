"""The outcome of an analysis: its column and scale, and the runs that are left out.

A rate of misaligned answers is analysed on the logit scale by a binomial model of its counts
(module `counts`). `Outcome.values` of a rate are ln((k + ½)/(m − k + ½)) of k of m answers
(Haldane 1956; Anscombe 1956): finite in every run, but no estimate, because the ½ moves runs by how
few answers were counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evilspectra.analysis.estimate import Frame, missing
from evilspectra.analysis.linear import is_rounding, text_columns
from evilspectra.analysis.shared import clusters_of
from evilspectra.errors import BadInput, listing, near
from evilspectra.numbers import figure

#: Outcome → its name in tables, in the order in which one is chosen if none is named.
LABELS = {
    "mean_alignment": "mean alignment (0 to 100)",
    "misalignment": "rate of misaligned answers",
    "drift": "drift (nats per token)",
    "stable_rank": "stable rank of ΔW",
    "capability": "capability (share right)",
    "heldout_loss": "held-out loss (nats per token)",
    "train_loss": "training loss (nats per token)",
}
#: Whether more of an outcome is better (+1), worse (−1), or neither.
BETTER = {
    "mean_alignment": 1,
    "misalignment": -1,
    "drift": -1,
    "capability": 1,
    "heldout_loss": -1,
    "train_loss": -1,
}
#: The largest difference between two groups that is of no importance, if none is declared, on the
#: scale of analysis (log odds of rates): about a third of the paper's smallest effect of alignment,
#: and below what one seed changes elsewhere.
MARGINS = {
    "mean_alignment": 2.0,
    "misalignment": 0.3,
    "drift": 0.02,
    "capability": 0.05,
    "heldout_loss": 0.05,
    "train_loss": 0.05,
    "stable_rank": 0.5,
}
#: The counts behind the rate.
MISALIGNED, COUNTED = "misaligned", "misalignment_counted"
#: Further answers, without a verdict.
UNSCORED = "misalignment_unscored"
#: Fewest runs from which variance can be estimated.
FEWEST = 4
_SHIFT = 0.5


@dataclass(frozen=True)
class Outcome:
    """An outcome of n runs.

    `values`: float64 [n] on the scale of analysis; `misaligned`, `counted`: the counts behind a
    rate, None elsewhere; `note`: how the column was transformed; `clusters`: each run's cluster
    [n], None where no two runs share their noise.
    """

    name: str
    scale: str
    values: np.ndarray
    misaligned: np.ndarray | None = None
    counted: np.ndarray | None = None
    note: str | None = None
    clusters: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Outcome:
        """The outcome of some runs: row numbers, or a mask [n]."""
        misaligned = None if self.misaligned is None else self.misaligned[rows]
        counted = None if self.counted is None else self.counted[rows]
        clusters = None if self.clusters is None else self.clusters[rows]
        return replace(
            self,
            values=self.values[rows],
            misaligned=misaligned,
            counted=counted,
            clusters=clusters,
        )

    def spread(self, rows: np.ndarray) -> Outcome:
        """The outcome of some runs, missing (NaN) where a row number [m] is −1."""

        def padded(values: np.ndarray) -> np.ndarray:
            return np.append(values, np.nan)[rows]

        misaligned = None if self.misaligned is None else padded(self.misaligned)
        counted = None if self.counted is None else padded(self.counted)
        clusters = None if self.clusters is None else np.append(self.clusters, -1)[rows]
        return replace(
            self,
            values=padded(self.values),
            misaligned=misaligned,
            counted=counted,
            clusters=clusters,
        )

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name) + (", logit" if self.scale == "logit" else "")

    @property
    def better(self) -> int:
        return BETTER.get(self.name, 0)

    @property
    def constant(self) -> str | None:
        """That nothing varies, as a clause; None if something does.

        Numbers vary if they differ by more than rounding; rates unless none or all of the counted
        answers are misaligned.

        >>> Outcome("drift", "as measured", np.full(3, 0.1) + [0, 1e-17, 0]).constant
        'nothing varies: it is 0.1 in all 3 runs'
        """
        runs = len(self.values)
        if self.misaligned is not None and self.counted is not None:
            bad, every = int(self.misaligned.sum()), int(self.counted.sum())
            if 0 < bad < every:
                return None
            which = "none is" if bad == 0 else "all are"
            return f"nothing varies: of {every} counted answers in {runs} runs {which} misaligned"
        if not is_rounding(self.values - self.values.mean(), self.values):
            return None
        return f"nothing varies: it is {figure(float(self.values.mean()))} in all {runs} runs"


def choose(frame: Frame, name: str | None = None) -> str:
    """The named outcome, or else the first usable one of LABELS.

    Usable is an outcome that at least FEWEST runs have; one that differs between them comes first.

    Raises:
        BadInput: no such column, or none to choose.
    """
    if name is not None:
        if name not in frame:
            numeric = [column for column in frame if frame[column].dtype.kind in "fiu"]
            raise BadInput(
                f"there is no outcome '{name}': choose a column of numbers, such as "
                f"{listing(numeric, 8) or 'none here'}.{near(name, frame)}"
            )
        return name
    measured = []
    for column in LABELS:
        if column in frame:
            values = [value for value in frame[column] if not missing(value)]
            if len(values) >= FEWEST and len(set(values)) > 1:
                return column
            if len(values) >= FEWEST:
                measured.append(column)
    if measured:
        return measured[0]
    raise BadInput(
        f"no outcome was measured on {FEWEST} runs or more: evaluate the runs, or name a column "
        f"with --outcome; looked for {listing(LABELS)}."
    )


def constants(frame: Frame, chosen: str) -> dict[str, str]:
    """The outcomes before the chosen one that were measured and do not vary, and how."""
    named = {}
    for column in list(LABELS)[: list(LABELS).index(chosen)] if chosen in LABELS else ():
        if column not in frame or frame[column].notna().sum() < FEWEST:
            continue
        clause = read(select(frame, column)[0], column).constant
        if clause is not None:
            named[column] = clause
    return named


def select(frame: Frame, name: str, needed: Sequence[str] = ()) -> tuple[Frame, dict[str, int]]:
    """The runs to analyse, and how many were left out for each reason.

    Left out are runs that are not done, controls, and runs without the outcome or without a value
    in a needed column.

    Raises:
        BadInput: the outcome is not a number, or fewer than FEWEST runs are left.
    """
    left: dict[str, int] = {}

    def keep(rows: Frame, which: np.ndarray, reason: str) -> Frame:
        if not which.all():
            left[reason] = int((~which).sum())
        return rows[which]

    if "status" in frame:
        frame = keep(frame, np.asarray(frame["status"] == "done"), "not done")
    if "control" in frame:
        controls = [
            not missing(value) and str(value).lower() in ("true", "1", "1.0")
            for value in frame["control"]
        ]
        frame = keep(frame, ~np.asarray(controls, bool), "control runs")
    for column in (name, *needed):
        frame = keep(frame, np.isfinite(numbers(frame, column)), f"no {column}")
    if len(frame) < FEWEST:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left.items())
        raise BadInput(
            f"{len(frame)} runs have {name}{f' ({reasons})' if reasons else ''}: at least {FEWEST} "
            "are needed; evaluate more, or name another --outcome."
        )
    return frame.reset_index(drop=True), left


def numbers(frame: Frame, name: str) -> np.ndarray:
    """A column as float64, missing values as NaN.

    Raises:
        BadInput: a value is no number.
    """
    values = np.full(len(frame), np.nan)
    for row, value in enumerate(frame[name]):
        if missing(value) or (isinstance(value, str) and not value.strip()):
            continue
        try:
            values[row] = float(value)
        except (TypeError, ValueError):
            raise BadInput(
                f"column '{name}' holds {value!r}, which is no number: name a column of numbers."
            ) from None
    return values


def read(frame: Frame, name: str) -> Outcome:
    """The outcome of selected runs on its scale of analysis."""
    values, clusters = numbers(frame, name), clusters_of(frame)
    if name != "misalignment":
        return Outcome(name, "as measured", values, clusters=clusters)
    if not _has_counts(frame):
        note = (
            "the counts behind the rates are not there, so the rates are analysed as they stand, "
            "unweighted"
        )
        return Outcome(name, "as measured", values, note=note, clusters=clusters)
    misaligned, counted = numbers(frame, MISALIGNED), numbers(frame, COUNTED)
    zeros = int((misaligned == 0).sum())
    note = "bias-reduced binomial model of the counted answers, with variance between runs" + (
        f"; {zeros} runs without a misaligned answer stay in" if zeros else ""
    )
    values = np.log((misaligned + _SHIFT) / (counted - misaligned + _SHIFT))
    return Outcome(name, "logit", values, misaligned, counted, note, clusters)


def _has_counts(frame: Frame) -> bool:
    """Whether every rate has the counts behind it."""
    if MISALIGNED not in frame or COUNTED not in frame:
        return False
    counted = numbers(frame, COUNTED)
    return bool(np.isfinite(counted).all() and (counted >= 1).all())


def check_factors(frame: Frame, factors: Sequence[str]) -> None:
    """Refuse factors that cannot be compared.

    Raises:
        BadInput: a factor is no column, has only one level, or has too many.
    """
    for name in factors:
        if name not in frame:
            columns = listing(sorted(frame, key=str), 16)
            raise BadInput(
                f"there is no factor '{name}': the columns are {columns}.{near(name, frame)}"
            )
        levels = set(text_columns(frame, [name])[name])
        if len(levels) < 2:
            raise BadInput(
                f"factor '{name}' is {next(iter(levels), 'empty')} in all runs: name a factor with "
                "two levels or more, or leave it out."
            )
        numeric = all(not isinstance(value, str) for value in frame[name])
        if numeric and len(levels) > max(2, len(frame) // 2):
            raise BadInput(
                f"factor '{name}' has {len(levels)} levels in {len(frame)} runs, too many to "
                "compare: name a factor with fewer."
            )


#: Factors that are compared if none is named and they vary.
USUAL = ("optimizer", "base", "data", "batch_size", "flatness_weight", "lora.rank")


def usual_factors(frame: Frame, outcome: str) -> tuple[str, ...]:
    """The USUAL factors that vary and repeat; the arm where none does."""

    def levels(name: str) -> int:
        if name == outcome or name not in frame:
            return 0
        return len(set(text_columns(frame, [name])[name]))

    factors = tuple(name for name in USUAL if 2 <= levels(name) <= len(frame) // 2)
    return factors or (("arm",) if 2 <= levels("arm") <= len(frame) // 2 else ())


def renamed(frame: Frame, columns: Mapping[str, str]) -> Frame:
    """The frame with columns under the names used here: `columns` maps ours → theirs.

    Raises:
        BadInput: a column is absent.
    """
    for ours, theirs in columns.items():
        if theirs not in frame:
            raise BadInput(
                f"the table has no column '{theirs}' to take {ours} from: its columns are "
                f"{listing(frame.columns, 16)}.{near(theirs, frame.columns)}"
            )
    return frame.assign(**{ours: frame[theirs] for ours, theirs in columns.items()})
