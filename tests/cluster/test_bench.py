"""`submit.py bench` runs a benchmark on every rank of a job of a real Slurm."""

import json
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.runs import launcher, profile, until


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_comm_measures_between_and_inside_nodes(cluster: Cluster, tmp_path: Path) -> None:
    words = ("--cluster", profile(tmp_path, nodes=2, tasks=2), "--out", tmp_path / "out", "comm", "--quick")
    said = launcher(cluster, "bench", *words, "--sizes", "64K", "--repeats", "1", "--clips", "2")
    assert "4 ranks on 2 nodes" in said
    job_id = said.split("job ")[1].split(":")[0]
    until(lambda: cluster.state(job_id) not in ("PENDING", "RUNNING", "COMPLETING"), timeout=480, what=f"job {job_id}")
    printed = "".join(path.read_text() for path in sorted((tmp_path / "out/submitit").glob("*_log.*")))
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    first, second = cluster.nodes[:2]
    gloo = {row["details"]["team"]: row for row in rows if row["name"].startswith("gloo")}
    assert list(gloo) == ["4 ranks on 2 nodes", "2 ranks on 2 nodes", "2 ranks on 1 node"], printed
    assert [row["details"]["hosts"] for row in gloo.values()] == [
        [first, first, second, second],
        [first, second],
        [first, first],
    ]
    assert all(row["world_size"] == 4 and row["details"]["interface"] == "eth0" for row in gloo.values())
    assert all(row["command"].startswith("mmsada bench comm") for row in rows)
    engines = {row["details"].get("engine"): row for row in rows if "engine" in row["details"]}
    assert {"DDP", "DeepSpeed stage 0", "DeepSpeed stage 1 overlap"} < set(engines)
    assert f"{first} has ranks 0, 1; {second} has ranks 2, 3" in printed
