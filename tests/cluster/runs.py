"""Real runs through launch/submit.py on the test cluster, and what tests ask of them."""

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from mmsada_hpc.cluster.job_record import read_jobs
from tests.cluster.cluster import Cluster

CHECKOUT = Path(__file__).resolve().parents[2]
TIMINGS = ("time", "seconds", "step_s", "data_wait_s", "clips_per_s")
PROFILE = """
executor: slurm
nodes: {nodes}
tasks_per_node: {tasks}
cpus_per_task: 1
minutes: 10
max_num_timeout: 100   # in a job this short every USR2 counts as a time limit (D31)
signal_delay_s: 30
partition: low
interface: eth0
setup: [export OMP_NUM_THREADS=1, ulimit -c 0]
"""
# Noticed within seconds, as nobody wants to wait for a test.
WATCH = ("watch.step_seconds=15", "watch.heartbeat_seconds=1")


def profile(folder: Path, *, nodes: int = 2, tasks: int = 1) -> Path:
    """A profile of the test cluster."""
    path = folder / f"cluster_{nodes}x{tasks}.yaml"
    path.write_text(PROFILE.format(nodes=nodes, tasks=tasks))
    return path


def launcher(cluster: Cluster, *words: str | Path, timeout: float = 90, cwd: Path = CHECKOUT) -> str:
    """What `python launch/submit.py WORDS` prints, both outputs; ClusterError where it fails."""
    return cluster.run([sys.executable, cwd / "launch/submit.py", *words], timeout=timeout, cwd=cwd)


def until(is_so: Callable[[], bool], *, timeout: float, what: str) -> float:
    """Wait; returns the seconds it took."""
    begin = time.monotonic()
    while not is_so():
        assert time.monotonic() - begin < timeout, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begin


@dataclass(frozen=True)
class Run:
    """A run that was queued."""

    cluster: Cluster
    dir: Path

    @property
    def job_id(self) -> str:
        return read_jobs(self.dir)[-1].job_id

    @property
    def result(self) -> dict[str, Any] | None:
        path = self.dir / "result.json"
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return found

    @property
    def starts(self) -> list[dict[str, Any]]:
        path = self.dir / "run.json"
        found: list[dict[str, Any]] = json.loads(path.read_text())["starts"] if path.is_file() else []
        return found

    def rows(self, *kinds: str) -> list[dict[str, Any]]:
        """Whole rows of metrics.jsonl, without what depends on the clock."""
        path = self.dir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in found if row["kind"] in kinds]

    @property
    def step(self) -> int:
        """Updates done, by the log."""
        return max((row["global_step"] for row in self.rows("train")), default=0)

    def wait_step(self, step: int, *, timeout: float = 120) -> None:
        until(lambda: self.step >= step, timeout=timeout, what=f"step {step} of {self.dir}\n{self.said()[-3000:]}")

    def wait_start(self, number: int, *, timeout: float = 120) -> None:
        """Until the run has been started `number` times, and made an update since."""
        until(lambda: len(self.starts) >= number, timeout=timeout, what=f"start {number}\n{self.said()[-3000:]}")
        begun_at = self.first_steps()[-1] if number > 1 else 0
        self.wait_step(begun_at + 1, timeout=timeout)

    def first_steps(self) -> list[int]:
        """After which update each start went on, by what it said; 0 for the first."""
        said = re.findall(r"going on from step (\d+) of stage (\d)", self.said())
        before = {1: 0, 2: self.stage1_steps}
        return [0, *(int(step) + before[int(stage)] for step, stage in said)]

    @property
    def stage1_steps(self) -> int:
        return int(yaml.safe_load((self.dir / "config.yaml").read_text())["train"]["stage1"]["steps"])

    @property
    def was_requeued(self) -> bool:
        """Whether Slurm has started its last job more than once."""
        return not self.starts[-1]["start"].partition("-")[0].endswith(".0")

    def go_on(self) -> None:
        """`resume`, unless Slurm has queued the job again by itself, which it says once the job has ended."""
        at_work = ("RUNNING", "COMPLETING")
        until(lambda: self.cluster.state(self.job_id) not in at_work, timeout=90, what=f"the end of {self.job_id}")
        if self.cluster.state(self.job_id) not in ("PENDING", "RUNNING"):
            launcher(self.cluster, "resume", self.dir)

    def wait_result(self, *, timeout: float = 180) -> dict[str, Any]:
        """Until the run is finished and its job gone."""
        until(lambda: self.result is not None, timeout=timeout, what=f"the end of {self.dir}\n{self.said()[-3000:]}")
        assert self.result is not None
        self.wait_gone()
        return self.result

    def wait_gone(self, *, timeout: float = 60) -> float:
        """Until Slurm runs nothing of the job any more; returns the seconds."""
        ended = (None, "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL")
        return until(lambda: self.cluster.state(self.job_id) in ended, timeout=timeout, what=f"job {self.job_id} gone")

    def said(self) -> str:
        """Everything the job's ranks and scripts have printed."""
        paths = sorted((self.dir / "submitit").glob("*_log.*"))
        return "".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in paths)

    def signal(self, name: str) -> None:
        """`scancel --signal`: what Slurm does to every rank."""
        self.cluster.run(["scancel", f"--signal={name}", self.job_id])

    def pids(self) -> dict[int, int]:
        """Rank -> process, by the heartbeats of the newest start."""
        from mmsada_hpc.cluster.heartbeat import read_beats

        beats = read_beats(self.dir)
        newest = max(beats, key=lambda beat: beat.time).start
        return {beat.rank: beat.pid for beat in beats if beat.start == newest}

    def checkpoint(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """What the newest one holds."""
        path = sorted((self.dir / "checkpoints").glob("stage*-step*"))[-1]
        loaded: dict[str, dict[str, torch.Tensor]] = torch.load(path / "state.pt", weights_only=True)
        return loaded


def submit(cluster: Cluster, config: tuple[str, ...], *flags: str | Path, run_dir: Path) -> Run:
    """Queue a run by the product's front door."""
    out = launcher(cluster, "--config", "default.yaml", *config, *flags)
    assert "queued as job" in out, out
    return Run(cluster, run_dir)


def assert_same_run(ours: Run, theirs: Run) -> None:
    """Weights, statistics, momentum, every row of the log and the result, bit for bit; timings apart."""
    mine, other = ours.checkpoint(), theirs.checkpoint()
    for part in ("model", "momentum"):
        assert set(mine[part]) == set(other[part]) != set()
        for name, value in other[part].items():
            assert torch.equal(mine[part][name], value), (part, name)
    for kind in ("train", "eval"):
        assert ours.rows(kind) == theirs.rows(kind), kind
    assert ours.result is not None and theirs.result is not None
    assert ours.result["evaluations"] == theirs.result["evaluations"]


def preempt(cluster: Cluster, folder: Path) -> str:
    """A short job of the higher partition that wants all of both nodes; returns its id."""
    script = folder / "high.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    words = ["--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null", "--time=2"]
    return cluster.sbatch(*words, script)
