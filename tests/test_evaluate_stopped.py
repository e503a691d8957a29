"""The evaluation stage when it is stopped, and when files cannot be read or written."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from evilspectra.errors import BadInput
from evilspectra.evaluation import evaluate as stage
from evilspectra.evaluation.evaluate import evaluate
from evilspectra.evaluation.measured import measured
from evilspectra.targets.find import Target
from tests.support.commands import left_in
from tests.support.evaluations import (
    copied_targets,
    done,
    train_two,
)
from tests.support.small_items import (
    answers,
    files,
    own,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_two(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def two(trained: Path, tmp_path: Path) -> list[Target]:
    """Two runs that were not measured before."""
    return copied_targets(trained, tmp_path)


# --- stopped and gone on --------------------------------------------------------------------------


@pytest.fixture
def undisturbed(two: list[Target], tmp_path: Path) -> dict[str, bytes]:
    """The files of a run whose answers were sampled without interruption; they are removed."""
    done(two[:1], answers(tmp_path))
    contents = files(two[0].results)
    shutil.rmtree(two[0].results.folder / "evaluations")
    shutil.rmtree(tmp_path / "cache")
    return contents


@pytest.mark.parametrize("batches", [1, 2, 4, 5])
def test_stopped_in_the_middle_of_sampling_it_ends_in_the_same_bytes(
    two: list[Target],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    batches: int,
) -> None:
    """Three batches of base answers, then three of the adapter's; none is sampled twice."""
    sample, calls = stage.sample, list[int]()

    def stopped(*arguments: Any) -> Any:
        if len(calls) == batches:
            raise KeyboardInterrupt
        calls.append(1)
        return sample(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "sample", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(two[:1], answers(tmp_path))
    calls.clear()
    monkeypatch.setattr(
        stage, "sample", lambda *arguments: (calls.append(1), sample(*arguments))[1]
    )
    done(two[:1], answers(tmp_path))
    assert len(calls) == 6 - batches
    assert files(two[0].results) == undisturbed
    assert not [name for name in left_in(tmp_path) if ".parts" in name or name.endswith(".tmp")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork to start a process quickly")
def test_killed_in_the_middle_of_sampling_it_ends_in_the_same_bytes(
    two: list[Target],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)  # a forked process must not inherit a pool of threads
    sample = stage.sample
    with monkeypatch.context() as patch:
        patch.setattr(stage, "sample", lambda *arguments: (time.sleep(0.1), sample(*arguments))[1])
        for wanted in (
            "cache/**/answers/*.parts/0001.parquet",
            "runs/**/answers/*.parts/0000.parquet",
        ):
            pid = os.fork()
            if pid == 0:
                try:
                    evaluate(two[:1], answers(tmp_path))
                finally:
                    os._exit(0)
            deadline = time.monotonic() + 30
            while not list(tmp_path.glob(wanted)) and time.monotonic() < deadline:
                time.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert files(two[0].results) != undisturbed
    done(two[:1], answers(tmp_path))
    assert files(two[0].results) == undisturbed


# --- files that cannot be read or written ---------------------------------------------------------


def test_a_damaged_file_of_the_cache_is_named(two: list[Target], tmp_path: Path) -> None:
    done(two[:1], own(tmp_path))
    for path in (tmp_path / "cache").rglob("*-00000000.parquet"):
        path.write_bytes(b"PAR1")
    ((_, error),) = evaluate(two[1:], own(tmp_path)).failed
    assert isinstance(error, BadInput)
    assert str(error).startswith(str(tmp_path / "cache" / "measured"))
    assert str(error).endswith(": remove that file, and measure again")


def test_a_damaged_file_of_a_run_is_named_where_it_is_read(
    two: list[Target], tmp_path: Path
) -> None:
    done(two[:1], own(tmp_path))
    (measuring,) = two[0].results.instruments("probe")
    path = two[0].results.folder / "evaluations" / "probe" / f"{measuring.id}-00000004.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        BadInput,
        match=r"-00000004\.parquet cannot be read \(.*\): remove that file, and measure again$",
    ):
        measured(two[0].results)
    path.unlink()
    done(two[:1], own(tmp_path))
    assert measured(two[0].results).drift is not None


@pytest.mark.parametrize(
    ("location", "setting"), [("cache", "EVILSPECTRA_CACHE"), ("runs", "output.folder")]
)
def test_a_folder_that_cannot_be_written_is_named_with_its_setting(
    two: list[Target],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    location: str,
    setting: str,
) -> None:
    replace = os.replace

    def refuse(source: Path, to: Path) -> None:
        if str(to).startswith(str(tmp_path / location)):
            raise PermissionError(13, "Permission denied")
        replace(source, to)

    monkeypatch.setattr(os, "replace", refuse)
    ((_, error),) = evaluate(two[:1], own(tmp_path)).failed
    assert isinstance(error, BadInput)
    assert (
        f"cannot be written (Permission denied): choose another {setting}, or correct the "
        "folder's rights"
    ) in str(error)
    assert not [name for name in left_in(tmp_path) if name.endswith(".tmp")]


def test_a_cache_that_is_a_file(two: list[Target], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    ((_, error),) = evaluate(two[:1], own(tmp_path)).failed
    assert "set EVILSPECTRA_CACHE to a folder, or to a name that is free" in str(error)
