"""The run directory: complete files or none, and one process at a time.

Records read the same however they were written.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from evilspectra.config import loading as configs
from evilspectra.errors import BadInput, EvilspectraError
from evilspectra.store.files import write_atomically
from evilspectra.store.labels import run_id
from evilspectra.store.records import (
    TABLES,
    HeldoutRecord,
    MeasureRecord,
    SpectrumRecord,
    StepRecord,
    columns,
)
from evilspectra.store.run import RunFolder, Status, Store, find_run
from tests.support.commands import left_in

CONFIG = configs.build({"output": {"experiment": "x"}})


def step(number: int) -> StepRecord:
    return StepRecord(number, 1 / number, 1e-3, 1.0, 10, 5, None, None, 0.1)


def some_run(
    root: Path,
    digest: str = "0123456789",
    state: str | None = "done",
    **values: Any,
) -> RunFolder:
    config = configs.build(configs.merge({"output": {"experiment": "x"}}, values))
    run = Store(root).run(config, digest)
    run.begin(config, {})
    if state:
        run.set_status(Status(state, None, 1, 1))
    return run


def refusal(action: Any) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- writing --------------------------------------------------------------------------------------


def test_a_file_and_a_folder_are_written_whole_and_replaced(tmp_path: Path) -> None:
    def folder(text: str) -> Any:
        return lambda path: (
            path.mkdir(),
            (path / "sub").mkdir(),
            (path / "sub" / text).write_text(text),
        )

    for text in ("one", "two"):
        write_atomically(tmp_path / "new" / "file", lambda path, text=text: path.write_text(text))
        write_atomically(tmp_path / "folder", folder(text))
        assert left_in(tmp_path) == [f"folder/sub/{text}", "new/file"]
        assert (tmp_path / "new" / "file").read_text() == text


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.EIO, "broken"),
        RuntimeError("torch says no"),
        KeyboardInterrupt(),
        BadInput("no"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_fails_half_way_leaves_what_was_there(
    tmp_path: Path,
    failure: BaseException,
    kind: str,
    before: bool,
) -> None:
    target = tmp_path / "place"
    if before and kind == "file":
        target.write_text("old")
    elif before:
        target.mkdir()
        (target / "part").write_text("old")

    def write(path: Path) -> None:
        if kind == "folder":
            path.mkdir()
        (path / "part" if kind == "folder" else path).write_text("half of it")
        raise failure

    with pytest.raises(EvilspectraError if isinstance(failure, OSError) else type(failure)):
        write_atomically(target, write)
    old = target if kind == "file" else target / "part"
    assert left_in(tmp_path) == ([str(old.relative_to(tmp_path))] if before else [])
    assert not before or old.read_text() == "old"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_disk_that_is_full_at_the_last_moment_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    write = (
        (lambda path: path.write_text("x"))
        if kind == "file"
        else lambda path: (path.mkdir(), (path / "a").write_text("x"))
    )
    with pytest.raises(EvilspectraError, match="is full: free some space or set output") as caught:
        write_atomically(tmp_path / "place", write)
    assert caught.value.exit_code == 1
    assert left_in(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a file system needs more rights than this user has")
    yield disk
    subprocess.run(
        ["umount", "--lazy", disk], check=True
    )  # torch forgets to close what it failed to write


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(1 << 20)),
        lambda path: torch.save({"a": torch.zeros(1 << 18)}, path),
        lambda path: torch.save({str(i): torch.zeros(100) for i in range(400)}, path),
        lambda path: save_file({"a": torch.zeros(1 << 18)}, path),
        lambda path: pd.DataFrame({"a": torch.rand(1 << 17).numpy()}).to_parquet(path),
    ],
    ids=["bytes", "torch", "torch, many small", "safetensors", "parquet"],
)
def test_a_full_disk_is_one_sentence_whoever_writes(small_disk: Path, write: Any) -> None:
    with pytest.raises(
        EvilspectraError, match=r"^the disk that holds .*/place is full: free some space"
    ) as caught:
        write_atomically(small_disk / "place", write)
    assert caught.value.exit_code == 1
    assert left_in(small_disk) == []


def test_a_place_that_cannot_hold_a_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, part in (
        (tmp_path / "file" / "run", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        run = RunFolder(path)
        assert run.status() == Status("queued")
        with pytest.raises(BadInput, match=part), run.locked():
            pass


# --- tables ---------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Appends up to a step, truncations to the end of a part (of a resume state), and merges."""
    ends, events = [0], []
    for kind in draw(
        st.lists(
            st.sampled_from(["append", "append", "truncate", "merge", "stopped merge"]), max_size=12
        )
    ):
        if kind == "append":
            ends.append(ends[-1] + draw(st.integers(1, 3)))
        elif kind == "truncate":
            ends = ends[: draw(st.integers(1, len(ends)))]
        events.append((kind, ends[-1]))
    return events


def merge_and_stop(run: RunFolder, keep: int) -> None:
    """Merges, then puts back some of the parts, as if the process had been stopped in between."""
    parts, aside = run.path / "steps.parts", run.path / "aside"
    if parts.exists():
        shutil.copytree(parts, aside)
        run.merge()
        parts.mkdir()
        for path in sorted(aside.iterdir())[keep::2]:
            shutil.copy(path, parts)
        shutil.rmtree(aside)


@given(histories(), st.integers(0, 1))
@settings(deadline=None, max_examples=60)
def test_any_history_reads_as_what_was_appended_and_not_dropped(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]], keep: int
) -> None:
    run = RunFolder(tmp_path_factory.mktemp("run"))
    steps: list[int] = []
    heldout: list[int] = []
    for kind, now in events:
        if kind == "append":
            new = list(range(steps[-1] + 1 if steps else 1, now + 1))
            run.append("steps", [step(number) for number in new], now)
            run.append("heldout", [HeldoutRecord(now, 1.0, 1)] if now % 2 else [], now)
            steps, heldout = steps + new, heldout + [now] * (now % 2)
        elif kind == "truncate":
            run.truncate(now)
            steps, heldout = (
                [step for step in steps if step <= now],
                [step for step in heldout if step <= now],
            )
        elif kind == "merge":
            run.merge()
            assert not list(run.path.glob("*.parts"))
        else:
            merge_and_stop(run, keep)
        assert run.read("steps")["step"].tolist() == steps
        assert run.read("heldout")["step"].tolist() == heldout
    run.truncate(-1)
    assert all(run.read(table).empty for table in TABLES)


def test_a_run_stopped_while_merging_and_resumed_from_an_earlier_state_loses_nothing(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    for low, high in ((1, 10), (11, 13)):
        run.append("steps", [step(number) for number in range(low, high + 1)], high)
    run.merge()  # ...and the process ends before it says done; its resume state is of step 10
    run.truncate(10)
    assert run.read("steps")["step"].tolist() == list(range(1, 11))
    run.append("steps", [step(number) for number in range(11, 14)], 13)
    run.merge()
    assert run.read("steps")["step"].tolist() == list(range(1, 14))


def test_parts_are_in_the_order_of_steps_however_many_digits(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in (9, 99_999_999, 100_000_000):
        run.append("steps", [step(number)], number)
    assert run.read("steps")["step"].tolist() == [9, 99_999_999, 100_000_000]


ROWS: dict[str, list[Any]] = {
    "steps": [
        StepRecord(1, 0.1, 1e-3, 2.0, 10, 5, None, None, 0.5),
        StepRecord(2, 0.1, 1e-3, 2.0, 10, 5, 0.25, 0.5, 0.5),
    ],
    "heldout": [HeldoutRecord(0, 2.5, 7), HeldoutRecord(2, 1.5, 7)],
    "spectra": [SpectrumRecord(2, "a.b", 0, 1.0), SpectrumRecord(2, "ü", 1, 5e-324)],
    "measures": [
        MeasureRecord(1, "a", 0.0, None, None, None, None, "zero"),
        MeasureRecord(2, "a", 1.0, 1.5, 0.1, float("inf"), 0.5, "gram"),
    ],
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("merged", [True, False])
def test_rows_come_back_as_they_were_and_an_empty_table_has_its_columns(
    tmp_path: Path, table: str, merged: bool
) -> None:
    run = RunFolder(tmp_path)
    assert list(run.read(table)) == list(columns(TABLES[table]))
    run.append(table, [], 5)
    assert left_in(tmp_path) == []
    run.append(table, ROWS[table], 5)
    if merged:
        run.merge()
    back = run.read(table)
    expected = pd.DataFrame(
        [{name: getattr(row, name) for name in columns(TABLES[table])} for row in ROWS[table]]
    )
    pd.testing.assert_frame_equal(back, expected.astype(back.dtypes), check_exact=True)
    assert all(
        name in ("int64", "float64", "object", "str", "string") for name in map(str, back.dtypes)
    )


def test_truncating_drops_later_checkpoints_and_what_a_killed_write_left(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in (1, 5, 20):
        run.checkpoint(number).mkdir(parents=True)
    for name in (
        ".adapter.77.tmp/half",
        "checkpoints/.9.77.tmp/half",
        "steps.parts/.00000009.parquet.77.tmp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    run.truncate(5)
    assert list(run.checkpoints()) == [1, 5]
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("where", ["steps.parquet", "steps.parts/00000001.parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", "another table"])
def test_a_damaged_table_is_one_sentence(tmp_path: Path, where: str, content: bytes | str) -> None:
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, str):
        pd.DataFrame({"x": [1]}).to_parquet(path)
    else:
        path.write_bytes(content)
    text = refusal(lambda: RunFolder(tmp_path).read("steps"))
    assert text.startswith(f"{path} cannot be read (")
    assert "restore it, or remove the folder of the run and run again" in text


# --- status and lock ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        Status("running", step=3, total_steps=9),
        Status("failed", 'the "reason"\nin two lines', None, 9),
        Status("done", None, 9, 9),
        Status("interrupted", "why"),
        Status("queued"),
    ],
)
def test_a_status_is_read_as_it_was_written(tmp_path: Path, status: Status) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.status() == Status("queued")
    with run.locked():
        run.set_status(status)
        assert run.status() == status
    if status.state == "running":
        assert run.status().state == "interrupted"
        assert (run.status().step, run.status().total_steps) == (3, 9)
        assert "run the same command again" in str(run.status().reason)
    else:
        assert run.status() == status


HOLD = """
import sys, pathlib
from evilspectra.store.run import RunFolder, Status
run = RunFolder(pathlib.Path(sys.argv[1]))
with run.locked():
    run.set_status(Status("running", step=1, total_steps=2))
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_until_the_first_ends_even_by_a_kill(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, run.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    try:
        assert run.status().state == "running"
        with pytest.raises(BadInput) as caught, run.locked():
            pass
        assert str(caught.value) == (
            f"{run.path} is being written by another process: wait until it ends, or stop "
            "it, then run the same command again"
        )
        assert run.status().state == "running"
    finally:
        other.kill()
        other.communicate()
    assert run.status().state == "interrupted"
    with run.locked():
        assert run.status().state == "running"


def test_a_lock_under_which_nothing_was_written_leaves_no_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "experiment" / "run")
    with pytest.raises(BadInput, match="refused"), run.locked():
        raise BadInput("refused")
    assert list((tmp_path / "runs").iterdir()) == []
    with run.locked():
        run.set_status(Status("done"))
    assert left_in(tmp_path) == ["runs/experiment/run/.lock", "runs/experiment/run/status.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"done"',
        "{}",
        '{"state": "finished"}',
        '{"state": null}',
        "[" * 100_000,
    ],
)
def test_a_damaged_status_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content, encoding="utf-8")
    text = refusal(RunFolder(tmp_path).status)
    assert str(tmp_path / "status.json") in text
    assert "restore it, or remove the run's folder and run again" in text


# --- config and provenance ------------------------------------------------------------------------


def test_begin_writes_once_and_reads_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(CONFIG, {"code_version": "1"})
    run.begin(CONFIG, {"code_version": "2"})
    assert run.config() == CONFIG
    assert run.provenance() == {"code_version": "1"}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"optimizer": {"lr": 0.5}}, [f"optimizer.lr: {CONFIG.optimizer.lr} there, 0.5 here"]),
        (
            {"optimizer": {"name": "sgd"}},
            [
                "optimizer.name: adamw there, sgd here",
                "optimizer.betas: [0.9, 0.999] there, absent here",
            ],
        ),
        (
            {"train": {"seed": 1}, "lora": {"rank": 4}},
            ["lora.rank: 16 there, 4 here", "train.seed: 0 there, 1 here"],
        ),
    ],
)
def test_begin_refuses_another_config_and_names_what_differs(
    tmp_path: Path, values: Any, parts: list[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(CONFIG, {})
    before = (run.path / "config.yaml").read_bytes()
    text = refusal(lambda: run.begin(configs.build(values), {}))
    assert text.startswith(f"{run.path} was made with another config (")
    assert all(
        part in text
        for part in [
            *parts,
            "restore its config.yaml, or remove the folder, or set output.experiment to a new name",
        ]
    )
    assert (run.path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"base": "elsewhere", "local_files_only": True}},
        {"data": {"train": "moved.jsonl", "heldout": "h", "local_files_only": True}},
        {"train": {"resume_every": 3}},
        {"output": {"folder": "f", "experiment": "e"}},
    ],
)
def test_begin_does_not_mind_what_does_not_name_a_run(tmp_path: Path, values: Any) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(CONFIG, {})
    run.begin(configs.build(values), {})
    assert run.config() == CONFIG


@pytest.mark.parametrize("content", ["- 1", "train: {steps: 0}", "train: [", "x: 1"])
def test_a_damaged_config_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    assert str(tmp_path / "config.yaml") in refusal(RunFolder(tmp_path).config)


def test_a_missing_provenance_is_one_sentence(tmp_path: Path) -> None:
    assert "provenance.json cannot be read" in refusal(RunFolder(tmp_path).provenance)


# --- finding runs ---------------------------------------------------------------------------------


def test_a_run_is_found_by_folder_id_digest_and_prefix(tmp_path: Path) -> None:
    run = some_run(tmp_path)
    assert run.name == run_id(run.config(), "0123456789") == "adamw-b8-s0-0123456789"
    for name in (str(run.path), run.name, "0123456789", "adamw", run.name[:-1]):
        assert find_run(name, str(tmp_path)).path.resolve() == run.path.resolve(), name
    assert find_run(str(run.path), "nowhere").path == run.path.resolve()


def test_a_name_that_means_several_runs_or_none_is_refused(tmp_path: Path) -> None:
    adamw, adam = (
        some_run(tmp_path, "0000000000"),
        some_run(tmp_path, "1111111111", optimizer={"name": "adam"}),
    )
    text = refusal(lambda: find_run("adam", str(tmp_path)))
    assert text == f"'adam' means 2 runs ({adam.path}, {adamw.path}): name one folder"
    text = refusal(lambda: find_run("adamw-b8-s0-000000000x", str(tmp_path)))
    assert (
        "there is no run 'adamw-b8-s0-000000000x': name a run's folder, or the id of a run "
        f"below {tmp_path}/"
    ) in text
    assert "Did you mean 'adamw-b8-s0-0000000000'?" in text
    assert "which holds none" in refusal(lambda: find_run("x", str(tmp_path / "empty")))
    assert "there is no run ''" in refusal(lambda: find_run("", str(tmp_path)))


def test_the_same_id_in_two_experiments_is_ambiguous(tmp_path: Path) -> None:
    some_run(tmp_path)
    some_run(tmp_path, output={"experiment": "y"})
    assert "means 2 runs" in refusal(lambda: find_run("0123456789", str(tmp_path)))


def test_a_store_finds_its_runs_from_any_level_and_nothing_else(tmp_path: Path) -> None:
    runs = [
        some_run(tmp_path, digest, optimizer={"name": name})
        for digest, name in (("1" * 10, "lion"), ("0" * 10, "muon"))
    ]
    (tmp_path / "config.yaml").write_text("train: {steps: 3}")  # somebody's own file
    shutil.copytree(runs[0].path, tmp_path / "x" / ".lion.tmp")
    assert [run.name for run in Store(tmp_path).runs()] == [run.name for run in runs]
    assert [run.name for run in Store(tmp_path / "x").runs()] == [run.name for run in runs]
    assert [run.name for run in Store(runs[0].path).runs()] == [runs[0].name]
    assert Store(tmp_path / "nothing").runs() == []


def test_a_tilde_in_the_folder_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store(Path("~/runs")).run(CONFIG, "0").path == tmp_path / "runs" / "x" / "adamw-b8-s0-0"


def test_status_json_holds_no_secret_and_is_json(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.set_status(Status("failed", "ü", 1, 2))
    values = json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))
    assert values.keys() == {"state", "reason", "step", "total_steps", "written"}
