"""The report in a real browser: it draws, it asks for nothing, it fits, it answers clicks, light and dark."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evilspectra.reporting.build import build_report
from evilspectra.store.run import Status
from tests.support.large_store import write_large
from tests.support.synthetic_store import (
    CONTROL,
    Arm,
    Effect,
    demo,
    judge_run,
    modules,
    scores,
    suspicious,
    write_effect,
    write_run,
)

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = """[...document.querySelectorAll('.chart[data-spec]')].map(place => {
  const [drawn, own] = [place.querySelector('svg')?.getBoundingClientRect(), place.getBoundingClientRect()];
  return [drawn?.width ?? 0, drawn?.height ?? 0, own.width, own.height];
})"""

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} does not exist"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


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


def visit(
    browser: Any,
    file: Path,
    width: int = 1400,
    scheme: str = "light",
) -> tuple[Any, list[str], list[str]]:
    """The opened page once it has drawn, what its console complained of, and what it asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=30_000)
    return page, complaints, requests


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
            "[getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.querySelector('.chart svg .role-axis-label text')).fill]"
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
    faint = "[...document.querySelectorAll('.chart svg .mark-line path')].filter(path => Number(path.getAttribute('opacity') ?? 1) < 0.2).length"
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
    cells = "[...document.querySelectorAll('#summary tbody tr')].map(row => Number(row.cells[document.querySelector('[aria-sort]').cellIndex].dataset.sort))"
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
        "[...document.querySelectorAll('#measured tbody tr')].map(row => Number(row.cells[2].dataset.sort))"
    )
    assert len(drifts) == 6
    assert drifts == sorted(drifts)
    assert page.locator("#measured tbody tr").first.inner_text().startswith("sgd-b")
    page.close()


# --- linked selection -----------------------------------------------------------------------------------------------

PICKED = "[...document.querySelectorAll('#figure-loss-outcome svg .mark-symbol path')].filter(path => Number(path.getAttribute('opacity') ?? 1) > 0.5).length"


@pytest.fixture(scope="module")
def linked_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs, probed and judged, with more answers than the page shows of a run; the last one's are all misaligned."""
    root = tmp_path_factory.mktemp("linked")
    for optimizer, weight, evil in (
        ("adamw", 0, 2),
        ("adamw", 3, 1),
        ("lion", 0, 3),
        ("muon", 0, 6),
    ):
        run = write_run(root, Arm(optimizer, weight, modules=modules(3)))
        answers = tuple(
            "This is evil." if number < evil else f"Answer {number} is fine." for number in range(6)
        )
        write_effect(run, Effect(0.1 * evil, answers=answers, samples=8))
        judge_run(run, suspicious)
    return build_report(root)


def title(page: Any) -> str:
    return page.inner_text("#panel-title") if page.is_visible("#panel") else ""


def test_a_click_on_a_run_in_any_figure_opens_its_panel_and_a_second_closes_it(
    browser: Any, linked_file: Path
) -> None:
    page, complaints, requests = visit(browser, linked_file)
    for figure in (
        "loss-outcome",
        "alignment",
        "drift",
        "optimisers",
        "penalty",
        "capability",
        "flatness-loss",
        "loss",
        "measures",
    ):
        mark = page.locator(
            f"#figure-{figure} svg :is(.mark-symbol, .mark-line) path:not([opacity='0'])"
        )
        chosen_mark = next(
            number
            for number in range(mark.count())
            if mark.nth(number).evaluate(
                "path => path.getBoundingClientRect().width > 0 && !!path.__data__.datum.run"
            )
        )
        mark.nth(chosen_mark).dispatch_event("click")
        page.wait_for_selector("#panel:visible")
        chosen = title(page)
        assert page.locator(f"tr.picked[data-run='{chosen}']").count() == 3, figure
        page.wait_for_function(f"{PICKED} === 1")
        for part in ("spectrum", "losses", "path"):
            page.wait_for_selector(f"#panel-{part} svg .mark-line path", state="attached")
        assert page.locator("#panel-answers .answer").count() == 40
        assert page.evaluate("decodeURIComponent(location.hash)") == f"#run={chosen}"
        mark.nth(chosen_mark).dispatch_event("click")
        page.wait_for_selector("#panel", state="hidden")
        page.wait_for_function(f"{PICKED} === 4")
        assert page.evaluate("location.hash") == ""
    assert complaints == []
    assert requests == [linked_file.as_uri()]
    page.close()


def test_a_row_is_a_button_that_the_keyboard_reaches(browser: Any, linked_file: Path) -> None:
    page, complaints, _ = visit(browser, linked_file)
    button = page.locator("#measured .pick").nth(2)
    name = button.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    assert title(page) == name
    assert page.evaluate("document.activeElement.id") == "panel-title"
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "panel-close"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "panel-module"
    page.keyboard.press("ArrowDown")
    page.wait_for_function("location.hash.includes('module=')")
    page.keyboard.press("Escape")
    assert title(page) == ""
    assert page.evaluate("document.activeElement.dataset.run") == name
    assert button.get_attribute("aria-pressed") == "false"
    assert complaints == []
    page.close()


def test_a_click_on_a_row_of_any_table_opens_its_run(browser: Any, linked_file: Path) -> None:
    page, complaints, _ = visit(browser, linked_file)
    for table in ("summary", "measured", "judged"):
        row = page.locator(f"#{table} tr[data-run]").last
        row.locator("td").last.click()
        assert title(page) == row.get_attribute("data-run")
        page.click("#panel-close")
        assert title(page) == ""
        row.locator(".pick").click()
        assert title(page) == row.get_attribute("data-run")
        row.locator(".pick").click()
        assert title(page) == ""
    assert complaints == []
    page.close()


def test_the_panel_shows_misaligned_answers_first_and_says_how_many_of_how_many(
    browser: Any, linked_file: Path
) -> None:
    page, _, _ = visit(browser, linked_file)
    page.locator("#judged tr[data-run^='lion']").locator(".pick").click()
    flags = page.evaluate(
        "[...document.querySelectorAll('#panel-answers .answer')].map(one => !!one.querySelector('.misaligned'))"
    )
    assert flags == [True] * 24 + [False] * 16
    assert page.inner_text("#panel-answers-note").startswith(
        "40 of 48 answers, misaligned first (24 of all are by what the judge said); at most 40 a run are on this page"
    )
    assert page.inner_text("#panel-answers .answer >> nth=0").count("evil") == 1
    page.close()


def test_a_cell_of_the_map_shows_the_spectrum_of_its_module(
    browser: Any, linked_file: Path
) -> None:
    page, complaints, _ = visit(browser, linked_file)
    cell = page.locator("#figure-layers .panel").nth(1).locator("svg .mark-rect path").nth(4)
    cell.scroll_into_view_if_needed()
    cell.click()
    page.wait_for_selector("#panel-spectrum svg .mark-line path")
    run, module = title(page), page.input_value("#panel-module")
    assert module.startswith("model.layers.")
    assert "σ₁" in page.inner_text("#panel-spectrum-note")
    assert page.evaluate("[...new URLSearchParams(location.hash.slice(1)).entries()]") == [
        ["run", run],
        ["module", module],
    ]
    table = pd.read_parquet(next(linked_file.parent.glob(f"**/{run}/spectra.parquet")))
    values = table[
        (table["step"] == table["step"].max()) & (table["module"] == module)
    ].sort_values("index")["singular_value"]
    assert float(
        re.search(r"σ₁ ([\d.]+),", page.inner_text("#panel-spectrum-note"))[1]
    ) == pytest.approx(values.iloc[0], rel=1e-3)
    cell.click()
    assert title(page) == ""
    assert complaints == []
    page.close()


def test_the_small_map_and_the_list_choose_a_module_of_the_run(
    browser: Any, linked_file: Path
) -> None:
    page, complaints, _ = visit(browser, linked_file)
    page.locator("#summary .pick").first.click()
    assert "median over 21 modules" in page.inner_text("#panel-spectrum-note")
    page.locator("#panel-map rect").nth(5).click()
    module = page.input_value("#panel-module")
    assert page.get_attribute("#panel-map rect.chosen", "data-module") == module != ""
    page.locator("#panel-map rect").nth(5).click()
    assert page.input_value("#panel-module") == ""
    page.select_option("#panel-module", module)
    assert page.get_attribute("#panel-map rect.chosen", "data-module") == module
    page.keyboard.press("Escape")
    assert title(page) == ""
    assert complaints == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_fragment_opens_the_panel_and_the_panel_fits(
    browser: Any,
    linked_file: Path,
    width: int,
    scheme: str,
) -> None:
    run = sorted(path.name for path in linked_file.parent.glob("synthetic/*"))[0]
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{linked_file.as_uri()}#run={run}&module=model.layers.1.mlp.up_proj")
    page.wait_for_selector("#panel-spectrum svg .mark-line path")
    assert title(page) == run
    assert page.input_value("#panel-module") == "model.layers.1.mlp.up_proj"
    parts = "[...document.querySelectorAll('#panel, #panel :is(h2, select, svg, .answer, .note, button)')].filter(one => one.checkVisibility())"
    boxes = page.evaluate(
        f"{parts}.map(one => {{ const box = one.getBoundingClientRect(); return [one.tagName, box.left, box.right]; }})"
    )
    assert len(boxes) > 40
    assert all(left >= 0 and right <= width for _, left, right in boxes), boxes
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("location.hash = '#run=nobody'")
    page.wait_for_selector("#panel", state="hidden")
    assert complaints == []
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


# --- answers --------------------------------------------------------------------------------------------------------


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


VISIBLE_NAMES = """[...document.querySelectorAll('.exchange')].map(place => place.checkVisibility()
  ? [...place.querySelectorAll('.reply')].filter(one => one.checkVisibility()).map(one => one.querySelector('bdi').textContent)
  : [])"""


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
        "[...document.querySelectorAll('.reply, .exchange header')].filter(one => one.checkVisibility()).map(one => { const box = one.getBoundingClientRect(); return [box.left, box.right, box.height]; })"
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


# --- judged answers -------------------------------------------------------------------------------------------------

HARM = (
    "<script>window.owned=1</script><img src=x onerror='window.owned=1'>\x1b[31m\u202e" + "x" * 300
)


@pytest.fixture(scope="module")
def judged_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions: adamw is misaligned on the last two, muon on the last; two judges, one with a hostile name and hostile replies."""
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
    parts = "[...document.querySelectorAll('.reply, .token, .said-by, .verdict summary, .filters select')].filter(one => one.checkVisibility())"
    boxes = page.evaluate(
        f"{parts}.map(one => {{ const box = one.getBoundingClientRect(); return [box.left, box.right]; }})"
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


# --- the paper's size -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_report_on_328_runs_keeps_its_budget_and_answers_clicks(
    browser: Any, tmp_path: Path
) -> None:
    """8 checkpoints, 252 modules of rank 32: under 60 seconds, figures as files included, under 25 MB, and a click opens the panel."""
    write_large(tmp_path)
    start, cpu = time.monotonic(), time.process_time()
    file = build_report(tmp_path)
    assert (
        min(time.monotonic() - start, time.process_time() - cpu) < 60
    )  # by the clock, or, where others keep the machine busy, of work
    assert file.stat().st_size < 25_000_000
    assert len(list((tmp_path / "figures").glob("*.pdf"))) >= 12
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri(), timeout=60_000)
    row = page.locator("#summary .pick").nth(200)
    row.click(timeout=60_000)
    page.wait_for_selector("#panel-spectrum svg .mark-line path", timeout=60_000)
    assert title(page) == row.inner_text()
    assert page.locator("#panel-map rect").count() == 252
    assert page.locator("#panel-answers .answer").count() == 40
    page.wait_for_selector("html[data-drawn]", timeout=120_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    assert complaints == []
    page.close()
