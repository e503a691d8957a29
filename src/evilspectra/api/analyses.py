"""Statistics of an outcome: `analyze`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evilspectra.api.arguments import PathLike, file, real_number, whole_number
from evilspectra.api.result import Result
from evilspectra.api.tables import Columns, mapping_of, read_table
from evilspectra.errors import BadInput, packages_explained
from evilspectra.text import short_repr

if TYPE_CHECKING:
    from altair import FacetChart, LayerChart
    from pandas import DataFrame

    from evilspectra.analysis.result import Analysis as Parts

#: The largest order of interactions.
MOST_FACTORS = 4


@dataclass(frozen=True, repr=False)
class Analysis(Result):
    """Statistics of an outcome; its rows are shares of variance and the ranking of the groups.

    Attributes:
        parts: every part as a frozen record (`parts.variance`, `parts.loss_fit`, `parts.stability`,
            …), None where `parts.reasons` says why; docs/statistics.md explains every number.
    """

    parts: Parts

    @property
    def outcome(self) -> str:
        """The column that is explained."""
        return self.parts.outcome

    @property
    def factors(self) -> tuple[str, ...]:
        """The columns that may explain it."""
        return self.parts.factors

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentences on results: those that are shown, and those that are not."""
        return tuple(sentence.text for sentence in self.parts.sentences)

    @property
    def headline(self) -> str:
        return (
            f"{self.parts.runs} runs · outcome: {self.parts.label} · "
            f"factors: {', '.join(self.factors) or 'none'} · intervals: 95 %"
        )

    @property
    def details(self) -> tuple[str, ...]:
        """The sentences."""
        return self.sentences

    def rows(self) -> list[dict[str, Any]]:
        """A row per number: its kind, term or group, value, ends of its 95 % interval, rank."""
        from evilspectra.reporting.statistics import shares_of

        shares = [
            {"kind": share.what, "name": share.term, "value": share.share}
            | {"low": share.low, "high": share.high, "rank": None}
            for share in shares_of(self.parts)
        ]
        ranking = self.parts.stability.ranking
        ranked = [
            {"kind": f"mean by {ranking.factor}", "name": group.group, "value": group.mean.value}
            | {"low": group.mean.low, "high": group.mean.high, "rank": group.rank}
            for group in (ranking.groups if ranking else ())
            if ranking
        ]
        return shares + ranked

    def tables(self) -> dict[str, DataFrame]:
        """The tables that the command `analyze` prints: title → cells as text."""
        from pandas import DataFrame

        from evilspectra.analysis.tables import statistics_tables

        return {
            table.title: DataFrame(list(table.rows), columns=list(table.headings))
            for table in statistics_tables(self.parts, detailed=True)
        }

    def flat(self) -> dict[str, Any]:
        """All of it in JSON's types, as `evilspectra analyze --json` prints it."""
        return self.parts.to_dict()

    def figure(self) -> LayerChart | FacetChart:
        """Draws the groups' means with 95 % intervals or, without a ranking, shares of variance."""
        from evilspectra.api.figures import figure_of_estimates

        every = self.rows()
        ranked = [row for row in every if row["rank"] is not None]
        rows = [(row["name"], row["value"], row["low"], row["high"]) for row in ranked or every]
        if not ranked:
            kinds = {row["kind"] for row in every}
            names = [f"{row['name']}, {row['kind']}" if len(kinds) > 1 else "" for row in every]
            rows = [(name or row[0], *row[1:]) for name, row in zip(names, rows, strict=True)]
            return figure_of_estimates(rows, "share of the variance", ".0%", 0.0)
        unit = "log-odds" if self.parts.scale == "logit" else "mean"
        return figure_of_estimates(rows, f"{self.parts.label}, {unit}", ".3~g")


@packages_explained()
def analyze(
    source: PathLike | DataFrame,
    *,
    outcome: str | None = None,
    factors: Sequence[str] | None = None,
    order: int = 2,
    loss: str = "train_loss",
    at_loss: float | None = None,
    by_checkpoint: bool = False,
    blocks: str | None = None,
    permutations: int = 1999,
    differences: Sequence[float] = (),
    margin: float | None = None,
    columns: Columns = (),
) -> Analysis:
    """Analyses what explains an outcome over runs, with intervals, and says what is shown.

    The parts are design, variance, loss, flatness and stability (docs/statistics.md).

    Args:
        source: a store of runs, a .csv or .parquet file with a row per run, or a data frame of
            pandas with a row per run.
        outcome: the column to explain; without it the first of mean_alignment, misalignment,
            drift, stable_rank, capability, heldout_loss, train_loss that the runs have.
        factors: columns that may explain it; without it those of optimizer, base, data,
            batch_size, flatness_weight, lora.rank that vary.
        order: interactions of up to this many factors, 1 to 4.
        loss: the column of the loss whose logarithm is used.
        at_loss: compare at this loss; without it in the middle of the range that all groups have.
        by_checkpoint: partial R² at every checkpoint; a table or frame then has columns run and
            step, one row each.
        blocks: permutations exchange runs only within the levels of this column.
        permutations: draws of the permutation tests; 0: none.
        differences: how many seeds would show a difference of this size?
        margin: the largest difference between two groups that is of no importance (log odds for
            rates): pairs shown to differ by less are named; without it one for each outcome.
        columns: a table's columns under other names, ours to theirs:
            {"optimizer": "opt_name"}, or texts "optimizer=opt_name".

    Raises:
        BadInput: no such store or table, an unknown column, an outcome that is not a number, a
            factor that does not vary, or too few runs.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"opt": list("aabb"), "seed": [0, 1] * 2, "y": [80.0, 81, 60, 61]})
    >>> analyze(table, outcome="y", factors=["opt"], permutations=0).to_frame()["name"].tolist()
    ['opt', 'opt', 'a', 'b']
    """
    from evilspectra.analysis.analyse import analyse
    from evilspectra.analysis.outcome import renamed

    if whole_number(order, 1, "order") > MOST_FACTORS:
        raise BadInput(f"order is {order}: give a whole number from 1 to {MOST_FACTORS}")
    whole_number(permutations, 0, "permutations")
    sizes = [differences] if isinstance(differences, int | float) else list(differences)
    for size in sizes:
        _positive(size, "differences")
    if at_loss is not None:
        _positive(at_loss, "at_loss")
    if margin is not None:
        _positive(margin, "margin")
    names = [factors] if isinstance(factors, str) else list(factors or ())
    runs, checkpoints, rates, table = _frames(source, by_checkpoint)
    runs = renamed(runs, mapping_of(columns))
    if by_checkpoint and table:
        checkpoints, runs = runs, _last_rows(runs, table)
    return Analysis(
        analyse(
            runs,
            outcome,
            names or None,
            checkpoints,
            loss=loss,
            order=order,
            rates=rates,
            blocks=blocks,
            at=at_loss,
            differences=sizes,
            permutations=permutations,
            margin=margin,
        )
    )


def _positive(value: float, argument: str) -> None:
    if not real_number(value, argument) > 0:
        raise BadInput(f"{argument} is {value}: give a number above 0")


def _frames(source: Any, by_checkpoint: bool) -> tuple[Any, Any, Any, str | None]:
    """Runs, checkpoints and rates of a store; of a table only the runs, and its name."""
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        if source.empty:
            raise BadInput("the data frame has no rows: it needs one per run")
        return source, None, None, "the data frame"
    if not isinstance(source, str | os.PathLike):
        raise BadInput(
            f"source is {short_repr(source)}: give a store, a table's path, or a data frame"
        )
    path = file(source, "source")
    if not path.is_dir():
        return read_table(path), None, None, str(path)
    from evilspectra.tables.tidy import checkpoints_frame, rates_frame, runs_frame

    checkpoints = checkpoints_frame(path) if by_checkpoint else None
    return runs_frame(path), checkpoints, rates_frame(path), None


def _last_rows(frame: Any, source: str) -> Any:
    """Each run's last step of a table of checkpoints."""
    lacking = [name for name in ("run", "step") if name not in frame]
    if lacking:
        raise BadInput(
            f"{source} has no column {' and no column '.join(lacking)}: "
            "--by-checkpoint needs both, and --column names them."
        )
    by_run = frame.sort_values("step", kind="stable").groupby("run", sort=False)
    return by_run.tail(1).reset_index(drop=True)
