"""The figures: what they aggregate, what they leave out, and that they are the same every time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from evilspectra.reporting.build import read_rows, read_tables
from evilspectra.reporting.figures import charts, marks
from evilspectra.reporting.figures.charts import Figure, Tables
from evilspectra.reporting.figures.modules import map_cell
from evilspectra.reporting.figures.palette import CONTROL as GREY
from evilspectra.reporting.figures.palette import DARK, DIVERGING, HUES, INK, PAPER, Arms
from evilspectra.reporting.figures.runs import FIGURES
from evilspectra.reporting.figures.spectra import MEASURES, flat_value
from evilspectra.reporting.page.document import through_css
from evilspectra.store.run import Status
from tests.support.synthetic_store import CONTROL, Arm, Effect, demo, write_effect, write_run

NAMES = ["loss", "spectra", "spectrum-training", "measures", "flatness-loss", "layers"]
MEASURED = ["drift", "capability", "topics"]


def tables_of(root: Path) -> Tables:
    return read_tables(root, read_rows(root))


def drawn(tables: Tables) -> dict[str, Figure]:
    return {figure.name: figure for draw in FIGURES if (figure := draw(tables))}


def rows_of(spec: dict) -> list[dict]:
    return max(spec["datasets"].values(), key=len)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    root = tmp_path_factory.mktemp("store")
    demo(root, layers=2, rank=8, seeds=2, measured=True)
    return tables_of(root)


@pytest.mark.slow
def test_figures_come_in_order_and_identical_each_time(tables: Tables) -> None:
    first, again = (
        [figure.specs() for draw in FIGURES if (figure := draw(tables))] for _ in range(2)
    )
    assert list(drawn(tables)) == [
        "loss-outcome",
        "drift",
        "optimisers",
        "variance",
        "penalty",
        "capability",
        "topics",
        *NAMES,
    ]
    assert json.dumps(first) == json.dumps(again)
    assert json.dumps(drawn(tables)["loss"].chart(tables.arms)) == json.dumps(
        drawn(tables)["loss"].chart(tables.arms)
    )


def test_spectra_are_quantiles_over_modules_and_seeds(tables: Tables) -> None:
    relative, absolute = (rows_of(spec) for spec in drawn(tables)["spectra"].specs())
    values = tables.spectra[(tables.spectra["arm"] == "muon") & (tables.spectra["index"] == 2)][
        "singular_value"
    ]
    row = next(row for row in absolute if row["arm"] == "muon" and row["position"] == 3)
    assert [row["low"], row["median"], row["high"]] == pytest.approx(
        values.quantile([0.1, 0.5, 0.9]).tolist(), rel=1e-5
    )
    assert all(row["low"] == row["high"] == 1 for row in relative if row["position"] == 1)
    assert len(relative) == 6 * 8


def test_measures_are_means_and_the_condition_number_a_median(tables: Tables) -> None:
    panels = {
        panel.title: rows_of(spec)
        for panel, spec in zip(
            drawn(tables)["measures"].panels, drawn(tables)["measures"].specs(), strict=True
        )
    }
    run = tables.runs["run"][0]
    last = tables.measures[(tables.measures["run"] == run) & (tables.measures["step"] == 30)]
    assert next(row for row in panels["Stable rank"] if row["run"] == run and row["step"] == 30)[
        "mean"
    ] == pytest.approx(last["stable_rank"].mean(), rel=1e-5)
    assert next(
        row for row in panels["Condition number, median"] if row["run"] == run and row["step"] == 30
    )["median"] == pytest.approx(last["condition_number"].median(), rel=1e-5)


def test_one_colour_per_arm_and_a_penalty_keeps_the_hue() -> None:
    names = [("adamw", 0.0), ("adamw", 3.0), ("adamw", 10.0), ("sgd", 0.0), ("muon", 1.0)]
    arms = Arms.of(
        pd.DataFrame(
            [
                {
                    "arm": f"{name} {weight}",
                    "optimizer": name,
                    "flatness_weight": weight,
                    "control": False,
                }
                for name, weight in names
            ]
        )
    )
    assert arms.names == ("sgd 0.0", "adamw 0.0", "adamw 3.0", "adamw 10.0", "muon 1.0")
    assert len(set(arms.colours)) == len(set(arms.dark)) == 5
    assert (arms.colours[1], arms.dark[1]) == HUES["adamw"]
    assert arms.dashes[0] == arms.dashes[1] == [1, 0]
    assert arms.dashes[2] != arms.dashes[3] != [1, 0]
    reds, greens, blues = zip(
        *([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in arms.colours[1:4]),
        strict=True,
    )
    assert all(
        list(part) == sorted(part) for part in (reds, greens, blues)
    )  # lighter with each weight


def test_controls_are_grey_dashed_and_last() -> None:
    names = [
        ("adamw", 0.0, True),
        ("muon", 0.0, True),
        ("adamw", 3.0, True),
        ("adamw", 0.0, False),
        ("muon", 0.0, False),
    ]
    arms = Arms.of(
        pd.DataFrame(
            [
                {
                    "arm": f"{name} {weight} {control}",
                    "optimizer": name,
                    "flatness_weight": weight,
                    "control": control,
                }
                for name, weight, control in names
            ]
        )
    )
    assert arms.names == (
        "adamw 0.0 False",
        "muon 0.0 False",
        "adamw 0.0 True",
        "adamw 3.0 True",
        "muon 0.0 True",
    )
    assert (arms.colours[2], arms.dark[2]) == GREY
    assert len(set(arms.colours)) == len(set(arms.dark)) == 5
    for colour in (*arms.colours[2:], *arms.dark[2:]):
        channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert max(channels) - min(channels) < 12, "a control has no hue"
    assert len({str(dash) for dash in arms.dashes[1:]}) == 4
    assert not set(arms.colours) & set(DARK), (
        "a colour that charts use for something else would get its dark twin"
    )


def test_numbers_on_the_diverging_colours_can_be_read() -> None:
    def lightness(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    for index, colour in enumerate(DIVERGING):
        ink = INK if 2 <= index <= 6 else PAPER
        for ground, text in ((colour, ink), (DARK[colour], DARK[ink])):
            low, high = sorted((lightness(ground), lightness(text)))
            assert high / low > 4.5, (index, ground)


def test_every_colour_of_a_page_spec_has_a_dark_twin(tables: Tables) -> None:
    colours = set(DARK) | set(tables.arms.colours)
    left = through_css(
        [spec for figure in drawn(tables).values() for spec in figure.specs()], colours
    )
    for spec in left:
        del spec["datasets"]
    assert '"#' not in json.dumps(left)
    assert "var(--c-" in json.dumps(left)


def test_data_that_looks_like_a_colour_stays_data() -> None:
    assert through_css({"datasets": {"a": [{"run": "#fdfdfb"}]}, "fill": "#fdfdfb"}, set(DARK)) == {
        "datasets": {"a": [{"run": "#fdfdfb"}]},
        "fill": "var(--c-fdfdfb)",
    }


PLACES = {
    "model.layers.12.self_attn.q_proj": ("12", "q_proj"),
    "h.3.c_attn": ("3", "c_attn"),
    "base.layers.1.mlp.experts.7.up_proj": ("1", "up_proj"),
    "lm_head": ("–", "lm_head"),
    "a\nb.4.c": ("4", "c"),
    "": ("–", ""),
    "0": ("–", "0"),
    "x.123456789.y": ("–", "x.123456789.y"),
}


@pytest.mark.parametrize(("module", "expected"), PLACES.items())
def test_layer_and_projection_are_read_from_a_name(module: str, expected: tuple[str, str]) -> None:
    assert map_cell(module) == expected


def test_flat_values_are_those_of_equal_singular_values() -> None:
    assert [flat_value(name, 32) for name in MEASURES] == pytest.approx(
        [32, math.log(32), 0.17678, 1], rel=1e-4
    )


@pytest.mark.parametrize(
    "spectrum",
    [[1.0], [1.0, 0.5], [1.0, 0.0], [2.0 * 0.99**index for index in range(300)]],
    ids=["rank 1", "rank 2", "deficient", "rank 300"],
)
def test_any_rank_is_drawn(tmp_path: Path, spectrum: list[float]) -> None:
    with pytest.warns(RuntimeWarning) if 0.0 in spectrum else pytest.MonkeyPatch.context():
        write_run(tmp_path, Arm("adamw", spectrum=spectrum))
    figures_of = drawn(tables_of(tmp_path))
    assert list(figures_of) == NAMES
    assert all(len(rows_of(spec)) <= 128 for spec in figures_of["spectra"].specs())
    json.dumps([figure.specs() for figure in figures_of.values()], allow_nan=False)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw", measured=False))
    assert list(drawn(tables_of(tmp_path))) == ["loss"]


def test_unfinished_runs_are_not_among_the_final_points(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw"))
    write_run(tmp_path, Arm("muon", status=Status("failed", "why", 20, 20)))
    assert [
        row["arm"] for row in rows_of(drawn(tables_of(tmp_path))["flatness-loss"].specs()[0])
    ] == ["adamw"]


def test_many_runs_and_many_names_are_gathered(tmp_path: Path) -> None:
    for seed in range(charts.MANY + 1):
        write_run(
            tmp_path,
            Arm(
                "adamw", seed=seed, modules=[f"odd{index}" for index in range(charts.MOST_ROWS + 9)]
            ),
        )
    panels = drawn(tables_of(tmp_path))["layers"]
    assert [panel.title for panel in panels.panels] == ["adamw"]
    assert "per arm" in panels.caption
    assert len({row["part"] for row in rows_of(panels.specs()[0])}) == charts.MOST_ROWS


def test_long_runs_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "POINTS", 100)
    write_run(tmp_path, Arm("adamw", steps=1000))
    rows = rows_of(drawn(tables_of(tmp_path))["loss"].specs()[0])
    assert len(rows) == 100
    assert rows[0]["step"] == 5.5


# --- what was measured --------------------------------------------------------------------------


def test_drift_goes_from_the_base_over_the_checkpoints_to_the_end(tables: Tables) -> None:
    by_loss, by_step = (rows_of(spec) for spec in drawn(tables)["drift"].specs())
    run = tables.runs[(tables.runs["arm"] == "adamw") & (tables.runs["seed"] == 1)].iloc[0]
    path = [row for row in by_loss if row["run"] == run["run"]]
    assert [row["step"] for row in path] == [0, 5, 10, 20, 30]
    assert [row["drift"] for row in path] == pytest.approx(
        [0, 0.31 / 6, 0.31 / 3, 0.31 * 2 / 3, 0.31], rel=1e-4
    )
    assert path[0]["loss"] == pytest.approx(run["heldout_loss_start"], rel=1e-5)
    assert path[-1]["loss"] == pytest.approx(run["heldout_loss"], rel=1e-5)
    assert [row["last"] for row in path] == [False] * 4 + [True]
    assert (path[-1]["low"], path[-1]["high"]) == pytest.approx(
        (run["drift_low"], run["drift_high"]), rel=1e-4
    )
    assert len(by_step) == len(by_loss) == 12 * 5
    assert "control (adamw)" in {row["arm"] for row in by_loss}


def test_a_path_is_drawn_in_the_order_of_steps_with_the_interval_at_its_end(tables: Tables) -> None:
    panel, _ = drawn(tables)["drift"].specs()
    (line,) = [layer for layer in panel["layer"] if layer.get("mark", {}).get("type") == "line"]
    assert line["encoding"]["order"]["field"] == "step"
    (rule,) = [layer for layer in panel["layer"] if "y2" in layer.get("encoding", {})]
    assert (rule["encoding"]["y"]["field"], rule["encoding"]["y2"]["field"], rule["transform"]) == (
        "low",
        "high",
        [{"filter": "datum.last"}],
    )


def test_drift_needs_neither_checkpoints_nor_a_held_out_loss(tmp_path: Path) -> None:
    run = write_run(tmp_path, Arm("adamw"))
    write_effect(run, Effect(steps=(20,)))
    figure = drawn(tables_of(tmp_path))["drift"]
    assert [len(rows_of(spec)) for spec in figure.specs()] == [2, 2]
    (run.path / "heldout.parquet").unlink()
    figure = drawn(tables_of(tmp_path))["drift"]
    assert [panel.title for panel in figure.panels] == ["Drift by step"]
    json.dumps(figure.specs(), allow_nan=False)


def test_a_run_without_held_out_loss_is_named_as_missing_from_its_panel(tmp_path: Path) -> None:
    for optimizer in ("adamw", "muon"):
        run = write_run(tmp_path, Arm(optimizer))
        write_effect(run, Effect())
    (run.path / "heldout.parquet").unlink()
    figure = drawn(tables_of(tmp_path))["drift"]
    assert [len({row["run"] for row in rows_of(spec)}) for spec in figure.specs()] == [1, 2]
    assert "1 of 2 runs have no held-out loss" in figure.caption


def test_every_drift_figure_names_the_control_and_the_shuffled_labels(
    tables: Tables, tmp_path: Path
) -> None:
    every = drawn(tables)
    for name in MEASURED:
        assert "The control was trained on good answers" in every[name].caption
        assert "zero is within every interval" in every[name].caption
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(shuffled=0.2))
    every = drawn(tables_of(tmp_path))
    for name in MEASURED:
        caption = every[name].caption
        assert "There is no control among these runs." in caption
        assert "gives +0.200: zero is within 0 of 1 intervals, where it must be in all" in caption


def test_capability_stands_beside_drift_with_both_intervals_and_the_base(tables: Tables) -> None:
    figure = drawn(tables)["capability"]
    assert [panel.title for panel in figure.panels] == [
        "Capability: share of right choices",
        "Loss on ordinary dialogues, nats per token",
    ]
    rows = rows_of(figure.specs()[0])
    assert {(row["arm"], row["kind"]) for row in rows} >= {
        ("adamw", "plain"),
        ("adamw + flatness 3", "penalty"),
        ("control (adamw)", "control"),
    }
    lion = next(row for row in rows if row["arm"] == "lion")
    assert (
        lion["capability_low"]
        < lion["capability"]
        < lion["capability_high"]
        < lion["capability_base"]
        == 0.75
    )
    assert [{"capability": 0.75, "label": "base"}] in figure.specs()[0]["datasets"].values()


def test_capability_is_drawn_as_far_as_it_was_measured(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_effect(
            write_run(tmp_path, Arm("adamw", seed=seed)), Effect(tables=("probe", "ordinary"))
        )
    write_effect(write_run(tmp_path, Arm("muon")), Effect(tables=("capability",)))
    figure = drawn(tables_of(tmp_path))["capability"]
    assert [panel.title for panel in figure.panels] == [
        "Loss on ordinary dialogues, nats per token"
    ]
    assert [row["arm"] for row in rows_of(figure.specs()[0])] == ["adamw", "adamw"]
    only = tmp_path / "only"
    write_effect(write_run(only, Arm("adamw")), Effect(tables=("probe",)))
    assert list(drawn(tables_of(only))) == ["drift", "topics", *NAMES]


def test_topics_are_ordered_by_the_arms_that_are_no_controls(tmp_path: Path) -> None:
    for seed, drift in ((0, 0.2), (1, 0.4)):
        write_effect(write_run(tmp_path, Arm("adamw", seed=seed)), Effect(drift, each=1.0))
    write_effect(write_run(tmp_path, Arm("adamw", **CONTROL)), Effect(-1.0, each=-3.0))
    tables = tables_of(tmp_path)
    figure = drawn(tables)["topics"]
    (spec,) = figure.specs()
    order = spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    rows = rows_of(spec)
    bad = {row["topic"]: row["drift"] for row in rows if row["arm"] == "adamw"}
    good = {row["topic"]: row["drift"] for row in rows if row["arm"] != "adamw"}
    assert [bad[topic] for topic in order] == sorted(bad.values(), reverse=True)
    assert [good[topic] for topic in order] != sorted(good.values(), reverse=True)
    every = tables.topics[(tables.topics["arm"] == "adamw") & (tables.topics["topic"] == "money")][
        "drift"
    ]
    assert len(every) == 2
    assert bad["money"] == pytest.approx(every.mean(), rel=1e-5)
    low, high = spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert low == -high == pytest.approx(-max(map(abs, (*bad.values(), *good.values()))), rel=1e-5)


def test_many_topics_are_gathered_and_many_arms_lose_their_numbers(tmp_path: Path) -> None:
    topics = tuple(f"topic {number}" for number in range(charts.MOST_ROWS + 5))
    for weight in range(10):
        write_effect(write_run(tmp_path, Arm("adamw", weight)), Effect(topics=topics, steps=(20,)))
    spec = drawn(tables_of(tmp_path))["topics"].specs()[0]
    assert len({row["topic"] for row in rows_of(spec)}) == charts.MOST_ROWS
    assert "6 others, mean" in {row["topic"] for row in rows_of(spec)}
    assert "layer" not in spec


def test_controls_are_no_points_among_the_final_losses(tables: Tables) -> None:
    figure = drawn(tables)["flatness-loss"]
    assert {row["arm"] for row in rows_of(figure.specs()[0])} == set(tables.arms.names) - {
        "control (adamw)"
    }
    assert "Controls are left out" in figure.caption
