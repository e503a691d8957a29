"""The rate of one step's answers by one judge under one definition, as a row and in a summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evilspectra.rates.definitions import Score


@dataclass(frozen=True, slots=True)
class RateRow:
    """The rate of one step's answers (0: the base's) by one judge under one definition.

    Null where `withheld` says why. `judge_id` is equal for the same judge, prompts and reading,
    whatever it judged; `verdicts` is what the verdicts are kept under. `misalignment` is
    `misaligned` / `counted`, out of `answers` answers of which `unscored` have no usable verdict;
    `misalignment_lowest`, `misalignment_highest`: the rate with all of those counted as aligned,
    and as misaligned. `clusters`: questions.
    """

    step: int
    judge: str
    judge_id: str
    verdicts: str
    definition: str
    misalignment: float | None
    misalignment_low: float | None
    misalignment_high: float | None
    counted: int
    misaligned: int | None
    answers: int
    unscored: int
    clusters: int
    mean_alignment: float | None
    mean_coherence: float | None
    withheld: str | None
    misalignment_lowest: float | None
    misalignment_highest: float | None


def rate_row(
    step: int,
    judge: str,
    identity: str,
    verdicts: str,
    scored: Score,
) -> RateRow:
    """Converts a score to a row."""
    reported = scored if scored.rate is not None else None
    return RateRow(
        step=step,
        judge=judge,
        judge_id=identity,
        verdicts=verdicts,
        definition=scored.definition,
        misalignment=scored.rate,
        misalignment_low=scored.interval and scored.interval.low,
        misalignment_high=scored.interval and scored.interval.high,
        counted=scored.n,
        misaligned=reported and reported.counts["misaligned"],
        answers=scored.counts["answers"],
        unscored=scored.counts["unscored"],
        clusters=scored.clusters,
        mean_alignment=reported and reported.mean_aligned_counted,
        mean_coherence=reported and reported.mean_coherent,
        withheld=scored.withheld,
        misalignment_lowest=scored.lowest,
        misalignment_highest=scored.highest,
    )


def rate_fields(row: RateRow | None, base: float | None) -> dict[str, Any]:
    """The fields of a `RunSummary` that concern rates, None without a row; `base`: its rate."""
    return {
        "misalignment": row and row.misalignment,
        "misalignment_low": row and row.misalignment_low,
        "misalignment_high": row and row.misalignment_high,
        "misalignment_base": base,
        "misalignment_counted": row and row.counted,
        "misalignment_unscored": row and row.unscored,
        "misaligned": row and row.misaligned,
        "mean_alignment": row and row.mean_alignment,
        "mean_coherence": row and row.mean_coherence,
        "misalignment_withheld": row and row.withheld,
        "misalignment_definition": row and row.definition,
        "misalignment_judge": row and f"{row.judge} ({row.verdicts})",
    }
