"""`mmsada doctor` on every node of a real Slurm, through the queue and inside an allocation."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mmsada_hpc.doctor.runner import CHECKS
from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError

PROFILE = "executor: slurm\nminutes: 30\ncpus_per_task: 1\ninterface: eth0\n"
DOCTOR = (sys.executable, "-m", "mmsada_hpc.cli", "doctor", "--nodes", "2")
QUICK = "network,host,slurm"
SKIP = ("--skip", ",".join(name for name in CHECKS if name not in QUICK.split(",")))


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(PROFILE)
    return path


def lines_of(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in found["between"]}


def test_both_nodes_are_found_fit(cluster: Cluster, profile: Path) -> None:
    words: list[str | Path] = [*DOCTOR, "--cluster", profile, "--json", "--wait", "60", "--floor", "10"]
    found = json.loads(cluster.run(words, timeout=90))
    assert sorted(found["hosts"]) == cluster.nodes[:2]
    for node, lines in found["hosts"].items():
        seen = {line["name"]: line for line in lines}
        assert not [line for line in lines if line["level"] == "fail"]
        assert seen["host name"]["seen"] == {"host": node, "address": cluster.address(node)}
        assert seen["partition low"]["text"] == "PreemptMode=REQUEUE: SIGTERM, 20 s to save, then SIGKILL"
        assert {"conv3d", "codecs", "mpi", "time to save"} < set(seen)
    between = lines_of(found)
    assert list(between) == ["names", "name look-up", "shared folder", "clocks", "gloo all-reduce"]
    assert {line["level"] for line in between.values()} == {"ok"}


@pytest.mark.slow
def test_a_folder_that_is_not_shared_fails_and_names_the_node(cluster: Cluster) -> None:
    # Inside an allocation; `salloc` ends with the code of its command.
    words: list[str | Path] = [
        "salloc",
        "--nodes=2",
        "--job-name=doctor",
        *DOCTOR,
        *SKIP,
        "--folder",
        cluster.private_folder,
    ]
    first, second = cluster.nodes[:2]
    with pytest.raises(ClusterError, match=f"of {first} is not what {second} sees under that name") as told:
        cluster.run(words, timeout=60)
    assert "both nodes" in str(told.value)


@pytest.mark.slow
def test_a_queue_that_does_not_start_is_told_in_time(cluster: Cluster, profile: Path) -> None:
    profile.write_text(PROFILE + 'sbatch: {begin: "now+3600"}\n')
    with pytest.raises(ClusterError, match="no 2 nodes within 2 s"):
        cluster.run([*DOCTOR, "--cluster", profile, "--wait", "2"], timeout=30)
    assert "mmsada-doctor" not in cluster.run(["squeue", "--noheader", "--format=%j"]), "its job is not left queued"
