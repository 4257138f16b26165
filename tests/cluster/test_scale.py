"""`submit.py scale run` on a real Slurm: an array for each number of nodes; killed half-way, only what is missing is
queued again, and goes on.
"""

import os
import re
import signal
from pathlib import Path

import pytest

from mmsada_hpc.cluster.job_record import read_jobs
from mmsada_hpc.data.store import Store
from tests.cluster.cluster import Cluster
from tests.cluster.runs import Run, launcher, profile
from tests.scaling.studies import real_study

PARTS = {"weak": {"nodes": [1, 2], "micro_batch": 8, "optimizer": "sgd", "rule": "sqrt", "seed": [0, 1]}}
SETTINGS = {
    "train.stage1.steps": 80,  # of 8 clips: half as many updates on two nodes
    "train.stage2.steps": 20,
    "train.stage1.lr": 1e-5,  # at a higher one a seed diverges
    "train.stage2.lr": 1e-5,
    "checkpoint.every": 5,
    "watch.step_seconds": 15,
    "watch.heartbeat_seconds": 1,
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_study_on_two_numbers_of_nodes_is_killed_and_goes_on(
    cluster: Cluster, tiny_store: Store, tmp_path: Path
) -> None:
    study = real_study(tiny_store, tmp_path, PARTS, cluster=str(profile(tmp_path)), set=SETTINGS)
    command: list[str | Path] = ["scale", "run", study, "--parallel", "1"]
    said = launcher(cluster, *command, timeout=240)
    assert "an array of 2 cells, each on 1 node x 1 ranks" in said
    assert "an array of 2 cells, each on 2 nodes x 1 ranks" in said
    names = [f"n{nodes}x1-m8-a1/sgd-{rule}/{seed}" for nodes, rule in ((1, "sqrt"), (2, "sqrt")) for seed in (0, 1)]
    one_0, one_1, two_0, two_1 = runs = [Run(cluster, tmp_path / "runs/weak" / name) for name in names]
    arrays = [run.job_id.partition("_")[0] for run in runs]
    assert arrays[0] == arrays[1] != arrays[2] == arrays[3]
    assert cluster.show_job(two_1.job_id)["NumNodes"].startswith("2")
    again = launcher(cluster, *command, timeout=240)
    assert again.count("has job") == 4 and again.count("nothing to queue") == 2
    jobs = {run.dir: run.job_id for run in runs}

    cluster.run(["scancel", two_1.job_id])  # waits for its turn
    two_0.wait_step(12)
    os.kill(two_0.pids()[1], signal.SIGKILL)
    two_0.wait_gone()
    assert two_0.result is None
    said = launcher(cluster, *command, timeout=240)
    assert "queued 2 runs, 2 ranks each" in said
    assert [run.job_id == jobs[run.dir] for run in runs] == [True, True, False, False], "the others are left alone"
    for run in (one_0, one_1):
        assert run.wait_result(timeout=300)["steps"] == 100
    for run in (two_0, two_1):
        assert run.wait_result(timeout=300)["steps"] == 50
        assert [row["global_step"] for row in run.rows("train")] == list(range(1, 51))
    said = Path(read_jobs(two_0.dir)[-1].stdout).read_text()
    assert re.search(r"going on from step \d+ of stage 1", said), said
    assert "nothing to run" in launcher(cluster, *command, timeout=240)
