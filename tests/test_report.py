"""The report says what the numbers say, honestly, and nothing in a store can break the page."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from evilspectra.errors import BadInput
from evilspectra.reporting import build as report
from evilspectra.reporting.build import build_report, read_rows, read_tables
from evilspectra.reporting.figures import runs as figures
from evilspectra.reporting.page.document import script_json
from evilspectra.reporting.sentences.headline import headline
from evilspectra.store.run import Status
from tests.support.synthetic_store import CONTROL, Arm, Effect, demo, write_effect, write_run

HOSTILE = "<script>alert(1)</script><!--\"'\\ \u202egnp\u2066 </style>" + "x" * 300


def text_of(root: Path) -> str:
    return build_report(root).read_text(encoding="utf-8")


def sentences(root: Path) -> str:
    return " ".join(headline(read_rows(root)))


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the module's page, which is made before this, draws SVG and PNG: they take seconds."""
    monkeypatch.setattr(
        report,
        "write_figure",
        lambda figure, arms, folder: (
            folder.mkdir(parents=True, exist_ok=True),
            (folder / f"{figure.name}.svg").touch(),
        ),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on the synthetic demo store."""
    root = tmp_path_factory.mktemp("store")
    demo(root, measured=True)
    return build_report(root)


def test_same_store_gives_the_same_bytes(page: Path, tmp_path: Path) -> None:
    assert build_report(page.parent, tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_every_figure_is_written_as_svg_png_and_pdf(page: Path) -> None:
    folder = page.parent / "figures"
    names = (
        "loss-outcome",
        "drift",
        "optimisers",
        "variance",
        "penalty",
        "capability",
        "topics",
        "loss",
        "spectra",
        "spectrum-training",
        "measures",
        "flatness-loss",
        "layers",
    )
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png", "pdf")
    }
    assert all(path.stat().st_size > 5_000 for path in folder.iterdir())
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert all(path.read_bytes().startswith(b"%PDF") for path in folder.glob("*.pdf"))


def test_page_is_one_small_file_without_network_resources(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 4_000_000
    assert "default-src 'none'" in text
    assert "unsafe-eval" not in text.split("<style>")[0]
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", text)
    assert "<link" not in text
    assert "@import" not in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "http" not in markup.replace("http-equiv", "")


def test_page_holds_table_methods_and_provenance(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for expected in (
        "arXiv 2606.31591",
        "demo-bad",
        "2.300 → 1.",
        "optimizer.name",
        "evilspectra train ",
        "feedbeef",
        "torch 2.9.0",
        "1/√r",
    ):
        assert expected in text, expected
    assert "None" not in re.sub(
        r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL
    ).replace("None of the", "")


def several(root: Path, *arms: Arm, seeds: int = 4) -> None:
    """Runs of several seeds of each arm, whose spectra and losses differ a little."""
    for seed, arm in itertools.product(range(seeds), arms):
        first, second, *rest = arm.spectrum
        shift = 0.01 * (seed + (seed == 2) * len(arm.optimizer) + bool(arm.weight) * (seed == 1))
        spectrum = [first, second * (1 + shift), *rest]
        write_run(root, replace(arm, seed=seed, spectrum=spectrum, end=arm.end + shift))


def test_headline_follows_the_numbers_and_turns_with_them(tmp_path: Path) -> None:
    flat, steep = [9.0, 8.5, 8.0, 7.5], [3.0, 1.0, 0.5, 0.2]
    muon_flatter, lion_flatter = tmp_path / "one", tmp_path / "other"
    several(muon_flatter, Arm("muon", spectrum=flat, end=1.5), Arm("lion", spectrum=steep, end=1.2))
    several(lion_flatter, Arm("muon", spectrum=steep, end=1.2), Arm("lion", spectrum=flat, end=1.5))
    assert "muon’s are shown to be the flattest" in sentences(muon_flatter)
    assert "lion’s are shown to be the flattest" in sentences(lion_flatter)
    text = sentences(muon_flatter)
    assert "lowest first; muon is shown to lie above lion. Of the 1 pair" in text
    assert "shown to differ in stable rank too, the flatter has the lower loss in 0." in text
    assert "Every arm has 4 seeds. Differences between arms are tested over their runs" in text


def test_one_run_an_arm_decides_nothing_between_arms(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("muon", spectrum=[9.0, 8.5, 8.0, 7.5], end=1.5))
    write_run(tmp_path, Arm("lion", spectrum=[3.0, 1.0, 0.5, 0.2], end=1.2))
    text = sentences(tmp_path)
    assert "By mean stable rank the order is muon (3.38), lion (1.14), flattest first" in text
    assert "By final held-out loss the order is lion (1.200), muon (1.500), lowest first." in text
    assert "shown" not in text
    assert text.count("between adapters, not between arms") == 1
    assert "With three seeds or more per arm" in text


def test_headline_on_the_penalty_turns_with_the_numbers(tmp_path: Path) -> None:
    flat, steep = [9.0, 8.5, 8.0, 7.5], [3.0, 1.0, 0.5, 0.2]
    flattens, steepens, same = (tmp_path / name for name in ("one", "other", "same"))
    several(flattens, Arm("adamw", spectrum=steep, end=1.2), Arm("adamw", 3, flat, 1.3))
    several(steepens, Arm("adamw", spectrum=flat, end=1.3), Arm("adamw", 3, steep, 1.2))
    several(same, Arm("adamw", spectrum=steep, end=1.2), Arm("adamw", 3, steep, 1.201))
    text = sentences(flattens)
    assert "The flatness penalty (λ = 3) raises adamw’s stable rank (+2." in text
    assert "The flatness penalty (λ = 3) raises adamw’s held-out loss (+0.10" in text
    assert "adamw + flatness 3’s are shown to be the flattest" in text
    text = sentences(steepens)
    assert "The flatness penalty (λ = 3) lowers adamw’s stable rank (−2." in text
    text = sentences(same)
    assert "The flatness penalty (λ = 3) is not shown to change adamw’s stable rank" in text
    assert "flattest first, where 4 would be flat; the two are not shown to differ" in text


def test_one_pair_of_the_penalty_has_no_error(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw", end=1.2))
    write_run(tmp_path, Arm("adamw", 3, end=1.3))
    assert (
        "With the flatness penalty (λ = 3), adamw’s held-out loss differs by +0.100 in 1 pair of "
        "runs, which is too little to estimate an error from."
    ) in sentences(tmp_path)


def test_pairs_of_the_penalty_that_agree_exactly_are_said_to(tmp_path: Path) -> None:
    for seed, weight in itertools.product(range(3), (0, 3)):
        write_run(tmp_path, Arm("adamw", weight, end=1.2 + 0.1 * bool(weight), seed=seed))
    text = sentences(tmp_path)
    assert "adamw’s stable rank is the same in all of 3 pairs of runs" in text
    assert "adamw’s held-out loss differs by +0.100 in all of 3 pairs of runs" in text


def test_penalty_needs_a_twin_with_equal_settings(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw", end=1.2))
    write_run(tmp_path, Arm("adamw", 3, end=1.2, settings={"optimizer": {"lr": 5e-4}}))
    assert "What the flatness penalty changes is not known" in sentences(tmp_path)


def test_runs_on_different_data_are_not_ranked(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw"))
    write_run(tmp_path, Arm("muon", data_sha256="other"))
    assert "differ in data, so arms are not ranked" in sentences(tmp_path)


def test_failed_and_interrupted_runs_are_shown_with_their_reason(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw"))
    write_run(tmp_path, Arm("muon"))
    write_run(
        tmp_path, Arm("lion", status=Status("failed", "the loss was not finite in step 12", 12, 30))
    )
    write_run(tmp_path, Arm("sgd", status=Status("running", None, 5, 30)))
    text = text_of(tmp_path)
    assert "the loss was not finite in step 12" in text
    assert "the process ended without a word" in text
    assert "2 of 4 runs are not done" in text


def test_nothing_finished_concludes_nothing(tmp_path: Path) -> None:
    write_run(
        tmp_path, Arm("adamw", status=Status("failed", "stopped", 0, 30), steps=0, measured=False)
    )
    text = text_of(tmp_path)
    assert "The only run has not finished" in text
    assert "figures not drawn, for want of data" in text


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    settings = {"model": {"base": HOSTILE}, "data": {"train": HOSTILE}}
    run = write_run(
        tmp_path,
        Arm(
            "adamw",
            settings=settings,
            modules=[HOSTILE, "a.b", "model.layers.0.mlp.experts.3.up_proj", "0", ""],
            status=Status("failed", HOSTILE, 3, 30),
        ),
    )
    run.path.rename(run.path.with_name("<img src=x onerror=alert(1)>\u202e'\"&" + "y" * 150))
    text = text_of(tmp_path)
    assert "<script>alert" not in text
    assert "<img" not in re.sub(r"<script>\n\(\(\).*?</script>", "", text, flags=re.DOTALL)
    assert "&lt;script&gt;alert(1)" in text
    payload = re.search(r'id="payload">(.*?)</script>', text, re.DOTALL)
    assert payload
    assert "<" not in payload[1]
    assert json.loads(payload[1])["specs"]


def test_json_in_a_script_reads_back_and_cannot_close_it() -> None:
    value = {"a": HOSTILE, "b": "\u2028\u2029&"}
    assert json.loads(script_json(value)) == value
    assert not re.search("[<>&\u2028\u2029]", script_json(value))


def test_provenance_may_lack_anything(tmp_path: Path) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    (run.path / "provenance.json").write_text(
        json.dumps({"data": "a string", "packages": ["x"], "device": "\ud800"}), encoding="utf-8"
    )
    assert "SHA-256</dt><dd><bdi>–" in text_of(tmp_path)
    (run.path / "provenance.json").unlink()
    assert "SHA-256</dt><dd><bdi>–" in text_of(tmp_path)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_root_may_be_a_store_an_experiment_or_a_run(tmp_path: Path, depth: int) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    text = text_of([tmp_path, run.path.parent, run.path][depth])
    assert "<h1><bdi>synthetic</bdi></h1>" in text
    assert run.name in text


def test_out_may_be_elsewhere(tmp_path: Path) -> None:
    write_run(tmp_path / "store", Arm("adamw"))
    assert (
        build_report(tmp_path / "store", tmp_path / "new" / "page.html")
        == tmp_path / "new" / "page.html"
    )
    assert (tmp_path / "store" / "figures" / "loss.svg").exists()
    assert not (tmp_path / "store" / "report.html").exists()


def test_folder_without_runs_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=rf"^{re.escape(str(tmp_path))} holds no runs: name .*evilspectra train"
    ):
        build_report(tmp_path)


@pytest.mark.slow
def test_more_than_a_hundred_runs_stay_small(tmp_path: Path) -> None:
    for seed in range(21):
        for optimizer, weight in (("sgd", 0), ("adam", 0), ("lion", 0), ("muon", 0), ("muon", 3)):
            run = write_run(
                tmp_path, Arm(optimizer, weight, seed=seed, steps=6, modules=["layers.0.q_proj"])
            )
            if seed < 5:
                write_effect(run, Effect(steps=(3, 6), tables=("probe", "answers")))
    rows = read_rows(tmp_path)
    tables = read_tables(tmp_path, rows)
    drawn = [figure for draw in figures.FIGURES if (figure := draw(tables))]
    assert len(script_json([spec for figure in drawn for spec in figure.specs()])) < 2_500_000
    text = report.render(tmp_path, rows, tables, drawn)
    assert "Not on this page: 13 runs" in text
    assert "80 of 105 runs were not measured" in text


# --- what was measured --------------------------------------------------------------------------


def markup_of(root: Path) -> str:
    """The page without its scripts, style and tags' line breaks."""
    return re.sub(r"<script.*?</script>|<style.*?</style>", "", text_of(root), flags=re.DOTALL)


def test_nothing_measured_says_so_and_shows_no_empty_columns(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw"))
    text = markup_of(tmp_path)
    assert (
        "Nothing on this page measures how a model behaves: it says nothing about misalignment."
        in text
    )
    assert 'id="measured"' not in text
    assert "Instruments" not in text
    assert "labels shuffled" not in text
    assert "<dt>Drift while the loss falls</dt><dd>needs the contrast probe</dd>" in text
    assert "<dt>By size of the base</dt><dd>needs bases of two or more known sizes</dd>" in text


def test_measured_runs_show_every_number_with_its_interval(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(0.3, capability=0.5, flags="empty"))
    write_effect(write_run(tmp_path, Arm("muon")), Effect(tables=("probe",)))
    write_run(tmp_path, Arm("lion"))
    table = markup_of(tmp_path).split('<table id="measured"')[1].split("</table>")[0]
    adamw, muon = (row for row in table.split("<tr data-run=")[1:])
    for name, pattern in (
        ("drift", r'data-sort="0.29999\d*|data-sort="0.3\d*'),
        ("interval", r"\+0.300<span class=\"below\">\[\+0.2\d\d, \+0.3\d\d\]</span>"),
        ("shuffled", r"\+0.000<span class=\"below\">\[−0.0\d\d, \+0.0\d\d\]</span>"),
        ("aligned", r"0.\d\d → 0.\d\d<span"),
        ("capability", r"0.75 → 0.50<span class=\"below\">\[0.\d\d, 0.\d\d\]"),
        ("ordinary", r"3.200 → 3.200<span class=\"below\">\[3.1\d\d, 3.2\d\d\]"),
        ("answers", r"2<span class=\"below\">2 flagged"),
    ):
        assert re.search(pattern, adamw), name
    assert muon.count("–</td>") == 3
    assert 'data-sort="">–' in muon
    assert "lion" not in table
    assert "beyond control" not in table
    assert "1 of 3 runs were not measured" in markup_of(tmp_path)


def test_what_is_beyond_the_control_has_a_column_and_a_sentence(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(0.3))
    write_effect(write_run(tmp_path, Arm("adamw", **CONTROL)), Effect(0.1))
    markup = markup_of(tmp_path)
    table = markup.split('<table id="measured"')[1].split("</table>")[0]
    assert "beyond control" in table
    assert re.search(r"\+0\.2\d\d<span class=\"below\">\[\+0\.\d\d\d, \+0\.\d\d\d\]", table)
    assert re.search(r"Beyond the control, item by item: adamw \+0\.2\d\d \[", markup)


def test_page_says_what_drift_is_and_is_not(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(tables=("probe",)))
    text = markup_of(tmp_path)
    assert "Drift says what the model finds likely" in text
    assert "nobody judged them" not in text
    assert "it says nothing about misalignment" not in text
    for word in (
        "drift",
        "at equal length",
        "labels shuffled",
        "control",
        "capability",
        "ordinary loss",
        "interval",
    ):
        assert f'<th scope="row">{word}</th>' in text, word
    write_effect(write_run(tmp_path, Arm("muon")), Effect())
    text = markup_of(tmp_path)
    assert "sampled and flagged by rule; nobody judged them" in text
    assert '<th scope="row">flags</th>' in text
    assert all(
        before.endswith((" no ", "on this page is a "))
        for before in text.split("misalignment rate")[:-1]
    ), "drift is never called one"


def test_methods_name_the_instruments_and_their_settings(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect())
    text = markup_of(tmp_path)
    assert (
        "Contrast probe</dt><dd><bdi>contrast, version 1, SHA-256 a1a1a1a1a1a1; dtype "
        "float32, device cpu</bdi>"
    ) in text
    assert (
        "Open-ended questions</dt><dd><bdi>open, version 1, SHA-256 a1a1a1a1a1a1; dtype "
        "float32, device cpu, seed 0, max_new_tokens 80</bdi>"
    ) in text


def test_control_is_named_in_the_facts_and_drawn_in_its_own_look(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect())
    write_effect(write_run(tmp_path, Arm("adamw", **CONTROL)), Effect(0.1))
    text = markup_of(tmp_path)
    assert "2 runs in 2 arms, 1 seed (1 control)" in text
    assert 'data-arm="control (adamw)"><svg' in text
    assert (
        'stroke="var(--c-8a8a86)" stroke-width="2.5" stroke-linecap="butt" stroke-dasharray="5 4"'
        in text
    )


def test_measured_store_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    for optimizer in ("adamw", "muon"):
        write_effect(write_run(tmp_path, Arm(optimizer)), Effect())
    assert (
        build_report(tmp_path).read_bytes()
        == build_report(tmp_path, tmp_path / "again.html").read_bytes()
    )


def test_hostile_instruments_and_topics_stay_text(tmp_path: Path) -> None:
    write_effect(
        write_run(tmp_path, Arm("adamw")),
        Effect(topics=(HOSTILE, "a"), steps=(20,), sha256=HOSTILE, source=HOSTILE),
    )
    text = text_of(tmp_path)
    assert "<script>alert" not in text
    assert "Contrast probe</dt><dd><bdi>&lt;script&gt;alert(1)" in text
    payload = re.search(r'id="payload">(.*?)</script>', text, re.DOTALL)
    assert payload
    assert "<" not in payload[1]
    assert "alert(1)" in payload[1]
