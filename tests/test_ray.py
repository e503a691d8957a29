"""Sweeps on a real Ray cluster of this machine give the same bytes as without Ray.

A node is killed in the middle, and another joins.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evilspectra.errors import BadInput
from evilspectra.executors.ray import OnRay
from evilspectra.sweeps.file import load_sweep
from evilspectra.sweeps.run import execute
from tests.support.commands import command
from tests.support.tiny_sweeps import (
    adapters,
    alive,
    descendants,
    runs,
    script,
    stamps,
    until,
    write_sweep,
)

pytest.importorskip("ray")
SIX: dict[str, list[Any]] = {
    "optimizer": [{"name": "adamw", "lr": 3e-3}, {"name": "muon", "lr": 3e-3}],
    "train.seed": [0, 1, 2],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVILSPECTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without cores and two nodes with one core and, nominally, one graphics card each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False},
    )
    for _ in range(2):
        nodes.add_node(num_cpus=1, num_gpus=1, node_ip_address="127.0.0.1")
    yield nodes
    nodes.shutdown()


#: Carries a sweep out on a cluster, and says how often each process loaded the base.
DRIVER = """
import sys
from evilspectra.sweeps.run import execute
from evilspectra.executors.ray import OnRay
from evilspectra.sweeps.file import load_sweep

class Heard(OnRay):
    def run(self, *arguments):
        for report in super().run(*arguments):
            print("loads", report.loads, file=sys.__stdout__, flush=True)
            yield report

outcomes = execute(load_sweep({path!r}), Heard({address!r}, cards=0.5), quiet=True)
sys.exit(any(outcome.failed for outcome in outcomes))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # a cluster of three, on a machine that may be busy
def test_a_node_is_killed_in_the_middle_and_another_joins(cluster: Any, tmp_path: Path) -> None:
    execute(load_sweep(str(write_sweep(tmp_path / "local", 60, SIX))), quiet=True)
    undisturbed = adapters(tmp_path / "local")
    folder = tmp_path / "cluster"
    path = write_sweep(folder, 60, SIX)
    driver = script(DRIVER.format(path=str(path), address=cluster.address), tmp_path)
    until(
        lambda: (
            len([run for run in runs(folder).values() if run.resume_file.exists()]) >= 2
            or driver.poll() is not None
        )
    )
    finished = stamps(folder)
    assert len(finished) < 6
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    assert driver.poll() is None, driver.communicate()
    cluster.add_node(num_cpus=1, num_gpus=1, node_ip_address="127.0.0.1")
    out, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, (out, err)
    assert adapters(folder) == undisturbed
    assert len(undisturbed) == 6
    assert {name: stamp for name, stamp in stamps(folder).items() if name in finished} == finished
    # a Ray process keeps its base, and Ray's messages go elsewhere
    assert set(out.splitlines()) == {"loads 1"}, out


@pytest.mark.slow
def test_a_cluster_of_its_own_listens_on_this_machine_alone_and_ends_with_the_sweep(
    tmp_path: Path,
) -> None:
    """Checks which addresses the processes listen at while a run trains."""
    path = write_sweep(tmp_path, 400, {"train.seed": [0]})
    running = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from evilspectra.cli.main import main; main()",
            "sweep",
            str(path),
            "--executor",
            "ray",
            "--quiet",
        ],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(
        lambda: (
            any(run.resume_file.exists() for run in runs(tmp_path).values())
            or running.poll() is not None
        )
    )
    below = descendants(running.pid)
    listening = [address for pid in [running.pid, *below] for address in listens(pid)]
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, (out, err)
    assert "1 runs: 1 trained, 0 done before, 0 failed" in out
    assert listening
    assert {address for address in listening if not address.startswith("127.")} == set()
    until(lambda: not any(alive(pid) for pid in below), 30)


def listens(pid: int) -> list[str]:
    """The IPv4 and IPv6 addresses that a process listens at."""
    try:
        inodes = {
            os.readlink(link).removeprefix("socket:[").removesuffix("]")
            for link in Path(f"/proc/{pid}/fd").iterdir()
            if os.path.islink(link)
        }
    except OSError:
        return []
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].split(":")[0])
                if table == "tcp":
                    addresses.append(".".join(str(part) for part in reversed(raw)))
                else:
                    octets = b"".join(raw[start : start + 4][::-1] for start in range(0, 16, 4))
                    addresses.append(
                        ".".join(str(part) for part in octets[12:])
                        if octets[:12] == b"\0" * 10 + b"\xff\xff"
                        else octets.hex()
                    )
    return addresses


def test_without_ray_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = command(
        "sweep", write_sweep(tmp_path, 2, {"train.seed": [0]}), "--executor", "ray", "--quiet"
    )
    assert (done.code, done.sentence) == (
        2,
        "--executor ray needs Ray: pip install 'evilspectra[ray]', or choose another executor",
    )


def test_part_of_a_card() -> None:
    assert OnRay(cards=0.5).cards == 0.5
    assert OnRay("10.0.0.5:6379").location == "on the Ray cluster 10.0.0.5:6379"
    with pytest.raises(BadInput, match=r"--gpus-per-run 1\.5 is refused"):
        OnRay(cards=1.5)
