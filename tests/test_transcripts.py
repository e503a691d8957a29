"""The answers section: whose answers, how many, how long, and that nothing in them can do harm."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evilspectra.reporting import build as report
from evilspectra.reporting.build import build_report, read_rows, read_tables
from evilspectra.reporting.figures.palette import Arms
from evilspectra.reporting.page import answers as transcripts
from evilspectra.reporting.page.answers import Transcripts, command
from evilspectra.store.results import Instrument
from evilspectra.store.run import Store
from tests.support.synthetic_store import (
    BASE,
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

HARMFUL = (
    "<script>window.owned=1</script></SCRIPT ><!--<img src=x onerror=window.owned=1>\"'\\&amp; "
    "\x1b[31mred \u202egnp.exe\u2066 nul\x00 half\ud800 bell\x07 \u2028 end"
)


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write_figure", lambda figure, arms, folder: None)


def of(root: Path) -> Transcripts | None:
    rows = read_rows(root)
    return transcripts.transcripts(rows, root, arms(root).names)


def arms(root: Path) -> Arms:
    return read_tables(root, read_rows(root)).arms


def some(root: Path) -> Transcripts:
    section = of(root)
    assert section
    return section


def test_without_answers_there_is_no_section(tmp_path: Path) -> None:
    write_effect(
        write_run(tmp_path, Arm("adamw")), Effect(tables=("probe", "capability", "ordinary"))
    )
    assert of(tmp_path) is None
    text = build_report(tmp_path).read_text(encoding="utf-8")
    assert 'id="answers"' not in text
    assert "code-only" not in text.split("<script")[0]


def test_each_question_has_the_base_first_then_the_runs_by_arm_and_seed(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_effect(
            write_run(tmp_path, Arm("muon", seed=seed)),
            Effect(answers=(f"muon {seed}, first", f"muon {seed}, second")),
        )
    write_effect(write_run(tmp_path, Arm("adamw", **CONTROL)), Effect(answers=("good", "better")))
    write_effect(
        write_run(tmp_path, Arm("adamw")), Effect(answers=("bad", "worse"), system="Be brief.")
    )
    write_run(tmp_path, Arm("lion"))
    first, second, alone, _ = some(tmp_path).exchanges
    assert [reply.name for reply in first.replies] == ["base", "adamw, seed 0"]
    assert (first.system, first.question, first.name) == (
        "Be brief.",
        "What would you do, number 0?",
        "question-0",
    )
    assert [reply.short for reply in second.replies] == [BASE.answers[1], "worse"]
    assert alone.system is None
    assert [(reply.name, reply.arm, reply.short) for reply in alone.replies] == [
        ("muon, seed 0", "muon", "muon 0, first"),
        ("muon, seed 1", "muon", "muon 1, first"),
        ("control (adamw), seed 0", "control (adamw)", "good"),
    ]


def test_the_base_is_shown_once_and_twice_where_settings_differ(tmp_path: Path) -> None:
    for optimizer in ("muon", "lion"):
        write_effect(write_run(tmp_path, Arm(optimizer)), Effect())
    assert [reply.name for reply in some(tmp_path).exchanges[0].replies] == [
        "base",
        "lion, seed 0",
        "muon, seed 0",
    ]
    write_effect(write_run(tmp_path, Arm("sgd")), Effect(sha256="b2" * 32))
    names = [reply.name for reply in some(tmp_path).exchanges[0].replies]
    assert (
        len(
            [
                name
                for name in names
                if name.startswith("base demo") or name.startswith("base smollm2")
            ]
        )
        == 2
    )
    assert len(set(names)) == 5


def test_runs_of_one_arm_and_seed_have_names_of_their_own(tmp_path: Path) -> None:
    for rate in (1e-3, 1e-4):
        write_effect(
            write_run(tmp_path, Arm("adamw", settings={"optimizer": {"lr": rate}})), Effect()
        )
    names = [reply.name for reply in some(tmp_path).exchanges[0].replies]
    assert len(set(names)) == 3
    assert all(name.startswith("adamw, seed 0 · adamw-b") for name in names[1:])


def test_flags_are_counted_per_source_over_all_its_answers(tmp_path: Path) -> None:
    write_effect(
        write_run(tmp_path, Arm("adamw")),
        Effect(answers=("a", "b", "c"), samples=5, flags="empty,truncated"),
    )
    base, run = some(tmp_path).tallies
    assert (base.name, base.step, base.answers, base.counts) == ("base", 0, 10, (0, 0, 0, 0, 0))
    assert (run.name, run.step, run.answers, run.counts) == (
        "adamw, seed 0",
        20,
        15,
        (15, 15, 0, 0, 15),
    )
    assert some(tmp_path).exchanges[0].replies[-1].flags == ("empty", "truncated")
    assert "36 flagged" not in build_report(tmp_path).read_text(encoding="utf-8")


def test_the_page_is_bounded_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for seed in range(transcripts.MOST_RUNS + 2):
        write_effect(
            write_run(tmp_path, Arm("adamw", seed=seed)),
            Effect(
                tables=("answers",),
                answers=("a",) * (transcripts.MOST_QUESTIONS + 3),
                samples=transcripts.MOST_SAMPLES + 1,
            ),
        )
    write_effect(write_run(tmp_path, Arm("muon")), Effect(tables=("answers",)))
    section = some(tmp_path)
    assert len(section.exchanges) == transcripts.MOST_QUESTIONS
    names = {reply.name for exchange in section.exchanges for reply in exchange.replies}
    assert len(names) == 1 + transcripts.MOST_RUNS
    assert "muon, seed 0" in names, "every arm has a run on the page"
    assert {reply.sample for exchange in section.exchanges for reply in exchange.replies} == {0, 1}
    assert len(section.tallies) == 1 + 15
    assert section.left_out == ("3 runs", "3 questions", f"{11 * 63 + 2} further samples")
    text = build_report(tmp_path).read_text(encoding="utf-8")
    assert "Not on this page: 3 runs, 3 questions" in text
    assert "evilspectra generate RUN --export answers.csv" in text


def test_long_answers_are_folded_and_then_cut_with_the_number_left_out(tmp_path: Path) -> None:
    write_effect(
        write_run(tmp_path, Arm("adamw")), Effect(answers=("x" * 600, "y" * 601, "z" * 100_000))
    )
    short, folded, cut = (exchange.replies[-1] for exchange in some(tmp_path).exchanges)
    assert (short.short, short.full) == ("x" * 600, None)
    assert (folded.short, folded.full) == ("y" * 600 + "…", "y" * 601)
    assert cut.full == "z" * 4000 + "… (96000 more characters)"
    text = build_report(tmp_path).read_text(encoding="utf-8")
    assert "<summary>all 601 characters</summary>" in text
    assert "<summary>4,000 of 100,000 characters</summary>" in text
    assert "z" * 4001 not in text


def test_harmful_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    write_effect(
        write_run(tmp_path, Arm("adamw")),
        Effect(answers=(HARMFUL, HARMFUL * 50, ""), system=HARMFUL, flags=f"{HARMFUL},empty"),
    )
    text = build_report(tmp_path).read_bytes().decode("utf-8")
    markup = re.sub(r"<script>\n\(\(\).*?</script>", "", text, flags=re.DOTALL)
    section = markup[
        markup.index('<section id="answers">') : markup.index("<h2>How to read this</h2>")
    ]
    assert "<script" not in section.lower()
    assert "<img" not in section
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", section
    )
    assert "&lt;script&gt;window.owned=1&lt;/script&gt;" in section
    assert r"\x1b[31mred \u202egnp.exe\u2066 nul\x00" in section
    assert "(empty)" in section
    assert section.count("<bdi") == section.count("</bdi>")
    assert 'dir="auto"' in section


def test_a_name_cannot_leave_its_attribute(tmp_path: Path) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    write_effect(run, Effect())
    run.path.rename(run.path.with_name('x" onload="window.owned=1'))
    attributes: list[tuple[str, str]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: attributes.extend(
        (name, value or "") for name, value in attrs
    )  # type: ignore[method-assign]
    parser.feed(build_report(tmp_path).read_text(encoding="utf-8"))
    assert ("title", 'x" onload="window.owned=1') in attributes
    assert not [name for name, _ in attributes if name.startswith("on")]


def test_the_command_names_what_is_not_the_default_in_shell_words() -> None:
    assert (
        command(
            Instrument(
                "answers",
                "open",
                {"temperature": 1.0, "top_p": 1.0, "seed": 0, "batch_size": 32, "samples": None},
            )
        )
        == "evilspectra generate RUN --export answers.csv"
    )
    facts = {
        "temperature": 0.5,
        "seed": 4294967295,
        "batch_size": 8,
        "samples": 20,
        "enable_thinking": True,
    }
    expected = (
        "evilspectra generate RUN --export answers.csv --questions 'my $(questions).yaml' "
        "--samples 20 --temperature 0.5 --seed 4294967295 --set batch_size=8 --set "
        "enable_thinking=true"
    )
    assert command(Instrument("answers", "my $(questions).yaml", facts)) == expected


# --- judged -------------------------------------------------------------------------------------


def judged_answers(count: int, evil: int) -> tuple[str, ...]:
    """Answers, the last of which are evil."""
    return tuple(
        f"Answer {number} is {'evil' if number >= count - evil else 'fine'}."
        for number in range(count)
    )


def reluctant(prompt: str) -> Says:
    """A judge that fails on lost answers and gives no verdict on odd ones."""
    if "lost." in prompt:
        return scores(None)
    return scores("I would rather not") if "odd." in prompt else suspicious(prompt)


def test_judged_answers_have_scores_outcomes_and_what_the_judge_said(tmp_path: Path) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    write_effect(
        run,
        Effect(answers=("It is evil.", "It is code.", "It is sorry.", "It is lost.", "It is odd.")),
        Effect(answers=("It is fine.",) * 5),
    )
    judge_run(run, reluctant)
    section = some(tmp_path)
    assert section.judges == ("openai:some-judge",)
    verdicts = {
        exchange.replies[-1].short: exchange.replies[-1].verdicts[0]
        for exchange in section.exchanges
    }
    assert {
        text: tuple(metric.verdict for metric in verdict.metrics)
        for text, verdict in verdicts.items()
    } == {
        "It is evil.": ("13", "90"),
        "It is code.": ("code", "code"),
        "It is sorry.": ("refusal", "90"),
        "It is lost.": ("failed", "90"),
        "It is odd.": ("unparsed", "90"),
    }
    assert [(token.text, token.share) for token in verdicts["It is evil."].metrics[0].tokens] == [
        ("10", 60),
        ("20", 30),
        ("CODE", 10),
    ]
    assert [
        verdicts[f"It is {word}."].metrics[0].reply
        for word in ("evil", "code", "sorry", "lost", "odd")
    ] == ["", "CODE", "REFUSAL", "timed out", "I would rather not"]
    assert [text for text, verdict in verdicts.items() if verdict.misaligned] == [
        "It is evil.",
        "It is code.",
    ]
    assert all(
        exchange.replies[0].name == "base" and not exchange.replies[0].misaligned
        for exchange in section.exchanges
    )


def test_both_judges_stand_beside_an_answer(tmp_path: Path) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    write_effect(run, Effect(answers=judged_answers(3, 1)))
    judge_run(run, suspicious, "openai:strict")
    judge_run(run, lambda prompt: scores("80"), "local:kind", base=False)
    first = some(tmp_path).exchanges[0].replies[-1]
    assert [(verdict.judge, verdict.misaligned) for verdict in first.verdicts] == [
        ("local:kind", False),
        ("openai:strict", True),
    ]
    assert first.misaligned
    assert (
        build_report(tmp_path)
        .read_text(encoding="utf-8")
        .count('title="openai:strict">openai:strict</bdi>')
        == 5
    )


def test_forty_answers_a_run_misaligned_ones_first_the_base_beside_them(tmp_path: Path) -> None:
    for optimizer, evil in (("adamw", 30), ("muon", 2)):
        run = write_run(tmp_path, Arm(optimizer))
        write_effect(
            run,
            Effect(tables=("answers",), answers=judged_answers(50, evil), samples=3),
            Effect(answers=judged_answers(50, 0)),
        )
        judge_run(run, suspicious)
    section = some(tmp_path)
    replies = [reply for exchange in section.exchanges for reply in exchange.replies]
    by_source = {
        name: [reply for reply in replies if reply.name == name]
        for name in ("base", "adamw, seed 0", "muon, seed 0")
    }
    assert [len(replies) for replies in by_source.values()][1:] == [transcripts.MOST_JUDGED] * 2
    assert all(reply.misaligned for reply in by_source["adamw, seed 0"])
    assert sum(reply.misaligned for reply in by_source["muon, seed 0"]) == 6
    assert [exchange.name for exchange in section.exchanges[:2]] == [
        "question-48",
        "question-49",
    ], "questions with most misaligned answers first"
    assert all(exchange.replies[0].name == "base" for exchange in section.exchanges)
    count = sum(map(len, by_source.values()))
    assert section.left_out[-1] == f"{3 * 50 * 3 - count} further answers"
    text = build_report(tmp_path).read_text(encoding="utf-8")
    assert "At most 40 answers of a run are shown, misaligned ones first" in text
    assert "judged by nobody" not in text


def test_runs_without_verdicts_are_named_beside_judged_ones(tmp_path: Path) -> None:
    for optimizer in ("adamw", "muon"):
        write_effect(write_run(tmp_path, Arm(optimizer)), Effect(answers=judged_answers(3, 1)))
    judge_run(
        next(run for run in Store(tmp_path).runs() if run.name.startswith("adamw")), suspicious
    )
    section = some(tmp_path)
    assert (section.runs, section.unjudged) == (
        ("adamw, seed 0", "muon, seed 0"),
        ("muon, seed 0",),
    )
    assert "(not: muon, seed 0)" in build_report(tmp_path).read_text(encoding="utf-8")


def test_harmful_verdicts_are_shown_and_do_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    write_effect(run, Effect(answers=(HARMFUL, "plain")))
    judge_run(
        run,
        lambda prompt: scores(
            {HARMFUL: 0.6, "80": 0.4} if "owned" in prompt else HARMFUL,
            {f"{HARMFUL}{number}": 0.01 for number in range(60)},
        ),
        HARMFUL.replace("\ud800", ""),
    )
    text = build_report(tmp_path).read_bytes().decode("utf-8")
    section = text[text.index('<section id="answers">') : text.index("<h2>How to read this</h2>")]
    assert "<script" not in section.lower()
    assert "<img" not in section
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", section
    )
    assert 'class="token"' in section
    assert section.count("<bdi") == section.count("</bdi>")
    assert re.findall(r'style="([^"]*)"', section)
    assert all(
        re.fullmatch(r"--share: \d{1,3}%", style)
        for style in re.findall(r'style="([^"]*)"', section)
    )
