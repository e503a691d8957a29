"""The report in a real browser: it draws, fits and asks for nothing, light and dark; answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilspectra.reporting.build import build_report
from evilspectra.store.run import Status
from tests.support.chromium import MARKS, chromium, title, visit
from tests.support.synthetic_store import (
    CONTROL,
    Arm,
    Effect,
    demo,
    judge_run,
    scores,
    suspicious,
    write_effect,
    write_run,
)

pytestmark = MARKS

SIZES = """[...document.querySelectorAll('.chart[data-spec]')].map(chart => {
  const drawn = chart.querySelector('svg')?.getBoundingClientRect();
  const own = chart.getBoundingClientRect();
  return [drawn?.width ?? 0, drawn?.height ?? 0, own.width, own.height];
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    demo(root, layers=2, measured=True)
    write_run(
        root,
        Arm(
            "adam",
            steps=9,
            spectrum=[0.4 * 0.78**index for index in range(16)],
            status=Status("failed", "the loss was not finite", 9, 30),
        ),
    )
    return build_report(root)


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    text = (
        "<script>window.owned=1</script><img src=x onerror='window.owned=1'>\"'\\\u202e" + "x" * 400
    )
    run = write_run(
        root,
        Arm(
            "adamw",
            settings={"model": {"base": text}, "data": {"train": text}},
            modules=[text, "a.b"],
            status=Status("failed", text, 3, 30),
        ),
    )
    answers = (
        text + "x" * 100_000,
        "\n" * 3000 + "end",
        "مرحبا بالعالم " * 100,
        "\x1b[2J\x00\ud800\u202egnp\u2066",
        "Z" + "\u0301" * 5000,
        "",
    )
    write_effect(
        write_run(root, Arm("muon")),
        Effect(
            answers=answers,
            system=text,
            flags="empty,repetitive,code-only,truncated",
            topics=(text, "b"),
            source=text,
        ),
    )
    write_effect(write_run(root, Arm("muon", **CONTROL)), Effect(0.1, answers=answers, system=text))
    run.path.rename(run.path.with_name("<img src=x onerror=window.owned=1>" + "y" * 180))
    return build_report(root)


@pytest.mark.parametrize("which", ["page_file", "hostile_file"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_draws_everything_and_asks_for_nothing(
    browser: Any,
    request: pytest.FixtureRequest,
    which: str,
    width: int,
    scheme: str,
) -> None:
    file = request.getfixturevalue(which)
    page, complaints, requests = visit(browser, file, width, scheme)
    assert complaints == []
    assert requests == [file.as_uri()]
    sizes = page.evaluate(SIZES)
    assert len(sizes) >= 5
    assert all(
        w > 200 and h > 50 and w <= box_w + 1 and h <= box_h + 1 for w, h, box_w, box_h in sizes
    ), sizes
    assert (
        page.evaluate("document.querySelectorAll('.chart svg path, .chart svg line').length") > 50
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.owned") is None
    page.close()


def test_dark_page_has_dark_paper_and_light_labels(browser: Any, page_file: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page, _, _ = visit(browser, page_file, scheme=scheme)
        colours[scheme] = page.evaluate(
            "[getComputedStyle(document.documentElement).backgroundColor, "
            "getComputedStyle(document.querySelector('.chart svg .role-axis-label text')).fill]"
        )
        page.close()
    assert colours == {
        "light": ["rgb(253, 253, 251)", "rgb(102, 109, 118)"],
        "dark": ["rgb(22, 25, 29)", "rgb(154, 161, 170)"],
    }


def test_a_click_on_an_arm_stresses_it_everywhere_and_a_second_frees_it(
    browser: Any, page_file: Path
) -> None:
    page, complaints, _ = visit(browser, page_file)
    faint = (
        "[...document.querySelectorAll('.chart svg .mark-line path')].filter(path => "
        "Number(path.getAttribute('opacity') ?? 1) < 0.2).length"
    )
    before = page.evaluate(faint)
    page.click(".legend button[data-arm='muon']")
    page.wait_for_function(f"{faint} > {before}")
    assert (
        page.locator(".panel.faint").count()
        == page.locator(".panel[data-arm]:not([data-arm='muon'])").count()
        == 12
    )
    page.click(".legend button[data-arm='muon']")
    page.wait_for_function(f"{faint} === {before}")
    assert page.locator(".panel.faint").count() == 0
    assert complaints == []
    page.close()


def test_headings_sort_numbers_as_numbers(browser: Any, page_file: Path) -> None:
    page, _, _ = visit(browser, page_file)
    cells = (
        "[...document.querySelectorAll('#summary tbody tr')].map(row => "
        "Number(row.cells[document.querySelector('[aria-sort]').cellIndex].dataset.sort))"
    )
    page.click("#summary th >> text=condition")
    rising = page.evaluate(cells)
    page.click("#summary th >> text=condition")
    assert rising == sorted(rising)
    assert page.evaluate(cells) == rising[::-1]
    page.close()


def test_a_point_under_the_pointer_tells_its_run(browser: Any, page_file: Path) -> None:
    page, complaints, _ = visit(browser, page_file)
    page.locator("#figure-flatness-loss svg .mark-symbol path").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "stable rank" in page.inner_text("#vg-tooltip-element")
    assert complaints == []
    page.close()


def test_the_second_table_sorts_by_drift(browser: Any, page_file: Path) -> None:
    page, _, _ = visit(browser, page_file)
    page.click("#measured thead th >> text=drift")
    drifts = page.evaluate(
        "[...document.querySelectorAll('#measured tbody tr')].map(row => "
        "Number(row.cells[2].dataset.sort))"
    )
    assert len(drifts) == 6
    assert drifts == sorted(drifts)
    assert page.locator("#measured tbody tr").first.inner_text().startswith("sgd-b")
    page.close()


def test_a_run_whose_name_and_answers_are_hostile_is_shown_as_text(
    browser: Any, hostile_file: Path
) -> None:
    page, complaints, _ = visit(browser, hostile_file)
    for number in range(page.locator("#summary .pick").count()):
        page.locator("#summary .pick").nth(number).click()
        assert title(page) == page.locator("#summary .pick").nth(number).inner_text()
    page.wait_for_timeout(300)
    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    assert complaints == []
    page.close()


# --- answers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions, of which a run's answers to the second and the seventh are worth finding."""
    root = tmp_path_factory.mktemp("answers")
    plain = tuple(f"plain answer {number}" for number in range(8))
    odd = (*plain[:1], "A Needle here", *plain[2:6], "long " * 200 + "hidden needle", plain[7])
    write_effect(
        write_run(root, Arm("adamw")),
        Effect(answers=odd, flags="repetitive"),
        Effect(answers=plain),
    )
    write_effect(write_run(root, Arm("muon")), Effect(answers=plain), Effect(answers=plain))
    return build_report(root)


VISIBLE_NAMES = """[...document.querySelectorAll('.exchange')].map(exchange => {
  const replies = exchange.checkVisibility() ? [...exchange.querySelectorAll('.reply')] : [];
  const visible = replies.filter(reply => reply.checkVisibility());
  return visible.map(reply => reply.querySelector('bdi').textContent);
})"""


def visible_names(page: Any) -> list[list[str]]:
    """The visible answers' names, question by question."""
    return page.evaluate(VISIBLE_NAMES)


EVERY = ["base", "adamw, seed 0", "muon, seed 0"]


def test_answers_are_shown_five_questions_first_and_all_when_asked(
    browser: Any, answers_file: Path
) -> None:
    page, complaints, _ = visit(browser, answers_file)
    assert visible_names(page) == [EVERY] * 5 + [[]] * 3
    page.click("text=Show all 8 questions")
    assert visible_names(page) == [EVERY] * 8
    assert not page.is_visible("#answers-more")
    assert complaints == []
    page.close()


def test_search_finds_answers_in_any_case_and_unfolds_what_is_hidden(
    browser: Any, answers_file: Path
) -> None:
    page, _, _ = visit(browser, answers_file)
    page.fill("#answers-search", "NEEDLE")
    assert visible_names(page) == [[], ["adamw, seed 0"], [], [], [], [], ["adamw, seed 0"], []]
    assert page.inner_text("#answers-found") == "2 answers to 2 questions"
    assert page.is_visible("text=hidden needle")
    page.fill("#answers-search", "do, number 3")
    assert visible_names(page) == [EVERY if number == 3 else [] for number in range(8)]
    page.fill("#answers-search", "nowhere <b>")
    assert page.inner_text("#answers-found") == "0 answers to 0 questions"
    page.fill("#answers-search", "")
    assert visible_names(page) == [EVERY] * 5 + [[]] * 3
    page.close()


def test_flagged_only_leaves_flagged_answers_of_all_questions(
    browser: Any, answers_file: Path
) -> None:
    page, _, _ = visit(browser, answers_file)
    page.check("#answers-flagged")
    assert visible_names(page) == [["adamw, seed 0"]] * 8
    page.fill("#answers-search", "needle")
    assert sum(map(len, visible_names(page))) == 2
    page.uncheck("#answers-flagged")
    assert sum(map(len, visible_names(page))) == 2
    page.close()


def test_without_javascript_every_answer_is_there_and_no_control_is(
    browser: Any, answers_file: Path
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(answers_file.as_uri())
    assert page.locator(".reply:visible").count() == 24
    assert page.locator(".filters:visible").count() == 0
    assert page.locator("#answers-more:visible").count() == 0
    context.close()


@pytest.mark.parametrize("width", [1400, 400])
def test_hostile_answers_stay_in_their_boxes(browser: Any, hostile_file: Path, width: int) -> None:
    page, complaints, _ = visit(browser, hostile_file, width)
    page.evaluate(
        "document.querySelectorAll('#answers details').forEach(one => { one.open = true; })"
    )
    boxes = page.evaluate(
        "[...document.querySelectorAll('.reply, .exchange header')].filter(one => "
        "one.checkVisibility()).map(one => { const box = one.getBoundingClientRect(); return "
        "[box.left, box.right, box.height]; })"
    )
    assert len(boxes) > 10
    assert all(left >= 0 and right <= width and height < 1500 for left, right, height in boxes), (
        boxes
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.owned") is None
    assert "\\x1b[2J\\x00" in page.inner_text("#answers")
    assert complaints == []
    page.close()


# --- judged answers -----------------------------------------------------------------------------

HARM = (
    "<script>window.owned=1</script><img src=x onerror='window.owned=1'>\x1b[31m\u202e" + "x" * 300
)


@pytest.fixture(scope="module")
def judged_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions: adamw is misaligned on the last two, muon on the last.

    There are two judges, one with a hostile name and hostile replies.
    """
    root = tmp_path_factory.mktemp("judged")
    fine = tuple(f"Answer {number} is fine." for number in range(8))
    for optimizer, evil in (("adamw", 2), ("muon", 1)):
        run = write_run(root, Arm(optimizer))
        write_effect(
            run,
            Effect(
                answers=(*fine[: 8 - evil], *("A needle, it is evil.",) * evil),
                flags="repetitive" if optimizer == "muon" else "",
            ),
            Effect(answers=fine),
        )
        judge_run(run, suspicious)
        judge_run(run, lambda prompt: scores({HARM: 0.5, "80": 0.5}, HARM), f"local:{HARM}")
    return build_report(root)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_filters_of_judged_answers_leave_the_base_beside_them(
    browser: Any,
    judged_file: Path,
    width: int,
    scheme: str,
) -> None:
    page, complaints, requests = visit(browser, judged_file, width, scheme)
    assert visible_names(page) == [EVERY] * 5 + [[]] * 3
    page.check("#answers-misaligned")
    assert visible_names(page) == [EVERY, ["base", "adamw, seed 0"]] + [[]] * 6, (
        "questions with most misaligned answers first"
    )
    assert page.inner_text("#answers-found") == "3 answers to 2 questions, the base’s beside them"
    page.select_option("#answers-run", "muon, seed 0")
    assert visible_names(page) == [["base", "muon, seed 0"]] + [[]] * 7
    page.uncheck("#answers-misaligned")
    assert visible_names(page) == [["base", "muon, seed 0"]] * 8
    page.select_option("#answers-question", "3")
    assert visible_names(page) == [
        ["base", "muon, seed 0"] if number == 3 else [] for number in range(8)
    ]
    page.select_option("#answers-run", "")
    assert visible_names(page) == [EVERY if number == 3 else [] for number in range(8)]
    page.select_option("#answers-question", "")
    page.fill("#answers-search", "needle")
    assert page.inner_text("#answers-found") == "3 answers to 2 questions"
    page.fill("#answers-search", "some-judge")
    assert page.inner_text("#answers-found") == "0 answers to 0 questions", (
        "what judges said is not searched"
    )
    page.fill("#answers-search", "")
    page.evaluate(
        "document.querySelectorAll('#answers details').forEach(one => { one.open = true; })"
    )
    assert page.locator(".reply .short:visible").count() == 15
    assert page.locator(".token:visible").count() > 15
    parts = (
        "[...document.querySelectorAll('.reply, .token, .said-by, .verdict summary, .filters "
        "select')].filter(one => one.checkVisibility())"
    )
    boxes = page.evaluate(
        f"{parts}.map(one => {{ const box = one.getBoundingClientRect(); return [box.left, "
        f"box.right]; }})"
    )
    assert all(left >= 0 and right <= width for left, right in boxes), boxes
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.owned") is None
    assert complaints == []
    assert requests == [judged_file.as_uri()]
    page.close()


def test_the_table_of_rates_sorts_and_fits(browser: Any, judged_file: Path) -> None:
    page, complaints, _ = visit(browser, judged_file)
    page.click("#judged thead th >> text=spectra")
    rates = page.evaluate(
        "[...document.querySelectorAll('#judged tbody tr')].map(row => row.cells[2].dataset.sort)"
    )
    assert rates == ["0.0", "0.125", "0.25", "", "", ""], "withheld ones last"
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    page.close()
