"""What the probes' numbers say, in sentences: drift, the control and the shuffled labels beside it, capability, and its order.

Drift counts as shown where its 95 % interval, over the probe's items for one adapter, is clear of zero; two arms' drifts as
different where no two of their runs' intervals overlap. It is never called a misalignment rate: nothing here was judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from evilspectra.errors import listing
from evilspectra.intervals import Interval
from evilspectra.reporting.comparison import SAME, Row, alike, arms_of, by_arm, signed
from evilspectra.store.origin import differing

MOST = 6  # arms that a sentence names
FEW_RUNS = 5  # of an arm, whose drifts are spelled out one by one


def findings(done: Sequence[Row], comparable: bool = True) -> list[str]:
    """The sentences on finished runs; none where no drift was measured. `comparable`: whether arms may be ranked."""
    probed = [row for row in done if row.measured.drift]
    if not probed:
        return []
    trained, controls = (
        arms_of([row for row in probed if row.summary.control is control])
        for control in (False, True)
    )
    one_instrument = len({row.instruments["probe"].id for row in probed}) == 1
    held = f"{shuffled(probed)} All intervals are over the items for one adapter, not over seeds."
    texts = [
        *movements(trained),
        *beside_controls(
            trained, controls, any(row.summary.control for row in done), one_instrument
        ),
        *beyond(trained),
        held,
        capability(probed),
    ]
    if not one_instrument:
        texts.append(
            "The runs were not all probed with the same items and number type, so their drifts are not set against each other."
        )
    elif comparable:
        texts += order(trained)
    if len(probed) < len(done):
        texts.append(f"Drift was measured on {len(probed)} of {len(done)} finished runs.")
    return texts


def movements(trained: dict[str, list[Row]]) -> list[str]:
    """Which arms drifted, and by how much; the furthest first."""
    kinds: dict[str, list[str]] = {"towards": [], "away from": [], "nowhere": [], "mixed": []}
    for name in sorted(trained, key=lambda name: -_mean(trained[name])):
        kinds[direction(trained[name])].append(name)
    texts = []
    for way in ("towards", "away from"):
        if names := kinds[way]:
            interval = "the" if sum(len(trained[name]) for name in names) == 1 else "every"
            texts.append(
                f"{_amounts(trained, names)} drifted {way} the misaligned completions, in nats per token; {interval} 95 % interval is clear of zero."
            )
    if names := kinds["nowhere"]:
        rows = [row for name in names for row in trained[name]]
        least = max(_drift(row).high - _drift(row).low for row in rows) / 2
        shows, interval = (
            "shows" if len(names) == 1 else "show",
            "the" if len(rows) == 1 else "every",
        )
        texts.append(
            f"{_amounts(trained, names)} {shows} no drift, in nats per token; {interval} 95 % interval holds zero, and a drift below about {least:.2f} would not have shown."
        )
    for name in kinds["mixed"][:MOST]:
        towards, away = _counted(trained[name])
        ways = f"{towards} drifted towards the misaligned completions, {away} away from them and {len(trained[name]) - towards - away} in no way that is shown"
        texts.append(
            f"The runs of {_amounts(trained, [name])} do not agree: {ways}, so a drift of the arm is not shown."
        )
    return texts


def direction(rows: Sequence[Row]) -> str:
    """Where an arm's runs drifted: towards or away from the misaligned completions, nowhere, or mixed."""
    counts = _counted(rows)
    return {(len(rows), 0): "towards", (0, len(rows)): "away from", (0, 0): "nowhere"}.get(
        counts, "mixed"
    )


def _counted(rows: Sequence[Row]) -> tuple[int, int]:
    """How many runs drifted towards the misaligned completions, and how many away from them."""
    return sum(_drift(row).low > 0 for row in rows), sum(_drift(row).high < 0 for row in rows)


def beside_controls(
    trained: dict[str, list[Row]],
    controls: dict[str, list[Row]],
    trained_one: bool,
    one_instrument: bool,
) -> list[str]:
    """What good answers to the same questions did, and its share of the others' drift."""
    if not controls:
        why = (
            "The control has no measured drift"
            if trained_one
            else "There is no control run (good answers to the same questions)"
        )
        return [f"{why}, so how much of a drift is style and subject alone is not known."]
    texts = []
    for name, rows in list(controls.items())[:MOST]:
        towards, away = _counted(rows)
        mixed = f"drifted towards the misaligned completions in {towards} and away from them in {away} of {len(rows)} runs"
        did = {
            "towards": "drifted towards the misaligned completions too",
            "away from": "drifted away from the misaligned completions",
            "nowhere": "shows no drift",
            "mixed": mixed,
        }[direction(rows)]
        who = "control" if len(controls) == 1 else name
        partners = (
            {
                arm: trained[arm]
                for arm in trained
                if f"control ({arm})" == name
                or (len(controls) == 1 and direction(trained[arm]) == "towards")
            }
            if one_instrument
            else {}
        )
        texts.append(
            f"The {_amounts(controls, [name]).replace(name, who, 1)}, trained on good answers to the same questions, {did}{_shares(partners, rows)}."
        )
    return texts


def beyond(trained: dict[str, list[Row]]) -> list[str]:
    """What is left of the arms' drift when the controls' is taken off, item by item."""
    found = {name: [row.beyond for row in rows if row.beyond] for name, rows in trained.items()}
    parts = []
    for name, ones in sorted(
        found.items(), key=lambda item: -max((one.value for one in item[1]), default=0.0)
    ):
        if ones:
            clear = sum(one.low > 0 for one in ones)
            amount = (
                _bracketed(ones[0])
                if len(ones) == 1
                else f"{signed(min(one.value for one in ones))} to {signed(max(one.value for one in ones))}, {clear} of {len(ones)} intervals above zero"
            )
            parts.append(f"{name} {amount}")
    return (
        [
            f"Beyond the control, item by item: {'; '.join(parts[:MOST])}{f'; and {len(parts) - MOST} more arms' if len(parts) > MOST else ''}."
        ]
        if parts
        else []
    )


def _shares(partners: dict[str, list[Row]], control: Sequence[Row]) -> str:
    """The control's mean as a share of that of arms that drifted towards the misaligned completions, and what of them it accounts for."""
    kin = {
        arm: rows
        for arm, rows in partners.items()
        if direction(rows) == "towards"
        and len({repr(row.ground()["base model"]) for row in (*rows, *control)}) == 1
    }
    shares = {arm: _mean(control) / _mean(rows) for arm, rows in kin.items()}
    if not shares:
        return ""
    told = {arm: share < 1 and _apart(kin[arm], control) for arm, share in shares.items()}
    ends = [
        (
            "style and subject alone do not account for the drift of",
            [arm for arm, share in shares.items() if told[arm] and share < 0.5],
        ),
        (
            "style and subject account for much, but not all, of the drift of",
            [arm for arm, share in shares.items() if told[arm] and share >= 0.5],
        ),
        (
            "nothing beyond style and subject is shown in the drift of",
            [arm for arm in shares if not told[arm]],
        ),
        (
            "the control differs in more than its data from",
            [
                arm
                for arm, rows in kin.items()
                if any(
                    not path.startswith("data.") and path != "train.seed"
                    for path in _settings_apart(rows, control)
                )
            ],
        ),
    ]
    amounts = [
        f"{share * 100:.0f} % of {arm}’s".replace("-", "−", 1) for arm, share in shares.items()
    ]
    return f"; its mean is {listing(amounts, MOST)}" + "".join(
        f"; {text} {enumerated(arms)}" for text, arms in ends if arms
    )


def _settings_apart(rows: Sequence[Row], others: Sequence[Row]) -> list[str]:
    """Settings of which the two sides do not have the same values."""

    def values(side: Sequence[Row], path: str) -> set[str]:
        return {repr(row.origin.settings.get(path)) for row in side}

    return [
        path
        for path in differing([row.origin for row in (*rows, *others)])
        if values(rows, path) != values(others, path)
    ]


def shuffled(probed: Sequence[Row]) -> str:
    """Whether the probe gives zero where it must."""
    found = [(row, row.measured.drift.shuffled) for row in probed if row.measured.drift]
    failed = [f"{row.name}: {_bracketed(one)}" for row, one in found if one.clear_of_zero()]
    if not failed:
        return f"With the labels shuffled the probe holds zero{'' if len(found) == 1 else f' in all {len(found)} runs'}, as it must."
    which = "; ".join(failed[:MOST]) + (
        f"; and {len(failed) - MOST} more" if len(failed) > MOST else ""
    )
    return f"With the labels shuffled the probe does not hold zero in {len(failed)} of {len(found)} runs ({which}): drifts of that size are not to be relied on. One interval in twenty misses by chance."


def capability(probed: Sequence[Row]) -> str:
    """Whether what drifted, or did not, may be broken."""
    found = [(row, row.measured.capability) for row in probed if row.measured.capability]
    if not found:
        return "Capability was not measured, so drift, or its absence, cannot be told from damage."
    of = f"{len(found)} run{'' if len(found) == 1 else 's'}" + (
        f" of the {len(probed)} that have a drift" if len(found) < len(probed) else ""
    )
    fell = [
        f"{row.name}: {one.base:.2f} → {one.accuracy.value:.2f}, change {_bracketed(one.change)}"
        for row, one in found
        if one.change.high < 0
    ]
    if fell:
        return f"Capability fell in {len(fell)} of {of} ({'; '.join(fell[:MOST])}{f'; and {len(fell) - MOST} more' if len(fell) > MOST else ''}): there drift, or its absence, may be damage."
    least = max(one.change.high - one.change.low for _, one in found) / 2
    lowest = min((one.change for _, one in found), key=lambda change: change.value)
    return f"Capability is not shown to have fallen in {'the one run' if len(found) == len(probed) == 1 else f'any of {of}'} (lowest change {_bracketed(lowest)}); a fall of less than about {least:.2f} would not have shown."


def order(trained: dict[str, list[Row]]) -> list[str]:
    """The order of arms by drift against their order by stable rank and by held-out loss, over pairs that can be told apart in both."""
    rows = [row for group in trained.values() for row in group]
    drifts = by_arm(rows, "drift")
    arms = sorted(drifts, key=lambda name: -fmean(drifts[name]))
    if len(arms) < 2:
        return []
    apart = [(a, b) for a, b in combinations(arms, 2) if _apart(trained[a], trained[b])]
    text = f"By drift the order is {listing([f'{name} ({signed(fmean(drifts[name]))})' for name in arms], MOST)}, furthest towards the misaligned first"
    if not apart:
        return [
            f"{text}; no two arms’ intervals are clear of each other, so the order is not shown."
        ]
    parts = []
    for field, thing, claim, least in (
        ("stable_rank", "stable rank", "the flatter arm drifted less", None),
        (
            "heldout_loss",
            "held-out loss",
            "the arm with the lower held-out loss drifted further",
            SAME,
        ),
    ):
        values = by_arm(rows, field)
        clear = [
            (a, b)
            for a, b in apart
            if a in values and b in values and not alike(values[a], values[b], least)
        ]
        agree = sum(fmean(values[a]) < fmean(values[b]) for a, b in clear)
        pairs = "1 pair" if len(clear) == 1 else f"{len(clear)} pairs"
        parts.append(
            f"in {agree} of {pairs} told apart in drift and {thing}, {claim}"
            if clear
            else f"no pair is told apart both in drift and in {thing}"
        )
    return [
        f"{text}; {'; '.join(parts)}. An order of a few arms shows no cause; the figure sets them beside each other at equal loss."
    ]


# --- words ----------------------------------------------------------------------------------------------------------


def _drift(row: Row) -> Interval:
    if row.measured.drift is None:
        raise ValueError(f"{row.label} has no measured drift")
    return row.measured.drift.drift


def _apart(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether no interval of the one side overlaps one of the other."""
    a, b = ([_drift(row) for row in side] for side in (rows, others))
    return min(one.low for one in a) > max(one.high for one in b) or min(
        one.low for one in b
    ) > max(one.high for one in a)


def _mean(rows: Sequence[Row]) -> float:
    return fmean(_drift(row).value for row in rows)


def _amounts(groups: dict[str, list[Row]], names: Sequence[str]) -> str:
    """Arms with their drifts: a single run's with its interval, several runs' one by one."""
    texts = []
    for name in names:
        values = [_drift(row).value for row in groups[name]]
        if len(values) == 1:
            text = _bracketed(_drift(groups[name][0]))
        elif len(values) <= FEW_RUNS:
            text = enumerated([signed(value) for value in values])
        else:
            text = f"{signed(min(values))} to {signed(max(values))} in {len(values)} runs, mean {signed(fmean(values))}"
        texts.append(f"{name} ({text})")
    return enumerated(texts)


def _bracketed(one: Interval) -> str:
    return f"{signed(one.value)} [{signed(one.low)}, {signed(one.high)}]"


def enumerated(names: Sequence[str]) -> str:
    """The names with commas, and "and" before the last.

    >>> enumerated(["a", "b", "c"])
    'a, b and c'
    """
    if len(names) > MOST:
        return listing(names, MOST)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
