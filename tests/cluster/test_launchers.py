"""`mmsada train` by plain srun on two hosts, and environments that contradict themselves (mpiexec, torchrun:
tests/launch).
"""

import shutil
import sys
from pathlib import Path

import pytest

from mmsada_hpc.data.store import Store
from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError
from tests.cluster.runs import CHECKOUT, WATCH, Run, profile, submit
from tests.train.test_law1 import tiny_run

SRUN = ("srun", "--partition=low", "--nodes=2", "--ntasks-per-node=1", "--time=2", "--kill-on-bad-exit=1")
ENV = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}


def test_the_same_command_runs_under_srun_on_two_nodes(cluster: Cluster, tiny_store: Store, tmp_path: Path) -> None:
    words = tiny_run(tiny_store, tmp_path / "run", *WATCH)
    out = cluster.run([*SRUN, sys.executable, "-m", "mmsada_hpc.cli", "train", *words], timeout=120, env=ENV)
    assert "2 rank(s) by slurm" in out
    run = Run(cluster, tmp_path / "run")
    assert run.result is not None
    assert [start["world_size"] for start in run.starts] == [2]


@pytest.mark.slow
def test_a_folder_that_the_nodes_do_not_share_is_refused_by_the_name_of_the_host(
    cluster: Cluster, tiny_store: Store
) -> None:
    words = tiny_run(tiny_store, cluster.private_folder / "run", *WATCH)
    with pytest.raises(ClusterError) as told:
        cluster.run([*SRUN, sys.executable, "-m", "mmsada_hpc.cli", "train", *words], timeout=120, env=ENV)
    first, second = cluster.nodes
    assert f"is not shared: {second} does not see what rank 0 wrote there on {first}" in str(told.value)


def test_a_job_whose_run_folder_one_node_does_not_mount_ends_at_once_naming_it(
    cluster: Cluster, tiny_store: Store, tmp_path: Path
) -> None:
    second = cluster.nodes[1]
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    cluster.exec(second, ["mount", "-t", "tmpfs", "none", folder])  # there the folder is another one, and empty
    try:
        words = tiny_run(tiny_store, folder / "run", *WATCH)
        run = submit(cluster, words, "--cluster", profile(tmp_path), run_dir=folder / "run")
        run.wait_gone(timeout=30)
    finally:
        cluster.exec(second, ["umount", folder])
    assert f"error: {second} does not see {folder}/run/code/" in run.said()
    assert run.starts == []


def test_an_mpi_that_slurm_did_not_start_is_told_with_both_sizes(cluster: Cluster) -> None:
    program = (
        "from mpi4py import MPI; from mmsada_hpc.cluster.join import join;"
        "from mmsada_hpc.cluster.world import find_world; join(find_world())"
    )
    with pytest.raises(ClusterError) as told:
        cluster.run([*SRUN, "--mpi=none", sys.executable, "-c", program], timeout=60, env=ENV)
    assert "slurm says rank 1 of 2, mpi4py sees rank 0 of 1" in str(told.value)


@pytest.mark.slow
def test_a_script_that_forgets_srun_is_told_so(cluster: Cluster, tiny_store: Store, tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in tiny_run(tiny_store, tmp_path / "run"))
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{sys.executable} -m mmsada_hpc.cli train {words}\n")
    job = cluster.sbatch("--nodes=2", "--ntasks=2", f"--output={tmp_path}/out", f"--chdir={CHECKOUT}", script)
    cluster.wait_for(job, {"FAILED"}, timeout=40)
    assert "was not started by srun: put `srun` before the command" in (tmp_path / "out").read_text()


@pytest.mark.slow
def test_ranks_with_other_code_are_named(cluster: Cluster, tiny_store: Store, tmp_path: Path) -> None:
    """As when one node mounts an old copy."""
    words = tiny_run(tiny_store, tmp_path / "run", *WATCH)
    old = tmp_path / "old"
    shutil.copytree(CHECKOUT / "kernels", old / "mmsada_kernels")
    for path in old.rglob("*.py"):
        path.write_text(path.read_text() + "\n# an older one\n")
    wrapper = tmp_path / "rank.sh"
    wrapper.write_text(
        f'#!/bin/bash\n[ "$SLURM_PROCID" = 1 ] && export PYTHONPATH={old}:{CHECKOUT}\nexec {sys.executable} "$@"\n'
    )
    wrapper.chmod(0o755)
    with pytest.raises(ClusterError) as told:
        cluster.run([*SRUN, wrapper, "-m", "mmsada_hpc.cli", "train", *words], timeout=120, env=ENV)
    assert "the code of mmsada_hpc and mmsada_kernels is not the same on all ranks" in str(told.value)
    assert f"rank 1 on {cluster.nodes[1]} has" in str(told.value)


@pytest.mark.slow
def test_an_interface_that_leads_nowhere_ends_every_rank_in_time(
    cluster: Cluster, tiny_store: Store, tmp_path: Path
) -> None:
    words = tiny_run(tiny_store, tmp_path / "run", *WATCH, "watch.start_minutes=0.1")
    with pytest.raises(ClusterError) as told:
        cluster.run(
            [*SRUN, sys.executable, "-m", "mmsada_hpc.cli", "train", *words],
            timeout=60,
            env={**ENV, "GLOO_SOCKET_IFNAME": "lo"},
        )
    assert "could not join the others" in str(told.value)
    assert "no end within" not in str(told.value)
