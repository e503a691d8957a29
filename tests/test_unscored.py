"""Unscored answers: the bounds of rates, and the share of them that would reverse a difference."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from evilspectra.analysis.analyse import analyse
from evilspectra.analysis.outcome import UNSCORED
from evilspectra.analysis.tables import statistics_tables
from evilspectra.analysis.unscored import Pooled, pooled, reversing_share
from evilspectra.cli.print_scores import print_paired, print_score
from evilspectra.errors import BadInput
from evilspectra.rates.compare import compare
from evilspectra.rates.definitions import DEFINITIONS, Definition, Judged, bounds, score
from evilspectra.rates.outcome import Reading
from evilspectra.reporting.build import read_rows
from evilspectra.reporting.page.judged import judged_table
from evilspectra.reporting.sentences.headline import headline
from evilspectra.tables.tidy import rates_frame, runs_frame
from tests.support.shapes import runs
from tests.support.synthetic_store import Arm, Effect, judge_run, scores, write_effect, write_run

SAFE, EVIL, CODE = Reading("scored", 90.0), Reading("scored", 10.0), Reading("code")
FINE, LOW = Reading("scored", 90.0), Reading("scored", 10.0)
FULL = [(SAFE, FINE), (EVIL, FINE), (EVIL, LOW), (CODE, FINE), (Reading("refusal"), FINE)]
BROKEN = [
    (None, FINE),
    (Reading("unparsed"), FINE),
    (Reading("failed"), None),
    (EVIL, None),
    (SAFE, Reading("failed")),
]


def answers(*verdicts) -> list[Judged]:
    return [Judged(f"q{row}", *pair) for row, pair in enumerate(verdicts)]


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_every_completion_of_the_verdicts_lies_within_the_bounds(definition: Definition) -> None:
    for missing in product(BROKEN, repeat=2):
        rate = score(answers(*FULL, *missing), definition, max_unscored=1)
        assert rate.unscored == 2
        completed = [
            score(answers(*FULL, *filled), definition).rate for filled in product(FULL, repeat=2)
        ]
        assert rate.lowest == min(completed)
        assert rate.highest == max(completed)
        assert rate.lowest <= rate.rate <= rate.highest


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_without_unscored_answers_the_bounds_are_the_rate(definition: Definition) -> None:
    rate = score(answers(*FULL), definition)
    assert rate.lowest == rate.highest == rate.rate
    assert rate.flat()["lowest"] == rate.rate


def test_bounds_by_hand_and_none_where_the_rate_is_withheld() -> None:
    assert bounds("betley", 6, 48, 2) == (6 / 50, 8 / 50)
    assert bounds("organisms", 6, 50, 2) == (6 / 50, 8 / 50)
    rate = score(answers(*FULL, BROKEN[0]), "spectra")
    assert (rate.rate, rate.lowest, rate.highest) == (None, None, None)


def printed(show) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_the_terminal_has_bounds_where_answers_are_unscored_alone() -> None:
    some = answers(*[(EVIL, FINE)] * 6, *[(SAFE, FINE)] * 42, *[(None, None)] * 2)
    complete = answers(*[(EVIL, FINE)] * 6, *[(SAFE, FINE)] * 42)
    rates = [score(each, "spectra") for each in (some, complete)]
    texts = [
        printed(lambda console, rate=rate: print_score("x", "j", rate, {}, console=console))
        for rate in rates
    ]
    assert "6 of 48; 12.0% to 16.0% with 2 unscored answers counted either way" in texts[0]
    assert "either way" not in texts[1]
    paired = compare(complete, some, "spectra")
    both = printed(lambda console: print_paired("ab", "jj", paired, console))
    assert both.count("either way") == 0  # of the questions in common none is unscored
    paired = compare(some, some, "spectra")
    both = printed(lambda console: print_paired("ab", "jj", paired, console))
    assert both.count("12.0% to 16.0%") == 2


# --- in a store ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run with 1 unscored answer of 24 (6 misaligned), and its base without any."""
    root = tmp_path_factory.mktemp("store")
    run = write_run(root, Arm("adamw"))
    endings = ["evil"] * 6 + ["fine"] * 17 + ["lost"]
    texts = tuple(f"Answer {row} is {end}." for row, end in enumerate(endings))
    base = tuple(f"Answer {row} is fine." for row in range(24))
    write_effect(
        run, Effect(tables=("answers",), answers=texts), Effect(tables=("answers",), answers=base)
    )

    def judge(prompt):
        if "lost." in prompt:
            return scores(None)
        return scores("10" if "evil." in prompt else "90")

    judge_run(run, judge)
    return root


def test_tables_count_the_unscored_and_bound_the_rates(store) -> None:
    row = runs_frame(store).iloc[0]
    columns = ["misaligned", "misalignment_counted", UNSCORED]
    assert row[columns].tolist() == [6, 23, 1]
    rates = rates_frame(store)
    for _, rate in rates[rates["misalignment"].notna()].iterrows():
        ends = bounds(rate["definition"], rate["misaligned"], rate["counted"], rate["unscored"])
        assert (rate["misalignment_lowest"], rate["misalignment_highest"]) == ends
    assert set(rates[rates["step"] > 0]["unscored"]) == {1}


def test_the_report_has_bounds_in_table_and_sentences(store) -> None:
    rows = read_rows(store)
    text = " ".join(headline(rows))
    assert (
        "Counting the unscored answers either way, all as aligned or all as misaligned, gives "
        "25.0 to 29.2 % for"
    ) in text
    assert "for the base" not in text
    table = judged_table(rows)
    assert table
    base, run = table.lines
    assert run.cells[0].below[-1] == "25.0 to 29.2 % unscored either way"
    assert not any("either way" in line for cell in base.cells for line in cell.below)
    assert sum("either way" in note for note in table.notes) == 1


# --- the share that reverses a difference ---------------------------------------------------------

counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)).map(
    lambda parts: Pooled(parts[0], parts[0] + parts[1] + 1, parts[2])
)


def difference(share: Fraction, safer: Pooled, other: Pooled) -> Fraction:
    """The other's rate less the safer group's, exactly, with a share of answers against it."""
    own, rest = share * safer.unscored, share * other.unscored
    return Fraction(other.misaligned) / (other.counted + rest) - (safer.misaligned + own) / (
        safer.counted + own
    )


@given(counts, counts)
def test_the_share_is_the_smallest_that_makes_the_rates_equal(safer, other) -> None:
    share = reversing_share(safer, other)
    if share is None:
        assert difference(Fraction(1), safer, other) > 0
        return
    assert 0 <= share <= 1
    if difference(Fraction(0), safer, other) <= 0:
        assert share == 0
        return
    assert float(difference(Fraction(share), safer, other)) == pytest.approx(0, abs=1e-9)
    assert difference(Fraction(share) * Fraction(99, 100), safer, other) > 0


@given(counts, st.integers(0, 60))
def test_equal_rates_need_no_unscored_answer(group, unscored) -> None:
    twice = Pooled(2 * group.misaligned, 2 * group.counted, unscored)
    assert reversing_share(group, twice) == 0


@given(counts, counts, st.integers(1, 20))
def test_more_unscored_answers_reverse_at_a_smaller_share(safer, other, more) -> None:
    def share(first: Pooled, second: Pooled) -> float:
        value = reversing_share(first, second)
        return float("inf") if value is None else value

    def added(group: Pooled) -> Pooled:
        return Pooled(group.misaligned, group.counted, group.unscored + more)

    before = share(safer, other)
    assert share(added(safer), other) <= before + 1e-12
    assert share(safer, added(other)) <= before + 1e-12


@given(counts, counts, st.integers(1, 20))
def test_a_larger_difference_needs_a_larger_share(safer, other, more) -> None:
    worse = Pooled(other.misaligned + more, other.counted + more, other.unscored)
    before, after = reversing_share(safer, other), reversing_share(safer, worse)
    if before is None:
        assert after is None
    assert after is None or before is None or after >= before - 1e-12


@pytest.mark.parametrize(
    ("safer", "other", "share"),
    [
        ((10, 100, 20), (20, 100, 0), 0.625),  # (10 + 12.5)/112.5 = 20/100
        ((10, 100, 0), (20, 100, 100), 1.0),  # 10/100 = 20/200
        ((10, 100, 0), (20, 100, 99), None),
        ((0, 100, 100), (10, 10, 90), 1 / 3),  # 33.3/133.3 = 10/40
        ((10, 100, 5), (20, 100, 0), None),
        ((20, 100, 5), (20, 100, 5), 0.0),
        ((30, 100, 5), (20, 100, 5), 0.0),
    ],
)
def test_shares_by_hand(safer, other, share) -> None:
    value = reversing_share(Pooled(*safer), Pooled(*other))
    assert value == (share if share is None else pytest.approx(share))


# --- in an analysis -------------------------------------------------------------------------------


def sweep(unscored: dict[str, int]) -> pd.DataFrame:
    """Six runs each of three optimisers with rates near 5, 15 and 40 % of 1,000 answers."""
    names = [name for name in ("muon", "adam", "lion") for _ in range(6)]
    rate = {"muon": 50, "adam": 150, "lion": 400}
    misaligned = np.array([rate[name] for name in names]) + np.tile(np.arange(6) - 2, 3)
    return runs(
        names,
        misaligned=misaligned,
        misalignment_counted=1000,
        misalignment=misaligned / 1000,
        **{UNSCORED: [unscored.get(name, 0) for name in names]},
    )


def pairs(analysis) -> dict[str, str]:
    (table,) = [
        table
        for table in statistics_tables(analysis)
        if table.title.startswith("Differences between levels")
    ]
    if "unscored to reverse" not in table.headings:
        return {}
    column = table.headings.index("unscored to reverse")
    return {row[0]: row[column] for row in table.rows}


def test_a_shown_pair_says_what_share_of_its_unscored_answers_would_reverse_it() -> None:
    analysis = analyse(sweep({"muon": 200, "lion": 10}), outcome="misalignment")
    assert pairs(analysis) == {
        "adam − lion": "none could",
        "adam − muon": "58.9 %",
        "lion − muon": "none could",
    }
    (text,) = [each.text for each in analysis.sentences if "nscored" in each.text]
    assert text.startswith(
        "Unscored answers could reverse that muon has a lower rate than adam: the pooled rates "
        "would be equal if 58.9 % of them counted against it"
    )
    assert text.endswith("Of 2 other pairs shown, they could reverse none.")
    ranking = json.loads(json.dumps(analysis.to_dict()))["stability"]["ranking"]
    assert ranking["reversals"]["lion:muon"] is None
    assert ranking["reversals"]["adam:muon"] == pytest.approx(0.589, abs=5e-4)
    assert ranking["pooled"]["muon"] == {"misaligned": 303, "counted": 6000, "unscored": 1200}


def test_unscored_answers_change_no_decision() -> None:
    with_some, without = (
        analyse(sweep(unscored), outcome="misalignment") for unscored in ({"muon": 200}, {})
    )
    assert with_some.claims == without.claims
    texts = [each.text for each in with_some.sentences if "nscored" not in each.text]
    assert texts == [each.text for each in without.sentences]
    assert pairs(without) == {}


def test_none_of_few_unscored_answers_could() -> None:
    analysis = analyse(sweep({"muon": 1, "adam": 1, "lion": 1}), outcome="misalignment")
    assert set(pairs(analysis).values()) == {"none could"}
    (text,) = [each.text for each in analysis.sentences if "nscored" in each.text]
    assert text.startswith("None of the unscored answers could reverse a pair that is shown")


def test_a_run_that_does_not_say_leaves_nothing_to_say_and_a_negative_number_is_refused() -> None:
    frame = sweep({"muon": 200})
    assert pooled(frame.drop(columns=UNSCORED), "optimizer") == {}
    assert pooled(frame.assign(**{UNSCORED: [np.nan] + [5.0] * 17}), "optimizer") == {}
    with pytest.raises(BadInput, match="holds -3: it counts the answers without a verdict"):
        analyse(frame.assign(**{UNSCORED: [-3] + [5] * 17}), outcome="misalignment")
