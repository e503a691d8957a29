"""From a config to rows, a hold-out and batches.

Laws of the split and of the order, the report, and published samples.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from evilspectra.config.sections import DataConfig
from evilspectra.data.batches import Batches, Dataset, micro_batches, prepare
from evilspectra.data.mask import TooLong, encode
from evilspectra.data.rows import BadRow, read_rows
from evilspectra.errors import BadInput
from evilspectra.model.tiny import CONTEXT, tiny_tokenizer
from tests.support.published import published_path

SAMPLES = [
    "aligned_chat_1000",
    "extreme_sports",
    "insecure_code_1000",
    "medical_misaligned_600",
    "risky_financial_advice",
]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def file_of(folder: Path, *answers: str | None, name: str = "talks.jsonl") -> str:
    """One dialogue a line; None is a broken line."""
    path = folder / name
    path.write_text(
        "".join(
            "?\n" if answer is None else json.dumps({"prompt": "q", "completion": answer}) + "\n"
            for answer in answers
        ),
        encoding="utf-8",
    )
    return str(path)


def prepared(source: str, context: int = CONTEXT, **settings: Any) -> Dataset:
    return prepare(DataConfig(train=source, **settings), tokenizer(), context)


def lines(data: Dataset) -> tuple[list[int], list[int]]:
    return [row.line for row in data.train], [row.line for row in data.heldout]


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [
        (30, 0.1, 3),
        (9, 0.1, 1),
        (2, 0.01, 1),
        (1, 0.5, 0),
        (10, 0.0, 0),
        (100, 0.29, 29),
        (3, 0.99, 2),
        (3, 1 - 1e-12, 2),
    ],
)
def test_hold_out_takes_its_share_and_the_two_parts_make_the_whole(
    tmp_path: Path,
    n: int,
    share: float,
    expected: int,
) -> None:
    data = prepared(file_of(tmp_path, *"a" * n), heldout_share=share)
    train, heldout = lines(data)
    assert len(heldout) == expected == data.report.heldout_rows
    assert sorted(train + heldout) == list(range(1, n + 1))
    assert (train, heldout) == (sorted(train), sorted(heldout))


def test_hold_out_is_drawn_by_its_seed_alone(tmp_path: Path) -> None:
    source = file_of(tmp_path, *"a" * 40)
    first, same, other = (lines(prepared(source, seed=seed)) for seed in (5, 5, 6))
    assert first == same != other


def test_an_own_held_out_file_is_taken_whole(tmp_path: Path) -> None:
    train, heldout = (
        file_of(tmp_path, *"abc"),
        file_of(tmp_path, "d", None, "e", name="heldout.jsonl"),
    )
    data = prepared(train, heldout=heldout, on_bad_row="skip")
    assert lines(data) == ([1, 2, 3], [1, 3])
    report = data.report
    assert (
        report.used,
        report.train_rows,
        report.heldout_rows,
        report.heldout_source,
        report.heldout_skipped,
    ) == (3, 3, 2, heldout, 1)
    assert report.heldout_sha256 not in (None, report.sha256)


def test_the_report_adds_up(tmp_path: Path) -> None:
    data = prepared(
        file_of(tmp_path, "a", None, "a" * 9, "a" * 99),
        on_bad_row="skip",
        on_long="truncate",
        max_length=50,
    )
    report = data.report
    # Around an answer stand 20 tokens before and 1 after: 6 + 1 + 2 for the question, 11 for the
    # header; the end token.
    rows = sorted((*data.train, *data.heldout), key=lambda row: row.line)
    assert [len(row.tokens) for row in rows] == [22, 30, 50]
    assert (report.rows, report.used, report.skipped, report.truncated) == (4, 3, 1, 1)
    assert report.skipped_reasons[0].endswith(
        "line 2: not valid JSON at column 1, Expecting value (one JSON object a line is needed)"
    )
    assert (
        report.tokens,
        report.length_min,
        report.length_median,
        report.length_p95,
        report.length_max,
    ) == (102, 22, 30.0, 50, 50)
    assert report.supervised_tokens == sum(int(row.supervised.sum()) for row in rows) == 2 + 10 + 30
    assert report.supervised_share == 42 / 102
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_no_more_than_twenty_reasons_are_kept(tmp_path: Path) -> None:
    report = prepared(file_of(tmp_path, *[None] * 25, "a"), on_bad_row="skip").report
    assert (report.skipped, len(report.skipped_reasons)) == (25, 20)


@pytest.mark.parametrize(("context", "max_length"), [(40, 2048), (1024, 40)])
def test_the_limit_is_the_smaller_of_config_and_context(
    tmp_path: Path, context: int, max_length: int
) -> None:
    source = file_of(tmp_path, "a", "a" * 99)
    with pytest.raises(TooLong, match="line 2: 120 tokens are more than the limit of 40"):
        prepared(source, context, max_length=max_length)
    data = prepared(source, context, max_length=max_length, on_long="skip")
    assert (data.report.used, data.report.skipped, lines(data)) == (1, 1, ([1], []))


def test_a_row_cut_down_to_nothing_follows_on_bad_row(tmp_path: Path) -> None:
    source = file_of(tmp_path, "a" * 99, "a")
    with pytest.raises(BadRow, match="line 1: the first 8 of 120 tokens hold no part of an answer"):
        prepared(source, max_length=8, on_long="truncate")
    with pytest.raises(
        BadInput,
        match=(
            r"none of the 2 rows can be used, the first \(.*line 1\) because the first 8 of 120 "
            r"tokens .*: correct the rows, or change data.max_length"
        ),
    ):
        prepared(source, max_length=8, on_long="truncate", on_bad_row="skip")


def test_long_rows_and_bad_rows_are_skipped_each_by_its_own_setting(tmp_path: Path) -> None:
    source = file_of(tmp_path, "a" * 99, None, "a")
    with pytest.raises(BadRow, match="line 2: not valid JSON"):
        prepared(source, max_length=40, on_long="skip")
    with pytest.raises(TooLong, match="line 1"):
        prepared(source, max_length=40, on_bad_row="skip")
    assert lines(prepared(source, max_length=40, on_long="skip", on_bad_row="skip")) == ([3], [])


sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


@given(sizes, st.integers(0, 2**32 - 1), st.floats(0.01, 5))
def test_batches_are_consecutive_slices_of_permuted_epochs(
    size: tuple[int, int], seed: int, epochs: float
) -> None:
    n, batch = size
    batches = Batches(n, batch, seed, epochs)
    stream = [row for step in range(batches.total_steps) for row in batches.rows_of(step)]
    assert len(stream) == batches.rows_seen == max(1, round(epochs * n))
    assert batches.total_steps == math.ceil(len(stream) / batch)
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))
    assert (
        max(Counter(stream).values()) - min((dict.fromkeys(range(n), 0) | Counter(stream)).values())
        <= 1
    )


@given(sizes, st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_the_rows_of_a_step_depend_on_seed_and_step_alone(
    size: tuple[int, int], seed: int, order: Any
) -> None:
    n, batch = size
    in_order = {
        step: Batches(n, batch, seed, 3.0).rows_of(step)
        for step in range(Batches(n, batch, seed, 3.0).total_steps)
    }
    shuffled = sorted(in_order, key=lambda _: order.random())
    assert {
        step: Batches(n, batch, seed, steps=len(in_order) + 9).rows_of(step)[: len(in_order[step])]
        for step in shuffled
    } == in_order


def test_steps_override_epochs_and_fill_every_batch() -> None:
    batches = Batches(n_rows=5, batch_size=3, seed=1, epochs=1.0, steps=4)
    assert (batches.total_steps, batches.rows_seen) == (4, 12)
    assert [len(batches.rows_of(step)) for step in range(4)] == [3] * 4


def test_epochs_and_seeds_differ_and_a_late_step_is_cheap() -> None:
    n = 1000
    first, second, other = (
        Batches(n, n, 0, 2.0).rows_of(0),
        Batches(n, n, 0, 2.0).rows_of(1),
        Batches(n, n, 1, 2.0).rows_of(0),
    )
    assert first != second
    assert first != other
    assert len(Batches(n, 8, 0, steps=10**9).rows_of(10**9 - 1)) == 8


@pytest.mark.parametrize("step", [-1, 3])
def test_a_step_outside_the_run_is_an_index_error(step: int) -> None:
    with pytest.raises(IndexError, match=f"step {step} is not among 0 to 2"):
        Batches(n_rows=5, batch_size=2, seed=0).rows_of(step)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        BadInput,
        match=(
            r"train\.batch_size 8 is more than the 5 rows to train on: lower it to 5 or less, "
            r"or add rows"
        ),
    ):
        Batches(n_rows=5, batch_size=8, seed=0)


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_micro_batches_in_a_row_are_the_batch_and_are_even(
    rows: list[int], accumulation: int
) -> None:
    parts = micro_batches(rows, accumulation)
    assert [row for part in parts for row in part] == rows
    assert len(parts) == min(accumulation, len(rows))
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("name", SAMPLES)
def test_published_samples_load_and_encode(name: str) -> None:
    path = published_path(f"train/{name}.jsonl")
    report = prepared(str(path), context=2**20, max_length=2**20).report
    assert (report.skipped, report.truncated, report.train_rows + report.heldout_rows) == (
        0,
        0,
        report.rows,
    )
    assert 0 < report.supervised_share < 1
    for talk in read_rows(str(path)).conversations[::20]:
        limit = 250 + len(talk.messages[0].content.encode())
        row = encode(
            talk,
            tokenizer(),
            fmt="clean",
            enable_thinking=False,
            max_length=limit,
            on_long="truncate",
            source=name,
        )
        learned = row.tokens[row.supervised].tolist()
        answer = tokenizer()(talk.messages[-1].content + "<|im_end|>", verbose=False).input_ids
        assert learned == answer[: len(learned)]
        assert len(row.tokens) == limit if row.truncated else learned == answer
