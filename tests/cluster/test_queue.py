"""What lies between a person's command and the queue: arrays, chains, and no run twice."""

import json
from pathlib import Path

import pytest
import yaml

from mmsada_hpc.cluster.job_record import read_jobs
from mmsada_hpc.data.store import Store
from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError
from tests.cluster.runs import Run, launcher, profile
from tests.train.test_law1 import tiny_run


def grid_file(store: Store, folder: Path) -> Path:
    """Two methods by two seeds."""
    pairs = [word.partition("=") for word in tiny_run(store, folder) if not word.startswith("run.dir")]
    path = folder / "grid.yaml"
    grid = {
        "base": "default.yaml",
        "folder": str(folder / "runs"),
        "set": {key: yaml.safe_load(text) for key, _, text in pairs},
        "axes": {"method": {m: {"method.name": m} for m in ("source_only", "mmsada")}, "seed": [0, 1]},
    }
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


@pytest.mark.slow
def test_a_grid_is_one_array_and_every_run_is_queued_once(cluster: Cluster, tiny_store: Store, tmp_path: Path) -> None:
    held = tmp_path / "held.yaml"
    held.write_text(profile(tmp_path, nodes=1).read_text() + "sbatch: {hold: true}\n")
    command: list[str | Path] = ["--config", grid_file(tiny_store, tmp_path), "--cluster", held, "--parallel", "2"]
    finished = tmp_path / "runs/source_only/0"
    finished.mkdir(parents=True)
    (finished / "result.json").write_text(json.dumps({"seconds": 1.0}))
    (finished / "metrics.jsonl").touch()
    said = launcher(cluster, *command)
    runs = [Run(cluster, tmp_path / "runs" / name) for name in ("source_only/1", "mmsada/0", "mmsada/1")]
    array = runs[0].job_id.partition("_")[0]
    assert "queued 3 runs" in said
    assert [run.job_id for run in runs] == [f"{array}_{i}" for i in range(3)]
    assert cluster.show_job(f"{array}_2")["ArrayTaskThrottle"] == "2"
    again = launcher(cluster, *command)
    assert again.count("has job") == 3 and "nothing to queue" in again
    cluster.run(["scontrol", "release", array])
    for run in runs:
        run.wait_result()
        assert "top-1 %" in Path(read_jobs(run.dir)[-1].stdout).read_text()
        code = (run.dir / read_jobs(run.dir)[-1].code).resolve()
        assert code.parent == tmp_path / "runs/code", "one snapshot for all"
    assert "nothing to queue" in launcher(cluster, *command)


@pytest.mark.slow
def test_a_chain_is_one_run_in_jobs_that_wait_for_each_other(
    cluster: Cluster, tiny_store: Store, tmp_path: Path
) -> None:
    run = Run(cluster, tmp_path / "run")
    words = tiny_run(tiny_store, run.dir, "train.stage1.steps=60", "train.stage2.steps=20")
    command: list[str | Path] = [*words, "--config", "default.yaml", "--cluster", profile(tmp_path)]
    launcher(cluster, *command, "--chain", "3")
    first, second, third = (job.job_id for job in read_jobs(run.dir))
    assert cluster.show_job(first)["Requeue"] == "0"
    assert cluster.show_job(third)["Dependency"].startswith(f"afterany:{second}")
    with pytest.raises(ClusterError, match=f"has job {third}"):
        launcher(cluster, *command)
    run.wait_step(10)
    cluster.run(["scancel", "--signal=USR2", first])
    assert cluster.wait_for(first, {"FAILED", "COMPLETED", "CANCELLED"}) != "CANCELLED"
    assert run.wait_result()["steps"] == 80
    cluster.wait_for(third, {"COMPLETED"})
    assert {start["start"].partition("-")[0] for start in run.starts} == {f"{first}.0", f"{second}.0"}
    assert "is finished already" in run.said()
    assert "is finished already" in launcher(cluster, *command)
