"""A job runs the code that was submitted, whatever is edited while it waits."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmsada_hpc.cluster.job_record import read_jobs
from mmsada_hpc.data.store import Store
from tests.cluster.cluster import Cluster
from tests.cluster.runs import CHECKOUT, PROFILE, Run
from tests.train.test_law1 import tiny_run

BREAK = "\nraise RuntimeError('edited after the job was submitted')\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout that Python imports both packages from."""
    folder = tmp_path / "checkout"
    for name in ("mmsada_hpc", "kernels", "configs", "launch"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "mmsada_kernels").symlink_to("kernels")
    return folder


def test_a_waiting_job_does_not_see_what_is_edited(
    cluster: Cluster, tiny_store: Store, checkout: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "held.yaml"
    profile.write_text(PROFILE.format(nodes=2, tasks=1) + "sbatch: {hold: true}\n")
    run = Run(cluster, tmp_path / "run")
    words: list[str | Path] = [*tiny_run(tiny_store, run.dir), "--config", "default.yaml", "--cluster", profile]
    # The folder from which it is submitted is the job's working folder, and its PYTHONPATH goes with it.
    environ = {"PYTHONPATH": str(checkout)}
    cluster.run([sys.executable, checkout / "launch/submit.py", *words], cwd=checkout, env=environ, timeout=90)
    for edited in ("mmsada_hpc/train/run.py", "kernels/reference.py"):
        with open(checkout / edited, "a") as file:
            file.write(BREAK)
    for module in ("mmsada_hpc.train.run", "mmsada_kernels.reference"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            cwd=checkout,
            env={**cluster.env, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "edited after the job was submitted" in done.stderr, "the edit would break the job"
    assert cluster.state(run.job_id) == "PENDING"
    cluster.run(["scontrol", "release", run.job_id])
    cluster.wait_for(run.job_id, {"COMPLETED"}, timeout=150)  # one that fails is told at once, by what it printed
    assert run.result is not None and run.result["steps"] == 3
    (job,) = read_jobs(run.dir)
    copied = run.dir / job.code / "mmsada_kernels/reference.py"
    assert copied.read_text() == (CHECKOUT / "kernels/reference.py").read_text()
    assert run.starts[0]["git"]["commit"] == "no git", "the copy was no git checkout"
