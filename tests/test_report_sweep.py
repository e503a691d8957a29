"""The report on sweeps: outcomes and comparisons, whichever way the numbers came out.

Also the report on tables of other tools, and the one in Markdown.
"""

from __future__ import annotations

import base64
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evilspectra.reporting import build as report
from evilspectra.reporting.build import build_report, draw, read_rows, read_tables
from evilspectra.reporting.markdown import escaped
from evilspectra.reporting.page import details
from evilspectra.reporting.page.details import NOTHING, pack, quantise
from tests.support.commands import command
from tests.support.synthetic_store import (
    CONTROL,
    Arm,
    Effect,
    judge_run,
    modules,
    scores,
    write_effect,
    write_run,
)


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """SVG, PNG and PDF are `test_report`'s: they take seconds."""
    monkeypatch.setattr(
        report,
        "write_figure",
        lambda figure, arms, folder: (
            folder.mkdir(parents=True, exist_ok=True),
            (folder / f"{figure.name}.svg").touch(),
        ),
    )


def sweep(
    root: Path,
    means: dict[str, float],
    weights: dict[str, float] | None = None,
    losses: dict[str, float] | None = None,
) -> None:
    """A judged sweep: three seeds of two data sets for each optimiser, spread by a point.

    `means`: optimiser → mean alignment; `weights`: optimiser → the change by a penalty of 3;
    `losses`: optimiser → final held-out loss.
    """
    runs = itertools.product(means, range(3), ("one", "two"), (0, 3) if weights else (0,))
    for optimizer, seed, data, weight in runs:
        run = write_run(
            root,
            Arm(
                optimizer,
                weight,
                seed=seed,
                steps=6,
                end=(losses or {}).get(optimizer, 1.4) + 0.05 * seed,
                modules=modules(1),
                settings={"data": {"train": data}},
                data_sha256=data * 10,
            ),
        )
        answers = ("Made-up answer.",) * 4
        write_effect(run, Effect(0.2, steps=(6,), tables=("answers",), answers=answers))
        change = (weights or {}).get(optimizer, 0) * (weight > 0) * (1 + 0.03 * (seed - 1))
        score = means[optimizer] + (seed - 1) + change
        reply = {f"{int(score)}": 1 - score % 1, f"{int(score) + 1}": score % 1}
        judge_run(run, lambda prompt, reply=reply: scores(reply), base=False)


def text_of(root: Path) -> str:
    text = build_report(root).read_text(encoding="utf-8")
    return re.sub(
        r"<[^>]+>", "", re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    )


def lead_of(root: Path) -> str:
    """The words above the first heading."""
    text = build_report(root).read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", "", text.split('<section class="headline"')[1].split("</section>")[0])


def test_the_headline_says_where_results_contradict_the_paper(tmp_path: Path) -> None:
    sweep(tmp_path / "against", {"muon": 55.0, "lion": 85.0}, {"lion": -8.0, "muon": 0.0})
    lead = lead_of(tmp_path / "against")
    assert "This contradicts the paper: lion stays more aligned than muon (" in lead
    assert re.search(r"The penalty changes mean alignment under lion with λ = 3 by −8 \[−8", lead)
    assert "this contradicts the paper, which has +8 points" in lead
    assert "As in the paper, muon" not in lead
    sweep(tmp_path / "with", {"muon": 85.0, "lion": 55.0}, {"lion": 8.0, "muon": 0.0})
    lead = lead_of(tmp_path / "with")
    assert "contradicts" not in lead
    assert "muon 85 (rank 1), lion 59 (rank 2); they differ." in lead


def test_what_is_not_shown_is_said_to_be_not_shown(tmp_path: Path) -> None:
    sweep(tmp_path, {"muon": 70.2, "lion": 70.0})
    lead = lead_of(tmp_path)
    assert "they are not shown to differ" in lead
    assert "contradicts" not in lead
    assert "optimiser is not shown to explain any of the variance of mean alignment" in lead
    assert "not shown is no proof that there is nothing" in text_of(tmp_path)


def test_an_order_of_losses_that_is_not_the_order_of_alignment_is_drawn_and_said(
    tmp_path: Path,
) -> None:
    sweep(tmp_path, {"muon": 80.0, "lion": 60.0}, losses={"muon": 1.2, "lion": 1.5})
    tables = read_tables(tmp_path, read_rows(tmp_path))
    figure = next(figure for figure in draw(tables) if figure.name == "loss-outcome")
    (spec,) = figure.specs()
    points = max(spec["datasets"].values(), key=lambda rows: len(rows) * ("seed" in rows[0]))
    assert len(points) == 12
    assert {row["run"] for row in points} == set(tables.runs["run"])
    assert np.mean([row["outcome"] for row in points if row["arm"] == "muon"]) == pytest.approx(
        80, abs=0.1
    )
    assert tables.statistics is not None
    assert {fit.name for fit in tables.statistics.fits} == {"muon", "lion", "all runs"}
    for fit in tables.statistics.fits:
        part = (
            tables.runs
            if fit.name == "all runs"
            else tables.runs[tables.runs["optimizer"] == fit.name]
        )
        slope, intercept = np.polyfit(part["log_loss"], part["mean_alignment"], 1)
        assert fit.y == pytest.approx([slope * x + intercept for x in fit.x], rel=1e-6)
        assert all(low <= y <= high for low, y, high in zip(fit.low, fit.y, fit.high, strict=True))


def test_figures_appear_where_the_data_allow_them_and_are_named_where_not(tmp_path: Path) -> None:
    sweep(tmp_path, {"muon": 80.0, "lion": 60.0}, {"muon": 1.0, "lion": 2.0})
    names = {figure.name for figure in draw(read_tables(tmp_path, read_rows(tmp_path)))}
    assert {
        "loss-outcome",
        "optimisers",
        "variance",
        "penalty",
        "spectrum-training",
        "layers",
    } <= names
    assert not {"drift", "partial", "weights", "size"} & names
    text = text_of(tmp_path)
    assert "needs an outcome and a loss at two or more checkpoints" in text
    assert "needs bases of two or more known sizes" in text


def test_sizes_weights_and_checkpoints_have_figures_of_their_own(tmp_path: Path) -> None:
    for optimizer in ("adamw", "muon", "lion"):
        for seed in range(2):
            for weight in (0, 1, 3):
                for base in ("made-up/Model-1B", "made-up/Model-8B"):
                    run = write_run(
                        tmp_path,
                        Arm(
                            optimizer,
                            weight,
                            seed=seed,
                            steps=20,
                            modules=modules(1),
                            settings={"model": {"base": base}},
                            data_sha256=base * 4,
                        ),
                    )
                    write_effect(
                        run,
                        Effect(
                            0.1 * weight + 0.05 * seed + 0.2 * (optimizer == "lion"),
                            tables=("probe",),
                            steps=(10, 20),
                        ),
                    )
    drawn = {figure.name: figure for figure in draw(read_tables(tmp_path, read_rows(tmp_path)))}
    assert {"size", "weights", "partial", "variance"} <= set(drawn)
    (spec,) = drawn["size"].specs()
    assert {row["billions"] for rows in spec["datasets"].values() for row in rows} == {1.0, 8.0}
    assert drawn["weights"].panels[0].title.startswith("Drift")
    (spec,) = drawn["partial"].specs()
    rows = max(spec["datasets"].values(), key=len)
    assert {row["step"] for row in rows} == {10, 20}
    assert {row["what"] for row in rows} == {"optimiser, given loss", "loss, given optimiser"}


def test_exclusions_stand_in_the_methods_with_their_reasons(tmp_path: Path) -> None:
    sweep(tmp_path, {"muon": 80.0, "lion": 60.0})
    write_run(tmp_path, Arm("sgd", modules=modules(1)))
    write_run(tmp_path, Arm("adamw", modules=modules(1), **CONTROL))
    methods = text_of(tmp_path).split("Methods")[-1]
    assert "no mean alignment was measured" in methods
    assert "control: its data differ on purpose" in methods
    assert re.search(
        (
            r"Design\s+12 runs, optimiser \(2\) × data \(2\): every combination has runs, 3 each; "
            r"3 seeds a cell"
        ),
        methods,
    )


# --- the panel's data ---------------------------------------------------------------------------


def test_packed_spectra_read_back_within_their_stated_error() -> None:
    random = np.random.default_rng(0)
    values = -np.sort(-np.exp(random.normal(0, 4, (7, 20))), axis=1)
    packed = pack([details.Spectra(tuple("abcdefg"), values, np.arange(7.0), 5), None])
    codes = np.frombuffer(base64.b64decode(packed["relative"]), "<u2").reshape(7, 20)
    largest = np.frombuffer(base64.b64decode(packed["largest"]), "<f4")
    deep = values / values[:, :1] < 1e-8
    read = largest[:, None] * 10.0 ** (-codes.astype(float) * packed["decades"] / (NOTHING - 1))
    assert read[~deep] == pytest.approx(values[~deep], rel=1.5e-4)
    assert packed["runs"] == [{"layout": 0, "module": 0, "value": 0, "step": 5}, None]
    assert (
        quantise(np.array([[1.0, 0.0, np.nan]]), np.array([1.0])) == [[0, NOTHING, NOTHING]]
    ).all()


def test_too_many_values_leave_whole_modules_out_and_many_indices_are_thinned() -> None:
    run_spectra = details.Spectra(tuple(map(str, range(10))), np.ones((10, 100)), np.ones(10), 1)
    packed = pack([run_spectra] * 4, most_values=500)
    assert packed["every"] == 3
    assert packed["layouts"][0]["modules"] == ["0", "3", "6", "9"]
    indices = packed["layouts"][0]["indices"]
    assert indices[:4] == [1, 2, 3, 4]
    assert indices[-1] == 100
    assert len(indices) <= details.MOST_INDICES


# --- tables of other tools, Markdown ------------------------------------------------------------

COLUMNS = (
    "--column",
    "run=name",
    "--column",
    "optimizer=opt",
    "--column",
    "mean_alignment=score",
    "--column",
    "train_loss=final loss",
)


def table_of_other_tools(folder: Path) -> Path:
    random = np.random.default_rng(0)
    rows = [
        {
            "name": f"<b>{opt}</b> {seed}",
            "opt": opt,
            "score": mean + random.normal(),
            "final loss": 0.4 + 0.1 * seed,
            "gpu": "some | card",
        }
        for opt, mean in (("adam", 70), ("muon", 80), ("lion", 55))
        for seed in range(4)
    ]
    pd.DataFrame(rows).to_csv(folder / "theirs.csv", index=False)
    return folder / "theirs.csv"


def test_a_table_of_other_tools_gets_a_report(tmp_path: Path) -> None:
    table = table_of_other_tools(tmp_path)
    done = command("report", table, *COLUMNS)
    assert done.code == 0, done.err
    assert done.out.strip() == str(tmp_path / "theirs-report.html")
    text = (tmp_path / "theirs-report.html").read_text(encoding="utf-8")
    assert "Mean alignment, best first: muon" in text
    assert "&lt;b&gt;adam&lt;/b&gt; 0" in text
    assert "<b>adam" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "needs measured spectra" in text
    assert {path.stem for path in (tmp_path / "theirs-figures").iterdir()} == {
        "loss-outcome",
        "optimisers",
        "variance",
    }
    assert command("report", table, *COLUMNS, "--out", tmp_path / "again.html").code == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--column", "optimizer=opti"), "the table has no column 'opti' to take optimizer from"),
        (
            ("--column", "optimizer"),
            "--column takes OURS=THEIRS, such as optimizer=opt_name, not 'optimizer'",
        ),
        (("--outcome", "gpu"), "column 'gpu' holds"),
        (("--outcome", "nothing"), "'nothing'"),
    ],
)
def test_a_table_that_lacks_what_is_asked_is_refused_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = command("report", table_of_other_tools(tmp_path), *arguments)
    assert done.code == 2
    assert message in done.sentence


def test_options_of_tables_are_refused_for_a_store(tmp_path: Path) -> None:
    done = command("report", tmp_path, "--column", "a=b")
    assert (done.code, done.sentence) == (
        2,
        (
            f"--column is for tables of other tools, and {tmp_path} is no such file: leave it "
            "out, or name a .csv or .parquet file"
        ),
    )


@pytest.mark.slow
def test_markdown_has_the_page_s_words_tables_and_links_to_its_figures(tmp_path: Path) -> None:
    sweep(tmp_path, {"muon": 80.0, "lion": 60.0}, {"muon": 1.0, "lion": 2.0})
    done = command("report", tmp_path, "--format", "md")
    assert done.out.strip() == str(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    tables = read_tables(tmp_path, read_rows(tmp_path))
    assert tables.statistics is not None
    for sentence in tables.statistics.leading:
        assert escaped(sentence) in text
    links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(links) >= 8
    assert all((tmp_path / link).exists() for link in links)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 6
    for lines in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines[0]
    assert "## Methods" in text
    assert "evilspectra train " in text
    again = command("report", tmp_path, "--format", "md", "--out", tmp_path / "again.md")
    assert again.code == 0
    assert (tmp_path / "again.md").read_text(encoding="utf-8") == text


def test_markdown_shows_hostile_names_as_text(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    pd.DataFrame(
        {
            "run": ["a|b", "<img src=x>", "[l](http://x)", "*c*", "d"],
            "optimizer": ["x`y"] * 5,
            "drift": [0.1, 0.2, 0.3, 0.1, 0.2],
        }
    ).to_csv(table, index=False)
    assert command("report", table, "--format", "md").code == 0
    text = (tmp_path / "t-report.md").read_text(encoding="utf-8")
    assert r"a\|b" in text
    assert "<img" not in text
    assert r"\[l\](http://x)" in text
