"""Tables of a store for statistics and figures: a row per run, per step, per rate, per answer, per
verdict; and what had to be left out, with the reason.

Column names are what others build on (docs/tables.md lists them). Missing values are NaN in columns
of floats and `<NA>` in columns of integers and truth values (pandas' Int64 and boolean); `isna()`
finds those and the missing texts. `run` is the run's name and `folder` its folder, which alone is
unique: the same run may stand in two experiments. Every function raises `BadInput` where there is
no run below the root.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from evilspectra.errors import BadInput, listing, near
from evilspectra.evaluation.run_rates import MAIN_DEFINITION, counting, judge_identity, judges_of
from evilspectra.rates.definitions import Judged, counted_score, misaligned
from evilspectra.store.records import AnswerRecord, columns
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder
from evilspectra.tables.digest import CheckpointRow, RateRow
from evilspectra.tables.index import Index, read_index

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: A pandas data frame, not checked further (as in `drift`).
Frame: TypeAlias = Any
#: What every row says of its run; in front of all tables but that of runs.
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


def runs_frame(root: Path, index: Index | None = None) -> Frame:
    """One row per run that could be read, done or not (`status`), in the order of folders.

    Columns: every field of `RunSummary` under its name (the outcome `mean_alignment`; `misaligned`
    of `misalignment_counted` answers, for binomial weights), then every setting in which runs
    differ under its dotted path (`lora.rank`, `train.epochs`, `data.train`): numbers as numbers,
    lists as text joined by commas; missing where it is not known.
    """
    index = index or read_index(root)
    found = index.runs()
    frame = _pandas(found.drop_columns(["settings"]))
    settings = [json.loads(text) for text in found["settings"].to_pylist()]
    import pandas as pd

    return pd.concat(
        [
            frame,
            pd.DataFrame(
                {
                    path: _column([_plain(one.get(path)) for one in settings])
                    for path in differing(settings)
                },
                index=frame.index,
            ),
        ],
        axis=1,
    )


def checkpoints_frame(root: Path, index: Index | None = None) -> Frame:
    """One row per run and step at which something is known: `KEYS`, then the fields of
    `CheckpointRow`.

    Step 0 is the base: its held-out loss and, where answers were judged, its rate. `last` marks a
    run's last step.
    """
    return _with_keys(index or read_index(root), "checkpoints", CheckpointRow)


def rates_frame(root: Path, index: Index | None = None) -> Frame:
    """One row per run, judged step (0: the base), judge and definition of the misalignment rate:
    `KEYS`, then the fields of `RateRow`.

    The rows of one judge have one `judge_id`, whatever it judged. The rate in `runs_frame` is that
    of the run's last judged step, its last judge, and the definition "spectra".
    """
    return _with_keys(index or read_index(root), "rates", RateRow)


def answers_frame(root: Path, judge: str | None = None) -> Frame:
    """One row per sampled answer that counts (of the instrument that `measured.chosen` takes), the
    base's at step 0: `KEYS`, then the fields of `AnswerRecord`, then

    `judge`, `judge_id`; `aligned`, `coherent` (scores, 0 to 100), `aligned_outcome`,
    `coherent_outcome` (scored, code, refusal, unparsed, failed or missing); `counted`,
    `misaligned`: under the definition "spectra". Scores are those of the judge named by `judge`
    (its name, id, or the beginning of an id), or else of the one used last; missing where it judged
    nothing. All judges' in long form: `verdicts_frame`.

    Raises:
        BadInput: no such judge.
    """
    from evilspectra.judging.verdicts import judged

    index = read_index(root)
    rows: list[dict[str, Any]] = []
    known: set[str] = set()
    for keys, results in _places(index):
        answers = chosen(results, "answers")
        if answers is None:
            continue
        judges = judges_of(results, answers)
        known |= {one.source for one in judges} | {judge_identity(one) for one in judges}
        fitting = [
            one
            for one in judges
            if judge is None or one.source == judge or judge_identity(one).startswith(judge)
        ]
        for step in results.steps(answers):
            found = (
                judged(results, answers, step, fitting[-1])
                if fitting
                else [(row, None) for row in results.read(answers, step).to_dict("records")]
            )
            rows += [
                keys
                | row
                | _scores(one)
                | {
                    "judge": fitting[-1].source if fitting else None,
                    "judge_id": judge_identity(fitting[-1]) if fitting else None,
                }
                for row, one in found
            ]
    if judge is not None and not any(name == judge or name.startswith(judge) for name in known):
        raise BadInput(
            f"no answers below {root} were judged by '{judge}'; there are verdicts of: "
            f"{listing(sorted(known)) or 'nobody'}.{near(judge, known)}"
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
    return _typed(rows, [*KEYS, *columns(AnswerRecord), *extra])


def verdicts_frame(root: Path) -> Frame:
    """One row per answer, judge and metric: `KEYS`, `step`, `question_id`, `paraphrase`, `sample`,
    `judge`, `judge_id`, `metric`, `outcome`, `score` (0 to 100 where scored).
    """
    from evilspectra.judging.verdicts import read_verdicts

    rows: list[dict[str, Any]] = []
    for keys, results in _places(read_index(root)):
        answers = chosen(results, "answers")
        for judge in judges_of(results, answers) if answers else ():
            who = {"judge": judge.source, "judge_id": judge_identity(judge)}
            for step in results.steps(answers) if answers else ():
                for ((question, paraphrase, sample), metric), reading in read_verdicts(
                    results, judge, step
                ).items():
                    rows.append(
                        keys
                        | who
                        | {
                            "step": step,
                            "question_id": question,
                            "paraphrase": paraphrase,
                            "sample": sample,
                            "metric": metric,
                            "outcome": reading.outcome,
                            "score": reading.score,
                        }
                    )
    return _typed(
        rows,
        [
            *KEYS,
            "step",
            "question_id",
            "paraphrase",
            "sample",
            "judge",
            "judge_id",
            "metric",
            "outcome",
            "score",
        ],
    )


def excluded(root: Path, outcome: str | None = None, index: Index | None = None) -> Frame:
    """What an analysis leaves out: columns `folder`, `experiment`, `run`, `reason`, a row for every
    run that is not done or cannot be read, and with `outcome` (a column of `runs_frame`) for every
    done run that has no value of it, with the reason where one is known.

    Raises:
        BadInput: there is no such column.
    """
    index = index or read_index(root)
    frame = runs_frame(root, index)
    if outcome is not None and outcome not in frame:
        raise BadInput(
            f"'{outcome}' is no column of the table of runs; outcomes are "
            f"{listing(OUTCOMES, 20)}.{near(outcome, frame.columns)}"
        )
    problems = index.problems()
    places = dict(
        zip(
            index.table["folder"].to_pylist(),
            zip(index.table["experiment"].to_pylist(), index.table["run"].to_pylist(), strict=True),
            strict=True,
        )
    )
    rows = [
        {
            "folder": folder,
            "experiment": places[folder][0],
            "run": places[folder][1],
            "reason": f"cannot be read: {why}",
        }
        for folder, why in problems.items()
    ]
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        if (why := _why(row, outcome)) is not None:
            rows.append(
                {name: row[name] for name in ("folder", "experiment", "run")} | {"reason": why}
            )
    return _typed(
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


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dotted paths whose values differ, in the order in which they first appear.

    >>> differing([{"a": 1, "b": [2]}, {"a": 1, "b": [3]}])
    ['b']
    """
    first: dict[str, str] = {}
    found: dict[str, bool] = {}
    for one in settings:
        for path, value in one.items():
            text = repr(value)
            found[path] = found.get(path, False) or first.setdefault(path, text) != text
    return [path for path in found if found[path] or any(path not in one for one in settings)]


def _why(row: Mapping[str, Any], outcome: str | None) -> str | None:
    """Why a run is left out; None where it is not."""
    if row["status"] != "done":
        return (
            f"{row['status']}: {row['reason']}"
            if row["reason"]
            else f"{row['status']}, {row['steps']} steps so far"
        )
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


# --- frames ---------------------------------------------------------------------------------------


def _places(index: Index) -> list[tuple[dict[str, Any], Results]]:
    """Of every run that could be read, what its rows say of it, and its measurements."""
    found = index.runs().select(list(KEYS)).to_pylist()
    return [(row, counting(Results(RunFolder(Path(row["folder"])).path))) for row in found]


def _scores(one: Judged | None) -> dict[str, Any]:
    if one is None:
        return {}
    aligned, coherent = one.aligned, one.coherent
    return {
        "aligned": aligned and aligned.score,
        "aligned_outcome": aligned.outcome if aligned else "missing",
        "coherent": coherent and coherent.score,
        "coherent_outcome": coherent.outcome if coherent else "missing",
        "counted": counted_score(MAIN_DEFINITION, one) is not None,
        "misaligned": misaligned(MAIN_DEFINITION, one),
    }


def _with_keys(index: Index, name: str, kind: type) -> Frame:
    long = _pandas(index.checkpoints() if name == "checkpoints" else index.rates())
    keys = _pandas(index.runs().select(list(KEYS)))
    return keys.merge(long, on="folder", how="inner", sort=False)[[*KEYS, *columns(kind)]]


def _pandas(table: pa.Table) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    kinds = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return table.to_pandas(types_mapper=kinds.get)


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _column(values: Sequence[Any]) -> Any:
    """A column of settings: whole numbers, numbers, truth values or objects, by what is there."""
    import pandas as pd

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.array(values, dtype="boolean")
    if kinds == {int}:
        return pd.array(values, dtype="Int64")
    if kinds and kinds <= {int, float}:
        return pd.array(
            [float("nan") if value is None else float(value) for value in values], dtype="float64"
        )
    return pd.Series(list(values), dtype=object).array


#: Types of the columns of tables that are not made of Arrow ones.
_INTEGERS, _TRUTHS, _FLOATS = (
    ("batch_size", "seed", "step", "paraphrase", "sample", "tokens"),
    ("control", "counted", "misaligned"),
    ("flatness_weight", "aligned", "coherent", "score"),
)


def _typed(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Frame:
    import pandas as pd

    kinds = {
        **dict.fromkeys(_INTEGERS, "Int64"),
        **dict.fromkeys(_TRUTHS, "boolean"),
        **dict.fromkeys(_FLOATS, "float64"),
    }
    frame = pd.DataFrame(list(rows), columns=list(names), dtype=object)
    return frame.astype({name: kind for name, kind in kinds.items() if name in frame})
