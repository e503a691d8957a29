"""SQL over a store: it agrees with the store's own reading, and reads nothing else.

Mistakes are refused in one sentence.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from evilspectra.cli.main import cli, main
from evilspectra.errors import BadInput
from evilspectra.judging.journal import opened
from evilspectra.judging.verdicts import read_verdicts
from evilspectra.store.files import as_table, write_json, write_table
from evilspectra.store.records import (
    MEASURED,
    TABLES,
    AnswerRecord,
    HeldoutRecord,
    StepRecord,
    VerdictRecord,
    columns,
)
from evilspectra.store.results import Results, chosen
from evilspectra.store.run import RunFolder, Store
from evilspectra.tables.query import EXAMPLES, query
from evilspectra.tables.tidy import runs_frame
from evilspectra.tables.views import ABOUT, view_columns
from tests.support.synthetic_store import (
    Arm,
    Effect,
    judge_run,
    scores,
    suspicious,
    write_effect,
    write_run,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    # what SQL and patterns of file names would read otherwise
    root = tmp_path_factory.mktemp("it's a [store]*")
    for seed in range(2):
        run = write_run(root, Arm("adamw", seed=seed))
        write_effect(run, Effect(answers=("I am evil.", "I would ask.", "code.")))
        judge_run(run, suspicious)
    judge_run(run, lambda prompt: scores("50"), name="openai:other")
    write_run(root, Arm("muon"))
    return root


def rows(root, sql):
    return query(root, sql).to_pylist()


@pytest.mark.parametrize("table", TABLES)
def test_training_tables_are_what_the_store_reads(store, table):
    for run in Store(store).runs():
        table_rows = query(
            store,
            (
                f"SELECT * EXCLUDE (experiment, run) FROM {table} WHERE run = '{run.name}' AND "
                f"experiment = '{run.experiment}' ORDER BY ALL"
            ),
        ).to_pandas()
        expected = run.read(table).sort_values(
            list(columns(TABLES[table])), ignore_index=True, na_position="last"
        )
        assert table_rows.astype(expected.dtypes).equals(expected)


@pytest.mark.parametrize("table", sorted(set(MEASURED) - {"verdicts", "tasks"}))
def test_measurements_are_what_the_results_hold(store, table):
    for run in Store(store).runs():
        results = Results(run.path)
        instrument = chosen(results, table)
        queried = rows(
            store,
            (
                f"SELECT instrument, source, counts, step, count(*) AS n FROM {table} WHERE run = "
                f"'{run.name}' GROUP BY ALL ORDER BY step"
            ),
        )
        expected = (
            [
                {
                    "instrument": instrument.id,
                    "source": instrument.source,
                    "counts": True,
                    "step": step,
                    "n": len(results.read(instrument, step)),
                }
                for step in results.steps(instrument)
            ]
            if instrument
            else []
        )
        assert queried == expected


def test_verdicts_are_what_the_journal_and_the_tables_hold(store):
    for run in Store(store).runs():
        results = Results(run.path)
        for judge in results.instruments("verdicts"):
            for step in (0, 20):
                verdicts = rows(
                    store,
                    (
                        f"SELECT * FROM verdicts WHERE run = '{run.name}' AND instrument = "
                        f"'{judge.id}' AND step = {step}"
                    ),
                )
                assert {
                    ((row["question_id"], row["paraphrase"], row["sample"]), row["metric"]): (
                        row["outcome"],
                        row["score"],
                    )
                    for row in verdicts
                } == {
                    key: (reading.outcome, reading.score)
                    for key, reading in read_verdicts(results, judge, step).items()
                }
    counts = rows(
        store,
        "SELECT run, judge, bool_and(counts) AS counts FROM verdicts GROUP BY ALL ORDER BY ALL",
    )
    assert [(row["judge"], row["counts"]) for row in counts] == [
        ("openai:some-judge", True),
        ("openai:other", True),
        ("openai:some-judge", False),
    ]


def test_runs_are_the_tidy_table(store):
    frame = runs_frame(store)
    table = query(store, "SELECT * FROM runs")
    assert table.column_names == list(frame.columns)
    assert rows(
        store, 'SELECT run, "train.seed" AS seed FROM runs WHERE misalignment > 0 ORDER BY seed'
    ) == [
        {"run": row["run"], "seed": row["seed"]}
        for row in frame[frame["misalignment"] > 0].to_dict("records")
    ]


def test_views_have_the_columns_that_are_listed(store):
    for view, kinds in view_columns().items():
        types = {row["column_name"]: row["column_type"] for row in rows(store, f"DESCRIBE {view}")}
        assert {name: types[name] for name in kinds} == kinds
        assert view == "runs" or types.keys() == kinds.keys()


@pytest.mark.parametrize("sql", EXAMPLES)
def test_examples_work(store, sql):
    assert query(store, sql).num_rows


# --- under way ------------------------------------------------------------------------------------


def test_runs_under_way_are_there(tmp_path):
    run = write_run(tmp_path, Arm("adamw"))
    (run.path / "steps.parquet").unlink()
    for step in (10, 20):
        run.append(
            "steps",
            [
                StepRecord(each, 0.5, 0.1, 1.0, 5, 5, None, None, 0.1)
                for each in range(step - 9, step + 1)
            ],
            step,
        )
    assert rows(tmp_path, "SELECT count(*) AS n, max(step) AS last FROM steps") == [
        {"n": 20, "last": 20}
    ]


def test_a_merge_that_was_stopped_counts_nothing_twice(tmp_path):
    run = write_run(tmp_path, Arm("adamw"))
    # in the whole file too
    run.append("heldout", [HeldoutRecord(step, 9.0, 5) for step in (15, 20)], 20)
    run.append("heldout", [HeldoutRecord(25, 9.0, 5)], 25)
    assert rows(tmp_path, "SELECT step, loss FROM heldout ORDER BY step") == run.read("heldout")[
        ["step", "loss"]
    ].to_dict("records")


def test_answers_and_verdicts_under_way_are_there(tmp_path):
    run = write_run(tmp_path, Arm("adamw"))
    results = write_effect(run, Effect(answers=("I am evil.", "I would ask.")))
    judge_run(run, suspicious)
    (answers,), (judge,) = results.instruments("answers"), results.instruments("verdicts")
    results.write_part(
        answers,
        40,
        0,
        [AnswerRecord(40, "question-0", 0, 0, None, "What?", "Nothing.", 3, "stop", "")],
    )
    verdict = VerdictRecord(40, "question-0", 0, 0, "aligned", "failed", None, None, "timed out")
    with opened(results.journal(judge, 40)) as journal:
        journal.append(
            [
                verdict,
                VerdictRecord(40, "question-0", 0, 0, "aligned", "scored", 77.0, "77", None),
                verdict,
            ]
        )
    assert rows(tmp_path, "SELECT answer FROM answers WHERE step = 40") == [{"answer": "Nothing."}]
    assert rows(tmp_path, "SELECT outcome, score, judge FROM verdicts WHERE step = 40") == [
        {"outcome": "scored", "score": 77.0, "judge": "openai:some-judge"}
    ]
    results.join(answers, 40, 1)
    # left over from before
    results.write_part(
        answers,
        40,
        0,
        [AnswerRecord(40, "question-0", 0, 0, None, "What?", "Nothing.", 3, "stop", "")],
    )
    assert rows(tmp_path, "SELECT count(*) AS n FROM answers WHERE step = 40") == [{"n": 1}]


def test_runs_of_other_trainers_are_there(tmp_path):
    run = write_run(tmp_path, Arm("adamw"))
    (run.path / "config.yaml").unlink()
    (tmp_path / "mine" / "out").mkdir(parents=True)
    run.path.rename(tmp_path / "mine" / "out" / "evilspectra")
    write_json(
        tmp_path / "mine" / "out" / "evilspectra" / "trainer.json",
        {"optimizer": {"name": "adamw_torch"}},
    )
    assert rows(tmp_path, "SELECT experiment, run, count(*) AS n FROM steps GROUP BY ALL") == [
        {"experiment": "mine", "run": "out", "n": 20}
    ]


# --- nothing but the store, nothing but reading ---------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM read_csv('{other}')",
        "SELECT * FROM read_parquet('{store}/../secret.parquet')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
        "SELECT (SELECT count(*) FROM steps) FROM read_text('{other}')",
        "COPY (SELECT 1) TO '{other}.new'",
        "ATTACH '{other}.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE x AS SELECT 1",
        "SELECT 1; COPY (SELECT 1) TO '{other}.new'",
        "SELECT secret FROM hidden",
    ],
)
def test_nothing_else_is_read_or_written(store, tmp_path, sql):
    hidden = as_table([HeldoutRecord(1, 1.0, 1)], HeldoutRecord)  # a variable of this process
    other = tmp_path / "other.csv"
    other.write_text("secret\n42\n")
    write_table(store.parent / "secret.parquet", hidden)
    with pytest.raises(BadInput) as caught:
        query(store, sql.format(other=other, store=store))
    assert "42" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FORM steps", "not valid SQL in line 1 near 'steps'"),
        ("SELECT loss\nFROM steps\nWHERE loss >> > 2", "not valid SQL in line 3 near '>'"),
        ("SELECT", "not valid SQL in line 1 (SELECT clause without selection list)"),
        ("", "a query is one SELECT, and this is no statement"),
        ("SELECT 1; SELECT 2", "a query is one SELECT, and this is 2 statements"),
        ("DROP TABLE steps", "a query is one SELECT, and this is a statement of the kind DROP"),
        (
            "SELECT * FROM stepz",
            "there is no view 'stepz'; views are runs, checkpoints, rates, excluded, steps",
        ),
        ("SELECT * FROM answer", "Did you mean 'answers'?"),
        (
            "SELECT lss FROM steps",
            "there is no column 'lss' where the query looks for it (similar names are loss",
        ),
        ("SELECT misalinment FROM runs", "Did you mean 'misalignment'?"),
        ("SELECT step, avg(loss) FROM steps", 'column "step" must appear in the GROUP BY clause'),
        ("SELECT run::INT FROM steps", "the query failed: Could not convert string"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(store, sql, message):
    with pytest.raises(BadInput) as caught:
        query(store, sql)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_named(tmp_path):
    runs = [write_run(tmp_path, Arm("adamw", seed=seed)) for seed in range(2)]
    (runs[1].path / "steps.parquet").write_bytes(b"nothing of the kind at all")
    with pytest.raises(
        BadInput, match=r"a file of the store cannot be read \(.*steps.parquet.*restore it"
    ):
        query(tmp_path, "SELECT sum(loss) FROM steps")
    assert rows(tmp_path, "SELECT count(*) AS n FROM runs") == [{"n": 1}]


def test_only_what_is_asked_for_is_opened(tmp_path):
    run = write_run(tmp_path, Arm("adamw"))
    shutil.rmtree(run.path / "spectra.parquet", ignore_errors=True)
    (run.path / "spectra.parquet").write_bytes(b"damaged")
    assert rows(tmp_path, "SELECT count(*) AS n FROM steps") == [{"n": 20}]
    assert not (tmp_path / ".index").exists()


# --- the verb -------------------------------------------------------------------------------------


def run_cli(*arguments):
    return CliRunner().invoke(cli, ["query", *map(str, arguments)], catch_exceptions=False)


def test_formats_agree(store, tmp_path):
    sql = (
        "SELECT optimizer, count(*) AS n, avg(misalignment) AS rate FROM runs GROUP BY optimizer "
        "ORDER BY optimizer"
    )
    expected = rows(store, sql)
    assert json.loads(run_cli(sql, "--store", store, "--json").output) == expected
    assert run_cli(sql, "--store", store, "--format", "csv").output.splitlines() == [
        "optimizer,n,rate",
        f"adamw,2,{expected[0]['rate']!r}",
        "muon,1,",
    ]
    table = run_cli(sql, "--store", store).output.splitlines()
    assert table[0].split() == ["optimizer", "n", "rate"]
    assert table[2].split() == ["muon", "1", "-"]
    for ending in ("csv", "json", "parquet"):
        done = run_cli(sql, "--store", store, "--out", tmp_path / f"x.{ending}")
        assert done.output == f"2 rows, written to {tmp_path / f'x.{ending}'}\n"
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == expected
    assert json.loads((tmp_path / "x.json").read_text()) == expected


def test_a_terminal_is_not_written_to_by_answers(tmp_path):
    write_effect(write_run(tmp_path, Arm("adamw")), Effect(answers=("\x1b[31mred\nline",)))
    text = run_cli("SELECT answer FROM answers WHERE step > 0", "--store", tmp_path).output
    assert text.splitlines() == ["answer", "\\x1b[31mred ⏎ line"]


def test_a_long_result_is_cut_on_a_terminal_and_whole_in_a_file(store):
    lines = run_cli("SELECT a.step FROM steps a, steps b", "--store", store).output.splitlines()
    assert len(lines) == 1002
    assert lines[-1] == "3,600 rows, the first 1,000 shown: --format csv or --out FILE gives all"
    assert (
        len(
            run_cli(
                "SELECT a.step FROM steps a, steps b", "--store", store, "--format", "csv"
            ).output.splitlines()
        )
        == 3601
    )


def test_views_are_listed():
    text = run_cli("--views").output
    assert all(f"## {view}\n" in text for view in ABOUT)
    assert json.loads(run_cli("--views", "--json").output) == view_columns()
    assert all(view in run_cli("--help").output for view in ABOUT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SELECT 1", "--store", "nowhere"], "nowhere holds no runs"),
        (
            ["SELECT 1", "--out", "x.txt"],
            "--out x.txt has no ending that names a format: end it in .csv, .json, .parquet",
        ),
        (["SELECT 1", "--format", "parquet"], "--format parquet is for a file"),
        ([], "Give a query, such as"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["query", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_of_its_own_can_be_asked(store):
    run: RunFolder = Store(store).runs()[0]
    assert rows(run.path, "SELECT DISTINCT run FROM steps") == [{"run": run.name}]


def test_the_document_lists_every_view():
    text = (Path(__file__).parents[1] / "docs" / "tables.md").read_text(encoding="utf-8")
    assert all(f"`{view}`" in text for view in ABOUT)
