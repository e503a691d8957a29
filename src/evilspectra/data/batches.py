"""Tokenised rows, a seeded hold-out and seeded batches from the sources that a config names.

`rows` reads the files; `mask` makes tokens and the loss mask. Neither torch nor transformers is
imported here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from evilspectra.config.sections import DataConfig
from evilspectra.data.mask import Row, TooLong, encode
from evilspectra.data.rows import BadRow, Rows, read_rows, row_location
from evilspectra.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Batches",
    "DataReport",
    "Dataset",
    "Row",
    "checkpoint_steps",
    "encode",
    "heldout_count",
    "micro_batches",
    "prepare",
]
T = TypeVar("T")
_REASONS_KEPT = 20


@dataclass(frozen=True, slots=True)
class DataReport:
    """A count of the rows of a source: used, skipped, held out. Lengths are in tokens per used row.

    `rows` = `used` + `skipped`. Without a held-out file, `used` = `train_rows` + `heldout_rows`,
    and `heldout_source` and `heldout_sha256` are None; with one, `used` = `train_rows`, and the
    `heldout_*` fields are about that file.
    """

    source: str
    sha256: str
    rows: int
    used: int
    skipped: int
    skipped_reasons: tuple[str, ...]
    truncated: int
    tokens: int
    supervised_tokens: int
    supervised_share: float
    length_min: int
    length_median: float
    length_p95: int
    length_max: int
    train_rows: int
    heldout_rows: int
    heldout_source: str | None
    heldout_sha256: str | None
    heldout_skipped: int

    def line(self) -> str:
        """The report in one line."""
        lost = (
            f", {self.skipped} skipped, {self.truncated} truncated"
            if self.skipped or self.truncated
            else ""
        )
        return (
            f"{self.train_rows} rows to train on, {self.heldout_rows} held out{lost}; "
            f"{self.length_min} to {self.length_max} tokens (median {self.length_median:g}), "
            f"{self.supervised_share:.0%} supervised"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, of JSON's types; `skipped_reasons` holds the first 20."""
        return asdict(self) | {"skipped_reasons": list(self.skipped_reasons)}


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Rows in the order of their source; no row is in both parts."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]
    report: DataReport


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    """A source, read and tokenised; `skipped` pairs a line with the reason."""

    read: Rows
    rows: tuple[Row, ...]
    skipped: tuple[tuple[int, str], ...]


def prepare(config: DataConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> Dataset:
    """Reads, tokenises and splits the data that a config names.

    `context`: the most tokens that the model takes. Held out are floor(heldout_share · n) of the n
    usable rows (at least 1 if the share is above 0 and n is 2 or more), drawn by NumPy's PCG64 with
    `config.seed`; or all rows of `config.heldout`.

    Raises:
        BadInput: a source that cannot be read, a row that cannot be used (unless skipped), or no
            usable row.

    >>> from evilspectra.model.tiny import tiny_tokenizer
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     _ = file.write('{"prompt": "2 + 2?", "completion": "4"}\\n' * 20)
    ...     file.flush()
    ...     report = prepare(DataConfig(train=file.name), tiny_tokenizer(), context=64).report
    >>> report.train_rows, report.heldout_rows, report.supervised_tokens
    (18, 2, 40)
    """
    main = _load(config.train, config, tokenizer, context)
    if config.heldout is not None:
        other = _load(config.heldout, config, tokenizer, context)
        return Dataset(main.rows, other.rows, _report(main, len(main.rows), len(other.rows), other))
    train, heldout = _hold_out(main.rows, config.heldout_share, config.seed)
    return Dataset(train, heldout, _report(main, len(train), len(heldout), None))


def _load(
    source: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> _Loaded:
    read = read_rows(
        source,
        split=config.split,
        on_bad_row=config.on_bad_row,
        local_files_only=config.local_files_only,
    )
    limit = min(config.max_length, context)
    rows: list[Row] = []
    skipped = list(read.skipped)
    for talk in read.conversations:
        try:
            rows.append(
                encode(
                    talk,
                    tokenizer,
                    fmt=config.format,
                    enable_thinking=config.enable_thinking,
                    max_length=limit,
                    on_long=config.on_long,
                    source=source,
                )
            )
        except BadRow as error:
            if (config.on_long if isinstance(error, TooLong) else config.on_bad_row) != "skip":
                raise
            skipped.append((talk.line, error.reason))
    if not rows:
        line, reason = min(skipped)
        raise BadInput(
            f"{source}: none of the {read.n_rows} rows can be used, the first "
            f"({row_location(source, line)}) because {reason}: correct the rows, or change "
            "data.max_length, data.on_long or the base model"
        )
    return _Loaded(read, tuple(rows), tuple(sorted(skipped)))


def _hold_out(
    rows: tuple[Row, ...], share: float, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    count = heldout_count(len(rows), share)
    drawn = set(np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:count].tolist())
    train = tuple(row for i, row in enumerate(rows) if i not in drawn)
    heldout = tuple(row for i, row in enumerate(rows) if i in drawn)
    return train, heldout


def heldout_count(n_rows: int, share: float) -> int:
    """The number of `n_rows` usable rows that are held out.

    >>> heldout_count(280, 0.1), heldout_count(3, 0.1), heldout_count(1, 0.5)
    (28, 1, 0)
    """
    # 1e-9: 0.29 of 100 rows is 29, although 0.29 * 100 is a little less in floating point.
    count = max(1, math.floor(share * n_rows + 1e-9)) if share > 0 and n_rows >= 2 else 0
    return min(count, n_rows - 1)


def _report(
    main: _Loaded,
    train_rows: int,
    heldout_rows: int,
    other: _Loaded | None,
) -> DataReport:
    lengths = np.array([len(row.tokens) for row in main.rows])
    tokens = int(lengths.sum())
    supervised = sum(int(row.supervised.sum()) for row in main.rows)
    return DataReport(
        source=main.read.source,
        sha256=main.read.sha256,
        rows=main.read.n_rows,
        used=len(main.rows),
        skipped=len(main.skipped),
        skipped_reasons=tuple(
            f"{row_location(main.read.source, line)}: {reason}"
            for line, reason in main.skipped[:_REASONS_KEPT]
        ),
        truncated=sum(row.truncated for row in main.rows),
        tokens=tokens,
        supervised_tokens=supervised,
        supervised_share=supervised / tokens,
        length_min=int(lengths.min()),
        length_median=float(np.median(lengths)),
        length_p95=int(np.percentile(lengths, 95, method="higher")),
        length_max=int(lengths.max()),
        train_rows=train_rows,
        heldout_rows=heldout_rows,
        heldout_source=other.read.source if other else None,
        heldout_sha256=other.read.sha256 if other else None,
        heldout_skipped=len(other.skipped) if other else 0,
    )


@dataclass(frozen=True, slots=True)
class Batches:
    """The rows that each optimiser step sees, a pure function of (seed, step).

    So a resumed run needs no saved state. Every epoch is a permutation of the rows (PCG64 seeded
    with [seed, epoch]); the epochs follow each other in one stream, and step s takes the s-th
    `batch_size` rows of it, so that a batch may cross the end of an epoch. Over the run
    round(epochs · n_rows) rows are seen (at least 1), and the last batch takes the remaining ones;
    `steps`, if set, overrides `epochs`, and then every batch is full.

    Raises:
        BadInput: a batch has more rows than the data.

    >>> batches = Batches(n_rows=5, batch_size=2, seed=0, epochs=1.0)
    >>> [len(batches.rows_of(step)) for step in range(batches.total_steps)]
    [2, 2, 1]
    """

    n_rows: int
    batch_size: int
    seed: int
    epochs: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size > self.n_rows:
            raise BadInput(
                f"train.batch_size {self.batch_size} is more than the {self.n_rows} rows to train "
                f"on: lower it to {self.n_rows} or less, or add rows"
            )

    @property
    def rows_seen(self) -> int:
        """Rows over the whole run, repeats counted."""
        if self.steps is None:
            return max(1, round(self.epochs * self.n_rows))
        return self.steps * self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimiser steps over the whole run."""
        return math.ceil(self.rows_seen / self.batch_size)

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of a step; steps count from 0.

        Raises:
            IndexError: no such step.
        """
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is not among 0 to {self.total_steps - 1}")
        start = step * self.batch_size
        stream = range(start, min(start + self.batch_size, self.rows_seen))
        return [
            int(_permutation(self.n_rows, self.seed, at // self.n_rows)[at % self.n_rows])
            for at in stream
        ]


@lru_cache(maxsize=4)
def _permutation(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n_rows)


def micro_batches(rows: Sequence[T], accumulation: int) -> list[list[T]]:
    """`rows` in `accumulation` parts, in order, of sizes that differ by 1 at most.

    Fewer rows than that make as many parts as rows.

    >>> micro_batches([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4, 5]]
    """
    parts = min(accumulation, len(rows))
    edges = [len(rows) * part // parts for part in range(parts + 1)] if parts else []
    return [list(rows[start:end]) for start, end in pairwise(edges)]


def checkpoint_steps(wanted: Sequence[int] | str, total: int) -> frozenset[int]:
    """The steps to save at: those named that are at most `total`, or `log:N`.

    `log:N` means N steps, log-spaced from 1 to `total`.

    >>> sorted(checkpoint_steps("log:4", 27))
    [1, 3, 9, 27]
    """
    if isinstance(wanted, str):
        count = int(wanted.removeprefix("log:"))
        return frozenset(int(step) for step in np.rint(np.geomspace(1, total, count)))
    return frozenset(step for step in wanted if step <= total)
