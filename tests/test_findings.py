"""The report's sentences on drift, controls and capability follow the numbers either way."""

from __future__ import annotations

from pathlib import Path

from evilspectra.reporting.build import read_rows
from evilspectra.reporting.sentences.drift import FEW_RUNS
from evilspectra.reporting.sentences.headline import headline
from evilspectra.store.run import Status
from tests.support.synthetic_store import CONTROL, Arm, Effect, write_effect, write_run

FLAT, STEEP = [9.0, 8.5, 8.0, 7.5], [3.0, 1.0, 0.5, 0.2]


def sentences(root: Path) -> str:
    return " ".join(headline(read_rows(root)))


def test_nothing_is_said_of_drift_where_none_was_measured(tmp_path: Path) -> None:
    write_run(tmp_path, Arm("adamw"))
    assert "drift" not in sentences(tmp_path)
    assert "apability" not in sentences(tmp_path)


def test_drift_is_named_by_its_direction_with_its_interval(tmp_path: Path) -> None:
    for optimizer, drift, each in (
        ("adamw", 0.3, 0.1),
        ("muon", -0.2, 0.1),
        ("lion", 0.01, 0.1),
        ("sgd", -0.02, 0.4),
    ):
        write_effect(write_run(tmp_path, Arm(optimizer)), Effect(drift, each))
    text = sentences(tmp_path)
    assert "adamw (+0.300 [+0.27" in text
    assert (
        "]) drifted towards the misaligned completions, in nats per token; the 95 % interval "
        "excludes zero."
    ) in text
    assert "muon (−0.200 [−0.22" in text
    assert "]) drifted away from the misaligned completions" in text
    assert "lion (+0.010 [" in text
    assert " and sgd (−0.020 [" in text
    assert (
        "show no drift, in nats per token; every 95 % interval includes zero, and a drift below "
        "about 0.09 would not have shown."
    ) in text
    assert (
        "All intervals are over the items for one adapter, not over seeds; one interval in" in text
    )
    assert "rate" not in text


def test_every_seed_is_shown_and_many_seeds_as_their_range(tmp_path: Path) -> None:
    for seed in range(FEW_RUNS):
        write_effect(write_run(tmp_path, Arm("adamw", seed=seed)), Effect(0.3 + 0.01 * seed))
    assert "adamw (+0.300, +0.310, +0.320, +0.330 and +0.340) drifted towards" in sentences(
        tmp_path
    )
    write_effect(write_run(tmp_path, Arm("adamw", seed=9)), Effect(0.4))
    assert "adamw (+0.300 to +0.400 in 6 runs, mean +0.333) drifted towards" in sentences(tmp_path)


def test_seeds_that_disagree_show_no_drift_of_the_arm(tmp_path: Path) -> None:
    for seed, drift in enumerate((0.3, -0.3, 0.0, 0.2)):
        write_effect(write_run(tmp_path, Arm("adamw", seed=seed)), Effect(drift))
    assert (
        "do not agree: 2 drifted towards the misaligned completions, 1 away from them and 1 "
        "show no drift, so the arm has no common direction"
    ) in sentences(tmp_path)


# --- controls -----------------------------------------------------------------------------------


def test_a_controls_share_decides_what_is_said_of_style(tmp_path: Path) -> None:
    for name, share, expected in (
        (
            "small",
            0.1,
            (
                "its mean is 10 % of adamw’s; style and subject alone do not account for the "
                "drift of adamw"
            ),
        ),
        (
            "half",
            0.6,
            (
                "its mean is 60 % of adamw’s; style and subject account for much, but not all, of "
                "the drift of adamw"
            ),
        ),
        (
            "whole",
            1.0,
            (
                "its mean is 100 % of adamw’s; a drift beyond style and subject is not shown for "
                "adamw"
            ),
        ),
        (
            "more",
            1.5,
            (
                "its mean is 150 % of adamw’s; a drift beyond style and subject is not shown for "
                "adamw"
            ),
        ),
        (
            "other",
            -0.5,
            (
                "drifted away from the misaligned completions; its mean is −50 % of adamw’s; "
                "style and subject alone do not"
            ),
        ),
    ):
        write_effect(write_run(tmp_path / name, Arm("adamw")), Effect(0.3))
        write_effect(write_run(tmp_path / name, Arm("adamw", **CONTROL)), Effect(0.3 * share))
        assert expected in sentences(tmp_path / name), name
        assert "differs in more than its data" not in sentences(tmp_path / name)


def test_a_missing_control_is_said_to_be_missing(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect())
    assert (
        "There is no control run (good answers to the same questions), so how much of a drift "
        "is style and subject alone is not known."
    ) in sentences(tmp_path)
    write_run(tmp_path, Arm("adamw", **CONTROL))
    assert "The control has no measured drift, so how much" in sentences(tmp_path)


def test_a_control_with_other_settings_is_said_to_differ(tmp_path: Path) -> None:
    for optimizer in ("adamw", "muon"):
        write_effect(write_run(tmp_path, Arm(optimizer)), Effect(0.3))
    write_effect(write_run(tmp_path, Arm("adamw", **CONTROL)), Effect(0.0))
    assert "the control differs in more than its data from muon." in sentences(tmp_path)


def test_with_a_control_per_arm_each_is_set_beside_its_own(tmp_path: Path) -> None:
    for optimizer, drift, style in (("adamw", 0.4, 0.1), ("muon", 0.2, 0.15)):
        write_effect(write_run(tmp_path, Arm(optimizer)), Effect(drift))
        write_effect(write_run(tmp_path, Arm(optimizer, **CONTROL)), Effect(style))
    text = sentences(tmp_path)
    assert "its mean is 25 % of adamw’s; style and subject alone do not" in text
    assert "its mean is 75 % of muon’s; style and subject account for much" in text


def test_controls_are_ranked_with_nobody(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("muon", spectrum=FLAT, end=1.5)), Effect())
    write_effect(write_run(tmp_path, Arm("lion", spectrum=STEEP, end=1.2)), Effect(0.1))
    before = sentences(tmp_path)
    write_effect(
        write_run(tmp_path, Arm("adamw", spectrum=[9.0, 9.0, 9.0, 9.0], end=0.5, **CONTROL)),
        Effect(0.5),
    )
    after = sentences(tmp_path)
    for sentence in headline(read_rows(tmp_path)):
        assert (
            "adamw" not in sentence
            or "trained on good answers" in sentence
            or "Capability" in sentence
        ), sentence
    assert "differ in data" not in after
    for shared in (
        "By mean stable rank the order is muon (3.38), lion (1.14), flattest first",
        "By final held-out loss the order is lion (1.200), muon (1.500), lowest first",
        "By drift the order is muon (+0.300), lion (+0.100), furthest",
    ):
        assert shared in before
        assert shared in after
    assert "The 1 control run is left out of what is said of spectra and losses" in after


def test_controls_alone_are_compared_with_nothing(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw", **CONTROL)), Effect(0.1))
    text = sentences(tmp_path)
    assert "The control (+0.100 [" in text
    assert "Every finished run is a control" in text
    assert "flattest" not in text


# --- what may spoil a drift ---------------------------------------------------------------------


def test_shuffled_labels_that_do_not_hold_zero_are_said_plainly(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(0.3))
    assert (
        "With the labels shuffled the drift is zero within its interval, as it must be."
        in sentences(tmp_path)
    )
    write_effect(write_run(tmp_path, Arm("muon")), Effect(0.3, shuffled=0.2))
    assert (
        "the interval of the drift excludes zero in 1 of 2 runs (muon, seed 0: +0.200 ["
        in sentences(tmp_path)
    )


def test_capability_is_told_as_fallen_kept_or_unknown(tmp_path: Path) -> None:
    fell = tmp_path / "fell"
    level = tmp_path / "kept"
    unknown = tmp_path / "unknown"
    for root in (fell, level):
        write_effect(write_run(root, Arm("adamw")), Effect(capability=0.75))
    write_effect(write_run(fell, Arm("muon")), Effect(0.1, capability=0.4))
    write_effect(write_run(unknown, Arm("adamw")), Effect(tables=("probe",)))
    assert (
        "Capability fell in 1 of 2 runs (muon, seed 0: 0.75 → 0.40, change −0.350 ["
        in sentences(fell)
    )
    assert "there drift, or its absence, may be damage" in sentences(fell)
    assert (
        "Capability is not shown to have fallen in the one run (lowest change +0.000 [+0.000, "
        "+0.000])"
    ) in sentences(level)
    assert (
        "Capability was not measured, so drift, or its absence, cannot be told from damage."
        in sentences(unknown)
    )


def test_runs_measured_with_different_items_are_not_set_against_each_other(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(0.4))
    write_effect(write_run(tmp_path, Arm("muon")), Effect(0.1, sha256="b2" * 32))
    write_effect(write_run(tmp_path, Arm("adamw", **CONTROL)), Effect(0.1))
    text = sentences(tmp_path)
    assert "not all probed with the same items" in text
    assert "By drift the order" not in text
    assert "its mean is" not in text


def test_what_is_not_measured_or_not_finished_is_counted(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect())
    write_run(tmp_path, Arm("muon"))
    write_effect(
        write_run(tmp_path, Arm("lion", status=Status("failed", "why", 3, 20))), Effect(2.0)
    )
    text = sentences(tmp_path)
    assert "Drift was measured on 1 of 2 finished runs." in text
    assert "lion" not in text.replace("lion-b", "")


# --- order --------------------------------------------------------------------------------------


def test_order_by_drift_is_set_against_flatness_and_loss_and_turns_with_them(
    tmp_path: Path,
) -> None:
    roots = {name: tmp_path / name for name in ("steep further", "flat further", "close")}
    drifts = {"steep further": (0.4, 0.1), "flat further": (0.1, 0.4), "close": (0.21, 0.2)}
    for seed in range(4):
        off = 0.01 * (seed - 1.5)
        for name, root in roots.items():
            steep, flat = (
                Arm("lion", spectrum=[3.0, 1.0 + off, 0.5, 0.2], end=1.2 + off, seed=seed),
                Arm("muon", spectrum=[9.0, 8.5 + off, 8.0, 7.5], end=1.5 + off, seed=seed),
            )
            write_effect(write_run(root, steep), Effect(drifts[name][0] + off))
            write_effect(write_run(root, flat), Effect(drifts[name][1] + 0.5 * off))
    text = sentences(roots["steep further"])
    assert "By drift the order is lion (+0.400), muon (+0.100), furthest" in text
    assert "lion is shown to lie above muon." in text
    assert (
        "Of the 1 pair shown to differ in stable rank too, the flatter drifted less in 1." in text
    )
    assert (
        "Of the 1 pair shown to differ in held-out loss too, the one with the lower loss drifted "
        "further in 1."
    ) in text
    assert "shows no cause" in text
    text = sentences(roots["flat further"])
    assert "By drift the order is muon (+0.400), lion (+0.100), furthest" in text
    assert (
        "Of the 1 pair shown to differ in stable rank too, the flatter drifted less in 0." in text
    )
    text = sentences(roots["close"])
    assert "furthest towards the misaligned first; the two are not shown to differ." in text


def test_arms_on_different_data_are_not_ordered_by_drift(tmp_path: Path) -> None:
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(0.4))
    write_effect(write_run(tmp_path, Arm("muon", data_sha256="other")), Effect(0.1))
    assert "differ in data" in sentences(tmp_path)
    assert "By drift the order" not in sentences(tmp_path)
