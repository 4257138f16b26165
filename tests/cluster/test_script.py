"""`--write-script`: what plain sbatch runs, without submitit."""

from pathlib import Path

import pytest

from mmsada_hpc.cluster.job_record import read_jobs
from mmsada_hpc.data.store import Store
from tests.cluster.cluster import Cluster
from tests.cluster.runs import WATCH, Run, launcher, profile
from tests.train.test_law1 import tiny_run

STEPS = ("train.micro_batch=2", "train.stage1.steps=60", "train.stage2.steps=20")


@pytest.mark.slow
def test_a_plain_script_trains_and_is_requeued(cluster: Cluster, tiny_store: Store, tmp_path: Path) -> None:
    run, script = Run(cluster, tmp_path / "run"), tmp_path / "job.sh"
    words = tiny_run(tiny_store, run.dir, *STEPS, *WATCH)
    flags: list[str | Path] = ["--config", "default.yaml", "--cluster", profile(tmp_path), "--write-script", script]
    assert f"sbatch {script}" in launcher(cluster, *words, *flags)
    assert "submitit.core" not in script.read_text()
    assert not read_jobs(run.dir)
    job_id = cluster.sbatch(script)
    run.wait_step(10)
    assert run.job_id == job_id
    run.signal("USR2")
    assert run.wait_result()["steps"] == 80
    assert [start["start"].partition("-")[0] for start in run.starts] == [f"{job_id}.0", f"{job_id}.1"]
    assert "goes back to the queue" in run.said()
    assert len(read_jobs(run.dir)) == 1, "a requeued job is still the same"
    assert Path(read_jobs(run.dir)[0].stdout).is_file()
