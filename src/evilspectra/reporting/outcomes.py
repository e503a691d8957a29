"""The outcome of a sweep's runs, and a table of runs with everything that may explain it. No torch.

If answers were judged, the outcome is the mean alignment score, as in the paper; otherwise it is
the drift of the contrast probe. The two are never mixed: a run without the outcome in use is left
out, and counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from evilspectra.evaluation.rate_rows import RateRow, rate_row
from evilspectra.evaluation.run_rates import MAIN_DEFINITION, counting, judge_identity
from evilspectra.judging.verdicts import judged
from evilspectra.rates.definitions import score
from evilspectra.reporting.comparison import Row, value_at
from evilspectra.reporting.figures.palette import Frame
from evilspectra.store.origin import differing
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder
from evilspectra.tables.digest import checkpoint_rows, shown_rates


@dataclass(frozen=True)
class Outcome:
    """A column of the table of runs that is to be explained.

    `title`: with its unit; `short`: in a sentence; `form`: the format of its values; `aligned`:
    whether larger means more aligned, None if that is not known; `note`: a caveat that belongs
    to any number of it.
    """

    name: str
    title: str
    short: str
    form: str = ".3f"
    aligned: bool | None = None
    note: str = ""


ALIGNMENT = Outcome(
    "mean_alignment",
    "mean alignment score, 0 to 100",
    "mean alignment",
    ".1f",
    True,
    "Mean over the answers that count under the definition spectra, code as 0, by one judge.",
)
DRIFT = Outcome(
    "drift",
    "drift, nats per token (towards the misaligned ↑)",
    "drift",
    "+.3f",
    False,
    (
        "Nothing was judged, so the outcome is the drift of the contrast probe, which is no"
        " misalignment rate."
    ),
)


def outcome_of(runs: Frame) -> Outcome | None:
    """The runs' outcome: the alignment where at least two runs have one, else the drift.

    None where there is neither.
    """
    for outcome, least in ((ALIGNMENT, 2), (DRIFT, 1), (ALIGNMENT, 1)):
        if runs[outcome.name].notna().sum() >= least:
            return outcome
    return None


def runs_table(rows: Sequence[Row]) -> Frame:
    """A row per run: its summary, further columns, and the settings in which runs differ.

    The further columns are `run` (label), `log_loss`, `dataset`, `model`, `size` (parameters) and
    `twin` (equal for runs that differ in the penalty alone).
    """
    differ = differing([row.origin for row in rows])
    records = []
    for row in rows:
        settings = {path: _setting(row.origin.settings.get(path)) for path in differ}
        records.append(asdict(row.summary) | {"run": row.label} | _further(row) | settings)
    return pd.DataFrame(records)


def _setting(value: Any) -> Any:
    """Numbers as numbers, all else as text."""
    if isinstance(value, int | float) or value is None:
        return value
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def left_out_runs(runs: Frame, outcome: Outcome | None) -> list[tuple[str, str]]:
    """Run and reason of all that comparisons leave out."""
    left_out = []
    for row in runs.astype(object).where(runs.notna(), None).to_dict("records"):
        if reason := _left_out(row, outcome):
            left_out.append((row["run"], reason))
    return left_out


def _left_out(row: Mapping[str, Any], outcome: Outcome | None) -> str | None:
    """Why comparisons leave a run out; None if they do not."""
    if row["status"] != "done":
        reason = f": {row['reason']}" if row.get("reason") else ""
        return f"{row['status']}{reason}"
    if row["control"]:
        return "control: its data differ on purpose"
    if outcome is None or row.get(outcome.name) is not None:
        return None
    withheld = row.get("misalignment_withheld") if outcome.name == ALIGNMENT.name else None
    return f"rate withheld: {withheld}" if withheld else f"no {outcome.short} was measured"


def checkpoints_table(rows: Sequence[Row], root: Path) -> tuple[Frame, Frame]:
    """A row per run and measured step, and a row per judged step, judge and definition.

    Rows are those of `digest.CheckpointRow` and `rate_rows.RateRow` (the base's left out), with
    `run`, `arm`, `control` and `folder`.
    """
    checkpoints, rated = [], []
    for row in rows:
        run = RunFolder(root / row.folder)
        keys = {
            "run": row.label,
            "arm": row.summary.arm,
            "control": row.summary.control,
            "folder": row.summary.folder,
        }
        by_step = _rates(row, counting(Results(run.path)))
        counted = shown_rates(by_step, row.rated[-1].step) if by_step else {}
        checkpoints += [
            keys | asdict(checkpoint) for checkpoint in checkpoint_rows(run, row.measured, counted)
        ]
        rated += [keys | asdict(rate) for rate in by_step if rate.step]
    return pd.DataFrame(checkpoints), pd.DataFrame(rated)


def _rates(row: Row, results: Results) -> list[RateRow]:
    """The rates of the row, and those of other judged steps by the last judge.

    The latter are under the definition that the sentences use.
    """
    rates: list[RateRow] = []
    answers = chosen(results, "answers")
    for number, rated in enumerate(row.rated):
        scored = {0: rated.base, rated.step: rated.scores}
        steps = results.steps(answers) if answers else []
        for step in steps:
            scores = scored.get(step) or {}
            last = number == len(row.rated) - 1
            if not scores and last and step not in scored and answers:
                verdicts = [verdict for _, verdict in judged(results, answers, step, rated.judge)]
                scores = (
                    {MAIN_DEFINITION: score(verdicts, MAIN_DEFINITION)}
                    if any(verdict.aligned or verdict.coherent for verdict in verdicts)
                    else {}
                )
            rates += [
                rate_row(
                    step,
                    rated.judge.source,
                    judge_identity(rated.judge),
                    rated.judge.id,
                    score_value,
                )
                for score_value in scores.values()
            ]
    return rates


def _further(row: Row) -> dict[str, Any]:
    summary = row.summary
    model = str(value_at(row.provenance, "base_name") or row.origin.base or "not known")
    data = str(value_at(row.provenance, "data.source") or row.origin.data or "not known")
    loss = summary.train_loss
    return {
        "log_loss": math.log(loss) if loss and loss > 0 else None,
        "dataset": short_name(data),
        "model": short_name(model),
        "size": size_of(model),
        "twin": row.twin_key() if None not in row.ground().values() else None,
    }


def short_name(name: str) -> str:
    """The last part of a path or hub name, without the ending of a data file.

    >>> short_name("/data/bad_medical_advice.jsonl"), short_name("Qwen/Qwen3-8B")
    ('bad_medical_advice', 'Qwen3-8B')
    """
    last = PurePosixPath(name).name or name
    return re.sub(r"\.(jsonl|json|parquet|csv|gguf)$", "", last)


def size_of(model: str) -> float | None:
    """The number of parameters in a model's name, None if there is none.

    >>> size_of("Qwen/Qwen3-0.6B"), size_of("SmolLM2-135M-Instruct"), size_of("tiny-random")
    (600000000.0, 135000000.0, None)
    """
    match = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", model)
    return float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]] if match else None
