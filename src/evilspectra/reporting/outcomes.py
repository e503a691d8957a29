"""What a sweep's figures and statistics are about: the outcome of a run, and one table of runs with everything that may explain it. No torch.

Where answers were judged the outcome is the mean alignment score, as in the paper; where nothing was judged it is the drift of the
contrast probe. The two are never mixed: a run without the outcome in use is left out, and counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from evilspectra.evaluation.run_rates import MAIN_DEFINITION, counting, judge_identity
from evilspectra.judging.verdicts import judged
from evilspectra.rates.definitions import score
from evilspectra.reporting.comparison import Row, known
from evilspectra.reporting.figures.palette import Frame
from evilspectra.store.origin import differing
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder
from evilspectra.tables.digest import RateRow, checkpoint_rows, rate_row, shown_rates


@dataclass(frozen=True)
class Outcome:
    """A column of the table of runs that is to be explained. `title`: with its unit; `short`: in a sentence; `form`: how its values are printed.

    `aligned`: whether larger means more aligned, None where that is not known. `note`: what a reader of any number of it must know.
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
    "Nothing was judged, so the outcome is the drift of the contrast probe, which is no misalignment rate.",
)


def outcome_of(runs: Frame) -> Outcome | None:
    """What the runs' outcome is: the alignment where at least two runs have one, else the drift; None where there is neither."""
    for one, least in ((ALIGNMENT, 2), (DRIFT, 1), (ALIGNMENT, 1)):
        if runs[one.name].notna().sum() >= least:
            return one
    return None


def runs_table(rows: Sequence[Row]) -> Frame:
    """A row per run: its summary, and `run` (label), `log_loss`, `dataset`, `model`, `size` (parameters), `twin` (equal for runs that differ in the penalty alone), and the settings in which runs differ."""
    differ = differing([row.origin for row in rows])
    return pd.DataFrame(
        [
            asdict(row.summary)
            | {"run": row.label}
            | _further(row)
            | {path: _setting(row.origin.settings.get(path)) for path in differ}
            for row in rows
        ]
    )


def _setting(value: Any) -> Any:
    """Numbers as numbers, all else as text."""
    return (
        value
        if isinstance(value, int | float) or value is None
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def left_out_runs(runs: Frame, outcome: Outcome | None) -> list[tuple[str, str]]:
    """Run and reason of all that comparisons leave out."""
    found = []
    for row in runs.astype(object).where(runs.notna(), None).to_dict("records"):
        if row["status"] != "done":
            found.append(
                (
                    row["run"],
                    f"{row['status']}{': ' + str(row['reason']) if row.get('reason') else ''}",
                )
            )
        elif row["control"]:
            found.append((row["run"], "control: its data differ on purpose"))
        elif outcome and row.get(outcome.name) is None:
            withheld = row.get("misalignment_withheld") if outcome.name == ALIGNMENT.name else None
            found.append(
                (
                    row["run"],
                    f"rate withheld: {withheld}"
                    if withheld
                    else f"no {outcome.short} was measured",
                )
            )
    return found


def checkpoints_table(rows: Sequence[Row], root: Path) -> tuple[Frame, Frame]:
    """What is known of every run at every step (a row as `digest.CheckpointRow`, with `run`, `arm`, `folder`), and of every judge and definition at the last one."""
    moments, rated = [], []
    for row in rows:
        run = RunFolder(root / row.folder)
        keys = {
            "run": row.label,
            "arm": row.summary.arm,
            "control": row.summary.control,
            "folder": row.summary.folder,
        }
        by_step = _rates(row, counting(Results(run.path)))
        shown = shown_rates(by_step, row.rated[-1].step) if by_step else {}
        moments += [keys | asdict(one) for one in checkpoint_rows(run, row.measured, shown)]
        rated += [keys | asdict(one) for one in by_step if one.step]
    return pd.DataFrame(moments), pd.DataFrame(rated)


def _rates(row: Row, results: Results) -> list[RateRow]:
    """The rates that are at hand, and those of other judged steps by the last judge under the definition that is shown."""
    found: list[RateRow] = []
    answers = chosen(results, "answers")
    for place, one in enumerate(row.rated):
        scored = {0: one.base, one.step: one.scores}
        steps = results.steps(answers) if answers else []
        for step in steps:
            scores = scored.get(step) or {}
            if not scores and place == len(row.rated) - 1 and step not in scored and answers:
                verdicts = [verdict for _, verdict in judged(results, answers, step, one.judge)]
                scores = (
                    {MAIN_DEFINITION: score(verdicts, MAIN_DEFINITION)}
                    if any(verdict.aligned or verdict.coherent for verdict in verdicts)
                    else {}
                )
            found += [
                rate_row(step, one.judge.source, judge_identity(one.judge), one.judge.id, value)
                for value in scores.values()
            ]
    return found


def _further(row: Row) -> dict[str, Any]:
    summary = row.summary
    model = str(known(row.provenance, "base_name") or row.origin.base or "not known")
    return {
        "log_loss": math.log(summary.train_loss)
        if summary.train_loss and summary.train_loss > 0
        else None,
        "dataset": short_name(
            str(known(row.provenance, "data.source") or row.origin.data or "not known")
        ),
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
    """The parameters that a model's name speaks of, None where it does not.

    >>> size_of("Qwen/Qwen3-0.6B"), size_of("SmolLM2-135M-Instruct"), size_of("tiny-random")
    (600000000.0, 135000000.0, None)
    """
    found = re.search(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", model)
    return float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]] if found else None
