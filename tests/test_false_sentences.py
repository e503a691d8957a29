"""False statements on simulated pages: the instrument itself, and rates of misaligned answers.

The other shapes are in `test_false_sentences_groups` and `test_false_sentences_designs`;
`python -m tests.false_sentences --tables 500` measures more tables of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests import false_sentences
from tests.false_sentences import POWERED, RATES, SHAPES, main, measure, page
from tests.support.shapes import CheckpointRates, Lines, Rates
from tests.support.stated import Statement, Truth

#: Tables of each shape in the suite; fewer of rates, whose fits take longest, and fewest where
#: every step of a trajectory is fitted to counts.
TABLES, TABLES_OF_RATES, FEWEST_TABLES = 80, 40, 20


@dataclass(frozen=True)
class Mistaken(Lines):
    """Groups that differ by ten standard deviations, of which nothing is said to be true."""

    def truth(self) -> Truth:
        return Truth()


def test_a_statement_on_a_null_is_counted(monkeypatch):
    shape = Mistaken((6,) * 3, effects=(0.0, 10.0, 20.0))
    monkeypatch.setitem(SHAPES, "mistaken", shape)
    measured = measure("mistaken", 10)
    assert measured.share == 1.0
    assert measured.sections["ranking"] == 10
    assert not measured.keeps_level


def test_the_same_statements_are_not_counted_where_they_are_true(monkeypatch):
    monkeypatch.setitem(SHAPES, "apart", Lines((6,) * 3, effects=(0.0, 10.0, 20.0)))
    measured = measure("apart", 10)
    assert not {"variance", "ranking", "equal loss"} & set(measured.sections)


def test_a_traceback_is_counted(monkeypatch):
    def broken(**_):
        raise ZeroDivisionError

    monkeypatch.setattr(false_sentences, "analyse", broken)
    assert measure(next(iter(SHAPES)), 2).share == 1.0


TRUTH = Truth(
    means={"a": 2.0, "b": 1.0, "c": 1.0},
    at_equal_loss={"a": 1.0, "b": 1.0, "c": 0.0},
    terms=frozenset({frozenset({"optimizer"}), frozenset({"optimizer", "data"})}),
    slope=-1.0,
    partial={"stable_rank": 0.5},
    penalty={"drift": -1.0},
    advantage=1.0,
    margin=1.0,
)


@pytest.mark.parametrize(
    ("section", "subject", "value", "is_false"),
    [
        ("ranking", ("a", "b"), 1.0, False),
        ("ranking", ("a", "b"), -1.0, True),
        ("ranking", ("b", "a"), -1.0, False),
        ("ranking", ("b", "c"), 1.0, True),
        ("equal loss", ("a", "b"), 1.0, True),
        ("equal loss", ("a", "c"), 1.0, False),
        ("matched", ("a", "c"), -1.0, True),
        ("variance", ("optimizer",), 1.0, False),
        ("variance", ("optimizer × data",), 1.0, False),
        ("variance", ("optimizer", "data"), 1.0, False),
        ("variance", ("data",), 1.0, True),
        ("variance", ("data + optimizer",), 1.0, False),
        ("slope", ("optimizer",), -2.0, False),
        ("slope", ("optimizer",), 2.0, True),
        ("slopes", ("optimizer",), 1.0, True),
        ("flatness", ("stable_rank",), 0.3, False),
        ("flatness", ("spectral_entropy",), 0.3, True),
        ("penalty", ("lion", "λ = 1", "drift"), -1.0, False),
        ("penalty", ("lion", "λ = 1", "capability"), -1.0, True),
        ("penalty differs", ("drift",), 1.0, True),
        ("training", ("last",), 1.0, False),
        ("training", ("change",), 1.0, True),
        ("equivalence", ("a", "b"), 1.0, True),
        ("equivalence", ("b", "c"), 0.0, False),
        ("sentence without a claim", ("ranking", "…"), 1.0, True),
    ],
)
def test_truth_judges_by_null_and_direction(section, subject, value, is_false):
    assert TRUTH.denies(Statement(section, subject, value)) is is_false


def test_levels_match_however_numbers_are_written():
    truth = Truth(means={"0": 0.0, "1": 6.6})
    assert truth.denies(Statement("ranking", ("0.0", "1.0"), 1.0))
    assert not truth.denies(Statement("ranking", ("0.0", "1.0"), -6.0))


def test_a_table_depends_on_seed_shape_and_number_alone():
    name = next(iter(RATES))
    first, again = (page(name, 3, 7) for _ in range(2))
    assert first.false == again.false
    pages = [measure(name, 6, seed=3, jobs=jobs) for jobs in (1, 2)]
    assert pages[0].sections == pages[1].sections


def test_rates_are_counts_of_their_group():
    shape = Rates((0.1, 0.5), (1000, 30), seeds=2)

    frame = shape.arguments(np.random.default_rng(0))["frame"]
    assert frame["misalignment_counted"].tolist() == [1000, 1000, 30, 30]
    assert frame["misalignment"].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.5], abs=0.3)


def test_the_command_prints_a_table(capsys):
    main(["--tables", "2", "--shape", "2 groups of 3", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| shape | tables |")
    assert lines[2].startswith("| 2 groups of 3 runs | 2 |")
    with pytest.raises(SystemExit):
        main(["--shape", "no such shape"])


def test_every_expected_statement_is_true_of_its_shape():
    for name, powered in POWERED.items():
        for section, subject, direction in powered.expected.statements:
            expected = Statement(section, subject or ("",), float(direction))
            assert not powered.shape.truth().denies(expected), name


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
def test_pages_of_equal_rates_keep_their_level(name):
    tables = FEWEST_TABLES if isinstance(RATES[name], CheckpointRates) else TABLES_OF_RATES
    measured = measure(name, tables)
    assert measured.keeps_level, measured
