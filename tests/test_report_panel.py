"""The panel of a run in a real browser: clicks on figures and tables open it, and it fits."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evilspectra.reporting.build import build_report
from tests.support.chromium import MARKS, chromium, title, visit
from tests.support.large_store import write_large
from tests.support.synthetic_store import (
    Arm,
    Effect,
    judge_run,
    modules,
    suspicious,
    write_effect,
    write_run,
)

pytestmark = MARKS

PICKED = (
    "[...document.querySelectorAll('#figure-loss-outcome svg .mark-symbol path')].filter(path => "
    "Number(path.getAttribute('opacity') ?? 1) > 0.5).length"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def linked_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs, probed and judged, with more answers than the page shows of a run.

    The last run's are all misaligned.
    """
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
        "[...document.querySelectorAll('#panel-answers .answer')].map(one => "
        "!!one.querySelector('.misaligned'))"
    )
    assert flags == [True] * 24 + [False] * 16
    assert page.inner_text("#panel-answers-note").startswith(
        "40 of 48 answers, misaligned first (24 of all are by what the judge said); at most 40 a "
        "run are on this page"
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
    parts = (
        "[...document.querySelectorAll('#panel, #panel :is(h2, select, svg, .answer, .note, "
        "button)')].filter(one => one.checkVisibility())"
    )
    boxes = page.evaluate(
        f"{parts}.map(one => {{ const box = one.getBoundingClientRect(); return [one.tagName, "
        f"box.left, box.right]; }})"
    )
    assert len(boxes) > 40
    assert all(left >= 0 and right <= width for _, left, right in boxes), boxes
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("location.hash = '#run=nobody'")
    page.wait_for_selector("#panel", state="hidden")
    assert complaints == []
    page.close()


# --- the paper's size ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_report_on_328_runs_keeps_its_budget_and_answers_clicks(
    browser: Any, tmp_path: Path
) -> None:
    """8 checkpoints and 252 modules of rank 32 take under 60 seconds and under 25 MB.

    The time includes the figures as files. A click opens the panel.
    """
    write_large(tmp_path)
    start, cpu = time.monotonic(), time.process_time()
    file = build_report(tmp_path)
    # by the clock or, where others keep the machine busy, of the processor
    assert min(time.monotonic() - start, time.process_time() - cpu) < 60
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
