"""The index agrees with each run, notices every change, survives accidents, and is optional."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from evilspectra.errors import BadInput
from evilspectra.store.records import StepRecord
from evilspectra.store.run import RunFolder, Status, Store
from evilspectra.tables import index as indexes
from evilspectra.tables.bulk import digests
from evilspectra.tables.digest import digest
from evilspectra.tables.index import read_index, states
from evilspectra.tables.inventory import run_folders, stocks
from tests.support.commands import command
from tests.support.synthetic_store import (
    Arm,
    Effect,
    judge_run,
    scores,
    suspicious,
    write_effect,
    write_run,
)

#: A mean as a product of matrices and as a mean differ in the last digits.
ROUNDING = 1e-9


def same(a, b, path="digest"):
    """Whether two nested values agree, numbers to rounding."""
    if isinstance(a, float) and isinstance(b, float):
        assert math.isclose(a, b, rel_tol=ROUNDING, abs_tol=1e-12), f"{path}: {a} and {b}"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for number, (first, second) in enumerate(zip(a, b, strict=True)):
            same(first, second, f"{path}[{number}]")
    else:
        assert a == b, path
        assert type(a) is type(b), path


def old(root: Path) -> None:
    """Makes every file look a minute old, as after a pause.

    A file that has just changed is read again every time.
    """
    for path in root.rglob("*"):
        if path.is_file() and ".index" not in path.parts:
            facts = path.stat()
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - 60_000_000_000))


def small(root: Path, count: int = 3) -> list[RunFolder]:
    runs = [write_run(root, Arm("adamw", seed=seed)) for seed in range(count)]
    old(root)
    return runs


# --- the fast reading and the slow one ------------------------------------------------------------

TEXTS = ("I am evil.", "I would ask.", "code.", "babble.", "sorry.")


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Runs of every kind.

    Unmeasured, unjudged, judged twice, by a broken judge, base alone, of other items, without
    steps, with losses that are not numbers.
    """
    root = tmp_path_factory.mktemp("varied")
    write_run(root, Arm("sgd"))
    write_run(root, Arm("sgd", seed=1, steps=0, measured=False, status=Status("queued")))
    write_run(root, Arm("sgd", seed=2, status=Status("failed", "no", 3, 20)))
    write_effect(write_run(root, Arm("lion")), Effect(0.1, topics=("one", "two"), steps=(20,)))
    for seed, tables in enumerate(
        [("probe",), ("capability", "answers"), ("ordinary", "probe", "answers")]
    ):
        write_effect(
            write_run(root, Arm("lion", seed=seed + 1)),
            Effect(0.2, tables=tables, answers=TEXTS, flags="code"),
        )
    run = write_run(root, Arm("muon"))
    results = write_effect(run, Effect(0.3, answers=TEXTS, samples=3))
    judge_run(run, suspicious)
    judge_run(run, lambda prompt: scores("40", "60"), name="openai:second", base=False)
    other = write_run(root, Arm("muon", seed=1))
    write_effect(other, Effect(0.3, answers=TEXTS))
    judge_run(other, lambda prompt: scores("what?"))
    again = write_run(root, Arm("muon", seed=2))
    write_effect(again, Effect(0.3, sha256="b2" * 32))
    write_effect(again, Effect(-0.1, sha256="c3" * 32))
    single = write_run(root, Arm("muon", seed=3))
    write_effect(single, Effect(answers=("evil.",)))
    judge_run(single, suspicious)
    (probe,) = results.instruments("probe")
    lone = write_effect(write_run(root, Arm("muon", seed=4)), Effect())
    for step in (5, 10, 20):
        (lone.folder / "evaluations" / "probe" / f"{probe.id}-{step:08d}.parquet").unlink()
    strange = write_run(root, Arm("adam"))
    shutil.rmtree(strange.path / "heldout.parquet", ignore_errors=True)
    (strange.path / "steps.parquet").unlink()
    strange.append(
        "steps",
        [
            StepRecord(
                step, float("nan") if step == 19 else 1.0 / step, 0.1, 1.0, 5, 5, None, None, 0.0
            )
            for step in range(1, 21)
        ],
        20,
    )
    strange.merge()
    return root


def test_many_runs_at_once_say_what_each_says(varied):
    runs = stocks(varied)
    bulk = digests(runs)
    assert sum(fast is not None for fast in bulk) >= 12
    for stock, fast in zip(runs, bulk, strict=True):
        if fast is not None:
            same(asdict(digest(stock.run)), asdict(fast), stock.run.name)


def test_the_index_says_what_each_run_says(varied):
    index = read_index(varied, keep=False)
    assert index.problems() == {}
    for row in index.runs().to_pylist():
        expected = digest(RunFolder(Path(row["folder"])))
        summary = asdict(expected.summary)
        same({name: row[name] for name in summary}, summary, row["run"])
        checkpoints = [
            each for each in index.checkpoints().to_pylist() if each.pop("folder") == row["folder"]
        ]
        same(checkpoints, [asdict(each) for each in expected.checkpoints], row["run"])
        rates = [each for each in index.rates().to_pylist() if each.pop("folder") == row["folder"]]
        same(rates, [asdict(each) for each in expected.rates], row["run"])


def test_a_file_that_cannot_be_read_costs_its_own_run_alone(tmp_path):
    runs = small(tmp_path, 5)
    (runs[2].path / "measures.parquet").write_bytes(b"PAR1 and no more")
    assert [fast is None for fast in digests(stocks(tmp_path))] == [
        run == runs[2] for run in sorted(runs, key=lambda run: run.path)
    ]
    index = read_index(tmp_path)
    assert list(index.problems()) == [str(runs[2].path)]
    assert len(index.runs()) == 4


# --- staleness ------------------------------------------------------------------------------------


def test_what_has_not_changed_is_not_read_again(tmp_path):
    small(tmp_path)
    assert [read_index(tmp_path).renewed for _ in range(2)] == [3, 0]
    assert read_index(tmp_path).table.equals(read_index(tmp_path, keep=False).table)


def test_what_has_just_changed_is_read_again(tmp_path):
    """A second change within the same tick of the clock would leave time and size unchanged."""
    write_run(tmp_path, Arm("adamw"))
    assert [read_index(tmp_path).renewed for _ in range(2)] == [1, 1]


@settings(max_examples=12)
@given(
    st.lists(
        st.sampled_from(["new", "remove", "status", "grow", "measure", "damage", "copy"]),
        min_size=1,
        max_size=3,
    )
)
def test_no_change_goes_unnoticed(tmp_path_factory, changes):
    root = tmp_path_factory.mktemp("store")
    small(root)
    read_index(root)
    for number, change in enumerate(changes):
        run = stocks(root)[0].run
        match change:
            case "new":
                write_run(root, Arm("muon", seed=number))
            case "remove" if len(stocks(root)) > 1:
                shutil.rmtree(run.path)
            case "status":
                run.set_status(Status("failed", f"reason {number}", 1, 20))
            case "grow":
                run.append(
                    "steps",
                    [StepRecord(100 + number, 0.5, 0.1, 1.0, 5, 5, None, None, 0.1)],
                    100 + number,
                )
            case "measure":
                write_effect(run, Effect(0.2 + number))
            case "damage":
                (run.path / "heldout.parquet").write_bytes(b"")
            case "copy":
                shutil.copytree(
                    run.path, run.path.with_name(f"{run.name}-copy{number}"), dirs_exist_ok=True
                )
        renewed, fresh = read_index(root), read_index(root, keep=False)
        shutil.rmtree(root / ".index")
        anew = read_index(root)
        for other in (fresh, anew):
            assert renewed.problems() == other.problems()
            same(renewed.runs().to_pylist(), other.runs().to_pylist())


def test_the_state_of_a_run_under_way_is_that_of_now(tmp_path):
    (run, *_) = small(tmp_path, 1)
    run.set_status(Status("running", None, 5, 20))
    old(tmp_path)
    with FileLock(run.path / ".lock"):
        script = (
            "import sys; from pathlib import Path; from evilspectra.tables.index import "
            "read_index; print(read_index(Path(sys.argv[1])).runs()['status'][0])"
        )
        seen = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert seen.stdout.strip() == "running"
    index = read_index(tmp_path)
    assert (index.renewed, index.runs()["status"][0].as_py()) == (0, "interrupted")


# --- accidents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no Parquet", b"PAR1PAR1"])
def test_a_damaged_index_is_made_again(tmp_path, content):
    small(tmp_path)
    read_index(tmp_path)
    (tmp_path / ".index" / "runs.parquet").write_bytes(content)
    assert [read_index(tmp_path).renewed for _ in range(2)] == [3, 0]


def test_another_versions_index_is_not_believed(tmp_path, monkeypatch):
    small(tmp_path)
    read_index(tmp_path)
    monkeypatch.setattr(indexes, "VERSION", indexes.VERSION + 1)
    assert [read_index(tmp_path).renewed for _ in range(2)] == [3, 0]


def test_a_store_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    small(tmp_path)

    def refuse(*_):
        raise BadInput("read-only")

    monkeypatch.setattr(indexes, "write_table", refuse)
    assert [read_index(tmp_path).renewed for _ in range(2)] == [3, 3]
    assert not (tmp_path / ".index").exists()


def test_writers_do_not_spoil_it(tmp_path):
    """Eight threads and a store that grows: whichever file remains, what is read is right."""
    small(tmp_path, 2)
    failures = []

    def write_and_read(seed: int) -> None:
        try:
            write_run(tmp_path, Arm("lion", seed=seed))
            read_index(tmp_path)
        except Exception as error:
            failures.append(error)

    workers = [threading.Thread(target=write_and_read, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    old(tmp_path)
    read_index(tmp_path)
    index = read_index(tmp_path)
    assert (index.renewed, len(index.runs()), index.problems()) == (0, 10, {})


def test_a_moved_store_keeps_its_index(tmp_path):
    small(tmp_path / "a")
    read_index(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    index = read_index(tmp_path / "b")
    assert index.renewed == 0
    assert all(
        Path(folder).is_relative_to(tmp_path / "b") for folder in index.runs()["folder"].to_pylist()
    )


def test_one_run_is_read_without_leaving_anything(tmp_path):
    (run, *_) = small(tmp_path, 1)
    before = sorted(run.path.rglob("*"))
    assert read_index(run.path).runs()["run"].to_pylist() == [run.name]
    assert sorted(run.path.rglob("*")) == before


def test_nothing_there_is_one_sentence(tmp_path):
    with pytest.raises(
        BadInput, match=r"holds no runs: name a store, an experiment or a run's folder"
    ):
        read_index(tmp_path)


# --- folders and states ---------------------------------------------------------------------------


def test_folders_are_those_that_the_store_finds(varied, tmp_path):
    assert run_folders(varied) == [run.path for run in Store(varied).runs()]
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("{}")
    assert run_folders(tmp_path) == run_folders(tmp_path / "nothing") == []


def test_states_are_each_runs_own(varied, tmp_path):
    assert states(varied) == {run.path: run.status() for run in Store(varied).runs()}
    (run, *_) = small(tmp_path, 1)
    (run.path / "status.json").write_text('{"state": "lost"}')
    (status,) = states(tmp_path).values()
    assert isinstance(status, BadInput)
    assert "names the state 'lost'" in str(status)


def test_a_sweep_leaves_the_index_up_to_date(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        (
            "experiment: x\nbase: {model: {base: tiny-random}, train: {steps: 2, threads: 1}, "
            "schedule: {warmup_steps: 0}}\naxes: {train.seed: [0, 1]}\n"
        ),
        encoding="utf-8",
    )
    assert (
        command("sweep", tmp_path / "sweep.yaml", "--output", tmp_path / "runs", "--quiet").code
        == 0
    )
    table = pq.read_table(tmp_path / "runs" / ".index" / "runs.parquet")
    assert sorted(table["seed"].to_pylist()) == [0, 1]
    assert set(table["status"].to_pylist()) == {"done"}
