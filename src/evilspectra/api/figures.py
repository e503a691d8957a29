"""Figures of results as Altair charts; everything heavy is imported inside the functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evilspectra.errors import BadInput, packages_explained

if TYPE_CHECKING:
    from altair import FacetChart, LayerChart, VConcatChart


def figure_of_runs(folder: Path) -> VConcatChart:
    """Losses and measures of flatness over the steps, of every run below a folder.

    Raises:
        BadInput: there is no run, or none has a step.
    """
    from evilspectra.reporting.figures.estimates import joined
    from evilspectra.reporting.figures.runs import loss_curves
    from evilspectra.reporting.figures.spectra import measures
    from evilspectra.reporting.rows import read_rows, read_tables

    tables = read_tables(folder, read_rows(folder))
    figures = [figure for draw in (loss_curves, measures) if (figure := draw(tables))]
    if not figures:
        raise BadInput(f"there is nothing to draw: no run in {folder} has a step yet")
    return joined(figures, tables.arms)


@packages_explained()
def figure_of_estimates(
    rows: Sequence[tuple[str, float | None, float | None, float | None]],
    title: str,
    form: str,
    reference: float | None = None,
) -> LayerChart | FacetChart:
    """A dot per name with its interval; the arguments are those of `estimates`.

    Raises:
        BadInput: no row has a value.
    """
    from evilspectra.reporting.figures.estimates import estimates

    if all(value is None for _, value, _, _ in rows):
        raise BadInput(f"there is nothing to draw: no target has a value of {title}")
    return estimates(rows, title, form, reference)
