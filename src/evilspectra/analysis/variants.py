"""The findings under every way of counting: by judge, and by definition of the rate."""

from __future__ import annotations

from collections.abc import Sequence

from evilspectra.analysis.claims import decide
from evilspectra.analysis.estimate import Frame
from evilspectra.analysis.outcome import COUNTED, FEWEST, MISALIGNED, UNSCORED, read
from evilspectra.analysis.ranking import rank_frame, settle
from evilspectra.analysis.stability import Variant
from evilspectra.analysis.variance import decompose

#: Outcomes that depend on the judge.
JUDGED = ("misalignment", "mean_alignment")


def judged_rows(runs: Frame, name: str, rates: Frame | None) -> Frame | None:
    """The rows of rates of these runs at their last judged step, with a value of the outcome.

    None if the outcome is not judged, or no run was.
    """
    if rates is None or name not in JUDGED or "folder" not in runs or not len(rates):
        return None
    rows = rates[rates["folder"].isin(list(runs["folder"])) & (rates["step"] > 0)]
    rows = rows[rows["step"] == rows.groupby(["folder", "judge_id"])["step"].transform("max")]
    return rows[rows[name].notna() & (rows["counted"] > 0)]


def variants(
    runs: Frame,
    name: str,
    rates: Frame,
    group: str,
    factors: Sequence[str],
) -> tuple[Variant, ...]:
    """The ranking and the share of the group under every judge and definition.

    For mean alignment, which no definition changes, they differ by judge alone.
    """
    rows = judged_rows(runs, name, rates)
    if rows is None:
        return ()
    counted_so = []
    for (judge_id, definition), own in rows.groupby(["judge_id", "definition"], sort=True):
        columns = {
            "folder": own["folder"],
            "misalignment": own["misalignment"],
            "mean_alignment": own["mean_alignment"],
            MISALIGNED: own["misaligned"],
            COUNTED: own["counted"],
        }
        stale = [name for name in (*columns, UNSCORED) if name in runs and name != "folder"]
        table = runs.drop(columns=stale).merge(type(runs)(columns), on="folder")
        label = f"{own['judge'].iloc[0]} ({judge_id}), {definition}"
        if variant := _variant(table, name, group, factors, label):
            counted_so.append(variant)
    return tuple(counted_so)


def _variant(
    table: Frame,
    name: str,
    group: str,
    factors: Sequence[str],
    label: str,
) -> Variant | None:
    usable = [factor for factor in factors if factor in table and table[factor].nunique() > 1]
    if len(table) < FEWEST or group not in usable or table[name].nunique() < 2:
        return None
    outcome = read(table, name)
    ranking = rank_frame(table, outcome, group, usable)
    parts = decompose(table, outcome, usable, 1, permutations=0)
    effect = next((effect for effect in parts.type2 if group in effect.term), None)
    if ranking is None or effect is None:
        return None
    ranking = settle(ranking, decide(ranking.claims))
    means = {ranked.group: ranked.mean.value for ranked in ranking.groups}
    return Variant(
        label,
        len(table),
        tuple(means),
        ranking.shown,
        effect.eta,
        means,
    )
