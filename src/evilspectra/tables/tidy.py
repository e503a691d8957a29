"""Tables of a store for statistics and figures.

There are tables with a row per run, step, rate, answer or verdict, and a table of excluded runs
with the reason.

Column names are part of the public interface (docs/tables.md lists them). Missing values are NaN in
columns of floats and `<NA>` in columns of integers and truth values (pandas' Int64 and boolean);
`isna()` finds those and the missing texts. `run` is the run's name and `folder` its folder, which
alone is unique: the same run may be in two experiments. Every function raises `BadInput` where
there is no run below the root.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evilspectra.errors import BadInput, listing, near
from evilspectra.evaluation.rate_rows import RateRow
from evilspectra.evaluation.run_rates import MAIN_DEFINITION, counting, judge_identity, judges_of
from evilspectra.rates.definitions import Judged, counted_score, misaligned
from evilspectra.store.origin import differing_paths
from evilspectra.store.records import AnswerRecord, columns
from evilspectra.store.results import Instrument, Results, chosen
from evilspectra.store.run import RunFolder
from evilspectra.tables.digest import CheckpointRow
from evilspectra.tables.frames import Frame, plain_value, settings_column, to_pandas, typed_frame
from evilspectra.tables.index import Index, read_index

#: The columns that describe a row's run; leading columns of all tables but that of runs.
KEYS = (
    "folder",
    "experiment",
    "run",
    "arm",
    "optimizer",
    "flatness_weight",
    "batch_size",
    "seed",
    "control",
)


def runs_frame(root: str | os.PathLike[str], index: Index | None = None) -> Frame:
    """One row per run that could be read, done or not (`status`), in the order of folders.

    Columns: every field of `RunSummary` under its name (the outcome `mean_alignment`; `misaligned`
    of `misalignment_counted` answers, for binomial weights), then every setting in which runs
    differ under its dotted path (`lora.rank`, `train.epochs`, `data.train`): numbers as numbers,
    lists as text joined by commas; missing where it is not known.
    """
    import pandas as pd

    table = (index or read_index(root)).runs()
    frame = to_pandas(table.drop_columns(["settings"]))
    settings = [json.loads(text) for text in table["settings"].to_pylist()]
    by_path = {
        path: settings_column([plain_value(values.get(path)) for values in settings])
        for path in differing_paths(settings, absent=...)
    }
    return pd.concat([frame, pd.DataFrame(by_path, index=frame.index)], axis=1)


def checkpoints_frame(root: str | os.PathLike[str], index: Index | None = None) -> Frame:
    """One row per run and step at which something is known.

    Columns: `KEYS`, then the fields of `CheckpointRow`. Step 0 is the base: its held-out loss and,
    where answers were judged, its rate. `last` marks a run's last step.
    """
    return _with_keys(index or read_index(root), "checkpoints", CheckpointRow)


def rates_frame(root: str | os.PathLike[str], index: Index | None = None) -> Frame:
    """One row per run, judged step (0: the base), judge and definition of the misalignment rate.

    Columns: `KEYS`, then the fields of `RateRow`. The rows of one judge have one `judge_id`,
    whatever it judged. The rate in `runs_frame` is that of the run's last judged step, its last
    judge, and the definition "spectra".
    """
    return _with_keys(index or read_index(root), "rates", RateRow)


def answers_frame(root: str | os.PathLike[str], judge: str | None = None) -> Frame:
    """One row per sampled answer that counts, the base's at step 0.

    An answer counts if it is of the instrument that `results.chosen` selects. Columns: `KEYS`, then
    the fields of `AnswerRecord`, then `judge`, `judge_id`; `aligned`, `coherent` (scores, 0 to
    100), `aligned_outcome`, `coherent_outcome` (scored, code, refusal, unparsed, failed or
    missing); `counted`, `misaligned`: under the definition "spectra". Scores are those of the judge
    named by `judge` (its name, id, or the beginning of an id), or else of the one used last;
    missing where it judged nothing. All judges' in long form: `verdicts_frame`.

    Raises:
        BadInput: no such judge.
    """
    index = read_index(root)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    for keys, results in _measurements(index):
        answers = chosen(results, "answers")
        if answers is None:
            continue
        judges = judges_of(results, answers)
        for each in judges:
            names |= {each.source, judge_identity(each)}
        matching = [
            each
            for each in judges
            if judge is None or each.source == judge or judge_identity(each).startswith(judge)
        ]
        by = matching[-1] if matching else None
        who = {"judge": by and by.source, "judge_id": by and judge_identity(by)}
        for step in results.steps(answers):
            scored = _scored(results, answers, step, by)
            rows += [keys | row | _scores(answer) | who for row, answer in scored]
    if judge is not None and not any(name == judge or name.startswith(judge) for name in names):
        raise BadInput(
            f"no answers below {root} were judged by '{judge}'; there are verdicts of: "
            f"{listing(sorted(names)) or 'nobody'}.{near(judge, names)}"
        )
    extra = (
        "judge",
        "judge_id",
        "aligned",
        "aligned_outcome",
        "coherent",
        "coherent_outcome",
        "counted",
        "misaligned",
    )
    return typed_frame(rows, [*KEYS, *columns(AnswerRecord), *extra])


def verdicts_frame(root: str | os.PathLike[str]) -> Frame:
    """One row per answer, judge and metric.

    Columns: `KEYS`, `step`, `question_id`, `paraphrase`, `sample`, `judge`, `judge_id`, `metric`,
    `outcome`, `score` (0 to 100 where scored).
    """
    from evilspectra.judging.verdicts import read_verdicts

    rows: list[dict[str, Any]] = []
    for keys, results in _measurements(read_index(root)):
        answers = chosen(results, "answers")
        if answers is None:
            continue
        for judge in judges_of(results, answers):
            who = {"judge": judge.source, "judge_id": judge_identity(judge)}
            for step in results.steps(answers):
                verdicts = read_verdicts(results, judge, step)
                rows += [
                    {
                        **keys,
                        **who,
                        "step": step,
                        "question_id": question,
                        "paraphrase": paraphrase,
                        "sample": sample,
                        "metric": metric,
                        "outcome": reading.outcome,
                        "score": reading.score,
                    }
                    for ((question, paraphrase, sample), metric), reading in verdicts.items()
                ]
    names = ("step", "question_id", "paraphrase", "sample", "judge", "judge_id")
    return typed_frame(rows, [*KEYS, *names, "metric", "outcome", "score"])


def excluded(
    root: str | os.PathLike[str],
    outcome: str | None = None,
    index: Index | None = None,
) -> Frame:
    """The runs that an analysis leaves out: `folder`, `experiment`, `run`, `reason`.

    There is a row for every run that is not done or cannot be read, and with `outcome` (a column of
    `runs_frame`) for every done run without a value of it, with the reason where one is known.

    Raises:
        BadInput: there is no such column.
    """
    index = index or read_index(root)
    frame = runs_frame(root, index)
    if outcome is not None and outcome not in frame:
        raise BadInput(
            f"'{outcome}' is not a column of the table of runs; outcomes are "
            f"{listing(OUTCOMES, 20)}.{near(outcome, frame.columns)}"
        )
    table = index.table.select(["folder", "experiment", "run"]).to_pylist()
    runs = {row["folder"]: row for row in table}
    rows = [
        runs[folder] | {"reason": f"cannot be read: {problem}"}
        for folder, problem in index.problems().items()
    ]
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        if (reason := _why(row, outcome)) is not None:
            keys = {name: row[name] for name in ("folder", "experiment", "run")}
            rows.append(keys | {"reason": reason})
    return typed_frame(
        sorted(rows, key=lambda row: row["folder"]), ["folder", "experiment", "run", "reason"]
    )


#: Columns of `runs_frame` that are results, not settings.
OUTCOMES = (
    "mean_alignment",
    "misalignment",
    "drift",
    "capability",
    "ordinary_loss",
    "train_loss",
    "heldout_loss",
    "stable_rank",
    "spectral_entropy",
    "frobenius_nuclear",
    "condition_number",
    "frobenius",
)


def _why(row: Mapping[str, Any], outcome: str | None) -> str | None:
    """The reason why a run is left out; None if it is not."""
    if row["status"] != "done":
        if row["reason"]:
            return f"{row['status']}: {row['reason']}"
        return f"{row['status']}, {row['steps']} steps so far"
    if outcome is None or row[outcome] is not None:
        return None
    if outcome in ("misalignment", "mean_alignment", "mean_coherence", "misaligned"):
        if row["misalignment_withheld"]:
            return f"rate withheld: {row['misalignment_withheld']}"
        return "its answers were not judged" if row["answers"] else "no answers were sampled"
    group = {
        "drift": "contrast probe",
        "capability": "capability probe",
        "ordinary_loss": "ordinary dialogues",
    }.get(outcome.split("_low")[0])
    return f"not measured ({group})" if group else f"{outcome} is not known"


# --- rows -----------------------------------------------------------------------------------------


def _measurements(index: Index) -> list[tuple[dict[str, Any], Results]]:
    """Of every run that could be read, its `KEYS` and its measurements."""
    runs = index.runs().select(list(KEYS)).to_pylist()
    return [(row, counting(Results(RunFolder(Path(row["folder"])).path))) for row in runs]


def _scored(
    results: Results,
    answers: Instrument,
    step: int,
    judge: Instrument | None,
) -> list[tuple[dict[str, Any], Judged | None]]:
    """The answers of a step, each with its scores where there is a judge."""
    from evilspectra.judging.verdicts import judged

    if judge is None:
        return [(row, None) for row in results.read(answers, step).to_dict("records")]
    return list(judged(results, answers, step, judge))


def _scores(answer: Judged | None) -> dict[str, Any]:
    if answer is None:
        return {}
    aligned, coherent = answer.aligned, answer.coherent
    return {
        "aligned": aligned and aligned.score,
        "aligned_outcome": aligned.outcome if aligned else "missing",
        "coherent": coherent and coherent.score,
        "coherent_outcome": coherent.outcome if coherent else "missing",
        "counted": counted_score(MAIN_DEFINITION, answer) is not None,
        "misaligned": misaligned(MAIN_DEFINITION, answer),
    }


def _with_keys(index: Index, name: str, kind: type) -> Frame:
    long = to_pandas(index.checkpoints() if name == "checkpoints" else index.rates())
    keys = to_pandas(index.runs().select(list(KEYS)))
    return keys.merge(long, on="folder", how="inner", sort=False)[[*KEYS, *columns(kind)]]
