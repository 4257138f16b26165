"""What befalls a job on a cluster: each once, on a real Slurm, two nodes. The many are in test_survive_often.py."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsada_hpc.cluster.job_record import CANCELLED_FILE
from mmsada_hpc.data.store import Store
from tests.cluster.cluster import Cluster
from tests.cluster.runs import WATCH, Run, assert_same_run, launcher, preempt, profile, submit
from tests.train.test_law1 import tiny_run

STEPS = ("train.micro_batch=2", "train.stage1.steps=60", "train.stage2.steps=60")
SETTINGS = (*STEPS, *WATCH, "eval.every=15", "checkpoint.every=25")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("survive")


@pytest.fixture(scope="module")
def queue(cluster: Cluster, tiny_store: Store, folder: Path) -> Iterator["Queue"]:
    yield Queue(cluster, tiny_store, folder)
    cluster.drain_jobs()


class Queue:
    """Queues runs of one set of settings."""

    def __init__(self, cluster: Cluster, store: Store, folder: Path) -> None:
        self.cluster, self.store, self.folder = cluster, store, folder

    def run(self, name: str, *more: str, nodes: int = 2, tasks: int = 1) -> Run:
        run_dir = self.folder / name
        words = tiny_run(self.store, run_dir, *SETTINGS, *more)
        return submit(self.cluster, words, "--cluster", profile(self.folder, nodes=nodes, tasks=tasks), run_dir=run_dir)


@pytest.fixture(scope="module")
def undisturbed(queue: Queue) -> Run:
    run = queue.run("undisturbed")
    run.wait_result()
    return run


def test_a_run_preempted_by_usr2_and_by_a_higher_partition_ends_as_if_it_had_not_been(
    queue: Queue, undisturbed: Run, cluster: Cluster, folder: Path
) -> None:
    run = queue.run("preempted")
    run.wait_step(10)
    run.signal("USR2")
    run.wait_step(10 + 1 + run.step)
    first = len(run.starts)
    preempt(cluster, folder)
    result = run.wait_result()
    starts = [start["start"].partition("-")[0] for start in run.starts]
    assert starts == [f"{run.job_id}.{n}" for n in range(3)], (first, starts)
    assert result["steps"] == 120
    assert_same_run(run, undisturbed)
    assert "goes back to the queue" in run.said()


def test_a_run_that_a_person_cancels_stays_cancelled(queue: Queue, cluster: Cluster) -> None:
    run = queue.run("scancelled")
    run.wait_step(5)
    cluster.run(["scancel", run.job_id])
    run.wait_gone()
    kept = json.loads((sorted((run.dir / "checkpoints").glob("stage*"))[-1] / "manifest.json").read_text())
    assert kept["position"]["step"] == run.step, "saved when it was told"
    time.sleep(8)  # a requeue would have brought it back by now
    assert cluster.state(run.job_id) in (None, "CANCELLED")
    assert len(run.starts) == 1
    assert "it was cancelled" in run.said()
    launcher(cluster, "resume", run.dir)
    run.wait_step(run.step + 3)
    launcher(cluster, "cancel", run.dir)
    run.wait_gone()
    assert (run.dir / CANCELLED_FILE).exists()
    assert len(run.starts) == 2


def test_a_killed_rank_ends_the_job_and_resume_goes_on_with_one_node(
    queue: Queue, cluster: Cluster, undisturbed: Run
) -> None:
    run = queue.run("killed")
    run.wait_step(30)
    begin = time.monotonic()
    os.kill(run.pids()[1], signal.SIGKILL)
    run.wait_gone()
    assert time.monotonic() - begin < 40
    assert f"no sign of life from rank 1 on {cluster.nodes[1]}" in run.said()
    done = run.step
    launcher(cluster, "resume", run.dir, "--nodes", "1")
    run.wait_result()
    assert [start["world_size"] for start in run.starts] == [2, 1]
    assert "going on from step 25 of stage 1" in run.said(), f"no more lost than {done} - 25 steps"
    ours, theirs = (r.rows("train")[25] for r in (run, undisturbed))
    assert ours["global_step"] == theirs["global_step"] == 26
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
