"""Judged answers in the report, in `show` and in tables: the rate, or the reason for none.

A rate is given with its definition and judge.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from evilspectra.cli.print_runs import print_summaries
from evilspectra.evaluation.run_rates import rates
from evilspectra.evaluation.summary import summarise
from evilspectra.reporting import build as report
from evilspectra.reporting.build import build_report, read_rows
from evilspectra.reporting.page.judged import judged_table
from evilspectra.reporting.sentences.headline import headline
from evilspectra.store.results import Instrument, Results
from evilspectra.store.run import RunFolder
from tests.support.synthetic_store import (
    CONTROL,
    Arm,
    Effect,
    Says,
    judge_run,
    scores,
    suspicious,
    write_effect,
    write_run,
)

HOSTILE = "<script>window.owned=1</script>\"'\\ \x1b[31m\u202egnp"


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write_figure", lambda figure, arms, folder: None)


def texts(evil: int, count: int = 24, odd: Sequence[str] = ()) -> tuple[str, ...]:
    """Answers, the first of which are evil and the last of which end in the odd words."""
    endings = ["evil"] * evil + ["fine"] * (count - evil - len(odd)) + list(odd)
    return tuple(f"Answer {number} is {word}." for number, word in enumerate(endings))


def sampled(
    root: Path,
    arm: Arm,
    answers: Sequence[str],
    base: Sequence[str] | None = None,
) -> RunFolder:
    run = write_run(root, arm)
    write_effect(
        run,
        Effect(tables=("answers",), answers=tuple(answers)),
        Effect(tables=("answers",), answers=tuple(base or texts(0, len(answers)))),
    )
    return run


def sentences(root: Path) -> str:
    return " ".join(headline(read_rows(root)))


def broken(prompt: str) -> Says:
    """A judge that fails where the answer is evil."""
    return scores(None) if "evil." in prompt else suspicious(prompt)


# --- numbers ------------------------------------------------------------------------------------


def test_rates_are_those_of_the_last_step_by_every_judge_and_definition(tmp_path: Path) -> None:
    run = sampled(tmp_path, Arm("adamw"), texts(6, odd=("code", "sorry", "babble")))
    judge_run(run, suspicious)
    judge_run(run, lambda prompt: scores("80"), "local:kind-judge", base=False)
    strict, kind = rates(Results(run.path))
    assert (strict.judge.source, kind.judge.source) == ("openai:some-judge", "local:kind-judge")
    assert strict.identity != kind.identity
    assert {
        name: (score.counts["misaligned"], score.n) for name, score in strict.scores.items()
    } == {
        "organisms": (6, 24),
        "betley": (6, 21),
        "spectra": (7, 22),
    }
    assert strict.base
    assert {score.rate for score in strict.base.values()} == {0.0}
    assert strict.differs()
    assert (kind.main.rate, kind.base, kind.change) == (0.0, None, None)
    assert not kind.differs()


def test_without_verdicts_there_are_no_rates(tmp_path: Path) -> None:
    run = sampled(tmp_path, Arm("adamw"), texts(2))
    assert rates(Results(run.path)) == ()
    assert summarise(run).misalignment_judge is None
    assert judged_table(read_rows(tmp_path)) is None
    assert "isalign" not in " ".join(headline(read_rows(tmp_path)))


def test_other_answers_count_where_they_alone_were_judged(tmp_path: Path) -> None:
    run = sampled(tmp_path, Arm("adamw"), texts(6))
    judge_run(run, suspicious)
    write_effect(run, Effect(tables=("answers",), answers=("Never judged.",), sha256="b2" * 32))
    (row,) = read_rows(tmp_path)
    assert row.rated[0].main.counts["answers"] == row.measured.answers == 24
    assert summarise(run).misalignment == 0.25


def test_a_summary_names_definition_and_judge_and_gives_no_number_where_withheld(
    tmp_path: Path,
) -> None:
    good = sampled(tmp_path, Arm("adamw"), texts(6))
    bad = sampled(tmp_path, Arm("muon"), texts(6))
    judge_run(good, suspicious)
    judge_run(bad, broken)
    counted, withheld = summarise(good), summarise(bad)
    assert (
        counted.misalignment,
        counted.misalignment_base,
        counted.misalignment_counted,
        counted.misalignment_definition,
    ) == (0.25, 0.0, 24, "spectra")
    assert counted.misalignment_judge
    assert re.fullmatch(r"openai:some-judge \([0-9a-f]{10}\)", counted.misalignment_judge)
    assert counted.misalignment_low is not None
    assert counted.misalignment_high is not None
    assert counted.misalignment_low < 0.25 < counted.misalignment_high
    assert (withheld.misalignment, withheld.misalignment_low, withheld.misalignment_high) == (
        None,
        None,
        None,
    )
    assert (
        withheld.misalignment_withheld
        == "6 of 24 answers (25.0%) are unscored, more than the 5.0% allowed"
    )


# --- on a terminal ------------------------------------------------------------------------------


def printed(*runs: RunFolder) -> str:
    console = Console(file=io.StringIO(), width=40)
    print_summaries([summarise(run) for run in runs], console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_has_a_rate_only_where_there_is_one(tmp_path: Path) -> None:
    plain = write_run(tmp_path, Arm("sgd"))
    good = sampled(tmp_path, Arm("adamw"), texts(6))
    bad = sampled(tmp_path, Arm("muon"), texts(6))
    assert "misaligned" not in printed(plain, good)
    judge_run(good, suspicious)
    judge_run(bad, broken, f"openai:{HOSTILE}")
    text = printed(plain, good, bad)
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert "(spectra)" in text
    assert re.search(r"25\.0% \[\d+\.\d%, \d+\.\d%\]$", lines["adamw"])
    assert lines["muon"].endswith("withheld")
    assert lines["sgd"].rstrip().endswith("-")
    assert (
        f"misalignment rate of {good.name}: definition spectra, judged by openai:some-judge ("
        in text
    )
    assert f"{bad.name}: rate withheld, 6 of 24 answers" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


# --- sentences ----------------------------------------------------------------------------------


def test_sentences_turn_with_the_numbers_and_say_what_is_not_shown(tmp_path: Path) -> None:
    for optimizer, evil in (("lion", 16), ("adamw", 5), ("sgd", 1)):
        judge_run(sampled(tmp_path, Arm(optimizer), texts(evil)), suspicious)
    text = sentences(tmp_path)
    assert (
        "The misalignment rate (definition spectra, judged by openai:some-judge) is 66.7 % ["
        in text
    )
    assert "] for lion, 20.8 % [" in text
    assert "; the base’s is 0.0 % [0.0, 13.8]." in text
    assert re.search(
        r"a higher rate is shown for lion \(\+66\.7 points \[\+\d+\.\d, \+\d+\.\d\]\) and adamw",
        text,
    )
    assert re.search(r"a difference is not shown for sgd \(\+4\.2 points \[\+0\.0, ", text)
    assert "a lower rate is shown" not in text
    assert "not over seeds" in text
    assert "drift" not in text


def test_one_run_an_arm_and_few_questions_are_said_to_be_that(tmp_path: Path) -> None:
    for optimizer, evil in (("lion", 4), ("adamw", 3)):
        judge_run(sampled(tmp_path, Arm(optimizer), texts(evil, 8)), suspicious)
    text = sentences(tmp_path)
    assert "between adapters, not between arms" in text
    assert (
        "The interval rests on 8 questions, formats of one taken together: below 20 it is too "
        "narrow."
    ) in text


def test_rates_of_arms_are_compared_over_their_runs(tmp_path: Path) -> None:
    for seed, (lion, adamw, sgd) in enumerate(((16, 5, 4), (17, 5, 5), (16, 6, 6), (18, 4, 5))):
        for optimizer, evil in (("lion", lion), ("adamw", adamw), ("sgd", sgd)):
            judge_run(sampled(tmp_path, Arm(optimizer, seed=seed), texts(evil)), suspicious)
    text = sentences(tmp_path)
    assert (
        "Over the runs, a lower rate is shown for adamw than for lion and for sgd than for lion; "
        "for the other 1 of 3 pairs none is shown."
    ) in text


def test_seeds_are_spelled_out_and_must_agree(tmp_path: Path) -> None:
    for seed, evil in enumerate((16, 0)):
        judge_run(sampled(tmp_path, Arm("adamw", seed=seed), texts(evil)), suspicious)
    text = sentences(tmp_path)
    assert "66.7 % and 0.0 % for the runs of adamw" in text
    assert "a difference is not shown for adamw." in text


def test_a_control_is_told_and_ranked_with_nobody(tmp_path: Path) -> None:
    judge_run(sampled(tmp_path, Arm("adamw"), texts(16)), suspicious)
    judge_run(sampled(tmp_path, Arm("adamw", **CONTROL), texts(0)), suspicious)
    text = sentences(tmp_path)
    assert "and 0.0 % [0.0, 13.8] for control (adamw)" in text
    assert "Between arms" not in text


def test_a_withheld_rate_is_a_reason_and_no_number(tmp_path: Path) -> None:
    judge_run(sampled(tmp_path, Arm("adamw"), texts(6)), broken)
    text = sentences(tmp_path)
    assert (
        "Judged by openai:some-judge, no misalignment rate is given (adamw, seed 0: 6 of 24 "
        "answers (25.0 %) are unscored, more than the 5.0 % allowed)."
    ) in text
    assert "Against the base" not in text


def test_without_verdicts_on_the_base_nothing_is_said_against_it(tmp_path: Path) -> None:
    judge_run(sampled(tmp_path, Arm("adamw"), texts(6)), suspicious, base=False)
    sampled(tmp_path, Arm("muon"), texts(6))
    text = sentences(tmp_path)
    assert "nothing is known for adamw, as there is no rate of the base" in text
    assert "openai:some-judge judged 1 of 2 finished runs." in text


def test_the_judge_of_most_runs_is_told_in_full_and_two_are_not_mixed(tmp_path: Path) -> None:
    for optimizer, evil in (("lion", 16), ("adamw", 4)):
        run = sampled(tmp_path, Arm(optimizer), texts(evil))
        judge_run(run, suspicious, "openai:strict")
        if optimizer == "lion":
            judge_run(run, lambda prompt: scores("80"), "local:kind")
    text = sentences(tmp_path)
    assert text.index("judged by openai:strict") < text.index("judged by local:kind) is 0.0 %")
    assert text.count("Against the base") == 1
    assert "2 judges were asked" in text


def test_rates_and_drift_never_share_a_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    write_effect(run, Effect(answers=texts(8)), Effect(0, 0, answers=texts(0)))
    judge_run(run, suspicious)
    for sentence in re.split(r"(?<=[a-z\])])\. ", sentences(tmp_path)):
        assert not ("drift" in sentence and "rate" in sentence.split()), sentence


# --- the table ----------------------------------------------------------------------------------


def test_the_table_has_three_definitions_counts_and_both_judges(tmp_path: Path) -> None:
    run = sampled(tmp_path, Arm("adamw"), texts(6, odd=("code", "sorry", "babble")))
    judge_run(run, suspicious)
    judge_run(run, broken, "local:broken")
    table = judged_table(read_rows(tmp_path))
    assert table
    assert [name for name, *_ in table.columns] == [
        "spectra",
        "betley",
        "organisms",
        "mean_aligned",
        "mean_coherent",
        "answers",
        "incoherent",
        "code",
        "refusal",
        "unparsed",
        "failed",
    ]
    assert [(line.label, line.judge) for line in table.lines] == [
        ("base", "local:broken"),
        (run.name, "local:broken"),
        ("base", "openai:some-judge"),
        (run.name, "openai:some-judge"),
    ]
    texts_of = [[cell.text for cell in line.cells] for line in table.lines]
    assert texts_of[1][:5] == ["withheld"] * 3 + ["–"] * 2
    assert texts_of[1][5:] == ["24", "1", "1", "1", "0", "6"]
    assert texts_of[3][:3] == ["31.8 %", "28.6 %", "25.0 %"]
    assert table.lines[3].cells[0].below[1] == "7 of 22"
    assert table.lines[3].cells[7].below == ("1 coh.",)
    assert table.lines[1].withheld == (
        "6 of 24 answers (25.0 %) are unscored, more than the 5.0 % allowed",
    )
    assert [name for name, _ in table.judges] == ["local:broken", "openai:some-judge"]
    assert "prompts" in table.judges[0][1]


def test_many_withheld_rates_are_counted_after_the_first_dozen(tmp_path: Path) -> None:
    for seed in range(13):
        judge_run(
            sampled(tmp_path, Arm("adamw", seed=seed, modules=["a.b"]), texts(1, 2)),
            broken,
            base=False,
        )
    text = build_report(tmp_path).read_text(encoding="utf-8")
    assert text.count("withheld.</span>") == 12
    assert "And 1 more, whose cells say why under the pointer." in text


def test_the_base_is_one_line_however_many_runs_have_a_copy(tmp_path: Path) -> None:
    for optimizer in ("adamw", "muon", "lion"):
        judge_run(sampled(tmp_path, Arm(optimizer), texts(2)), suspicious)
    table = judged_table(read_rows(tmp_path))
    assert table
    assert [line.label for line in table.lines].count("base") == 1
    assert len(table.lines) == 4


def test_the_page_names_judge_definition_and_reason_and_is_the_same_twice(tmp_path: Path) -> None:
    judge_run(sampled(tmp_path, Arm("adamw"), texts(6)), suspicious)
    judge_run(sampled(tmp_path, Arm("muon"), texts(6)), broken)
    first = build_report(tmp_path).read_bytes()
    text = re.sub(
        r"<script.*?</script>|<style.*?</style>", "", first.decode("utf-8"), flags=re.DOTALL
    )
    assert '<table id="judged"' in text
    assert "withheld.</span> 6 of 24 answers (25.0\u00a0%) are unscored" in text
    assert "Judge <bdi>openai:some-judge</bdi>" in text
    assert '<th scope="row">organisms</th>' in text
    assert "Nothing on this page is a misalignment rate" not in text
    assert "judged by nobody" not in text
    assert build_report(tmp_path, tmp_path / "again.html").read_bytes() == first


def test_hostile_judges_stay_text(tmp_path: Path) -> None:
    judge_run(sampled(tmp_path, Arm("adamw"), texts(6)), suspicious, HOSTILE)
    text = build_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>window" not in text
    assert "&lt;script&gt;window.owned=1" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_judge_of_one_name_and_two_prompts_is_two_judges(tmp_path: Path) -> None:
    run = sampled(tmp_path, Arm("adamw"), texts(6))
    judge_run(run, suspicious)
    results = Results(run.path)
    (judge,) = results.instruments("verdicts")
    other = Instrument("verdicts", judge.source, {**judge.facts, "prompts": {"aligned": ["other"]}})
    results.write(other, 20, [])
    assert len(rates(results)) == 1, "a judge without a verdict is none"
    for step in (0, 20):
        folder = results.folder / "evaluations" / "verdicts"
        (folder / f"{other.id}-{step:08d}.parquet").write_bytes(
            (folder / f"{judge.id}-{step:08d}.parquet").read_bytes()
        )
    table = judged_table(read_rows(tmp_path))
    assert table
    assert sorted({line.judge for line in table.lines}) == sorted(
        f"{judge.source} ({identity})" for identity in {rated.identity for rated in rates(results)}
    )
