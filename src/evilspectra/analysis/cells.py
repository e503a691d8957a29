"""Cells: runs that are alike in every setting but seeds, and what else varies within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from evilspectra.analysis.components import GENERATION, JUDGE
from evilspectra.analysis.design import SEED
from evilspectra.analysis.estimate import Frame
from evilspectra.analysis.linear import text_columns
from evilspectra.analysis.shared import WEIGHT
from evilspectra.evaluation.summary import RunSummary

#: Settings besides the factors that tell cells apart; seeds and settings without effect are absent.
_CELL = ("base", "data", "optimizer", "lr", "batch_size", WEIGHT, "arm")
#: Columns that say which run a row is, or that have a meaning of their own within a cell.
_IDENTITY = (SEED, "train.seed", "folder", "run", "id", "experiment", "step", GENERATION, JUDGE)
#: A column of fractions with more levels than this is a measurement.
_MOST_LEVELS = 8


def cell_columns(frame: Frame, factors: Sequence[str]) -> list[str]:
    """The columns that are equal between replicates.

    The factors, and every setting but seeds, folders and the arm's name.
    """
    dotted = [
        column
        for column in frame
        if isinstance(column, str)
        and "." in column
        and not column.endswith("seed")
        and not column.startswith("output.")
    ]
    usual = [column for column in _CELL if column in frame]
    return list(dict.fromkeys([*factors, *usual, *dotted]))


def cells_of(frame: Frame, columns: Sequence[str]) -> list[str]:
    """Each run's cell, by the columns that vary."""
    texts = text_columns(frame, columns)
    varying = [column for column in columns if len(set(texts[column])) > 1]
    return [
        ", ".join(texts[column][row] for column in varying) or "all" for row in range(len(frame))
    ]


def unlisted(frame: Frame, cell: Sequence[str]) -> list[str]:
    """Columns that vary within cells though nobody named them: repeats differ in more than a seed.

    Measurements are not among them: fields of a run's summary, columns of which most values are
    unique, and fractions with many values.

    >>> import pandas as pd
    >>> columns = {"optimizer": list("aabb"), "seed": [0, 1, 0, 1], "dose": [1, 2, 1, 2]}
    >>> frame = pd.DataFrame(columns)
    >>> unlisted(frame, ["optimizer"])
    ['dose']
    """
    expected = {field.name for field in fields(RunSummary)} | set(cell) | set(_IDENTITY)
    cells = cells_of(frame, cell)
    names = []
    for name in frame:
        if not isinstance(name, str) or name in expected or name.startswith("output."):
            continue
        levels = text_columns(frame, [name])[name]
        if frame[name].dtype.kind == "f" and len(set(levels)) > _MOST_LEVELS:
            continue
        if not 2 <= len(set(levels)) <= max(2, len(frame) // 2):
            continue
        if len(set(zip(cells, levels, strict=True))) > len(set(cells)):
            names.append(name)
    return names
