"""status, logs and cancel of real runs on the test cluster."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from mmsada_hpc.cluster.job_record import CANCELLED_FILE
from mmsada_hpc.data.store import Store
from mmsada_hpc.jobs.find import Found
from mmsada_hpc.jobs.summary import Summary, look
from tests.cluster.cluster import Cluster
from tests.cluster.runs import CHECKOUT, WATCH, Run, launcher, profile, submit, until
from tests.train.test_law1 import tiny_run


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    yield tmp_path
    cluster.drain_jobs()


def queue(cluster: Cluster, store: Store, run_dir: Path, steps: int, *, nodes: int) -> Run:
    lengths = [f"train.stage{stage}.steps={steps}" for stage in (1, 2)]
    words = tiny_run(store, run_dir, "train.micro_batch=2", "checkpoint.every=25", *WATCH, *lengths)
    return submit(cluster, words, "--cluster", profile(run_dir.parent, nodes=nodes), run_dir=run_dir)


def status(run: Run) -> Summary:
    (found,) = look([Found(run.dir, run.dir.name)]).summaries
    return found


def wait_state(run: Run, state: str, *, timeout: float = 60) -> Summary:
    until(lambda: status(run).state == state, timeout=timeout, what=f"state {state}\n{run.said()[-2000:]}")
    return status(run)


def following(run: Run, out: IO[str] | int) -> subprocess.Popen[str]:
    words = [sys.executable, str(CHECKOUT / "launch/submit.py"), "logs", "-f", str(run.dir)]
    return subprocess.Popen(words, cwd=CHECKOUT, env=run.cluster.env, stdout=out, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_run_is_seen_waiting_running_requeued_cancelled_and_another_one_finished(
    cluster: Cluster, tiny_store: Store, folder: Path
) -> None:
    blocker = cluster.sbatch(
        "--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null", "--time=2", "--wrap=sleep 100"
    )
    cluster.wait_for(blocker, {"RUNNING"})
    long = queue(cluster, tiny_store, folder / "long", 2000, nodes=2)
    short = queue(cluster, tiny_store, folder / "short", 3, nodes=1)
    waiting = wait_state(long, "waiting")
    assert waiting.note in ("Resources", "Priority"), waiting
    said = folder / "said"
    with said.open("w") as out, following(long, out) as follower:
        until(lambda: "waits for its nodes" in said.read_text(), timeout=15, what="a word on waiting")
        cluster.run(["scancel", blocker])
        long.wait_step(10)
        running = status(long)
        assert (running.state, list(running.hosts)) == ("running", cluster.nodes[:2])
        assert (running.clips_per_s or 0) > 0 and (running.eta_s or 0) > 0 and running.steps == 4000
        long.signal("USR2")
        assert wait_state(long, "requeued").job_id == long.job_id
        until(lambda: "is requeued, waiting for a node" in said.read_text(), timeout=15, what="a word on requeueing")
        cancelled = launcher(cluster, "cancel", long.dir)
        assert f"cancelled job {long.job_id}" in cancelled and "gone; the newest checkpoint is step" in cancelled
        assert follower.wait(20) == 1
    assert (long.dir / CANCELLED_FILE).exists()
    assert status(long).state == "cancelled"
    lines = said.read_text().splitlines()
    assert any(line.startswith("stage 1/2  step ") for line in lines)
    assert "is cancelled" in lines[-1] and not any(line.startswith("submitit ") for line in lines)
    with following(short, subprocess.DEVNULL) as follower:
        assert follower.wait(60) == 0
    assert status(short).state == "finished"
    assert "nothing to cancel" in launcher(cluster, "cancel", short.dir)
    assert not (short.dir / CANCELLED_FILE).exists()


@pytest.mark.slow
def test_a_cancelled_run_has_saved_what_it_had_done(cluster: Cluster, tiny_store: Store, folder: Path) -> None:
    run = queue(cluster, tiny_store, folder / "run", 2000, nodes=1)
    run.wait_step(7)
    assert "cancelled job" in launcher(cluster, "cancel", "--wait", "0", run.dir)
    run.wait_gone()
    until(lambda: status(run).state == "cancelled", timeout=10, what="cancelled")
    text = launcher(cluster, "status", run.dir)
    assert f"saved      step {run.step} of stage 1" in text
    assert f"mmsada resume {run.dir}" in text
    assert "CANCELLED" in text or "gone from Slurm" in text
